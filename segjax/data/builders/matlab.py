"""Reading MATLAB files, apart from `raw` because only some builders need SciPy's reader."""

import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import scipy.io

from segjax.data.builders import raw
from segjax.types import SegjaxError


def read_mat(path: Path, variable: str, fields: Sequence[str] = ()) -> np.ndarray:
  """Reads an array from a MATLAB file of version 5.

  Args:
    path: the file.
    variable: the variable that is the array, or the struct of 1 x 1 that holds it.
    fields: for a struct, the field in it, the field in that, and so on.

  Raises:
    SegjaxError: the file is missing, is corrupt or does not have the array.
  """
  content = io.BytesIO(raw.read_bytes(path))
  try:
    value = scipy.io.loadmat(content, variable_names=[variable])[variable]
    for field in fields:
      value = value[field][0, 0]
  except Exception as e:  # SciPy raises a dozen kinds for corrupt files.
    raise SegjaxError(
      f'{path} cannot be read as a MATLAB file (version 5) with {".".join([variable, *fields])}: '
      'download the file again'
    ) from e
  return value
