"""The log of a run: `metrics.jsonl`, TensorBoard events, and the loggers of its config."""

import datetime
import importlib
import json
import math
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np

from segjax.training.loggers import Logger, finite


class RunLog:
  """Appends to `metrics.jsonl`, one JSON object per line, and to `tensorboard/` in a workdir.

  A resumed run first drops the lines after the step it resumes from, so that every step occurs
  once.

  Args:
    workdir: of the run.
    start_step: the step that the run resumes from.
    loggers: that get the same scalars and images.
  """

  def __init__(self, workdir: Path, *, start_step: int = 0, loggers: Sequence[Logger] = ()):
    self._loggers = loggers
    self._path = workdir / 'metrics.jsonl'
    self._keep_until(start_step)
    self._file = self._path.open('a', encoding='utf-8')
    self._tensorboard = _import_tensorboard()
    directory = str(workdir / 'tensorboard')
    self._events = self._tensorboard.SummaryWriter(directory, purge_step=start_step + 1)

  def _keep_until(self, step: int) -> None:
    if not self._path.exists():
      return
    kept = []
    for line in self._path.read_text(encoding='utf-8').splitlines():
      try:
        if json.loads(line)['step'] <= step:
          kept.append(line + '\n')
      except (ValueError, KeyError):  # a line truncated by a kill
        continue
    temporary = self._path.with_suffix('.tmp')
    temporary.write_text(''.join(kept), encoding='utf-8')
    temporary.replace(self._path)

  def config(self, config: Mapping[str, Any], measures: Sequence[str]) -> None:
    """Writes the config to TensorBoard, as text and as hyperparameters.

    Args:
      config: the complete config, with dotted keys.
      measures: names of scalars that runs are compared by, such as `val/mean_iou`.
    """
    lines = (f'    {key}: {json.dumps(value)}\n' for key, value in sorted(config.items()))
    self._events.add_text('config', ''.join(lines))  # indented: a block of code in Markdown
    values = {key: _hyperparameter(value) for key, value in config.items() if value is not None}
    summaries = self._tensorboard.summary.hparams(values, dict.fromkeys(measures))
    for summary in summaries[:2]:  # without the end of the session
      self._events.file_writer.add_summary(summary)
    self._events.flush()

  def scalars(self, step: int, split: str, values: Mapping[str, Any]) -> None:
    """Logs values of one step; TensorBoard and loggers get only finite numbers."""
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec='seconds')
    line = {'step': step, 'split': split, 'time': now, **values}
    self._file.write(json.dumps(no_nan(line)) + '\n')
    self._file.flush()
    named = {f'{split}/{name}': value for name, value in finite(values).items()}
    for name, value in named.items():
      self._events.add_scalar(name, value, step)
    for logger in self._loggers:
      logger.scalars(step, named)

  def images(
    self, step: int, split: str, examples: Sequence[tuple[str, Mapping[str, np.ndarray]]]
  ) -> None:
    """Logs `(name, panels)` as images, the panels u8[H, W, 3] concatenated horizontally."""
    for name, panels in examples:
      image = np.concatenate(list(panels.values()), axis=1)
      self._events.add_image(f'{split}/{name}', image, step, dataformats='HWC')
      for logger in self._loggers:
        logger.image(step, f'{split}/{name}', image)
    self._events.flush()

  def __enter__(self) -> Self:
    return self

  def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
    self.close(completed=kind is None)

  def close(self, *, completed: bool = True) -> None:
    """Flushes and closes the files; `completed` says whether the run reached its last step."""
    self._file.close()
    self._events.close()
    for logger in self._loggers:
      logger.close(completed)


def _import_tensorboard() -> Any:
  """tensorboardX without PyTorch, which it imports for a type annotation, in several seconds."""
  hide = 'torch' not in sys.modules
  if hide:
    sys.modules['torch'] = None  # its import raises an ImportError
  try:
    return importlib.import_module('tensorboardX')
  finally:
    if hide:
      del sys.modules['torch']


def _hyperparameter(value: Any) -> bool | float | str:
  """`value` as TensorBoard takes it: lists and empty groups as text."""
  return value if isinstance(value, bool | int | float | str) else json.dumps(value)


def no_nan(value: Any) -> Any:
  """`value` with None for numbers that are not finite, which JSON cannot represent."""
  if isinstance(value, Mapping):
    return {k: no_nan(v) for k, v in value.items()}
  if isinstance(value, list | tuple):
    return [no_nan(v) for v in value]
  return None if isinstance(value, float) and not math.isfinite(value) else value
