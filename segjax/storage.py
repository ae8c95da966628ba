"""Where files lie, on a disk or in a bucket, and how they are written whole or not at all.

A path on a disk is a `pathlib.Path`, and one of a bucket an `etils.epath.Path`, which has the same
methods. A bucket has no lock, no renaming in one step and no appending to a file, and the libraries
in C++ do not all read it: what takes their place is said where it is needed.
"""

import contextlib
import errno
import functools
import importlib.util
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

from segjax.types import OutageError, SegjaxError, is_outage

StrPath = str | os.PathLike[str]

# Scheme -> the module that `fsspec` needs for it, and the extra that installs it.
BUCKETS = {'gs': ('gcsfs', 'gcs'), 's3': ('s3fs', 's3')}

_URL = re.compile(r'([A-Za-z][A-Za-z0-9+.-]+)://')
# What is left of a bucket's address after `pathlib.Path`.
_COLLAPSED = re.compile(rf'({"|".join(BUCKETS)}):/(?!/)')
_FULL = {errno.ENOSPC: 'the disk is full', errno.EDQUOT: 'the quota of the disk is used up'}
# Some libraries in C++ say so in words, in an error of any type.
_SAID = {os.strerror(code): code for code in _FULL} | {
  errno.errorcode[code]: code for code in _FULL
}
_SAYS_FULL = re.compile('|'.join(_SAID))
_AGAIN = 'free some space, and run the same command again'
_DENIED = (errno.EROFS, errno.EACCES, errno.EPERM)


def as_path(name: StrPath) -> Path:
  """The path of a file or a directory on a disk or in a bucket.

  Args:
    name: 'runs/a', '~/runs/a', or an address such as 'gs://bucket/runs/a'.

  Raises:
    SegjaxError: an address of another kind; the library for it is not installed; the bucket cannot
      be reached.
  """
  text = _COLLAPSED.sub(r'\1://', os.fspath(name), count=1)
  if not (match := _URL.match(text)):
    return user_path(text)
  scheme = match[1].lower()
  if scheme not in BUCKETS:
    raise SegjaxError(
      f'{text} is an address of the kind {scheme}://: name a local directory, or a bucket as '
      f'{" or ".join(f"{known}://" for known in BUCKETS)}'
    )
  module, extra = BUCKETS[scheme]
  if importlib.util.find_spec(module) is None:
    raise SegjaxError(
      f"{text} needs the library {module}, which is not installed: pip install 'segjax[{extra}]'"
    )
  _reach(scheme, text.removeprefix(match[0]).partition('/')[0])
  return _bucket_path(f'{scheme}://{text.removeprefix(match[0])}')


def local_path(name: StrPath, key: str) -> Path:
  """The path of a file or a directory that must be on a disk.

  Args:
    name: the path.
    key: the config key or the argument that names it, for errors.

  Raises:
    SegjaxError: it is an address.
  """
  if _URL.match(os.fspath(name)) or _COLLAPSED.match(os.fspath(name)):
    raise SegjaxError(f'{key}={name} must be on a local disk: copy it to or from there')
  return user_path(name)


def user_path(name: StrPath) -> Path:
  """The path that a user names: '~' is the home directory, which no shell puts into `--key=~/a`."""
  return Path(os.path.expanduser(name))


def is_bucket(path: StrPath) -> bool:
  """Whether a path is in a bucket."""
  return _URL.match(os.fspath(path)) is not None


def absolute(path: Path) -> Path:
  """The path, from the root of the disk on; one of a bucket always is."""
  return path if is_bucket(path) else path.absolute()


def resolved(path: Path) -> Path:
  """The path without links; a bucket has none."""
  return path if is_bucket(path) else path.resolve()


def make_directory(path: Path) -> None:
  """Makes a directory and those that it is in; in a bucket a directory is there with its files.

  Raises:
    SegjaxError: the disk is full, or may not be written to.
  """
  if not is_bucket(path):
    with explained(path):
      path.mkdir(parents=True, exist_ok=True)


@functools.cache
def _reach(scheme: str, bucket: str) -> None:
  """Raises a SegjaxError if the files of a bucket cannot be listed."""
  import fsspec

  # Other processes write to a bucket, too: what was listed once may have changed.
  fsspec.config.conf.setdefault(scheme, {}).setdefault('use_listings_cache', False)
  address = f'{scheme}://{bucket}'
  try:
    next(iter(_bucket_path(address).iterdir()), None)
  except FileNotFoundError:
    pass  # an empty bucket; a missing one is an error when it is written to
  except Exception as e:  # of any type: each library has its own
    reason = f'{type(e).__name__}: {e}'.splitlines()[0]
    told = f'{address} cannot be reached ({reason})'
    if is_outage(e):
      raise OutageError(f'{told}: run the same command again, or check its name') from e
    raise SegjaxError(f'{told}: check its name and your credentials') from e


def _bucket_path(address: str) -> Path:
  from etils import epath

  return epath.Path(address)


# --- writing --------------------------------------------------------------------------------------


@contextlib.contextmanager
def writing(path: Path) -> Iterator[BinaryIO]:
  """Writes a file, and the directories that it is in, so that none is ever half-written.

  Raises:
    SegjaxError: the disk is full, or may not be written to.
  """
  if is_bucket(path):
    with tempfile.TemporaryFile() as file:
      yield file
      _upload(file, path)
    return
  make_directory(path.parent)
  temporary, size = path.with_name(f'.{path.name}.{os.getpid()}.part'), 0
  try:
    with explained(path, lambda: size):
      with temporary.open('wb') as file:
        try:
          yield file
        finally:
          size = file.tell()
      temporary.replace(path)
  except BaseException:
    with contextlib.suppress(OSError):
      temporary.unlink()
    raise


def write_bytes(path: Path, content: bytes) -> None:
  """Writes a file with the content, see `writing`."""
  with writing(path) as file:
    file.write(content)


def write_text(path: Path, text: str) -> None:
  """Writes a file with the text, see `writing`; what is not valid Unicode becomes '?'."""
  write_bytes(path, text.encode('utf-8', errors='replace'))


def append_text(path: Path, text: str) -> None:
  """Appends to a file; one of a bucket is written as a whole.

  Raises:
    SegjaxError: the disk is full, or may not be written to.
  """
  if is_bucket(path):
    write_text(path, (path.read_text() if path.exists() else '') + text)
    return
  with explained(path, lambda: len(text)), path.open('a', encoding='utf-8') as file:
    file.write(text)


def copy_file(source: Path, target: Path) -> None:
  """Copies a file between disks and buckets, whole or not at all."""
  with source.open('rb') as read, writing(target) as written:
    shutil.copyfileobj(read, written, 2**20)


def copy_tree(source: Path, target: Path) -> None:
  """Copies the files below a directory between disks and buckets, each whole or not at all."""
  for name in files_below(source):
    copy_file(source / name, target / name)


def files_below(directory: Path) -> list[str]:
  """The paths of all files below a directory, from there on, in order; none if it is missing."""
  if is_bucket(directory):
    files, root = bucket_files(directory)
    return sorted(name.removeprefix(root).lstrip('/') for name in files.find(root))
  directory = Path(directory)  # also of TFDS, whose paths cannot search directories
  found = (path for path in directory.rglob('*') if path.is_file())
  return sorted(path.relative_to(directory).as_posix() for path in found)


def bucket_files(path: Path) -> tuple[Any, str]:
  """What `fsspec` has of a path in a bucket: its file system, and the path's name there."""
  import fsspec

  return fsspec.core.url_to_fs(os.fspath(path))


def move_tree(source: Path, target: Path) -> None:
  """Moves a directory on a disk or in a bucket."""
  if is_bucket(source):
    copy_tree(source, target)
    remove_tree(source)
  else:
    make_directory(target.parent)
    source.rename(target)


def remove_tree(path: Path) -> None:
  """Removes a directory and what is in it, if it is there."""
  if is_bucket(path):
    path.rmtree(missing_ok=True)
  else:
    shutil.rmtree(path, ignore_errors=True)


def _upload(file: BinaryIO, path: Path) -> None:
  """Writes a file of a bucket, which is there when the writing ends."""
  file.seek(0)
  with path.open('wb') as target:
    shutil.copyfileobj(file, target, 2**20)


# --- a full disk, and one that may not be written to ----------------------------------------------


@contextlib.contextmanager
def explained(path: Path, needed: Callable[[], int] | None = None) -> Iterator[None]:
  """Says in a sentence that a path cannot be written, and why.

  Args:
    path: of the file or the directory that is written.
    needed: returns how many bytes it takes; None if that is not known.

  Raises:
    SegjaxError: the disk is full, or may not be written to.
  """
  try:
    yield
  except OSError as e:
    if told := explain(e, path, needed() if needed else None):
      raise told from e
    raise


def explain(
  error: BaseException, path: Path, needed: int | None, remedy: str = _AGAIN
) -> SegjaxError | None:
  """The sentence for an error in writing a path; None if it is of another kind.

  Args:
    error: an `OSError`, or one of a library, some of which say in words what is wrong.
    path, needed, remedy: see `full_disk`.
  """
  cause: BaseException | None = error
  while cause is not None:
    code = getattr(cause, 'errno', None)
    if said := _SAYS_FULL.search(str(cause)):
      code = _SAID[said[0]]
    if code in _FULL:
      return full_disk(path, needed, _FULL[code], remedy)
    if code in _DENIED:
      return SegjaxError(
        f'{path} cannot be written ({os.strerror(code)}): make it writable, or name another '
        'directory'
      )
    cause = cause.__cause__ or cause.__context__
  return None


def full_disk(
  path: Path, needed: int | None, reason: str = _FULL[errno.ENOSPC], remedy: str = _AGAIN
) -> SegjaxError:
  """The error of a path that does not fit on its disk.

  Args:
    path: of the file or the directory.
    needed: bytes; None if it is not known how many.
    reason: what is wrong with the disk.
    remedy: what helps.
  """
  takes = '' if needed is None else f'{spell_bytes(needed)} needed, '
  return SegjaxError(
    f'{path} cannot be written, because {reason} ({takes}{spell_bytes(free_bytes(path))} free): '
    f'{remedy}'
  )


def fits(path: Path, needed: int) -> bool:
  """Whether so many bytes fit on the disk of a path; a bucket has no end."""
  return is_bucket(path) or needed <= free_bytes(path)


def free_bytes(path: Path) -> int:
  """The bytes that may still be written to the disk of a path, which need not exist.

  For a bucket those of the temporary directory, from which it is written.
  """
  path = absolute(Path(tempfile.gettempdir()) if is_bucket(path) else path)
  while not path.exists():
    path = path.parent
  return shutil.disk_usage(path).free


def spell_bytes(count: int) -> str:
  """A number of bytes in words, such as '1.5 GB'."""
  for size, unit in ((1e9, 'GB'), (1e6, 'MB'), (1e3, 'kB')):
    if count >= size:
      return f'{count / size:.1f} {unit}'
  return f'{count} bytes'
