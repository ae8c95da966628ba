"""The directory of a run: its files, its frozen config, and its lock."""

import contextlib
import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from segjax import config as config_lib
from segjax import lock as lock_lib
from segjax import storage, upgrade
from segjax.types import SegjaxError

# Keys that may change when a run resumes: paths and execution, and what is evaluated, saved and
# left out.
FREE_KEYS = (
  'data.bad_examples',
  'data.dir',
  'data.source',
  'data.eval_source',
  'batch.workers',
  'batch.eval_size',
  'mesh.',
  'model.remat',
  'train.log_every',
  'train.eval_every',
  'train.checkpoint_every',
  'train.keep',
  'train.images',
  'train.loggers',
  'train.nonfinite',
  'train.max_skipped',
)
# They select a checkpoint, or the end: a training may go on with others, but has another result.
_SELECTING = ('train.best_metric', 'train.best_mode', 'train.patience')

# In the order of preference.
_WEIGHTS_OF_TRANSFORMERS = ('model.safetensors', 'pytorch_model.bin')


class Workdir:
  """The files of a run, in a directory on a disk or in a bucket, see `storage.as_path`."""

  def __init__(self, path: storage.StrPath):
    self.path = storage.as_path(path)
    self.config = self.path / 'config.json'
    self.dataset = self.path / 'dataset.json'
    self.checkpoints = self.path / 'checkpoints'
    self.weights = self.path / 'model.safetensors'
    self.report = self.path / 'report.html'
    self.log = self.path / 'metrics.jsonl'
    self.starts = self.path / 'starts.jsonl'
    self._check_lock: Callable[[], None] = lambda: None

  def read_config(self) -> dict[str, Any]:
    """The frozen config, upgraded if an earlier version wrote it."""
    config = self._read_config()
    return upgrade.upgrade(config) if upgrade.is_old(config) else config

  def is_old(self) -> bool:
    """Whether the config was frozen by an earlier version, with other keys."""
    return upgrade.is_old(self._read_config())

  def _read_config(self) -> dict[str, Any]:
    if not self.config.is_file():
      raise SegjaxError(f'{self.path} is not the workdir of a run (no config.json): train first')
    config = _read(self.config)
    self._check_kind(config)
    if not isinstance(config.get('data'), dict) or not isinstance(config.get('model'), dict):
      raise SegjaxError(f'{self.config} is corrupt (no data or no model): use another --workdir')
    return config

  def _check_kind(self, config: Mapping[str, Any]) -> None:
    if _is_of_transformers(config):
      raise SegjaxError(
        f'{self.path} is a model of transformers, not the workdir of a run: start a run from it '
        f'with --config.init_from.path={self.path} and --config.init_from.source=NAME (segjax list '
        'sources; with --config.train.steps=0 it is used as it is)'
      )

  def check_kind(self) -> None:
    """Raises a SegjaxError for a model of transformers, whose config a run would overwrite."""
    if not self.config.is_file():
      return
    try:
      config = _read(self.config)
    except SegjaxError:  # of a start that failed: a new one replaces it
      return
    self._check_kind(config)

  def read_dataset(self) -> dict[str, Any]:
    """The content that `write_dataset` wrote."""
    if not self.dataset.is_file():
      raise SegjaxError(f'{self.path} has no dataset.json: start training there first')
    return _read(self.dataset)

  def has_checkpoints(self) -> bool:
    """Whether there is a checkpoint to resume from."""
    return self.checkpoints.is_dir() and any(p.name.isdigit() for p in self.checkpoints.iterdir())

  def has_weights_alone(self) -> bool:
    """Whether `segjax export --format=safetensors` wrote it, so that no training can go on here."""
    return self.weights.is_file() and not self.has_checkpoints()

  def write_dataset(self, facts: Mapping[str, Any]) -> None:
    """Writes classes, colors and class weights, so that the data set is not needed later."""
    storage.write_text(self.dataset, json.dumps(facts, indent=2) + '\n')

  def note_start(self, facts: Mapping[str, Any]) -> None:
    """Logs that training starts or resumes: when, on which hardware, with which code."""
    storage.append_text(self.starts, json.dumps(facts) + '\n')

  def read_starts(self) -> list[dict[str, Any]]:
    """The entries of `note_start`; a line truncated by a kill is skipped."""
    if not self.starts.exists():
      return []
    found = []
    for line in self.starts.read_text(encoding='utf-8').splitlines():
      with contextlib.suppress(ValueError):
        found.append(json.loads(line))
    return found

  @contextlib.contextmanager
  def lock(self, report: Callable[[str], None] = lambda text: None) -> Iterator[None]:
    """Locks the workdir, see `lock.exclusive`; in a bucket by the file `.lock`.

    Args:
      report: called with a line where the disk has no locks.

    Raises:
      SegjaxError: another process trains there; the workdir cannot be written.
    """
    storage.make_directory(self.path)
    with contextlib.ExitStack() as stack:
      try:
        lock = lock_lib.exclusive(self.path / '.lock', report=report)
        self._check_lock = stack.enter_context(lock)
      except lock_lib.LockedError as e:
        raise SegjaxError(
          f'{e} is training in {self.path}: wait for it, or use another --workdir'
        ) from None
      yield

  def check_lock(self) -> None:
    """Raises a SegjaxError if another process has taken over the lock, as of a frozen process."""
    self._check_lock()

  def check_config(self, old: Mapping[str, Any], new: Mapping[str, Any]) -> None:
    """Checks that a run with the complete config `old` may resume with `new`.

    Raises:
      SegjaxError: they differ in a key outside `FREE_KEYS`, or an earlier version trained the run
        on batches that the current pipeline cannot reproduce.
    """
    if self.is_old() and old['task'] != 'semantic' and old['train']['steps']:
      raise SegjaxError(
        f'{self.path} was trained by an earlier version of segjax and cannot be resumed, because '
        f'{old["task"]} batches have changed: evaluate it, predict with it, or start another '
        f'--workdir with --config.init_from.path={self.path}'
      )
    free = (*FREE_KEYS, *_SELECTING)
    changed = {k: v for k, v in config_lib.differences(old, new).items() if not k.startswith(free)}
    if changed:
      shown = ', '.join(f'{k} was {a!r} and is {b!r}' for k, (a, b) in changed.items())
      raise SegjaxError(
        f'{self.path} was created with a different config (config.{shown}): use another '
        '--workdir, or the original config'
      )

  def write_config(self, config: Mapping[str, Any]) -> None:
    """Freezes the config."""
    storage.write_text(self.config, config_lib.to_json(config))


def weights_file(path: Path) -> Path:
  """The weights file of a model of transformers.

  Args:
    path: the directory that `save_pretrained` wrote; or any other path, which is returned as it is.

  Raises:
    SegjaxError: the directory has no file of all weights.
  """
  config = path / 'config.json'
  if not config.is_file() or not _is_of_transformers(_read(config)):
    return path
  for name in _WEIGHTS_OF_TRANSFORMERS:
    if (path / name).is_file():
      return path / name
  raise SegjaxError(
    f'{path} is a model of transformers without {" and ".join(_WEIGHTS_OF_TRANSFORMERS)}: save all '
    'of its weights in one file there'
  )


def _is_of_transformers(config: Mapping[str, Any]) -> bool:
  """Whether transformers' `save_pretrained` wrote the content of a `config.json`."""
  return 'model_type' in config or 'architectures' in config


def _read(path: Path) -> dict[str, Any]:
  try:
    content = json.loads(path.read_text(encoding='utf-8'))
  except ValueError as e:
    raise SegjaxError(f'{path} is corrupt ({e}): use another --workdir, or fix it') from e
  if not isinstance(content, dict):
    raise SegjaxError(f'{path} is corrupt (not a JSON object): use another --workdir, or fix it')
  return content
