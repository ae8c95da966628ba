"""Locks of files and directories between processes, on one machine and on several."""

import contextlib
import dataclasses
import datetime
import errno
import fcntl
import functools
import json
import os
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

from segjax import storage
from segjax.types import SegjaxError

# Seconds between two beats of a lock file, and without a beat until it is stale: three beats may be
# lost.
BEAT = 15.0
STALE = 60.0
# Seconds after which one of two processes that take over a lock file at once sees the other's.
_SETTLE = 1.0
# Seconds between two looks at another's lock file.
_POLL = 1.0
# What `flock` says where the file system, such as NFS without its lock daemon or Lustre without
# `-o flock`, has no such locks.
_NO_LOCKS = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP, errno.EINVAL)


class LockedError(Exception):
  """Another process holds the lock; the text says which, where that is known."""


@contextlib.contextmanager
def exclusive(
  path: Path, *, wait: bool = False, report: Callable[[str], None] = lambda text: None
) -> Iterator[Callable[[], None]]:
  """Holds the lock of a path; the operating system frees that of a process that ends.

  Where there is none of the operating system, see `LockFile`.

  Args:
    path: of the file that is locked, which is made, and stays; in a bucket it is the lock file.
    wait: whether to wait for the process that holds the lock.
    report: called with a line where a lock file takes the place of a lock, and before a long wait.

  Yields:
    A function that raises a SegjaxError if the lock was lost.

  Raises:
    LockedError: another process holds it, and `wait` is not set.
    SegjaxError: the file cannot be made.
  """
  if storage.is_bucket(path):
    with LockFile(path, wait=wait, report=report) as held:
      yield held.check
    return
  with contextlib.ExitStack() as stack:
    with storage.explained(path):
      file = stack.enter_context(path.open('a'))
    if reason := _flock(file, wait):
      held_path = path.with_name(f'{path.name}.held')
      report(
        f'{path.parent} is on a file system without locks ({reason}): the file {held_path.name} '
        f'takes their place, and is stale {STALE:.0f} s after the end of its process'
      )
      yield stack.enter_context(LockFile(held_path, wait=wait, report=report)).check
    else:
      yield lambda: None


def _flock(file: IO[str], wait: bool) -> str:
  """Locks a file; returns why its file system has no locks, or '' if it has.

  Raises:
    LockedError: another process holds it, and `wait` is not set.
  """
  try:
    fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
  except BlockingIOError:
    raise LockedError('another process') from None
  except OSError as e:
    if e.errno not in _NO_LOCKS:
      raise OSError(e.errno, e.strerror, file.name) from e
    return os.strerror(e.errno)
  return ''


@dataclasses.dataclass(frozen=True)
class _Holder:
  """The content of a lock file.

  Attributes:
    id: of the lock, unlike any other.
    host, pid: of its process.
    machine: see `_machine`.
    started: when the process started, in ticks since the machine did.
    beats: how often it was written.
    time: of the last beat, for people: the clocks of two machines are not compared.
  """

  id: str
  host: str
  pid: int
  machine: str
  started: str
  beats: int = 0
  time: str = ''

  @property
  def alive(self) -> bool | None:
    """Whether its process runs; None of a process on another machine."""
    return _started(self.pid) == self.started if self.machine == _machine() else None

  def __str__(self) -> str:
    return f'process {self.pid} on {self.host}'


class LockFile:
  """A lock where there is none of the operating system: on some network disks, and in buckets.

  The file says which process holds the lock, and how often a thread of it has written the file: it
  does so every `BEAT` seconds. The lock is stale, and another process takes it over, if its process
  has ended, which is known at once on the same machine; elsewhere if the file is the same for
  `STALE` seconds by the clock of the process that waits.

  A context manager; arguments and errors are those of `exclusive`.
  """

  def __init__(
    self,
    path: Path,
    *,
    wait: bool = False,
    report: Callable[[str], None] = lambda text: None,
  ):
    self._path, self._wait, self._report = path, wait, report
    own = os.getpid()
    self._holder = _Holder(uuid.uuid4().hex, socket.gethostname(), own, _machine(), _started(own))
    self._lost = ''
    self._ending = threading.Event()
    self._thread = threading.Thread(target=self._keep, name='segjax_lock', daemon=True)

  def __enter__(self) -> 'LockFile':
    while not _create(self._path, self._content()) and not self._take_over():
      pass
    self._thread.start()
    return self

  def __exit__(self, *_: Any) -> None:
    self._ending.set()
    self._thread.join()
    if self._is_ours():
      self._path.unlink()

  def check(self) -> None:
    """Raises a SegjaxError if another process has taken the lock over."""
    if self._lost:
      raise SegjaxError(
        f'{self._path} was taken over by {self._lost}, because this process had not written it for '
        f'{STALE:.0f} s: end one of the two'
      )

  def _content(self) -> str:
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec='seconds')
    return json.dumps(dataclasses.asdict(dataclasses.replace(self._holder, time=now)))

  def _is_ours(self) -> bool:
    found = _parse(_read(self._path))
    return found is not None and found.id == self._holder.id

  def _take_over(self) -> bool:
    """Waits until the lock is free or stale.

    Returns:
      True if it was stale and is now held; False if the file is gone.

    Raises:
      LockedError: its process is alive, and this one does not wait.
    """
    seen, since, told = _read(self._path), time.monotonic(), False
    while seen is not None:
      holder = _parse(seen)
      alive = holder.alive if holder else None
      if alive and not self._wait:
        raise LockedError(str(holder))
      if alive is None and not told:
        self._report(
          f'{self._path} is of {holder or "another process"}: waiting up to {STALE:.0f} s to see '
          'whether that is alive'
        )
        told = True
      if alive is False or time.monotonic() - since >= STALE:
        storage.write_text(self._path, self._content())
        time.sleep(_SETTLE)  # another process may do the same at this moment
        if self._is_ours():
          return True
      time.sleep(_POLL)
      now = _read(self._path)
      if now != seen:
        if now is not None and not self._wait:
          raise LockedError(str(_parse(now) or 'another process'))
        seen, since = now, time.monotonic()
    return False

  def _keep(self) -> None:
    """Writes the file until the lock is given back or lost."""
    while not self._ending.wait(BEAT):
      with contextlib.suppress(Exception):  # the network or the disk may be away for a moment
        found = _parse(_read(self._path))
        if found is not None and found.id != self._holder.id:
          self._lost = str(found)
          return
        self._holder = dataclasses.replace(self._holder, beats=self._holder.beats + 1)
        storage.write_text(self._path, self._content())


def _create(path: Path, content: str) -> bool:
  """Writes a file that is not there, and says whether it was not."""
  try:
    if storage.is_bucket(path):
      files, name = storage.bucket_files(path)
      files.pipe_file(name, content.encode(), mode='create')
    else:
      with storage.explained(path), path.open('x') as file:
        file.write(content)
  except FileExistsError:
    return False
  return True


def _read(path: Path) -> str | None:
  """The content of a lock file; None if it is not there."""
  try:
    return path.read_text()
  except FileNotFoundError:
    return None


def _parse(content: str | None) -> _Holder | None:
  """The holder; None if the file is not there, or is just being written."""
  try:
    return _Holder(**json.loads(content or ''))
  except (ValueError, TypeError):
    return None


@functools.cache
def _machine() -> str:
  """What is the same for two processes that see each other's ids: one kernel, one name space."""
  try:
    boot = Path('/proc/sys/kernel/random/boot_id').read_text().strip()
    return f'{boot} {os.readlink("/proc/self/ns/pid")}'
  except OSError:
    return uuid.uuid4().hex  # nothing is known of any other process


def _started(pid: int) -> str:
  """When a process started, in ticks; empty if there is none, or a zombie."""
  try:
    state, *fields = Path(f'/proc/{pid}/stat').read_text().rpartition(')')[2].split()
  except OSError:
    return ''
  return '' if state in 'ZX' else fields[18]
