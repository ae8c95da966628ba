"""Buckets in the memory of this process, under the addresses of real ones."""

import contextlib
import importlib
import os
import re
from collections.abc import Iterator
from typing import Any

import fsspec
import pytest
from etils.epath import backend
from fsspec.implementations.memory import MemoryFileSystem

from segjax import storage


class Bucket(MemoryFileSystem):
  """The files below s3:// or gs://; like those of real ones they neither grow nor have modes."""

  protocol = ('s3', 'gs', 'gcs')
  store: dict[str, Any] = {}
  pseudo_dirs = ['']

  @classmethod
  def _strip_protocol(cls, path: Any) -> str:
    return super()._strip_protocol(re.sub(r'^(s3|gs|gcs)://', '/', os.fspath(path)))

  def _open(self, path: str, mode: str = 'rb', **kwargs: Any) -> Any:
    assert mode in ('rb', 'wb', 'xb'), f'a bucket has no mode {mode}'
    return super()._open(path, mode, **kwargs)


@contextlib.contextmanager
def installed() -> Iterator[dict[str, Any]]:
  """The files of all buckets, by their paths, such as '/bucket/a.txt'."""
  registry = importlib.import_module('fsspec.registry')  # not the mapping of that name
  clear = backend.fsspec_backend._get_filesystem.cache_clear
  with pytest.MonkeyPatch.context() as patch:
    for scheme, (_, extra) in storage.BUCKETS.items():
      patch.setitem(storage.BUCKETS, scheme, ('fsspec', extra))
    for scheme in Bucket.protocol:
      patch.setitem(registry._registry, scheme, Bucket)
      patch.delitem(fsspec.config.conf, scheme, raising=False)
    clear()
    storage._reach.cache_clear()
    Bucket.store.clear()
    Bucket.pseudo_dirs[:] = ['']
    yield Bucket.store
    clear()
    storage._reach.cache_clear()
    Bucket.clear_instance_cache()
