"""Paths on disks and in buckets, whole files, and what is said of full and read-only disks."""

import errno
import os
import pathlib
import re
import shutil

import fake_bucket
import pytest

from segjax import storage
from segjax.types import SegjaxError


@pytest.fixture
def bucket():
  with fake_bucket.installed() as files:
    yield files


def full(path, *_args, **_kwargs):
  raise OSError(errno.ENOSPC, 'No space left on device')


# --- paths ----------------------------------------------------------------------------------------


def test_a_local_path_is_one_of_pathlib():
  assert storage.as_path('runs/a') == pathlib.Path('runs/a')
  assert not storage.is_bucket(storage.as_path('/x:/y'))


@pytest.mark.parametrize('name', ['~/runs/a', pathlib.Path('~/runs/a')])
def test_the_home_directory_of_a_key(name, tmp_path, monkeypatch):
  """Which shells leave as it is in `--workdir=~/runs/a`."""
  monkeypatch.setenv('HOME', str(tmp_path))
  for path in (storage.as_path(name), storage.local_path(name, '--output')):
    assert path == tmp_path / 'runs/a'
  assert storage.as_path('runs/~a') == pathlib.Path('runs/~a')


@pytest.mark.parametrize('name', ['s3://bucket/runs/a', pathlib.Path('s3://bucket/runs/a')])
def test_an_address_is_never_a_local_path(bucket, name, tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  path = storage.as_path(name)
  assert str(path) == 's3://bucket/runs/a'
  assert storage.is_bucket(path)
  assert str(path.parent / 'b') == 's3://bucket/runs/b'
  assert storage.absolute(path) == storage.resolved(path) == path
  storage.make_directory(path)
  storage.write_text(path / 'x.txt', 'é')
  assert bucket['/bucket/runs/a/x.txt'].getvalue() == 'é'.encode()
  assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
  ('name', 'message'),
  [
    ('hdfs://host/runs', r'^hdfs://host/runs is an address of the kind hdfs://: name .* gs:// or'),
    ('https://host/runs', '^https://host/runs is an address of the kind https://'),
    ('gs://bucket/runs', r"^gs://bucket/runs needs the library none, .*'segjax\[gcs\]'$"),
  ],
)
def test_an_address_that_cannot_be_used(monkeypatch, name, message):
  monkeypatch.setitem(storage.BUCKETS, 'gs', ('none', 'gcs'))
  with pytest.raises(SegjaxError, match=message):
    storage.as_path(name)


@pytest.mark.parametrize(
  ('error', 'code', 'message'),
  [
    (ValueError('no credentials\nand a second line'), 2, 'ValueError: no credentials.: check its'),
    (TimeoutError(), 74, 'TimeoutError: .: run the same command again'),
  ],
)
def test_a_bucket_that_cannot_be_reached(bucket, monkeypatch, error, code, message):
  def ls(*_args, **_kwargs):
    raise error

  monkeypatch.setattr(fake_bucket.Bucket, 'ls', ls)
  with pytest.raises(SegjaxError, match=rf'^s3://bucket cannot be reached \({message}') as e:
    storage.as_path('s3://bucket/runs')
  assert e.value.exit_code == code


@pytest.mark.parametrize('name', ['gs://bucket/x', pathlib.Path('gs://bucket/x')])
def test_what_must_be_local(name):
  with pytest.raises(SegjaxError, match='^--output=gs:/.* must be on a local disk: copy it'):
    storage.local_path(name, '--output')
  assert storage.local_path('x', '--output') == pathlib.Path('x')


# --- files ----------------------------------------------------------------------------------------


@pytest.fixture(params=['disk', 'bucket'])
def place(request, tmp_path):
  if request.param == 'disk':
    yield tmp_path / 'place'
    return
  with fake_bucket.installed():
    yield storage.as_path('s3://bucket/place')


def test_files_are_written_copied_moved_and_removed(place):
  storage.write_bytes(place / 'a' / 'b.txt', b'one\n')
  storage.append_text(place / 'a' / 'b.txt', 'two\n')
  storage.append_text(place / 'c.txt', 'new\n')
  assert (place / 'a' / 'b.txt').read_text() == 'one\ntwo\n'
  assert storage.files_below(place) == ['a/b.txt', 'c.txt']
  assert storage.files_below(place / 'missing') == []
  storage.copy_tree(place, place.parent / 'copy')
  storage.move_tree(place, place.parent / 'moved' / 'x')
  assert storage.files_below(place) == []
  for name in ('copy', 'moved/x'):
    assert (place.parent / name / 'a' / 'b.txt').read_text() == 'one\ntwo\n'
  storage.remove_tree(place.parent / 'copy')
  storage.remove_tree(place.parent / 'copy')
  assert storage.files_below(place.parent) == ['moved/x/a/b.txt', 'moved/x/c.txt']


def test_a_file_is_whole_or_as_it_was(place):
  path = place / 'a.txt'
  storage.write_text(path, 'before')
  with pytest.raises(KeyboardInterrupt), storage.writing(path) as file:
    file.write(b'half')
    raise KeyboardInterrupt
  assert path.read_text() == 'before'
  assert storage.files_below(place) == ['a.txt'], 'nothing temporary is left'


# --- disks ----------------------------------------------------------------------------------------


def test_a_full_disk_is_named_with_what_was_needed_and_free(tmp_path, monkeypatch):
  path = tmp_path / 'a.txt'
  storage.write_text(path, 'before')
  monkeypatch.setattr(pathlib.Path, 'replace', full)
  usage = shutil.disk_usage(tmp_path)._replace(free=999)
  monkeypatch.setattr(shutil, 'disk_usage', lambda _: usage)
  message = (
    r'/a.txt cannot be written, because the disk is full \(2.5 kB needed, 999 bytes free\): free '
    'some space, and run the same command again$'
  )
  with pytest.raises(SegjaxError, match=message):
    storage.write_bytes(path, bytes(2500))
  assert path.read_text() == 'before'
  assert os.listdir(tmp_path) == ['a.txt']


@pytest.mark.parametrize(
  ('error', 'message'),
  [
    (OSError(errno.EDQUOT, 'x'), 'the quota of the disk is used up'),
    (ValueError('RESOURCE_EXHAUSTED: [OS error 28: ENOSPC No space left]'), 'the disk is full'),
    (RuntimeError('write: Disk quota exceeded'), 'the quota of the disk is used up'),
    (OSError(errno.EROFS, 'x'), r'\(Read-only file system\): make it writable, or name another'),
    (PermissionError(errno.EACCES, 'x'), r'\(Permission denied\): make it writable'),
  ],
)
def test_what_is_wrong_with_a_disk(tmp_path, error, message):
  told = storage.explain(error, tmp_path / 'x', None)
  assert str(told).startswith(f'{tmp_path}/x cannot be written')
  assert re.search(message, str(told))
  wrapped = RuntimeError('of a library')
  wrapped.__cause__ = error
  assert str(storage.explain(wrapped, tmp_path / 'x', None)) == str(told)


def test_other_errors_are_themselves(tmp_path):
  assert storage.explain(ValueError('x'), tmp_path, 1) is None
  with pytest.raises(FileNotFoundError), storage.explained(tmp_path):
    (tmp_path / 'missing').read_text()


def test_what_fits(tmp_path, bucket):
  free = storage.free_bytes(tmp_path / 'not' / 'there')
  assert free > 0
  assert storage.fits(tmp_path, 1)
  assert not storage.fits(tmp_path, 2**80)
  assert storage.fits(storage.as_path('s3://bucket/a'), 2**80)


@pytest.mark.parametrize(
  ('count', 'text'), [(0, '0 bytes'), (1500, '1.5 kB'), (25_000_000, '25.0 MB'), (3e9, '3.0 GB')]
)
def test_spell_bytes(count, text):
  assert storage.spell_bytes(count) == text
