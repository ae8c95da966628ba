"""Times panoptic merging and PQ of an image: segjax under `jit`, and NumPy.

  python experiments/panoptic_speed/measure.py [--repeats=10]

One synthetic image of 480 x 640, 53 stuff and 80 thing classes, 100 detections with 28 x 28 masks,
of which a given number have a score above the threshold; the truth has up to 40 segments. All
implementations get the same input and must agree. The NumPy code follows the public code:

  merging    pastes each mask into the region of its box and compares it with the occupied pixels;
             then one mask per stuff class
  PQ         `np.unique` of pairs of ids, and dictionaries
  PQ, PNG    the same, with the prediction encoded and decoded as PNG in memory, as between the two
             public programs (whose files also contain the truth)

If panopticapi or cityscapesscripts, which has a copy of it, is installed, its
`pq_compute_single_core` runs too, on files in a temporary directory.

Then two parts are compared separately: counting pairs of segments; and pasting, by matrix products
or gathers, in windows or over the full image.

Prints Markdown tables of the minimum over repeats in milliseconds: wall time, and CPU time of all
threads, which is less sensitive to other load.
"""

import argparse
import contextlib
import functools
import importlib
import io
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

from segjax.data.formats import panoptic as coding
from segjax.metrics import panoptic as metric
from segjax.ops import panoptic as ops
from segjax.ops.paste_masks import paste_mask
from segjax.types import Array, Detections, Segments

HEIGHT, WIDTH, DETECTIONS, MASK, SEGMENTS = 480, 640, 100, 28, 64
THINGS, CLASSES = 80, 133
# The semantic labels: "other", then the stuff.
STUFF = (None, *range(THINGS, CLASSES))


def sample_image(above: int, seed: int = 0) -> tuple[np.ndarray, Detections, Segments]:
  """The label, the detections with `above` scores over 0.5, and a similar ground truth."""
  rng = np.random.default_rng(seed)
  label = np.kron(rng.choice([5, 9, 17, 30, 48], (6, 8)), np.ones((80, 80), int)).astype(np.int32)
  extent = np.exp(rng.uniform(np.log(20), np.log(250), (DETECTIONS, 2)))
  corner = rng.uniform(0, 1, (DETECTIONS, 2)) * (np.array([WIDTH, HEIGHT]) - extent)
  y, x = np.mgrid[:MASK, :MASK] / (MASK - 1) - 0.5
  radius = rng.uniform(0.3, 0.6, (DETECTIONS, 1, 1))
  scores = (
    np.where(np.arange(DETECTIONS) < above, 0.5, 0) + np.sort(rng.random(DETECTIONS))[::-1] / 2
  )
  detections = Detections(
    boxes=np.concatenate([corner, corner + extent], -1).astype(np.float32),
    classes=rng.integers(0, THINGS, DETECTIONS).astype(np.int32),
    scores=scores.astype(np.float32),
    masks=(1 / (1 + np.exp(20 * (np.hypot(y, x) - radius)))).astype(np.float32),
    valid=np.ones(DETECTIONS, bool),
  )
  # 40 segments of the merged result, shifted.
  found, ids = merge_numpy(label, detections)
  kept = list(found)[:40]
  true = np.zeros_like(ids)
  for number, old in enumerate(kept, start=1):
    true[6:, 9:][ids[:-6, :-9] == old] = number
  fields = np.zeros((3, SEGMENTS), np.int32)
  fields[0, : len(kept)] = [found[old] for old in kept]
  fields[2] = np.bincount(true.ravel(), minlength=SEGMENTS + 1)[1:] > 0
  truth = Segments(true.astype(np.int32), fields[0], fields[1].astype(bool), fields[2].astype(bool))
  return label, detections, truth


def merge_numpy(label: np.ndarray, detections: Detections) -> tuple[dict[int, int], np.ndarray]:
  """{id: class} and the map of ids, numbered as `merge_segments` does."""
  ids, found = np.zeros(label.shape, np.int32), {}
  for k in np.argsort(-detections.scores, kind='stable'):
    if detections.scores[k] < 0.5:
      break
    region, mask = paste_mask(
      detections.masks[k], detections.boxes[k], label.shape, rule='detectron2'
    )
    free = ids[region] == 0
    area, left = mask.sum(), (mask & free).sum()
    if not area or (area - left) / area > 0.5:
      continue
    ids[region][mask & free] = k + 1
    found[int(k) + 1] = int(detections.classes[k])
  for value in np.unique(label):
    mask = (label == value) & (ids == 0)
    if STUFF[value] is not None and mask.sum() >= 4096:
      number = DETECTIONS + int(value)
      ids[mask], found[number] = number, STUFF[value]
  return found, ids


def quality_numpy(
  found: dict[int, int], ids: np.ndarray, truth: Segments
) -> dict[int, list[float]]:
  """{class: [sum of IoU, TP, FP, FN]}, without crowds."""
  true = {k + 1: int(c) for k, c in enumerate(truth.classes) if truth.valid[k]}
  values, counts = np.unique(truth.ids.astype(np.int64) * 2**24 + ids, return_counts=True)
  pairs = {divmod(int(v), 2**24): int(c) for v, c in zip(values, counts, strict=True)}
  true_area, area = np.bincount(truth.ids.ravel()), np.bincount(ids.ravel())
  stats: dict[int, list[float]] = {}
  matched: tuple[set, set] = (set(), set())
  for (t, p), shared in pairs.items():
    if t and p and true[t] == found[p]:
      iou = shared / (true_area[t] + area[p] - shared - pairs.get((0, p), 0))
      if iou > 0.5:
        stat = stats.setdefault(true[t], [0.0, 0, 0, 0])
        stat[0], stat[1] = stat[0] + iou, stat[1] + 1
        matched[0].add(t)
        matched[1].add(p)
  for t in true.keys() - matched[0]:
    stats.setdefault(true[t], [0.0, 0, 0, 0])[3] += 1
  for p in found.keys() - matched[1]:
    if pairs.get((0, p), 0) / area[p] <= 0.5:
      stats.setdefault(found[p], [0.0, 0, 0, 0])[2] += 1
  return stats


def through_png(found: dict[int, int], ids: np.ndarray, truth: Segments) -> dict[int, list[float]]:
  image = Image.open(io.BytesIO(coding.encode_ids(ids)))
  return quality_numpy(found, coding.rgb_to_ids(np.asarray(image)), truth)


@jax.jit
def merge(label: Array, detections: Detections) -> Segments:
  return ops.merge_segments(label, detections, thing_classes=range(THINGS), stuff_classes=STUFF)


@jax.jit
def quality(prediction: Segments, truth: Segments) -> dict[str, Array]:
  return metric.panoptic_counts(prediction, truth, CLASSES)


@jax.jit
def merge_and_measure(label: Array, detections: Detections, truth: Segments) -> dict[str, Array]:
  return quality(merge(label, detections), truth)


def public_form(found: dict[int, int], ids: np.ndarray, truth: Segments, directory: Path) -> Any:
  """The public code's reading and matching of one image; None if it is not installed."""
  for name in (
    'panopticapi.evaluation',
    'cityscapesscripts.evaluation.evalPanopticSemanticLabeling',
  ):
    with contextlib.suppress(ImportError):
      module = importlib.import_module(name)
      break
  else:
    return None
  area = np.bincount(truth.ids.ravel(), minlength=SEGMENTS + 1)
  entries = [
    {
      'file_name': 'truth.png',
      'image_id': 1,
      'segments_info': [
        {'id': k + 1, 'category_id': int(c), 'area': int(area[k + 1]), 'iscrowd': 0}
        for k, c in enumerate(truth.classes)
        if truth.valid[k]
      ],
    },
    {
      'file_name': 'prediction.png',
      'image_id': 1,
      'segments_info': [{'id': k, 'category_id': c} for k, c in found.items()],
    },
  ]
  for entry, segments in zip(entries, (truth.ids, ids), strict=True):
    (directory / entry['file_name']).write_bytes(coding.encode_ids(segments))

  def run():
    with contextlib.redirect_stdout(io.StringIO()):  # it prints
      return module.pq_compute_single_core(
        0, [entries], directory, directory, dict.fromkeys(range(CLASSES))
      )

  return name, run


def one_hot_pairs(truth: Array, prediction: Array, num_truth: int, num_prediction: int) -> Array:
  """`count_pairs` as matrix products, in blocks small enough for exact counts in float32."""
  block = 2**14
  pad = lambda x: jnp.pad(x.ravel(), (0, -x.size % block), constant_values=-1).reshape(-1, block)

  def add(total, part):
    rows, columns = (
      jax.nn.one_hot(x, n + 1) for x, n in zip(part, (num_truth, num_prediction), strict=True)
    )
    return total + (rows.T @ columns).astype(jnp.int32), None

  start = jnp.zeros((num_truth + 1, num_prediction + 1), jnp.int32)
  return jax.lax.scan(add, start, (pad(truth), pad(prediction)))[0]


def gathered(values: Array, before: Array, fraction: Array) -> Array:
  """`_interpolate` of `segjax.ops.panoptic` by gathers."""
  return values[before] + fraction[:, None] * (values[1:] - values[:-1])[before]


def times(run: Callable[[], Any], repeats: int) -> str:
  """The minimum wall time and CPU time in milliseconds."""
  run()
  wall, processor = [], []
  for _ in range(repeats):
    start = time.perf_counter(), time.process_time()
    jax.block_until_ready(run())
    wall.append(time.perf_counter() - start[0])
    processor.append(time.process_time() - start[1])
  return f'{1e3 * min(wall):.1f} / {1e3 * min(processor):.1f}'


def compare_whole(above: int, repeats: int, directory: Path) -> list[str]:
  label, detections, truth = sample_image(above)
  found, ids = merge_numpy(label, detections)
  on_device = jax.device_put(jax.tree.map(lambda x: x[None], (label, detections, truth)))
  segments = merge(*on_device[:2])
  np.testing.assert_array_equal(segments.ids[0], ids)
  counts = jax.device_get(quality(segments, on_device[2]))
  stats = quality_numpy(found, ids, truth)
  expected = np.array([stats.get(c, [0, 0, 0, 0]) for c in range(CLASSES)])
  ours = [metric.add_up(counts['iou']), counts['tp'], counts['fp'], counts['fn']]
  np.testing.assert_allclose(np.stack(ours, 1), expected, rtol=0, atol=1e-12)
  rows = [
    ('merging', lambda: merge(*on_device[:2]), lambda: merge_numpy(label, detections)),
    ('PQ', lambda: quality(segments, on_device[2]), lambda: quality_numpy(found, ids, truth)),
    ('PQ, PNG', None, lambda: through_png(found, ids, truth)),
    (
      'merging and PQ',
      lambda: merge_and_measure(*on_device),
      lambda: through_png(*merge_numpy(label, detections), truth),
    ),
  ]
  if public := public_form(found, ids, truth, directory):
    name, run = public
    for c, stat in enumerate(expected):
      theirs = run()[c]
      np.testing.assert_allclose([theirs.iou, theirs.tp, theirs.fp, theirs.fn], stat, atol=1e-12)
    rows.append((f'PQ by {name}', None, run))
  return [
    f'| {above} | {name} | {times(device, repeats) if device else "–"} | {times(host, repeats)} |'
    for name, device, host in rows
  ]


def compare_parts(repeats: int) -> list[str]:
  label, detections, truth = sample_image(DETECTIONS)
  _, ids = merge_numpy(label, detections)
  maps = jax.device_put((truth.ids, ids))
  rows = []
  for name, form in {'bincount': metric.count_pairs, 'one-hot products': one_hot_pairs}.items():
    count = jax.jit(functools.partial(form, num_truth=SEGMENTS, num_prediction=153))
    np.testing.assert_array_equal(count(*maps), metric.count_pairs(*maps, SEGMENTS, 153))
    rows.append(f'| pairs of segments | {name} | {times(lambda c=count: c(*maps), repeats)} |')
  arrays = jax.device_put((label[None], jax.tree.map(lambda x: x[None], detections)))
  used = ops._interpolate, ops._WINDOWS
  forms = {
    'products, windows': used,
    'gathers, windows': (gathered, ops._WINDOWS),
    'products, whole image': (ops._interpolate, (1, 1)),
    'gathers, whole image': (gathered, (1, 1)),
  }
  for name, form in forms.items():
    ops._interpolate, ops._WINDOWS = form
    forward = jax.jit(lambda *a: merge.__wrapped__(*a))
    differ = int((forward(*arrays).ids != merge(*arrays).ids).sum())
    assert differ < 10, differ  # a probability may be rounded to either side of the threshold
    cell = times(lambda f=forward: f(*arrays), repeats)
    rows.append(f'| merging {DETECTIONS} masks | {name} | {cell} |')
  ops._interpolate, ops._WINDOWS = used
  return rows


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('--repeats', type=int, default=10)
  args = parser.parse_args()
  print(f'{jax.devices()[0]}, jax {jax.__version__}; ms wall / ms CPU\n')
  print('| detections above the threshold | | segjax | NumPy |\n|---|---|---|---|')
  with tempfile.TemporaryDirectory() as directory:
    for above in (10, 100):
      print(*compare_whole(above, args.repeats, Path(directory)), sep='\n')
  print('\n| part | implementation | |\n|---|---|---|')
  print(*compare_parts(args.repeats), sep='\n')


if __name__ == '__main__':
  main()
