"""From a prepared data set to batches of NumPy arrays, for every task, on Grain.

A training example is read (`read`), resized and warped (`geometry`) as its generator, seeded with
(seed, epoch, example index), samples it (`augment`), and packed (`batch`) with others of its shape
(`order`). So a batch depends on the seed and the step alone: a run resumes anywhere, on any number
of hosts and workers.

Batches are dicts of what `segjax.types.Batch` says, with the pixels of images as they are: the
network's program normalizes them. With each come the names of its examples. In training they have
`seed` u32[B], the seed of what the network samples for each example. In evaluation, and with
objects, they have `size` i32[B, 2], of the image inside its padding. With objects they also have

  in training    `instances`
  in evaluation  `annotations`, a list with the entry of each example that `segjax.metrics.coco`
                 describes, None where not valid

With segments, the label is the class of each pixel's segment and the objects are the things among
them. An evaluation batch has the `segments` themselves in place of the label, at the images' own
sizes, and `native` i32[B, 2], these sizes: PQ is measured there, as public evaluations do. They are
padded to the largest of the images that share a padded shape.
"""

import collections
import contextlib
import dataclasses
import functools
import itertools
import signal
from collections.abc import Callable, Generator
from typing import Any, TypeVar

import cv2
import grain
import numpy as np
import tensorflow_datasets as tfds
from absl import flags

from segjax.data import augment, batch, datasets, geometry, order, records
from segjax.data.config import InputConfig
from segjax.data.read import Example
from segjax.data.sample import Sample, Size
from segjax.data.source_reader import open_reader
from segjax.data.weight_map import border_weight_map
from segjax.types import IGNORE_LABEL, SegjaxError

T = TypeVar('T')
U = TypeVar('U')
NamedBatch = tuple[dict[str, Any], list[str]]

# First word of the generators' seeds, see `order`.
_AUGMENT = 1
# Batches that are read at once by threads, in the absence of worker processes.
_READ_THREADS = 4
# Batches that wait ready in each worker process.
_WORKER_BUFFER = 2
# Arrays of this many bytes come from a worker through shared memory, smaller ones through a pipe.
_SHARED_MEMORY_FROM = 2**14
# Weight maps are kept in memory up to this many bytes a process.
_WEIGHT_MAP_BYTES = 2**28
# OpenCV resizes at most this many channels at once.
_RESIZE_CHANNELS = 64


def train_batches(
  builder: tfds.core.DatasetBuilder,
  spec: datasets.DatasetSpec,
  config: InputConfig,
  *,
  seed: int,
  start_step: int = 0,
  margin: int = 0,
  process_index: int = 0,
  process_count: int = 1,
  report: Callable[[str], None] | None = None,
) -> Generator[NamedBatch, None, None]:
  """The endless stream of training batches, from that of `start_step` on.

  Every batch is full: epochs follow each other without a gap. With `config.batch.workers` above 0,
  these processes take turns at preparing a batch, and closing the iterator ends them; the main
  script must then be guarded by `if __name__ == '__main__'`, as `multiprocessing` demands.

  Images without objects are mirrored beyond their border, and centered where they are smaller than
  the crop. Images with objects are padded with the mean color below and to the right.

  Args:
    builder, spec: of a prepared data set, from `datasets.load` and `datasets.spec`.
    config: what to read and how.
    seed: of the order and the augmentation, not negative.
    start_step: batches that are left out, at no cost.
    margin: pixels that images extend beyond their labels on each side, for networks without
      padding, which take no objects.
    process_index, process_count: which contiguous part of every batch is this host's.
    report: called with a sentence on objects that are left out, because the task needs a mask that
      they do not have, because an image has more than `config.batch.max_objects` or because no
      pixel of them is left.

  Yields:
    (batch, names) with image u8[b, H + 2·margin, W + 2·margin, C], valid bool[b], all True, label
    i32[b, H, W], weight f32[b, H, W] if the config has a weight map, and what the module describes;
    b = batch size / process_count.

  Raises:
    SegjaxError: a batch that does not divide among the hosts, an unknown or empty split, a
      transform that cannot be imported; while iterating: what is wrong with an example, by its
      name, such as an image that fits into no shape.
  """
  for entry in config.augment.transforms:
    augment.find_transform(entry['name'])
  examples = _Examples(builder, config.data.train_split, spec, config)
  rows = _host_rows('size', config.batch.size, process_index, process_count)
  reader = examples.reader
  plan = order.TrainOrder(len(reader), lambda: reader.sizes, config, seed, reader.name)
  steps = grain.MapDataset.range(start_step, 2**62)
  training = _Training(examples, plan, seed, margin, rows)
  batches = _stream(steps.map(training.batch), config.batch.workers)
  report = report or (lambda text: None)
  for sentence in reader.left_out:
    report(sentence)
  return _report_left_out(batches, config, report)


def eval_batches(
  builder: tfds.core.DatasetBuilder,
  spec: datasets.DatasetSpec,
  config: InputConfig,
  *,
  split: str | None = None,
  multiple: int = 1,
  process_index: int = 0,
  process_count: int = 1,
) -> Generator[NamedBatch, None, None]:
  """Every example of a split once, resized but neither cropped nor augmented.

  Batches are of one padded shape. The last one of each shape is filled up with examples that are
  not `valid`: the image of the mean color, weight 0, label `IGNORE_LABEL`, name ''. Every host gets
  as many batches, of the same shapes. Threads read, whatever `config.batch.workers` says: no
  process starts for each evaluation.

  Args:
    builder, spec, config, process_index, process_count: as for `train_batches`.
    split: in place of `config.data.eval_split`.
    multiple: to which the size of a batch, in the config, is rounded up: that of the devices, and
      so of the hosts.

  Yields:
    (batch, names) with image u8[b, H, W, C], label i32[b, H, W], valid bool[b], weight
    f32[b, H, W] if the config has a weight map, and what the module describes;
    b = evaluation batch size / process_count.

  Raises:
    SegjaxError: as `train_batches`; while iterating, more than `config.batch.max_segments`.
  """
  config = _rounded_up(config, multiple)
  examples = _Examples(builder, split or config.data.eval_split, spec, config)
  reader = examples.reader
  rows = _host_rows('eval_size', config.batch.eval_size, process_index, process_count)
  batches = order.eval_order(len(reader), lambda: reader.sizes, config, reader.name)
  make = functools.partial(_eval_batch, examples, rows)
  return _stream(grain.MapDataset.source(batches).map(make), workers=0)


def train_shapes(
  builder: tfds.core.DatasetBuilder, spec: datasets.DatasetSpec, config: InputConfig
) -> dict[Size, str]:
  """The shapes of training batches without their margin; of each, the name of an example.

  Where sizes are sampled, those of the first epoch.

  Raises:
    SegjaxError: an unknown or empty split; an image that fits into no shape.
  """
  reader = open_reader(builder, config.data.train_split, config, spec)
  plan = order.TrainOrder(len(reader), lambda: reader.sizes, config, 0, reader.name)
  return {shape: reader.name(index) for shape, index in plan.shapes().items()}


def eval_shapes(
  builder: tfds.core.DatasetBuilder, spec: datasets.DatasetSpec, config: InputConfig, split: str
) -> dict[Size, str]:
  """The shapes of a split's evaluation batches; of each, the name of an example.

  Raises:
    SegjaxError: an unknown or empty split; an image that fits into no shape.
  """
  reader = open_reader(builder, split, config, spec)
  batches = order.eval_order(len(reader), lambda: reader.sizes, config, reader.name)
  return {chosen.shape: reader.name(chosen.indices[0]) for chosen in batches}


def check_objects(
  builder: tfds.core.DatasetBuilder,
  spec: datasets.DatasetSpec,
  config: InputConfig,
  split: str,
  report: Callable[[str], None],
) -> None:
  """Reports what of a split an evaluation leaves out: corrupt records, objects without a mask.

  Raises:
    SegjaxError: none has the mask that the task needs.
  """
  for sentence in open_reader(builder, split, config, spec).left_out:
    report(sentence)


def count_labels(
  builder: tfds.core.DatasetBuilder, spec: datasets.DatasetSpec, config: InputConfig
) -> tuple[np.ndarray, np.ndarray]:
  """Counts the training split's labels at their own size, for class weights.

  Returns:
    i64[C], pixels of each class; i64[C], pixels of the images in which the class occurs. Pixels of
    `IGNORE_LABEL` count in neither.
  """
  reader = open_reader(builder, config.data.train_split, config, spec)
  pixels = np.zeros((2, spec.num_classes), np.int64)
  for index in range(len(reader)):
    label = reader[index].label
    found = np.bincount(label[label != IGNORE_LABEL], minlength=spec.num_classes)
    pixels += found, np.where(found > 0, found.sum(), 0)
  return pixels[0], pixels[1]


def prepare_image(
  image: np.ndarray, config: InputConfig, common: Size | None = None
) -> tuple[dict[str, Any], Callable[[np.ndarray], np.ndarray]]:
  """An image as the evaluation would read it, and the way back.

  Args:
    image: u8[H, W, C] of any size.
    config: its sizes are used, and its mean for the padding.
    common: see `order.shape_alone`.

  Returns:
    A batch of one image: `image`, `size`, `native` and, in panoptic tasks, `segments` that are all
    void; and a function from f[H', W', K], scores on that image, to f[H, W, K].
  """
  native, data = image.shape[:2], config.data
  size = order.eval_size(native, config)
  shape = order.shape_alone(native, config, common)
  resized = geometry.resize_image(image, size, data.size.interpolation)
  fields = {'image': batch.Field((*shape, image.shape[2]), np.uint8, batch.mean_color(data))}
  packed = batch.pack(fields, [{'image': resized}], 1)
  found = {
    'image': packed['image'],
    'size': np.array([size], np.int32),
    'native': np.array([native], np.int32),
  }
  if 'segments' in config.annotations:
    # Of few shapes, so that many sizes compile few programs.
    canvas = batch.segments_field(order.multiple_shape(native), 1)
    found['segments'] = batch.pack({'segments': canvas}, [], 1)['segments']

  def restore(scores: np.ndarray) -> np.ndarray:
    inside = np.ascontiguousarray(scores[: size[0], : size[1]])
    if size == native:
      return inside
    parts = np.split(inside, range(_RESIZE_CHANNELS, inside.shape[2], _RESIZE_CHANNELS), axis=2)
    back = (cv2.resize(part, native[::-1], interpolation=cv2.INTER_LINEAR) for part in parts)
    return np.concatenate([part.reshape(*native, -1) for part in back], axis=2)

  return found, restore


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


# --- examples -------------------------------------------------------------------------------------


class _Examples:
  """The examples of a split, resized. Pickles small: weight maps that are kept stay behind."""

  def __init__(
    self,
    builder: tfds.core.DatasetBuilder,
    split: str,
    spec: datasets.DatasetSpec,
    config: InputConfig,
  ):
    self.config = config
    self.spec = spec
    self.reader = open_reader(builder, split, config, spec)
    self.color = batch.mean_color(config.data)
    self._weights: dict[tuple[int, Size], np.ndarray] = {}

  def __getstate__(self) -> dict[str, Any]:
    return {**vars(self), '_weights': {}}

  def resize(self, index: int, sample: Sample, size: Size) -> Sample:
    """Example `index`, resized, with its weight map if the config has one."""
    sample = geometry.resize(sample, size, self.config.data.size.interpolation)
    arguments = self.config.data.weight_map
    if arguments is None or sample.label is None:
      return sample
    weight = self._weights.get((index, size))
    if weight is None:
      weight = border_weight_map(sample.label, **arguments)
      # Where not all fit, keeping the first ones is as good in a shuffled order as any other rule.
      if (len(self._weights) + 1) * weight.nbytes <= _WEIGHT_MAP_BYTES:
        self._weights[index, size] = weight
    return sample._replace(weight=weight)


# --- training -------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class _Training:
  """What all training batches of a host share; see `train_batches`."""

  examples: _Examples
  plan: order.TrainOrder
  seed: int
  margin: int
  rows: range

  def batch(self, step: int) -> NamedBatch:
    """The rows of one training batch that are this host's."""
    config, reader = self.examples.config, self.examples.reader
    channels = self.examples.spec.channels
    shape, chosen = self.plan.batch(step)
    fields = batch.fields(config, channels, shape, train=True, margin=self.margin)
    found = [(reader[index], epoch) for epoch, index in chosen[self.rows.start : self.rows.stop]]
    parts = [self._part(example, epoch, shape) for example, epoch in found]
    return batch.pack(fields, parts, len(parts)), [example.name for example, _ in found]

  def _part(self, example: Example, epoch: int, shape: Size) -> dict[str, Any]:
    """One example of a batch."""
    config, reader = self.examples.config, self.examples.reader
    rng = np.random.default_rng([_AUGMENT, self.seed, epoch, example.index])
    stored = example.sample(train=True)
    sample = self._vary(rng, example, stored, epoch, shape)
    vanished = stored.objects and len(stored.objects.classes) - len(sample.objects.classes)
    if config.augment.copy_paste and rng.random() < config.augment.copy_paste:
      other = reader[int(rng.integers(len(reader)))]
      stored = other.sample(train=True)
      stored = stored._replace(objects=augment.choose_to_paste(rng, stored.objects))
      sample = augment.paste(sample, self._vary(rng, other, stored, epoch, sample.size))
    sample = sample._replace(image=augment.shift_color(rng, sample.image, config.augment))
    largest = shape[0] + 2 * self.margin, shape[1] + 2 * self.margin
    sample = augment.apply_transforms(rng, sample, config.augment.transforms, largest, example.name)
    part = {
      **sample._asdict(),
      'size': sample.size,
      'seed': rng.integers(2**32, dtype=np.uint32),
    }
    if sample.objects is None:
      return {**part, 'left_out': (0, 0, self._beyond_queries(sample.label, 0))}
    kept = batch.largest(sample.objects, config.most_objects)
    count = len(kept.classes)
    beyond = self._beyond_queries(sample.label, int((~kept.crowd).sum()))
    return {
      **part,
      'instances': batch.pack_objects(kept),
      'left_out': (len(sample.objects.classes) - count, vanished, beyond),
    }

  def _beyond_queries(self, label: np.ndarray | None, objects: int) -> int:
    """How many masks of an example, its objects and the other classes, have no query.

    `segjax.tasks.queries.make_targets` leaves out the smallest.
    """
    spec, config = self.examples.spec, self.examples.config
    things = spec.things if 'objects' in config.annotations else ()
    most = config.queries
    if most is None or label is None or objects + spec.num_classes - len(things) <= most:
      return 0
    found = np.bincount(label.ravel(), minlength=spec.num_classes)[: spec.num_classes] > 0
    found[list(things)] = False
    return max(0, objects + int(found.sum()) - most)

  def _vary(
    self, rng: np.random.Generator, example: Example, stored: Sample, epoch: int, shape: Size
  ) -> Sample:
    """Resizes and warps an example, to `shape` or, with objects, to at most that."""
    config, color = self.examples.config, self.examples.color
    objects, count = stored.objects, len(self.examples.reader)
    size = order.train_size(stored.size, config, self.seed, epoch, example.index, count)
    cropped = config.data.size.crop_size is not None
    if not cropped and config.augment.large_scale_jitter is None:
      order.fit_shape(size, config, lambda: example.name)
    sample = self.examples.resize(example.index, stored._replace(objects=None), size)
    if objects is None and not cropped:
      sample = geometry.pad_sample(sample, np.maximum(shape, size), color)
    clip = objects is not None
    move = augment.sample_warp(
      rng, config.augment, sample.size, shape, margin=self.margin, clip=clip
    )
    sample = sample._replace(objects=objects)
    return geometry.warp(sample, move, config.augment.interpolation, color if clip else None)


def _report_left_out(
  batches: Generator[NamedBatch, None, None], config: InputConfig, report: Callable[[str], None]
) -> Generator[NamedBatch, None, None]:
  """The batches without `left_out`, which it reports at the first object and at the end."""
  reasons = (
    config.most_objects_key,
    'no pixel left by resizing and augmentation',
    f'config.model.queries={config.queries}, one for each object and class; the largest are kept',
  )
  whats = 'objects', 'objects', 'masks'
  objects, images = np.zeros((2, 3), np.int64)
  with contextlib.closing(batches):
    try:
      for found, names in batches:
        counts = found.pop('left_out', np.zeros((0, 3), np.int64))
        for kind in np.flatnonzero((objects == 0) & counts.any(0)):
          row = np.flatnonzero(counts[:, kind])[0]
          report(
            f'{names[row]}: {counts[row, kind]} {whats[kind]} are left out ({reasons[kind]}), and '
            'others of other images (how many: at the end)'
          )
        objects += counts.sum(0)
        images += (counts > 0).sum(0)
        yield found, names
    finally:
      for kind in np.flatnonzero(objects):
        report(
          f'{objects[kind]} {whats[kind]} of {images[kind]} images that this process trained on '
          f'were left out ({reasons[kind]})'
        )


# --- evaluation -----------------------------------------------------------------------------------


def _eval_batch(examples: _Examples, rows: range, chosen: order.EvalBatch) -> NamedBatch:
  """The rows of one evaluation batch that are this host's."""
  config = examples.config
  channels = examples.spec.channels
  fields = batch.fields(config, channels, chosen.shape, train=False, canvas=chosen.canvas)
  parts, names = [], []
  for index in chosen.indices[rows.start : rows.stop]:
    example = examples.reader[index]
    stored = example.sample(train=False)
    sample = examples.resize(index, stored, order.eval_size(stored.size, config))
    part = {**sample._asdict(), 'size': sample.size, 'native': stored.size}
    if sample.segments is not None:
      most = config.batch.max_segments
      part['segments'] = batch.pack_segments(sample.segments, most, example.name)
    if 'objects' in config.annotations:
      part['annotations'] = _annotation(example, sample.size)
    parts.append(part)
    names.append(example.name)
  missing = len(rows) - len(parts)
  packed = batch.pack(fields, parts, len(rows))
  if 'objects' in config.annotations:
    packed['annotations'] = [part['annotations'] for part in parts] + [None] * missing
  return packed, names + [''] * missing


def _annotation(example: Example, size: Size) -> dict[str, Any]:
  """The entry of `annotations` of an image that is resized to `size`."""
  height, width = example.image.shape[:2]
  return {
    'image_id': example.image_id,
    'height': height,
    'width': width,
    'scale': (size[0] / height, size[1] / width),
    'objects': example.annotations,
  }


# --- threads, processes and hosts -----------------------------------------------------------------


def _rounded_up(config: InputConfig, multiple: int) -> InputConfig:
  """The config with an evaluation batch of a multiple."""
  size = config.batch.eval_size or config.batch.size
  eval_size = -(-size // multiple) * multiple
  return dataclasses.replace(config, batch=dataclasses.replace(config.batch, eval_size=eval_size))


def _host_rows(key: str, batch_size: int, process_index: int, process_count: int) -> range:
  """Which rows of a global batch are those of one host."""
  if batch_size % process_count:
    raise SegjaxError(
      f'config.batch.{key}={batch_size} does not divide among {process_count} processes: set a '
      'multiple'
    )
  rows = batch_size // process_count
  return range(process_index * rows, (process_index + 1) * rows)


def _stream(
  batches: grain.MapDataset[NamedBatch], workers: int
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
  iterator = iter(dataset.map(functools.partial(batch.finish, copy=workers > 0)))
  try:
    yield from iterator
  except RuntimeError as e:
    if 'Worker process was terminated' not in str(e):
      raise
    raise SegjaxError(
      f'a process that prepares batches died ({str(e).partition(". ")[0]}), probably for lack of '
      'memory or of shared memory (/dev/shm): lower config.batch.workers'
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
  records.end_with_parent()
