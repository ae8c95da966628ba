"""From the features of a prepared data set to an image and its annotations.

A `Source` is one way to read an annotation, and `_choose` says which of them a data set has.
"""

import contextlib
import dataclasses
import functools
import itertools
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import cv2
import numpy as np
import tensorflow_datasets as tfds

from segjax import storage
from segjax.data import corrupt, datasets, images
from segjax.data.config import InputConfig
from segjax.data.formats import coco, common, panoptic
from segjax.data.masks import Masks, Window
from segjax.data.sample import Objects, Sample, Size
from segjax.types import IGNORE_LABEL, SegjaxError, Segments

# Objects as `segjax.metrics.coco` has them: `id`, `category` (index among the things), `bbox`
# [x, y, width, height], `area`, `iscrowd` and `rle`.
Annotations = list[dict[str, Any]]
T = TypeVar('T')


class Reader:
  """Random access to the examples of a split, of which only what is asked for is parsed.

  Pickles small. Where `config.data.bad_examples` says so, examples whose record is corrupt are left
  out, so that the others have consecutive indices.

  Args:
    builder: of a prepared data set.
    split: of it.
    config: what to read: `annotations`, and the keys of `config.data`.
    spec: of the data set.

  Raises:
    SegjaxError: an unknown or empty split; mean and std that are not those of such images; no
      object has the mask that the task needs.
  """

  def __init__(
    self,
    builder: tfds.core.DatasetBuilder,
    split: str,
    config: InputConfig,
    spec: datasets.DatasetSpec,
  ):
    check_channels(config, spec)
    datasets.count_examples(builder, split, spec.name)
    self.config, self.spec = config, spec
    self.sources = _choose(builder, config)
    self.things = {label: index for index, label in enumerate(spec.things or ())}
    directory = Path(os.fspath(builder.data_path))
    self._split = _open_split(builder, split, spec.name, directory)
    self.corrupt = corrupt.find(self._split) if config.data.bad_examples == 'skip' else []
    self._whole = np.delete(np.arange(len(self._split.records)), self.corrupt)
    kept = split.isidentifier() and not self.corrupt
    self._sizes_path = directory / f'sizes-{split}.npy' if kept else None
    features, data = builder.info.features, config.data
    header = {data.image_key, data.name_key}
    keys = header | ({'image_id'} & set(features))
    for key in itertools.chain(*(source.keys for source in self.sources.values())):
      keys.add(getattr(data, key) if key.endswith('_key') else key)
    self._header, self._features = (
      _select(features, tuple(sorted(names - {None}))) for names in (header, keys)
    )
    is_image = lambda key: isinstance(features[key], tfds.features.Image)
    self._encoded = {key for key in self._features if is_image(key)}
    self.maskless = self._count_maskless(builder, split)

  @property
  def left_out(self) -> list[str]:
    """Sentences on what of the split is not read."""
    found = []
    if self.corrupt:
      found.append(corrupt.describe(self._split, self.corrupt))
    if self.maskless:
      found.append(
        f'{self.maskless} objects of {self._split.name} of {self.spec.name} have no mask and are '
        'left out (with config.model.masks=False they are not)'
      )
    return found

  def __len__(self) -> int:
    return len(self._whole)

  def __getitem__(self, index: int) -> 'Example':
    record, name = self._parse(self._features, index)
    return Example(self, index, name, record)

  def name(self, index: int) -> str:
    """The name of an example."""
    return self._parse(self._header, index)[1]

  @functools.cached_property
  def sizes(self) -> list[Size]:
    """The images' own (height, width), from their headers.

    That takes a pass over the split: those of a whole split are kept next to it, where that can be
    written to.
    """
    path = self._sizes_path
    if path is not None:
      with contextlib.suppress(OSError, ValueError, EOFError):
        kept = np.load(path)
        if kept.shape == (len(self), 2):
          return list(map(tuple, kept.tolist()))
    sizes = [self._size(index) for index in range(len(self))]
    if path is not None:
      with contextlib.suppress(OSError, SegjaxError), storage.writing(path) as file:
        np.save(file, np.array(sizes, np.int32))
    return sizes

  def _count_maskless(self, builder: tfds.core.DatasetBuilder, split: str) -> int:
    """How many objects of the things have no mask, where the task needs one.

    That takes a pass over the split, if the data set has any.

    Raises:
      SegjaxError: none of the objects has one.
    """
    metadata, key = builder.info.metadata, self.config.data.objects_key
    there = isinstance(metadata, Mapping) and metadata.get(coco.MASKLESS)
    if not there or not self.config.masks or self.sources.get('objects') is not _RUN_LENGTHS:
      return 0
    features = tfds.features.FeaturesDict({key: builder.info.features[key]})
    found = [
      not counts
      for index in range(len(self))
      for label, counts in zip(*_columns(features, self._record(index), key), strict=True)
      if int(label) in self.things
    ]
    if found and all(found):
      raise _needs_masks(f'none of the {len(found)} objects of {split} of {self.spec.name}')
    return sum(found)

  def _size(self, index: int) -> Size:
    record, name = self._parse(self._header, index)
    return images.read_size(record[self.config.data.image_key], f'the image of {name}')

  def _record(self, index: int) -> bytes:
    """The bytes of an example.

    Raises:
      SegjaxError: its record is corrupt.
    """
    number = int(self._whole[index])
    if self.config.data.bad_examples == 'stop':
      return self._split.read(number, corrupt.remedy(self._split))
    try:
      return self._split.read(number, 'run the same command again, which leaves it out')
    except SegjaxError:
      corrupt.forget(self._split)  # it became corrupt after the records were looked at
      raise

  def _parse(self, features: tfds.features.FeaturesDict, index: int) -> tuple[dict[str, Any], str]:
    skip = {key: tfds.decode.SkipDecoding() for key in self._encoded if key in features}
    record = features.deserialize_example_np(self._record(index), decoders=skip)
    key = self.config.data.name_key
    return record, f'example {index}' if key is None else record[key].decode()


@functools.lru_cache(maxsize=64)
def _select(
  features: tfds.features.FeaturesDict, names: tuple[str, ...]
) -> tfds.features.FeaturesDict:
  """Some of the features: for all readers the same object, as TFDS keeps those it has parsed."""
  return tfds.features.FeaturesDict({name: features[name] for name in names})


def _open_split(
  builder: tfds.core.DatasetBuilder, split: str, dataset: str, directory: Path
) -> corrupt.Split:
  """The records' bytes; images in them are decoded by Pillow."""
  source = builder.as_data_source(split, deserialize_method=tfds.decode.DeserializeMethod.RAW_BYTES)
  places = [
    corrupt.Place(Path(os.fspath(part.filename)), part.skip, part.take)
    for part in builder.info.splits[split].file_instructions
  ]
  return corrupt.Split(split, dataset, directory, places, source.data_source)


def _columns(features: tfds.features.FeaturesDict, record: bytes, key: str) -> tuple[Any, Any]:
  """The labels and the masks of the objects in a record."""
  objects = features.deserialize_example_np(record)[key]
  return objects['label'], objects['segmentation']


def _needs_masks(what: str) -> SegjaxError:
  return SegjaxError(
    f'{what} has a mask, only boxes: set config.model.masks=False, config.losses.mask=none, '
    "config.eval.metrics=('coco_box',) and config.train.best_metric=box_ap, or name data with masks"
  )


def _once(method: Callable[['Example'], T]) -> T:
  """A property that is computed once.

  `functools.cached_property` has, before Python 3.12, a lock that all threads wait for.
  """
  name = f'_{method.__name__}'

  def get(example: 'Example') -> T:
    if name not in vars(example):
      vars(example)[name] = method(example)
    return vars(example)[name]

  return property(get, doc=method.__doc__)


def _limited(method: Callable[['Example'], T]) -> Callable[['Example'], T]:
  """A method that decodes, under the limit of `config.data.max_pixels`."""

  @functools.wraps(method)
  def get(example: 'Example') -> T:
    with images.pixel_limit(example.reader.config.data.max_pixels):
      return method(example)

  return get


@dataclasses.dataclass(frozen=True)
class Example:
  """An example as it is stored: its index, name and features, decoded where asked for."""

  reader: Reader
  index: int
  name: str
  record: Mapping[str, Any]

  @_once
  @_limited
  def image(self) -> np.ndarray:
    """u8[H, W, C], at its own size."""
    encoded = self.record[self.reader.config.data.image_key]
    return images.decode_image(encoded, self.reader.spec.channels, f'the image of {self.name}')

  @property
  def image_id(self) -> int:
    """Its id in files of COCO's format."""
    return int(self.record.get('image_id', self.index))

  @property
  @_limited
  def label(self) -> np.ndarray:
    """u16[H, W], class index or IGNORE_LABEL."""
    return self.reader.sources['label'].read(self)

  @_once
  @_limited
  def segments(self) -> Segments:
    """Without the batch axis."""
    data, spec = self.reader.config.data, self.reader.spec
    segments = panoptic.read_example(
      self.record,
      f'the segments of {self.name}',
      panoptic_key=data.panoptic_key,
      segments_key=data.segments_key,
      crowd_key=data.crowd_key,
    )
    wrong = segments.classes[segments.classes >= spec.num_classes]
    if wrong.size and 'segments' in self.reader.config.annotations:  # a label may have an offset
      raise SegjaxError(
        f'the segments of {self.name} have the class {wrong[0]} but {spec.name} has '
        f'{spec.num_classes} classes: fix the data set'
      )
    return segments

  @property
  @_limited
  def objects(self) -> Objects:
    """The objects among the things, their masks decoded."""
    found = self.reader.sources['objects'].read(self)
    return found if isinstance(found, Objects) else decode_objects(found, self.image.shape[:2])

  @property
  @_limited
  def annotations(self) -> Annotations:
    """The same as COCO's entries."""
    found = self.reader.sources['objects'].read(self)
    return encode_objects(found) if isinstance(found, Objects) else found

  def sample(self, *, train: bool) -> Sample:
    """The image with what training or evaluation needs: evaluation has `annotations` for objects.

    Raises:
      SegjaxError: an annotation has another size than the image.
    """
    wanted = self.reader.config.annotations
    label = self.label if 'label' in wanted and (train or 'segments' not in wanted) else None
    objects = self.objects if 'objects' in wanted and train else None
    segments = self.segments if 'segments' in wanted and not train else None
    sizes = {
      'label': None if label is None else label.shape,
      'objects': None if objects is None else objects.masks.shape[1:],
      'segments': None if segments is None else segments.ids.shape,
    }
    own = self.image.shape[:2]
    for what, size in sizes.items():
      if size not in (None, own):
        raise self._size_error(what, size)
    return Sample(self.image, label, objects=objects, segments=segments)

  def _size_error(self, what: str, size: Size) -> SegjaxError:
    """The error that an annotation has another size than the image."""
    encoded = self.record.get(self.reader.config.data.image_key)
    if isinstance(encoded, bytes) and images.is_unrotated(encoded, size):
      return images.size_error(encoded, f'the image of {self.name}', f'its {what}', size, '')
    height, width = self.image.shape[:2]
    return SegjaxError(
      f'{self.name}: the image is {height}x{width} and its {what} {size[0]}x{size[1]} pixels '
      '(height x width): fix the data set'
    )


# --- sources of annotations -----------------------------------------------------------------------


class Source(NamedTuple):
  """Features, or keys of `config.data` that name one, and how an annotation is read from them."""

  keys: tuple[str, ...]
  read: Callable[[Example], Any]


def _read_label_map(example: Example) -> np.ndarray:
  encoded = example.record[example.reader.config.data.label_key]
  label = images.decode_label(encoded, f'the label of {example.name}')
  return _to_classes(label, common.stored_void(example.reader.spec.num_classes), example)


def _read_label_of_segments(example: Example) -> np.ndarray:
  classes = np.concatenate([[IGNORE_LABEL], example.segments.classes])
  return _to_classes(classes, IGNORE_LABEL, example)[example.segments.ids]


def _to_classes(label: np.ndarray, void: int, example: Example) -> np.ndarray:
  """u16 of class indices and IGNORE_LABEL from stored values, of which one is void."""
  spec = example.reader.spec
  stored = np.arange(256) if label.dtype == np.uint8 else label.astype(np.int64)
  classes = stored + example.reader.config.data.label_offset
  ignored = (stored == void) | (classes < 0)
  unknown = (classes >= spec.num_classes) & ~ignored
  classes = np.where(ignored, IGNORE_LABEL, classes).astype(np.uint16)
  if label.dtype == np.uint8:  # by a table
    unknown, classes = cv2.LUT(label, unknown.astype(np.uint8)), cv2.LUT(label, classes)
  if unknown.any():
    raise SegjaxError(
      f'the label of {example.name} has the value {classes[unknown > 0][0]} but {spec.name} has '
      f'{spec.num_classes} classes: fix it, or set config.data.label_offset'
    )
  return classes


def _read_object_map(example: Example) -> Objects:
  ids = images.decode_label(example.record['instance'], f'the objects of {example.name}')
  listed = example.record[example.reader.config.data.objects_key]
  return _objects(example, ids, listed['id'], listed['label'], np.zeros(len(listed['id']), bool))


def _read_things(example: Example) -> Objects:
  ids, classes, crowd, _ = example.segments
  return _objects(example, ids, np.arange(1, len(classes) + 1), classes, crowd)


def _objects(
  example: Example, ids: np.ndarray, numbers: np.ndarray, labels: np.ndarray, crowd: np.ndarray
) -> Objects:
  """The things among objects that are the pixels of i[H, W] with their number."""
  things = example.reader.things
  known = np.flatnonzero([int(label) in things for label in labels])
  equal = (np.equal(ids, number).view(np.uint8) for number in np.asarray(numbers)[known])
  masks = Masks(ids.shape, (Window(0, 0, mask) for mask in equal))
  classes = np.array([things[int(labels[i])] for i in known], np.int32)
  return Objects(masks.boxes, classes, masks, np.asarray(crowd, bool)[known])


def _read_run_lengths(example: Example) -> Annotations:
  """Objects as `formats.coco` has them; one without a mask is left out where masks are needed."""
  reader, size = example.reader, example.image.shape[:2]
  found = []
  for entry in _entries(example):
    if int(entry['label']) not in reader.things:
      continue
    if not (counts := entry['segmentation']):
      if reader.config.masks:
        continue
      counts = coco.box_counts(entry['bbox'], size)
    category = reader.things[int(entry['label'])]
    found.append(_annotation({**entry, 'segmentation': counts}, size, category))
  return found


def _read_boxes(example: Example) -> Annotations:
  """Objects of TFDS's detection data sets: `bbox` is y0, x0, y1, x1, as fractions of the image."""
  reader, (height, width) = example.reader, example.image.shape[:2]
  found = []
  for number, entry in enumerate(_entries(example), 1):
    if int(entry['label']) not in reader.things:
      continue
    y0, x0, y1, x1 = entry['bbox'].astype(np.float64) * (height, width, height, width)
    box = x0, y0, x1 - x0, y1 - y0
    read = {
      'id': entry.get('id', number),
      'bbox': box,
      'area': entry.get('area', box[2] * box[3]),
      'iscrowd': entry.get(reader.config.data.crowd_key, entry.get('is_crowd', False)),
      'segmentation': coco.box_counts(box, (height, width)),
    }
    found.append(_annotation(read, (height, width), reader.things[int(entry['label'])]))
  return found


def _entries(example: Example) -> list[dict[str, Any]]:
  """The objects of an example, each a dict."""
  objects = example.record[example.reader.config.data.objects_key]
  return [dict(zip(objects, v, strict=True)) for v in zip(*objects.values(), strict=True)]


_LABEL_MAP = Source(('label_key',), _read_label_map)
_OBJECT_MAP = Source(('objects_key', 'instance'), _read_object_map)
_RUN_LENGTHS = Source(('objects_key',), _read_run_lengths)
_BOXES = Source(('objects_key',), _read_boxes)
_PANOPTIC = ('panoptic_key', 'segments_key')
_SEGMENTS = Source(_PANOPTIC, lambda example: example.segments)
_LABEL_OF_SEGMENTS = Source(_PANOPTIC, _read_label_of_segments)
_THINGS_OF_SEGMENTS = Source(_PANOPTIC, _read_things)


def _choose(builder: tfds.core.DatasetBuilder, config: InputConfig) -> dict[str, Source]:
  """Where each of `config.annotations` comes from."""
  of_segments = datasets.label_is_of_segments(builder, config)
  found = {'label': _LABEL_OF_SEGMENTS if of_segments else _LABEL_MAP, 'segments': _SEGMENTS}
  if 'segments' in config.annotations:
    found['objects'] = _THINGS_OF_SEGMENTS
  elif 'objects' in config.annotations:
    found['objects'] = _objects_source(builder, config)
  return {annotation: found[annotation] for annotation in config.annotations}


def _objects_source(builder: tfds.core.DatasetBuilder, config: InputConfig) -> Source:
  features, data = builder.info.features, config.data
  if 'instance' in features:
    return _OBJECT_MAP
  if 'segmentation' in features[data.objects_key].keys():  # noqa: SIM118 -- not iterable
    return _RUN_LENGTHS
  if config.masks:
    raise _needs_masks(f'no object of {data.name}')
  return _BOXES


# --- COCO's entries -------------------------------------------------------------------------------


def encode_objects(objects: Objects) -> Annotations:
  """COCO's entries of objects, numbered from 1, with the boxes around their pixels."""
  return [
    _annotation(
      coco.mask_object(mask, id=k, label=0, category_id=0, iscrowd=bool(crowd)),
      mask.shape,
      int(category),
    )
    for k, (mask, category, crowd) in enumerate(
      zip(objects.masks, objects.classes, objects.crowd, strict=True), 1
    )
  ]


def _annotation(entry: Mapping[str, Any], size: Size, category: int) -> dict[str, Any]:
  counts = entry['segmentation']
  return {
    'id': int(entry['id']),
    'category': category,
    'bbox': [float(x) for x in entry['bbox']],
    'area': float(entry['area']),
    'iscrowd': bool(entry['iscrowd']),
    'rle': {'size': list(size), 'counts': counts if isinstance(counts, str) else counts.decode()},
  }


def decode_objects(annotations: Sequence[Mapping[str, Any]], size: Size) -> Objects:
  """The boxes and masks of COCO's entries in an image of `size`."""
  xywh = np.array([entry['bbox'] for entry in annotations], np.float32).reshape(-1, 4)
  windows = [coco.decode_window(entry['rle']['counts'], size) for entry in annotations]
  return Objects(
    boxes=np.concatenate([xywh[:, :2], xywh[:, :2] + xywh[:, 2:]], axis=1),
    classes=np.array([entry['category'] for entry in annotations], np.int32),
    masks=Masks(size, windows),
    crowd=np.array([entry['iscrowd'] for entry in annotations], bool),
  )


def check_channels(config: InputConfig, spec: datasets.DatasetSpec) -> None:
  """Raises a SegjaxError where mean or std are not those of such images."""
  for key in ('mean', 'std'):
    if len(getattr(config.data, key)) not in (1, spec.channels):
      raise SegjaxError(
        f'config.data.{key}={getattr(config.data, key)} must be 1 number, or 1 for each of the '
        f'{spec.channels} channels of {spec.name}'
      )
