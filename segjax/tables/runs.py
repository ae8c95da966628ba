"""Training jobs of a table: configs, workdirs, and the order of missing jobs."""

import fnmatch
import shlex
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from segjax import config as config_lib
from segjax import storage
from segjax.tables.results import Record
from segjax.tables.spec import Entry, Table, ancestors, parent
from segjax.types import SegjaxError, nearest
from segjax.workdir import FREE_KEYS

Config = Mapping[str, Any]
Overrides = tuple[tuple[str, str], ...]

# Keys in which a training run may differ from its entry's config, and that its digest leaves out:
# paths, execution, and additional metrics.
FREE = (*FREE_KEYS, 'init_from.path', 'eval.metrics')
# Those of them that decide which checkpoint is the best, where patience ends a training, or which
# examples and updates are left out: only a row may set them, and its command then names them.
_OF_A_ROW = (
  *('data.bad_examples', 'eval.metrics'),
  *('train.eval_every', 'train.nonfinite', 'train.max_skipped'),
)
_OVERRIDES = tuple(key for key in FREE if key not in _OF_A_ROW)


class Job(NamedTuple):
  """An entry to train with a seed; None for a script."""

  entry: Entry
  seed: int | None

  @property
  def name(self) -> str:
    return self.entry.name + ('' if self.seed is None else f'.seed{self.seed}')


def given_config(entry: Entry) -> dict[str, Any]:
  """The entry's config file with its overrides, without defaults.

  For an entry that starts from another row, `init_from.path` is set at training time.
  """
  config = config_lib.override(config_lib.read_file(entry.config), entry.overrides)
  if entry.init_from is not None:
    given = config.get('init_from')
    given = given if isinstance(given, Mapping) else {}
    config['init_from'] = {**given, 'path': '', 'source': None}
  return config


def entry_digest(entry: Entry) -> str | None:
  """A digest of the entry's config without the seed and `FREE`; None for a script.

  It changes when the config file or the row changes, not when the code gets a new key.
  """
  if entry.config is None:
    return None
  return config_lib.digest(_binding(config_lib.flatten(given_config(entry))))


def _binding(flat: Mapping[str, Any]) -> dict[str, Any]:
  """The keys that must match the entry."""
  return {k: v for k, v in flat.items() if not k.startswith(FREE) and k != 'train.seed'}


def check_overrides(overrides: Iterable[tuple[str, str]]) -> None:
  """Checks that the overrides may be applied to every entry.

  Raises:
    SegjaxError: an override would change the results.
  """
  for key, _ in overrides:
    if not key.startswith(_OVERRIDES):
      raise SegjaxError(
        f'config.{key} would change the rows: set it in table.toml; allowed here: '
        f'{", ".join(_OVERRIDES)}'
      )


def workdir_of(job: Job, workdirs: Path) -> Path:
  """The workdir of a job."""
  return workdirs / job.name


def training_overrides(
  table: Table, job: Job, workdirs: Path, added: Iterable[tuple[str, str]] = ()
) -> Overrides:
  """All config overrides of a training job.

  Args:
    table: of the job.
    job: its entry has a config.
    workdirs: directory of the table's workdirs.
    added: for every entry; `init_from.path` applies only to entries that start from a file.
  """
  entry, seed = job
  from_file = isinstance(given_config(entry).get('init_from'), Mapping) and not entry.init_from
  overrides = [(k, v) for k, v in added if from_file or k != 'init_from.path']
  before = parent(table, entry)
  if before is not None:
    source = workdir_of(Job(before, seed), workdirs)
    overrides += [('init_from.path', str(source)), ('init_from.source', 'none')]
  return (*entry.overrides, *overrides, ('train.seed', str(seed)))


def command(table: Table, job: Job) -> str:
  """The command that trains a job, without paths of this machine."""
  workdirs = Path('runs', table.name)
  overrides = training_overrides(table, job, workdirs)
  config = job.entry.config.relative_to(table.root)
  words = ['segjax', 'train', f'--config={config}', f'--workdir={workdir_of(job, workdirs)}']
  return shlex.join([*words, *(f'--config.{key}={value}' for key, value in overrides)])


def check_workdir(
  table: Table,
  entry: Entry,
  workdir: Path,
  *,
  complete: Callable[[Config], Config],
  read: Callable[[Path], Config],
) -> Config:
  """Checks that a workdir was trained with an entry's config, and returns it, complete.

  Args:
    table: of the entry.
    entry: with a config.
    workdir: of the training run.
    complete: fills in the defaults of a config.
    read: reads the complete config of a workdir.

  Raises:
    SegjaxError: it differs in more than the seed and `FREE`, or started from different weights.
  """
  trained = read(workdir)
  differences = config_lib.differences(complete(given_config(entry)), trained)
  if changed := _binding(differences):
    shown = ', '.join(f'config.{k} is {b!r}, not {a!r}' for k, (a, b) in changed.items())
    raise SegjaxError(
      f'{workdir} was not trained as {entry.name} of {table.name} ({shown}): move it, or use other '
      '--workdirs'
    )
  before, source = parent(table, entry), find_start(workdir, trained)
  if before is not None:
    if source is None:
      raise SegjaxError(
        f'{workdir} started from {trained["init_from"]["path"]}, which does not exist: move '
        f'that workdir next to {workdir} to check that it is {before.name}'
      )
    check_workdir(table, before, source, complete=complete, read=read)
  elif source is not None and source.is_dir():
    raise SegjaxError(
      f'{workdir} started from another run, {source}, but {entry.name} starts from a file: set '
      'init_from in the row'
    )
  return trained


def find_start(workdir: Path, trained: Config) -> Path | None:
  """Resolves `init_from.path` of a trained workdir: as given, or next to the workdir if moved.

  None if it does not exist, and for merged runs, whose config has one path per network.
  """
  path = trained['init_from'] and trained['init_from']['path']
  if not isinstance(path, str):
    return None
  named = storage.as_path(path)
  return next((p for p in (named, workdir.parent / named.name) if p.exists()), None)


def select(table: Table, names: Sequence[str]) -> list[Entry]:
  """The entries that match `ROW.RECIPE`, `ROW`, or a pattern such as '*.cpu'; all if no names.

  A row that is a mean stands for its rows.

  Raises:
    SegjaxError: a name matches no entry.
  """
  means = {name: row.mean_of for name, row in table.rows.items() if row.mean_of}
  chosen = set()
  for name in names:
    row, _, recipe = name.partition('.')
    patterns = [f'{part}.{recipe or "*"}' for part in means.get(row, (row,))]
    fits = {n for n in table.entries if any(fnmatch.fnmatchcase(n, p) for p in patterns)}
    if not fits:
      rows = {*means, *(entry.row for entry in table.entries.values())}
      hint = nearest(name, {*table.entries, *rows}, shown=table.entries)
      raise SegjaxError(f'unknown entry {name} of {table.name}{hint}')
    chosen |= fits
  return [entry for n, entry in table.entries.items() if n in chosen or not names]


def is_earlier(record: Record, entry: Entry) -> bool:
  """Whether a record was measured with a config that the entry no longer has."""
  return record.config_digest is not None and record.config_digest != entry_digest(entry)


def missing(entry: Entry, seed: int | None, records: Iterable[Record]) -> list[str]:
  """The checkpoints of the entry without a record of its current config for this seed."""
  found = [r for r in records if r.entry == entry.name and r.seed == seed]
  there = {r.checkpoint for r in found if not is_earlier(r, entry)}
  return [c for c in entry.checkpoints if c not in there]


def plan(
  table: Table,
  entries: Iterable[Entry],
  seeds: Sequence[int],
  records: Sequence[Record],
  finished: Callable[[Job], bool],
) -> list[Job]:
  """The missing jobs, each after the job that it starts from.

  Args:
    table: of the entries.
    entries: to train.
    seeds: for each entry.
    records: existing measurements.
    finished: whether a job is trained to its last step. A job that has a record, but no workdir for
      its successor to start from, is trained again.
  """
  jobs: dict[Job, None] = {}
  for entry in entries:
    for seed in [None] if entry.script else seeds:
      if missing(entry, seed, records):
        before = [Job(e, seed) for e in ancestors(table, entry)]
        jobs |= dict.fromkeys([*(job for job in before if not finished(job)), Job(entry, seed)])
  return sorted(jobs, key=lambda job: len(ancestors(table, job.entry)))


def chains(table: Table, jobs: Iterable[Job]) -> list[list[Job]]:
  """Groups the jobs into independent chains, each in order."""
  groups: dict[Any, list[Job]] = {}
  for job in jobs:
    entry = job.entry
    first = entry.script or (*ancestors(table, entry), entry)[0].name
    groups.setdefault((first, job.seed), []).append(job)
  return list(groups.values())
