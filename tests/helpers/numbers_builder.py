"""A data set of numbers, prepared by `records`, in a module that worker processes can import."""

import functools
import os
import signal
from pathlib import Path

import numpy as np
import tensorflow_datasets as tfds

from segjax.data import records

FEATURES = {'number': np.int64, 'text': tfds.features.Text()}


def keys(count):
  return [f'key {number}' for number in range(count)]


def example(number):
  return {'number': number, 'text': 'x' * (number % 50)}


def make(stop, number):
  """An example; at the number of the file `stop`, if there is one, the process is killed."""
  if stop.exists() and int(stop.read_text()) == number:
    stop.unlink()
    os.kill(os.getpid(), signal.SIGKILL)
  noted = [number] if number % 100 == 0 else []
  return records.Noted(example(number), noted)


class Builder(records.Builder, skip_registration=True):
  """`count` numbers in train, a tenth of it in val."""

  name = 'numbers'
  VERSION = tfds.core.Version('1.0.0')
  count = 700

  def __init__(self, **kwargs):
    super().__init__(**kwargs)
    self.made, self.notes = [], {}

  def _info(self):
    return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(FEATURES))

  def _split_generators(self, dl_manager):
    make_in = functools.partial(make, Path(self.data_dir_root) / 'stop')
    return {
      split: records.Split(
        list(zip(keys(count), range(count), strict=True)),
        make_in,
        functools.partial(self.notes.__setitem__, split),
      )
      for split, count in (('train', self.count), ('val', self.count // 10))
    }


def prepare(builder, **preparation):
  """Prepares the data set of a builder."""
  builder.preparation = records.Preparation(**preparation)
  builder.download_and_prepare(
    file_format='array_record',
    download_config=tfds.download.DownloadConfig(try_download_gcs=False),
  )
  return builder


def contents(builder):
  """The bytes of the prepared files by name."""
  return {path.name: path.read_bytes() for path in Path(builder.data_path).glob('*.array_record*')}
