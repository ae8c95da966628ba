"""Training, evaluating and predicting on disks that are full, or may not be written to."""

import subprocess

import cv2
import numpy as np
import pytest
from commands import fails, info, run, train, train_args

from segjax import storage

pytestmark = pytest.mark.slow

LEFT = 60_000


@pytest.fixture
def disk(tmp_path):
  """A small disk of its own."""
  path = tmp_path / 'disk'
  path.mkdir()
  command = ['mount', '-t', 'tmpfs', '-o', 'size=8m', 'tmpfs', str(path)]
  if subprocess.run(command, capture_output=True).returncode:
    pytest.skip('mounting a disk needs the rights of root')
  yield path
  subprocess.run(['umount', str(path)], check=True)


def fill(disk, left=LEFT):
  """Fills a disk but for so many bytes."""
  with (disk / 'filler').open('wb') as file:
    file.write(bytes(storage.free_bytes(disk) - left))


def stops(capfd, *args):
  """The sentence of a command that fails, which prints no traceback of any thread."""
  sentence = fails(capfd, *args)
  assert 'Traceback' not in capfd.readouterr().err
  return sentence


@pytest.mark.parametrize('checked', [True, False], ids=['before', 'while saving'])
def test_a_disk_that_is_full_when_a_checkpoint_is_saved(disk, capfd, monkeypatch, checked):
  workdir = disk / 'run'
  assert train(workdir) == 0
  before = info(workdir, capfd)
  fill(disk)
  if not checked:  # as if it filled up between the check and the end of the writing
    monkeypatch.setattr(storage, 'fits', lambda path, needed: True)
  args = train_args(workdir, '--config.train.eval_every=9', steps=4)
  sentence = stops(capfd, *args)
  assert 'run/checkpoints/4 cannot be written, because the disk is full (' in sentence
  assert 'needed' in sentence and 'free): make room' in sentence
  assert sentence.endswith('which resumes from step 2')
  assert info(workdir, capfd) == before
  assert [path.name for path in (workdir / 'checkpoints').iterdir()] == ['2']
  (disk / 'filler').unlink()
  assert run(*args) == 0
  assert info(workdir, capfd)['step'] == 4


def test_a_disk_that_is_full_when_the_log_is_written(disk, capfd):
  workdir = disk / 'run'
  assert train(workdir) == 0
  fill(disk, left=0)
  sentence = stops(capfd, *train_args(workdir, steps=4))
  assert str(workdir) in sentence and 'cannot be written, because the disk is full' in sentence
  (disk / 'filler').unlink()
  assert train(workdir, steps=4) == 0
  assert info(workdir, capfd)['step'] == 4


def test_a_disk_that_is_full_when_data_is_prepared(disk, capfd):
  fill(disk, left=100_000)
  sentence = stops(capfd, 'data', 'prepare', 'scenes', f'--data_dir={disk}')
  assert f'{disk}/scenes' in sentence and 'cannot be written, because the disk is full' in sentence


def test_a_disk_that_is_full_when_predictions_are_written(disk, semantic_run, tmp_path, capfd):
  image = tmp_path / 'a.png'
  cv2.imwrite(str(image), np.random.default_rng(0).integers(0, 255, (300, 300, 3), np.uint8))
  fill(disk, left=20_000)
  args = (f'--workdir={semantic_run}', f'--images={image}', f'--output={disk / "out"}')
  sentence = stops(capfd, 'predict', *args)
  assert 'out/a_overlay.png cannot be written, because the disk is full' in sentence


def test_a_read_only_workdir(disk, capfd):
  workdir = disk / 'run'
  assert train(workdir) == 0
  subprocess.run(['mount', '-o', 'remount,ro', str(disk)], check=True)
  assert info(workdir, capfd)['step'] == 2
  sentence = stops(capfd, *train_args(workdir, steps=4))
  assert f'{workdir}/.lock cannot be written (Read-only file system): make it w' in sentence
  capfd.readouterr()
  assert run('evaluate', f'--workdir={workdir}', '--json') == 2
  captured = capfd.readouterr()
  assert '"mean_iou"' in captured.out, 'the metrics are not lost'
  assert 'report.html cannot be written (Read-only file system)' in captured.err
