"""Renders a table, the paper's results next to ours, as Markdown, JSON or cells."""

import dataclasses
import decimal
import html
import itertools
import shlex
import statistics
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from segjax.tables.results import Record, look_up, short_commit
from segjax.tables.runs import is_earlier
from segjax.tables.spec import Column, Entry, Recipe, Row, Table, parent

NOT_RUN, MISSING = 'not run', '–'
EARLIER = 'earlier config'


class Result(NamedTuple):
  """A measured or computed result, in the unit of its column.

  Attributes:
    mean: over the seeds.
    spread: sample standard deviation; None for one seed.
    seeds: number of seeds; of a row that is a mean, the number of its rows.
  """

  mean: float
  spread: float | None
  seeds: int


class Line(NamedTuple):
  """A line of the page: a row trained by one recipe, at one checkpoint.

  Attributes:
    row: name.
    entry: None if no recipe trains the row; of a row that is a mean, that of its first row, under
      the name of the mean.
    checkpoint: None if no recipe trains the row.
    results: by column; None if missing.
    records: of the measured results; empty if not run.
    earlier: digest of the config that the records were measured with, if the recipe has had another
      one since; None if it is the current one.
  """

  row: str
  entry: Entry | None
  checkpoint: str | None
  results: dict[str, Result | None]
  records: tuple[Record, ...]
  earlier: str | None = None


class Lines(NamedTuple):
  """The lines of a table by what is known of them, each in the table's order.

  Attributes:
    measured: have records.
    not_run: have a recipe, but no record of its current config.
    quoted: have no recipe.
  """

  measured: list[Line]
  not_run: list[Line]
  quoted: list[Line]


def make_lines(
  table: Table, records: Sequence[Record], facts: Callable[[Entry], Mapping[str, float | None]]
) -> list[Line]:
  """The lines of a table, in its order, each followed by those of earlier configs.

  Args:
    table: of the lines.
    records: of the table.
    facts: computes values from an entry's config, by key of the `computed` columns; called only if
      there are such columns.
  """
  computes = any(column.computed for column in table.columns.values())
  by_row: dict[str, list[Line]] = {name: [] for name in table.rows}
  for name, lines in by_row.items():
    entries = [entry for entry in table.entries.values() if entry.row == name]
    for entry in entries:
      known = facts(entry) if computes else {}
      for checkpoint in entry.checkpoints:
        for digest, found in _by_config(entry, checkpoint, records).items():
          # What follows from the config is known of the current one.
          facts_of = known if digest is None else {}
          shown = {n: _result(c, found, facts_of) for n, c in table.columns.items() if c.key}
          lines.append(Line(name, entry, checkpoint, shown, tuple(found), digest))
  for name, lines in by_row.items():
    parts = [line for row in table.rows[name].mean_of or () for line in by_row[row]]
    lines += _means(table, name, parts)
    if not lines:
      lines.append(Line(name, None, None, {}, ()))
  return list(itertools.chain.from_iterable(by_row.values()))


def _means(table: Table, name: str, parts: Iterable[Line]) -> Iterator[Line]:
  """The lines of a row that is the mean of others, from the lines of those."""
  groups: dict[tuple[str, str], list[Line]] = {}
  for line in parts:
    if line.entry and line.earlier is None:
      groups.setdefault((line.entry.recipe, line.checkpoint), []).append(line)
  for (_, checkpoint), lines in groups.items():
    if len(lines) < len(table.rows[name].mean_of):
      continue
    shown = {
      n: _mean(c, [line.results[n] for line in lines]) for n, c in table.columns.items() if c.key
    }
    run = all(line.records for line in lines)
    records = tuple(record for line in lines for record in line.records) if run else ()
    yield Line(name, lines[0].entry._replace(row=name), checkpoint, shown, records)


def _mean(column: Column, results: Sequence[Result | None]) -> Result | None:
  """The mean of the rows' means; None if one has none, or if what is computed is not the same."""
  if column.computed:
    return results[0] if len(set(results)) == 1 else None
  return None if None in results else _summary([result.mean for result in results])


def _by_config(
  entry: Entry, checkpoint: str, records: Iterable[Record]
) -> dict[str | None, list[Record]]:
  """The records by earlier config, with those of the current one first, under None."""
  groups: dict[str | None, list[Record]] = {None: []}
  for record in records:
    if (record.entry, record.checkpoint) == (entry.name, checkpoint):
      digest = record.config_digest if is_earlier(record, entry) else None
      groups.setdefault(digest, []).append(record)
  return groups


def sort_lines(lines: Iterable[Line]) -> Lines:
  """Sorts lines by what is known of them."""
  found = Lines([], [], [])
  for line in lines:
    kind = found.measured if line.records else found.not_run if line.entry else found.quoted
    kind.append(line)
  return found


def _result(
  column: Column, records: Sequence[Record], known: Mapping[str, float | None]
) -> Result | None:
  """The result of a column that has a key."""
  source = [known] if column.computed else [record.metrics for record in records]
  found = [look_up(metrics, column.key) for metrics in source]
  values = [value * column.scale for value in found if value is not None]
  return _summary(values) if values else None


def _summary(values: Sequence[float]) -> Result:
  spread = statistics.stdev(values) if len(values) > 1 else None
  return Result(statistics.fmean(values), spread, len(values))


def cells(table: Table, lines: Sequence[Line]) -> list[dict[str, str]]:
  """The text of each line by column heading, with the paper's result and ours.

  Without columns that all lines leave empty: those of other rows, and of measurements not run.
  """
  printed = {name for line in lines for name in table.rows[line.row].paper or {}}
  run = any(line.records for line in lines)
  known = any(line.entry for line in lines)
  rows = []
  for line in lines:
    row = table.rows[line.row]
    texts = {'row': row.title} | ({'recipe': recipe_cell(line)} if known else {})
    for name, column in table.columns.items():
      title = heading(name, column)
      if name in printed:
        texts[f'{title}, paper'] = paper_cell(row, name)
      if column.key and (known if column.computed else run):
        kind = 'computed' if column.computed else 'measured'
        texts[f'{title}, {kind}'] = result_cell(line.results.get(name), column)
    rows.append(texts)
  return rows


def heading(name: str, column: Column) -> str:
  """The name of a column with its unit."""
  return f'{name} (%)' if column.percent else name


def recipe_cell(line: Line) -> str:
  """The recipe of a line, with its checkpoint if there are several."""
  if line.entry is None:
    return MISSING
  several = len(line.entry.checkpoints) > 1
  text = line.entry.recipe + (f', {line.checkpoint} checkpoint' if several else '')
  return text if line.earlier is None else f'{text}, {EARLIER} {line.earlier}'


def paper_cell(row: Row, name: str) -> str:
  """The result of the paper as it prints it."""
  value = (row.paper or {}).get(name)
  if value is None:
    return MISSING
  text = format(value, 'f') if isinstance(value, decimal.Decimal) else str(value)
  return text + (' (unverified)' if row.unverified else '')


def result_cell(result: Result | None, column: Column) -> str:
  """Our result, with its spread if there are several seeds."""
  if result is None:
    return MISSING
  text = f'{result.mean:.{column.digits}f}'
  if result.spread is None:
    return text
  return f'{text} ± {result.spread:.{column.digits}f} (n = {result.seeds})'


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
      'earlier_config': line.earlier,
      'records': [dataclasses.asdict(record) for record in line.records],
    }

  return {
    'table': table.name,
    'title': table.file.title,
    'split': table.file.split,
    'rows': [row(line) for line in lines],
  }


def render_markdown(table: Table, lines: Sequence[Line]) -> str:
  """The page: results, images, recipes, configs, provenance and notes."""
  name = table.name
  split = f' Evaluated on the split `{table.file.split}`.' if table.file.split else ''
  sections = [
    f'# {table.file.title}',
    f'<!-- Written by: segjax table {name} > experiments/{name}/README.md -->',
    f'{table.file.source}.{split}',
    *_results(table, lines),
    *_images(lines),
    *(_making(table, lines) if table.entries else ()),  # a table may only quote the paper's results
    table.file.notes,
  ]
  return '\n\n'.join(section.strip() for section in sections if section.strip()) + '\n'


def _results(table: Table, lines: Sequence[Line]) -> list[str]:
  """The measured rows, and folded those that nobody has run and those without a recipe."""
  kinds, explained = sort_lines(lines), '\n'.join(legend(table, lines))
  if not table.entries:
    quoted = cells(table, kinds.quoted)
    return [markdown_table(quoted) if quoted else 'No rows yet.', explained]
  measured = cells(table, kinds.measured)
  return [
    markdown_table(measured) if measured else 'No row has been run.',
    explained,
    _folded(NOT_RUN, cells(table, kinds.not_run)),
    _folded('quoted from the paper, without a recipe', cells(table, kinds.quoted)),
  ]


def _folded(summary: str, rows: Sequence[Mapping[str, str]]) -> str:
  return fold(f'{summary} ({len(rows)})', markdown_table(rows)) if rows else ''


def fold(summary: str, text: str) -> str:
  """Markdown that is hidden behind its summary, on GitHub and on the site."""
  return (
    f'<details markdown="1">\n<summary>{html.escape(summary, quote=False)}</summary>\n\n'
    f'{text}\n\n</details>'
  )


def _images(lines: Iterable[Line]) -> list[str]:
  """The image of each measured row that has one, with its caption."""
  shown = {r.image: r for line in lines for r in line.records if r.image}
  if not shown:
    return []
  return [
    '## Images',
    'From left to right: the image, its ground truth and its prediction.',
    *(_image(record) for record in shown.values()),
  ]


def _image(record: Record) -> str:
  seed = '' if record.seed is None else f', seed {record.seed}'
  caption = f'`{record.entry}`{seed}, {record.checkpoint} checkpoint: {record.image_note}'
  return f'![{record.entry}: image, ground truth, prediction]({record.image})\n\n{caption}'


def _making(table: Table, lines: Sequence[Line]) -> list[str]:
  """The sections on recipes, configs and provenance."""
  name = table.name
  configs = [f'- `{entry.name}`: {_made_by(table, entry)}' for entry in table.entries.values()]
  # A mean has the records of its rows, which stand there.
  trained = [r for line in lines if not table.rows[line.row].mean_of for r in line.records]
  return [
    '## Recipes',
    '\n'.join(_recipe(*item) for item in table.recipes.items()),
    '## The config of each row',
    f'`segjax table {name} --run ROW.RECIPE` trains and records one row, '
    f'`segjax table {name} --run` all rows without a result.',
    fold(f'ROW.RECIPE ({len(configs)})', '\n'.join(configs)),
    '## Provenance of the measured results',
    '\n'.join(provenance(record) for record in trained) or 'None yet.',
  ]


def markdown_table(rows: Sequence[Mapping[str, str]]) -> str:
  """A Markdown table of rows that have the same keys."""
  lines = [list(rows[0]), ['---'] * len(rows[0]), *(list(row.values()) for row in rows)]
  escaped = [[text.replace('|', '\\|') for text in line] for line in lines]
  return '\n'.join(f'| {" | ".join(line)} |' for line in escaped)


def legend(table: Table, lines: Sequence[Line]) -> list[str]:
  """Explains the terms and symbols of the cells, and lists results from other sources."""
  spread = any(
    result and result.spread is not None for line in lines for result in line.results.values()
  )
  rows = table.rows.values()
  terms = '; '.join(f'{term}: {meaning}' for term, meaning in (table.file.legend or {}).items())
  return [
    *[f'- {terms}'] * bool(terms),
    *legend_symbols(
      spread=spread,
      earlier=any(line.earlier for line in lines),
      unverified=any(row.unverified for row in rows),
    ),
    *(f'- {row.title}: {row.source}' for row in rows if row.source),
  ]


def legend_symbols(*, spread: bool, earlier: bool, unverified: bool) -> list[str]:
  """Explains those symbols of the cells that occur."""
  return [
    *['- a ± b (n = c): mean and sample standard deviation over c seeds, or over c rows'] * spread,
    *[f'- {EARLIER}: measured with a config, given by its digest, that the recipe no longer has']
    * earlier,
    *['- unverified: quoted from memory'] * unverified,
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
    record.commit and f'commit {short_commit(record.commit)}{changes}',
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
