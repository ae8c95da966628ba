"""The log of a run: `metrics.jsonl` and TensorBoard events."""

import datetime
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tensorboardX import SummaryWriter


class RunLog:
  """Appends to `metrics.jsonl`, one JSON object per line, and to `tensorboard/` in a workdir.

  A resumed run first drops the lines after the step it resumes from, so that every step occurs
  once.
  """

  def __init__(self, workdir: Path, *, start_step: int = 0):
    self._path = workdir / 'metrics.jsonl'
    self._keep_until(start_step)
    self._file = self._path.open('a', encoding='utf-8')
    self._events = SummaryWriter(str(workdir / 'tensorboard'), purge_step=start_step + 1)

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

  def scalars(self, step: int, split: str, values: Mapping[str, Any]) -> None:
    """Logs values of one step; TensorBoard gets only finite numbers."""
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec='seconds')
    line = {'step': step, 'split': split, 'time': now, **values}
    self._file.write(json.dumps(no_nan(line)) + '\n')
    self._file.flush()
    for name, value in values.items():
      if isinstance(value, int | float) and math.isfinite(value):
        self._events.add_scalar(f'{split}/{name}', value, step)

  def images(
    self, step: int, split: str, examples: Sequence[tuple[str, Mapping[str, np.ndarray]]]
  ) -> None:
    """Logs `(name, panels)` to TensorBoard, the panels u8[H, W, 3] concatenated horizontally."""
    for name, panels in examples:
      image = np.concatenate(list(panels.values()), axis=1)
      self._events.add_image(f'{split}/{name}', image, step, dataformats='HWC')
    self._events.flush()

  def close(self) -> None:
    """Flushes and closes the files."""
    self._file.close()
    self._events.close()


def no_nan(value: Any) -> Any:
  """`value` with None for numbers that are not finite, which JSON cannot represent."""
  if isinstance(value, Mapping):
    return {k: no_nan(v) for k, v in value.items()}
  if isinstance(value, list | tuple):
    return [no_nan(v) for v in value]
  return None if isinstance(value, float) and not math.isfinite(value) else value
