"""Renders the scoreboard: the measured rows of all tables, each by one column of its table."""

import decimal
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from segjax.tables import page
from segjax.tables.page import Line, Lines, Result
from segjax.tables.results import Record
from segjax.tables.spec import Column, Recipe, Row, Table, mentions


class Board(NamedTuple):
  """A table on the scoreboard.

  Attributes:
    table: of the lines.
    lines: of the table.
  """

  table: Table
  lines: Lines


class Score(NamedTuple):
  """A measured row on the scoreboard.

  Attributes:
    table: of the row.
    line: of the table's page.
    metric: the table's headline column; of a row without a result in it, the first with one.
    ours: the result in this column; None if it was not measured.
  """

  table: Table
  line: Line
  metric: str
  ours: Result | None

  @property
  def row(self) -> Row:
    return self.table.rows[self.line.row]

  @property
  def recipe(self) -> Recipe:
    return self.table.recipes[self.line.entry.recipe]

  @property
  def column(self) -> Column:
    return self.table.columns[self.metric]

  @property
  def paper(self) -> int | decimal.Decimal | None:
    """The paper's result, as printed."""
    return (self.row.paper or {}).get(self.metric)

  @property
  def distance(self) -> float | None:
    """Ours minus the paper's, in the unit of the column."""
    if self.ours is None or self.paper is None:
      return None
    return self.ours.mean - float(self.paper)


def make_board(table: Table, records: Sequence[Record]) -> Board:
  """A table with its records, without results that are computed from configs."""
  no_facts = lambda entry: {}
  return Board(table, page.sort_lines(page.make_lines(table, records, no_facts)))


def scores(boards: Iterable[Board]) -> list[Score]:
  """The measured rows of all tables."""
  return [
    _score(table, line) for table, lines in boards for line in lines.measured if table.headline
  ]


def _score(table: Table, line: Line) -> Score:
  columns = (table.headline, *table.measured)
  metric = next((name for name in columns if line.results.get(name)), table.headline)
  return Score(table, line, metric, line.results.get(metric))


def to_json(boards: Sequence[Board]) -> dict[str, Any]:
  """The scoreboard as JSON; what is unknown is null."""

  def score(found: Score) -> dict[str, Any]:
    line, table = found.line, found.table
    return {
      'table': table.name,
      'row': line.row,
      'title': found.row.title,
      'recipe': line.entry.recipe,
      'checkpoint': line.checkpoint,
      'metric': page.heading(found.metric, found.column),
      'lower_is_better': found.column.lower_is_better,
      'paper': None if found.paper is None else float(found.paper),
      'measured': found.ours and found.ours._asdict(),
      'distance': found.distance,
      'differs': found.recipe.differs.strip(),
      'earlier_config': line.earlier,
    }

  return {
    'measured': [score(found) for found in scores(boards)],
    'tables': [_count(board) for board in boards],
  }


def _count(board: Board) -> dict[str, Any]:
  table, lines = board
  counts = {kind: len(found) for kind, found in lines._asdict().items()}
  return {'table': table.name, 'title': table.file.title, **counts}


def render_markdown(boards: Sequence[Board], others: Mapping[str, str]) -> str:
  """The page `experiments/README.md`.

  Args:
    boards: of all tables.
    others: titles of the other pages of results, by path.
  """
  found = scores(boards)
  measured, not_run = (
    sum(len(getattr(board.lines, kind)) for board in boards) for kind in ('measured', 'not_run')
  )
  sections = [
    '# Scoreboard',
    '<!-- Written by: segjax table --all > experiments/README.md -->',
    f'The measured rows of all tables ({measured}; not run: {not_run}), each by one metric of its '
    'table. Distance is our result minus that of the paper; ↑: higher is better, ↓: lower is '
    'better.',
    page.markdown_table([_cells(score) for score in found]) if found else 'None yet.',
    '\n'.join(_legend(found)),
    *(['## What differs from the papers', '\n'.join(_differences(found))] if found else []),
    '## All tables',
    page.markdown_table([_counts_cells(board) for board in _measured_first(boards)]),
    *_others(others),
  ]
  return '\n\n'.join(section for section in sections if section) + '\n'


def _cells(score: Score) -> dict[str, str]:
  name, arrow = score.metric, '↓' if score.column.lower_is_better else '↑'
  distance = score.distance
  return {
    'table': _link(score.table),
    'row': score.row.title,
    'recipe': page.recipe_cell(score.line),
    'metric': f'{page.heading(name, score.column)} {arrow}',
    'paper': page.paper_cell(score.row, name),
    'ours': page.result_cell(score.ours, score.column),
    'distance': page.MISSING
    if distance is None
    else f'{distance:+.{score.column.digits}f}'.replace('-', '−'),
  }


def _link(table: Table) -> str:
  return f'[{table.name}]({table.name}/README.md)'


def _legend(found: Iterable[Score]) -> list[str]:
  """Explains the headline columns and the symbols of the cells."""
  found = list(found)
  terms = dict.fromkeys(
    f'{term}: {meaning}'
    for score in found
    for term, meaning in (score.table.file.legend or {}).items()
    if mentions(score.metric, term)
  )
  line = '; '.join(terms)
  symbols = page.legend_symbols(
    spread=any(score.ours and score.ours.spread is not None for score in found),
    earlier=any(score.line.earlier for score in found),
    unverified=any(score.row.unverified for score in found),
  )
  return [*[f'- {line}'] * bool(line), *symbols]


def _differences(found: Iterable[Score]) -> list[str]:
  """The difference of each recipe from the paper, once."""
  differs = {(s.table.name, s.line.entry.recipe): s.recipe.differs.strip() for s in found}
  earlier = {(s.table.name, s.line.entry.recipe) for s in found if s.line.earlier}
  also = f' The rows of an {page.EARLIER} differ from this, see their provenance.'
  return [
    f'- `{table}`, `{recipe}`: {text}{also * ((table, recipe) in earlier)}'
    for (table, recipe), text in differs.items()
  ]


def _measured_first(boards: Sequence[Board]) -> list[Board]:
  return sorted(boards, key=lambda board: not board.lines.measured)  # stable


def _counts_cells(board: Board) -> dict[str, str]:
  counts = _count(board)
  return {
    'table': _link(board.table),
    'title': counts['title'],
    'measured': str(counts['measured']),
    'not run': str(counts['not_run']),
    'only quoted': str(counts['quoted']),
  }


def _others(others: Mapping[str, str]) -> list[str]:
  if not others:
    return []
  return ['## Other results', '\n'.join(f'- [{title}]({path})' for path, title in others.items())]


def other_pages(folder: Path) -> dict[str, str]:
  """The titles of the pages of results that are not tables, by path in `folder`."""
  pages = (p for p in sorted(folder.glob('*/README.md')) if not (p.parent / 'table.toml').exists())
  return {page.relative_to(folder).as_posix(): _title(page) for page in pages}


def _title(path: Path) -> str:
  """The first heading of a page."""
  lines = path.read_text(encoding='utf-8').splitlines()
  return next(
    (line.removeprefix('# ') for line in lines if line.startswith('# ')), path.parent.name
  )
