"""Fixtures that the builders' tests share: prepare a data set, find real data, run a new Python."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import tensorflow_datasets as tfds

from segjax.types import SegjaxError


@pytest.fixture
def prepare(tmp_path) -> Callable[..., Any]:
  """Prepares a data set from `source` below a temporary directory and returns its builder."""

  def prepare(builder_class, source=None, config=None, data_dir=tmp_path / 'prepared'):
    builder = builder_class(data_dir=data_dir, config=config)
    download_config = tfds.download.DownloadConfig(manual_dir=source)
    builder.download_and_prepare(download_config=download_config, file_format='array_record')
    return builder

  return prepare


@pytest.fixture
def refuses(prepare, tmp_path) -> Callable[..., None]:
  """Asserts that raw files are refused with a message, and that nothing is left behind."""

  def refuses(builder_class, source, message, config=None):
    with pytest.raises(SegjaxError, match=message):
      prepare(builder_class, source, config=config)
    assert not list((tmp_path / 'prepared').rglob('*.array_record*'))

  return refuses


_SERVER = """if True:
  import contextlib, importlib, json, sys
  import tensorflow_datasets as tfds
  for line in sys.stdin:
    module, config, source, data_dir = json.loads(line)
    with contextlib.redirect_stdout(sys.stderr):
      builder = importlib.import_module(module).Builder(data_dir=data_dir, config=config)
      builder.download_and_prepare(
        download_config=tfds.download.DownloadConfig(manual_dir=source),
        file_format='array_record',
      )
      assert builder.as_data_source('val')[0]['image'].ndim == 3
    print(json.dumps(list(sys.modules)), flush=True)
"""


@pytest.fixture(scope='session')
def _new_python() -> Iterator[subprocess.Popen]:
  with subprocess.Popen(
    [sys.executable, '-c', _SERVER],
    env={**os.environ, 'PYTHONPATH': os.pathsep.join(sys.path)},
    stdin=subprocess.PIPE,
    stdout=subprocess.PIPE,
    text=True,
  ) as process:
    yield process
    process.stdin.close()


@pytest.fixture
def needs_no_tensorflow(_new_python, tmp_path) -> Callable[..., None]:
  """Asserts that a data set is prepared and read in another Python without TensorFlow."""

  def needs_no_tensorflow(builder_class, source=None, config=None):
    request = [builder_class.__module__, config, source and str(source), str(tmp_path / 'fresh')]
    print(json.dumps(request), file=_new_python.stdin, flush=True)
    modules = json.loads(_new_python.stdout.readline())
    assert builder_class.__module__ in modules
    assert 'tensorflow' not in modules

  return needs_no_tensorflow


@pytest.fixture
def by_name() -> Callable[..., dict[str, dict[str, Any]]]:
  """Reads a prepared split into a dict from file name to example."""

  def by_name(builder, split, **kwargs):
    source = builder.as_data_source(split, **kwargs)
    return {example['file_name'].decode(): example for example in source}

  return by_name
