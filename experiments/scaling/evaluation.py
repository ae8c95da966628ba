"""COCO's evaluation by several processes: processor time of each, on simulated detections.

The network is left out: its predictions come with the batch, so that what is measured is the work
of the hosts, to paste, encode and compare masks. They are those of experiments/speed: 100
detections in each image of 480 x 640 pixels.
"""

import functools
import itertools
import json
import sys
import time
import types
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

# The worker is run as a script.
sys.path[:0] = [str(Path(__file__).resolve().parents[1]), str(Path(__file__).resolve().parents[2])]

import jax  # noqa: E402
from jax.sharding import PartitionSpec  # noqa: E402
from speed import evaluation as simulated  # noqa: E402
from speed.row import Options  # noqa: E402

from scaling import processes  # noqa: E402
from segjax.training import evaluate, sharding  # noqa: E402

# Not a multiple of the batch: the processes have different numbers of images.
IMAGES, BATCH = 396, 8
COUNTS = (1, 2, 4)


def measure(
  cache: str, images: int = IMAGES, counts: Sequence[int] = COUNTS
) -> list[dict[str, Any]]:
  """The processor time and the metrics of each number of processes."""
  rows = []
  for count in counts:
    results = [Path(cache) / f'evaluation_{count}_{index}.json' for index in range(count)]

    def command(address: str, index: int, count: int = count, results: Any = results) -> list[str]:
      return [
        sys.executable,
        __file__,
        address,
        str(count),
        str(index),
        str(results[index]),
        str(images),
      ]

    processes.run(command, count, 1)
    found = [json.loads(path.read_text()) for path in results]
    rows.append(
      {
        'processes': count,
        'seconds': [one['seconds'] for one in found],
        'metrics': [one['metrics'] for one in found],
      }
    )
  return rows


def make_task() -> tuple[Any, list[tuple[dict[str, Any], dict[str, Any]]]]:
  """What `evaluate` needs of a task, and the simulated images."""
  metric, batches = simulated.simulated_detections(Options(toy=False, peers=False))
  task = types.SimpleNamespace(
    metrics=[metric], host_keys=('annotations',), visualize=None, drawn=None, ranking=metric
  )
  return task, batches


def local_batches(
  batches: Any, part: sharding.Part, images: int = IMAGES
) -> Iterator[tuple[dict[str, Any], list[str]]]:
  """This process's rows of each batch; the simulated images come again and again."""
  size, rows = BATCH // part.count, -(-images // BATCH) * BATCH
  numbered = enumerate(itertools.islice(itertools.cycle(batches), rows), 1)
  while whole := list(itertools.islice(numbered, BATCH)):
    own = whole[part.index * size : (part.index + 1) * size]
    predictions = [predicted for _, (predicted, _) in own]
    keys = [key for key in predictions[0] if key != 'valid']
    yield (
      {
        **{key: np.concatenate([p[key] for p in predictions]) for key in keys},
        'found': np.concatenate([p['valid'] for p in predictions]),
        'valid': np.array([i <= images for i, _ in own]),
        'annotations': [{**batch['annotations'][0], 'image_id': i} for i, (_, batch) in own],
      },
      [str(i) for i, _ in own],
    )


def work(address: str, count: int, index: int, result: str, images: int) -> None:
  """What one process does."""
  if count > 1:
    jax.distributed.initialize(address, count, index)
  mesh = sharding.make_mesh(sharding.MeshConfig())
  task, batches = make_task()
  part = sharding.own_part(sharding.MeshConfig())
  keys = ('boxes', 'classes', 'scores', 'masks', 'found')
  spec = dict.fromkeys((*keys, 'valid'), PartitionSpec('data'))

  @functools.partial(jax.jit, out_shardings=(None, None, sharding.by_rows(mesh), None))
  def eval_step(variables: Any, batch: Any) -> Any:
    del variables
    predictions = {key: batch[key] for key in keys}
    predictions['valid'] = predictions.pop('found')
    return {}, (), predictions, None

  def run(own: Any) -> dict[str, Any]:
    put = lambda batch: sharding.put_batch(batch, mesh, spec)
    return evaluate.evaluate(eval_step, {}, own, task, put, part=part).metrics

  run(itertools.islice(local_batches(batches, part), 1))
  own = list(local_batches(batches, part, images))
  start = time.process_time()
  metrics = run(own)
  seconds = time.process_time() - start
  kept = {name: value for name, value in metrics.items() if isinstance(value, float)}
  Path(result).write_text(json.dumps({'seconds': seconds, 'metrics': kept}))


ROWS = {'evaluation': measure}

if __name__ == '__main__':
  work(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4], int(sys.argv[5]))
