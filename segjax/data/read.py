"""From the features of a prepared data set to an image and its annotations.

Which features hold an annotation depends on the data set; `_SOURCES` is the table of what can be
read, and `_choose` says which of it a data set has.

Objects on the host are COCO's entries, as `segjax.metrics.coco` has them: `id`, `category` (index
among the things), `bbox` [x, y, width, height], `area`, `iscrowd` and `rle`.
"""

import contextlib
import dataclasses
import functools
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
import tensorflow_datasets as tfds

from segjax.data import datasets, images
from segjax.data.config import InputConfig
from segjax.data.formats import coco, common, panoptic
from segjax.data.geometry import mask_boxes
from segjax.data.sample import Objects, Sample, Size
from segjax.types import IGNORE_LABEL, SegjaxError, Segments

Annotations = list[dict[str, Any]]


class Reader:
  """Random access to the examples of a split, of which only what is asked for is parsed.

  Pickles small.

  Args:
    builder: of a prepared data set.
    split: of it.
    config: what to read: `annotations`, and the keys of `config.data`.
    spec: of the data set.

  Raises:
    SegjaxError: an unknown or empty split; mean and std that are not those of such images; objects
      without masks.
  """

  def __init__(
    self,
    builder: tfds.core.DatasetBuilder,
    split: str,
    config: InputConfig,
    spec: datasets.DatasetSpec,
  ):
    _check_channels(config, spec)
    datasets.count_examples(builder, split, spec.name)
    self.config, self.spec = config, spec
    directory = Path(os.fspath(builder.data_path))
    self._sizes_path = directory / f'sizes-{split}.npy' if split.isidentifier() else None
    self._kinds = _choose(builder, config)
    # The records' bytes; images in them are decoded by Pillow.
    self._records = builder.as_data_source(
      split, deserialize_method=tfds.decode.DeserializeMethod.RAW_BYTES
    ).data_source
    features, data = builder.info.features, config.data
    header = {data.image_key, data.name_key} - {None}
    keys, encoded = header | ({'image_id'} & set(features)), {data.image_key}
    for kind in self._kinds.values():
      keys |= {self._key(key) for key in _SOURCES[kind].keys} - {None}
      encoded.add(self._key(_SOURCES[kind].encoded))
    choose = lambda names: tfds.features.FeaturesDict({k: features[k] for k in sorted(names)})
    self._features, self._header = choose(keys), choose(header)
    self._skip = {key: tfds.decode.SkipDecoding() for key in encoded & keys}
    self.things = {label: index for index, label in enumerate(spec.things or ())}

  def __len__(self) -> int:
    return len(self._records)

  def __getitem__(self, index: int) -> 'Example':
    record, name = self._parse(self._features, index)
    return Example(self, index, name, record)

  def name(self, index: int) -> str:
    """The name of an example."""
    return self._parse(self._header, index)[1]

  @functools.cached_property
  def sizes(self) -> list[Size]:
    """The images' own (height, width), from their headers.

    That takes a pass over the split: those of a whole split are kept beside it, where that can be
    written to.
    """
    if self._sizes_path is not None:
      with contextlib.suppress(OSError, ValueError, EOFError):
        kept = np.load(self._sizes_path)
        if kept.shape == (len(self), 2):
          return list(map(tuple, kept.tolist()))
    sizes = [self._size(index) for index in range(len(self))]
    if self._sizes_path is not None:
      temporary = self._sizes_path.with_suffix(f'.{os.getpid()}.tmp')
      with contextlib.suppress(OSError):
        with open(temporary, 'wb') as file:
          np.save(file, np.array(sizes, np.int32))
        os.replace(temporary, self._sizes_path)
    return sizes

  def _size(self, index: int) -> Size:
    record, name = self._parse(self._header, index)
    return images.read_size(record[self.config.data.image_key], f'the image of {name}')

  def _parse(self, features: tfds.features.FeaturesDict, index: int) -> tuple[dict[str, Any], str]:
    skip = {key: value for key, value in self._skip.items() if key in features}
    record = features.deserialize_example_np(self._records[index], decoders=skip)
    key = self.config.data.name_key
    return record, f'example {index}' if key is None else record[key].decode()

  def _key(self, key: str) -> str | None:
    """The feature that a key of `config.data` names, or a feature itself."""
    return getattr(self.config.data, key) if key.endswith('_key') else key

  def annotation(self, kind: str, example: 'Example') -> Any:
    """What an example has of 'label', 'objects' or 'segments'."""
    return _SOURCES[self._kinds[kind]].read(example)


@dataclasses.dataclass(frozen=True)
class Example:
  """An example as it is stored; what is not asked for is not decoded.

  Attributes:
    reader: that read it.
    index: in its split.
    name: of it.
    record: its features.
  """

  reader: Reader
  index: int
  name: str
  record: Mapping[str, Any]

  @functools.cached_property
  def image(self) -> np.ndarray:
    """u8[H, W, C], at its own size."""
    encoded = self.record[self.reader.config.data.image_key]
    return images.decode_image(encoded, self.reader.spec.channels, f'the image of {self.name}')

  @property
  def image_id(self) -> int:
    """Its id in files of COCO's format."""
    return int(self.record.get('image_id', self.index))

  @functools.cached_property
  def label(self) -> np.ndarray:
    """u16[H, W], class index or IGNORE_LABEL."""
    return self.reader.annotation('label', self)

  @functools.cached_property
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
  def annotations(self) -> Annotations:
    """The objects among the things."""
    found = self.reader.annotation('objects', self)
    return found.annotations() if isinstance(found, ObjectMap) else found

  @property
  def objects(self) -> Objects:
    """The objects among the things, their masks decoded."""
    found = self.reader.annotation('objects', self)
    if isinstance(found, ObjectMap):
      return found.objects()
    return decode_objects(found, self.image.shape[:2])

  def sample(self, *, train: bool) -> Sample:
    """The image with what training or evaluation needs: evaluation has `annotations` for objects.

    Raises:
      SegjaxError: an annotation has another size than the image.
    """
    wanted = self.reader.config.annotations
    sample = Sample(
      self.image,
      label=self.label if 'label' in wanted and (train or 'segments' not in wanted) else None,
      objects=self.objects if 'objects' in wanted and train else None,
      segments=self.segments if 'segments' in wanted and not train else None,
    )
    sizes = {
      'label': sample.label is not None and sample.label.shape,
      'objects': sample.objects is not None and sample.objects.masks.shape[1:],
      'segments': sample.segments is not None and sample.segments.ids.shape,
    }
    for what, size in sizes.items():
      if size and size != sample.size:
        raise SegjaxError(
          f'{self.name}: the image is {sample.size[0]}x{sample.size[1]} and its {what} '
          f'{size[0]}x{size[1]} pixels (height x width): fix the data set'
        )
    return sample


# --- the table of sources -------------------------------------------------------------------------


class Source(NamedTuple):
  """Where an annotation comes from.

  Attributes:
    keys: features, or keys of `config.data` that name one.
    encoded: the one of them that is an encoded image.
    read: the annotation of an example.
  """

  keys: tuple[str, ...]
  encoded: str
  read: Callable[[Example], Any]


class ObjectMap(NamedTuple):
  """Objects of which no two overlap.

  Attributes:
    ids: i[H, W], the id of the object at each pixel.
    numbers: the ids of the n objects.
    classes: of each, its index among the things.
    crowd: of each.
  """

  ids: np.ndarray
  numbers: Sequence[int]
  classes: Sequence[int]
  crowd: Sequence[bool]

  def objects(self) -> Objects:
    """Their masks, and the boxes around these."""
    masks = np.empty((len(self.numbers), *self.ids.shape), np.uint8)
    for mask, number in zip(masks, self.numbers, strict=True):
      np.equal(self.ids, number, out=mask.view(bool))
    return Objects(
      boxes=mask_boxes(masks),
      classes=np.array(self.classes, np.int32),
      masks=masks,
      crowd=np.array(self.crowd, bool),
    )

  def annotations(self) -> Annotations:
    """COCO's entries."""
    return [
      _annotation(
        coco.mask_object(self.ids == id, id=id, label=0, category_id=0, iscrowd=bool(crowd)),
        self.ids.shape,
        category,
      )
      for id, category, crowd in zip(self.numbers, self.classes, self.crowd, strict=True)
    ]


def _read_label_map(example: Example) -> np.ndarray:
  what, data = f'the label of {example.name}', example.reader.config.data
  label = images.decode_label(example.record[data.label_key], what)
  return _to_classes(label, common.stored_void(example.reader.spec.num_classes), what, example)


def _read_label_of_segments(example: Example) -> np.ndarray:
  classes = np.concatenate([[IGNORE_LABEL], example.segments.classes])
  label = classes.astype(np.uint16)[example.segments.ids]
  return _to_classes(label, IGNORE_LABEL, f'the label of {example.name}', example)


def _to_classes(label: np.ndarray, void: int, what: str, example: Example) -> np.ndarray:
  """u16[H, W] of class indices and IGNORE_LABEL from stored values, of which one is void."""
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
      f'{what} has the value {classes[unknown > 0][0]} but {spec.name} has {spec.num_classes} classes: '
      'fix it, or set config.data.label_offset'
    )
  return classes


def _read_object_map(example: Example) -> ObjectMap:
  ids = images.decode_label(example.record['instance'], f'the objects of {example.name}')
  objects, things = example.record[example.reader.config.data.objects_key], example.reader.things
  known = [i for i, label in enumerate(objects['label']) if int(label) in things]
  return ObjectMap(
    ids=ids,
    numbers=[int(objects['id'][i]) for i in known],
    classes=[things[int(objects['label'][i])] for i in known],
    crowd=[False] * len(known),
  )


def _read_things(example: Example) -> ObjectMap:
  segments, things = example.segments, example.reader.things
  known = [i for i, label in enumerate(segments.classes.tolist()) if label in things]
  return ObjectMap(
    ids=segments.ids,
    numbers=[i + 1 for i in known],
    classes=[things[int(segments.classes[i])] for i in known],
    crowd=segments.crowd[known],
  )


def _read_run_lengths(example: Example) -> Annotations:
  objects, things = example.record[example.reader.config.data.objects_key], example.reader.things
  columns = zip(*objects.values(), strict=True)
  entries = [dict(zip(objects, values, strict=True)) for values in columns]
  return [
    _annotation(entry, example.image.shape[:2], things[int(entry['label'])])
    for entry in entries
    if int(entry['label']) in things
  ]


_PANOPTIC = ('panoptic_key', 'segments_key')
_SOURCES = {
  'label map': Source(('label_key',), 'label_key', _read_label_map),
  'label of segments': Source(_PANOPTIC, 'panoptic_key', _read_label_of_segments),
  'object map': Source(('objects_key', 'instance'), 'instance', _read_object_map),
  'run lengths': Source(('objects_key',), '', _read_run_lengths),
  'things of segments': Source(_PANOPTIC, 'panoptic_key', _read_things),
  'segments': Source(_PANOPTIC, 'panoptic_key', lambda example: example.segments),
}


def _choose(builder: tfds.core.DatasetBuilder, config: InputConfig) -> dict[str, str]:
  """Annotation -> key of `_SOURCES`."""
  features, objects_key = builder.info.features, config.data.objects_key
  of_segments = datasets.label_is_of_segments(builder, config)
  kinds = {'label': 'label of segments' if of_segments else 'label map', 'segments': 'segments'}
  if 'segments' in config.annotations:
    kinds['objects'] = 'things of segments'
  elif 'objects' in config.annotations:
    kinds['objects'] = 'object map' if 'instance' in features else 'run lengths'
    found = set(features[objects_key].keys())
    if kinds['objects'] == 'run lengths' and 'segmentation' not in found:
      raise SegjaxError(
        f'{config.data.name} has boxes but no masks: name a data set whose objects have a '
        'segmentation, such as coco_instances'
      )
  return {annotation: kinds[annotation] for annotation in config.annotations}


# --- COCO's entries -------------------------------------------------------------------------------


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
  """The boxes and masks of COCO's entries, see the module.

  Args:
    annotations: n of them.
    size: of the image.
  """
  xywh = np.array([entry['bbox'] for entry in annotations], np.float32).reshape(-1, 4)
  masks = np.empty((len(annotations), *size), np.uint8)
  for mask, entry in zip(masks, annotations, strict=True):
    mask[...] = coco.decode_mask(entry['rle']['counts'], size)
  return Objects(
    boxes=np.concatenate([xywh[:, :2], xywh[:, :2] + xywh[:, 2:]], axis=1),
    classes=np.array([entry['category'] for entry in annotations], np.int32),
    masks=masks,
    crowd=np.array([entry['iscrowd'] for entry in annotations], bool),
  )


def _check_channels(config: InputConfig, spec: datasets.DatasetSpec) -> None:
  for key in ('mean', 'std'):
    if len(getattr(config.data, key)) not in (1, spec.channels):
      raise SegjaxError(
        f'config.data.{key}={getattr(config.data, key)} must be 1 number, or 1 for each of the '
        f'{spec.channels} channels of {spec.name}'
      )
