"""Operations beside the C++ of torch and torchvision."""

import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
from jax import lax

from segjax.ops import pooling, upsample
from segjax.ops.nms import nms
from segjax.ops.paste_masks import paste_masks
from segjax.ops.roi_align import multilevel_roi_align
from speed import harness, ours
from speed.row import Options, Row, Work

STRIDES = (4, 8, 16, 32)
_TOLERANCE = 1e-4


# --- RoIAlign -------------------------------------------------------------------------------------


def roi_inputs(options: Options) -> tuple[list[np.ndarray], np.ndarray, tuple[int, int]]:
  """A pyramid f32[1, h, w, 256], boxes f32[1000, 4], and the size of the image."""
  size = options.pick((800, 1333), (64, 96))
  channels, count = options.pick((256, 1000), (4, 10))
  rng = np.random.default_rng(0)
  pyramid = [
    rng.standard_normal((1, -(-size[0] // s), -(-size[1] // s), channels)).astype(np.float32)
    for s in STRIDES
  ]
  return pyramid, random_boxes(rng, count, size), size


def random_boxes(rng: np.random.Generator, count: int, size: tuple[int, int]) -> np.ndarray:
  """Boxes f32[count, 4] inside an image, with sides log-uniform from 1/50 to 1/2 of it."""
  low, high = np.log(min(size) / 50), np.log(min(size) / 2)
  extent = np.exp(rng.uniform(low, high, (count, 2)))
  corner = rng.uniform(0, 1, (count, 2)) * (np.array(size[::-1]) - extent)
  return np.concatenate([corner, corner + extent], -1).astype(np.float32)


def roi_align(
  bins: int, backward: bool, levels: Any, boxes: Any, gradient: Any, **options: Any
) -> Any:
  """The features of all boxes and, if asked for, the gradient of the levels."""

  def cut(levels: Any) -> Any:
    return multilevel_roi_align(
      levels,
      boxes[None],
      strides=STRIDES,
      output_size=bins,
      sampling_ratio=2,
      aligned=False,
      **options,
    )

  if not backward:
    return cut(levels), ()
  found, pull = jax.vjp(cut, levels)
  return found, pull(gradient)[0]


def _roi_align(bins: int, backward: bool, options: Options) -> Work:
  pyramid, boxes, size = roi_inputs(options)
  shape = (1, len(boxes), bins, bins, pyramid[0].shape[-1])
  gradient = np.random.default_rng(1).standard_normal(shape).astype(np.float32)
  function = functools.partial(roi_align, bins, backward)
  run, cost = ours.call(function, pyramid, boxes, gradient)
  if not options.peers:
    return Work(run, cost=cost)
  import torch
  from torchvision.ops import MultiScaleRoIAlign

  from speed import peers

  their_boxes = [torch.as_tensor(boxes).to(peers.device())]
  programs = {}
  for name, layout in peers.LAYOUTS.items():
    levels = {
      str(i): peers.image_tensor(x, layout).requires_grad_(backward) for i, x in enumerate(pyramid)
    }
    pool = MultiScaleRoIAlign(list(levels), bins, 2)
    g = peers.image_tensor(gradient[0], torch.contiguous_format)

    def their(levels: Any = levels, pool: Any = pool, g: Any = g) -> list[Any]:
      with torch.set_grad_enabled(backward):
        found = pool(levels, their_boxes, [size])
      grads = torch.autograd.grad(found, list(levels.values()), g) if backward else []
      peers.finish()
      return [x.detach() for x in (found, *grads)]

    programs[name.replace('torch', 'torchvision')] = their

  def same(found: list, others: Mapping[str, list]) -> str:
    features, grads = found[0]
    to_numpy = lambda results: [[peers.to_numpy(x) for x in results[0]]]
    theirs = {name: to_numpy(results) for name, results in others.items()}
    return _close([features[0], *grads], theirs)

  return Work(run, programs, same, cost)


# --- boxes and masks ------------------------------------------------------------------------------


def clustered_boxes(count: int, clusters: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """Boxes f32[A, 4] around some places, scores f32[A], five classes i32[A]."""
  rng = np.random.default_rng(0)
  which = rng.integers(0, clusters, count)
  center, extent = rng.uniform(0, 800, (clusters, 2)), rng.uniform(20, 200, (clusters, 2))
  near = 0.25 if clusters < 100 else 0.05
  center = center[which] + extent[which] * near * rng.normal(size=(count, 2))
  extent = extent[which] * np.exp(near * rng.normal(size=(count, 2)))
  boxes = np.concatenate([center - extent / 2, center + extent / 2], -1).clip(0, 800)
  scores = rng.permutation(count) / count  # no ties, whose order may differ
  return boxes.astype(np.float32), scores.astype(np.float32), (which % 5).astype(np.int32)


def kept(found: tuple[Any, Any]) -> np.ndarray:
  """The indices that `nms` keeps."""
  return np.asarray(found[0])[np.asarray(found[1])]


def _nms(count: int, threshold: float, clusters: int, options: Options) -> Work:
  arrays = clustered_boxes(options.pick(count, 50), clusters)
  function = lambda b, s, k: nms(b, s, None, k, threshold=threshold, size=1000)
  run, cost = ours.call(function, *arrays)
  if not options.peers:
    return Work(run, cost=cost)
  import torch
  from torchvision.ops import batched_nms

  from speed import peers

  boxes, scores, classes = (torch.as_tensor(a).to(peers.device()) for a in arrays)

  def their() -> Any:
    found = batched_nms(boxes, scores, classes, threshold)[:1000]
    peers.finish()
    return found

  def same(found: list, others: Mapping[str, list]) -> str:
    mine, theirs = kept(found[0]), others['torchvision'][0].cpu().numpy()
    assert np.array_equal(mine, theirs), f'{len(mine)} and {len(theirs)} boxes kept'
    return f'the same {len(mine)} boxes kept'

  return Work(run, {'torchvision': their}, same, cost)


def _paste(options: Options) -> Work:
  size, count = options.pick(((800, 1333), 100), ((40, 60), 5))
  rng = np.random.default_rng(0)
  masks = rng.random((count, 28, 28), np.float32)
  boxes = random_boxes(rng, count, size)
  run = lambda: paste_masks(masks, boxes, size)
  if not options.peers:
    return Work(run)
  import torch
  from torchvision.models.detection.roi_heads import paste_masks_in_image

  their_masks, their_boxes = torch.as_tensor(masks)[:, None], torch.as_tensor(boxes)
  their = lambda: paste_masks_in_image(their_masks, their_boxes, size)[:, 0] > 0.5

  def same(found: list, others: Mapping[str, list]) -> str:
    differ = int((found[0] != others['torchvision'][0].numpy()).sum())
    assert differ <= 1e-5 * found[0].size, f'{differ} pixels differ'
    return f'the same masks but for {differ} pixels'

  return Work(run, {'torchvision': their}, same)


# --- layers ---------------------------------------------------------------------------------------


def _pool_unpool(options: Options) -> Work:
  rng = np.random.default_rng(0)
  shape = options.pick((2, 180, 240, 128), (1, 8, 12, 4))
  x, gradient = (rng.standard_normal(shape).astype(np.float32) for _ in range(2))

  def function(x: Any, gradient: Any) -> Any:
    def both(x: Any) -> Any:
      values, indices = pooling.argmax_pool_2x2(x)
      return pooling.unpool_2x2(values, indices, x.shape[1:3])

    found, pull = jax.vjp(both, x)
    return found, pull(gradient)[0]

  def their(functional: Any, x: Any) -> Any:
    values, indices = functional.max_pool2d(x, 2, return_indices=True)
    return functional.max_unpool2d(values, indices, 2)

  return _layer(function, their, x, (), gradient, options)


def _transposed(
  kernel: int, stride: int, shape: tuple[int, ...], features: int, options: Options
) -> Work:
  shape, features = options.pick((shape, features), ((1, 5, 6, 4), 3))
  rng = np.random.default_rng(0)
  x = rng.standard_normal(shape).astype(np.float32)
  weight = rng.standard_normal((kernel, kernel, shape[-1], features)).astype(np.float32)
  sides = (stride * (n - 1) + kernel for n in shape[1:3])
  gradient = rng.standard_normal((shape[0], *sides, features)).astype(np.float32)

  def function(x: Any, weight: Any, gradient: Any) -> Any:
    found, pull = jax.vjp(lambda x, w: upsample.conv_transpose(x, w, stride), x, weight)
    return found, *pull(gradient)

  def their(functional: Any, x: Any, weight: Any) -> Any:
    return functional.conv_transpose2d(x, weight, stride=stride)

  return _layer(function, their, x, (weight, (2, 3, 0, 1)), gradient, options)


def _strided(shape: tuple[int, ...], features: int, options: Options) -> Work:
  """A 3 × 3 convolution of stride 2, with both gradients."""
  shape, features = options.pick((shape, features), ((1, 8, 12, 4), 3))
  rng = np.random.default_rng(0)
  x = rng.standard_normal(shape).astype(np.float32)
  weight = rng.standard_normal((3, 3, shape[-1], features)).astype(np.float32)
  sides = ((n + 1) // 2 for n in shape[1:3])
  gradient = rng.standard_normal((shape[0], *sides, features)).astype(np.float32)

  def function(x: Any, weight: Any, gradient: Any) -> Any:
    layer = lambda x, w: lax.conv_general_dilated(
      x, w, (2, 2), [(1, 1)] * 2, dimension_numbers=('NHWC', 'HWIO', 'NHWC')
    )
    found, pull = jax.vjp(layer, x, weight)
    return found, *pull(gradient)

  def their(functional: Any, x: Any, weight: Any) -> Any:
    return functional.conv2d(x, weight, stride=2, padding=1)

  return _layer(function, their, x, (weight, (3, 2, 0, 1)), gradient, options)


def _layer(
  function: Callable[..., Any],
  their: Callable[..., Any],
  x: np.ndarray,
  weight: tuple[Any, ...],
  gradient: np.ndarray,
  options: Options,
) -> Work:
  """A layer forward and backward: outputs, and the gradients of input and weight.

  Args:
    function: ours, of x, the weight if there is one, and the gradient of the output.
    their: of `torch.nn.functional`, x and the weight.
    x: f[B, H, W, C].
    weight: our array and the axes that the peer's has in its order, or nothing.
    gradient: of the output.
    options: of the row.
  """
  run, cost = ours.call(function, x, *weight[:1], gradient)
  if not options.peers:
    return Work(run, cost=cost)
  import torch
  from torch.nn import functional

  from speed import peers

  programs = {}
  for name, layout in peers.LAYOUTS.items():
    tensors = [peers.image_tensor(x, layout).requires_grad_()]
    if weight:
      array = torch.as_tensor(np.ascontiguousarray(weight[0].transpose(weight[1])))
      tensors.append(array.to(peers.device(), memory_format=layout).requires_grad_())
    g = peers.image_tensor(gradient, layout)

    def program(tensors: Any = tensors, g: Any = g) -> list[Any]:
      found = their(functional, *tensors)
      grads = torch.autograd.grad(found, tensors, g)
      peers.finish()
      return [found.detach(), *grads]

    programs[name] = program

  def same(found: list, others: Mapping[str, list]) -> str:
    expected = {}
    for name, results in others.items():
      first = [peers.to_numpy(t) for t in results[0][:2]]
      if weight:
        first.append(results[0][2].cpu().numpy().transpose(np.argsort(weight[1])))
      expected[name] = [first]
    return _close(found[0], expected)

  return Work(run, programs, same, cost)


def _close(found: Any, others: Mapping[str, list]) -> str:
  for results in others.values():
    leaves = jax.tree.leaves(found)
    said = harness.close(leaves, list(results[0]), _TOLERANCE, 'outputs and gradients')
  return said


def _row(work: str, make: Any, *args: Any, target: float | None = None) -> Row:
  return Row(work, functools.partial(make, *args), target)


def _transposed_row(kernel: int, stride: int, shape: tuple[int, ...], features: int) -> Row:
  sizes = ' × '.join(map(str, shape))
  work = f'transposed convolution {kernel}², stride {stride}, {sizes} → {features}, both gradients'
  return _row(work, _transposed, kernel, stride, shape, features, target=0.5)


ROWS = {
  'roi_align_7': _row('RoIAlign 7², 1000 boxes', _roi_align, 7, False),
  'roi_align_7_grad': _row('RoIAlign 7², forward + backward', _roi_align, 7, True, target=0.3),
  'roi_align_14': _row('RoIAlign 14², 1000 boxes', _roi_align, 14, False),
  'roi_align_14_grad': _row('RoIAlign 14², forward + backward', _roi_align, 14, True, target=0.3),
  'nms_2000': _row('NMS, 2000 boxes, IoU .7', _nms, 2000, 0.7, 40),
  'nms_8000': _row('NMS, 8000 boxes, IoU .7', _nms, 8000, 0.7, 40),
  'nms_2000_clusters': _row('NMS, 2000 boxes in 400 clusters, IoU .5', _nms, 2000, 0.5, 400),
  'paste': _row('pasting 100 masks, 800 × 1333', _paste),
  'pool_unpool': _row(
    'max pooling + unpooling, 2 × 180 × 240 × 128, forward + backward', _pool_unpool, target=0.3
  ),
  'transposed_2_2': _transposed_row(2, 2, (2, 64, 64, 512), 256),
  'transposed_4_2': _transposed_row(4, 2, (1, 40, 40, 21), 21),
  'transposed_8_2': _transposed_row(8, 2, (1, 90, 120, 64), 64),
  'transposed_16_8': _transposed_row(16, 8, (1, 64, 64, 21), 21),
  'conv_strided': _row(
    '3 × 3 convolution, stride 2, 1 × 80 × 80 × 256 → 256, both gradients',
    *(_strided, (1, 80, 80, 256), 256),
  ),
}
