"""Other forms of our own operations: why they are not the ones that segjax uses."""

import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from segjax.metrics.panoptic import count_pairs
from segjax.ops import conv as conv_lib
from segjax.ops import panoptic as panoptic_ops
from segjax.ops.boxes import exceeds, iou
from segjax.ops.nms import nms
from segjax.ops.pooling import max_pool_2x2
from segjax.ops.roi_align import box_levels, roi_align
from speed import dense, harness, ops, ours, panoptic
from speed.row import Options, Program, Row, Work

# --- RoIAlign -------------------------------------------------------------------------------------


def every_level(bins: int, levels: Any, boxes: Any, gradient: Any) -> Any:
  """RoIAlign of every box on every level, then a selection; the same with its gradient."""

  def cut(levels: Any) -> Any:
    found = [
      roi_align(
        level[0],
        boxes,
        output_size=bins,
        spatial_scale=1 / stride,
        sampling_ratio=2,
        aligned=False,
      )
      for level, stride in zip(levels, ops.STRIDES, strict=True)
    ]
    own = box_levels(boxes, strides=ops.STRIDES)[:, None, None, None]
    choose = lambda a, k: jnp.where(own == k, found[k], a)
    return functools.reduce(choose, range(len(found)), found[0])[None]

  found, pull = jax.vjp(cut, levels)
  return found, pull(gradient)[0]


def _roi_align(bins: int, options: Options) -> Work:
  pyramid, boxes, _ = ops.roi_inputs(options)
  shape = (1, len(boxes), bins, bins, pyramid[0].shape[-1])
  inputs = pyramid, boxes, np.random.default_rng(1).standard_normal(shape).astype(np.float32)
  forms: dict[str, Callable[..., Any]] = {
    name: functools.partial(ops.roi_align, bins, True, form=name) for name in ('gather', 'matrix')
  }
  forms['every box on every level'] = functools.partial(every_level, bins)
  return _compare(forms, inputs)


# --- non-maximum suppression ----------------------------------------------------------------------


def pick_per_step(boxes: Any, scores: Any, classes: Any, *, threshold: float, size: int) -> Any:
  """The best remaining box of all, again and again."""

  def step(state: Any) -> Any:
    count, left, kept = state
    best = jnp.argmax(left)
    suppressed = exceeds(iou(boxes[best][None], boxes)[0], threshold) & (classes == classes[best])
    left = jnp.where(suppressed, -jnp.inf, left).at[best].set(-jnp.inf)
    return count + 1, left, kept.at[count].set(best)

  unfinished = lambda state: (state[0] < size) & (state[1].max() > -jnp.inf)
  start = (jnp.int32(0), scores, jnp.zeros(size, jnp.int32))
  count, _, kept = lax.while_loop(unfinished, step, start)
  return kept, jnp.arange(size) < count


def box_per_step(boxes: Any, scores: Any, classes: Any, *, threshold: float, size: int) -> Any:
  """Each box in the order of scores, beside those kept so far."""
  order = jnp.argsort(scores, descending=True, stable=True).astype(jnp.int32)

  def step(state: Any) -> Any:
    place, count, kept = state
    i = order[place]
    rival = (jnp.arange(size) < count) & (classes[kept] == classes[i])
    keep = ~(rival & exceeds(iou(boxes[i][None], boxes[kept])[0], threshold)).any()
    return place + 1, count + keep, kept.at[jnp.where(keep, count, size)].set(i, mode='drop')

  unfinished = lambda state: (state[0] < len(order)) & (state[1] < size)
  start = (jnp.int32(0), jnp.int32(0), jnp.zeros(size, jnp.int32))
  _, count, kept = lax.while_loop(unfinished, step, start)
  return kept, jnp.arange(size) < count


def tiled(tile: int, boxes: Any, scores: Any, classes: Any, **options: Any) -> Any:
  """Ours."""
  return nms(boxes, scores, None, classes, tile=tile, **options)


def _nms(options: Options) -> Work:
  arrays = ops.clustered_boxes(options.pick(4700, 50), 400)
  forms = {f'tiles of {tile}': functools.partial(tiled, tile) for tile in (128, 64, 256)}
  forms |= {'a box a step': box_per_step, 'a pick a step': pick_per_step}
  programs = {
    name: ours.call(functools.partial(form, threshold=0.5, size=1000), *arrays)[0]
    for name, form in forms.items()
  }

  def same(found: list, others: Mapping[str, list]) -> str:
    mine = ops.kept(found[0])
    for name, results in others.items():
      assert np.array_equal(mine, ops.kept(results[0])), name
    return f'the same {len(mine)} boxes kept'

  return Work(next(iter(programs.values())), dict(list(programs.items())[1:]), same)


# --- convolutions ---------------------------------------------------------------------------------


def _kernel_gradient(shape: tuple[int, ...], size: int, stride: int, options: Options) -> Work:
  """The gradient of a kernel, size x size, of an image [B, H, W, Cin] and Cout channels."""
  *image, cout = options.pick(shape, (shape[0], 2 * size, 2 * size + 1, 8, 8))
  padding, kernel = ((size // 2,) * 2,) * 2, (size, size, image[-1], cout)
  window = (stride, stride), padding, (1, 1)
  x = dense.draw_image(tuple(image))
  g = dense.draw_image((image[0], *(-(-n // stride) for n in image[1:3]), cout))
  used = conv_lib.kernel_gradient_form(kernel, g.shape, x.shape, *window)
  found = [used, conv_lib.xla_kernel_gradient, conv_lib.tap_kernel_gradient]
  forms = {
    form.__name__: functools.partial(lambda form, x, g: form(x, g, kernel, *window), form)
    for form in found
  }
  return _compare(forms, (x, g))


def _image_gradient(shape: tuple[int, ...], size: int, options: Options) -> Work:
  """The same of the image, at stride 1."""
  *image, cout = options.pick(shape, (shape[0], 2 * size, 2 * size + 1, 8, 8))
  padding, kernel = ((size // 2,) * 2,) * 2, (size, size, image[-1], cout)
  window = (1, 1), padding, (1, 1)
  g, weights = dense.draw_image((*image[:3], cout)), dense.draw_image(kernel)
  used = conv_lib.image_gradient_form(kernel, g.shape, tuple(image), *window)
  found = dict.fromkeys([used, conv_lib.flipped_image_gradient, conv_lib.xla_image_gradient])
  forms = {
    form.__name__: functools.partial(lambda form, g, w: form(g, w, tuple(image), *window), form)
    for form in found
  }
  return _compare(forms, (g, weights))


def reduce_window_pool(x: Any) -> Any:
  """`max_pool_2x2` by XLA's pooling."""
  window = (1, 2, 2, 1)
  return lax.reduce_window(x, -jnp.inf, lax.max, window, window, 'VALID')


def _max_pool(options: Options) -> Work:
  """2x2 max pooling and its gradient."""
  shape = options.pick((2, 256, 256, 64), (1, 4, 4, 2))
  x = dense.draw_image(shape)
  g = dense.draw_image((shape[0], shape[1] // 2, shape[2] // 2, shape[3]))

  def both(pool: Callable[[Any], Any], x: Any, g: Any) -> Any:
    y, pull = jax.vjp(pool, x)
    return y, pull(g)[0]

  forms = {'by indices': max_pool_2x2, 'reduce_window': reduce_window_pool}
  return _compare({name: functools.partial(both, form) for name, form in forms.items()}, (x, g))


def _depthwise(options: Options) -> Work:
  """3x3 convolution of each channel on its own, and both gradients."""
  shape = options.pick((8, 32, 32, 96), (1, 4, 5, 2))
  x, g, kernel = (dense.draw_image(size) for size in (shape, shape, (3, 3, 1, shape[-1])))
  window = (1, 1), ((1, 1), (1, 1)), (1, 1)

  def by_xla(x: Any, kernel: Any, g: Any) -> Any:
    convolve = lambda x, kernel: lax.conv_general_dilated(
      x,
      kernel,
      *window[:2],
      dimension_numbers=('NHWC', 'HWIO', 'NHWC'),
      feature_group_count=shape[-1],
    )
    y, pull = jax.vjp(convolve, x, kernel)
    return y, pull(g)

  def shifted(x: Any, kernel: Any, g: Any) -> Any:
    y, pull = jax.vjp(lambda x, kernel: conv_lib.conv(x, kernel, *window), x, kernel)
    return y, pull(g)

  return _compare({'shifted products': shifted, 'XLA': by_xla}, (x, kernel, g))


# --- panoptic segmentation ------------------------------------------------------------------------


def one_hot_pairs(truth: Any, prediction: Any, num_truth: int, num_prediction: int) -> Any:
  """`count_pairs` as matrix products, in blocks small enough for exact counts in float32."""
  block = 2**14
  pad = lambda x: jnp.pad(x.ravel(), (0, -x.size % block), constant_values=-1).reshape(-1, block)

  def add(total: Any, part: Any) -> Any:
    rows, columns = (
      jax.nn.one_hot(x, n + 1) for x, n in zip(part, (num_truth, num_prediction), strict=True)
    )
    return total + (rows.T @ columns).astype(jnp.int32), None

  start = jnp.zeros((num_truth + 1, num_prediction + 1), jnp.int32)
  return lax.scan(add, start, (pad(truth), pad(prediction)))[0]


def _pairs(options: Options) -> Work:
  del options
  label, detections, truth = panoptic.panoptic_scene(100)
  _, ids = panoptic.merge_numpy(label, detections)
  numbers = {'num_truth': len(truth.valid), 'num_prediction': int(ids.max())}
  forms = {'bincount': count_pairs, 'one-hot products': one_hot_pairs}
  return _compare(
    {name: functools.partial(form, **numbers) for name, form in forms.items()}, (truth.ids, ids)
  )


def gathered(values: Any, before: Any, fraction: Any) -> Any:
  """`_interpolate` of `segjax.ops.panoptic` by gathers."""
  return values[before] + fraction[:, None] * (values[1:] - values[:-1])[before]


def _merging(options: Options) -> Work:
  del options
  label, detections, _ = panoptic.panoptic_scene(100)
  inputs = jax.tree.map(lambda x: np.asarray(x)[None], (label, detections))
  used = panoptic_ops._interpolate, panoptic_ops._WINDOWS
  whole = (1, 1)
  forms = {
    'products, windows': used,
    'gathers, windows': (gathered, used[1]),
    'products, whole image': (used[0], whole),
    'gathers, whole image': (gathered, whole),
  }
  programs: dict[str, Program] = {}
  for name, form in forms.items():
    panoptic_ops._interpolate, panoptic_ops._WINDOWS = form
    try:  # a form is what is there when the program is traced
      programs[name] = ours.call(lambda *arrays: panoptic.merge(*arrays).ids, *inputs)[0]
    finally:
      panoptic_ops._interpolate, panoptic_ops._WINDOWS = used

  def same(found: list, others: Mapping[str, list]) -> str:
    differ = [int((np.asarray(found[0]) != np.asarray(r[0])).sum()) for r in others.values()]
    assert max(differ) < 10, differ  # a probability may be rounded to either side of 0.5
    return f'the same segments but for {max(differ)} pixels'

  return Work(programs.pop('products, windows'), programs, same)


def _compare(forms: Mapping[str, Callable[..., Any]], inputs: tuple[Any, ...]) -> Work:
  """The first form beside the others, whose outputs have to be equal to rounding."""
  programs = {name: ours.call(form, *inputs)[0] for name, form in forms.items()}

  def same(found: list, others: Mapping[str, list]) -> str:
    leaves = jax.tree.leaves(found[0])
    for results in others.values():
      said = harness.close(leaves, jax.tree.leaves(results[0]), 1e-4, 'outputs')
    return said

  first, *_ = forms
  return Work(programs.pop(first), programs, same)


# Name -> [B, H, W, Cin, Cout], the kernel's size, and its stride.
_KERNELS = {
  'rows_64': ((1, 160, 160, 64, 64), 3, 1),
  'rows_256': ((1, 160, 160, 256, 256), 3, 1),
  'small_map': ((1, 40, 40, 256, 256), 3, 1),
  'two_images': ((2, 256, 256, 64, 64), 3, 1),
  'pointwise': ((1, 160, 160, 64, 256), 1, 1),
  'strided': ((1, 80, 80, 256, 256), 3, 2),
  'stem': ((1, 640, 640, 3, 64), 7, 2),
  'mask_head': ((128, 14, 14, 256, 256), 3, 1),
}
_IMAGES = {
  'few_pixels': ((2, 16, 16, 1024, 1024), 3),
  'map': ((1, 160, 160, 256, 256), 3),
  'pointwise': ((1, 40, 40, 1024, 256), 1),
}


def _described(shape: tuple[int, ...], size: int, stride: int = 1) -> str:
  batch, height, width, cin, cout = shape
  return f'{size} × {size}, stride {stride}, {batch} × {height} × {width} × {cin} → {cout}'


ROWS = {
  **{
    f'form_kernel_gradient_{name}': Row(
      f'kernel gradient, {_described(*at)}', functools.partial(_kernel_gradient, *at)
    )
    for name, at in _KERNELS.items()
  },
  **{
    f'form_image_gradient_{name}': Row(
      f'image gradient, {_described(*at)}', functools.partial(_image_gradient, *at)
    )
    for name, at in _IMAGES.items()
  },
  'form_max_pool': Row('2 × 2 max pooling and gradient, 2 × 256 × 256 × 64', _max_pool),
  'form_depthwise': Row(
    '3 × 3 depthwise convolution and gradients, 8 × 32 × 32 × 96: shifted products', _depthwise
  ),
  'form_roi_align_7': Row(
    'RoIAlign 7², forward + backward: gathers', functools.partial(_roi_align, 7)
  ),
  'form_roi_align_14': Row(
    'RoIAlign 14², forward + backward: gathers', functools.partial(_roi_align, 14)
  ),
  'form_nms': Row('NMS, 4700 boxes in 400 clusters, IoU .5: tiles of 128', _nms),
  'form_pairs': Row('pairs of segments, 480 × 640: bincount', _pairs),
  'form_merging': Row('merging 100 masks: products, windows', _merging),
}
