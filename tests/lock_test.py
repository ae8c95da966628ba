"""Locks: of the operating system, and the file that takes their place."""

import errno
import fcntl
import json
import os
import threading

import fake_bucket
import pytest

from segjax import lock, storage
from segjax.types import SegjaxError


@pytest.fixture
def fast(monkeypatch):
  monkeypatch.setattr(lock, 'BEAT', 0.05)
  monkeypatch.setattr(lock, 'STALE', 0.4)
  monkeypatch.setattr(lock, '_SETTLE', 0.02)
  monkeypatch.setattr(lock, '_POLL', 0.02)


@pytest.fixture(params=['disk', 'bucket'])
def path(request, tmp_path, fast):
  """Of a lock file."""
  if request.param == 'disk':
    yield tmp_path / 'lock'
    return
  with fake_bucket.installed():
    yield storage.as_path('s3://bucket/lock')


def holder(path, **changes):
  """The content of a lock file of another process, which does not beat."""
  with lock.LockFile(path):
    content = json.loads(path.read_text())
  storage.write_text(path, json.dumps({**content, 'id': 'other', **changes}))


def is_locked(held, by):
  with pytest.raises(lock.LockedError, match=by), held:
    pass


# --- of the operating system ----------------------------------------------------------------------


def test_one_holds_a_lock(tmp_path):
  with lock.exclusive(tmp_path / 'x'):
    is_locked(lock.exclusive(tmp_path / 'x'), 'another process')
  with lock.exclusive(tmp_path / 'x') as check:
    check()
  assert os.listdir(tmp_path) == ['x']


def test_one_waits_for_the_other(tmp_path):
  order = []

  def second():
    with lock.exclusive(tmp_path / 'x', wait=True):
      order.append('second')

  thread = threading.Thread(target=second)
  with lock.exclusive(tmp_path / 'x'):
    thread.start()
    thread.join(0.1)
    order.append('first')
  thread.join()
  assert order == ['first', 'second']


@pytest.mark.parametrize('code', [errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP])
def test_without_locks_a_file_takes_their_place(tmp_path, monkeypatch, fast, code):
  def flock(*_):
    raise OSError(code, os.strerror(code))

  monkeypatch.setattr(fcntl, 'flock', flock)
  told = []
  with lock.exclusive(tmp_path / 'x', report=told.append) as check:
    check()
    assert sorted(os.listdir(tmp_path)) == ['x', 'x.held']
    is_locked(lock.exclusive(tmp_path / 'x'), f'process {os.getpid()} on ')
  assert os.listdir(tmp_path) == ['x']
  [line] = told
  assert f'{tmp_path} is on a file system without locks ({os.strerror(code)})' in line
  assert 'the file x.held takes their place' in line


def test_another_error_is_not_a_lock(tmp_path, monkeypatch):
  def flock(*_):
    raise OSError(errno.EIO, 'Input/output error')

  monkeypatch.setattr(fcntl, 'flock', flock)
  held = lock.exclusive(tmp_path / 'x')
  with pytest.raises(OSError, match=f"Input/output error: '{tmp_path}/x'"), held:
    pass


def test_a_lock_that_cannot_be_made(tmp_path):
  (tmp_path / 'x').mkdir()
  with pytest.raises(IsADirectoryError), lock.exclusive(tmp_path / 'x'):
    pass


# --- files ----------------------------------------------------------------------------------------


def test_a_lock_file_says_who_holds_it_and_beats(path):
  with lock.LockFile(path) as held:
    while (first := lock._parse(path.read_text())) is None:  # while it is being written
      held.check()
    assert first.pid == os.getpid() and first.host and first.time.endswith('+00:00')
    while (now := lock._parse(path.read_text())) is None or now.beats < 2:
      held.check()
    assert now.id == first.id
  assert not path.exists()


def test_a_living_process_of_this_machine_is_seen_at_once(path, monkeypatch):
  monkeypatch.setattr(lock, 'STALE', 1e9)
  with lock.LockFile(path):
    is_locked(lock.LockFile(path), f'process {os.getpid()} on ')
  with lock.LockFile(path):
    pass


def test_an_ended_process_of_this_machine_is_seen_at_once(path, monkeypatch):
  monkeypatch.setattr(lock, 'STALE', 1e9)
  holder(path, started='1')  # the id of this process, which started at another time
  with lock.LockFile(path):
    assert json.loads(path.read_text())['id'] != 'other'


def test_a_silent_process_elsewhere_is_stale_after_a_while(path):
  holder(path, machine='elsewhere', host='far', pid=7)
  told = []
  with lock.LockFile(path, report=told.append) as held:
    assert json.loads(path.read_text())['pid'] == os.getpid()
    held.check()
  assert told == [f'{path} is of process 7 on far: waiting up to 0 s to see whether that is alive']


def test_a_beating_process_elsewhere_is_alive(path, monkeypatch):
  monkeypatch.setattr(lock, 'STALE', 1e9)
  with lock.LockFile(path):  # beats
    monkeypatch.setattr(lock, '_machine', lambda: 'another')
    is_locked(lock.LockFile(path), f'process {os.getpid()} on ')


def test_a_lock_that_was_taken_over_is_lost(path):
  with lock.LockFile(path) as held:
    held.check()
    storage.write_text(path, json.dumps({**json.loads(path.read_text()), 'id': 'x', 'pid': 5}))
    held._thread.join(10)
    with pytest.raises(SegjaxError, match='lock was taken over by process 5 on .*: end one of'):
      held.check()
  assert path.exists(), 'it is not removed by who lost it'


def test_a_file_that_is_being_written_is_waited_for(path):
  storage.write_text(path, '')
  with lock.LockFile(path):
    assert json.loads(path.read_text())['pid'] == os.getpid()
