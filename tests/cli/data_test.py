"""`segjax data prepare`."""

import json
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
  """After SIGKILLs of the main process, at random moments, nothing is half prepared or left."""

  def start(name, workers):
    args = ['data', 'prepare', 'scenes', f'--data_dir={tmp_path / name}', f'--workers={workers}']
    return spawn(args, cache)

  def digest(name):
    return json.loads((tmp_path / name / _DIRECTORY / records.DIGEST_FILE).read_text())

  process, began = start('whole', 2), time.monotonic()
  assert process.communicate()[1] and process.returncode == 0
  seconds, rng = time.monotonic() - began, np.random.default_rng(0)
  for _ in range(3):
    process = start('killed', 2)
    time.sleep(float(rng.uniform(0.3, 0.9)) * seconds)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    prepared = (tmp_path / 'killed' / _DIRECTORY).exists()
    if prepared:
      assert digest('killed') == digest('whole')
  assert start('killed', 2).wait(timeout=120) == 0
  assert digest('killed') == digest('whole')
  builder = datasets.load('scenes', tmp_path / 'killed')
  assert len(builder.as_data_source('train')) == 1000
  left = sorted(path.name for path in (tmp_path / 'killed' / _DIRECTORY).parent.iterdir())
  assert left == ['.1.0.0.lock', '1.0.0']


_DIRECTORY = 'scenes/default/1.0.0'
