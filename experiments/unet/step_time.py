"""Times U-Net's training step: segjax's implementation compared with plain JAX/Flax, in one run.

  python experiments/unet/step_time.py [--size=256] [--batch=2] [--width=64] [--repeats=3]

Plain is `jax.jit` without compiler options, `lax.conv_transpose` and `flax.linen.max_pool` without
custom gradients. Prints the minimum over repeats of each, and the ratio.
"""

import argparse
import time
from unittest import mock

import flax.linen as nn
import jax
import numpy as np
import optax

from segjax.losses import dense
from segjax.models import unet
from segjax.ops import upsample
from segjax.tasks import semantic
from segjax.training import compile as compile_lib
from segjax.training.state import init_state
from segjax.training.step import make_train_step


def plain_conv_transpose(x, kernel, stride, padding=0):
  """The same operation by `jax.lax`, whose gradient is slow on CPUs."""
  assert padding == 0
  return jax.lax.conv_transpose(
    x, kernel, (stride, stride), 'VALID', transpose_kernel=False,
    dimension_numbers=('NHWC', 'HWIO', 'NHWC'),
  )  # fmt: skip


def seconds_per_step(jit, args: argparse.Namespace) -> float:
  model = unet.UNet(classes=2, width=args.width, padding='same', norm='batch', dropout=0.0)
  task = semantic.make_task(
    model,
    semantic.EvalConfig(),
    class_names=('a', 'b'),
    losses={'cross_entropy': dense.softmax_cross_entropy},
  )
  rng = np.random.default_rng(0)
  shape = (args.batch, args.size, args.size)
  batch = {
    'image': rng.normal(size=(*shape, 1)).astype(np.float32),
    'label': rng.integers(0, 2, shape).astype(np.int32),
    'valid': np.ones(args.batch, bool),
  }
  optimizer = optax.sgd(1e-3, 0.9)
  init = lambda key: init_state(task, optimizer, key, batch, ema=False)
  state = compile_lib.jit(init, once=True)(jax.random.key(0))
  step = jit(
    make_train_step(task, optimizer, optax.constant_schedule(1e-3), seed=0), donate_argnums=0
  )
  state, _ = jax.block_until_ready(step(state, batch))
  times = []
  for _ in range(args.repeats):
    start = time.perf_counter()
    state, _ = jax.block_until_ready(step(state, batch))
    times.append(time.perf_counter() - start)
  return min(times)


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  for name, default in (('size', 256), ('batch', 2), ('width', 64), ('repeats', 3)):
    parser.add_argument(f'--{name}', type=int, default=default)
  args = parser.parse_args()
  fast = seconds_per_step(compile_lib.jit, args)
  with (
    mock.patch.object(upsample, 'conv_transpose', plain_conv_transpose),
    mock.patch.object(unet, 'max_pool_2x2', lambda x: nn.max_pool(x, (2, 2), (2, 2))),
  ):
    plain = seconds_per_step(jax.jit, args)
  print(f'{args.batch} x {args.size}x{args.size}, width {args.width}, {jax.devices()[0]}')
  print(f'plain {plain:.2f} s, segjax {fast:.2f} s, ratio {plain / fast:.1f}')


if __name__ == '__main__':
  main()
