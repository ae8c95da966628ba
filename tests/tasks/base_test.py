"""What all tasks share."""

import dataclasses

import jax
import numpy as np
from tiny_task import make_batch, make_task

from segjax.tasks.base import from_pixels

MEAN, STD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)


def test_pixels_are_normalized_in_every_function():
  plain = make_task('batch')
  inits = []
  spied = lambda key, batch: inits.append(np.asarray(batch['image'])) or plain.init(key, batch)
  task = from_pixels(dataclasses.replace(plain, init=spied), MEAN, STD)
  image = np.random.default_rng(0).integers(0, 256, (8, 8, 8, 3), np.uint8)
  normalized = (image.astype(np.float32) - np.float32(MEAN)) / np.float32(STD)
  batch, pixels = {**make_batch(), 'image': normalized}, {**make_batch(), 'image': image}
  key = jax.random.key(0)
  variables = jax.jit(plain.init)(key, batch)
  train = {'train': True, 'key': key}
  for ours, theirs in (
    (task.init(key, pixels), plain.init(key, batch)),
    (task.forward(variables, pixels, **train), plain.forward(variables, batch, **train)),
    (
      task.batch_statistics(variables, pixels, key),
      plain.batch_statistics(variables, batch, key),
    ),
    # Images that come normalized, as those of an exported program.
    (task.forward(variables, batch, train=False), plain.forward(variables, batch, train=False)),
  ):
    jax.tree.map(np.testing.assert_array_equal, ours, theirs)
  # The parameters do not depend on what it gets.
  np.testing.assert_array_equal(inits, [normalized])


def test_a_task_without_batch_statistics_stays_without():
  plain = dataclasses.replace(make_task(), batch_statistics=None)
  assert from_pixels(plain, MEAN, STD).batch_statistics is None
