"""From a prepared data set to batches of images with their objects.

Images keep their aspect ratio and are padded to one of a few shapes, and a batch is of images of
one shape. The order of the examples is that of `segjax.data.pipeline`: an epoch is a permutation.
Each example joins the batch of its shape that is being filled, and batches come in the order in
which they are full; what an epoch leaves unfilled goes on into the next one. So every image comes
as often as every other, every batch is full, and both depend on the seed and the step alone. Where
fewer images than a batch have a shape, theirs comes once in a few epochs: choose few `shapes`.

A batch holds `image`, `size`, `instances`, `index` and `valid` of `segjax.types.Batch`, and `draw`
u32[B], the seed of what the network draws for each example.

Of a panoptic task, which `config.segments` makes, the objects are the things among the segments,
and a training batch has `label` i32[B, H, W] besides, the class of each pixel. An evaluation batch
has the `segments` themselves, at the images' own sizes, and `native` i32[B, 2], these sizes: PQ is
measured there, as public evaluations do. They are padded to the largest of the images that share a
padded shape.
"""

import bisect
import collections
import contextlib
import functools
import os
import threading
from collections.abc import Callable, Generator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import grain
import jax
import numpy as np
import tensorflow_datasets as tfds

from segjax.data import datasets, images, instances, pipeline, transforms
from segjax.data.formats import panoptic
from segjax.data.instances import Picture
from segjax.data.pipeline import DataConfig, NamedBatch
from segjax.data.transforms import Size
from segjax.types import SegjaxError, Segments

# First words of the generators' seeds, beside those of `pipeline`.
_AUGMENT, _SCALE = 2, 3
# Without `config.shapes`, images are padded to multiples of this.
_SIZE_MULTIPLE = 32
# Batches of a plan that are kept, whole epochs of them, for threads that ask out of order.
_KEPT_BATCHES = 1024


class Example(NamedTuple):
  """An example as it is stored.

  Attributes:
    name: of it.
    image_id: its number in files of COCO's format.
    image: u8[H, W, C], at its own size.
    annotations: of the objects, see `instances.annotations`.
    segments: of a panoptic task, without the batch axis; else None.
  """

  name: str
  image_id: int
  image: np.ndarray
  annotations: list[dict[str, Any]]
  segments: Segments | None = None

  @property
  def picture(self) -> Picture:
    """The image and its objects, their masks decoded."""
    objects = instances.decode(self.annotations, self.image.shape[:2])
    label = None if self.segments is None else instances.segment_label(self.segments)
    return Picture(self.image, objects, label)


def train_batches(
  builder: tfds.core.DatasetBuilder,
  config: DataConfig,
  spec: datasets.DatasetSpec,
  *,
  seed: int,
  start_step: int = 0,
  process_index: int = 0,
  process_count: int = 1,
  report: Callable[[str], None] | None = None,
) -> Generator[NamedBatch, None, None]:
  """The endless stream of training batches, from that of `start_step` on.

  Args:
    builder, config, spec, seed, start_step, process_index, process_count: as for
      `pipeline.train_batches`.
    report: told of images with more objects than `config.instances`: at the first one, and at the
      end how many there were.

  Yields:
    (batch, names), see the module.

  Raises:
    SegjaxError: as `pipeline.train_batches`; while iterating, an image that fits no shape.
  """
  if seed < 0:
    raise SegjaxError(f'config.train.seed={seed} must not be negative')
  examples = _Examples(builder, config.train_split, config, spec)
  rows = pipeline.host_rows('batch_size', config.batch_size, process_index, process_count)
  make = functools.partial(_train_batch, examples, Plan(examples, seed), seed, rows)
  steps = grain.MapDataset.range(start_step, 2**62)
  left_out = _LeftOut(config.instances, report)
  with contextlib.closing(pipeline.stream(steps.map(make), config, config.workers)) as batches:
    try:
      for batch, names in batches:
        left_out.add(names, batch.pop('left_out'))
        yield batch, names
    finally:
      left_out.close()


def eval_batches(
  builder: tfds.core.DatasetBuilder,
  config: DataConfig,
  spec: datasets.DatasetSpec,
  *,
  split: str | None = None,
  process_index: int = 0,
  process_count: int = 1,
) -> Generator[NamedBatch, None, None]:
  """Every example of a split once, scaled but not varied, grouped by padded shape.

  Each group's last batch is filled up with examples that are not `valid`.

  Args:
    builder, config, spec, split, process_index, process_count: as for `pipeline.eval_batches`.

  Yields:
    (batch, names); in place of `instances` and `draw` the batch has `annotations`, a list with the
    entry of each example that `segjax.metrics.coco` describes, None where not valid; and of a
    panoptic task `segments` and `native` in place of `label`.

  Raises:
    SegjaxError: as `pipeline.eval_batches`; while iterating, more than `config.segments`.
  """
  examples = _Examples(builder, split or config.eval_split, config, spec)
  batch_size = config.eval_batch_size or config.batch_size
  rows = pipeline.host_rows('eval_batch_size', batch_size, process_index, process_count)
  groups: dict[Size, list[int]] = {}
  for index in range(len(examples)):
    size = eval_size(examples.sizes[index], config)
    shape = fit_shape(size, config.shapes, config, functools.partial(examples.records.name, index))
    groups.setdefault(shape, []).append(index)
  batches = [
    (shape, _largest_size(examples, indices), indices[start : start + batch_size])
    for shape, indices in groups.items()
    for start in range(0, len(indices), batch_size)
  ]
  make = functools.partial(_eval_batch, examples, rows)
  return pipeline.stream(grain.MapDataset.source(batches).map(make), config, workers=0)


def prepare_image(image: np.ndarray, config: DataConfig) -> dict[str, np.ndarray]:
  """A batch of one image as the evaluation would read it: `image` and `size`.

  One that fits into none of `config.shapes` is padded to multiples of 32.

  Args:
    image: u8[H, W, C] of any size.
    config: its `short_side`, `longest_side`, `shapes`, `mean` and `std` are used.
  """
  size = eval_size(image.shape[:2], config)
  picture = instances.resize(Picture(image, _no_objects(image.shape[:2])), size)
  fits = any(s[0] >= size[0] and s[1] >= size[1] for s in config.shapes or ())
  shape = fit_shape(size, config.shapes if fits else None, config)
  padded = transforms.pad(picture.image, shape, pipeline.mean_colour(config))
  return {'image': pipeline.normalize(padded[None], config), 'size': np.array([size], np.int32)}


def prepare_panoptic(image: np.ndarray, config: DataConfig) -> dict[str, Any]:
  """`prepare_image`, with `native` and, all void, `segments`: what is found has their size."""
  size = image.shape[:2]
  # As in `prepare_image`, so that many sizes make few shapes.
  void = panoptic.void(fit_shape(size, None, config), 1)
  return {
    **prepare_image(image, config),
    'native': np.array([size], np.int32),
    'segments': Segments(*(field[None] for field in void)),
  }


def eval_size(size: Size, config: DataConfig) -> Size:
  """The size to which evaluation scales an image of `size`."""
  if config.short_side is not None:
    return instances.short_side_size(size, max(config.short_side), config.longest_side)
  return transforms.fit_size(size, config.shapes[0]) if config.jitter is not None else size


def fit_shape(
  size: Size,
  shapes: Sequence[Size] | None,
  config: DataConfig,
  name: Callable[[], str] | None = None,
) -> Size:
  """The smallest of `shapes` that an image of `size` fits into; `name` says which it is.

  Raises:
    SegjaxError: there is none.
  """
  if shapes is None:
    height, width = (-(-side // _SIZE_MULTIPLE) * _SIZE_MULTIPLE for side in size)
    return height, width
  fitting = [s for s in shapes if s[0] >= size[0] and s[1] >= size[1]]
  if not fitting:
    raise SegjaxError(
      f'{name() if name else "an image"} of {config.name} is {size[0]}x{size[1]} pixels (height x '
      f'width) and fits into none of config.data.shapes={tuple(shapes)}: add a larger '
      'shape, or lower config.data.short_side or longest_side'
    )
  return min(fitting, key=lambda shape: shape[0] * shape[1])


class _Examples:
  """Random access to the examples of a split. Pickles small."""

  def __init__(
    self,
    builder: tfds.core.DatasetBuilder,
    split: str,
    config: DataConfig,
    spec: datasets.DatasetSpec,
  ):
    self.config = config
    self.spec = spec
    folder = Path(os.fspath(builder.data_path))
    self._sizes_path = folder / f'sizes-{split}.npy' if split.isidentifier() else None
    self._things = {label: index for index, label in enumerate(spec.things)}
    features = builder.info.features
    keys = {key for key in ('image_id', 'instance') if key in features}
    if config.segments is not None:
      keys = {config.panoptic_key, config.segments_key, *keys - {'instance'}} - {None}
    else:
      keys.add(config.objects_key)
      if 'instance' not in keys and 'segmentation' not in set(features[config.objects_key].keys()):
        raise SegjaxError(
          f'{config.name} has boxes but no masks: take a data set whose objects have a '
          'segmentation, such as coco_instances'
        )
    encoded = {config.panoptic_key, 'instance'} & keys
    self.records = pipeline.Records(builder, split, config, spec, keys, encoded)

  def __len__(self) -> int:
    return len(self.records)

  def __getitem__(self, index: int) -> Example:
    record, name = self.records.read(index)
    image = images.decode_image(
      record[self.config.image_key], self.spec.channels, f'the image of {name}'
    )
    image_id = int(record.get('image_id', index))
    if self.config.segments is not None:
      segments = self._segments(record, name, image.shape[:2])
      found = instances.segment_annotations(segments, self._things)
      return Example(name, image_id, image, found, segments)
    ids = None
    if 'instance' in record:
      ids = images.decode_label(record['instance'], f'the objects of {name}')
    objects = dict(record[self.config.objects_key])
    found = instances.annotations(objects, image.shape[:2], ids, self._things)
    return Example(name, image_id, image, found)

  def _segments(self, record: Mapping[str, Any], name: str, size: Size) -> Segments:
    segments = panoptic.read_example(
      record,
      f'the segments of {name}',
      panoptic_key=self.config.panoptic_key,
      segments_key=self.config.segments_key,
      crowd_key=self.config.crowd_key,
      size=size,
    )
    wrong = segments.classes[segments.classes >= self.spec.num_classes]
    if wrong.size:
      raise SegjaxError(
        f'the segments of {name} have the class {wrong[0]} but {self.spec.name} has '
        f'{self.spec.num_classes} classes: mend the data set'
      )
    return segments

  @functools.cached_property
  def sizes(self) -> list[Size]:
    """The images' native (height, width), from their headers.

    That takes a pass over the split: those of a whole split are kept beside it, where that can be
    written to.
    """
    if self._sizes_path is not None:
      with contextlib.suppress(OSError, ValueError, EOFError):
        kept = np.load(self._sizes_path)
        if kept.shape == (len(self), 2):
          return list(map(tuple, kept.tolist()))
    sizes = [self.records.size(index) for index in range(len(self))]
    if self._sizes_path is not None:
      temporary = self._sizes_path.with_suffix(f'.{os.getpid()}.tmp')
      with contextlib.suppress(OSError):
        with open(temporary, 'wb') as file:
          np.save(file, np.array(sizes, np.int32))
        os.replace(temporary, self._sizes_path)
    return sizes


class Plan:
  """Which examples make which training batch; pickles small, and answers to several threads.

  Args:
    examples: of the training split.
    seed: of the order and the sizes.
  """

  # What is made anew where it is unpickled.
  _STATE = ('_lock', '_ends', '_kept', '_unfilled')

  def __init__(self, examples: _Examples, seed: int):
    self._count = len(examples)
    self._config = examples.config
    self._seed = seed
    # With one shape there is nothing to group, and no need to read every image's size.
    config = self._config
    single = config.shapes is not None and (len(config.shapes) == 1 or config.jitter is not None)
    self._sizes = None if single else examples.sizes
    self._name = examples.records.name
    self._start()

  def _start(self) -> None:
    self._lock = threading.Lock()
    self._ends = [0]  # batches before the end of each epoch
    self._kept: collections.deque[list[tuple[Size, list[int]]]] = collections.deque()
    self._unfilled: dict[Size, list[int]] = {}

  def __getstate__(self) -> dict[str, Any]:
    return {key: value for key, value in vars(self).items() if key not in self._STATE}

  def __setstate__(self, state: Mapping[str, Any]) -> None:
    vars(self).update(state)
    self._start()

  def batch(self, step: int) -> tuple[Size, list[tuple[int, int]]]:
    """The padded shape of a step's batch, and (epoch, index) of each of its examples."""
    with self._lock:
      if step < self._ends[len(self._ends) - 1 - len(self._kept)]:  # no longer kept: anew
        self._ends, self._unfilled = [0], {}
        self._kept.clear()
      while step >= self._ends[-1]:
        self._add_epoch()
      first = len(self._ends) - 1 - len(self._kept)
      epoch = bisect.bisect_right(self._ends, step) - 1
      shape, positions = self._kept[epoch - first][step - self._ends[epoch]]
    return shape, [divmod(position, self._count) for position in positions]

  def _add_epoch(self) -> None:
    """Deals the next epoch's examples out to batches; an example is epoch · n + index."""
    epoch = len(self._ends) - 1
    batches = []
    for index in order(self._config, self._seed, epoch, self._count).tolist():
      shape = self._shape(epoch, index)
      filling = self._unfilled.setdefault(shape, [])
      filling.append(epoch * self._count + index)
      if len(filling) == self._config.batch_size:
        batches.append((shape, self._unfilled.pop(shape)))
    self._ends.append(self._ends[-1] + len(batches))
    self._kept.append(batches)
    # Two at least: at an epoch's end threads ask for batches of both.
    while len(self._kept) > 2 and sum(map(len, self._kept)) - len(self._kept[0]) > _KEPT_BATCHES:
      self._kept.popleft()

  def _shape(self, epoch: int, index: int) -> Size:
    if self._sizes is None:
      return self._config.shapes[0]
    size = train_size(self._sizes[index], self._config, self._seed, epoch, index, self._count)
    name = functools.partial(self._name, index)
    return fit_shape(size, self._config.shapes, self._config, name)


def order(config: DataConfig, seed: int, epoch: int, count: int) -> np.ndarray:
  """The order of an epoch's examples."""
  return pipeline.permutation(seed, epoch, count) if config.shuffle else np.arange(count)


def train_size(
  size: Size, config: DataConfig, seed: int, epoch: int, index: int, count: int
) -> Size:
  """The size to which training scales an image of `size`, before any jitter."""
  if config.short_side is None:
    return size
  short = config.short_side[_scale_draws(seed, epoch, count, len(config.short_side))[index]]
  return instances.short_side_size(size, short, config.longest_side)


@functools.lru_cache(maxsize=4)
def _scale_draws(seed: int, epoch: int, count: int, choices: int) -> np.ndarray:
  return np.random.default_rng([_SCALE, seed, epoch]).integers(choices, size=count)


def _train_batch(
  examples: _Examples, plan: Plan, seed: int, rows: range, step: int
) -> tuple[dict[str, Any], list[str]]:
  """The rows of one training batch that are this host's."""
  shape, chosen = plan.batch(step)
  parts, names, left_out = [], [], []
  for epoch, index in chosen[rows.start : rows.stop]:
    rng = np.random.default_rng([_AUGMENT, seed, epoch, index])
    example = examples[index]
    picture = _vary(rng, example.picture, examples.config, seed, epoch, index, len(examples))
    if rng.random() < examples.config.copy_paste:
      other = int(rng.integers(len(examples)))
      pasted = examples[other].picture
      pasted = _vary(rng, pasted, examples.config, seed, epoch, other, len(examples))
      picture = instances.paste(rng, picture, pasted)
    picture = picture._replace(
      image=transforms.shift_colour(rng, picture.image, examples.config.augment)
    )
    names.append(example.name)
    part, without = _pad(picture, shape, examples.config, example.name)
    parts.append({**part, 'draw': rng.integers(2**32, dtype=np.uint32), 'index': np.int32(index)})
    left_out.append(without)
  batch = _stack(parts)
  return {**batch, 'valid': np.ones(len(parts), bool), 'left_out': np.array(left_out)}, names


def _vary(
  rng: np.random.Generator,
  picture: Picture,
  config: DataConfig,
  seed: int,
  epoch: int,
  index: int,
  count: int,
) -> Picture:
  """Scale, jitter and flip."""
  if config.jitter is not None:
    shape, factor = config.shapes[0], rng.uniform(*config.jitter)
    fitted = transforms.fit_size(picture.size, shape)
    size = tuple(max(1, round(side * factor)) for side in fitted)
    room = [max(0, side - limit) for side, limit in zip(size, shape, strict=True)]
    corner = tuple(int(rng.integers(extra + 1)) for extra in room)
    picture = instances.resize(picture, size, (corner, shape))
  else:
    size = train_size(picture.size, config, seed, epoch, index, count)
    picture = instances.resize(picture, size)
  if rng.random() < config.augment.flip_horizontal:
    picture = instances.flip(picture)
  return picture


def _pad(
  picture: Picture, shape: Size, config: DataConfig, name: str
) -> tuple[dict[str, Any], int]:
  """The example's part of a batch, and how many objects there was no room for.

  One of which no pixel is left has no mask to learn, and is none of them.
  """
  fit_shape(picture.size, (shape,), config, lambda: name)
  seen = picture.objects.take(np.flatnonzero(picture.objects.masks.any((1, 2))))
  objects = instances.largest(seen, config.instances)
  left_out = len(seen.classes) - len(objects.classes)
  picture = picture._replace(objects=objects)
  return instances.pad(picture, shape, config.instances, pipeline.mean_colour(config)), left_out


def _largest_size(examples: _Examples, indices: Sequence[int]) -> Size:
  """The smallest size that all of these images fit into."""
  height, width = np.max([examples.sizes[index] for index in indices], axis=0).tolist()
  return height, width


def _eval_batch(
  examples: _Examples, rows: range, batch: tuple[Size, Size, Sequence[int]]
) -> tuple[dict[str, Any], list[str]]:
  """The rows of one evaluation batch that are this host's."""
  shape, canvas, indices = batch
  config, colour = examples.config, pipeline.mean_colour(examples.config)
  parts, annotations, names = [], [], []
  for index in indices[rows.start : rows.stop]:
    example = examples[index]
    image, native = example.image, example.image.shape[:2]
    size = eval_size(native, config)
    if native != size:
      image = cv2.resize(image, size[::-1], interpolation=cv2.INTER_LINEAR).reshape(*size, -1)
    part = {
      'image': transforms.pad(image, shape, colour),
      'size': np.array(size, np.int32),
      'index': np.int32(index),
    }
    if example.segments is not None:
      padded = panoptic.pad(example.segments, canvas, config.segments, example.name)
      part |= {'segments': padded, 'native': np.array(native, np.int32)}
    parts.append(part)
    annotations.append(
      {
        'image_id': example.image_id,
        'height': native[0],
        'width': native[1],
        'scale': (size[0] / native[0], size[1] / native[1]),
        'objects': example.annotations,
      }
    )
    names.append(example.name)
  missing = len(rows) - len(parts)
  blank = {
    'image': np.zeros((*shape, examples.spec.channels), np.uint8),
    'size': np.array(shape, np.int32),
    'index': np.int32(0),
  }
  if config.segments is not None:
    nothing = panoptic.void(canvas, config.segments)
    blank |= {'segments': nothing, 'native': np.array(canvas, np.int32)}
  return (
    {
      **_stack([*parts, *[blank] * missing]),
      'valid': np.arange(len(rows)) < len(parts),
      'annotations': annotations + [None] * missing,
    },
    names + [''] * missing,
  )


def _stack(parts: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
  """The batch of some examples' parts."""
  batch: dict[str, Any] = {}
  for key in parts[0]:
    column = [part[key] for part in parts]
    batch[key] = jax.tree.map(lambda *fields: np.stack(fields), *column)
  return batch


def _no_objects(size: Size) -> instances.Objects:
  return instances.decode([], size)


class _LeftOut:
  """Tells of the objects that there was no room for: at the first, and in all at the end."""

  def __init__(self, count: int, report: Callable[[str], None] | None):
    self._count = count
    self._report = report or (lambda text: None)
    self._objects = self._images = 0

  def add(self, names: Sequence[str], left_out: np.ndarray) -> None:
    for name, number in zip(names, left_out.tolist(), strict=True):
      if number and not self._objects:
        self._report(
          f'{name} has {self._count + number} objects: the largest config.data.instances='
          f'{self._count} are kept, here and in other images (how many: at the end)'
        )
      self._objects += number
      self._images += number > 0

  def close(self) -> None:
    if self._objects:
      self._report(
        f'config.data.instances={self._count} left out {self._objects} objects of {self._images} '
        'images that this process trained on'
      )
      self._objects = 0
