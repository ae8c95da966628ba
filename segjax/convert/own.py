"""`model.safetensors`: the weights of a trained run, without what only its training needs."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.numpy

from segjax import storage
from segjax.types import SegjaxError

# The key of the metadata that names the source of the arrays, here and in files that
# `segjax convert` writes; and what it says here, in place of a network of another framework.
NOTE = 'segjax_source'
SOURCE = 'segjax'
_DIGEST = 'sha256'


def write(path: Path, arrays: Mapping[str, Any], notes: Mapping[str, str]) -> None:
  """Writes arrays, such as `{'params/conv1_1/kernel': …}`, and notes on them as metadata."""
  arrays = {name: np.asarray(array, order='C') for name, array in arrays.items()}
  notes = {NOTE: SOURCE, **notes, _DIGEST: _digest(arrays)}
  storage.write_bytes(path, safetensors.numpy.save(arrays, notes))


def read(path: Path) -> tuple[dict[str, np.ndarray], dict[str, str]]:
  """The arrays and notes that `write` wrote.

  Raises:
    SegjaxError: the file is corrupt, or `write` did not write it.
  """
  content = path.read_bytes()
  try:
    arrays = safetensors.numpy.load(content)
    header = content[8 : 8 + int.from_bytes(content[:8], 'little')]
    notes = json.loads(header).get('__metadata__', {})
  except (safetensors.SafetensorError, ValueError) as e:
    raise SegjaxError(f'{path} is truncated or corrupt ({e}): copy it again') from e
  if _DIGEST not in notes:
    raise SegjaxError(
      f'{path} was not written by segjax export --format=safetensors, and is not the weights of a '
      'run: to start from it, set config.init_from.path to the file and config.init_from.source to '
      'its network'
    )
  if _digest(arrays) != notes[_DIGEST]:
    raise SegjaxError(f'{path} is corrupt (SHA-256 differs): copy it again')
  return arrays, notes


def _digest(arrays: Mapping[str, np.ndarray]) -> str:
  sha = hashlib.sha256()
  for name, array in sorted(arrays.items()):
    sha.update(f'{name} {array.dtype.name}{array.shape}\n'.encode())
    sha.update(array.tobytes())
  return sha.hexdigest()
