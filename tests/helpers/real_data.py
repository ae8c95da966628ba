"""Real data, for the tests that compare with what others measured on it."""

import os
import pathlib

import pytest


def real_data(*parts: str) -> pathlib.Path:
  """A path in the directory of real data sets; the test is skipped where none is named."""
  root = os.environ.get('SEGJAX_TEST_DATA')
  if not root:
    pytest.skip(f'SEGJAX_TEST_DATA, the directory with {"/".join(parts[:1])}, is not set')
  return pathlib.Path(root, *parts)
