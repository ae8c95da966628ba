import pytest
from tiny_table import write_table

from segjax.tables import spec


@pytest.fixture
def folder(tmp_path):
  """The directory of the synthetic table."""
  return write_table(tmp_path)


@pytest.fixture
def table(folder):
  return spec.read_table(folder)
