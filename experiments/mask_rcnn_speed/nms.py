"""Times non-maximum suppression: segjax's implementation, two others, and torchvision's.

  python experiments/mask_rcnn_speed/nms.py [--repeats=10] [--tiles=64,128,256]

Clustered boxes with random scores in 800 x 800 pixels, five classes, the same for all
implementations, which must keep the same boxes. The other two implementations:

  one pick per step    picks the highest remaining score and compares all boxes with it
  one box per step     visits the sorted boxes and compares each with the boxes kept so far

torchvision's `batched_nms` runs if torch and torchvision are installed, one image after the other.
Prints a Markdown table of the minimum over repeats in milliseconds: wall time, and CPU time of all
threads, which is less sensitive to other load.
"""

import argparse
import functools
import time
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from segjax.ops.boxes import iou
from segjax.ops.nms import nms


class Case(NamedTuple):
  images: int
  boxes: int
  size: int
  threshold: float
  clusters: int


CASES = (
  Case(1, 1000, 1000, 0.7, 40),  # A level's proposals.
  Case(2, 1000, 1000, 0.7, 40),
  Case(1, 4700, 1000, 0.7, 40),  # Five levels' proposals at test time.
  Case(2, 4700, 1000, 0.7, 40),
  Case(2, 4700, 1000, 0.5, 400),  # All boxes are visited: fewer than 1000 are kept.
  Case(2, 1000, 100, 0.5, 40),  # Detections.
)


def sample_boxes(case: Case, seed: int = 0) -> tuple[np.ndarray, ...]:
  """Clustered boxes f32[B, A, 4], scores f32[B, A], classes i32[B, A]."""
  rng = np.random.default_rng(seed)
  shape = (case.images, case.boxes)
  center = rng.uniform(0, 800, (case.clusters, 2))
  extent = rng.uniform(20, 200, (case.clusters, 2))
  which = rng.integers(0, case.clusters, shape)
  near = 0.25 if case.clusters < 100 else 0.05
  center = center[which] + extent[which] * near * rng.normal(size=(*shape, 2))
  extent = extent[which] * np.exp(near * rng.normal(size=(*shape, 2)))
  boxes = np.concatenate([center - extent / 2, center + extent / 2], -1).clip(0, 800)
  classes = which % 5 if case.clusters >= 100 else rng.integers(0, 5, shape)
  return boxes.astype(np.float32), rng.random(shape, np.float32), classes.astype(np.int32)


def pick_per_step(boxes, scores, classes, *, threshold, size):
  """O(size) steps over all boxes."""

  def step(state):
    count, left, kept = state
    best = jnp.argmax(left)
    suppressed = (iou(boxes[best][None], boxes)[0] > threshold) & (classes == classes[best])
    left = jnp.where(suppressed, -jnp.inf, left).at[best].set(-jnp.inf)
    return count + 1, left, kept.at[count].set(best)

  unfinished = lambda state: (state[0] < size) & (state[1].max() > -jnp.inf)
  start = (jnp.int32(0), scores, jnp.zeros(size, jnp.int32))
  count, _, kept = lax.while_loop(unfinished, step, start)
  return kept, jnp.arange(size) < count


def box_per_step(boxes, scores, classes, *, threshold, size):
  """O(boxes) steps over the kept boxes."""
  order = jnp.argsort(scores, descending=True, stable=True).astype(jnp.int32)

  def step(state):
    place, count, kept = state
    i = order[place]
    rival = (jnp.arange(size) < count) & (classes[kept] == classes[i])
    keep = ~(rival & (iou(boxes[i][None], boxes[kept])[0] > threshold)).any()
    return place + 1, count + keep, kept.at[jnp.where(keep, count, size)].set(i, mode='drop')

  unfinished = lambda state: (state[0] < len(order)) & (state[1] < size)
  start = (jnp.int32(0), jnp.int32(0), jnp.zeros(size, jnp.int32))
  _, count, kept = lax.while_loop(unfinished, step, start)
  return kept, jnp.arange(size) < count


def tiled(boxes, scores, classes, *, threshold, size, tile):
  return nms(boxes, scores, None, classes, threshold=threshold, size=size, tile=tile)


def kept_by(function, case: Case, arrays) -> tuple:
  """The compiled function without arguments, and the kept indices of each image."""
  form = jax.jit(jax.vmap(functools.partial(function, threshold=case.threshold, size=case.size)))
  arrays = jax.device_put(arrays)
  run = lambda: jax.block_until_ready(form(*arrays))
  return run, [np.asarray(i)[np.asarray(v)] for i, v in zip(*run(), strict=True)]


def torchvision_form(case: Case, arrays) -> tuple | None:
  """As `kept_by`, for torchvision; None if it is not installed."""
  try:
    import torch
    from torchvision.ops import batched_nms
  except ImportError:
    return None
  images = list(zip(*map(torch.tensor, arrays), strict=True))
  run = lambda: [batched_nms(*image, case.threshold)[: case.size].numpy() for image in images]
  return run, run()


def times(run, repeats: int) -> tuple[float, float]:
  """The minimum wall time and CPU time in milliseconds."""
  wall, processor = [], []
  for _ in range(repeats):
    start = time.perf_counter(), time.process_time()
    run()
    wall.append(time.perf_counter() - start[0])
    processor.append(time.process_time() - start[1])
  return 1e3 * min(wall), 1e3 * min(processor)


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('--repeats', type=int, default=10)
  parser.add_argument('--tiles', default='64,128,256')
  args = parser.parse_args()
  forms = {
    f'segjax, tiles of {tile}': functools.partial(tiled, tile=int(tile))
    for tile in args.tiles.split(',')
  }
  forms |= {'one box per step': box_per_step, 'one pick per step': pick_per_step}
  names = [*forms, 'torchvision']
  print(f'{jax.devices()[0]}, jax {jax.__version__}; ms wall / ms CPU\n')
  print('| images x boxes | K | IoU | kept |', ' | '.join(names), '|')
  print('|---' * (4 + len(names)) + '|')
  for case in CASES:
    arrays = sample_boxes(case)
    runs = [kept_by(form, case, arrays) for form in forms.values()]
    runs.append(torchvision_form(case, arrays))
    expected = runs[0][1]
    cells = []
    for name, form in zip(names, runs, strict=True):
      if form is None:
        cells.append('not installed')
        continue
      run, kept = form
      if not all(map(np.array_equal, kept, expected)):
        raise SystemExit(f'{name} keeps different boxes than {names[0]}: {case}')
      cells.append('{:.2f} / {:.2f}'.format(*times(run, args.repeats)))
    total = sum(map(len, expected))
    row = [f'{case.images} x {case.boxes}', case.size, case.threshold, total, *cells]
    print('|', ' | '.join(map(str, row)), '|', flush=True)


if __name__ == '__main__':
  main()
