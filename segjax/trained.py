"""A trained network by the directory that it is in: the workdir of a run, or an export."""

import importlib
from collections.abc import Sequence

from segjax import run as run_lib
from segjax import storage
from segjax.predictor import Predictor
from segjax.training.checkpoint import Which
from segjax.types import SegjaxError
from segjax.workdir import Workdir


def open_trained(
  name: storage.StrPath, checkpoint: Which = 'latest', overrides: Sequence[tuple[str, str]] = ()
) -> Predictor:
  """The trained network of a run, or one that `segjax export` wrote.

  Args:
    name: workdir of the run, or directory of the export.
    checkpoint: of a run: 'latest', 'best' (by `config.train.best_metric`), or a step.
    overrides: of a run: `(key, value)` of each config key to set.

  Raises:
    SegjaxError: `name` is neither, has no such checkpoint, is corrupt, or was written by a newer
      version of segjax; a key cannot be set; a checkpoint or a key is given for an export.
  """
  path = storage.as_path(name)
  if (path / 'manifest.json').is_file():
    if overrides:
      raise SegjaxError(
        f'{path} is an export, whose config is fixed: leave out config.{overrides[0][0]}'
      )
    if checkpoint != 'latest':
      raise SegjaxError(
        f'{path} is an export, which has one checkpoint: leave out checkpoint={checkpoint}'
      )
    # Heavy, and not needed for a run.
    path = storage.local_path(path, 'the directory of an export')
    return importlib.import_module('segjax.export').load_exported(path)
  if not (path / 'config.json').is_file():
    raise SegjaxError(
      f'{path} is neither the workdir of a run (no config.json) nor an export (no manifest.json): '
      'give the directory of one'
    )
  return Predictor(run_lib.load_run(Workdir(path), checkpoint, overrides))
