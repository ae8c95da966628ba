"""Time and memory as work grows, of our programs alone; `run.py --growth` measures and draws."""

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from segjax.models import unet
from segjax.ops.nms import nms
from speed import dense, detection, harness, ops, ours
from speed.row import Cost, Options, Program

Made = tuple[Program, Cost]


class Curve(NamedTuple):
  """How a program grows.

  Attributes:
    work: what runs.
    axis: what grows.
    values: of the axis.
    toy: values for a test.
    make: makes the program of a value.
    order: exponent of the algorithm; None for two programs to compare.
  """

  work: str
  axis: str
  values: Sequence[Any]
  toy: Sequence[Any]
  make: Callable[[Any, Options], Made]
  order: float | None


def _remat(remat: bool) -> dict[str, bool]:
  return {'remat': True} if remat else {}


def _unet(size: int, batch: int, options: Options, remat: bool = False) -> Made:
  width = options.pick(64, 4)
  same = {'padding': 'same', 'norm': 'batch', 'dropout': 0.0}
  model = unet.UNet(2, width=width, dtype=options.dtype, **same, **_remat(remat))
  image, label, variables = dense.training_inputs(model, (batch, size, size, 1))
  inputs = {'image': image, 'label': label, 'valid': np.ones(batch, bool)}
  return ours.training(ours.dense_task(model), variables, inputs)


def _mask_rcnn(
  options: Options,
  size: int = 256,
  objects: int = 8,
  slots: int = 100,
  classes: int = 80,
  remat: bool = False,
) -> Made:
  if options.toy:
    objects = min(objects, slots)
  image = detection.make_image((size, size))
  model = detection.network(options, classes=classes, **_remat(remat))
  arrays, _ = detection.make_objects((size, size), objects, slots, classes)
  batch = detection.make_batch(image, arrays)
  variables = ours.variables(model, image, batch['size'])
  # A step that changes nothing: random weights stay in range whatever the size of the work.
  return ours.training(detection.make_task(model), variables, batch, rate=0.0)


def _mask_rcnn_curve(
  axis: str, key: str, values: Any, toy: Any, order: float, **fixed: Any
) -> Curve:
  make = lambda value, options: _mask_rcnn(options, **{**fixed, key: value})
  return Curve('Mask R-CNN train step', axis, values, toy, make, order)


def _nms(count: int, options: Options) -> Made:
  del options
  boxes, scores, classes = ops.clustered_boxes(count, 40)
  select = lambda b, s, k: nms(b, s, None, k, threshold=0.7, size=1000)
  return ours.call(select, boxes, scores, classes)


_SIZES = (256, 384, 512, 640, 800)
CURVES = {
  'unet_size': Curve(
    'U-Net (31M) train step', 'height and width', (128, 256, 384, 512), (32, 48),
    lambda size, options: _unet(size, 1, options), 2.0,
  ),
  'unet_batch': Curve(
    'U-Net (31M) train step', 'batch', (1, 2, 4, 8), (1, 2),
    lambda batch, options: _unet(options.pick(128, 32), batch, options), 1.0,
  ),
  'mask_rcnn_size': _mask_rcnn_curve('height and width', 'size', _SIZES, (64, 96), 2.0),
  'mask_rcnn_slots': _mask_rcnn_curve(
    'slots for objects', 'slots', (10, 50, 100, 200), (2, 4), 1.0, objects=2
  ),
  'mask_rcnn_objects': _mask_rcnn_curve('objects', 'objects', (1, 10, 50, 100), (1, 4), 1.0),
  'mask_rcnn_classes': _mask_rcnn_curve('classes', 'classes', (1, 20, 80, 320), (1, 4), 1.0),
  'nms_boxes': Curve('NMS', 'boxes', (500, 2000, 8000, 32000), (50, 100), _nms, 2.0),
  'remat_unet': Curve(
    'U-Net (31M) train step, 1024²', 'remat', (False, True), (False, True),
    lambda remat, options: _unet(options.pick(1024, 32), 1, options, remat), None,
  ),
  'remat_mask_rcnn': Curve(
    'Mask R-CNN train step, 640²', 'remat', (False, True), (False, True),
    lambda remat, options: _mask_rcnn(options, options.pick(640, 64), remat=remat), None,
  ),
}  # fmt: skip


def measure(name: str, options: Options, rounds: int) -> dict[str, Any]:
  """Runs the programs of a curve in turn: median seconds and bytes of temporary memory."""
  curve = CURVES[name]
  values = options.pick(curve.values, curve.toy)
  made = [curve.make(value, options) for value in values]
  for run, _ in made:
    run()
  seen: list[list[float]] = [[] for _ in made]
  for _ in range(rounds):
    for times, (run, _) in zip(seen, made, strict=True):
      times.append(harness.sample(run).wall)
  return {
    'curve': name,
    'values': list(values),
    'seconds': [statistics.median(times) for times in seen],
    'bytes': [cost.temporary for _, cost in made],
    'flops': [cost.flops for _, cost in made],
  }


def exponent(values: Sequence[float], measured: Sequence[float]) -> float:
  """The slope from the first to the last value, on logarithmic axes; NaN of zeros."""
  if min(measured[0], measured[-1]) <= 0:
    return float('nan')
  return math.log(measured[-1] / measured[0]) / math.log(values[-1] / values[0])


def section(results: Sequence[Mapping[str, Any]]) -> str:
  """The part of the page on growth; '' without results.

  Args:
    results: lines of `growth.jsonl`; the last of each curve counts.
  """
  found = {result['curve']: result for result in results}
  curves = {n: c for n, c in CURVES.items() if n in found and c.order is not None}
  pairs = {n: c for n, c in CURVES.items() if n in found and c.order is None}
  lines: list[str] = []
  if curves:
    lines += ['## Growth', '', *_GROWTH, *(_line(c, found[n]) for n, c in curves.items()), '']
    lines += ['![Time and memory as work grows](growth.svg)', '']
  if pairs:
    lines += ['## Rematerialization', '', *_REMAT]
    lines += [_pair(c, found[n]) for n, c in pairs.items()]
  return '\n'.join(lines)


_GROWTH = (
  'Our programs alone. Exponents are slopes on logarithmic axes from the first to the last value, '
  'and the order is that of the algorithm. Memory is that of intermediate results, as compiled.',
  '',
  '| work | grows | from, to | time from, to | exponent | memory from, to | exponent | order |',
  '|---|---|---|---|---|---|---|---|',
)
_REMAT = (
  '`config.model.remat` computes the activations inside a block again in the backward pass.',
  '',
  '| work | time without, with | | memory without, with | |',
  '|---|---|---|---|---|',
)


def _line(curve: Curve, found: Mapping[str, Any]) -> str:
  values, seconds, size = found['values'], found['seconds'], found['bytes']
  cells = (
    curve.work,
    curve.axis,
    f'{values[0]}, {values[-1]}',
    f'{_time(seconds[0])}, {_time(seconds[-1])}',
    f'{exponent(values, seconds):.2f}',
    f'{_mib(size[0])}, {_mib(size[-1])}',
    f'{exponent(values, size):.2f}',
    f'{curve.order:g}',
  )
  return f'| {" | ".join(cells)} |'


def _pair(curve: Curve, found: Mapping[str, Any]) -> str:
  (a, b), (c, d) = found['seconds'], found['bytes']
  cells = (
    curve.work,
    f'{_time(a)}, {_time(b)}',
    f'{b / a - 1:+.0%}',
    f'{_mib(c)}, {_mib(d)}',
    f'{d / c - 1:+.0%}',
  )
  return f'| {" | ".join(cells)} |'


def _time(seconds: float) -> str:
  return f'{seconds:.2f} s' if seconds >= 1 else f'{1e3 * seconds:.1f} ms'


def _mib(size: float) -> str:
  return f'{size / 2**20:,.0f} MiB'


def draw(results: Sequence[Mapping[str, Any]], path: Path) -> None:
  """Writes an SVG with a plot of time and memory for each curve; nothing without results."""
  import matplotlib

  matplotlib.use('svg')
  from matplotlib import pyplot

  found = {result['curve']: result for result in results}
  curves = [(c, found[n]) for n, c in CURVES.items() if n in found and c.order is not None]
  if not curves:
    return
  rows = -(-len(curves) // 3)
  # The same SVG for the same results: ids do not depend on chance, and there is no date.
  with pyplot.rc_context({'svg.hashsalt': 'segjax', 'font.size': 9}):
    figure, axes = pyplot.subplots(rows, 3, figsize=(12, 3.2 * rows), squeeze=False)
    for axis in axes.flat[len(curves) :]:
      axis.remove()
    for axis, (curve, result) in zip(axes.flat, curves, strict=False):
      _plot(axis, curve, result)
    figure.tight_layout()
    figure.savefig(path, metadata={'Date': None})
    pyplot.close(figure)


def _plot(axis: Any, curve: Curve, result: Mapping[str, Any]) -> None:
  values = result['values']
  other = axis.twinx()
  axis.set(title=curve.work, xlabel=curve.axis, xscale='log')
  size = [size / 2**20 for size in result['bytes']]
  for side, measured, label, style in (
    (axis, result['seconds'], 'seconds', 'C0o-'),
    (other, size, 'MiB', 'C1s--'),
  ):
    side.plot(values, measured, style)
    side.set_ylabel(label, color=style[:2])
    # Room on both sides, so that noise does not look like growth.
    side.set(yscale='log', ylim=(min(measured) / 2, max(measured) * 2))
    ends = sorted({min(measured), max(measured)})
    side.minorticks_off()
    side.set_yticks(ends, [f'{value:.2g}' if value < 10 else f'{value:,.0f}' for value in ends])
  axis.set_xticks(values, [str(value) for value in values])
  axis.minorticks_off()
