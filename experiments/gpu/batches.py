"""Memory and images a second of a train step, for batches up to the size that does not fit.

  python experiments/gpu/batches.py --network=segnet --dtype=bfloat16 --out=FILE

Each batch is four times as large as the one before; where one does not fit, twice the last one that
did is tried too. SGD with momentum on random images; a time is the median of several steps.
"""

import argparse
import functools
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

if not __package__:  # run as a script
  sys.path[:1] = [
    str(Path(__file__).resolve().parents[1]),
    str(Path(__file__).resolve().parents[2]),
  ]

from speed import dense, detection, machine, ours  # noqa: E402
from speed.row import Cost, Options, Program  # noqa: E402

import lines  # noqa: E402
from segjax.models import fcn, segnet, unet  # noqa: E402
from segjax.training import compile as compile_lib  # noqa: E402

# Larger batches are not tried.
LARGEST = 1024
_OBJECTS = 8


class Network(NamedTuple):
  """What is measured.

  Attributes:
    title: as the page says it.
    size: (height, width) of the images, and at toy size.
    make: `(options, size, batch) -> (train step, its cost)`.
  """

  title: str
  size: tuple[tuple[int, int], tuple[int, int]]
  make: Callable[[Options, tuple[int, int], int], tuple[Program, Cost]]


def _dense(
  model: Callable[[Options], Any],
  channels: int,
  options: Options,
  size: tuple[int, int],
  batch: int,
) -> tuple[Program, Cost]:
  network = model(options)
  image, label, variables = dense.training_inputs(network, (1, *size, channels))
  repeat = lambda x: np.repeat(x, batch, 0)
  arrays = {'image': repeat(image), 'label': repeat(label), 'valid': np.ones(batch, bool)}
  return ours.training(ours.dense_task(network), variables, arrays)


def _mask_rcnn(options: Options, size: tuple[int, int], batch: int) -> tuple[Program, Cost]:
  network, image = detection.network(options), detection.make_image(size)
  objects, _ = detection.make_objects(size, *options.pick((_OBJECTS, 100), (3, 4)))
  variables = ours.variables(network, image, np.array([size], np.int32))
  repeat = lambda x: np.repeat(x, batch, 0)
  arrays = detection.make_batch(repeat(image), jax.tree.map(repeat, objects))
  return ours.training(detection.make_task(network), variables, arrays, rate=1e-4)


def _stages(options: Options) -> dict[str, Any]:
  return {'stages': ((4, 2), (4, 2), (4, 3), (4, 3), (4, 3))} if options.toy else {}


def _segnet(options: Options) -> Any:
  return segnet.SegNet(11, dtype=options.dtype, **_stages(options))


def _segnet_basic(options: Options) -> Any:
  return segnet.SegNetBasic(11, width=options.pick(64, 4), dtype=options.dtype)


def _unet(options: Options) -> Any:
  return unet.UNet(2, width=options.pick(64, 4), dtype=options.dtype)


def _fcn(options: Options) -> Any:
  features = options.pick(4096, 8)
  return fcn.FCN(21, fc_features=features, dtype=options.dtype, **_stages(options))


NETWORKS = {
  'segnet': Network(
    'SegNet, 360 × 480', ((360, 480), (46, 60)), functools.partial(_dense, _segnet, 3)
  ),
  'segnet_basic': Network(
    'SegNet-Basic, 360 × 480', ((360, 480), (46, 60)), functools.partial(_dense, _segnet_basic, 3)
  ),
  'unet': Network(
    'U-Net as published, 572 × 572', ((572, 572), (188, 188)), functools.partial(_dense, _unet, 1)
  ),
  'mask_rcnn': Network(
    f'Mask R-CNN R50-FPN, 800 × 1344, {_OBJECTS} objects', ((800, 1344), (64, 64)), _mask_rcnn
  ),
  'fcn': Network('FCN-8s, 500 × 500', ((500, 500), (32, 40)), functools.partial(_dense, _fcn, 3)),
}


def sizes(fits: Callable[[int], bool], largest: int) -> Iterator[int]:
  """The batches to try in turn; `fits` says whether the one before did.

  Yields 1, 4, 16, … up to `largest`, and after the first that does not fit, half of it.
  """
  batch = 1
  while batch <= largest:
    yield batch
    if not fits(batch):
      if batch > 2:
        yield batch // 2
      return
    batch *= 4


def measure(
  network: Network, options: Options, batch: int, steps: int
) -> dict[str, float | int | None]:
  """Time and memory of a train step.

  Raises:
    jax.errors.JaxRuntimeError: it does not fit, see `is_out_of_memory`.
  """
  run, cost = network.make(options, options.pick(*network.size), batch)
  for _ in range(2):
    run()
  seconds = []
  for _ in range(steps):
    start = time.perf_counter()
    run()
    seconds.append(time.perf_counter() - start)
  middle = statistics.median(seconds)
  memory = jax.local_devices()[0].memory_stats() or {}
  return {
    'batch': batch,
    'seconds': middle,
    'least': min(seconds),
    'greatest': max(seconds),
    'images_per_second': batch / middle,
    'flops': cost.flops,
    'temporary_bytes': int(cost.temporary),
    'peak_bytes': memory.get('peak_bytes_in_use'),  # None on CPUs
    'device_bytes': memory.get('bytes_limit'),
  }


def is_out_of_memory(error: jax.errors.JaxRuntimeError) -> bool:
  return 'RESOURCE_EXHAUSTED' in str(error) or 'out of memory' in str(error).lower()


def measure_all(name: str, options: Options, largest: int, steps: int, out: Path) -> None:
  """Measures batches until one does not fit; each is a line at once, and so is the limit."""
  common = {'network': name, 'dtype': options.dtype, **machine.facts()}
  fitted: dict[int, bool] = {}
  for batch in sizes(fitted.__getitem__, largest):
    try:
      found = measure(NETWORKS[name], options, batch, steps)
    except jax.errors.JaxRuntimeError as error:
      if not is_out_of_memory(error):
        raise
      fitted[batch] = False
      print(f'{name}, batch size {batch}: does not fit', flush=True)
    else:
      fitted[batch] = True
      lines.append(out, {'kind': 'batch', **found, **common})
      print(f'{name}, batch size {batch}: {found["images_per_second"]:.1f} images/s', flush=True)
    jax.clear_caches()
  most = max((batch for batch, fits in fitted.items() if fits), default=None)
  least = min((batch for batch, fits in fitted.items() if not fits), default=None)
  lines.append(out, {'kind': 'limit', 'fits': most, 'does_not_fit': least, **common})


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('--network', choices=NETWORKS, required=True)
  parser.add_argument('--dtype', choices=('float32', 'bfloat16'), default='float32')
  parser.add_argument('--largest', type=int, default=LARGEST)
  parser.add_argument('--steps', type=int, default=10)
  parser.add_argument('--out', type=Path, required=True)
  parser.add_argument('--toy', action='store_true', help='at toy size')
  args = parser.parse_args()
  compile_lib.enable_cache()
  options = Options(toy=args.toy, peers=False, dtype=args.dtype)
  measure_all(args.network, options, args.largest, args.steps, args.out)


if __name__ == '__main__':
  main()
