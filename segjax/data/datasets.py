"""Data sets by name: finding one, preparing it where it is missing, and what its classes are.

A name is one of segjax's own builders (`scenes`, `isbi2012/fold1`: builder and config), any data
set of tensorflow-datasets (`oxford_iiit_pet`, `oxford_iiit_pet:4.0.0`), or the path of a class
outside the package (`my_module.MyData`, `my_data.py:MyData`, see `segjax.data.outside`). All but
the last are read from ArrayRecord files, without TensorFlow.
"""

import contextlib
import dataclasses
import functools
import hashlib
import importlib
import json
import os
import shutil
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from tensorflow_datasets.core import read_only_builder, registered
from tensorflow_datasets.core.file_adapters import FileFormat

from segjax import download as download_lib
from segjax import lock as lock_lib
from segjax import storage
from segjax.data import bucket, downloads, fingerprint, outside, records, tfds_patches
from segjax.data.config import DataConfig, InputConfig
from segjax.data.formats.common import voc_palette
from segjax.types import IGNORE_LABEL, SegjaxError, nearest

# What has the info and the examples of a data set.
Builder = tfds.core.DatasetBuilder | outside.SourceBuilder


@dataclasses.dataclass(frozen=True, eq=False)
class DatasetSpec:
  """What a model, a metric or an overlay needs to know of a data set.

  Attributes:
    name: as in `config.data.name`.
    version: of the prepared data.
    class_names: one for each class index.
    palette: uint8[C, 3], the RGB color of each class.
    channels: of the images, 1 or 3.
    splits: number of examples of each split.
    things: in instance tasks, whose classes are the things alone: the label that each class has in
      the data. In panoptic tasks, whose classes are all: which of them are things. None in semantic
      tasks.
    category_ids: the id of each class in files of COCO's format; None where it is unknown.
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
    tuples = {k: tuple(v) if isinstance(v, list) else v for k, v in content.items()}
    return cls(**{**tuples, 'palette': np.array(content['palette'], np.uint8)})


def default_data_dir() -> Path:
  """`$SEGJAX_DATA_DIR`, else `segjax/data` in the user's cache directory."""
  if named := os.environ.get('SEGJAX_DATA_DIR'):
    return storage.as_path(named)
  return download_lib.cache_dir() / 'data'


def load(
  name: str,
  data_dir: str | os.PathLike[str] | None = None,
  source: str | os.PathLike[str] | None = None,
  report: Callable[[str], None] | None = None,
  *,
  files: Mapping[str, Any] | None = None,
  annotations: Sequence[str] = ('label',),
  download: bool = False,
  offline: bool = False,
  workers: int = 0,
) -> Builder:
  """The builder of a data set, prepared if it was not, or if its raw files have changed since.

  Args:
    name: the data set, see the module.
    data_dir: directory of prepared data sets, which may be in a bucket, see
      `segjax.data.bucket`; None for `default_data_dir()`.
    source: directory of the raw files; None takes what is prepared as it is, if it was prepared
      with the same `files` and for the same task, else what was downloaded.
    report: called with a line before what takes long. Nothing goes to standard output.
    files: keyword arguments of the format's options, see `options_of`.
    annotations: of the task; a format of users' own data is prepared for each task.
    download: whether raw files with a public address are downloaded where `source` is None.
    offline: whether downloading is an error that names the addresses.
    workers: processes that prepare the data set, for which the main script must be guarded by
      `if __name__ == '__main__'`; 0 for this one. Of several calls, also of other machines that see
      `data_dir`, one prepares, and the others wait for it.

  Raises:
    SegjaxError: an unknown name (with the nearest right one), a data set that cannot be prepared
      here, prepared files of another format, or with other `files` where there is no source.
  """
  warnings_to, report = report, report or (lambda text: None)
  root = bucket.open_root(data_dir or default_data_dir())
  if source is not None:
    source = storage.local_path(source, 'config.data.source')
    if not source.is_dir():
      raise SegjaxError(
        f'config.data.source={source} is not a directory: name the one of the raw files'
      )
  with tfds_patches.quiet():
    if not outside.is_outside(name):
      root.fetch_infos(name.partition('/')[0].partition(':')[0])
    make = functools.partial(_make_builder, name, root.local, source, files, annotations)
    builder = make()
    if isinstance(builder, outside.SourceBuilder):
      return builder
    root.fetch(Path(builder.data_path), report)
    if not builder.data_path.exists() or _is_stale(builder, source, report):
      if source is None:
        source = _downloaded(builder, name, download=download, offline=offline, report=report)
      builder = _prepare_alone(name, make, root, source, workers, report, warnings_to)
    else:
      root.store(Path(builder.data_path), report)
  if FileFormat.ARRAY_RECORD not in builder.info.available_file_formats():
    raise SegjaxError(
      f'{builder.data_path} holds {builder.info.file_format.value} files: prepare {name} with '
      "file_format='array_record', or name another directory as config.data.dir"
    )
  return builder


def _prepare_alone(
  name: str,
  make: Callable[[], Any],
  root: bucket.Root,
  source: Path | None,
  workers: int,
  report: Callable[[str], None],
  warnings_to: Callable[[str], None] | None,
) -> tfds.core.DatasetBuilder:
  """The builder that `make` makes, prepared by this process or by one that it waited for."""
  path = Path(make().data_path)
  with _lock(root.place(path), path, report):
    root.fetch(path, report)
    builder = make()
    if not builder.data_path.exists() or _is_stale(builder, source, lambda text: None):
      report(f'preparing {name} in {path}')
      with _set_aside(path), _warnings_to(warnings_to):
        builder = make()  # without what it knew of prepared data
        _prepare(builder, source, workers, report)
    root.store(path, report)
  return builder


def _downloaded(
  builder: tfds.core.DatasetBuilder,
  name: str,
  *,
  download: bool,
  offline: bool,
  report: Callable[[str], None],
) -> Path | None:
  """The downloaded raw files of a builder of ours; None if it has no public address.

  Raises:
    SegjaxError: they are not there and may not or cannot be downloaded.
  """
  if not type(builder).__module__.startswith('segjax.'):
    return None
  source = downloads.find(builder.name, builder.builder_config and builder.builder_config.name)
  if source is None:
    return None
  if isinstance(source, downloads.Manual):
    raise SegjaxError(f'{name} cannot be downloaded ({source.terms}): {source.steps}')
  directory = Path(builder.data_dir_root) / 'downloads'
  if not download and not downloads.available(source, directory):
    raise SegjaxError(
      f'{name} is not in {directory.parent}: run `segjax data prepare {name}`, which downloads it '
      f'({downloads.spell_size(source)}), or set config.data.source to the directory of its raw '
      'files'
    )
  return downloads.get(source, directory, offline=offline, report=report)


def describe(config: InputConfig) -> DatasetSpec:
  """The spec of a data set whose builder can be made, whether or not it was ever prepared.

  Raises:
    SegjaxError: as `load`.
  """
  data = config.data
  source = None if data.source is None else storage.user_path(data.source)
  with tfds_patches.quiet():
    root = bucket.open_root(data.dir or default_data_dir()).local
    builder = _make_builder(data.name, root, source, data.files, config.annotations)
  return spec(builder, config)


def own_names() -> list[str]:
  """The names of segjax's own data sets and formats."""
  return sorted(p.parent.name for p in Path(__file__).parent.glob('builders/*/builder.py'))


def options_of(name: str) -> Callable[..., Any] | None:
  """What `config.data.files` gives keyword arguments to; None where a data set has no such keys.

  Raises:
    SegjaxError: `name` is the path of a class that cannot be imported.
  """
  if outside.is_outside(name):
    found = outside.find(name)
    return getattr(found, 'Options', None) if _is_builder(found) else found
  base = name.partition('/')[0]
  return getattr(_own_class(base), 'Options', None) if base in own_names() else None


def _is_builder(found: type) -> bool:
  return issubclass(found, tfds.core.DatasetBuilder)


def _own_class(base: str) -> Any:
  return importlib.import_module(f'segjax.data.builders.{base}.builder').Builder


def _make_builder(
  name: str,
  root: Path,
  source: Path | None,
  files: Mapping[str, Any] | None,
  annotations: Sequence[str],
) -> Builder:
  if outside.is_outside(name):
    builder_class, base, config = outside.find(name), name, ''
    if not _is_builder(builder_class):
      return outside.SourceBuilder(name, files)
  else:
    base, _, config = name.partition('/')
    if base not in own_names():
      return _tfds_builder(name, root)
    builder_class = _own_class(base)
  make = getattr(builder_class, 'own_config', lambda *_: None)
  if own := make(config, _options(builder_class, base, files), annotations):
    directory, told = root / builder_class.name, getattr(own, 'annotations', annotations)
    if source is None:
      own.name = _prepared_name(directory, own.name, _asked(own))
    else:
      own.name = _own_name(own.name, source, files, told)
    return builder_class(data_dir=root, config=own)
  if config and config not in builder_class.builder_configs:
    known = nearest(config, builder_class.builder_configs)
    raise SegjaxError(f'config.data.name={base}/{config}: {base} has no config {config}{known}')
  return builder_class(data_dir=root, config=config or None)


def _options(builder_class: Any, base: str, files: Mapping[str, Any] | None) -> Any:
  """The options of a format, from `config.data.files`; None for a data set without."""
  options = getattr(builder_class, 'Options', None)
  if options is None:
    return None
  try:
    return options(**(files or {}))
  except TypeError as e:
    problem = str(e).replace(f'{options.__name__}.__init__() ', '')
    raise SegjaxError(
      f'{base} needs config.data.files ({problem}): name a config that has it, such as one that '
      'segjax new writes'
    ) from e


def _own_name(
  config: str, source: Path, files: Mapping[str, Any] | None, annotations: Sequence[str]
) -> str:
  """Names a prepared data set of one's own, so that no two share a directory.

  Args:
    config: the start of the name.
    source, files, annotations: what is prepared, and for which task.
  """
  told = [str(source.absolute()), files, list(annotations[-1:])]
  digest = hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()
  return f'{config}-{digest[:8]}'


def _asked(config: Any) -> dict[str, Any] | None:
  """What the config of a data set of one's own asks for, as JSON has it; None of another."""
  options = getattr(config, 'options', None)
  if not dataclasses.is_dataclass(options):
    return None
  told = {'files': dataclasses.asdict(options), 'task': list(config.annotations[-1:])}
  return json.loads(json.dumps(told))


def _prepared_name(directory: Path, config: str, asked: Mapping[str, Any] | None) -> str:
  """The name of the one data set of one's own in a directory that is as it is asked for.

  Args:
    directory: of the builder.
    config: the start of the name, which is the name of data that is not prepared.
    asked: see `_asked`.

  Raises:
    SegjaxError: what is there was prepared with other options, or for another task.
  """
  found = sorted(directory.glob(f'{config}*/[0-9]*'))  # of any version
  wrong = {path: _difference((fingerprint.read(path) or {}).get('asked'), asked) for path in found}
  names = {path.parent.name for path, difference in wrong.items() if difference is None}
  if found and not names:
    path, difference = next(iter(wrong.items()))
    raise SegjaxError(
      f'{path} was prepared {difference}: name the raw files as config.data.source, to prepare '
      'them again'
    )
  return names.pop() if len(names) == 1 else config


def _difference(known: Any, asked: Mapping[str, Any] | None) -> str | None:
  """How prepared data differs from what is asked for; None where nothing is known to."""
  if not known or not asked:
    return None
  if known['task'] != asked['task']:
    return 'for another task'
  ours, theirs = asked['files'], known['files']
  keys = [key for key in ours if key in theirs and ours[key] != theirs[key]]
  return f'with another config.data.files.{keys[0]}, {theirs[keys[0]]}' if keys else None


def _tfds_builder(name: str, root: Path) -> tfds.core.DatasetBuilder:
  # What is prepared reads without the code that prepared it, which may need TensorFlow.
  with contextlib.suppress(registered.DatasetNotFoundError, ValueError):
    return read_only_builder.builder_from_files(name, data_dir=os.fspath(root))
  try:
    return tfds.builder(name, data_dir=os.fspath(root))
  except registered.DatasetNotFoundError:
    known = own_names() + tfds.list_builders(with_community_datasets=False)
    hint = nearest(name, known, shown=own_names())
    raise SegjaxError(f'config.data.name={name}: unknown data set{hint}') from None
  except Exception as e:
    raise _not_prepared(name, root, e) from e


def _is_stale(
  builder: tfds.core.DatasetBuilder, source: Path | None, report: Callable[[str], None]
) -> bool:
  """Whether a prepared data set has to be prepared again, and shows why."""
  if source is None or not hasattr(builder, 'watched'):
    return False
  path, known = Path(builder.data_path), fingerprint.read(Path(builder.data_path))
  if known is None:
    report(
      f'{path} does not say what it was prepared from: delete it to prepare {source} again, if '
      'that has changed'
    )
    return False
  if known['digest'] == _fingerprint(builder, source):
    return False
  report(f'{path} was prepared from other files than {source} has now (from {known["source"]})')
  return True


def _root(builder: tfds.core.DatasetBuilder) -> Path:
  """The directory of prepared data sets: above NAME/CONFIG/VERSION, or NAME/VERSION."""
  return Path(builder.data_path).parents[2 if builder.builder_config else 1]


def _fingerprint(builder: tfds.core.DatasetBuilder, source: Path) -> str:
  watched = builder.watched(source, getattr(builder, 'options', None))
  return fingerprint.fingerprint(watched, without=_root(builder))


@contextlib.contextmanager
def _warnings_to(report: Callable[[str], None] | None) -> Iterator[None]:
  """Passes the builders' warnings to `report`, if there is one, without the line of code."""
  if report is None:
    yield
    return
  with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter('always', UserWarning)
    yield
  for warning in caught:
    if warning.category is UserWarning:
      report(str(warning.message))
    else:
      warnings.warn_explicit(warning.message, warning.category, warning.filename, warning.lineno)


@contextlib.contextmanager
def _lock(place: Path, path: Path, report: Callable[[str], None]) -> Iterator[None]:
  """Waits until no other process prepares a data set, and cleans up after those that were killed.

  Args:
    place: of the data set, which may be in a bucket.
    path: where it is prepared.
    report: called with a line before waiting.
  """
  storage.make_directory(place.parent)
  file = place.with_name(f'.{place.name}.lock')
  with contextlib.ExitStack() as stack:
    try:
      stack.enter_context(lock_lib.exclusive(file, report=report))
    except lock_lib.LockedError as e:
      report(f'waiting for {e}, which prepares {place}')
      stack.enter_context(lock_lib.exclusive(file, wait=True, report=report))
    _remove_leftovers(path)
    yield


def _shards_directory(path: Path) -> Path:
  """Where whole shards wait until `path` is prepared."""
  return path.with_name(f'.{path.name}.shards')


def _remove_leftovers(path: Path) -> None:
  """Deletes what killed processes left beside `path`, but for whole shards."""
  for half in _shards_directory(path).glob(f'*{records.HALF}'):
    half.unlink()
  for pattern in (f'incomplete.*_{path.name}', f'.{path.name}.*.old'):
    for left in path.parent.glob(pattern):
      shutil.rmtree(left, ignore_errors=True)


@contextlib.contextmanager
def _set_aside(path: Path) -> Iterator[None]:
  """Moves prepared data out of the way, and back if preparing it again fails."""
  aside = path.with_name(f'.{path.name}.{os.getpid()}.old')
  with contextlib.suppress(FileNotFoundError):  # not there, or moved by another process
    path.rename(aside)
  try:
    yield
  except BaseException:
    if aside.exists() and not path.exists():
      aside.rename(path)
    raise
  finally:
    shutil.rmtree(aside, ignore_errors=True)


def _prepare(
  builder: tfds.core.DatasetBuilder,
  source: Path | None,
  workers: int,
  report: Callable[[str], None],
) -> None:
  digest, path = None, Path(builder.data_path)
  if source is not None and hasattr(builder, 'watched'):
    digest = _fingerprint(builder, source)  # before it is read, as it may change meanwhile
  whole = _shards_directory(path)
  if isinstance(builder, records.Builder):
    asked = _asked(builder.builder_config)
    builder.preparation = records.Preparation(workers, whole, source, digest, asked, report)
  try:
    builder.download_and_prepare(
      file_format='array_record',
      # TFDS would ask the network whether it hosts the data set already.
      download_config=tfds.download.DownloadConfig(manual_dir=source, try_download_gcs=False),
    )
  except SegjaxError:
    raise
  except Exception as e:
    if told := storage.explain(e, path, None):
      raise told from e
    if type(builder).__module__.startswith('segjax.'):
      raise
    raise _not_prepared(builder.name, builder.data_path, e) from e
  shutil.rmtree(whole, ignore_errors=True)


def _not_prepared(name: str, directory: Path, reason: Exception) -> SegjaxError:
  first_line = f'{type(reason).__name__}: {reason}'.splitlines()[0]
  return SegjaxError(
    f'{name} is not in {directory} and cannot be prepared here ({first_line}): prepare it where '
    "TensorFlow is installed, with file_format='array_record', and name that directory as "
    'config.data.dir'
  )


def spec(builder: tfds.core.DatasetBuilder, config: InputConfig) -> DatasetSpec:
  """The spec of a prepared data set, as the task of `config` reads it.

  Class names come from the config, else from the feature, else they are `class 0`, …. Colors come
  from the builder's metadata, else they are PASCAL VOC's. Which classes are things, and the ids of
  categories, come from the config, else from the metadata. Instance tasks have the classes of
  things alone, the others all.

  Raises:
    SegjaxError: a key that the data set does not have, an unknown number of classes, a panoptic
      task with unknown things, or a config with not one category for each class.
  """
  data, info = config.data, builder.info
  metadata = info.metadata if isinstance(info.metadata, Mapping) else {}
  panoptic = label_is_of_segments(builder, config)
  if panoptic and data.segments_key is not None:
    listed = 'segments_key'
  else:
    listed = 'objects_key' if panoptic or 'objects' in config.annotations else 'label_key'
  for key in ('image_key', listed, *['panoptic_key'] * panoptic, 'name_key'):
    value = getattr(data, key)
    if value is not None and value not in info.features:
      optional = metadata.get('optional_features', {})
      hint = f': {optional[value]}' if value in optional else nearest(value, info.features)
      raise SegjaxError(f'config.data.{key}={value}: {data.name} has no such feature{hint}')
  channels = info.features[data.image_key].shape[-1]
  if channels not in (1, 3):
    raise SegjaxError(f'{data.name} has images of {channels} channels: segjax reads 1 or 3')
  feature = info.features[getattr(data, listed)]
  class_names = _class_names(feature if listed == 'label_key' else feature['label'], data)
  palette = _palette(metadata, len(class_names), with_background=listed == 'label_key')
  things = category_ids = None
  if 'objects' in config.annotations:
    things = _things(metadata, len(class_names), config)
    category_ids = _category_ids(metadata, len(class_names), data)
    if not panoptic:
      class_names, palette = tuple(class_names[i] for i in things), palette[list(things)]
      category_ids = category_ids and tuple(category_ids[i] for i in things)
  return DatasetSpec(
    name=data.name,
    version=str(builder.version),
    class_names=class_names,
    palette=palette,
    channels=channels,
    splits={name: split.num_examples for name, split in info.splits.items()},
    things=things,
    category_ids=category_ids,
  )


def records_digest(builder: Builder) -> str | None:
  """What tells prepared data from other data of as many examples; None of a source outside."""
  if isinstance(builder, outside.SourceBuilder):
    return None
  files = [Path(path) for split in builder.info.splits.values() for path in split.filepaths]
  return records.read_digest(Path(builder.data_path), files)


def label_is_of_segments(builder: tfds.core.DatasetBuilder, config: InputConfig) -> bool:
  """Whether the label is the class of each pixel's segment, and is not a feature of its own.

  So it is in panoptic tasks, and in semantic ones where the config names no label and the data set
  has none but a panoptic image.
  """
  if 'segments' in config.annotations or 'label' not in config.annotations:
    return 'segments' in config.annotations
  data, features = config.data, builder.info.features
  named = data.label_key != DataConfig.label_key or data.label_key in features
  return not named and data.panoptic_key in features


def _class_names(feature: tfds.features.FeatureConnector, data: DataConfig) -> tuple[str, ...]:
  if data.class_names is not None:
    names = data.class_names
  elif count := getattr(feature, 'num_classes', None):
    names = tuple(f'class {n}' if n.isdecimal() else n for n in feature.names)
    # Raw values below -label_offset are void and have no class.
    names = names[max(0, -data.label_offset) : count]
  elif data.num_classes is not None:
    names = tuple(f'class {i}' for i in range(data.num_classes))
  else:
    raise SegjaxError(
      f'{data.name} does not say how many classes its labels have: set config.data.num_classes or '
      'config.data.class_names'
    )
  if data.num_classes not in (None, len(names)):
    raise SegjaxError(
      f'config.data.num_classes={data.num_classes} but {data.name} has {len(names)} classes, '
      f'{", ".join(names)}: leave it out'
    )
  if not 0 < len(names) <= IGNORE_LABEL:
    raise SegjaxError(f'{data.name} has {len(names)} classes: segjax takes 1 to {IGNORE_LABEL:,}')
  return names


def _palette(metadata: Mapping[str, Any], classes: int, *, with_background: bool) -> np.ndarray:
  palette = metadata.get('palette')
  if palette is None or len(palette) < classes:
    # Black is for the background, which is not among things or segments, or for void.
    palette = voc_palette(classes + 1)[0 if with_background else 1 :]
  return np.array(palette, np.uint8)[:classes]


def _things(metadata: Mapping[str, Any], classes: int, config: InputConfig) -> tuple[int, ...]:
  data, isthing = config.data, metadata.get('isthing')
  if data.things is not None:
    if wrong := [i for i in data.things if not 0 <= i < classes]:
      raise SegjaxError(
        f'config.data.things={data.things} has {wrong[0]} but {data.name} has the classes 0 to '
        f'{classes - 1}: leave it out'
      )
    return tuple(sorted(set(data.things)))
  if isthing is None and 'segments' in config.annotations:
    raise SegjaxError(
      f'{data.name} does not say which of its {classes} classes are things: set '
      'config.data.things to their indices'
    )
  return tuple(range(classes)) if isthing is None else tuple(np.flatnonzero(isthing).tolist())


def _category_ids(
  metadata: Mapping[str, Any], classes: int, data: DataConfig
) -> tuple[int, ...] | None:
  ids = data.category_ids
  if ids is None:
    return tuple(metadata.get('category_ids') or ()) or None  # empty before files are prepared
  if len(set(ids)) != len(ids) or len(ids) != classes:
    raise SegjaxError(
      f'config.data.category_ids={ids} must be {classes} different numbers, one for each class of '
      f'{data.name}'
    )
  return ids


def count_examples(builder: tfds.core.DatasetBuilder, split: str, name: str) -> int:
  """The number of examples of a split, 1 or more.

  A builder whose raw files do not always have a split says in the metadata's `optional_splits` how
  to get it.

  Raises:
    SegjaxError: there is no such split, and how to get it or which is the nearest; or it is empty.
  """
  try:
    count = builder.info.splits[split].num_examples
  except (KeyError, ValueError):
    hint, metadata = nearest(split, builder.info.splits), builder.info.metadata
    optional = metadata.get('optional_splits', {}) if isinstance(metadata, Mapping) else {}
    for other, how in optional.items():
      if other in split and other not in builder.info.splits:
        hint = f': {how}, delete {builder.data_path} and prepare it again'
    raise SegjaxError(f'{name} has no split {split!r}{hint}') from None
  if not count:
    raise SegjaxError(f'split {split!r} of {name} is empty: name another one')
  return count
