"""`segjax data prepare`."""

from commands import fails, run


def test_prepares_and_counts(tmp_path, capsys):
  assert run('data', 'prepare', 'scenes/tiny', f'--data_dir={tmp_path}') == 0
  out = capsys.readouterr().out
  assert out.startswith('scenes/tiny 1.0.0: train ')
  assert str(tmp_path) in out


def test_missing_sources_are_one_sentence(tmp_path, capsys):
  message = fails(
    capsys, 'data', 'prepare', 'camvid', f'--source={tmp_path}', f'--data_dir={tmp_path}'
  )
  assert str(tmp_path) in message
  message = fails(capsys, 'data', 'prepare', 'nyud', f'--data_dir={tmp_path / "d"}')
  assert 'source' in message


def test_what_is_missing_is_named_offline(tmp_path, capsys):
  message = fails(capsys, 'data', 'prepare', 'penn_fudan', '--offline', f'--data_dir={tmp_path}')
  assert 'https://www.cis.upenn.edu/~jshi/ped_html/PennFudanPed.zip' in message
  assert str(tmp_path / 'downloads' / 'penn_fudan' / 'PennFudanPed.zip') in message
