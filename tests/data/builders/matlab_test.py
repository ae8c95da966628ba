"""MATLAB files: variables, structs, and each way in which a file can be wrong."""

import numpy as np
import pytest
import scipy.io

from segjax import types
from segjax.data.builders import matlab

LABEL = np.arange(12, dtype=np.uint8).reshape(3, 4)


@pytest.mark.parametrize('compressed', [False, True])
def test_mat_variable_and_field(tmp_path, compressed):
  path = tmp_path / 'a.mat'
  content = {'plain': LABEL, 'outer': {'other': 1, 'inner': {'label': LABEL}}}
  scipy.io.savemat(path, content, do_compression=compressed)
  for variable, fields in (('plain', []), ('outer', ['inner', 'label'])):
    result = matlab.read_mat(path, variable, fields)
    assert result.dtype == np.uint8
    np.testing.assert_array_equal(result, LABEL)


def test_mat_without_the_variable_or_field(tmp_path):
  path = tmp_path / 'a.mat'
  scipy.io.savemat(path, {'plain': LABEL, 'outer': {'other': 1}})
  for variable, fields, shown in (('label', [], 'label'), ('outer', ['label'], r'outer\.label')):
    with pytest.raises(types.SegjaxError, match=rf'a\.mat cannot be read .* with {shown}: '):
      matlab.read_mat(path, variable, fields)


def test_missing_mat(tmp_path):
  with pytest.raises(types.SegjaxError, match=r'a\.mat is missing'):
    matlab.read_mat(tmp_path / 'a.mat', 'label')


def test_truncated_mat(tmp_path):
  path = tmp_path / 'a.mat'
  scipy.io.savemat(path, {'outer': {'label': LABEL}}, do_compression=True)
  content = path.read_bytes()
  for length in range(0, len(content), 7):
    path.write_bytes(content[:length])
    with pytest.raises(types.SegjaxError, match=r'a\.mat cannot be read'):
      matlab.read_mat(path, 'outer', ['label'])
