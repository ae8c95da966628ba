"""A run of a semantic network with random variables, without a workdir."""

import types

import networks
import numpy as np

from segjax.data.config import BatchConfig, DataConfig, InputConfig, SizeConfig
from segjax.run import Loaded
from segjax.tasks import semantic
from segjax.tasks.base import from_pixels

CLASSES = 3


def load(model, size=None, images=None, **config):
  """A run of a semantic network with random variables."""
  config = semantic.EvalConfig(**config)
  data = DataConfig(name='x', size=size or SizeConfig(), mean=(120.0,), std=(60.0,))
  task = semantic.make_task(model, config, class_names=['a'] * CLASSES, losses={})
  task = from_pixels(task, data.mean, data.std)
  side = 64 + 2 * getattr(model, 'margin', 0)
  shapes, _ = networks.abstract(model, (1, side, side, 3))
  batch = BatchConfig(size=4)
  experiment = types.SimpleNamespace(
    task='semantic', data=data, eval=config, input=InputConfig(data), batch=batch
  )
  spec = types.SimpleNamespace(
    channels=3,
    num_classes=CLASSES,
    class_names=('a',) * CLASSES,
    palette=np.zeros((CLASSES, 3), np.uint8),
    category_ids=None,
  )
  run = types.SimpleNamespace(experiment=experiment, task=task, spec=spec, model=model)
  return Loaded(run, types.SimpleNamespace(step=7), networks.filled(shapes), images)
