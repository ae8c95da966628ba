r"""What the errors of a U-Net on ISBI 2012 are made of.

  python experiments/unet/isbi.py statistics WORKDIR [--batches=50]
  python experiments/unet/isbi.py merges WORKDIR --output=merges.jpg
  python experiments/unet/isbi.py weights WORKDIR

WORKDIR: a run of isbi2012_cpu.py or of a similar config. `statistics` evaluates it with the batch-
norm statistics of its checkpoint, and with statistics averaged over training tiles of several kinds
in their place. `merges` averages probabilities over the eight symmetries of the square and
thresholds each slice at the value that is best for V_Rand over all slices; then again with one
predicted part of the slice cut along the true cells that it covers, the part whose cut removes the
most wrong pairs of pixels. The image has the two slices that gain most by it, with their cells and
the predicted parts, at half their size. `weights` compares the total weight of the membranes in the
loss with that of the cells, for a run with border weights.
"""

import argparse
import contextlib
import dataclasses
import itertools
from typing import Any

import cv2
import jax
import numpy as np

from segjax import run as run_lib
from segjax.data.config import Augment
from segjax.data.weight_map import border_weight_map
from segjax.metrics import rand
from segjax.training import compile, evaluate, sharding
from segjax.workdir import Workdir

# What the augmentation of isbi2012.py does, one thing at a time.
KINDS = {
  'tiles without augmentation': Augment(),
  'tiles, brightness and contrast': Augment(brightness=0.1, contrast=0.2),
  'tiles, rotated, bicubic': Augment(rotate=180.0, interpolation='bicubic'),
  'tiles, rotated, bilinear': Augment(rotate=180.0),
  'tiles, elastic, bilinear': Augment(elastic_sigma=10.0),
}
COLUMNS = ('rand_error', 'v_rand', 'pixel_error', 'rand_threshold')
CELL = 1


class LoadedRun:
  """A trained run, its data set and its devices."""

  def __init__(self, workdir: str, **overrides: str):
    run_lib.start_process()
    keys = [(f'eval.{name}', value) for name, value in overrides.items()]
    restored = run_lib.load_run(Workdir(workdir), overrides=keys)
    self.run, self.variables = restored.run, restored.variables
    self.dataset = run_lib.load_eval_dataset(self.run.experiment, self.run.spec.class_names)
    self.mesh = run_lib.make_mesh(self.run)
    self.split = self.run.experiment.data.eval_split


def laplacian_std(image: np.ndarray) -> float:
  """Standard deviation of the Laplacian of u8[B, H, W, 1], in gray levels."""
  return float(
    np.std([cv2.Laplacian(gray.astype(np.float32), cv2.CV_32F) for gray in image[..., 0]])
  )


def statistics(args: argparse.Namespace) -> None:
  loaded = LoadedRun(args.workdir)
  run, mesh = loaded.run, loaded.mesh
  evaluator = run_lib.Evaluator(run, loaded.dataset, loaded.split, mesh, images=0)
  batch_statistics = compile.jit(run.task.batch_statistics)

  print(
    '| statistics of | std of the Laplacian | Rand error | V_Rand | pixel error | best threshold |'
  )
  print('| --- | --- | --- | --- | --- | --- |')

  def show(name: str, laplacian: str, variables: Any) -> None:
    metrics = evaluator(variables).metrics
    print(f'| {name} | {laplacian} |', ' | '.join(f'{metrics[key]:.3f}' for key in COLUMNS), '|')

  show('saved with the checkpoint', '', loaded.variables)
  for name, augment in KINDS.items():
    config = dataclasses.replace(run.experiment.input, augment=augment)
    with contextlib.closing(run_lib.train_batches(run, loaded.dataset[0], config=config)) as found:
      batches = [batch for batch, _ in itertools.islice(found, args.batches)]
    laplacian = np.mean([laplacian_std(batch['image']) for batch in batches])
    put = (sharding.put_batch(batch, mesh=mesh, spec=run.task.batch_spec) for batch in batches)
    key = jax.random.key(0)
    mean = evaluate.average_statistics(batch_statistics, loaded.variables, put, key)
    show(name, f'{laplacian:.1f}', {**loaded.variables, **mean})


def cut(truth: np.ndarray, parts: np.ndarray) -> tuple[np.ndarray, list[int]]:
  """Cuts along the true cells the part whose cut adds most to V_Rand.

  Args:
    truth, parts: i[H, W], segments, 0 outside; one part or more.

  Returns:
    The parts after one cut, and the pixels of the largest cells in the part that was cut, down to a
    tenth of the largest.
  """
  both = np.zeros((parts.max() + 1, truth.max() + 1), np.int64)
  np.add.at(both, (parts.ravel(), truth.ravel()), 1)
  inside = both[1:, 1:]
  # Pairs that V_Rand counts as joined, and that are not.
  wrong = inside.sum(1) ** 2 - (inside**2).sum(1)
  worst = int(wrong.argmax()) + 1
  new = np.where((parts == worst) & (truth > 0), parts.max() + truth, parts)
  sizes = np.sort(both[worst, 1:])[::-1]
  return new, sizes[sizes > sizes[0] / 10].tolist()


def paint(image: np.ndarray, segments: np.ndarray) -> np.ndarray:
  """u8[H, W, 3]: the gray image in the colors of the segments, black outside."""
  colors = np.random.default_rng(1).integers(40, 255, (segments.max() + 1, 3), dtype=np.uint8)
  mixed = image[..., None] // 2 + colors[segments] // 2
  return np.where(segments[..., None] > 0, mixed, 0).astype(np.uint8)


def merges(args: argparse.Namespace) -> None:
  loaded = LoadedRun(args.workdir, test_time_augmentation='dihedral')
  task = loaded.run.task
  predict = compile.jit(
    lambda variables, batch: task.predict(task.forward(variables, batch, train=False)[0], batch)
  )
  metric = rand.isbi_metrics(CELL)
  batches, put = run_lib.eval_batches(loaded.run, loaded.dataset, loaded.split, loaded.mesh)
  slices, states = [], []
  for local, names in batches:
    probability = np.asarray(predict(loaded.variables, put(local))['probability'])
    states.append(metric.from_batch({'probability': probability}, local))
    for i in np.flatnonzero(local['valid']):
      cell, image = probability[i, ..., CELL], local['image'][i, ..., 0]
      slices.append((names[i], image, rand.segments(local['label'][i] == CELL), cell))
  scores = metric.compute(metric.merge(*states))
  threshold = scores['v_rand_threshold']
  print(f'V_Rand {scores["v_rand"]:.3f} at the threshold {threshold}')

  print('| slice | V_Rand | pixels of the largest cells in that part | V_Rand with the cut |')
  print('| --- | --- | --- | --- |')
  rows, counts = [], np.zeros((2, 3), np.int64)
  for name, image, truth, cell in slices:
    parts = rand.segments(cell > threshold)
    thinned = rand.thin(parts)
    without, sizes = cut(truth, thinned)
    own = np.stack([rand.pair_counts(truth, found) for found in (thinned, without)])
    counts += own
    before, after = (2 * own[:, 0] / own[:, 1:].sum(1)).tolist()
    print(f'| {name} | {before:.3f} | {" + ".join(map(str, sizes))} | {after:.3f} |')
    gray = np.repeat(image[..., None], 3, axis=-1)
    panels = [gray, paint(image, truth), paint(image, parts)]
    rows.append((after - before, np.concatenate(panels, axis=1)))
  before, after = (2 * counts[:, 0] / counts[:, 1:].sum(1)).tolist()
  print(f'| all | {before:.3f} | | {after:.3f} |')
  rows.sort(key=lambda row: -row[0])
  image = np.concatenate([panels for _, panels in rows[:2]], axis=0)
  image = cv2.resize(image, None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA)
  cv2.imwrite(args.output, cv2.cvtColor(image, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, 80])


def weights(args: argparse.Namespace) -> None:
  loaded = LoadedRun(args.workdir)
  data = loaded.run.experiment.data
  own = data.weight_map['w0']
  if not own:
    raise SystemExit(f'{args.workdir} was trained without border weights: give a run with them')
  batches, _ = run_lib.eval_batches(loaded.run, loaded.dataset, data.train_split, loaded.mesh)
  labels = [label for batch, _ in batches for label in batch['label'][batch['valid']]]
  print('| border weights | membranes / cells |')
  print('| --- | --- |')
  for name, w0, background_only in (
    ('none', 0.0, False),
    ('in the background only', own, True),
    ('eq. 2 as printed', own, False),
  ):
    arguments = {**data.weight_map, 'w0': w0, 'background_only': background_only}
    totals = np.zeros(2)
    for label in labels:
      weight = border_weight_map(label, **arguments)
      totals += [weight[label == k].sum() for k in (1 - CELL, CELL)]
    print(f'| {name} | {totals[0] / totals[1]:.2f} |')


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  commands = parser.add_subparsers(required=True)
  for function in (statistics, merges, weights):
    command = commands.add_parser(function.__name__)
    command.set_defaults(function=function)
    command.add_argument('workdir')
    if function is statistics:
      command.add_argument('--batches', type=int, default=50, help='batches to average over')
    if function is merges:
      command.add_argument('--output', required=True, help='the image to write')
  args = parser.parse_args()
  args.function(args)


if __name__ == '__main__':
  main()
