"""Workdirs: round trips of their files, and errors."""

import errno
import fcntl
import os
import pathlib

import fake_bucket
import pytest

from segjax.config import flatten
from segjax.experiment import parse
from segjax.types import SegjaxError
from segjax.workdir import FREE_KEYS, Workdir, weights_file

GIVEN = {
  'task': 'semantic',
  'model': {'name': 'unet.UNet', 'classes': 9},
  'losses': {'dice': {}},
  'data': {'name': 'scenes'},
}


@pytest.fixture
def workdir(tmp_path):
  workdir = Workdir(str(tmp_path / 'run'))
  workdir.path.mkdir()
  return workdir


def test_starts_are_noted_one_a_line(workdir):
  assert workdir.read_starts() == []
  starts = [{'step': 0, 'commit': 'a'}, {'step': 5, 'commit': None}]
  for start in starts:
    workdir.note_start(start)
  assert workdir.read_starts() == starts
  with workdir.starts.open('a') as file:
    file.write('{"step": 7, "com')  # truncated by a kill
  assert workdir.read_starts() == starts


def test_the_config_reads_back(workdir):
  one = parse(GIVEN)
  workdir.write_config(one.to_dict())
  assert parse(workdir.read_config()) == one
  assert not workdir.is_old()
  assert not workdir.has_checkpoints()


@pytest.mark.parametrize(
  ('text', 'message'),
  [
    ('{"a": ', 'config.json is corrupt .*: use another --workdir, or fix it'),
    ('3', 'config.json is corrupt .not a JSON object.'),
    ('{"a": 3}', 'config.json is corrupt .no data or no model.'),
  ],
)
def test_a_corrupt_config_is_named(workdir, text, message):
  workdir.config.write_text(text)
  with pytest.raises(SegjaxError, match=message):
    workdir.read_config()


def test_a_model_of_transformers_is_no_run_but_has_weights_to_start_from(workdir):
  assert weights_file(workdir.path / 'a.pth') == workdir.path / 'a.pth'
  workdir.write_config(GIVEN)
  assert weights_file(workdir.path) == workdir.path
  workdir.config.write_text('{"architectures": ["SegformerModel"], "model_type": "segformer"}')
  with pytest.raises(SegjaxError, match='is a model of transformers, .*--config.init_from.path='):
    workdir.read_config()
  with pytest.raises(SegjaxError, match='without model.safetensors and pytorch_model.bin: save'):
    weights_file(workdir.path)
  for name in ('pytorch_model.bin', 'model.safetensors'):  # the second is preferred
    (workdir.path / name).touch()
    assert weights_file(workdir.path) == workdir.path / name


def test_a_directory_that_is_not_a_workdir_is_named(workdir):
  with pytest.raises(SegjaxError, match='run is not the workdir of a run .no config.json.'):
    workdir.read_config()
  with pytest.raises(SegjaxError, match='run has no dataset.json: start training there first'):
    workdir.read_dataset()


@pytest.mark.parametrize(
  'free', [{'batch': {'workers': 2, 'eval_size': 3}}, {'train': {'log_every': 7}}, {'mesh': {}}]
)
def test_a_run_may_resume_with_other_free_keys(workdir, free):
  old, new = parse(GIVEN).to_dict(), parse({**GIVEN, **free}).to_dict()
  workdir.write_config(old)
  workdir.check_config(old, new)


def test_a_run_may_not_resume_with_another_config(workdir):
  old, new = parse(GIVEN).to_dict(), parse({**GIVEN, 'batch': {'size': 3}}).to_dict()
  workdir.write_config(old)
  message = r'was created with a different config \(config.batch.size was 8 and is 3\)'
  with pytest.raises(SegjaxError, match=message):
    workdir.check_config(old, new)


def test_free_keys_exist():
  """A moved key would no longer be free."""
  keys = flatten(parse(GIVEN).to_dict())
  assert all(any(key.startswith(free) for key in keys) for free in FREE_KEYS)


def test_one_process_trains_in_a_workdir(workdir):
  message = 'another process is training in .*run: wait for it, or use another --workdir'
  with workdir.lock(), pytest.raises(SegjaxError, match=message), workdir.lock():
    pass
  with workdir.lock():
    pass


def test_a_workdir_without_locks_is_locked_by_a_file(workdir, monkeypatch):
  def flock(*_):
    raise OSError(errno.ENOLCK, 'No locks available')

  monkeypatch.setattr(fcntl, 'flock', flock)
  told = []
  message = f'process {os.getpid()} on .* is training in .*run: wait for it, or use another'
  with workdir.lock(told.append):
    workdir.check_lock()
    with pytest.raises(SegjaxError, match=message), workdir.lock():
      pass
  assert [f'{workdir.path} is on a file system without locks' in line for line in told] == [True]


def test_a_read_only_workdir_is_named(workdir, monkeypatch):
  def read_only(*_, **__):
    raise OSError(errno.EROFS, 'Read-only file system')

  monkeypatch.setattr(pathlib.Path, 'open', read_only)
  message = r'run/.lock cannot be written \(Read-only file system\): make it writable, or name an'
  with pytest.raises(SegjaxError, match=message), workdir.lock():
    pass


def test_a_workdir_in_a_bucket():
  one = parse(GIVEN)
  with fake_bucket.installed() as files:
    workdir = Workdir('s3://bucket/runs/a')
    with workdir.lock():
      assert set(files) == {'/bucket/runs/a/.lock'}
      workdir.write_config(one.to_dict())
      workdir.write_dataset({'spec': 1})
      for step in (0, 5):
        workdir.note_start({'step': step})
      other = Workdir('s3://bucket/runs/a').lock()
      with pytest.raises(SegjaxError, match='is training in s3://bucket/runs/a: wait'), other:
        pass
    assert parse(workdir.read_config()) == one
    assert workdir.read_dataset() == {'spec': 1}
    assert workdir.read_starts() == [{'step': 0}, {'step': 5}]
    assert not workdir.has_checkpoints()
    names = {'config.json', 'dataset.json', 'starts.jsonl'}
    assert set(files) == {f'/bucket/runs/a/{name}' for name in names}
