"""Data sets outside the package: a TFDS builder, or a random-access source, by its path.

A random-access source is a class with `class_names`, `__init__(split, **config.data.files)`,
`__len__` and `__getitem__(index) -> Sample`, without a weight. It may have
  splits         its splits, by default train and val
  channels       of its images, 1 or 3 (the default)
  palette        the RGB color of each class
  things         the class indices of things; all, by default. `Objects.classes` are positions in it
  name(index)    the name of an example
  sizes          the (height, width) of each image; without it they are read where they are needed
"""

import functools
import re
import sys
import types
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from segjax.data.config import DataConfig
from segjax.lookup import is_file, locate
from segjax.types import SegjaxError

_SPLITS = ('train', 'val')


def is_outside(name: str) -> bool:
  """Whether `config.data.name` is a path: `module.Class` or `path/file.py:Class`."""
  return is_file(name) or bool(re.fullmatch(r'[A-Za-z_]\w*(\.\w+)+', name))


@functools.cache
def find(name: str) -> type:
  """The class at a path.

  Raises:
    SegjaxError: there is none, or importing it fails.
  """
  found = locate(name, 'config.data.name')
  if not isinstance(found, type):
    raise SegjaxError(f'config.data.name={name} is no class: name a source or a TFDS builder')
  return found


class SourceBuilder:
  """A random-access source with what is read of a TFDS builder.

  Args:
    name: as in `config.data.name`.
    files: keyword arguments of the class, besides `split`.

  Raises:
    SegjaxError: the class lacks something, or cannot be made.
  """

  version = 'outside'

  def __init__(self, name: str, files: Mapping[str, Any] | None):
    self.name, self.files = name, dict(files or {})
    splits = getattr(find(name), 'splits', _SPLITS)
    made = {split: open_source(name, split, self.files) for split in splits}
    self.data_path = Path(getattr(sys.modules[find(name).__module__], '__file__', None) or '.')
    self.info = _describe(next(iter(made.values())))
    self.info.splits = {
      split: types.SimpleNamespace(num_examples=len(source)) for split, source in made.items()
    }


def open_source(name: str, split: str, files: Mapping[str, Any]) -> Any:
  """The random-access source of a split; arguments and errors as `SourceBuilder`."""
  cls = find(name)
  for attribute in ('__len__', '__getitem__', 'class_names'):
    if not hasattr(cls, attribute):
      raise SegjaxError(
        f'config.data.name={name} has no {attribute}: a random-access source has class_names, '
        '__len__ and __getitem__(index) -> Sample'
      )
  try:
    return cls(split=split, **files)
  except TypeError as e:
    raise SegjaxError(
      f'config.data.name={name} cannot be made ({e}): it takes split and config.data.files'
    ) from e


def _describe(source: Any) -> types.SimpleNamespace:
  """The info of a source, its features under the default keys of `config.data`."""
  features, names = tfds.features, list(source.class_names)
  label = features.ClassLabel(names=names)
  found = {
    DataConfig.image_key: features.Image(shape=(None, None, getattr(source, 'channels', 3))),
    DataConfig.label_key: features.LabeledImage(labels=names, shape=(None, None, 1)),
    DataConfig.name_key: features.Text(),
    DataConfig.objects_key: {'label': label},
    DataConfig.panoptic_key: features.Image(shape=(None, None, 3)),
    DataConfig.segments_key: {'label': label},
  }
  metadata: dict[str, Any] = {}
  if (palette := getattr(source, 'palette', None)) is not None:
    metadata['palette'] = np.asarray(palette).tolist()
  if (things := getattr(source, 'things', None)) is not None:
    metadata['isthing'] = [index in set(things) for index in range(len(names))]
  return types.SimpleNamespace(features=found, metadata=metadata)
