"""`segjax data prepare`."""

import re
import shutil
import signal
import time

import numpy as np
import pytest
from commands import fails, run
from processes import spawn

from segjax.data import datasets, records


def test_prepares_and_counts(tmp_path, capsys):
  assert run('data', 'prepare', 'scenes/tiny', f'--data_dir={tmp_path}') == 0
  out = capsys.readouterr().out
  assert out.startswith('scenes/tiny 1.0.0: train ')
  assert str(tmp_path) in out
  assert run('data', 'prepare', 'scenes/tiny', '--distributed', f'--data_dir={tmp_path}') == 0
  assert capsys.readouterr().out == out


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


@pytest.mark.parametrize('option', ['--workers=2', '--distributed'])
def test_options_of_prepare_alone(capsys, option):
  message = fails(capsys, 'data', 'show', 'scenes/tiny', option)
  assert 'is for segjax data prepare: leave it out' in message


def test_a_corrupt_record_is_one_sentence_at_every_entrance(semantic_run, tmp_path, capsys):
  assert run('data', 'prepare', 'scenes/tiny', f'--data_dir={tmp_path}') == 0
  for path in tmp_path.rglob('*.array_record*'):
    content = bytearray(path.read_bytes())
    content[len(content) // 4] ^= 1  # at the end of a file is padding
    path.write_bytes(content)
  directory = f'--config.data.dir={tmp_path}'
  shutil.copytree(semantic_run, tmp_path / 'run')
  shutil.rmtree(tmp_path / 'run' / 'checkpoints' / '4')
  for args, split in (
    (['data', 'show', 'scenes/tiny', f'--data_dir={tmp_path}'], 'train'),
    # The rest of the training may not need the corrupt record, but evaluates.
    (['train', f'--workdir={tmp_path / "run"}', directory], 'train|val'),
    (['evaluate', f'--workdir={semantic_run}', directory], 'val'),
  ):
    message = fails(capsys, *args)
    wanted = rf'of the split ({split}) of scenes/tiny\) is corrupt: delete {tmp_path}'
    assert re.search(wanted, message)
    assert message.endswith('or set config.data.bad_examples=skip')


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_killed_at_any_moment_prepares_the_same(tmp_path, cache):
  """After SIGKILLs of the main process nothing is half prepared, and nothing is left."""
  place = tmp_path / 'killed' / 'scenes' / 'default'

  def start(name):
    args = ['data', 'prepare', 'scenes', f'--data_dir={tmp_path / name}', '--workers=2']
    return spawn(args, cache)

  def end(process):
    err = process.communicate()[1]
    assert process.returncode == 0, err
    return err

  end(start('whole'))
  rng = np.random.default_rng(0)
  for whole_files in (0, 2, 5):
    process = start('killed')
    while len(list(place.glob('.1.0.0.shards/*-of-*.json'))) < whole_files:
      assert process.poll() is None
      time.sleep(0.01)
    time.sleep(float(rng.uniform(0, 0.2)))
    process.kill()
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    assert not (place / '1.0.0').exists()
  assert 'of an interrupted preparation, which are kept: ' in end(start('killed'))
  first, second = (
    (tmp_path / name / 'scenes/default/1.0.0' / records.DIGEST_FILE).read_text()
    for name in ('whole', 'killed')
  )
  assert first == second
  assert len(datasets.load('scenes', tmp_path / 'killed').as_data_source('train')) == 1000
  assert sorted(path.name for path in place.iterdir()) == ['.1.0.0.lock', '1.0.0']
