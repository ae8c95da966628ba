"""Stricter than users are: four CPU devices, and no program compiled in an earlier run."""

import os

# Before anything imports JAX.
os.environ['XLA_FLAGS'] = (
  os.environ.get('XLA_FLAGS', '') + ' --xla_force_host_platform_device_count=4'
)
os.environ.setdefault('JAX_PLATFORMS', 'cpu')

import pathlib  # noqa: E402

import pytest  # noqa: E402

ROOT = pathlib.Path(__file__).parent.parent


@pytest.fixture(scope='session')
def root() -> pathlib.Path:
  """The checkout."""
  return ROOT
