"""Training, evaluating and predicting on disks that are full, or may not be written to."""

import subprocess

import cv2
import numpy as np
import pytest
from commands import fails, info, run, train, train_args

from segjax import storage
from segjax.training.checkpoint import Checkpoints

pytestmark = pytest.mark.slow

# Bytes: enough for the log and the report, not for what a checkpoint may have besides its arrays.
LEFT = 500_000


@pytest.fixture
def disk(tmp_path):
  """A small disk of its own."""
  path = tmp_path / 'disk'
  path.mkdir()
  command = ['mount', '-t', 'tmpfs', '-o', 'size=8m', 'tmpfs', str(path)]
  if subprocess.run(command, capture_output=True).returncode:
    pytest.skip('mounting a disk needs the rights of root')
  yield path
  # Lazily: a writer of TFDS that failed keeps its file open until the process ends.
  subprocess.run(['umount', '--lazy', str(path)], check=True)


def fill(disk, left):
  """Fills a disk but for so many bytes."""
  with (disk / 'filler').open('ab') as file:
    file.write(bytes(storage.free_bytes(disk) - left))


@pytest.fixture
def filled(disk, monkeypatch):
  """`filled(left)`: the disk is full but for so many bytes when the checkpoint of step 2 is saved.

  Training without it would end at step 4.
  """

  def install(left):
    save = Checkpoints.save

    def save_and_fill(self, state, **kwargs):
      save(self, state, **kwargs)
      if int(state.step) == 2:
        self._manager.wait_until_finished()
        fill(disk, left)

    monkeypatch.setattr(Checkpoints, 'save', save_and_fill)

  return install


def stops(capfd, *args):
  """The sentence of a command that fails, which prints no traceback of any thread."""
  sentence = fails(capfd, *args)
  assert 'Traceback' not in capfd.readouterr().err
  return sentence


@pytest.mark.parametrize('checked', [True, False], ids=['before', 'while saving'])
def test_a_disk_that_is_full_when_a_checkpoint_is_saved(disk, filled, capfd, monkeypatch, checked):
  workdir = disk / 'run'
  filled(LEFT)

  def fits(path, needed):
    """The disk fills up between the check and the end of the writing."""
    if (disk / 'filler').exists():
      fill(disk, 0)
    return True

  if not checked:
    monkeypatch.setattr(storage, 'fits', fits)
  args = train_args(workdir, '--config.train.images=0', steps=4)
  sentence = stops(capfd, *args)
  assert 'run/checkpoints/4 cannot be written, because the disk is full (' in sentence
  assert 'needed' in sentence and 'free): free some space' in sentence
  assert sentence.endswith('which resumes from step 2')
  assert info(workdir, capfd)['step'] == 2
  assert [path.name for path in (workdir / 'checkpoints').iterdir()] == ['2']
  (disk / 'filler').unlink()
  assert run(*args) == 0
  assert info(workdir, capfd)['step'] == 4


def test_a_disk_that_is_full_when_the_log_is_written(disk, filled, capfd):
  workdir = disk / 'run'
  filled(0)
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
