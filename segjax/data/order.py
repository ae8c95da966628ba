"""Which example comes in which batch, and at which size.

An epoch is a permutation of the split. Images are resized by `config.data.size` and padded to a
shape, and a batch has one shape. Where all examples have one, position p of the stream of n
examples, p = step · batch size + row, is example `permutation(seed, p // n)[p % n]`. Where they
have several, each example joins the batch of its shape that is being filled, and batches come in
the order in which they are full; what an epoch leaves unfilled is filled by the next one. So every
image comes as often as every other, every batch is full, and both depend on the seed and the step
alone. Where fewer images than a batch have a shape, theirs comes once in a few epochs: choose few
shapes.

Sizes are (height, width) in pixels.
"""

import bisect
import collections
import functools
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from segjax.data import geometry
from segjax.data.config import InputConfig
from segjax.data.sample import Size
from segjax.types import SegjaxError

# First words of the generators' seeds, so that no two uses share a stream; 1 is augmentation's.
_SHUFFLE, _SIZE = 0, 3
# Images of different sizes are padded to multiples of this, where no shapes are given.
_SIZE_MULTIPLE = 32
# Batches of an order that are kept, whole epochs of them, for threads that ask out of order.
_KEPT_BATCHES = 1024


@functools.lru_cache(maxsize=4)
def permutation(seed: int, epoch: int, count: int) -> np.ndarray:
  """The order of an epoch's examples."""
  return np.random.default_rng([_SHUFFLE, seed, epoch]).permutation(count)


@functools.lru_cache(maxsize=4)
def _size_samples(seed: int, epoch: int, count: int) -> np.ndarray:
  return np.random.default_rng([_SIZE, seed, epoch]).random(count)


def train_size(
  native: Size, config: InputConfig, seed: int, epoch: int, index: int, count: int
) -> Size:
  """The size to which training resizes an image of `native` size, example `index` of `count`."""
  size, jitter = config.data.size, config.augment.large_scale_jitter
  if jitter is None and (size.short_side is None or len(size.short_side) == 1):
    return eval_size(native, config)
  u = float(_size_samples(seed, epoch, count)[index])
  if jitter is None:
    short = size.short_side[int(u * len(size.short_side))]
    return geometry.short_side_size(native, short, size.longest_side)
  factor = jitter[0] + u * (jitter[1] - jitter[0])
  return geometry.scaled_size(geometry.fit_size(native, size.image_size), factor)


def eval_size(native: Size, config: InputConfig) -> Size:
  """The size to which evaluation resizes an image of `native` size."""
  size = config.data.size
  if size.short_side is not None:
    return geometry.short_side_size(native, max(size.short_side), size.longest_side)
  if size.image_size is None:
    return native
  return geometry.fit_size(native, size.image_size) if size.resize == 'fit' else size.image_size


def multiple_shape(size: Size) -> Size:
  """The smallest multiples of 32 that an image of `size` fits into."""
  height, width = (-(-side // _SIZE_MULTIPLE) * _SIZE_MULTIPLE for side in size)
  return height, width


def fit_shape(size: Size, config: InputConfig, name: Callable[[], str]) -> Size:
  """The shape to which an image of `size` is padded; `name` says which image it is.

  Raises:
    SegjaxError: it fits into none of `config.data.size.shapes`.
  """
  if config.data.size.shapes is None:
    return config.data.size.image_size or multiple_shape(size)
  fitting = [s for s in config.data.size.shapes if s[0] >= size[0] and s[1] >= size[1]]
  if not fitting:
    resized = config.data.size.image_size or config.data.size.short_side
    change = 'lower' if resized else 'resize by'
    raise SegjaxError(
      f'{name()} of {config.data.name} is {size[0]}x{size[1]} pixels (height x width) and fits '
      f'into none of config.data.size.shapes={config.data.size.shapes}: add a larger shape, or '
      f'{change} config.data.size.image_size, or short_side and longest_side'
    )
  return min(fitting, key=lambda shape: shape[0] * shape[1])


def known_shape(config: InputConfig, *, train: bool) -> Size | None:
  """The shape of all examples, where the config alone says it."""
  size = config.data.size
  if train and (size.crop_size is not None or config.augment.large_scale_jitter is not None):
    return size.crop_size or size.image_size
  if size.shapes is not None:
    return size.shapes[0] if len(size.shapes) == 1 else None
  return size.image_size


def common_size(sizes: Callable[[], Sequence[Size]], config: InputConfig) -> Size | None:
  """The one size of all images, where they are then not padded in an evaluation.

  That is where they are without objects, and nothing says a shape. Networks for objects and those
  with queries want multiples of 32.

  Args:
    sizes: the images' own sizes, read only where they are needed.
    config: of the run.
  """
  short_side = config.data.size.short_side
  varied = short_side is not None and len(short_side) > 1
  wants_multiples = 'objects' in config.annotations or config.queries
  if wants_multiples or varied or known_shape(config, train=False) or config.data.size.shapes:
    return None
  found = set(sizes())
  return found.pop() if len(found) == 1 else None


def _common_shape(sizes: Sequence[Size], config: InputConfig) -> Size | None:
  native = common_size(lambda: sizes, config)
  return native and eval_size(native, config)


def shape_alone(native: Size, config: InputConfig, common: Size | None = None) -> Size:
  """The shape to which an image is padded that is predicted alone, as in an evaluation.

  Args:
    native: its size.
    config: its sizes are used. An image that fits into none of the shapes is padded to multiples of
      32.
    common: the `common_size` of the evaluation's images.
  """
  size = eval_size(native, config)
  if native == common_size(lambda: [common] if common else [], config):
    return size
  try:
    return fit_shape(size, config, lambda: 'an image')
  except SegjaxError:
    return multiple_shape(size)


class EvalBatch(NamedTuple):
  """Indices of the examples of a batch, their padded shape, and that of their segments."""

  shape: Size
  canvas: Size | None
  indices: Sequence[int]


def eval_order(
  count: int, sizes: Callable[[], Sequence[Size]], config: InputConfig, name: Callable[[int], str]
) -> list[EvalBatch]:
  """Batches with every example of a split once, grouped by shape.

  Args:
    count: of the examples.
    sizes: the images' own sizes, read only where they are needed.
    config: its sizes, and those of batches.
    name: of the example of an index, for errors.
  """
  segments = 'segments' in config.annotations
  # Every image must be seen to fit into the shapes.
  shape = None if config.data.size.shapes else known_shape(config, train=False)
  native = sizes() if shape is None or segments else []
  shape = shape or _common_shape(native, config)
  groups: dict[Size, list[int]] = {}
  for i in range(count):
    key = shape or fit_shape(eval_size(native[i], config), config, functools.partial(name, i))
    groups.setdefault(key, []).append(i)
  number = config.batch.eval_size or config.batch.size
  batches = []
  for key, indices in groups.items():
    canvas = np.max([native[i] for i in indices], axis=0).tolist() if segments else None
    for start in range(0, len(indices), number):
      chosen = indices[start : start + number]
      batches.append(EvalBatch(key, canvas and tuple(canvas), chosen))
  return batches


class TrainOrder:
  """Which examples make which training batch; pickles small, and answers to several threads.

  Args:
    count: of the examples.
    sizes: the images' own sizes, read only where they are needed.
    config: sizes, and those of batches.
    seed: of the order and the sizes.
    name: of the example of an index, for errors.
  """

  # What is recomputed where it is unpickled.
  _STATE = ('_lock', '_ends', '_kept', '_unfilled')

  def __init__(
    self,
    count: int,
    sizes: Callable[[], Sequence[Size]],
    config: InputConfig,
    seed: int,
    name: Callable[[int], str],
  ):
    self._count, self._config, self._seed, self._name = count, config, seed, name
    # With one shape there is nothing to group, and no need to read every image's size.
    shape = known_shape(config, train=True)
    self._sizes = sizes() if shape is None else []
    self._shape = shape or _common_shape(self._sizes, config)
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
    if self._shape is not None:
      first = step * self._config.batch.size
      positions = (divmod(first + row, self._count) for row in range(self._config.batch.size))
      return self._shape, [(epoch, int(self._epoch(epoch)[i])) for epoch, i in positions]
    with self._lock:
      if step < self._ends[len(self._ends) - 1 - len(self._kept)]:  # no longer kept
        self._ends, self._unfilled = [0], {}
        self._kept.clear()
      while step >= self._ends[-1]:
        self._add_epoch()
      first = len(self._ends) - 1 - len(self._kept)
      epoch = bisect.bisect_right(self._ends, step) - 1
      shape, chosen = self._kept[epoch - first][step - self._ends[epoch]]
    return shape, [divmod(position, self._count) for position in chosen]

  def shapes(self) -> dict[Size, int]:
    """The padded shapes of the first epoch, and the index of an example of each."""
    if self._shape is not None:
      return {self._shape: 0}
    return {self._fit(0, index): index for index in range(self._count)}

  def _fit(self, epoch: int, index: int) -> Size:
    """The padded shape of an example in an epoch."""
    native = self._sizes[index]
    size = train_size(native, self._config, self._seed, epoch, index, self._count)
    return fit_shape(size, self._config, functools.partial(self._name, index))

  def _epoch(self, epoch: int) -> Sequence[int]:
    shuffle = self._config.batch.shuffle
    return permutation(self._seed, epoch, self._count) if shuffle else range(self._count)

  def _add_epoch(self) -> None:
    """Deals the next epoch's examples out to batches; an example is epoch · n + index."""
    epoch = len(self._ends) - 1
    batches = []
    for index in map(int, self._epoch(epoch)):
      shape = self._fit(epoch, index)
      filling = self._unfilled.setdefault(shape, [])
      filling.append(epoch * self._count + index)
      if len(filling) == self._config.batch.size:
        batches.append((shape, self._unfilled.pop(shape)))
    self._ends.append(self._ends[-1] + len(batches))
    self._kept.append(batches)
    # Two at least: at an epoch's end threads ask for batches of both.
    while len(self._kept) > 2 and sum(map(len, self._kept)) - len(self._kept[0]) > _KEPT_BATCHES:
      self._kept.popleft()
