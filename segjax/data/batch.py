"""From samples to the arrays of a batch.

One rule packs every annotation: a field of the batch has a fixed shape and a value that fills it,
and what an example has is put into its upper left corner.
"""

import math
import mmap
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from segjax.data.config import DataConfig, InputConfig
from segjax.data.masks import Masks
from segjax.data.sample import Objects, Size
from segjax.types import IGNORE_LABEL, Instances, SegjaxError, Segments

Tree = Any

# Zeros of so many bytes are new pages.
_PAGES_FROM = 2**20


class Field(NamedTuple):
  """What one example has of a batch: an array of `shape` and `dtype`, filled with `value`."""

  shape: tuple[int, ...]
  dtype: Any
  value: Any = 0


def fields(
  config: InputConfig,
  channels: int,
  shape: Size,
  *,
  train: bool,
  margin: int = 0,
  canvas: Size | None = None,
) -> dict[str, Tree]:
  """The fields of a batch.

  Args:
    config: says what is annotated.
    channels: of the images.
    shape: to which labels and objects are padded.
    train: whether it is a training batch.
    margin: pixels that images extend beyond it on each side.
    canvas: to which segments are padded, in evaluation.
  """
  n, s = config.most_objects, config.batch.max_segments
  around = tuple(side + 2 * margin for side in shape)
  objects = Instances(
    boxes=Field((n, 4), np.float32),
    classes=Field((n,), np.int32),
    masks=Field((n, shape[0], -(-shape[1] // 8)), np.uint8),
    crowd=Field((n,), bool),
    valid=Field((n,), bool),
  )
  found: dict[str, Tree] = {'image': Field((*around, channels), np.uint8, mean_color(config.data))}
  if 'label' in config.annotations and (train or canvas is None):
    found['label'] = Field(shape, np.uint16, IGNORE_LABEL)
    if config.data.weight_map is not None:
      found['weight'] = Field(shape, np.float32)
  if not train:
    found['size'] = Field((2,), np.int32, shape)
  if train:
    found['seed'] = Field((), np.uint32)
  if 'objects' in config.annotations:
    found['size'] = Field((2,), np.int32, shape)
    if train:
      found['instances'] = objects
  if train and ('instances' in found or config.queries):
    found['left_out'] = Field((3,), np.int64)
  if canvas is not None:
    found |= {'segments': segments_field(canvas, s), 'native': Field((2,), np.int32, canvas)}
  return found


def segments_field(canvas: Size, count: int) -> Segments:
  """`Segments` of at most `count` in an image of at most the size of the canvas."""
  one = Field((count,), bool)
  return Segments(Field(canvas, np.int32), Field((count,), np.int32), crowd=one, valid=one)


def pack_objects(objects: Objects) -> Instances:
  """Objects as the part of a batch, see `pack`, which gives their masks one bit a pixel."""
  return Instances(
    boxes=objects.boxes,
    classes=objects.classes,
    masks=Masks.of(objects.masks),
    crowd=objects.crowd,
    valid=np.ones(len(objects.classes), bool),
  )


def pack_segments(segments: Segments, count: int, name: str) -> Segments:
  """Segments of which those without a pixel are not valid.

  Raises:
    SegjaxError: there are more than `count`.
  """
  n = len(segments.classes)
  if n > count:
    raise SegjaxError(
      f'{name} has {n} segments, more than config.batch.max_segments={count}: raise it'
    )
  present = np.bincount(segments.ids.ravel(), minlength=n + 1)[1 : n + 1] > 0
  return segments._replace(valid=segments.valid & present)


def largest(objects: Objects, count: int) -> Objects:
  """The `count` objects with the most pixels, in their order."""
  if len(objects.classes) <= count:
    return objects
  areas = Masks.of(objects.masks).areas
  return objects.take(np.sort(np.argsort(-areas, kind='stable')[:count]))


def pack(
  fields: Mapping[str, Tree], parts: Sequence[Mapping[str, Tree]], count: int
) -> dict[str, Tree]:
  """The batch of some examples.

  Args:
    fields: a `Field` for each array of an example.
    parts: such arrays, at most as large as their fields.
    count: examples in the batch, at least the `parts`; the rest is as the fields are filled.

  Returns:
    Arrays [count, *field.shape], and `valid` bool[count], whether there is an example.
  """

  def fill(field: Field, *values: np.ndarray | Masks) -> np.ndarray:
    shape, filled = (count, *field.shape), np.any(field.value)
    out = np.empty(shape, field.dtype) if filled else _zeros(shape, field.dtype)
    if filled:
      for row, value in enumerate(values):
        _fill_beyond(out[row, ...], np.shape(value), field.value)
      _fill_beyond(out[len(values) :], (0,), field.value)
    for row, value in enumerate(values):
      if isinstance(value, Masks):
        value.pack(out[row])
      else:
        out[(row, *map(slice, np.shape(value)))] = value
    return out

  is_field = lambda node: isinstance(node, Field)
  batch = {
    key: jax.tree.map(fill, field, *(part[key] for part in parts), is_leaf=is_field)
    for key, field in fields.items()
  }
  return {**batch, 'valid': np.arange(count) < len(parts)}


def _zeros(shape: tuple[int, ...], dtype: Any) -> np.ndarray:
  """Zeros. Many of them are new pages, which take neither time nor memory until written to.

  They are aligned, too, so that JAX on a CPU takes them without a copy. `np.zeros` may clear
  memory that it had used before.
  """
  size = math.prod(shape) * np.dtype(dtype).itemsize
  if size < _PAGES_FROM:
    return np.zeros(shape, dtype)
  return np.frombuffer(mmap.mmap(-1, size), dtype).reshape(shape)


def _fill_beyond(out: np.ndarray, corner: tuple[int, ...], value: Any) -> None:
  """Fills an array but for its upper left corner of this shape."""
  for axis, side in enumerate(corner):
    slab = out[(*map(slice, corner[:axis]), slice(side, None))]
    if slab.size:
      slab[:1] = value
      slab[1:] = slab[:1]  # copies rows, where `value` may be a color that is repeated slowly


def finish(
  item: tuple[dict[str, Any], list[str]], *, copy: bool
) -> tuple[dict[str, Any], list[str]]:
  """From what processes exchange to the types of a `Batch`.

  Args:
    item: a batch and the names of its examples.
    copy: whether all arrays are to be new. Shared memory that outlived the iterator would leak.
  """
  new = np.array if copy else np.asarray
  batch = {
    key: value if isinstance(value, list) else jax.tree.map(new, value)
    for key, value in item[0].items()
  }
  if 'label' in batch:
    batch['label'] = batch['label'].astype(np.int32)
  return batch, item[1]


def mean_color(data: DataConfig) -> np.ndarray:
  """u8[1] or u8[C], the nearest color to `config.data.mean`."""
  return np.rint(data.mean).clip(0, 255).astype(np.uint8)
