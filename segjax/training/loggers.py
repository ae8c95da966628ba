"""Copies of a run's log in Weights & Biases and in MLflow, written by their own libraries.

`config.train.loggers` names them. Where they write is set by the variables of these libraries, such
as WANDB_PROJECT, WANDB_MODE=offline, MLFLOW_TRACKING_URI and MLFLOW_EXPERIMENT_NAME.
"""

import importlib.util
import json
import math
import os
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from segjax import storage
from segjax.types import SegjaxError

# Of the project in W&B and the experiment in MLflow, where their variables do not say.
PROJECT = 'segjax'
# MLflow takes so many parameters at once.
_MOST_PARAMS = 100


class Logger(Protocol):
  """A copy of the log of a run."""

  def scalars(self, step: int, values: Mapping[str, float]) -> None:
    """Logs finite numbers by name, such as `train/loss`."""

  def image(self, step: int, name: str, image: np.ndarray) -> None:
    """Logs an image u8[H, W, 3]."""

  def close(self, completed: bool) -> None:
    """Ends the log; `completed` says whether the run reached its last step."""


def check(names: Sequence[str]) -> None:
  """Raises a SegjaxError if the library of a logger is not installed."""
  for name in names:
    if importlib.util.find_spec(name) is None:
      raise SegjaxError(
        f"config.train.loggers: {name} is not installed: pip install 'segjax[{name}]', or remove it"
      )


def open_loggers(
  names: Sequence[str],
  workdir: Path,
  config: Mapping[str, Any],
  warn: Callable[[str], None],
) -> list[Logger]:
  """The loggers of a run; a resumed run continues its log.

  They cannot take steps back: those since the checkpoint that a run resumes from are there twice.

  Args:
    names: of `config.train.loggers`.
    workdir: of the run; `loggers.json` there holds the ids of its logs.
    config: the complete config, with dotted keys.
    warn: shows that a logger failed in the course of training, which goes on without it.

  Raises:
    SegjaxError: a library is not installed, or its log cannot be started.
  """
  check(names)
  path = workdir / 'loggers.json'
  ids = json.loads(path.read_text(encoding='utf-8')) if path.is_file() else {}
  opened: list[Logger] = []
  for name in names:
    try:
      logger = _LOGGERS[name](workdir, config, ids.get(name))
    except Exception as e:  # of any type: the libraries have many
      for other in opened:
        other.close(False)
      raise SegjaxError(
        f'config.train.loggers: {name} cannot start a log ({_first_line(e)}): {_REMEDIES[name]}'
      ) from e
    ids[name] = logger.id
    opened.append(_Guarded(name, logger, warn))
  if names:
    storage.write_text(path, json.dumps(ids) + '\n')
  return opened


def _first_line(error: Exception) -> str:
  return f'{type(error).__name__}: {error}'.splitlines()[0]


class _Guarded:
  """A logger whose failure, such as a server that is gone, does not end the training."""

  def __init__(self, name: str, logger: Logger, warn: Callable[[str], None]):
    self._name, self._logger, self._warn = name, logger, warn

  def _call(self, method: str, *args: Any) -> None:
    if self._logger is None:
      return
    try:
      getattr(self._logger, method)(*args)
    except Exception as e:
      self._warn(f'{self._name} failed, and training continues without it ({_first_line(e)})')
      self._logger = None

  def scalars(self, step: int, values: Mapping[str, float]) -> None:
    self._call('scalars', step, values)

  def image(self, step: int, name: str, image: np.ndarray) -> None:
    self._call('image', step, name, image)

  def close(self, completed: bool) -> None:
    self._call('close', completed)


class _WandB:
  """Weights & Biases. Its own step only ever grows, so the step is a value that curves are over."""

  def __init__(self, workdir: Path, config: Mapping[str, Any], run_id: str | None):
    import wandb

    self._image = wandb.Image
    self._run = wandb.init(
      project=os.environ.get('WANDB_PROJECT', PROJECT),
      name=storage.resolved(workdir).name,
      dir=None if storage.is_bucket(workdir) else str(workdir),  # None: W&B's own choice
      config=_nested(config),
      id=run_id,
      resume='allow',
      # The progress bar is not part of the log.
      settings=wandb.Settings(console='off', silent=True),
    )
    self.id = self._run.id
    self._run.define_metric('step', hidden=True)
    self._run.define_metric('*', step_metric='step')

  def scalars(self, step: int, values: Mapping[str, float]) -> None:
    self._run.log({'step': step, **values})

  def image(self, step: int, name: str, image: np.ndarray) -> None:
    self._run.log({'step': step, name: self._image(image)})

  def close(self, completed: bool) -> None:
    self._run.finish(exit_code=0 if completed else 1)


class _MLflow:
  """MLflow, by its client, which has no global state."""

  def __init__(self, workdir: Path, config: Mapping[str, Any], run_id: str | None):
    import mlflow

    self._entities = mlflow.entities
    self._client = mlflow.MlflowClient()
    if run_id is None:
      run_id = self._create(storage.resolved(workdir).name)
      for params in _parts(self._params(config), _MOST_PARAMS):
        self._client.log_batch(run_id, params=params)
    else:
      self._client.update_run(run_id, status='RUNNING')
    self.id = run_id
    self._client.log_dict(run_id, _nested(config), 'config.json')

  def _create(self, name: str) -> str:
    title = os.environ.get('MLFLOW_EXPERIMENT_NAME', PROJECT)
    experiment = self._client.get_experiment_by_name(title)
    number = experiment.experiment_id if experiment else self._client.create_experiment(title)
    return self._client.create_run(number, run_name=name).info.run_id

  def _params(self, config: Mapping[str, Any]) -> list[Any]:
    """Their values have at most 500 characters; the artifact `config.json` has them in full."""
    return [self._entities.Param(key, str(value)[:500]) for key, value in config.items()]

  def scalars(self, step: int, values: Mapping[str, float]) -> None:
    now = int(time.time() * 1000)
    metrics = [self._entities.Metric(_allowed(k), v, now, step) for k, v in values.items()]
    self._client.log_batch(self.id, metrics=metrics)

  def image(self, step: int, name: str, image: np.ndarray) -> None:
    self._client.log_image(self.id, image, key=_allowed(name), step=step)

  def close(self, completed: bool) -> None:
    self._client.set_terminated(self.id, 'FINISHED' if completed else 'KILLED')


def _allowed(name: str) -> str:
  """A name with only the characters that MLflow takes, such as `val_6/loss` of `val[:6]/loss`."""
  return re.sub(r'[^\w\-. /]+', '_', name)


def _parts(values: Sequence[Any], size: int) -> Iterator[Sequence[Any]]:
  for start in range(0, len(values), size):
    yield values[start : start + size]


def _nested(flat: Mapping[str, Any]) -> dict[str, Any]:
  """The config with its groups, of dotted keys."""
  nested: dict[str, Any] = {}
  for path, value in flat.items():
    *parents, last = path.split('.')
    node = nested
    for name in parents:
      node = node.setdefault(name, {})
    node[last] = value
  return nested


def finite(values: Mapping[str, Any]) -> dict[str, float]:
  """The finite numbers of `values`."""
  return {
    name: value
    for name, value in values.items()
    if isinstance(value, int | float) and math.isfinite(value)
  }


_LOGGERS: Mapping[str, Callable[..., Any]] = {'wandb': _WandB, 'mlflow': _MLflow}
_REMEDIES = {
  'wandb': 'run `wandb login`, or set WANDB_MODE=offline',
  'mlflow': 'correct MLFLOW_TRACKING_URI',
}
