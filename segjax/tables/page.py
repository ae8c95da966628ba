"""Renders a table, the paper's results next to ours, as Markdown, JSON or cells."""

import dataclasses
import decimal
import shlex
import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from segjax.tables.results import Record, look_up
from segjax.tables.runs import entry_digest
from segjax.tables.spec import Column, Entry, Recipe, Row, Table, parent

NOT_RUN, MISSING = 'not run', '–'


class Result(NamedTuple):
  """A measured or computed result, in the unit of its column.

  Attributes:
    mean: over the seeds.
    spread: sample standard deviation; None for one seed.
    seeds: number of seeds.
  """

  mean: float
  spread: float | None
  seeds: int


class Line(NamedTuple):
  """A line of the page: a row trained by one recipe, at one checkpoint.

  Attributes:
    row: name.
    entry: None if no recipe trains the row.
    checkpoint: likewise.
    results: by column; None if missing.
    records: of the measured results; empty if not run.
    changed: whether the config has changed since one of the records.
  """

  row: str
  entry: Entry | None
  checkpoint: str | None
  results: dict[str, Result | None]
  records: tuple[Record, ...]
  changed: bool


def make_lines(
  table: Table, records: Sequence[Record], facts: Callable[[Entry], Mapping[str, float | None]]
) -> list[Line]:
  """The lines of a table, in its order.

  Args:
    table: of the lines.
    records: of the table.
    facts: computes values from an entry's config, by key of the `computed` columns; called only if
      there are such columns.
  """
  computes = any(column.computed for column in table.columns.values())
  lines = []
  for name in table.rows:
    entries = [entry for entry in table.entries.values() if entry.row == name]
    for entry in entries:
      known = facts(entry) if computes else {}
      for checkpoint in entry.checkpoints:
        found = tuple(r for r in records if r.key[:2] == (entry.name, checkpoint))
        measured = {n: _result(c, found, known) for n, c in table.columns.items() if c.key}
        digests = {r.config_digest for r in found} - {None}
        changed = bool(digests - {entry_digest(entry)}) if digests else False
        lines.append(Line(name, entry, checkpoint, measured, found, changed))
    if not entries:
      lines.append(Line(name, None, None, {}, (), False))
  return lines


def _result(
  column: Column, records: Sequence[Record], known: Mapping[str, float | None]
) -> Result | None:
  """The result of a column that has a key."""
  source = [known] if column.computed else [record.metrics for record in records]
  found = [look_up(metrics, column.key) for metrics in source]
  values = [value * column.scale for value in found if value is not None]
  if not values:
    return None
  spread = statistics.stdev(values) if len(values) > 1 else None
  return Result(statistics.fmean(values), spread, len(values))


def cells(table: Table, lines: Sequence[Line]) -> list[dict[str, str]]:
  """The text of each line by column heading, with the paper's result and ours."""
  printed = {name for line in lines for name in table.rows[line.row].paper or {}}
  rows = []
  for line in lines:
    row = table.rows[line.row]
    texts = {'row': row.title, 'recipe': _recipe_cell(line)}
    for name, column in table.columns.items():
      if name in printed:
        texts[f'{name}, paper'] = _paper_cell(row, name)
      if column.key:
        kind = 'computed' if column.computed else 'measured'
        texts[f'{name}, {kind}'] = _our_cell(line, name, column)
    rows.append(texts)
  return rows


def _recipe_cell(line: Line) -> str:
  if line.entry is None:
    return MISSING
  several = len(line.entry.checkpoints) > 1
  return line.entry.recipe + (f', {line.checkpoint} checkpoint' if several else '')


def _paper_cell(row: Row, name: str) -> str:
  value = (row.paper or {}).get(name)
  if value is None:
    return MISSING
  text = format(value, 'f') if isinstance(value, decimal.Decimal) else str(value)
  return text + (' (unverified)' if row.unverified else '')


def _our_cell(line: Line, name: str, column: Column) -> str:
  result = line.results.get(name)
  if result is None:
    return MISSING if line.records or column.computed else NOT_RUN
  text = f'{result.mean:.{column.digits}f}'
  if result.spread is not None:
    text += f' ± {result.spread:.{column.digits}f}'
  return text + (' †' if line.changed and not column.computed else '')


def to_json(table: Table, lines: Sequence[Line]) -> dict[str, Any]:
  """The lines as JSON; missing results are null."""

  def row(line: Line) -> dict[str, Any]:
    row = table.rows[line.row]
    return {
      'row': line.row,
      'title': row.title,
      'recipe': line.entry and line.entry.recipe,
      'checkpoint': line.checkpoint,
      'paper': {name: float(value) for name, value in (row.paper or {}).items()},
      'source': row.source or table.file.source,
      'unverified': row.unverified,
      'measured': {n: result and result._asdict() for n, result in line.results.items()},
      'config_changed': line.changed,
      'records': [dataclasses.asdict(record) for record in line.records],
    }

  return {
    'table': table.name,
    'title': table.file.title,
    'split': table.file.split,
    'rows': [row(line) for line in lines],
  }


def render_markdown(table: Table, lines: Sequence[Line]) -> str:
  """The page: results, recipes, configs, provenance and notes."""
  name = table.name
  split = f' Evaluated on the split `{table.file.split}`.' if table.file.split else ''
  sections = [
    f'# {table.file.title}',
    f'<!-- Written by: segjax table {name} > experiments/{name}/README.md -->',
    f'{table.file.source}.{split}',
    markdown_table(cells(table, lines)),
    '\n'.join(legend(table, lines)),
    *(_making(table, lines) if table.entries else ()),  # a table may only quote the paper's results
    table.file.notes,
  ]
  return '\n\n'.join(section.strip() for section in sections if section.strip()) + '\n'


def _making(table: Table, lines: Sequence[Line]) -> list[str]:
  """The sections on recipes, configs and provenance."""
  name = table.name
  return [
    '## Recipes',
    '\n'.join(_recipe(*item) for item in table.recipes.items()),
    '## The config of each row',
    '\n'.join(f'- `{entry.name}`: {_made_by(table, entry)}' for entry in table.entries.values()),
    f'`segjax table {name} --run ROW.RECIPE` trains and records one row, '
    f'`segjax table {name} --run` all rows without a result.',
    '## Provenance of the measured results',
    '\n'.join(provenance(record) for line in lines for record in line.records) or 'None yet.',
  ]


def markdown_table(rows: Sequence[Mapping[str, str]]) -> str:
  """A Markdown table of rows that have the same keys."""
  lines = [list(rows[0]), ['---'] * len(rows[0]), *(list(row.values()) for row in rows)]
  escaped = [[text.replace('|', '\\|') for text in line] for line in lines]
  return '\n'.join(f'| {" | ".join(line)} |' for line in escaped)


def legend(table: Table, lines: Sequence[Line]) -> list[str]:
  """Explains the symbols that occur in the cells, and lists results from other sources."""
  spread = any(
    result and result.spread is not None for line in lines for result in line.results.values()
  )
  rows = table.rows.values()
  return [
    *['- a ± b: mean and standard deviation over the seeds'] * spread,
    *['- †: the config has changed since this result was measured']
    * any(line.changed for line in lines),
    *['- unverified: quoted from memory'] * any(row.unverified for row in rows),
    *(f'- {row.title}: {row.source}' for row in rows if row.source),
  ]


def _recipe(name: str, recipe: Recipe) -> str:
  path = recipe.config or recipe.script
  return f'- `{name}`: [{path}](../../{path}). {recipe.differs} Cost: {recipe.cost}'


def _made_by(table: Table, entry: Entry) -> str:
  path = (entry.config or entry.script).relative_to(table.root)
  words = shlex.join([str(path), *(f'--config.{key}={value}' for key, value in entry.overrides)])
  before = parent(table, entry)
  return f'`{words}`' + (f', starting from `{before.name}`' if before else '')


def provenance(record: Record) -> str:
  """A record as a Markdown list item, without unknown fields."""
  of = '' if record.steps is None else f' of {record.steps}'
  changes = ' with uncommitted changes' if record.dirty else ''
  facts = [
    record.seed is not None and f'seed {record.seed}',
    record.step is not None and f'{record.checkpoint} checkpoint, step {record.step}{of}',
    record.data and f'data {record.data}',
    record.split and f'split {record.split}',
    record.weights and f'from {record.weights}',
    record.parameters is not None and f'{record.parameters:,} parameters',
    record.commit and f'commit {record.commit[:7]}{changes}',
    record.config_digest and f'config {record.config_digest}',
    record.versions,
    record.hardware,
    record.seconds is not None and f'training {spell_seconds(record.seconds)}',
    record.date,
    record.note,
  ]
  return f'- `{record.entry}`: {"; ".join(fact for fact in facts if fact)}'


def spell_seconds(seconds: float) -> str:
  """Such as '17 min 16 s'."""
  minutes, rest = divmod(round(seconds), 60)
  hours, minutes = divmod(minutes, 60)
  parts = ((hours, 'h'), (minutes, 'min'), (rest, 's'))
  return ' '.join(f'{count} {unit}' for count, unit in parts if count) or '0 s'
