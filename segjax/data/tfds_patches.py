"""What segjax changes of tensorflow-datasets while it makes and prepares builders."""

import contextlib
import io
import os
import struct
import sys
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

import tensorflow_datasets as tfds
from tensorflow_datasets.core import shuffle

# Of a record in a bucket: the hash of its key, and its size.
_HEADER = struct.Struct('=16sQ')


@contextlib.contextmanager
def quiet() -> Iterator[None]:
  """TFDS without sentences on standard output, temporary directories that it leaves, TensorFlow.

  A builder without prepared data makes a directory to copy files into that its project hosts
  (`DatasetInfo.initialize_from_bucket`), copies none, and does not delete it. Of a split of more
  than 1 GB it keeps the records in files that it writes with TensorFlow.
  """
  if not sys.stderr.isatty():
    tfds.disable_progress_bar()
  no_bucket = mock.patch.object(tfds.core.DatasetInfo, 'initialize_from_bucket', lambda self: None)
  plain_files = mock.patch.object(shuffle, '_Bucket', _Bucket)
  with contextlib.redirect_stdout(io.StringIO()), no_bucket, plain_files:
    yield


class _Bucket:
  """`shuffle._Bucket`, in a plain file, which is open only while it is written to or read.

  Attributes:
    size: bytes of the records in it.
  """

  def __init__(self, path: os.PathLike[str]):
    self._path, self._length, self.size = Path(path), 0, 0

  def __len__(self) -> int:
    return self._length

  def add(self, key: int, data: bytes) -> None:
    """Appends a record, and its key of 128 bits."""
    with self._path.open('ab') as file:
      file.write(_HEADER.pack(key.to_bytes(16, 'big'), len(data)))
      file.write(data)
    self._length += 1
    self.size += len(data)

  def read_values(self) -> Iterator[tuple[int, bytes]]:
    """The keys and the records, in the order in which they were added."""
    if not self._length:
      return
    with self._path.open('rb') as file:
      while header := file.read(_HEADER.size):
        key, size = _HEADER.unpack(header)
        yield int.from_bytes(key, 'big'), file.read(size)

  def del_file(self) -> None:
    """Deletes the file."""
    self._path.unlink(missing_ok=True)
