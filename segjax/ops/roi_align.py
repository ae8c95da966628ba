"""RoIAlign (Mask R-CNN, section 3), and RoIPool and RoIWarp for its Table 2c.

RoIAlign divides a box into bins of equal size, samples the features bilinearly on a regular grid in
each bin, and takes their average or maximum. With `aligned=True`, pixel i of the features covers
the interval [i, i + 1] of box coordinates, with its center at i + 0.5. With `aligned=False` it is
at i (the original convention, off by half a pixel).

Two implementations (`form`) give the same result:

- `gather`: bilinear samples, `jax.vmap`ped over bins and boxes. The levels of a pyramid are
  concatenated in one table, so that each box reads only its level.
- `matrix`: interpolation is separable, so it is two matrix products, rows @ features @ columns. It
  multiplies with all pixels of all levels, but needs neither gather nor scatter.

The default is `gather`, which is faster on CPUs (experiments/speed). On TPUs the default is
`matrix`, as scatters are slow there. The defaults for GPU and TPU were not measured.

The adaptive number of samples depends on the box, but shapes are static: each bin of each box takes
the time of `max_samples` samples per axis. Up to P · `max_samples` rows and Q · `max_samples`
columns of the map, for P x Q bins, a box has the adaptive number exactly, as in torchvision. By
default that is every box up to the size of the map, so every box clipped to the image. Each bin of
a larger box has `max_samples` samples per axis, evenly spaced: farther apart than a pixel. For such
boxes, `max_samples` is to be ceil(longest side on the map / bins).
"""

import functools
import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from segjax.types import Array

IntOrPair: TypeAlias = int | tuple[int, int]
Mode: TypeAlias = Literal['avg', 'max']
Border: TypeAlias = Literal['zero', 'clamp']
Form: TypeAlias = Literal['gather', 'matrix']

# Coordinates are clipped to prevent overflow for finite boxes.
_LIMIT = 1e8
# Up to this many samples per bin are unrolled, so that XLA fuses them into one loop.
_UNROLL = 16
# On CPUs, the number of table rows per scatter step, to fit the cache.
_SCATTER_ROWS = 4096
# Maximum elements of an array in the matrix form, which bounds the boxes per group.
_MATRIX_ELEMENTS = 2**26


def roi_align(
  features: Array,
  boxes: Array,
  *,
  output_size: IntOrPair,
  spatial_scale: float,
  sampling_ratio: int,
  aligned: bool,
  mode: Mode = 'avg',
  border: Border = 'zero',
  zero_empty: bool = True,
  max_samples: IntOrPair | None = None,
  form: Form | None = None,
) -> Array:
  """RoIAlign of one feature map.

  Gradients flow to the features and, through the sample positions, to the boxes. They are finite
  for all boxes.

  Args:
    features: f[H, W, C], or f[B, H, W, C].
    boxes: f32[R, 4], or f32[B, R, 4]: x0, y0, x1, y1. Boxes with infinite or NaN coordinates
      give zeros.
    output_size: bins per box, an int or (rows, columns) = (P, Q).
    spatial_scale: feature pixels per unit of the boxes: 1 / stride.
    sampling_ratio: samples per bin and axis; 0 or less for the adaptive number, ceil(pixels per
      bin).
    aligned: whether the center of pixel i is at i + 0.5. If not, boxes are at least one pixel high
      and wide.
    mode: average or maximum of the samples of a bin. (ONNX defines the maximum differently, over
      the weighted corners of the samples.)
    border: samples up to one pixel outside the map read its border; samples beyond read zero, or
      with `clamp` also the border.
    zero_empty: whether empty boxes give zeros. If not, they are sampled like any other box, as in
      torchvision.
    max_samples: upper bound of the adaptive number, an int or (rows, columns); determines the cost.
      Default: (ceil(H / P), ceil(W / Q)), exact for boxes up to the size of the map. Larger boxes
      are sampled more coarsely, see above.
    form: `gather` or `matrix`; default: by platform, see above.

  Returns:
    f[R, P, Q, C], or f[B, R, P, Q, C], of the features' dtype, computed in float32.
  """
  return _align(
    [features],
    boxes,
    lambda boxes: jnp.zeros(boxes.shape[0], jnp.int32),
    [spatial_scale],
    output_size=output_size,
    sampling_ratio=sampling_ratio,
    aligned=aligned,
    mode=mode,
    border=border,
    zero_empty=zero_empty,
    max_samples=max_samples,
    form=form,
  )


def multilevel_roi_align(
  pyramid: Sequence[Array],
  boxes: Array,
  *,
  strides: Sequence[int],
  output_size: IntOrPair,
  sampling_ratio: int,
  aligned: bool,
  canonical_scale: float = 224,
  canonical_level: int = 4,
  **options: Any,
) -> Array:
  """RoIAlign of each box on the FPN level for its size, see `box_levels`.

  Args:
    pyramid: f[H_l, W_l, C], or f[B, H_l, W_l, C], finest first.
    boxes: f32[R, 4], or f32[B, R, 4], in pixels of the image.
    strides: of the levels, consecutive powers of two.
    output_size: bins per box, an int or (rows, columns) = (P, Q).
    sampling_ratio: as in `roi_align`.
    aligned: as in `roi_align`.
    canonical_scale: side length of the square box at `canonical_level`.
    canonical_level: level, as log2 of its stride.
    **options: as in `roi_align`. With the adaptive number set `max_samples`: boxes are rarely
      larger than 28 pixels on their level, but the default allows boxes as large as the finest.

  Returns:
    f[R, P, Q, C], or f[B, R, P, Q, C].
  """
  levels = functools.partial(
    box_levels, strides=strides, canonical_scale=canonical_scale, canonical_level=canonical_level
  )
  return _align(
    pyramid,
    boxes,
    levels,
    [1 / stride for stride in strides],
    output_size=output_size,
    sampling_ratio=sampling_ratio,
    aligned=aligned,
    **options,
  )


def box_levels(
  boxes: Array,
  *,
  strides: Sequence[int],
  canonical_scale: float = 224,
  canonical_level: int = 4,
) -> Array:
  """The pyramid level of each box: floor(4 + log2(sqrt(area) / 224) + 1e-6), clamped to the levels.

  As in FPN, eq. 1, with torchvision's 1e-6. Implemented as comparisons of the area, so that empty
  boxes have a level (the finest).

  Args:
    boxes: f32[..., 4].
    strides: of the levels, consecutive powers of two.
    canonical_scale: side length of the square box at `canonical_level`.
    canonical_level: level, as log2 of its stride.

  Returns:
    i32[...], index into `strides`.

  Raises:
    ValueError: strides are not consecutive powers of two.
  """
  first = round(math.log2(strides[0]))
  if list(strides) != [2 ** (first + i) for i in range(len(strides))]:
    raise ValueError(f'strides {list(strides)} must be consecutive powers of two')
  x0, y0, x1, y1 = jnp.moveaxis(boxes, -1, 0)
  area = (x1 - x0) * (y1 - y0)
  steps = np.arange(first + 1, first + len(strides)) - canonical_level - 1e-6
  thresholds = np.square(canonical_scale * 2.0**steps).astype(np.float32)
  return (area[..., None] >= thresholds).sum(-1, dtype=jnp.int32)


def roi_pool(
  features: Array, boxes: Array, *, output_size: IntOrPair, spatial_scale: float
) -> Array:
  """RoIPool (Fast R-CNN, section 2.1): max pooling in the bins of a box rounded to integer pixels.

  Equal to `torchvision.ops.roi_pool`: both corners of the box are rounded and inclusive, so that it
  has at least one pixel; bins are extended to integer pixels and overlap; bins outside the map are
  zero. No gradient flows to the boxes.

  Each bin is the maximum of four windows whose sides are powers of two. The maxima of all such
  windows are precomputed and take log2(2H) log2(2W) times the memory of the features.

  Args:
    features: f[H, W, C], or f[B, H, W, C].
    boxes: f32[R, 4], or f32[B, R, 4]. Boxes with infinite or NaN coordinates give zeros.
    output_size: bins per box, an int or (rows, columns) = (P, Q).
    spatial_scale: feature pixels per unit of the boxes: 1 / stride.

  Returns:
    f[R, P, Q, C], or f[B, R, P, Q, C], of the features' dtype.
  """
  pool = functools.partial(_pool_image, bins=_pair(output_size), scale=spatial_scale)
  return (pool if features.ndim == 3 else jax.vmap(pool))(features, lax.stop_gradient(boxes))


def roi_warp(
  features: Array,
  boxes: Array,
  *,
  output_size: IntOrPair,
  spatial_scale: float,
  sampling_ratio: int,
  mode: Mode = 'avg',
  max_samples: IntOrPair | None = None,
  form: Form | None = None,
) -> Array:
  """RoIWarp as in Mask R-CNN's Table 2c: RoIPool's rounded box, sampled bilinearly.

  The box is rounded as in RoIPool, with inclusive corners, and sampled as in `roi_align`. With one
  bin per pixel and one sample per bin the output equals the pixels. No gradient flows to the boxes.

  Args:
    features: f[H, W, C], or f[B, H, W, C].
    boxes: f32[R, 4], or f32[B, R, 4]. Boxes with infinite or NaN coordinates give zeros.
    output_size: bins per box, an int or (rows, columns) = (P, Q).
    spatial_scale: feature pixels per unit of the boxes: 1 / stride.
    sampling_ratio: as in `roi_align`.
    mode: as in `roi_align`.
    max_samples: as in `roi_align`. Default: exact for boxes up to the size of the map, which are
      one pixel larger than it when rounded.
    form: as in `roi_align`.

  Returns:
    f[R, P, Q, C], or f[B, R, P, Q, C], of the features' dtype.
  """
  length = np.array(features.shape[-3:-1])
  max_samples = sample_bounds(length + 1, output_size, max_samples)
  boxes, finite = _finite(lax.stop_gradient(boxes))
  start, size = _rounded(boxes, spatial_scale)
  edges = jnp.concatenate([start, start + size], axis=-1).astype(jnp.float32)
  return roi_align(
    features,
    jnp.where(finite[..., None], edges, jnp.nan),
    output_size=output_size,
    spatial_scale=1,
    sampling_ratio=sampling_ratio,
    aligned=True,
    mode=mode,
    max_samples=max_samples,
    form=form,
  )


class Samples(NamedTuple):
  """The samples of R boxes along one axis: S in each of P bins, each between two pixels.

  Attributes:
    pixels: i32[R, P, S, 2], the pixels before and after the sample; equal at the border.
    weights: f32[R, P, S, 2] of these pixels; zeros for samples outside the map.
    share: f32[R, 1, S], weight of the sample in the average of its bin; zero for padding.
  """

  pixels: Array
  weights: Array
  share: Array


def box_samples(
  boxes: Array,
  sizes: Array,
  *,
  output_size: IntOrPair,
  sampling_ratio: int,
  max_samples: tuple[int, int],
  aligned: bool,
  border: Border,
  zero_empty: bool,
) -> tuple[Samples, Samples]:
  """The sampling positions of boxes along rows and columns.

  Args:
    boxes: f32[R, 4], in pixels of their maps.
    sizes: i32[R, 2], rows and columns of the map of each box.
    output_size: bins per box, an int or (rows, columns) = (P, Q).
    sampling_ratio: as in `roi_align`.
    max_samples: upper bound of the adaptive number along rows and columns; S of the result.
    aligned: as in `roi_align`.
    border: as in `roi_align`.
    zero_empty: as in `roi_align`.

  Returns:
    (samples along rows, samples along columns). For a box that gives zeros, the shares along rows
    or all weights are zero.
  """
  boxes, alive = _finite(boxes)
  if zero_empty:
    alive &= (boxes[:, :2] < boxes[:, 2:]).all(-1)
  x0, y0, x1, y1 = boxes.T
  rows, cols = (
    _axis_samples(start, end, sizes[:, axis], bins, sampling_ratio, bound, aligned, border)
    for axis, (start, end, bins, bound) in enumerate(
      zip((y0, x0), (y1, x1), _pair(output_size), max_samples, strict=True)
    )
  )
  return rows._replace(share=jnp.where(alive[:, None, None], rows.share, 0)), cols


def _axis_samples(
  start, end, length, bins, sampling_ratio, max_samples, aligned, border
) -> Samples:
  start, end, length = (x[:, None, None] for x in (start, end, length))
  # In torchvision's order of operations, to have the same rounding errors in the adaptive number of
  # samples and at the border of the map.
  if aligned:
    start, end = start - 0.5, end - 0.5
  size = end - start
  if not aligned:
    size = jnp.maximum(size, 1)
  bin_size = size / _divisor(bins, size)
  if sampling_ratio > 0:
    samples, count = sampling_ratio, _divisor(sampling_ratio, size)
  else:
    samples, count = max_samples, jnp.clip(lax.stop_gradient(jnp.ceil(bin_size)), 0, max_samples)
  sample, per_bin = jnp.arange(samples), jnp.maximum(count, 1)
  position = start + jnp.arange(bins)[:, None] * bin_size + (sample + 0.5) * bin_size / per_bin
  reads = (position >= -1) & (position <= length) | (border == 'clamp')
  position = jnp.clip(position, 0, length - 1)
  before = lax.stop_gradient(jnp.floor(position)).astype(jnp.int32)
  fraction = position - before
  return Samples(
    pixels=jnp.stack([before, jnp.minimum(before + 1, length - 1)], -1),
    weights=jnp.where(reads[..., None], jnp.stack([1 - fraction, fraction], -1), 0),
    share=(sample < count) / per_bin,
  )


def _divisor(n: int, x: Array) -> Array:
  """n as a non-constant: XLA replaces division by a constant with its reciprocal, less exact."""
  return n + 0.0 * lax.stop_gradient(x)


def mean_weights(samples: Samples) -> Array:
  """The weights of the pixels in the bin averages, f32[R, P, S, 2]."""
  return samples.weights * samples.share[..., None]


def sum_of_samples(
  read: Callable[[Array], Array], rows: Array, cols: Array, row_weights: Array, col_weights: Array
) -> Array:
  """The weighted sum of the bilinear samples of each bin, for R boxes of P x Q bins.

  Args:
    read: i32[] -> f[...], the value at `row + column`.
    rows: i32[R, P, S, 2], contribution of the two pixels of a sample to the index.
    cols: i32[R, Q, T, 2].
    row_weights: f32[R, P, S, 2].
    col_weights: f32[R, Q, T, 2].

  Returns:
    f32[R, P, Q, ...].
  """
  sample = _sample_of_all_bins(read, rows, cols, row_weights, col_weights)
  return _reduce(jnp.add, sample, rows.shape[2], cols.shape[2])


def _pair(value: IntOrPair) -> tuple[int, int]:
  return (value, value) if isinstance(value, int) else (int(value[0]), int(value[1]))


def _finite(boxes: Array) -> tuple[Array, Array]:
  """Boxes clipped to a safe range, f32[..., 4], and whether they were finite, bool[...]."""
  boxes = jnp.asarray(boxes, jnp.float32)
  finite = jnp.isfinite(boxes).all(-1)
  return jnp.clip(jnp.where(finite[..., None], boxes, 0), -_LIMIT, _LIMIT), finite


def _align(features, boxes, levels, scales, *, form=None, **options) -> Array:
  """`roi_align` on several maps; `levels` maps the boxes of an image to their level."""
  if form is None:
    form = 'matrix' if jax.default_backend() == 'tpu' else 'gather'
  align = functools.partial(_align_image, levels=levels, scales=scales, form=form, **options)
  features = tuple(features)
  return (align if features[0].ndim == 3 else jax.vmap(align))(features, boxes)


def _align_image(
  features, boxes, *, levels, scales, output_size, sampling_ratio, aligned,
  mode='avg', border='zero', zero_empty=True, max_samples=None, form,
) -> Array:  # fmt: skip
  level, sizes = levels(boxes), _sizes(features)
  rows, cols = box_samples(
    boxes * jnp.asarray(scales, jnp.float32)[level][:, None],
    jnp.asarray(sizes)[level],
    output_size=output_size,
    sampling_ratio=sampling_ratio,
    max_samples=sample_bounds(sizes.max(0), output_size, max_samples),
    aligned=aligned,
    border=border,
    zero_empty=zero_empty,
  )
  return _FORMS[form, mode](features, level, rows, cols).astype(features[0].dtype)


def sample_bounds(
  size: tuple[int, int], output_size: IntOrPair, max_samples: IntOrPair | None
) -> tuple[int, int]:
  """`max_samples` per axis if given, or the adaptive numbers of a box of `size`."""
  if max_samples is not None:
    return _pair(max_samples)
  return tuple(
    math.ceil(length / bins) for length, bins in zip(size, _pair(output_size), strict=True)
  )


def _sizes(features) -> np.ndarray:
  """i32[levels, 2], rows and columns."""
  return np.array([f.shape[:2] for f in features], np.int32)


def _any_sample(rows: Samples, cols: Samples) -> Array:
  """Whether a box has any sample, bool[R, 1, 1, 1]."""
  return ((rows.share > 0).any(-1) & (cols.share > 0).any(-1))[..., None, None]


# The form `gather`, with all pixels of all levels in a table f[pixels, C].


def _gather_avg(features, level, rows, cols) -> Array:
  table, row_pixels = _table(features, level, rows)
  return _table_mean(table, row_pixels, cols.pixels, mean_weights(rows), mean_weights(cols))


def _gather_max(features, level, rows, cols) -> Array:
  table, row_pixels = _table(features, level, rows)
  value = _sample_of_all_bins(_reader(table), row_pixels, cols.pixels, rows.weights, cols.weights)

  def sample(i, j):
    present = (rows.share[:, :, i] > 0) & (cols.share[:, :, j] > 0)
    return jnp.where(present[..., None, None], value(i, j), -jnp.inf)

  samples = _reduce(jnp.maximum, sample, rows.share.shape[2], cols.share.shape[2])
  return jnp.where(_any_sample(rows, cols), samples, 0)


def _table(features, level, rows) -> tuple[Array, Array]:
  """The table, and the contribution of the rows to an index into it."""
  sizes = _sizes(features)
  starts = np.cumsum([0, *sizes.prod(1)[:-1]], dtype=np.int32)
  start, width = (jnp.asarray(x)[level][:, None, None, None] for x in (starts, sizes[:, 1]))
  table = jnp.concatenate([f.reshape(-1, f.shape[-1]) for f in features])
  return table, start + rows.pixels * width


def _reader(table: Array) -> Callable[[Array], Array]:
  return lambda index: jnp.take(table, index, axis=0, mode='clip')


def _sample_of_all_bins(read, rows, cols, row_weights, col_weights) -> Callable[..., Array]:
  """A function (i, j) -> bilinear sample i, j of each bin of each box, f32[R, P, Q, ...]."""

  def bilinear(rows, cols, row_weights, col_weights):
    return sum(
      row_weights[a] * col_weights[b] * read(rows[a] + cols[b])
      for a, b in itertools.product(range(2), repeat=2)
    )

  over_columns = jax.vmap(bilinear, (None, 0, None, 0))
  # Traced once for all samples: they are most of what a detector's step traces.
  over_boxes = jax.jit(jax.vmap(jax.vmap(over_columns, (0, None, 0, None))))
  return lambda i, j: over_boxes(
    rows[:, :, i], cols[:, :, j], row_weights[:, :, i], col_weights[:, :, j]
  )


def _reduce(combine, sample, height, width) -> Array:
  """Reduces the samples i, j of all bins, for i < height and j < width.

  The loop over samples is outermost: each step updates all bins of all boxes, to save memory.
  """
  if height * width <= _UNROLL:
    return functools.reduce(
      combine, itertools.starmap(sample, itertools.product(range(height), range(width)))
    )
  sample = jax.checkpoint(sample)
  step = lambda k, reduced: combine(reduced, sample(k // width, k % width))
  return lax.fori_loop(1, height * width, step, sample(0, 0))


@jax.custom_vjp
def _table_mean(table, rows, cols, row_weights, col_weights) -> Array:
  """`sum_of_samples` of a table, with a custom gradient that scatters all samples of a box."""
  return sum_of_samples(_reader(table), rows, cols, row_weights, col_weights)


def _table_mean_fwd(*arguments):
  return _table_mean(*arguments), arguments


def _table_mean_bwd(arguments, g):
  table, rows, cols, *weights = arguments
  scattered = _scatter(table, rows, cols, *weights, g)
  # If the boxes are constants, XLA eliminates the rest as dead code.
  _, pullback = jax.vjp(functools.partial(sum_of_samples, _reader(table), rows, cols), *weights)
  return scattered, None, None, *pullback(g)


_table_mean.defvjp(_table_mean_fwd, _table_mean_bwd)


def _scatter(table, rows, cols, row_weights, col_weights, g) -> Array:
  """The gradient of `sum_of_samples` with respect to the table, in groups of boxes."""
  boxes = g.shape[0]
  a_box = math.prod(rows.shape[1:]) * math.prod(cols.shape[1:])
  group = max(1, _SCATTER_ROWS // a_box if jax.default_backend() == 'cpu' else boxes)
  groups = -(-boxes // group)

  def grouped(x):
    x = jnp.pad(x, [(0, groups * group - boxes)] + [(0, 0)] * (x.ndim - 1))
    return x.reshape(groups, group, *x.shape[1:])

  def add(gradient, part):
    row, col, row_weight, col_weight, g = part  # [group, P, 2S], [group, Q, 2T]
    index = row[:, :, :, None, None] + col[:, None, None]
    weight = row_weight[:, :, :, None, None] * col_weight[:, None, None]
    return gradient.at[index].add(weight[..., None] * g[:, :, None, :, None]), None

  flat = (x.reshape(*x.shape[:2], 2 * x.shape[2]) for x in (rows, cols, row_weights, col_weights))
  zeros = jnp.zeros(table.shape, jnp.float32)
  return lax.scan(add, zeros, [*map(grouped, flat), grouped(g)])[0].astype(table.dtype)


# The form `matrix`.


def interpolation_matrices(samples: Samples, weights: Array, length: int) -> Array:
  """The samples as matrices for the rows or columns of a map, f32[R, P, S, length]."""
  pixel = jnp.arange(length)
  return sum(
    jnp.where(samples.pixels[..., k, None] == pixel, weights[..., k, None], 0) for k in range(2)
  )


def _matrix_avg(features, level, rows, cols) -> Array:
  def pool(f, rows, cols):
    y, x = (
      interpolation_matrices(samples, mean_weights(samples), length).sum(-2)
      for samples, length in zip((rows, cols), f.shape[:2], strict=True)
    )
    return jnp.einsum('ph,hwc,qw->pqc', y, f, x, precision='highest')

  return _over_levels(pool, features, level, rows, cols)


def _matrix_max(features, level, rows, cols) -> Array:
  def pool(f, rows, cols):
    y, x = (
      interpolation_matrices(samples, samples.weights, length)
      for samples, length in zip((rows, cols), f.shape[:2], strict=True)
    )
    values = jnp.einsum('psh,hwc,qtw->psqtc', y, f, x, precision='highest')
    present = (rows.share > 0)[:, :, None, None, None] & (cols.share > 0)[..., None]
    maxima = jnp.where(present, values, -jnp.inf).max((1, 3))
    return jnp.where(present.any(), maxima, 0)

  return _over_levels(pool, features, level, rows, cols)


def _over_levels(pool, features, level, rows, cols) -> Array:
  """Applies `pool` to all levels and selects the level of each box, in groups of boxes."""

  def pool_box(box):
    level, rows, cols = box
    return sum(jnp.where(level == k, pool(f, rows, cols), 0) for k, f in enumerate(features))

  p, s = rows.pixels.shape[1:3]
  group = _MATRIX_ELEMENTS // (p * s * max(f[0].size for f in features))
  if group >= level.size:
    return jax.vmap(pool_box)((level, rows, cols))
  return lax.map(pool_box, (level, rows, cols), batch_size=max(1, group))


_FORMS = {
  ('gather', 'avg'): _gather_avg,
  ('gather', 'max'): _gather_max,
  ('matrix', 'avg'): _matrix_avg,
  ('matrix', 'max'): _matrix_max,
}


# RoIPool.


def _rounded(boxes: Array, scale: float) -> tuple[Array, Array]:
  """First pixel and size of each rounded box, i32[R, 2] each (x, y), with inclusive corners.

  Halves are rounded away from zero, as in C.
  """
  corners = boxes * scale
  whole = jnp.trunc(corners)
  corners = (whole + jnp.sign(corners) * (jnp.abs(corners - whole) >= 0.5)).astype(jnp.int32)
  start, end = jnp.split(corners, 2, axis=-1)
  return start, jnp.maximum(end - start + 1, 1)


def _pool_image(features, boxes, *, bins, scale) -> Array:
  boxes, finite = _finite(boxes)
  start, size = _rounded(boxes, scale)
  (rows, has_rows), (cols, has_cols) = (
    _bin_windows(start[:, axis], size[:, axis], n, length)
    for axis, n, length in zip((1, 0), bins, features.shape[:2], strict=True)
  )
  maxima = _window_maxima(_window_maxima(features, 0), 2)  # [log H, H, log W, W, C]
  table = maxima.reshape(-1, features.shape[-1])
  rows = rows * (table.shape[0] // math.prod(maxima.shape[:2]))
  index = rows[:, :, None, :, None] + cols[:, None, :, None]  # [R, P, Q, 2, 2]
  pooled = jnp.take(table, index, axis=0, mode='clip').max((3, 4))
  filled = has_rows[:, :, None] & has_cols[:, None] & finite[:, None, None]
  return jnp.where(filled[..., None], pooled, 0)


def _bin_windows(start, size, bins, length) -> tuple[Array, Array]:
  """The two windows that cover each bin along an axis, i32[R, P, 2], and whether it is not empty.

  Window k * length + i has the 2**k pixels starting at i.
  """
  start, size = start[:, None], size[:, None].astype(jnp.float32)
  bin_size = size / _divisor(bins, size)
  edge = lambda x: jnp.clip(x.astype(jnp.int32) + start, 0, length)
  first = edge(jnp.floor(jnp.arange(bins) * bin_size))
  last = edge(jnp.ceil(jnp.arange(1, bins + 1) * bin_size))
  pixels = last - first
  k = (pixels[..., None] >= 2 ** np.arange(1, length.bit_length())).sum(-1)
  windows = jnp.stack([first, jnp.maximum(last - 2**k, 0)], -1)
  return k[..., None] * length + windows, pixels > 0


def _window_maxima(x, axis) -> Array:
  """Maxima of windows of 1, 2, 4, … elements along an axis, stacked on a new axis before it."""
  maxima, length = [x], x.shape[axis]
  for k in range(length.bit_length() - 1):
    behind = jnp.minimum(np.arange(length) + 2**k, length - 1)
    maxima.append(jnp.maximum(maxima[-1], jnp.take(maxima[-1], behind, axis)))
  return jnp.stack(maxima, axis)
