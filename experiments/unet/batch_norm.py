r"""How much the augmentation of the images that batch norm averages over costs on ISBI 2012.

  python experiments/unet/batch_norm.py WORKDIR [--batches=50]

Evaluates a trained run with its running averages, and with statistics averaged over training tiles
of several kinds in their place, and prints a table. Beside each kind is its local contrast: the
standard deviation of the tiles' Laplacian. WORKDIR is of isbi2012_cpu.py or a config like it.
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
from segjax.training import compile, evaluate, sharding
from segjax.workdir import Workdir

# What the augmentation of isbi2012.py does, one thing at a time.
KINDS = {
  'tiles as they are': Augment(),
  'tiles, brightness and contrast': Augment(brightness=0.1, contrast=0.2),
  'tiles, rotated, bicubic': Augment(rotate=180.0, interpolation='bicubic'),
  'tiles, rotated, bilinear': Augment(rotate=180.0),
  'tiles, elastic, bilinear': Augment(elastic_sigma=10.0),
}
COLUMNS = ('rand_error', 'v_rand', 'pixel_error', 'rand_threshold')


def local_contrast(image: np.ndarray) -> float:
  """Standard deviation of the Laplacian of u8[B, H, W, 1], in gray levels."""
  return float(
    np.std([cv2.Laplacian(gray.astype(np.float32), cv2.CV_32F) for gray in image[..., 0]])
  )


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('workdir')
  parser.add_argument('--batches', type=int, default=50, help='batches to average over')
  args = parser.parse_args()
  run_lib.start_process()
  loaded = run_lib.load_run(Workdir(args.workdir))
  run, split = loaded.run, loaded.run.experiment.data.eval_split
  dataset = run_lib.load_eval_dataset(run.experiment, run.spec.class_names)
  mesh = run_lib.make_mesh(run)
  evaluator = run_lib.Evaluator(run, dataset, split, mesh, images=0)
  batch_statistics = compile.jit(run.task.batch_statistics)

  print('| statistics of | local contrast | Rand error | V_Rand | pixel error | best threshold |')
  print('| --- | --- | --- | --- | --- | --- |')

  def show(name: str, contrast: str, variables: Any) -> None:
    metrics = evaluator(variables).metrics
    print(f'| {name} | {contrast} |', ' | '.join(f'{metrics[key]:.3f}' for key in COLUMNS), '|')

  show('running averages', '', loaded.variables)
  for name, augment in KINDS.items():
    config = dataclasses.replace(run.experiment.input, augment=augment)
    with contextlib.closing(run_lib.train_batches(run, dataset[0], config=config)) as batches:
      tiles = [batch for batch, _ in itertools.islice(batches, args.batches)]
    contrast = np.mean([local_contrast(batch['image']) for batch in tiles])
    put = (sharding.put_batch(batch, mesh=mesh, spec=run.task.batch_spec) for batch in tiles)
    key = jax.random.key(0)
    mean = evaluate.average_statistics(batch_statistics, loaded.variables, put, key)
    show(name, f'{contrast:.1f}', {**loaded.variables, **mean})


if __name__ == '__main__':
  main()
