"""From a prepared data set to batches of NumPy arrays, on Grain.

Position p of the training stream is example `permutation(seed, p // n)[p % n]` of the split of n
examples, augmented by a generator seeded with (seed, epoch, example index). So a batch depends on
the seed and the step alone: a run goes on anywhere, on any number of hosts and workers.

Batches are dicts of what `segjax.types.Batch` says, each with the names of its examples.
"""

import collections
import contextlib
import dataclasses
import functools
import itertools
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from typing import Any, Literal, NamedTuple, TypeVar

import cv2
import grain
import jax
import numpy as np
import tensorflow_datasets as tfds
from absl import flags

from segjax.data import datasets, images, instances, transforms
from segjax.data.formats import panoptic
from segjax.data.transforms import Augment, Size
from segjax.data.weight_map import border_weight_map
from segjax.types import IGNORE_LABEL, SegjaxError, Segments

T = TypeVar('T')
U = TypeVar('U')
NamedBatch = tuple[dict[str, np.ndarray], list[str]]

# First words of the generators' seeds, so that no two uses share a stream.
_SHUFFLE, _AUGMENT = 0, 1
# Images of different native sizes are padded to multiples of this for evaluation.
_SIZE_MULTIPLE = 32
# Batches that are read at once by threads, in the absence of worker processes.
_READ_THREADS = 4
# Batches that wait ready in each worker process.
_WORKER_BUFFER = 2
# Arrays of this many bytes come from a worker through shared memory, smaller ones through a pipe.
_SHARED_MEMORY_FROM = 2**14
# Weight maps are kept in memory up to this many bytes a process.
_WEIGHT_MAP_BYTES = 2**28


@dataclasses.dataclass(frozen=True)
class DataConfig:
  """Keys of `config.data`.

  Attributes:
    name: of the data set: one of segjax's own, with its config after a slash, or one of TFDS.
    dir: folder of prepared data sets; None for `segjax.data.datasets.default_data_dir()`.
    source: folder of the raw files, for a data set that is not downloaded.
    eval_name: another data set, of the same classes, to evaluate on; None for `name`.
    eval_source: its `source`.
    train_split: split to train on, in TFDS's notation: 'train', 'train[:80%]'.
    eval_split: split to evaluate on.
    batch_size: examples in a training step, over all hosts.
    eval_batch_size: examples in an evaluation step, over all hosts; None for `batch_size`.
    image_size: (height, width) to which images and labels are resized; None leaves them as they
      are.
    resize: 'stretch' to `image_size`, or 'fit': keep the aspect ratio and pad below and to the
      right, the image with its mean colour, the label with `IGNORE_LABEL`.
    crop_size: (height, width) of the random crop to train on; None for the whole image.
    augment: what training examples are varied by, the keys of `transforms.Augment`; None for
      nothing.
    weight_map: arguments of `weight_map.border_weight_map`, which gives the batch a weight for each
      pixel; None for none. It is computed once for each image, as U-Net's section 3 has it, at
      `image_size`, and augmented along with the label.
    shuffle: whether each epoch has an order of its own.
    workers: processes that prepare training batches; 0 for threads of the main process.
    mean: subtracted from pixel values 0..255: one number, or one for each channel.
    std: divides what is left, likewise.
    image_key: the feature that is the image.
    label_key: the feature that is the label map, class indices or `IGNORE_LABEL`. Of a panoptic
      data set, which has no `label`, it is the class of each pixel's segment; see `panoptic_key`.
    name_key: the text feature that names an example; None for its index.
    label_offset: added to label values other than `IGNORE_LABEL`; below 0 becomes `IGNORE_LABEL`.
    num_classes: for a data set whose features do not say it.
    class_names: in place of the data set's own.
    instances: N, the most objects of an image, for instance tasks: of more the largest are kept,
      and the rest is counted and told; None for none. The keys below are for these tasks, which
      take `short_side` and `shapes` in place of `image_size`, `resize`, `crop_size` and `augment`'s
      geometry but for the horizontal flip.
    short_side: images are scaled so that their shorter side is one of these, drawn in training, the
      largest in evaluation; None leaves them as they are.
    longest_side: but their longer side no larger than this.
    jitter: in place of `short_side`: images are scaled to fit the first of `shapes`, in training by
      a factor uniform in [low, high] besides, and cropped to it (large-scale jitter, arXiv
      2012.07177).
    copy_paste: probability with which training pastes objects of another image onto one (arXiv
      2012.07177).
    shapes: (height, width) to which images are padded: the smallest that fits; None for the
      smallest multiples of 32. Batches are of images of one shape.
    objects_key: the feature with the objects.
    things: the class indices of things, for a data set that does not say which those are.
    category_ids: in place of the data set's own: the number of each class, stuff or not, in files
      of COCO's format, which `segjax predict` writes; None, where the data set has none either,
      counts from 1.
    segments: S, the most segments of an image, for panoptic tasks, which set `instances` too: more
      is an error in evaluation; None for none. Their objects are those of their segments.
    panoptic_key: the feature with the picture of segment ids, see `segjax.data.formats.panoptic`. This and
      the keys below are for dense tasks too, of a data set without a label of its own.
    segments_key: the feature with the list of segments; None if a pixel of the picture is 256 times
      its class and a number, as in scenes: classes are then those of `objects_key`.
    crowd_key: the feature of a segment that says whether it is a crowd.
  """

  name: str
  dir: str | None = None
  source: str | None = None
  eval_name: str | None = None
  eval_source: str | None = None
  train_split: str = 'train'
  eval_split: str = 'val'
  batch_size: int = 8
  eval_batch_size: int | None = None
  image_size: tuple[int, int] | None = None
  resize: Literal['stretch', 'fit'] = 'stretch'
  crop_size: tuple[int, int] | None = None
  augment: Augment | Mapping[str, Any] | None = None
  weight_map: Mapping[str, Any] | None = None
  shuffle: bool = True
  workers: int = 0
  mean: tuple[float, ...] = (127.5,)
  std: tuple[float, ...] = (127.5,)
  image_key: str = 'image'
  label_key: str = 'label'
  name_key: str | None = 'file_name'
  label_offset: int = 0
  num_classes: int | None = None
  class_names: tuple[str, ...] | None = None
  instances: int | None = None
  short_side: tuple[int, ...] | None = None
  longest_side: int = 1333
  jitter: tuple[float, float] | None = None
  copy_paste: float = 0.0
  shapes: tuple[tuple[int, int], ...] | None = None
  objects_key: str = 'objects'
  things: tuple[int, ...] | None = None
  category_ids: tuple[int, ...] | None = None
  segments: int | None = None
  panoptic_key: str = 'panoptic'
  segments_key: str | None = 'segments'
  crowd_key: str = 'iscrowd'

  def __post_init__(self):
    if not isinstance(self.augment, Augment):
      object.__setattr__(self, 'augment', Augment(**(self.augment or {})))
    tuples = ('image_size', 'crop_size', 'mean', 'std', 'class_names', 'short_side', 'jitter')
    for key in (*tuples, 'things', 'category_ids'):
      if (value := getattr(self, key)) is not None:
        object.__setattr__(self, key, tuple(value))
    if self.shapes is not None:
      object.__setattr__(self, 'shapes', tuple(tuple(shape) for shape in self.shapes))
    for key in ('image_size', 'crop_size'):
      value = getattr(self, key)
      if value is not None and (len(value) != 2 or min(value) < 1):
        raise SegjaxError(f'config.data.{key}={value} must be (height, width) in pixels, or none')
    for key, least in (('batch_size', 1), ('eval_batch_size', 1), ('workers', 0)):
      value = getattr(self, key)
      if value is not None and value < least:
        raise SegjaxError(f'config.data.{key}={value} must be {least} or more')
    if self.resize not in ('stretch', 'fit'):
      raise SegjaxError(f"config.data.resize={self.resize!r} must be 'stretch' or 'fit'")
    if min(self.std, default=0) <= 0:
      raise SegjaxError(f'config.data.std={self.std} must hold positive numbers')
    self._check_instances()

  def _check_instances(self) -> None:
    """The keys of instance tasks, which dense tasks may not set, and the other way round."""
    defaults = {f.name: f.default for f in dataclasses.fields(self)}
    ours = ('short_side', 'jitter', 'copy_paste', 'shapes', 'things', 'category_ids', 'segments')
    theirs = ('image_size', 'resize', 'crop_size', 'weight_map')
    keys, kind, mend = ours, 'instance', 'set config.data.instances'
    if self.instances is not None:
      keys, kind, mend = theirs, 'dense', 'take config.data.short_side and shapes'
    for key in keys:
      if getattr(self, key) != defaults[key]:
        raise SegjaxError(f'config.data.{key} is for {kind} tasks: {mend}')
    if self.instances is None:
      return
    moved = dataclasses.replace(
      self.augment, flip_horizontal=0, brightness=0, contrast=0, saturation=0, hue=0
    )
    if moved != Augment():
      raise SegjaxError(
        'config.data.augment: boxes follow a horizontal flip alone: leave out the other moves, or '
        'take config.data.jitter'
      )
    if self.instances < 1 or self.longest_side < 1:
      raise SegjaxError('config.data.instances and longest_side must be 1 or more')
    if self.segments is not None and self.segments < 1:
      raise SegjaxError(f'config.data.segments={self.segments} must be 1 or more')
    if self.short_side is not None and min(self.short_side, default=0) < 1:
      raise SegjaxError(f'config.data.short_side={self.short_side} must hold sizes in pixels')
    if any(len(shape) != 2 or min(shape) < 1 for shape in self.shapes or ()) or self.shapes == ():
      raise SegjaxError(f'config.data.shapes={self.shapes} must be ((height, width), …) in pixels')
    if self.jitter is not None and self.short_side is not None:
      raise SegjaxError('config.data.jitter and short_side both scale the image: set one to none')
    if self.jitter is not None and (not self.shapes or not 0 < self.jitter[0] <= self.jitter[1]):
      raise SegjaxError(
        f'config.data.jitter={self.jitter} must be (low, high) with 0 < low <= high, and '
        'config.data.shapes say to what it crops'
      )
    if not 0 <= self.copy_paste <= 1:
      raise SegjaxError(f'config.data.copy_paste={self.copy_paste} must lie in [0, 1]')


def train_batches(
  builder: tfds.core.DatasetBuilder,
  config: DataConfig,
  spec: datasets.DatasetSpec,
  *,
  seed: int,
  start_step: int = 0,
  margin: int = 0,
  process_index: int = 0,
  process_count: int = 1,
) -> Generator[NamedBatch, None, None]:
  """The endless stream of training batches, from that of `start_step` on.

  Every batch is full: epochs follow each other without a gap. With `config.workers` above 0, these
  processes take turns at preparing a batch, and closing the iterator ends them; the main script
  must then be guarded by `if __name__ == '__main__'`, as `multiprocessing` demands.

  Args:
    builder: of a prepared data set, from `datasets.load`.
    config: what to read and how.
    spec: from `datasets.spec`.
    seed: of the order and the augmentation, not negative.
    start_step: batches that are left out, at no cost.
    margin: pixels that images extend beyond their labels on each side, mirrored where they pass the
      border; for networks without padding.
    process_index: which contiguous part of every batch is this host's.
    process_count: number of hosts.

  Yields:
    (batch, names) with image f32[b, H + 2·margin, W + 2·margin, C], label i32[b, H, W], valid
    bool[b], all True, and weight f32[b, H, W] if the config has a weight map;
    b = batch_size / process_count.

  Raises:
    SegjaxError: a batch that does not divide among the hosts, an unknown or empty split; while
      iterating: what is wrong with an example, by its name.
  """
  if seed < 0:
    raise SegjaxError(f'config.train.seed={seed} must not be negative')
  examples = _Examples(builder, config.train_split, config, spec)
  rows = host_rows('batch_size', config.batch_size, process_index, process_count)
  make = functools.partial(_train_batch, examples, seed, margin, rows)
  return stream(grain.MapDataset.range(start_step, 2**62).map(make), config, config.workers)


def eval_batches(
  builder: tfds.core.DatasetBuilder,
  config: DataConfig,
  spec: datasets.DatasetSpec,
  *,
  split: str | None = None,
  process_index: int = 0,
  process_count: int = 1,
) -> Generator[NamedBatch, None, None]:
  """Every example of a split once, resized but neither cropped nor augmented.

  Images of different native sizes are padded like `resize='fit'` to multiples of 32, and come
  grouped by padded size. Each group's last batch is filled up with examples that are not `valid`:
  image and weight 0, label `IGNORE_LABEL`, name ''. Every host gets as many batches, of the same
  shapes. Threads read, whatever `config.workers` says: no process starts for each evaluation.

  Args:
    builder, config, spec, process_index, process_count: as for `train_batches`.
    split: in place of `config.eval_split`.

  Yields:
    (batch, names) with image f32[b, H, W, C], label i32[b, H, W], valid bool[b], and weight
    f32[b, H, W] if the config has a weight map; b = eval_batch_size / process_count.

  Raises:
    SegjaxError: as `train_batches`.
  """
  examples = _Examples(builder, split or config.eval_split, config, spec)
  batch_size = config.eval_batch_size or config.batch_size
  rows = host_rows('eval_batch_size', batch_size, process_index, process_count)
  batches = [
    (size, indices[start : start + batch_size])
    for size, indices in _size_groups(examples).items()
    for start in range(0, len(indices), batch_size)
  ]
  make = functools.partial(_eval_batch, examples, rows)
  return stream(grain.MapDataset.source(batches).map(make), config, workers=0)


def count_labels(
  builder: tfds.core.DatasetBuilder, config: DataConfig, spec: datasets.DatasetSpec
) -> tuple[np.ndarray, np.ndarray]:
  """Counts the training split's labels at their native size, for class weights.

  Returns:
    i64[C], pixels of each class; i64[C], pixels of the images in which the class occurs. Pixels of
    `IGNORE_LABEL` count in neither.
  """
  examples = _Examples(builder, config.train_split, config, spec)
  pixels = np.zeros((2, spec.num_classes), np.int64)
  for i in range(len(examples)):
    found = np.bincount(examples.label(i).ravel(), minlength=256)[: spec.num_classes]
    pixels += found, np.where(found > 0, found.sum(), 0)
  return pixels[0], pixels[1]


def prepare_image(
  image: np.ndarray, config: DataConfig
) -> tuple[np.ndarray, Callable[[np.ndarray], np.ndarray]]:
  """An image as the evaluation would read it, and the way back.

  Args:
    image: uint8[H, W, C] of any size.
    config: its `image_size`, `resize`, `mean` and `std` are used.

  Returns:
    f32[H', W', C], and a function from float [H', W', K], scores on it, to [H, W, K].
  """
  resized = _resize(image, config)
  # As in evaluation, so that many sizes make few shapes.
  size = config.image_size or tuple(
    -(-s // _SIZE_MULTIPLE) * _SIZE_MULTIPLE for s in image.shape[:2]
  )

  def restore(scores: np.ndarray) -> np.ndarray:
    inside = np.ascontiguousarray(scores[: resized.shape[0], : resized.shape[1]])
    if inside.shape[:2] == image.shape[:2]:
      return inside
    back = cv2.resize(inside, image.shape[1::-1], interpolation=cv2.INTER_LINEAR)
    return back.reshape(*image.shape[:2], -1)

  padded = transforms.pad(resized, size, mean_colour(config))
  return normalize(padded[None], config)[0], restore


def prefetch_to_device(
  batches: Generator[T, None, None], put: Callable[[T], U], size: int = 2
) -> Generator[U, None, None]:
  """Keeps `size` results of `put` ahead, so that transfers overlap with computation.

  Args:
    batches: closed when the returned generator is.
    put: starts the transfer of one batch and returns at once, as `jax.device_put` does.
    size: how many are ahead, 1 or more.
  """
  with contextlib.closing(batches):
    moved = map(put, batches)
    ahead = collections.deque(itertools.islice(moved, size))
    while ahead:
      yield ahead.popleft()
      ahead.extend(itertools.islice(moved, 1))


class _Example(NamedTuple):
  """name; image u8[H, W, C]; label u8[H, W]; weight f32[H, W] or None; resized, not yet padded."""

  name: str
  image: np.ndarray
  label: np.ndarray
  weight: np.ndarray | None


class Records:
  """The records of a split, of which only the features that are asked for are parsed.

  Pickles small.

  Args:
    builder: of a prepared data set.
    split: of it.
    config: says what the image and the names are.
    spec: of the data set.
    keys: features to read beside the image and the name.
    encoded: those of them that are pictures, which are handed on as they are.

  Raises:
    SegjaxError: an unknown or empty split; mean and std that are not those of such images.
  """

  def __init__(
    self,
    builder: tfds.core.DatasetBuilder,
    split: str,
    config: DataConfig,
    spec: datasets.DatasetSpec,
    keys: Iterable[str],
    encoded: Iterable[str],
  ):
    check_channels(config, spec)
    datasets.count_examples(builder, split, spec.name)
    self._config = config
    # The records' bytes; what is in them is decoded by Pillow.
    self._records = builder.as_data_source(
      split, deserialize_method=tfds.decode.DeserializeMethod.RAW_BYTES
    ).data_source
    header = {config.image_key, config.name_key} - {None}
    features = builder.info.features
    choose = lambda names: tfds.features.FeaturesDict({k: features[k] for k in sorted(names)})
    self._features, self._header = choose(header | set(keys)), choose(header)
    self._skip = {key: tfds.decode.SkipDecoding() for key in (config.image_key, *encoded)}

  def __len__(self) -> int:
    return len(self._records)

  def read(self, index: int) -> tuple[dict[str, Any], str]:
    """The features of an example, and its name."""
    return self._parse(self._features, index)

  def name(self, index: int) -> str:
    """The name of an example."""
    return self._parse(self._header, index)[1]

  def size(self, index: int) -> Size:
    """The image's native (height, width), from its header."""
    record, name = self._parse(self._header, index)
    return images.read_size(record[self._config.image_key], f'the image of {name}')

  def _parse(self, features: tfds.features.FeaturesDict, index: int) -> tuple[dict[str, Any], str]:
    skip = {key: value for key, value in self._skip.items() if key in features}
    record = features.deserialize_example_np(self._records[index], decoders=skip)
    key = self._config.name_key
    return record, f'example {index}' if key is None else record[key].decode()


class _Examples:
  """Random access to the examples of a split. Pickles small: what is cached stays behind."""

  def __init__(
    self,
    builder: tfds.core.DatasetBuilder,
    split: str,
    config: DataConfig,
    spec: datasets.DatasetSpec,
  ):
    self.config = config
    self.spec = spec
    self._label_of_segments = datasets.label_is_of_segments(builder, config)
    label, keys = config.label_key, {config.label_key}
    if self._label_of_segments:
      label, keys = config.panoptic_key, {config.panoptic_key, config.segments_key} - {None}
    self.records = Records(builder, split, config, spec, keys=keys, encoded=(label,))
    self._weights: dict[int, np.ndarray] = {}

  def __getstate__(self) -> dict[str, Any]:
    return {**vars(self), '_weights': {}}

  def __len__(self) -> int:
    return len(self.records)

  def __getitem__(self, index: int) -> _Example:
    record, name = self.records.read(index)
    encoded = record[self.config.image_key]
    image = images.decode_image(encoded, self.spec.channels, f'the image of {name}')
    label = self._decode_label(record, name)
    if image.shape[:2] != label.shape:
      raise SegjaxError(
        f'{name}: the image is {image.shape[0]}x{image.shape[1]} and its label '
        f'{label.shape[0]}x{label.shape[1]} pixels (height x width): mend the data set'
      )
    image = _resize(image, self.config)
    label = transforms.resize_label(label, image.shape[:2])
    return _Example(name, image, label, self._weight(index, label))

  def label(self, index: int) -> np.ndarray:
    """u8[H, W], at its native size."""
    return self._decode_label(*self.records.read(index))

  def _decode_label(self, record: Mapping[str, Any], name: str) -> np.ndarray:
    what = f'the label of {name}'
    if self._label_of_segments:
      label = instances.segment_label(self._segments(record, name))
    else:
      label = images.decode_label(record[self.config.label_key], what)
    if self.config.label_offset or label.dtype != np.uint8:
      moved = label.astype(np.int64) + self.config.label_offset
      label = np.where((label == IGNORE_LABEL) | (moved < 0), IGNORE_LABEL, moved)
    wrong = (label >= self.spec.num_classes) & (label != IGNORE_LABEL)
    if wrong.any():
      raise SegjaxError(
        f'{what} has the value {label[wrong][0]} but {self.spec.name} has '
        f'{self.spec.num_classes} classes: mend it, or set config.data.label_offset'
      )
    return label.astype(np.uint8)

  def _segments(self, record: Mapping[str, Any], name: str) -> Segments:
    return panoptic.read_example(
      record,
      f'the segments of {name}',
      panoptic_key=self.config.panoptic_key,
      segments_key=self.config.segments_key,
      crowd_key=self.config.crowd_key,
    )

  def _weight(self, index: int, label: np.ndarray) -> np.ndarray | None:
    if self.config.weight_map is None:
      return None
    weight = self._weights.get(index)
    if weight is None:
      weight = border_weight_map(label, **self.config.weight_map)
      # Where not all fit, keeping the first ones is as good in a shuffled order as any other rule.
      if (len(self._weights) + 1) * weight.nbytes <= _WEIGHT_MAP_BYTES:
        self._weights[index] = weight
    return weight


def _train_batch(examples: _Examples, seed: int, margin: int, rows: range, step: int) -> NamedBatch:
  """The rows of one training batch that are this host's."""
  first = step * examples.config.batch_size
  parts = [_train_example(examples, seed, margin, first + row) for row in rows]
  for part in parts:
    if part.label.shape != parts[0].label.shape:
      raise SegjaxError(
        f'{parts[0].name} and {part.name} differ in size, {parts[0].label.shape} and '
        f'{part.label.shape}: set config.data.crop_size or config.data.image_size'
      )
  return _collate(parts, len(rows), parts[0].image.shape[:2], parts[0].label.shape, examples)


def _train_example(examples: _Examples, seed: int, margin: int, position: int) -> _Example:
  config = examples.config
  epoch, index = divmod(position, len(examples))
  if config.shuffle:
    index = int(permutation(seed, epoch, len(examples))[index])
  example = examples[index]
  if config.crop_size is None and config.image_size is not None:
    example = _pad(example, config.image_size, config)
  image, label, weight = transforms.augment_example(
    np.random.default_rng([_AUGMENT, seed, epoch, index]),
    example.image,
    example.label,
    example.weight,
    out_size=config.crop_size or example.label.shape,
    augment=config.augment,
    margin=margin,
  )
  return _Example(example.name, image, label, weight)


@functools.lru_cache(maxsize=4)
def permutation(seed: int, epoch: int, count: int) -> np.ndarray:
  return np.random.default_rng([_SHUFFLE, seed, epoch]).permutation(count)


def _eval_batch(examples: _Examples, rows: range, batch: tuple[Size, Sequence[int]]) -> NamedBatch:
  """The rows of one evaluation batch that are this host's."""
  size, indices = batch
  parts = [_pad(examples[i], size, examples.config) for i in indices[rows.start : rows.stop]]
  return _collate(parts, len(rows), size, size, examples)


def _size_groups(examples: _Examples) -> dict[Size, Sequence[int]]:
  """The examples that can share batches, by the size that they are padded to."""
  if examples.config.image_size is not None:
    return {examples.config.image_size: range(len(examples))}
  sizes = [examples.records.size(i) for i in range(len(examples))]
  if len(set(sizes)) > 1:
    sizes = [tuple(-(-side // _SIZE_MULTIPLE) * _SIZE_MULTIPLE for side in size) for size in sizes]
  groups: dict[Size, list[int]] = {}
  for index, size in enumerate(sizes):
    groups.setdefault(size, []).append(index)
  return groups


def _collate(
  parts: Sequence[_Example], count: int, image_size: Size, label_size: Size, examples: _Examples
) -> NamedBatch:
  """A batch of `count` examples, the last ones not valid where `parts` are fewer; see `_finish`."""
  batch = {
    'image': np.zeros((count, *image_size, examples.spec.channels), np.uint8),
    'label': np.full((count, *label_size), IGNORE_LABEL, np.uint8),
    'valid': np.arange(count) < len(parts),
  }
  if examples.config.weight_map is not None:
    batch['weight'] = np.zeros((count, *label_size), np.float32)
  for row, part in enumerate(parts):
    batch['image'][row] = part.image
    batch['label'][row] = part.label
    if part.weight is not None:
      batch['weight'][row] = part.weight
  return batch, [part.name for part in parts] + [''] * (count - len(parts))


def _finish(config: DataConfig, item: NamedBatch) -> NamedBatch:
  """From the bytes that processes exchange to the types of a `Batch`, four times as large.

  All arrays are new: shared memory that outlives the iterator would leak.
  """
  batch = {
    key: value if isinstance(value, list) else jax.tree.map(np.array, value)
    for key, value in item[0].items()
    if key != 'image'
  }
  if 'label' in batch:
    batch['label'] = batch['label'].astype(np.int32)
  batch['image'] = normalize(item[0]['image'], config)
  batch['image'][~batch['valid']] = 0
  return batch, item[1]


def _resize(image: np.ndarray, config: DataConfig) -> np.ndarray:
  """uint8[H, W, C] as `config.image_size` and `config.resize` want it, before padding."""
  if config.image_size is None:
    return image
  size = config.image_size
  if config.resize == 'fit':
    size = transforms.fit_size(image.shape[:2], size)
  return transforms.resize_image(image, size)


def _pad(example: _Example, size: Size, config: DataConfig) -> _Example:
  weight = None if example.weight is None else transforms.pad(example.weight, size, 0)
  return example._replace(
    image=transforms.pad(example.image, size, mean_colour(config)),
    label=transforms.pad(example.label, size, IGNORE_LABEL),
    weight=weight,
  )


def check_channels(config: DataConfig, spec: datasets.DatasetSpec) -> None:
  """Raises a SegjaxError where mean and std are not those of images of this data set."""
  for key in ('mean', 'std'):
    if len(getattr(config, key)) not in (1, spec.channels):
      raise SegjaxError(
        f'config.data.{key}={getattr(config, key)} must be 1 number, or 1 for each of the '
        f'{spec.channels} channels of {spec.name}'
      )


def mean_colour(config: DataConfig) -> np.ndarray:
  return np.rint(config.mean).clip(0, 255).astype(np.uint8)


def normalize(image: np.ndarray, config: DataConfig) -> np.ndarray:
  """uint8[B, H, W, C] → f32[B, H, W, C], (image - mean) / std."""
  width, channels = image.shape[2:]
  table = _normalize_table(config.mean, config.std, channels)
  return cv2.LUT(image.reshape(-1, width, channels), table).reshape(image.shape)


@functools.lru_cache(maxsize=4)
def _normalize_table(mean: tuple[float, ...], std: tuple[float, ...], channels: int) -> np.ndarray:
  """f32[1, 256, C]: what each pixel value becomes."""
  values = np.repeat(np.arange(256, dtype=np.float32)[:, None], channels, axis=1)
  return ((values - np.float32(mean)) / np.float32(std))[None]


def host_rows(key: str, batch_size: int, process_index: int, process_count: int) -> range:
  """Which rows of a global batch are those of one host."""
  if batch_size % process_count:
    raise SegjaxError(
      f'config.data.{key}={batch_size} does not divide among {process_count} processes: set a '
      'multiple'
    )
  rows = batch_size // process_count
  return range(process_index * rows, (process_index + 1) * rows)


def stream(
  batches: grain.MapDataset[NamedBatch], config: DataConfig, workers: int
) -> Generator[NamedBatch, None, None]:
  """The batches in order, prepared ahead by threads or by worker processes."""
  if workers:
    if not flags.FLAGS.is_parsed():
      flags.FLAGS.mark_as_parsed()  # Grain reads its flags before it starts a worker.
    serial = grain.ReadOptions(num_threads=0, prefetch_buffer_size=0)
    dataset = grain.experimental.WithOptionsIterDataset(
      batches.to_iter_dataset(serial),
      grain.experimental.DatasetOptions(min_shm_size=_SHARED_MEMORY_FROM),
    ).mp_prefetch(
      grain.MultiprocessingOptions(num_workers=workers, per_worker_buffer_size=_WORKER_BUFFER),
      worker_init_fn=_start_worker,
    )
  else:
    dataset = batches.to_iter_dataset(
      grain.ReadOptions(num_threads=_READ_THREADS, prefetch_buffer_size=_READ_THREADS)
    )
  iterator = iter(dataset.map(functools.partial(_finish, config)))
  try:
    yield from iterator
  except RuntimeError as e:
    if 'Worker process was terminated' not in str(e):
      raise
    raise SegjaxError(
      f'a process that prepares batches died ({str(e).partition(". ")[0]}), probably for lack of '
      'memory or of shared memory (/dev/shm): lower config.data.workers'
    ) from e
  finally:
    iterator.close()


def _start_worker(index: int, count: int) -> None:
  """Called first in each worker process."""
  del index, count
  cv2.setNumThreads(1)
  # A signal to the whole process group is the main process's to answer: it still needs batches
  # until it has saved its state, and ends its workers itself.
  signal.signal(signal.SIGINT, signal.SIG_IGN)
  signal.signal(signal.SIGTERM, signal.SIG_IGN)
  # Where it cannot, because it was killed, they end too: Grain's would wait for ever.
  threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
  multiprocessing.parent_process().join()
  os._exit(1)
