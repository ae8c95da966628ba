"""Downloads of public files: resumed, checked, and unpacked only below their directory.

TFDS's download manager is not used here: it starts a broken download from scratch, and unpacks
archives with TensorFlow.
"""

import contextlib
import dataclasses
import hashlib
import lzma
import os
import shutil
import stat
import sys
import tarfile
import time
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

import requests
import urllib3
from rich import progress
from rich.console import Console

from segjax import lock as lock_lib
from segjax import storage
from segjax.types import SegjaxError

# Set to anything but the empty string, nothing is downloaded.
OFFLINE = 'SEGJAX_OFFLINE'

# Seconds to connect, and between two blocks of a download.
_TIMEOUT = (10, 60)
# Attempts in a row that receive nothing new, and the seconds before the second one, then doubled.
_ATTEMPTS = 4
_WAIT = 1.0
_BLOCK = 2**20
# Answers that may be another one later.
_TEMPORARY = (408, 429, 500, 502, 503, 504)
# What a Mac adds to an archive.
_MAC = ('__MACOSX', '.DS_Store')
_CORRUPT = (
  zipfile.BadZipFile,
  tarfile.TarError,
  zlib.error,
  lzma.LZMAError,
  EOFError,
  NotImplementedError,
)


@dataclasses.dataclass(frozen=True)
class Remote:
  """A file at a public address.

  Attributes:
    url: http or https; the file is kept under the last part of its path.
    digest: 'sha256:HEX' or 'md5:HEX', where HEX may be the first digits only; None where no digest
      is known.
    size: in bytes; None if it is not known.
  """

  url: str
  digest: str | None = None
  size: int | None = None

  @property
  def name(self) -> str:
    """The name of the file."""
    return self.url.rpartition('/')[2]

  def spell_size(self) -> str:
    """The size in words."""
    if self.size is None:
      return 'unknown size'
    return f'{self.size / 1e9:.1f} GB' if self.size >= 1e9 else f'{self.size / 1e6:.0f} MB'


def cache_dir() -> Path:
  """The directory `segjax` in the user's cache directory."""
  return Path(os.environ.get('XDG_CACHE_HOME') or '~/.cache').expanduser() / 'segjax'


def fetch(
  remote: Remote,
  directory: Path,
  *,
  offline: bool = False,
  report: Callable[[str], None] | None = None,
) -> Path:
  """The file in `directory`, downloaded if it is not there.

  A broken download resumes where it ended, in this call and in a later one. A file has its name
  only when it is complete and checked, so several processes may ask for the same one.

  Args:
    remote: the file.
    directory: created if missing.
    offline: whether a missing file is an error; `$SEGJAX_OFFLINE` does the same.
    report: called with a line before a download. A progress bar is shown on a terminal.

  Raises:
    SegjaxError: the file is not there and cannot be downloaded, or it is another file.
  """
  path = directory / remote.name
  if not path.exists():
    if offline or os.environ.get(OFFLINE):
      raise SegjaxError(
        f'{path} is missing and downloads are switched off: download {remote.url} '
        f'({remote.spell_size()}) elsewhere and put it there'
      )
    directory.mkdir(parents=True, exist_ok=True)
    with lock(path):
      if not path.exists():  # or another process was first
        _download(remote, path, report)
        return path
  if wrong := _difference(path, remote):
    raise SegjaxError(f'{path} {wrong}: delete it, to download {remote.url} again')
  return path


def _download(remote: Remote, path: Path, report: Callable[[str], None] | None) -> None:
  free = shutil.disk_usage(path.parent).free
  part = _part(path)
  missing = (remote.size or 0) - _size(part)
  if missing > free:
    raise SegjaxError(
      f'{path.parent} has {free / 1e9:.1f} GB free but {remote.url} needs {missing / 1e9:.1f} GB: '
      'free some space, or choose a directory on another disk'
    )
  if report:
    report(f'downloading {remote.url} ({remote.spell_size()}) to {path}')
  _transfer(remote, path)
  wrong = _difference(part, remote)
  if wrong:
    part.unlink()
    _tag(path).unlink(missing_ok=True)
    raise SegjaxError(
      f'the file at {remote.url} {wrong}: try again, and if that repeats, download the file from '
      f'a source that you trust and put it at {path}'
    )
  part.replace(path)
  _tag(path).unlink(missing_ok=True)


def _part(path: Path) -> Path:
  """What is received of a file so far."""
  return path.with_name(f'{path.name}.part')


def _tag(path: Path) -> Path:
  """The version of the remote file that `_part` is of, as the server names it."""
  return path.with_name(f'{path.name}.part.tag')


def _size(path: Path) -> int:
  return path.stat().st_size if path.exists() else 0


@contextlib.contextmanager
def lock(path: Path) -> Iterator[None]:
  """Waits for other processes that write the same file; the system frees a dead one's lock."""
  path = path.with_name(f'{path.name}.lock')
  with lock_lib.exclusive(path, wait=True):
    yield
  path.unlink(missing_ok=True)


def _difference(path: Path, remote: Remote) -> str | None:
  """How a file differs from what is known of the remote one, or None."""
  size = _size(path)
  if remote.size not in (None, size):
    return f'has {size:,} bytes, not {remote.size:,}'
  if remote.digest is None:
    return None
  algorithm, _, expected = remote.digest.partition(':')
  with path.open('rb') as file:
    found = hashlib.file_digest(file, lambda: hashlib.new(algorithm, usedforsecurity=False))
  if found.hexdigest().startswith(expected):
    return None
  name = {'sha256': 'SHA-256', 'md5': 'MD5'}[algorithm]
  return f'has the {name} {found.hexdigest()[: len(expected)]}, not {expected}'


# --- transfer -------------------------------------------------------------------------------------


def _transfer(remote: Remote, path: Path) -> None:
  """Receives the file into `_part(path)`, in as many attempts as it takes."""
  failures, reached = 0, _size(_part(path))
  with requests.Session() as session, _progress_bar(remote) as show:
    while True:
      try:
        _receive(session, remote, path, show)
        return
      except (requests.RequestException, urllib3.exceptions.HTTPError) as e:
        response = getattr(e, 'response', None)
        final = response is not None and response.status_code not in _TEMPORARY
        failures = 1 if _size(_part(path)) > reached else failures + 1
        reached = max(reached, _size(_part(path)))
        if final or failures >= _ATTEMPTS:
          reason = f'HTTP status {response.status_code}' if response is not None else _reason(e)
          kept = ' (what was received is kept)' if reached else ''
          raise SegjaxError(
            f'{remote.url} cannot be downloaded ({reason}): try again later{kept}, or download it '
            f'elsewhere and put it at {path}'
          ) from e
        time.sleep(_WAIT * 2 ** (failures - 1))


def _reason(error: BaseException) -> str:
  """The innermost reason of an error of `requests`, whose own text is several lines of it."""
  while (inner := error.__cause__ or error.__context__) is not None:
    error = inner
  return str(error) or type(error).__name__


def _receive(
  session: requests.Session, remote: Remote, path: Path, show: Callable[[int, int | None], None]
) -> None:
  """One attempt: receives what is missing, and all if the server does not send a part.

  Raises:
    requests.RequestException, urllib3.exceptions.HTTPError: the file is not complete.
  """
  part, tag = _part(path), _tag(path)
  version = tag.read_text() if tag.exists() else None
  # Without a digest and a version, nothing says that the rest belongs to the same file.
  start = _size(part) if version or remote.digest else 0
  # Compressed for the transfer, the bytes would not be those of the file.
  headers = {'Accept-Encoding': 'identity'}
  if start:
    headers['Range'] = f'bytes={start}-'
    headers |= {'If-Range': version} if version else {}
  with session.get(remote.url, headers=headers, stream=True, timeout=_TIMEOUT) as response:
    content_range = response.headers.get('Content-Range', '')
    if response.status_code == 416 and content_range == f'bytes */{start}':
      return  # the file had come to its end
    if start and (
      response.status_code == 416
      or (response.status_code == 206 and not content_range.startswith(f'bytes {start}-'))
    ):
      part.unlink()
      raise requests.ConnectionError('the server sent another part of the file')
    response.raise_for_status()
    start = start if response.status_code == 206 else 0
    if not start:
      part.unlink(missing_ok=True)  # of another version, before the tag says this one
      _write_version(tag, response.headers)
    length = response.headers.get('Content-Length')
    total = start + int(length) if length else None
    show(start, total)
    with storage.explained(part), part.open('ab' if start else 'wb') as file:
      for block in response.raw.stream(_BLOCK, decode_content=False):
        file.write(block)
        show(file.tell(), total)
    if total is not None and _size(part) != total:
      raise requests.ConnectionError(f'the connection broke after {_size(part):,} bytes')


def _write_version(tag: Path, headers: Any) -> None:
  """Keeps what names the version of the file; a weak tag does not name its bytes."""
  etag = headers.get('ETag', '')
  version = etag if etag and not etag.startswith('W/') else headers.get('Last-Modified')
  if version:
    tag.write_text(version)
  else:
    tag.unlink(missing_ok=True)


@contextlib.contextmanager
def _progress_bar(remote: Remote) -> Iterator[Callable[[int, int | None], None]]:
  """Shows (received, total) bytes, on a terminal alone."""
  columns = (
    progress.TextColumn('{task.description}'),
    progress.BarColumn(),
    progress.DownloadColumn(),
    progress.TransferSpeedColumn(),
    progress.TimeRemainingColumn(),
  )
  console = Console(stderr=True)
  with progress.Progress(*columns, console=console, disable=not sys.stderr.isatty()) as bar:
    task = bar.add_task(remote.name, total=remote.size)
    yield lambda done, total: bar.update(task, completed=done, total=total)


# --- archives -------------------------------------------------------------------------------------


def unpack(archive: Path, directory: Path) -> None:
  """Unpacks a zip or tar archive, of any compression, into a directory; all of it or nothing.

  What a Mac adds (`__MACOSX/`, `._*`) is left out. Links may point to files of the archive. Only
  one process at a time may unpack an archive into a directory.

  Raises:
    SegjaxError: the file is not an archive or is corrupt, or one of its paths or links leaves the
      directory.
  """
  with _temporary(directory / f'.unpacking-{archive.name}') as temporary:
    try:
      if zipfile.is_zipfile(archive):
        _unpack_zip(archive, temporary)
      elif tarfile.is_tarfile(archive):
        _unpack_tar(archive, temporary)
      else:
        raise SegjaxError(f'{archive} is not a zip or tar archive: delete it and download it again')
    except tarfile.FilterError as e:
      raise _leaves(archive, e.tarinfo.name) from e
    except (*_CORRUPT, OSError) as e:
      # Decompressors raise an OSError without a number; one of the system's has one.
      if isinstance(e, OSError) and e.errno is not None:
        raise
      raise SegjaxError(
        f'{archive} is truncated or corrupt ({e}): delete it and download it again'
      ) from e
    _move(temporary, directory)


@contextlib.contextmanager
def _temporary(directory: Path) -> Iterator[Path]:
  """An empty directory that is deleted at the end; a killed process leaves it to the next one."""
  shutil.rmtree(directory, ignore_errors=True)
  directory.mkdir(parents=True)
  try:
    yield directory
  finally:
    shutil.rmtree(directory, ignore_errors=True)


def _unpack_zip(archive: Path, directory: Path) -> None:
  with zipfile.ZipFile(archive) as file:
    for member in file.infolist():
      # `zipfile` would write a link as a file that holds its target.
      if _is_outside(member.filename) or stat.S_ISLNK(member.external_attr >> 16):
        raise _leaves(archive, member.filename)
      if not _is_of_mac(member.filename):
        file.extract(member, directory)


def _unpack_tar(archive: Path, directory: Path) -> None:
  with tarfile.open(archive) as file:
    for member in file:
      if _is_outside(member.name):
        raise _leaves(archive, member.name)
      if not _is_of_mac(member.name):
        file.extract(member, directory, filter='data')
    # The checksum of a compressed archive comes after its last file.
    while file.fileobj.read(_BLOCK):
      pass


def _is_outside(name: str) -> bool:
  """Whether a path in an archive leaves the directory that it is unpacked into."""
  windows = PureWindowsPath(name)
  return name.startswith(('/', '\\')) or bool(windows.drive) or '..' in windows.parts


def _is_of_mac(name: str) -> bool:
  parts = PurePosixPath(name).parts
  return any(part in _MAC or part.startswith('._') for part in parts)


def _leaves(archive: Path, name: str) -> SegjaxError:
  return SegjaxError(
    f'{archive} has {name!r}, which leaves the directory that it is unpacked into: delete the '
    'archive and download it from a source that you trust'
  )


def _move(source: Path, target: Path) -> None:
  """Moves the files below `source` to the same places below `target`, over those that are there."""
  for path in sorted(source.rglob('*')):
    place = target / path.relative_to(source)
    if path.is_dir() and not path.is_symlink():
      place.mkdir(parents=True, exist_ok=True)
    else:
      place.parent.mkdir(parents=True, exist_ok=True)
      path.replace(place)
