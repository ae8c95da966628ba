"""The measured results of a table: `results.jsonl`, one record per line, with their provenance."""

import dataclasses
import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from segjax import config as config_lib
from segjax import lock, storage
from segjax.tables.spec import Entry, Table
from segjax.types import NonNegativeFloat, NonNegativeInt, SegjaxError, nearest

# Metadata of a training run that its workdir may lack: `--fact commit=1e077fc`. `weights` is the
# name of their file, see `spell_weights`.
FACTS = ('commit', 'hardware', 'versions', 'weights', 'seconds', 'note')
# Between the values of a run that was resumed with other code or elsewhere.
_THEN = ', then '
_UNKNOWN = 'unknown'


@dataclasses.dataclass(frozen=True)
class Record:
  """A measurement of an entry; None means unknown.

  Attributes:
    row: name.
    recipe: name.
    metrics: by name, as `segjax evaluate --json` prints them.
    seed: of the training run.
    checkpoint: 'best' or 'latest'.
    step: of that checkpoint.
    steps: of the complete training run.
    split: that was evaluated.
    data: data set and version, of training and, if different, of evaluation.
    weights: initial weights, or 'scratch'.
    parameters: number of parameters.
    config_digest: of the entry, see `runs.entry_digest`.
    commit: of the code that trained.
    dirty: whether that code had uncommitted changes.
    hardware: of the training run.
    versions: of segjax and JAX.
    seconds: of training, see `training_seconds`.
    date: of the measurement, YYYY-MM-DD.
    command: of the training run.
    note: anything else.
    image: file in the table's directory that shows an image, its ground truth and its prediction.
    image_note: which image that is, and how it was chosen.
  """

  row: str
  recipe: str
  metrics: Mapping[str, Any]
  seed: NonNegativeInt | None = None
  checkpoint: str = 'best'
  step: NonNegativeInt | None = None
  steps: NonNegativeInt | None = None
  split: str | None = None
  data: str | None = None
  weights: str | None = None
  parameters: NonNegativeInt | None = None
  config_digest: str | None = None
  commit: str | None = None
  dirty: bool | None = None
  hardware: str | None = None
  versions: str | None = None
  seconds: NonNegativeFloat | None = None
  date: str | None = None
  command: str | None = None
  note: str | None = None
  image: str | None = None
  image_note: str | None = None

  @property
  def entry(self) -> str:
    return f'{self.row}.{self.recipe}'

  @property
  def key(self) -> tuple[str, str, int | None, str | None]:
    """Unique within a table, which keeps the records of earlier configs."""
    return (self.entry, self.checkpoint, self.seed, self.config_digest)


def parse_facts(facts: Iterable[str]) -> dict[str, Any]:
  """Parses `['commit=1e077fc', …]` into fields of `Record`.

  Raises:
    SegjaxError: an unknown key, or a value of the wrong type.
  """
  hints = config_lib.type_hints(Record)
  parsed = {}
  for text in facts:
    key, equals, value = text.partition('=')
    if key not in FACTS or not equals:
      raise SegjaxError(f'--fact={text} must be KEY=VALUE{nearest(key, FACTS)}')
    value = config_lib.parse_value(value) if key == 'seconds' else value
    parsed[key] = config_lib.check_value(value, hints[key], f'--fact={key}')
  return parsed


def fill_in(known: Mapping[str, Any], facts: Mapping[str, Any], source: str) -> dict[str, Any]:
  """What is known of a training run, with the facts that are not.

  Args:
    known: by field of `Record`; None if unknown.
    facts: of `parse_facts`. Each is for a field that is not known or has the same value, or for
      `weights` and `note`, which nothing else knows.
    source: of `known`, for errors.

  Raises:
    SegjaxError: a fact contradicts what is known.
  """
  for key, value in facts.items():
    if key not in ('weights', 'note') and known.get(key) not in (None, value):
      raise SegjaxError(f'--fact={key}={value}: {source} has {known[key]}: leave it out')
  return {**known, **facts}


def read_results(table: Table) -> list[Record]:
  """The records of a table.

  Raises:
    SegjaxError: a line is not a record, or names an unknown entry.
  """
  path = table.folder / 'results.jsonl'
  if not path.exists():
    return []
  lines = enumerate(path.read_text(encoding='utf-8').splitlines(), 1)
  return [_read(table, line, f'{path}, line {number}') for number, line in lines if line.strip()]


def _read(table: Table, line: str, where: str) -> Record:
  try:
    content = json.loads(line)
  except ValueError as e:
    raise SegjaxError(f'{where}: not valid JSON ({e}): fix or remove it') from e
  record = Record(**config_lib.complete(Record, content, where))
  if record.entry not in table.entries:
    raise SegjaxError(
      f'{where}: unknown entry {record.entry}{nearest(record.entry, table.entries)}'
    )
  return record


def write_records(table: Table, added: Iterable[Record]) -> None:
  """Adds records, each replacing an older one of the same entry, checkpoint, seed and config."""
  path = table.folder / 'results.jsonl'
  # Jobs on a cluster may record at the same time.
  with lock.exclusive(table.folder / 'table.toml', wait=True):
    records = {record.key: record for record in (*read_results(table), *added)}
    order = {name: i for i, name in enumerate(table.entries)}
    ordered = sorted(records.values(), key=lambda r: (order[r.entry], r.seed or 0))
    lines = [json.dumps(dataclasses.asdict(r), ensure_ascii=False) + '\n' for r in ordered]
    storage.write_text(path, ''.join(lines))


def write_image(table: Table, record: Record, picture: bytes) -> str:
  """Writes the image of a record, a JPEG file; returns its path in the table's directory."""
  seed = '' if record.seed is None else f'.seed{record.seed}'
  name = f'images/{record.entry}{seed}.{record.config_digest}.jpg'
  storage.write_bytes(table.folder / name, picture)
  return name


def look_up(metrics: Mapping[str, Any], key: str) -> float | None:
  """The number at a dotted key of a metrics mapping; None if it is missing or NaN."""
  value: Any = metrics
  for name in key.split('.'):
    value = value.get(name) if isinstance(value, Mapping) else None
  return float(value) if isinstance(value, int | float) and value == value else None


def keep_metrics(table: Table, metrics: Mapping[str, Any]) -> dict[str, Any]:
  """The metrics that a record keeps: scalars, and the table entries that columns name."""
  keys = [*metrics, *(c.key for c in table.columns.values() if c.key and not c.computed)]
  kept: dict[str, Any] = {}
  for key in dict.fromkeys(keys):
    value = look_up(metrics, key)
    if value is not None:
      *parents, last = key.split('.')
      node = kept
      for name in parents:
        node = node.setdefault(name, {})
      node[last] = round(value, 6)
  return kept


def training_seconds(log: Sequence[Mapping[str, Any]], batch_size: int) -> float | None:
  """Time spent in training steps, from the images per second in `metrics.jsonl`.

  Excludes evaluation, compilation, and the time until a run is resumed.
  """
  train = [line for line in log if line['split'] == 'train']
  before = [0, *(line['step'] for line in train)]
  parts = [
    (line['step'] - start) * batch_size / line['images_per_second']
    for line, start in zip(train, before, strict=False)
    if line.get('images_per_second')
  ]
  return round(sum(parts), 3) if parts else None


def spell_weights(
  entry: Entry, trained: Mapping[str, Any], source: Path | None, name: str | None = None
) -> str:
  """Describes initial weights without paths: an entry, a file with its SHA-256, a source or runs.

  Args:
    entry: of the training run.
    trained: its complete config.
    source: location of `init_from.path`; None if it does not exist.
    name: replaces the name of the file.
  """
  if trained['init_from'] is None:
    return 'scratch'
  if entry.init_from is not None:
    return f'{entry.init_from}.{entry.recipe}'
  path = trained['init_from']['path']
  if isinstance(path, Mapping):  # of a merged run
    return name or ', '.join(f'{part}: {Path(run).name}' for part, run in sorted(path.items()))
  if path is None:  # downloaded
    return name or trained['init_from']['source']
  name = name or Path(path).name
  if source is None:
    return name
  with source.open('rb') as file:
    return f'{name}, SHA-256 {hashlib.file_digest(file, "sha256").hexdigest()[:16]}'


def merge_starts(starts: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
  """The provenance of a training run over all its starts, see `Workdir.note_start`.

  What one start lacks and another has is 'unknown' there; what all lack is None.
  """
  starts = list(starts)
  merged: dict[str, Any] = {}
  for key in ('commit', 'hardware', 'versions'):
    values = dict.fromkeys(s.get(key) or _UNKNOWN for s in starts)
    merged[key] = _THEN.join(values) if values.keys() - {_UNKNOWN} else None
  known = [s['dirty'] for s in starts if s.get('dirty') is not None]
  return {**merged, 'dirty': any(known) if known else None}


def short_commit(commit: str | None) -> str:
  """The first digits of each commit that `merge_starts` names."""
  return _THEN.join(part[:7] for part in (commit or _UNKNOWN).split(_THEN))


def write_examples(
  workdirs: Path, entry: str, examples: Iterable[tuple[str, Mapping[str, np.ndarray]]]
) -> None:
  """Saves examples of an evaluation, `(caption, {panel: u8[H, W, 3]})`, for the HTML page."""
  arrays = {
    f'{i}/{name}/{caption}': np.asarray(panel)
    for i, (caption, panels) in enumerate(examples)
    for name, panel in panels.items()
  }
  with storage.writing(_examples(workdirs, entry)) as file:
    np.savez_compressed(file, **arrays)


def read_examples(workdirs: Path, entry: str) -> list[tuple[str, dict[str, np.ndarray]]]:
  """The examples that `write_examples` saved for an entry; empty if there are none."""
  path = _examples(workdirs, entry)
  if not path.exists():
    return []
  examples: dict[tuple[str, str], dict[str, np.ndarray]] = {}
  with path.open('rb') as file, np.load(file) as arrays:
    for key in arrays.files:
      index, name, caption = key.split('/', 2)
      examples.setdefault((index, caption), {})[name] = arrays[key]
  return [(caption, panels) for (_, caption), panels in examples.items()]


def _examples(workdirs: Path, entry: str) -> Path:
  return workdirs / 'examples' / f'{entry}.npz'
