"""A small semantic task on random images, for the tests of the training loop."""

import numpy as np

from segjax.losses import dense
from segjax.models.unet import UNet
from segjax.tasks import semantic
from segjax.types import IGNORE_LABEL

LOSSES = {'softmax_cross_entropy': dense.softmax_cross_entropy, 'dice': dense.dice}


def make_task(norm='none', dropout=0.0, losses=('softmax_cross_entropy',), **keys):
  """A U-Net of depth 1 for three classes; `keys` are those of `config.eval`."""
  return semantic.make_task(
    UNet(classes=3, width=2, depth=1, padding='same', norm=norm, dropout=dropout),
    semantic.EvalConfig(**keys),
    class_names=('a', 'b', 'c'),
    losses={name: LOSSES[name] for name in losses},
    draw=lambda image, truth, prediction, uncertainty: {'image': image},
  )


def make_batch(size=8, height=8, width=8, seed=0):
  """A batch with ignored pixels, their number different from example to example."""
  rng = np.random.default_rng(seed)
  label = rng.integers(0, 3, (size, height, width)).astype(np.int32)
  for i in range(size):
    label[i, :, : i % width] = IGNORE_LABEL
  return {
    'image': rng.normal(size=(size, height, width, 3)).astype(np.float32),
    'label': label,
    'valid': np.ones(size, bool),
  }
