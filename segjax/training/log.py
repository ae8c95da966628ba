"""The log of a run: `metrics.jsonl`, TensorBoard events, and the loggers of its config."""

import contextlib
import datetime
import importlib
import json
import math
import os
import re
import socket
import sys
import tempfile
import time
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np

from segjax import storage
from segjax.training.loggers import Logger, finite

# Seconds between two writes of what is buffered: of TensorBoard's events, and of a log in a bucket,
# where a file is only written as a whole.
_FLUSH = 60.0


def evaluation_split(split: str) -> str:
  """The name in the log of a split that is evaluated; `train` stands for the training batches."""
  return 'train[:]' if split == 'train' else split


class RunLog:
  """Appends to `metrics.jsonl`, one JSON object per line, and to `tensorboard/` in a workdir.

  A resumed run first drops the lines after the step it resumes from, so that every step occurs
  once. In a bucket both are written at evaluations and checkpoints, and once a minute.

  Args:
    workdir: of the run.
    start_step: the step that the run resumes from.
    evaluated: whether its evaluation, if one was due, is complete; its lines are dropped otherwise.
    loggers: that get the same scalars and images, again where a run resumes.

  Raises:
    SegjaxError: the disk is full, or may not be written to.
  """

  def __init__(
    self,
    workdir: Path,
    *,
    start_step: int = 0,
    evaluated: bool = True,
    loggers: Sequence[Logger] = (),
  ):
    self._loggers = loggers
    self._lines = _Lines(workdir / 'metrics.jsonl', start_step, evaluated)
    self._tensorboard = _import_tensorboard()
    self._events = _Events(workdir / 'tensorboard', start_step + 1)

  def config(self, config: Mapping[str, Any], measures: Sequence[str]) -> None:
    """Writes the config to TensorBoard, as text and as hyperparameters.

    Args:
      config: the complete config, with dotted keys.
      measures: names of scalars that runs are compared by, such as `val/mean_iou`.
    """
    summaries = self._tensorboard.summary
    lines = (f'    {key}: {json.dumps(value)}\n' for key, value in sorted(config.items()))
    # Indented: a block of code in Markdown.
    self._events.add(summaries.text('config', ''.join(lines)))
    values = {key: _hyperparameter(value) for key, value in config.items() if value is not None}
    # Named as TensorBoard's scalars are.
    tags = {re.sub(r'[^-/\w.]', '_', name): None for name in measures}
    for summary in summaries.hparams(values, tags)[:2]:  # without the end
      self._events.add(summary)
    self._events.flush()

  def scalars(self, step: int, split: str, values: Mapping[str, Any]) -> None:
    """Logs values of one step; TensorBoard and loggers get only finite numbers."""
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec='seconds')
    line = {'step': step, 'split': split, 'time': now, **values}
    self._lines.append(json.dumps(no_nan(line)) + '\n')
    named = {f'{split}/{name}': value for name, value in finite(values).items()}
    for name, value in named.items():
      self._events.add(self._tensorboard.summary.scalar(name, value), step)
    for logger in self._loggers:
      logger.scalars(step, named)

  def images(
    self, step: int, split: str, examples: Sequence[tuple[str, Mapping[str, np.ndarray]]]
  ) -> None:
    """Logs `(name, panels)` as images, the panels u8[H, W, 3] concatenated horizontally."""
    for name, panels in examples:
      image = np.concatenate(list(panels.values()), axis=1)
      summary = self._tensorboard.summary.image(f'{split}/{name}', image, dataformats='HWC')
      self._events.add(summary, step)
      for logger in self._loggers:
        logger.image(step, f'{split}/{name}', image)
    self.flush()

  def flush(self) -> None:
    """Writes what is buffered, as a run that is killed resumes from what is written."""
    self._lines.flush()
    self._events.flush()

  def __enter__(self) -> Self:
    return self

  def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
    # What cannot be written, as on a full disk, does not hide the error that ends the run.
    hidden = () if kind is None else (Exception,)
    with contextlib.suppress(*hidden):
      self.close(completed=kind is None)

  def close(self, *, completed: bool = True) -> None:
    """Writes and closes the files; `completed` says whether the run reached its last step."""
    with contextlib.ExitStack() as stack:  # each of them, whatever happens to the others
      for logger in self._loggers:
        stack.callback(logger.close, completed)
      stack.callback(self._events.close)
      stack.callback(self._lines.close)


class _Lines:
  """A file that grows by lines, from those up to a step on.

  A file in a bucket cannot grow: it is kept here, and written as a whole.
  """

  def __init__(self, path: Path, step: int, evaluated: bool):
    self._path = path
    kept = _lines_until(path, step, evaluated)
    if kept is not None:
      storage.write_text(path, ''.join(kept))
    self._kept, self._written = kept or [], time.monotonic()
    self._file = None
    if not storage.is_bucket(path):
      with storage.explained(path):
        self._file = path.open('a', encoding='utf-8')

  def append(self, line: str) -> None:
    """Adds a line; on a disk it is there at once."""
    if self._file is not None:
      with storage.explained(self._path, lambda: len(line)):
        self._file.write(line)
        self._file.flush()
      return
    self._kept.append(line)
    if time.monotonic() - self._written >= _FLUSH:
      self.flush()

  def flush(self) -> None:
    """Writes the file in a bucket."""
    if self._file is None:
      storage.write_text(self._path, ''.join(self._kept))
      self._written = time.monotonic()

  def close(self) -> None:
    if self._file is not None:
      self._file.close()
    else:
      self.flush()


def _lines_until(path: Path, step: int, evaluated: bool) -> list[str] | None:
  """The lines of a log up to a step, without one truncated by a kill; None if there is no log.

  Where the step is not `evaluated`, it is again: its lines of an evaluation are left out.
  """
  if not path.exists():
    return None
  kept = []
  for line in path.read_text(encoding='utf-8').splitlines():
    try:
      record = json.loads(line)
      again = record['step'] == step and record['split'] != 'train' and not evaluated
      if record['step'] <= step and not again:
        kept.append(line + '\n')
    except (ValueError, KeyError):
      continue
  return kept


class _Events:
  """TensorBoard's events of one start of a run.

  They are written here and now: the thread of `tensorboardX.SummaryWriter` would end on a full disk
  with a traceback, and the training would wait for it. Those of a bucket are written to a temporary
  directory and copied.

  Args:
    directory: of the event files.
    purge_step: from which on those of earlier starts do not count.
  """

  def __init__(self, directory: Path, purge_step: int):
    # Of tensorboardX, which is imported by now.
    self._proto = importlib.import_module('tensorboardX.proto.event_pb2')
    records = importlib.import_module('tensorboardX.record_writer')
    self._directory, self._temporary = directory, None
    local = directory
    if storage.is_bucket(directory):
      self._temporary = tempfile.TemporaryDirectory(prefix='segjax-events-')
      local = Path(self._temporary.name)
    storage.make_directory(local)
    # Unlike that of another start within the same second, which it would replace.
    own = f'{socket.gethostname()}.{uuid.uuid4().hex[:8]}'
    name = f'events.out.tfevents.{int(time.time())}.{own}'
    with storage.explained(directory):
      self._writer = records.RecordWriter(os.path.join(local, name))
    log = self._proto.SessionLog
    self._add(self._proto.Event(file_version='brain.Event:2'))
    self._add(self._proto.Event(step=purge_step, session_log=log(status=log.START)))
    self._flushed = time.monotonic()

  def add(self, summary: Any, step: int | None = None) -> None:
    """Adds a summary of a step."""
    self._add(self._proto.Event(summary=summary, step=step))
    if time.monotonic() - self._flushed >= _FLUSH:
      self.flush()

  def _add(self, event: Any) -> None:
    event.wall_time = time.time()
    with storage.explained(self._directory, event.ByteSize):
      self._writer.write(event.SerializeToString())

  def flush(self) -> None:
    """Writes what is buffered."""
    with storage.explained(self._directory):
      self._writer.flush()
    self._flushed = time.monotonic()
    if self._temporary is not None:
      storage.copy_tree(Path(self._temporary.name), self._directory)

  def close(self) -> None:
    with storage.explained(self._directory):
      self._writer.close()
    if self._temporary is not None:
      storage.copy_tree(Path(self._temporary.name), self._directory)
      self._temporary.cleanup()


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


def plain(tree: Any) -> Any:
  """`tree` with arrays and their scalars converted to JSON types."""
  if isinstance(tree, Mapping):
    return {k: plain(v) for k, v in tree.items()}
  if isinstance(tree, list | tuple):
    return [plain(v) for v in tree]
  return tree.tolist() if hasattr(tree, 'tolist') else tree


def no_nan(value: Any) -> Any:
  """`value` with None for numbers that are not finite, which JSON cannot represent."""
  if isinstance(value, Mapping):
    return {k: no_nan(v) for k, v in value.items()}
  if isinstance(value, list | tuple):
    return [no_nan(v) for v in value]
  return None if isinstance(value, float) and not math.isfinite(value) else value
