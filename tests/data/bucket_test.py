"""Prepared data in a bucket: each machine works on its own copy."""

import shutil

import fake_bucket
import pytest

from segjax.data import bucket, datasets
from segjax.types import SegjaxError

ADDRESS = 's3://bucket/data'
PLACE = 'scenes/tiny'


@pytest.fixture
def machine(tmp_path, monkeypatch):
  """`machine(name)` moves on to a machine with a cache directory of its own, and returns that."""

  def enter(name):
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / name))
    return tmp_path / name / 'segjax' / 'buckets' / 's3' / 'bucket' / 'data'

  with fake_bucket.installed():
    yield enter


def load(report=None, **kwargs):
  return datasets.load(PLACE, ADDRESS, report=report or (lambda text: None), **kwargs)


def read(builder):
  return [bytes(record) for record in builder.as_data_source('val').data_source]


def test_data_is_prepared_once_and_copied_to_each_machine(machine, monkeypatch):
  first, told = machine('first'), []
  builder = load(told.append)
  path = builder.data_path
  assert str(path).startswith(str(first))
  assert told == [
    f'preparing {PLACE} in {path}',
    f'copying {path} to {ADDRESS}/{path.relative_to(first).as_posix()}',
  ]
  told.clear()
  load(told.append)
  assert told == []
  records, second = read(builder), machine('second')
  monkeypatch.setattr(datasets, '_prepare', None)  # it is not prepared again
  copied = load(told.append)
  [line] = told
  assert line.startswith(f'copying {ADDRESS}/scenes/tiny/') and line.endswith(str(copied.data_path))
  assert str(copied.data_path).startswith(str(second))
  assert read(copied) == records
  # A copy that was broken off goes on.
  shard = next(second.rglob('*.array_record*'))
  shard.unlink()
  assert read(load()) == records


def test_data_that_was_prepared_again_is_copied_again(machine):
  first = machine('first')
  path = load().data_path
  machine('second')
  stale = load().data_path
  machine('first')
  info = path / 'dataset_info.json'
  info.write_text(info.read_text() + '\n')
  (path / 'more.array_record').write_bytes(b'new')
  root = bucket.Root(first, bucket.open_root(ADDRESS).bucket)
  told = []
  root.store(path, told.append)
  assert len(told) == 1
  machine('second')
  load()
  assert (stale / 'more.array_record').read_bytes() == b'new'
  assert (stale / 'dataset_info.json').read_text() == info.read_text()
  # What is gone from the machine that prepares it, is from the bucket.
  machine('first')
  (path / 'more.array_record').unlink()
  info.write_text(info.read_text() + '\n')
  root.store(path, told.append)
  assert not any('more' in name for name in fake_bucket.Bucket.store)


def test_data_is_complete_in_a_bucket_or_not_there(machine, monkeypatch):
  first = machine('first')

  def broken(source, target):
    if 'array_record' in str(source):
      raise ConnectionError('gone')
    copy(source, target)

  copy = bucket.storage.copy_file
  monkeypatch.setattr(bucket.storage, 'copy_file', broken)
  with pytest.raises(ConnectionError):
    load()
  monkeypatch.setattr(bucket.storage, 'copy_file', copy)
  assert not any('dataset_info' in name for name in fake_bucket.Bucket.store)
  shutil.rmtree(first)
  told = []
  load(told.append)
  assert [line.partition(' ')[0] for line in told] == ['preparing', 'copying']


def test_raw_files_are_local(machine):
  machine('first')
  message = '^config.data.source=s3://bucket/raw must be on a local disk: copy it'
  with pytest.raises(SegjaxError, match=message):
    datasets.load('camvid', ADDRESS, 's3://bucket/raw')
