"""Reading MATLAB files, apart from `common` because only some builders need SciPy's reader."""

from pathlib import Path

import numpy as np
import scipy.io

from segjax import types


def read_mat(path: Path, variable: str, *fields: str) -> np.ndarray:
  """Reads an array from a MATLAB file of version 5.

  Args:
    path: the file.
    variable: the variable that is the array, or the struct of 1 x 1 that holds it.
    fields: for a struct, the field in it, the field in that, and so on.

  Raises:
    SegjaxError: if the file is missing, is damaged or does not have the array.
  """
  if not path.exists():
    raise types.SegjaxError(f'{path} is missing: add it, or mend data.source')
  try:
    value = scipy.io.loadmat(path, appendmat=False, variable_names=[variable])[variable]
    for field in fields:
      value = value[field][0, 0]
  except Exception as error:  # SciPy raises a dozen kinds for damaged files.
    raise types.SegjaxError(
      f'{path} cannot be read as a MATLAB file (version 5) with {".".join([variable, *fields])}: '
      'fetch the file again'
    ) from error
  return value
