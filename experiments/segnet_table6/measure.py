"""Measures time and memory of SegNet, FCN-8s and U-Net on this machine, all in one run.

  python experiments/segnet_table6/measure.py [--size=360x480] [--repeats=10]

At 360x480, the paper's size, the results are recorded in the table; at other sizes they are only
printed. float32, 11 classes; times are medians over repeats in ms, memory is in MB of 10^6 bytes:

  forward_ms    the loss of one image in training mode: batch statistics, dropout
  backward_ms   the loss and its gradient with respect to all parameters, minus forward_ms
  training_mb   memory allocated by the compiler for a step of SGD with momentum on 4 images:
                arguments, results and temporaries; the state is updated in place
  inference_mb  the same for the logits of one image
  model_mb      the parameters and the running statistics of batch normalization

The batch sizes, 1 for times and inference and 4 for training, are the paper's. It measured times
with `caffe time` and memory with the GPU driver.
"""

import argparse
import datetime
import statistics
import time
from pathlib import Path

import jax
import numpy as np
import optax

from segjax.losses import dense
from segjax.models import fcn, segnet, unet
from segjax.provenance import provenance
from segjax.tables import results, spec
from segjax.tasks import semantic
from segjax.training import compile as compile_lib
from segjax.training.state import init_state
from segjax.training.step import make_train_step

SIZE = (360, 480)
CLASSES = 11
TRAINING_IMAGES = 4

# Rows of the table.
NETWORKS = {
  'segnet': segnet.SegNet(CLASSES),
  'fcn': fcn.FCN(CLASSES, variant='8s', learned='none'),
  'unet': unet.UNet(CLASSES, padding='same', norm='batch'),
}


def make_batch(images: int, size: tuple[int, int]):
  rng = np.random.default_rng(0)
  return {
    'image': rng.normal(size=(images, *size, 3)).astype(np.float32),
    'label': rng.integers(0, CLASSES, (images, *size)).astype(np.int32),
    'valid': np.ones(images, bool),
  }


def median_ms(function, *args, repeats: int) -> float:
  times = []
  jax.block_until_ready(function(*args))
  for _ in range(repeats):
    start = time.perf_counter()
    jax.block_until_ready(function(*args))
    times.append(1e3 * (time.perf_counter() - start))
  return statistics.median(times)


def planned_mb(compiled) -> float:
  """Memory of a compiled program; donated arguments and their results count once."""
  memory = compiled.memory_analysis()
  arrays = memory.argument_size_in_bytes + memory.output_size_in_bytes
  return (arrays + memory.temp_size_in_bytes - memory.alias_size_in_bytes) / 1e6


def measure(model, size: tuple[int, int], repeats: int) -> tuple[dict[str, float], int]:
  """The metrics of a network, and its number of parameters."""
  task = semantic.make_task(
    model,
    semantic.EvalConfig(),
    class_names=[f'class {i}' for i in range(CLASSES)],
    losses={'cross_entropy': dense.softmax_cross_entropy},
  )
  optimizer = optax.sgd(1e-3, 0.9)
  one, several = make_batch(1, size), make_batch(TRAINING_IMAGES, size)
  init = lambda key, batch: init_state(task, optimizer, key, batch, ema=False)
  state = compile_lib.jit(init, once=True)(jax.random.key(0), one)

  def loss(params, batch):
    variables = {'params': params, **state.model_state}
    outputs, _ = task.forward(variables, batch, train=True, key=jax.random.key(1))
    (total, count), *_ = task.losses(outputs, batch).values()
    return total / count

  forward = median_ms(compile_lib.jit(loss), state.params, one, repeats=repeats)
  both = median_ms(compile_lib.jit(jax.value_and_grad(loss)), state.params, one, repeats=repeats)
  step = make_train_step(task, optimizer, optax.constant_schedule(1e-3), seed=0)
  training = compile_lib.jit(step, donate_argnums=0).lower(state, several).compile()
  variables = {'params': state.params, **state.model_state}
  inference = compile_lib.jit(model.apply).lower(variables, one['image']).compile()
  metrics = {
    'forward_ms': forward,
    'backward_ms': both - forward,
    'training_mb': planned_mb(training),
    'inference_mb': planned_mb(inference),
    'model_mb': sum(x.nbytes for x in jax.tree.leaves(variables)) / 1e6,
  }
  parameters = sum(x.size for x in jax.tree.leaves(state.params))
  return {k: round(v, 2) for k, v in metrics.items()}, parameters


def recipe() -> str:
  """The recipe of the table that this machine fills in."""
  return 'cpu' if jax.default_backend() == 'cpu' else 'gpu'


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('--size', default='x'.join(map(str, SIZE)), help='HEIGHTxWIDTH')
  parser.add_argument('--repeats', type=int, default=10)
  args = parser.parse_args()
  size = tuple(map(int, args.size.split('x')))
  facts = provenance()
  del facts['time']
  records = []
  for row, model in NETWORKS.items():
    metrics, parameters = measure(model, size, args.repeats)
    print(f'{row:8} {parameters:,} parameters, {metrics}', flush=True)
    record = results.Record(
      row=row,
      recipe=recipe(),
      metrics=metrics,
      parameters=parameters,
      date=datetime.date.today().isoformat(),
      command=f'python experiments/segnet_table6/measure.py --repeats={args.repeats}',
      note=f'{size[0]} x {size[1]}, medians of {args.repeats}, all rows in one run',
      **facts,
    )
    records.append(record)
  if size == SIZE:
    results.write_records(spec.read_table(Path(__file__).parent), records)


if __name__ == '__main__':
  main()
