"""Data sets by name: finding one, preparing it where it is missing, and what its classes are.

A name is one of segjax's own builders (`scenes`, `isbi2012/fold1`: builder and config) or any data
set of tensorflow-datasets (`oxford_iiit_pet`, `oxford_iiit_pet:4.0.0`). Everything is read from
ArrayRecord files, without TensorFlow.
"""

import contextlib
import dataclasses
import importlib
import os
import sys
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import tensorflow_datasets as tfds
from tensorflow_datasets.core import read_only_builder, registered
from tensorflow_datasets.core.file_adapters import FileFormat

from segjax.types import IGNORE_LABEL, SegjaxError, nearest

if TYPE_CHECKING:
  from segjax.data.pipeline import DataConfig


@dataclasses.dataclass(frozen=True, eq=False)
class DatasetSpec:
  """What a model, a metric or a picture needs to know of a data set.

  Attributes:
    name: as in `config.data.name`.
    version: of the prepared data.
    class_names: one for each class index.
    palette: uint8[C, 3], the RGB colour of each class.
    channels: of the images, 1 or 3.
    splits: number of examples of each split.
    things: of an instance task, whose classes are the things alone: the label that each class has
      in the data. Of a panoptic task, whose classes are all: which of them are things. None for a
      dense task.
    category_ids: the number of each class in files of COCO's format, None where nothing tells it.
  """

  name: str
  version: str
  class_names: tuple[str, ...]
  palette: np.ndarray
  channels: int
  splits: Mapping[str, int]
  things: tuple[int, ...] | None = None
  category_ids: tuple[int, ...] | None = None

  @property
  def num_classes(self) -> int:
    return len(self.class_names)

  def to_json(self) -> dict[str, Any]:
    """A dict that `json` can write and `from_json` reads back."""
    return {**vars(self), 'palette': self.palette.tolist(), 'splits': dict(self.splits)}

  @classmethod
  def from_json(cls, content: Mapping[str, Any]) -> 'DatasetSpec':
    """The inverse of `to_json`."""
    return cls(
      **{
        **content,
        'class_names': tuple(content['class_names']),
        'palette': np.array(content['palette'], np.uint8),
        **{key: _tuple(content.get(key)) for key in ('things', 'category_ids')},
      }
    )


def _tuple(values: Iterable[int] | None) -> tuple[int, ...] | None:
  return None if values is None else tuple(values)


def default_data_dir() -> Path:
  """`$SEGJAX_DATA_DIR`, else `segjax/data` in the user's cache folder."""
  if named := os.environ.get('SEGJAX_DATA_DIR'):
    return Path(named)
  return Path(os.environ.get('XDG_CACHE_HOME') or '~/.cache').expanduser() / 'segjax' / 'data'


def load(
  name: str,
  data_dir: str | os.PathLike[str] | None = None,
  source: str | os.PathLike[str] | None = None,
  report: Callable[[str], None] | None = None,
) -> tfds.core.DatasetBuilder:
  """The builder of a data set that is prepared, at the latest when this returns.

  Args:
    name: the data set, see the module.
    data_dir: folder of prepared data sets; None for `default_data_dir()`.
    source: folder with the raw files, for a data set that is not downloaded.
    report: told in a line what takes long. Nothing goes to standard output.

  Raises:
    SegjaxError: an unknown name (with the nearest right one), a data set that cannot be prepared
      here, prepared files of another format.
  """
  root = Path(data_dir).expanduser() if data_dir else default_data_dir()
  if source is not None:
    source = Path(source).expanduser()
    if not source.is_dir():
      raise SegjaxError(f'config.data.source={source} is no folder: name the one of the raw files')
  base, _, config = name.partition('/')
  own = base in own_names()
  with contextlib.redirect_stdout(sys.stderr):  # TFDS prints
    if not sys.stderr.isatty():
      tfds.disable_progress_bar()
    builder = _own_builder(base, config, root) if own else _tfds_builder(name, root)
    if not builder.data_path.exists():
      if report:
        report(f'preparing {name} in {builder.data_path}')
      _prepare(builder, source, own=own)
  if FileFormat.ARRAY_RECORD not in builder.info.available_file_formats():
    raise SegjaxError(
      f'{builder.data_path} holds {builder.info.file_format.value} files: prepare {name} with '
      "file_format='array_record', or name another folder as config.data.dir"
    )
  return builder


def describe(config: 'DataConfig') -> DatasetSpec:
  """The spec of a data set whose builder can be made, whether or not it was ever prepared.

  Raises:
    SegjaxError: as `load`.
  """
  root = Path(config.dir).expanduser() if config.dir else default_data_dir()
  base, _, name = config.name.partition('/')
  with contextlib.redirect_stdout(sys.stderr):  # TFDS prints
    own = base in own_names()
    builder = _own_builder(base, name, root) if own else _tfds_builder(config.name, root)
  return spec(builder, config)


def own_names() -> list[str]:
  """The names of segjax's own data sets."""
  return sorted(p.parent.name for p in Path(__file__).parent.glob('builders/*/builder.py'))


def _own_builder(base: str, config: str, root: Path) -> tfds.core.DatasetBuilder:
  builder_class = importlib.import_module(f'segjax.data.builders.{base}.builder').Builder
  if config and config not in builder_class.builder_configs:
    known = nearest(config, builder_class.builder_configs)
    raise SegjaxError(f'config.data.name={base}/{config}: {base} has no config {config}{known}')
  return builder_class(data_dir=root, config=config or None)


def _tfds_builder(name: str, root: Path) -> tfds.core.DatasetBuilder:
  # What is prepared reads without the code that prepared it, which may need TensorFlow.
  with contextlib.suppress(registered.DatasetNotFoundError, ValueError):
    return read_only_builder.builder_from_files(name, data_dir=os.fspath(root))
  try:
    return tfds.builder(name, data_dir=os.fspath(root))
  except registered.DatasetNotFoundError:
    known = own_names() + tfds.list_builders(with_community_datasets=False)
    hint = nearest(name, known, shown=own_names())
    raise SegjaxError(f'config.data.name={name}: there is no such data set{hint}') from None
  except Exception as e:
    raise _not_prepared(name, root, e) from e


def _prepare(builder: tfds.core.DatasetBuilder, source: Path | None, *, own: bool) -> None:
  try:
    builder.download_and_prepare(
      file_format='array_record',
      # TFDS would ask the network whether it hosts the data set already.
      download_config=tfds.download.DownloadConfig(manual_dir=source, try_download_gcs=False),
    )
  except SegjaxError:
    raise
  except Exception as e:
    # Another process that prepared the same data set may have been first to rename its folder.
    if isinstance(e, OSError) and builder.data_path.exists():
      builder.info.read_from_directory(builder.data_path)
    elif own:
      raise
    else:
      raise _not_prepared(builder.name, builder.data_path, e) from e


def _not_prepared(name: str, folder: Path, reason: Exception) -> SegjaxError:
  return SegjaxError(
    f'{name} is not in {folder} and cannot be prepared here ({_first_line(reason)}): prepare it '
    "where TensorFlow is installed, with file_format='array_record', and name that folder as "
    'config.data.dir'
  )


def _first_line(error: Exception) -> str:
  return f'{type(error).__name__}: {error}'.splitlines()[0]


def spec(builder: tfds.core.DatasetBuilder, config: 'DataConfig') -> DatasetSpec:
  """The spec of a prepared data set, read with the keys of `config`.

  Class names come from the config, else from the label's feature, else they are `class 0`, ….
  Colours come from the builder's metadata, else they are PASCAL VOC's. Which classes are things,
  and the numbers of the categories, come from the config, else from the metadata. With
  `config.instances` the classes are those of the objects that are not stuff; with
  `config.segments`, and where `label_is_of_segments`, all.

  Raises:
    SegjaxError: a key that the data set does not have, a number of classes that nothing tells, a
      panoptic task whose things nothing tells, or a config with not one category for each class.
  """
  features = builder.info.features
  dense = config.instances is None
  panoptic = label_is_of_segments(builder, config) if dense else config.segments is not None
  if panoptic and config.segments_key is not None:
    listed = 'segments_key'
  else:
    listed = 'label_key' if dense and not panoptic else 'objects_key'
  keys = ('image_key', listed, *['panoptic_key'] * panoptic, 'name_key')
  for key in keys:
    value = getattr(config, key)
    if value is not None and value not in features:
      raise SegjaxError(
        f'config.data.{key}={value}: {config.name} has no such feature{nearest(value, features)}'
      )
  channels = features[config.image_key].shape[-1]
  if channels not in (1, 3):
    raise SegjaxError(f'{config.name} has images of {channels} channels: segjax reads 1 or 3')
  label = features[getattr(config, listed)]
  class_names = _class_names(label if listed == 'label_key' else label['label'], config)
  metadata = builder.info.metadata if isinstance(builder.info.metadata, Mapping) else {}
  palette = metadata.get('palette')
  if palette is None or len(palette) < len(class_names):
    # Black is for the background, which is not among the things, or for void.
    palette = voc_palette(len(class_names) + 1)[0 if listed == 'label_key' else 1 :]
  palette = np.array(palette, np.uint8)[: len(class_names)]
  things = category_ids = None
  if not dense:
    things = _things(metadata, len(class_names), config)
    category_ids = _category_ids(metadata, len(class_names), config)
  if not dense and not panoptic:
    class_names, palette = tuple(class_names[i] for i in things), palette[list(things)]
    if category_ids is not None:
      category_ids = tuple(category_ids[i] for i in things)
  return DatasetSpec(
    name=config.name,
    version=str(builder.version),
    class_names=class_names,
    palette=palette,
    channels=channels,
    splits={name: split.num_examples for name, split in builder.info.splits.items()},
    things=things,
    category_ids=category_ids,
  )


def label_is_of_segments(builder: tfds.core.DatasetBuilder, config: 'DataConfig') -> bool:
  """Whether a dense task has the classes of the segments for its label.

  So it is where the config names no label of its own and the data set has none but a panoptic
  picture.
  """
  features = builder.info.features
  named = config.label_key != type(config).label_key or config.label_key in features
  return not named and config.panoptic_key in features


def _category_ids(
  metadata: Mapping[str, Any], classes: int, config: 'DataConfig'
) -> tuple[int, ...] | None:
  """The number of each class in files of COCO's format."""
  ids = config.category_ids
  if ids is None:
    return _tuple(metadata.get('category_ids') or None)  # of unprepared files empty
  if len(set(ids)) != len(ids) or len(ids) != classes:
    raise SegjaxError(
      f'config.data.category_ids={ids} must be {classes} different numbers, one for each class of '
      f'{config.name}'
    )
  return ids


def _things(metadata: Mapping[str, Any], classes: int, config: 'DataConfig') -> tuple[int, ...]:
  """Which classes are things."""
  if config.things is not None:
    if wrong := [i for i in config.things if not 0 <= i < classes]:
      raise SegjaxError(
        f'config.data.things={config.things} has {wrong[0]} but {config.name} has the classes 0 to '
        f'{classes - 1}: leave it out'
      )
    return tuple(sorted(set(config.things)))
  isthing = metadata.get('isthing')
  if isthing is None and config.segments is not None:
    raise SegjaxError(
      f'{config.name} does not say which of its {classes} classes are things: set '
      'config.data.things to their indices'
    )
  return tuple(range(classes)) if isthing is None else tuple(np.flatnonzero(isthing).tolist())


def count_examples(builder: tfds.core.DatasetBuilder, split: str, name: str) -> int:
  """The number of examples of a split, 1 or more.

  A builder whose raw files do not always have a split says in the metadata's `optional_splits` what
  it takes.

  Raises:
    SegjaxError: there is no such split, and how to get it or which is the nearest; or it is empty.
  """
  try:
    count = builder.info.splits[split].num_examples
  except (KeyError, ValueError):
    hint = _explain_split(builder, split)
    raise SegjaxError(f'{name} has no split {split!r}{hint}') from None
  if not count:
    raise SegjaxError(f'split {split!r} of {name} is empty: name another one')
  return count


def _explain_split(builder: tfds.core.DatasetBuilder, split: str) -> str:
  """The end of the sentence that a data set has no such split."""
  metadata = builder.info.metadata
  optional = metadata.get('optional_splits', {}) if isinstance(metadata, Mapping) else {}
  for name, how in optional.items():
    if name in split and name not in builder.info.splits:
      return f': {how}, delete {builder.data_path} and prepare it again'
  return nearest(split, builder.info.splits)


def _class_names(feature: tfds.features.FeatureConnector, config: 'DataConfig') -> tuple[str, ...]:
  if config.class_names is not None:
    names = config.class_names
  elif count := getattr(feature, 'num_classes', None):
    names = tuple(f'class {n}' if n.isdecimal() else n for n in feature.names)
    # Raw values below -label_offset are void and have no class.
    names = names[max(0, -config.label_offset) : count]
  elif config.num_classes is not None:
    names = tuple(f'class {i}' for i in range(config.num_classes))
  else:
    raise SegjaxError(
      f'{config.name} does not say how many classes its labels have: set config.data.num_classes '
      'or config.data.class_names'
    )
  if config.num_classes not in (None, len(names)):
    raise SegjaxError(
      f'config.data.num_classes={config.num_classes} but {config.name} has {len(names)} classes, '
      f'{", ".join(names)}: leave it out'
    )
  if not 0 < len(names) <= IGNORE_LABEL:
    raise SegjaxError(f'{config.name} has {len(names)} classes: segjax takes 1 to {IGNORE_LABEL}')
  return names


def voc_palette(classes: int) -> np.ndarray:
  """PASCAL VOC's colour map, uint8[classes, 3]: the bits of the index dealt to R, G, B in turn."""
  index = np.arange(classes)
  palette = np.zeros((classes, 3), np.uint8)
  for bit in range(8):
    for channel in range(3):
      palette[:, channel] |= ((index >> (3 * bit + channel) & 1) << (7 - bit)).astype(np.uint8)
  return palette
