"""Fixtures that the builders' tests share: prepare a data set, find real data, run a new Python."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tensorflow_datasets as tfds
from real_data import real_data as find_real_data


@pytest.fixture
def prepare(tmp_path) -> Callable[..., Any]:
  """Prepares a data set from `source` below a temporary folder and returns its builder."""

  def prepare(builder_class, source=None, config=None, data_dir=tmp_path / 'prepared'):
    builder = builder_class(data_dir=data_dir, config=config)
    download_config = tfds.download.DownloadConfig(manual_dir=source)
    builder.download_and_prepare(download_config=download_config, file_format='array_record')
    return builder

  return prepare


@pytest.fixture
def real_data() -> Path:
  """The directory of real data sets; the test is skipped where there is none."""
  return find_real_data()


@pytest.fixture
def modules_after_prepare(tmp_path) -> Callable[..., set[str]]:
  """Prepares a data set and reads it in a new Python; returns the modules it has imported."""
  script = """if True:
    import importlib, sys
    import tensorflow_datasets as tfds
    module, config, source, data_dir = sys.argv[1:]
    builder = importlib.import_module(module).Builder(data_dir=data_dir, config=config or None)
    builder.download_and_prepare(
      download_config=tfds.download.DownloadConfig(manual_dir=source or None),
      file_format='array_record',
    )
    assert builder.as_data_source('val')[0]['image'].ndim == 3
    print(*sys.modules, sep='\\n')
  """

  def run(module: str, source: Path | str = '', config: str = '') -> set[str]:
    result = subprocess.run(
      [sys.executable, '-c', script, module, config, source, tmp_path / 'fresh'],
      env={**os.environ, 'PYTHONPATH': os.pathsep.join(sys.path)},
      capture_output=True,
      text=True,
      check=False,
    )
    assert result.returncode == 0, result.stderr
    return set(result.stdout.splitlines())

  return run


@pytest.fixture
def by_name() -> Callable[..., dict[str, dict[str, Any]]]:
  """Reads a prepared split into a dict from file name to example."""

  def by_name(builder, split, **kwargs):
    source = builder.as_data_source(split, **kwargs)
    return {example['file_name'].decode(): example for example in source}

  return by_name
