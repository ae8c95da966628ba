"""The Python API: `segjax.load`, `segjax.train`, `segjax.evaluate`, and what they return.

`segjax.load('runs/scenes')` is a `Predictor`, and `predictor('photo.jpg')` a `Result`.
"""

import dataclasses
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from segjax import config as config_lib
from segjax import run as run_lib
from segjax.cli import evaluate as evaluate_lib
from segjax.cli import train as train_lib
from segjax.predictor import Predictor
from segjax.report import curves
from segjax.result import Result
from segjax.storage import StrPath
from segjax.trained import open_trained
from segjax.training.checkpoint import Which
from segjax.workdir import Workdir

__all__ = ['Predictor', 'Result', 'Training', 'evaluate', 'load', 'train']

# A config key -> its value, flat ('data.size.image_size') or nested; or the pairs of a command.
Overrides = Mapping[str, Any] | Sequence[tuple[str, str]]


def load(
  path: StrPath, *, checkpoint: Which = 'latest', overrides: Overrides | None = None
) -> Predictor:
  """The trained network of a run, or one that `segjax export` wrote.

  Args:
    path: workdir of the run, or directory of the export.
    checkpoint: of a run: 'latest', 'best' (by `config.train.best_metric`), or a step.
    overrides: of a run: config keys under `data`, `batch`, `eval` and `mesh`, such as
      `{'eval.samples': 40}` or `{'eval': {'samples': 40}}`, and of `model` the thresholds of
      inference.

  Raises:
    SegjaxError: `path` is neither, has no such checkpoint, is corrupt, or was written by a newer
      version of segjax; a key cannot be set; a checkpoint or a key is given for an export.
  """
  run_lib.start_process()
  return open_trained(path, checkpoint, _pairs(overrides))


@dataclasses.dataclass(frozen=True)
class Training:
  """A run that has reached its last step.

  Attributes:
    workdir: directory of the run.
    step: the last step.
    metrics: of the last evaluation, by name, as fractions.
    report: the HTML file with curves and examples.
  """

  workdir: Path
  step: int
  metrics: dict[str, Any]
  report: Path

  def load(self, *, checkpoint: Which = 'latest') -> Predictor:
    """The trained network, see `segjax.load`."""
    return load(self.workdir, checkpoint=checkpoint)


def train(
  config: StrPath | Mapping[str, Any] | None, workdir: StrPath, **overrides: Any
) -> Training:
  """Trains a network, or resumes the run in `workdir` from its last checkpoint.

  Args:
    config: path or name of a config file, or a config as a `ConfigDict` or dict; None for that of
      the workdir.
    workdir: directory of the run.
    overrides: config keys by group: `train={'steps': 100}, data={'name': 'folder'}`; or flat:
      `**{'train.steps': 100}`.

  Raises:
    SegjaxError: whatever the user can fix, such as a workdir of another config.
    segjax.types.StoppedError: SIGTERM or Ctrl-C, after the state was saved; call again to resume.
  """
  run_lib.start_process()
  place, pairs = Workdir(workdir), _pairs(overrides)
  if config is None or isinstance(config, str | os.PathLike):
    given = run_lib.read_given(place, None if config is None else os.fspath(config), pairs)
  else:
    plain = config.to_dict() if hasattr(config, 'to_dict') else dict(config)
    given = config_lib.override(plain, pairs)
  final = train_lib.train_given(place, given)
  return Training(place.path, int(final.step), _last_metrics(place), place.report)


def evaluate(
  workdir: StrPath, split: str | None = None, *, checkpoint: Which = 'latest', **overrides: Any
) -> dict[str, Any]:
  """The metrics of a trained network on a split.

  Args:
    workdir: directory of the run.
    split: 'val', 'train[:100]'; None for `config.data.eval_split`.
    checkpoint: see `load`.
    overrides: see `train`; keys that `load` accepts.

  Returns:
    Each metric by name, as a fraction; tables such as `per_class` as nested mappings.

  Raises:
    SegjaxError: as `load`; an unknown split; the data set has other classes.
  """
  run_lib.start_process()
  place = Workdir(workdir)
  return evaluate_lib.evaluate_run(place, checkpoint, split, _pairs(overrides)).metrics


def _pairs(overrides: Overrides | None) -> list[tuple[str, str]]:
  """Overrides as the command line has them: dotted keys, and values as text."""
  if overrides is None:
    return []
  if not isinstance(overrides, Mapping):
    return list(overrides)
  values = config_lib.flatten(config_lib.plain(overrides))
  return [(key, repr(value)) for key, value in values.items()]


def _last_metrics(workdir: Workdir) -> dict[str, Any]:
  """The metrics of the newest evaluation in the log of a run."""
  evaluations = [record for record in curves.read_log(workdir.log) if record['split'] != 'train']
  facts = ('step', 'split', 'time')
  newest = evaluations[-1] if evaluations else {}
  return {key: value for key, value in newest.items() if key not in facts}
