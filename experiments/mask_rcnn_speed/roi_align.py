"""Times multi-level RoIAlign: segjax's two forms, a naive one, and torchvision's.

  python experiments/mask_rcnn_speed/roi_align.py [--boxes=1000] [--channels=256] [--size=800x1333]
    [--repeats=5] [--clock=wall] [--forms=gather,matrix,naive,torchvision]

A feature pyramid with strides 4 to 32 of one image, boxes with sides sampled log-uniformly from 16
to 700 pixels, 2 x 2 samples per bin. Naive: RoIAlign of every box on every level, then selection.
Backward is the gradient with respect to the features, including the forward pass. torchvision is
timed in the same process, if it is installed.

Prints a Markdown table of the minimum over repeats in milliseconds. On a busy machine,
`--clock=cpu` measures the CPU time of all threads instead.
"""

import argparse
import functools
import time

import jax
import jax.numpy as jnp
import numpy as np

from segjax.ops.roi_align import box_levels, multilevel_roi_align, roi_align

STRIDES = (4, 8, 16, 32)
OPTIONS = {'sampling_ratio': 2, 'aligned': False}


def naive(pyramid, boxes, output_size):
  """Every box on every level."""
  pooled = [
    roi_align(f, boxes, output_size=output_size, spatial_scale=1 / stride, **OPTIONS)
    for f, stride in zip(pyramid, STRIDES, strict=True)
  ]
  level = box_levels(boxes, strides=STRIDES)[:, None, None, None]
  return functools.reduce(lambda a, k: jnp.where(level == k, pooled[k], a), range(4), pooled[0])


def form(name):
  return lambda pyramid, boxes, output_size: multilevel_roi_align(
    pyramid, boxes, strides=STRIDES, output_size=output_size, form=name, **OPTIONS
  )


FORMS = {'gather': form('gather'), 'matrix': form('matrix'), 'naive': naive}


def inputs(args: argparse.Namespace) -> tuple[list[np.ndarray], np.ndarray]:
  rng = np.random.default_rng(0)
  size = np.array([int(n) for n in args.size.split('x')])
  pyramid = [
    rng.normal(size=(*-(-size // stride), args.channels)).astype(np.float32) for stride in STRIDES
  ]
  side = np.exp(rng.uniform(np.log(16), np.log(700), (args.boxes, 2))).clip(None, size)
  corner = rng.uniform(0, 1, side.shape) * (size - side)
  return pyramid, np.concatenate([corner, corner + side], -1)[:, [1, 0, 3, 2]].astype(np.float32)


def least(run, args: argparse.Namespace) -> float:
  """Minimum milliseconds of `run`, after a warm-up."""
  clock = {'wall': time.perf_counter, 'cpu': time.process_time}[args.clock]
  run()
  times = []
  for _ in range(args.repeats):
    start = clock()
    run()
    times.append(clock() - start)
  return 1e3 * min(times)


def time_jax(function, args, output_size) -> tuple[float, float]:
  pyramid, boxes = jax.tree.map(jnp.asarray, inputs(args))
  forward = jax.jit(lambda pyramid, boxes: function(pyramid, boxes, output_size))
  g = jnp.ones(jax.eval_shape(forward, pyramid, boxes).shape)

  @jax.jit
  def both(pyramid, boxes, g):
    pooled, pullback = jax.vjp(lambda pyramid: forward(pyramid, boxes), pyramid)
    return pooled, pullback(g)

  return (
    least(lambda: jax.block_until_ready(forward(pyramid, boxes)), args),
    least(lambda: jax.block_until_ready(both(pyramid, boxes, g)), args),
  )


def time_torchvision(args, output_size) -> tuple[float, float]:
  import torch
  from torchvision.ops import MultiScaleRoIAlign

  pyramid, boxes = inputs(args)
  tensors = {
    str(i): torch.tensor(f.transpose(2, 0, 1)[None], requires_grad=True)
    for i, f in enumerate(pyramid)
  }
  pooler = MultiScaleRoIAlign(list(tensors), output_size, OPTIONS['sampling_ratio'])
  sizes = [tuple(int(n) for n in args.size.split('x'))]
  forward = lambda: pooler(tensors, [torch.tensor(boxes)], sizes)

  def forward_alone():
    with torch.no_grad():
      return forward()

  g = torch.ones_like(forward_alone())
  return (
    least(forward_alone, args),
    least(lambda: torch.autograd.grad(forward(), list(tensors.values()), g), args),
  )


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('--boxes', type=int, default=1000)
  parser.add_argument('--channels', type=int, default=256)
  parser.add_argument('--size', default='800x1333')
  parser.add_argument('--repeats', type=int, default=5)
  parser.add_argument('--clock', choices=('wall', 'cpu'), default='wall')
  parser.add_argument('--forms', default='gather,matrix,naive,torchvision')
  args = parser.parse_args()
  print(f'{args.boxes} boxes, {args.channels} channels, {args.size}, {jax.devices()[0]}')
  print(f'minimum {args.clock} time of {args.repeats}, ms\n')
  print('| form | 7x7 forward | forward + backward | 14x14 forward | forward + backward |')
  print('|---|---|---|---|---|')
  for name in args.forms.split(','):
    timer = functools.partial(time_jax, FORMS[name]) if name in FORMS else time_torchvision
    try:
      times = [t for output_size in (7, 14) for t in timer(args, output_size)]
      cells = [f'{t:.0f}' for t in times]
    except ImportError as error:
      cells = [f'not run: {error}', '', '', '']
    print('| ' + ' | '.join([name, *cells]) + ' |', flush=True)


if __name__ == '__main__':
  main()
