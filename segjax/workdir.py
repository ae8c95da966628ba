"""The folder of one run: its files by name, its frozen config, and the lock on it."""

import contextlib
import fcntl
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from segjax import config as config_lib
from segjax.types import SegjaxError

# Keys that a run may change when it goes on: they change where and how it runs, not what comes out.
FREE_KEYS = (
  'data.dir',
  'data.source',
  'data.workers',
  'data.eval_batch_size',
  'mesh.',
  'train.log_every',
  'train.eval_every',
  'train.checkpoint_every',
  'train.keep',
  'train.pictures',
)


class Workdir:
  """The files of one run, by name."""

  def __init__(self, path: str):
    self.path = Path(path)
    self.config = self.path / 'config.json'
    self.dataset = self.path / 'dataset.json'
    self.checkpoints = self.path / 'checkpoints'
    self.report = self.path / 'report.html'
    self.log = self.path / 'metrics.jsonl'

  def read_config(self) -> dict[str, Any]:
    if not self.config.is_file():
      raise SegjaxError(f'{self.path} is no workdir of a run (no config.json): train first')
    return json.loads(self.config.read_text(encoding='utf-8'))

  def read_dataset(self) -> dict[str, Any]:
    """What `write_dataset` noted."""
    if not self.dataset.is_file():
      raise SegjaxError(f'{self.path} has no dataset.json: start training there first')
    return json.loads(self.dataset.read_text(encoding='utf-8'))

  def write_dataset(self, facts: Mapping[str, Any]) -> None:
    """Notes the data set's classes and colours, and the class weights, for use without it."""
    _write(self.dataset, json.dumps(facts, indent=2) + '\n')

  @contextlib.contextmanager
  def lock(self) -> Iterator[None]:
    """Keeps a second process off the workdir; the lock goes with the process, however it ends."""
    self.path.mkdir(parents=True, exist_ok=True)
    with (self.path / '.lock').open('a') as file:
      try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
      except OSError:
        raise SegjaxError(
          f'another process is training in {self.path}: wait for it, or take another --workdir'
        ) from None
      yield

  def settle_config(self, config: Mapping[str, Any]) -> None:
    """Writes the config of a new run, or checks that an old run goes on with the same one."""
    if self.config.is_file():
      changed = {
        k: v
        for k, v in config_lib.differences(self.read_config(), config).items()
        if not k.startswith(FREE_KEYS)
      }
      if changed:
        told = ', '.join(f'{k} was {old!r} and is {new!r}' for k, (old, new) in changed.items())
        raise SegjaxError(
          f'{self.path} belongs to a run of another config (config.{told}): take another '
          '--workdir, or the config it was started with'
        )
    _write(self.config, config_lib.to_json(config))


def _write(path: Path, text: str) -> None:
  """Writes a file whole or not at all."""
  temporary = path.with_name(path.name + '.tmp')
  temporary.write_text(text, encoding='utf-8')
  temporary.replace(path)
