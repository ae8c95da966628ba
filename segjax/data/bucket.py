"""Prepared data in a bucket.

The library of ArrayRecord reads and writes local files, so that data is prepared in a local copy of
the bucket, below the user's cache directory, and copied; and what is prepared in the bucket is
copied from there, once on each machine.
"""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from segjax import download, storage

# The file of TFDS that describes prepared data, written last, and so what is complete.
_INFO = 'dataset_info.json'
# Part of the names of files with records.
_RECORDS = '.array_record'


class Root(NamedTuple):
  """A directory of prepared data sets.

  Attributes:
    local: where it is, or where its copy is.
    bucket: the directory in a bucket; None for a local one.
  """

  local: Path
  bucket: Path | None = None

  def place(self, path: Path) -> Path:
    """Where all machines see what is prepared at a local path."""
    if self.bucket is None:
      return path
    return self.bucket / path.relative_to(self.local).as_posix()

  def fetch_infos(self, name: str) -> None:
    """Copies what describes the data sets below a directory, without their records.

    A local copy of data that has since been prepared again is removed.
    """
    if self.bucket is None:
      return
    files = storage.files_below(self.bucket / name)
    for info in (file for file in files if file.rpartition('/')[2] == _INFO):
      theirs, ours = self.bucket / name / info, self.local / name / info
      if ours.exists() and ours.read_bytes() != theirs.read_bytes():
        storage.remove_tree(ours.parent)
      directory = info.removesuffix(_INFO)
      self._copy(name, [f for f in files if f.startswith(directory) and _RECORDS not in f])

  def fetch(self, path: Path, report: Callable[[str], None]) -> None:
    """Copies what is missing of the prepared data at a local path, if the bucket has it.

    Raises:
      SegjaxError: the disk is full.
    """
    if self.bucket is None:
      return
    name = path.relative_to(self.local).as_posix()
    if not (self.bucket / name / _INFO).exists():
      return
    files = storage.files_below(self.bucket / name)
    if missing := [file for file in files if not (path / file).exists()]:
      report(f'copying {self.bucket / name} to {path}')
      self._copy(name, missing)

  def store(self, path: Path, report: Callable[[str], None]) -> None:
    """Copies the prepared data at a local path to the bucket, if that does not have it."""
    if self.bucket is None:
      return
    place = self.place(path)
    if (place / _INFO).exists():
      if (place / _INFO).read_bytes() == (path / _INFO).read_bytes():
        return
      (place / _INFO).unlink()  # from here on until all is copied, it is not complete
    report(f'copying {path} to {place}')
    files = storage.files_below(path)
    for file in set(storage.files_below(place)) - set(files):
      (place / file).unlink()
    for file in sorted(files, key=lambda file: file == _INFO):
      storage.copy_file(path / file, place / file)

  def _copy(self, name: str, files: list[str]) -> None:
    for file in files:
      ours = self.local / name / file
      if not ours.exists():
        storage.copy_file(self.bucket / name / file, ours)


def open_root(directory: storage.StrPath) -> Root:
  """The directory of prepared data sets, on a disk or in a bucket.

  Raises:
    SegjaxError: see `storage.as_path`.
  """
  path = storage.as_path(directory)
  if not storage.is_bucket(path):
    return Root(path)
  scheme, _, rest = str(path).partition('://')
  return Root(download.cache_dir() / 'buckets' / scheme / rest, path)
