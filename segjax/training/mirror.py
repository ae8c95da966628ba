"""Checkpoints in a bucket that the libraries of Orbax cannot read and write, such as one of S3."""

import tempfile
from pathlib import Path

from segjax import storage
from segjax.types import SegjaxError

# Written last: a step without it is not complete.
_COMPLETE = 'segjax_complete'


def is_needed(directory: storage.StrPath, processes: int) -> bool:
  """Whether the checkpoints in a directory are copied from and to it.

  Args:
    directory: of the checkpoints, or the workdir that they are in.
    processes: number of those that train there.

  Raises:
    SegjaxError: several processes would have to copy them.
  """
  if not storage.is_bucket(directory) or str(directory).lower().startswith('gs://'):
    return False
  if processes > 1:
    raise SegjaxError(
      f'{directory} takes no checkpoints of several processes: set --workdir to a directory that '
      'all of them see, or to one in gs://'
    )
  return True


class Mirror:
  """A local copy of the checkpoints in a bucket.

  Orbax reads and writes the copy. A step is copied to the bucket when it is complete.

  Args:
    bucket: directory of the checkpoints.

  Attributes:
    local: the directory of the copy.
  """

  def __init__(self, bucket: Path):
    self._bucket = bucket
    self._temporary = tempfile.TemporaryDirectory(prefix='segjax-checkpoints-')
    self.local = Path(self._temporary.name)
    for step in _steps(bucket):
      if (bucket / step / _COMPLETE).exists():
        storage.copy_tree(bucket / step, self.local / step)
        (self.local / step / _COMPLETE).unlink()

  def push(self) -> None:
    """Makes the bucket have the steps of the copy."""
    here, there = _steps(self.local), _steps(self._bucket)
    for step in here:
      if not (self._bucket / step / _COMPLETE).exists():
        storage.copy_tree(self.local / step, self._bucket / step)
        storage.write_bytes(self._bucket / step / _COMPLETE, b'')
    for step in set(there) - set(here):
      (self._bucket / step / _COMPLETE).unlink(missing_ok=True)
      storage.remove_tree(self._bucket / step)

  def close(self) -> None:
    """Removes the copy."""
    self._temporary.cleanup()


def _steps(directory: Path) -> list[str]:
  if not directory.is_dir():
    return []
  return sorted(path.name for path in directory.iterdir() if path.name.isdigit())
