"""Paper tables: the paper's results, and the config that trains each row.

A table is a directory, `experiments/<paper>_<table>/`. Its `table.toml` defines columns, recipes (a
config, and how it differs from the paper) and rows. A row trained by a recipe is an entry,
`ROW.RECIPE`. Its `results.jsonl` contains the measured results (see `results`).
"""

import dataclasses
import decimal
import re
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from segjax import config as config_lib
from segjax import resources
from segjax.types import NonNegativeInt, PositiveFloat, SegjaxError, nearest

CHECKPOINTS = ('best', 'latest')
# The scale of columns in percent.
PERCENT = 100.0

_NAME = re.compile('[a-z0-9_]+')


@dataclasses.dataclass(frozen=True)
class Column:
  """Keys of `[columns.NAME]`.

  Attributes:
    key: of the measured result in the output of `segjax evaluate --json`, such as 'mean_iou' or
      'per_class.cell.iou'; None if only the paper reports it.
    scale: factor. Scores from 0 to 1 have 100, and are shown in percent; all else, such as errors,
      is shown as the paper prints it.
    digits: number of decimals, those of the paper.
    lower_is_better: such as an error or a time.
    computed: whether it follows from the config, without training: `key` is then 'parameters',
      'stride' or 'receptive_field'.
  """

  key: str | None = None
  scale: PositiveFloat = 1.0
  digits: NonNegativeInt = 2
  lower_is_better: bool = False
  computed: bool = False

  @property
  def percent(self) -> bool:
    return self.scale == PERCENT


@dataclasses.dataclass(frozen=True)
class Recipe:
  """Keys of `[recipes.NAME]`: a way to train rows.

  Attributes:
    differs: differences from the paper: data, weights, resolution or schedule.
    cost: training time and hardware.
    hours: time limit of a cluster job, for each row and seed that it trains; at the limit it is
      saved, requeued and resumes.
    config: path of a config file, relative to the parent of `experiments/`.
    script: path of a program that measures all its rows in one run, instead of a config.
    checkpoints: to evaluate: 'best', by the config's metric, and 'latest'.
  """

  differs: str
  cost: str
  hours: PositiveFloat = 24.0
  config: str | None = None
  script: str | None = None
  checkpoints: tuple[str, ...] = ('best',)


@dataclasses.dataclass(frozen=True)
class Variation:
  """Keys of `[rows.NAME.recipes.NAME]`: changes to a row for one recipe.

  Attributes:
    overrides: of the config, in addition to those of the row.
    init_from: replaces that of the row.
    argument: of the config file's `get_config`.
  """

  overrides: Mapping[str, Any] | None = None
  init_from: str | None = None
  argument: str | None = None


@dataclasses.dataclass(frozen=True)
class Row:
  """Keys of `[rows.NAME]`.

  Attributes:
    title: name in the paper.
    paper: the paper's results by column.
    source: of these results; None for the source of the table.
    unverified: whether they are quoted from memory.
    overrides: of the config, such as `model.variant = '16s'`; a group as text replaces the whole
      group: `data.size = "{'image_size': (64, 64)}"`.
    init_from: a row of the same recipe whose best checkpoint this one starts from.
    checkpoints: replace those of the recipe.
    recipes: that train the row, by name, each with its `Variation`; None for all.
    mean_of: rows, such as the folds of a cross-validation, whose mean and standard deviation this
      one shows for each recipe and checkpoint that all of them have; it is not trained itself.
  """

  title: str
  paper: Mapping[str, Any] | None = None
  source: str | None = None
  unverified: bool = False
  overrides: Mapping[str, Any] | None = None
  init_from: str | None = None
  checkpoints: tuple[str, ...] | None = None
  recipes: Mapping[str, Any] | None = None
  mean_of: tuple[str, ...] | None = None


@dataclasses.dataclass(frozen=True)
class TableFile:
  """Keys of `table.toml`.

  Attributes:
    title: of the table.
    source: paper, arXiv number and table.
    columns: keys of `Column` by name.
    recipes: keys of `Recipe` by name.
    rows: keys of `Row` by name.
    split: to evaluate on; None for a table of scripts.
    headline: the column of the scoreboard; None for the first that is measured.
    legend: terms of the headings and of the rows' titles -> what they mean.
    notes: Markdown, appended to the page.
  """

  title: str
  source: str
  columns: Mapping[str, Any]
  recipes: Mapping[str, Any]
  rows: Mapping[str, Any]
  split: str | None = None
  headline: str | None = None
  legend: Mapping[str, str] | None = None
  notes: str = ''


class Entry(NamedTuple):
  """A row trained by a recipe.

  Attributes:
    row: name.
    recipe: name.
    config: path of its config file, and after a colon the argument if it has one; or None.
    script: path of the program that measures it, or None.
    overrides: of the config, as text.
    init_from: the row of the same recipe that it starts from, or None.
    checkpoints: see `Recipe`.
  """

  row: str
  recipe: str
  config: Path | None
  script: Path | None
  overrides: tuple[tuple[str, str], ...]
  init_from: str | None
  checkpoints: tuple[str, ...]

  @property
  def name(self) -> str:
    return f'{self.row}.{self.recipe}'


@dataclasses.dataclass(frozen=True)
class Table:
  """A validated table.

  Attributes:
    folder: its directory.
    file: the keys of `table.toml`.
    columns, recipes, rows, entries: by name, in the file's order.
  """

  folder: Path
  file: TableFile
  columns: Mapping[str, Column]
  recipes: Mapping[str, Recipe]
  rows: Mapping[str, Row]
  entries: Mapping[str, Entry]

  @property
  def name(self) -> str:
    return self.folder.resolve().name

  @property
  def root(self) -> Path:
    """The directory to which paths in the file are relative."""
    return self.folder.resolve().parent.parent

  @property
  def measured(self) -> list[str]:
    """The columns whose results are measured."""
    return [name for name, c in self.columns.items() if c.key and not c.computed]

  @property
  def headline(self) -> str | None:
    """The column of the scoreboard; None if nothing is measured."""
    return self.file.headline or next(iter(self.measured), None)


def find_table(name: str) -> Path:
  """The directory of a table, given as a path or a name.

  A name is looked up under ./experiments first, then among the tables that come with segjax.

  Raises:
    SegjaxError: no such table.
  """
  folders = (
    Path(name),
    Path('experiments', name),
    *(folder for folder in resources.table_dirs() if folder.name == name),
  )
  for folder in folders:
    if (folder / 'table.toml').is_file():
      return folder
  known = {p.parent.name for p in Path('experiments').glob('*/table.toml')}
  known |= {folder.name for folder in resources.table_dirs()}
  raise SegjaxError(f'unknown table {name}: no {folders[1]}/table.toml{nearest(name, known)}')


def read_table(folder: str | Path) -> Table:
  """Reads and validates the `table.toml` of a directory.

  Raises:
    SegjaxError: invalid TOML, an unknown key or name, a wrong type, or a missing file.
  """
  folder = Path(folder)
  path = folder / 'table.toml'
  try:
    # Decimals keep the paper's results as printed.
    content = tomllib.loads(path.read_text(encoding='utf-8'), parse_float=decimal.Decimal)
  except ValueError as e:
    raise SegjaxError(f'{path} is not valid TOML ({e}): fix it') from e
  file = _fill(TableFile, _with_floats(content), f'{path}: table')
  columns = _parts(path, file, 'columns', Column)
  recipes = _parts(path, file, 'recipes', Recipe)
  rows = _parts(path, file, 'rows', Row)
  table = Table(folder, file, columns, recipes, rows, {})
  _check_headline(table, f'{path}: headline')
  _check_legend(table, f'{path}: legend')
  for name, recipe in recipes.items():
    _check_recipe(table, recipe, f'{path}: recipes.{name}')
  for name, row in rows.items():
    _check_checkpoints(row.checkpoints or (), f'{path}: rows.{name}')
    _check_values(row.paper or {}, columns, f'{path}: rows.{name}.paper')
    _check_mean(rows, row, f'{path}: rows.{name}')
  entries = {e.name: e for name, row in rows.items() for e in _entries(table, name, row, path)}
  table = dataclasses.replace(table, entries=entries)
  for entry in entries.values():
    ancestors(table, entry)
  return table


def _fill(cls: type, given: Any, where: str) -> Any:
  return cls(**config_lib.complete(cls, given, where))


def _parts(path: Path, file: TableFile, kind: str, cls: type) -> dict[str, Any]:
  given = getattr(file, kind)
  for name in given:
    if kind != 'columns' and not _NAME.fullmatch(name):
      raise SegjaxError(f'{path}: {kind}.{name} is used in file names: use only a-z, 0-9 and _')
  return {name: _fill(cls, keys, f'{path}: {kind}.{name}') for name, keys in given.items()}


def _with_floats(value: Any) -> Any:
  """`value` with floats for decimals, except in `paper`."""
  if isinstance(value, Mapping):
    return {k: v if k == 'paper' else _with_floats(v) for k, v in value.items()}
  if isinstance(value, list):
    return [_with_floats(v) for v in value]
  return float(value) if isinstance(value, decimal.Decimal) else value


def _check_recipe(table: Table, recipe: Recipe, where: str) -> None:
  if (recipe.config is None) == (recipe.script is None):
    raise SegjaxError(f'{where} needs either a config or a script')
  path = recipe.config or recipe.script
  if Path(path).is_absolute():
    raise SegjaxError(f'{where}: {path} is an absolute path: give it relative to {table.root}')
  if not (table.root / path).is_file():
    raise SegjaxError(f'{where}: no file {path}: fix the path')
  _check_checkpoints(recipe.checkpoints, where)


def _check_headline(table: Table, where: str) -> None:
  headline, measured = table.file.headline, table.measured
  if headline is not None and headline not in measured:
    raise SegjaxError(f'{where}={headline} is not a measured column{nearest(headline, measured)}')


def _check_legend(table: Table, where: str) -> None:
  texts = [*table.columns, *(row.title for row in table.rows.values())]
  for term in table.file.legend or {}:
    if not any(mentions(text, term) for text in texts):
      raise SegjaxError(f'{where}.{term} is in no heading and no title of a row: remove it')


def mentions(text: str, term: str) -> bool:
  """Whether a term of the legend is in a heading or a title, as a word or as several."""
  return re.search(rf'(?<!\w){re.escape(term)}(?!\w)', text) is not None


def _check_checkpoints(checkpoints: Sequence[str], where: str) -> None:
  for checkpoint in checkpoints:
    if checkpoint not in CHECKPOINTS:
      hint = nearest(checkpoint, CHECKPOINTS)
      raise SegjaxError(f'{where}.checkpoints: unknown checkpoint {checkpoint}{hint}')


def _check_values(values: Mapping[str, Any], columns: Mapping[str, Any], where: str) -> None:
  for name, value in values.items():
    if name not in columns:
      raise SegjaxError(f'{where}.{name} is an unknown column{nearest(name, columns)}')
    if isinstance(value, bool) or not isinstance(value, int | decimal.Decimal):
      raise SegjaxError(
        f'{where}.{name}={value!r} is not a number: write it as the paper prints it'
      )


def _check_mean(rows: Mapping[str, Row], row: Row, where: str) -> None:
  if row.mean_of is None:
    return
  trained = [name for name, other in rows.items() if other.mean_of is None]
  for name in row.mean_of:
    if name not in trained:
      raise SegjaxError(f'{where}.mean_of: {name} is not a trained row{nearest(name, trained)}')
  if len(set(row.mean_of)) < max(2, len(row.mean_of)):
    raise SegjaxError(f'{where}.mean_of needs two rows or more, each of them once')
  keys = ('overrides', 'init_from', 'checkpoints', 'recipes')
  if given := [key for key in keys if getattr(row, key) is not None]:
    raise SegjaxError(f'{where} is a mean and not trained: leave out {", ".join(given)}')


def _entries(table: Table, name: str, row: Row, path: Path) -> Iterator[Entry]:
  if row.mean_of is not None:
    return
  recipes = dict.fromkeys(table.recipes, {}) if row.recipes is None else row.recipes
  for recipe_name, keys in recipes.items():
    where = f'{path}: rows.{name}.recipes.{recipe_name}'
    if recipe_name not in table.recipes:
      raise SegjaxError(f'{where} is an unknown recipe{nearest(recipe_name, table.recipes)}')
    recipe = table.recipes[recipe_name]
    variation = _fill(Variation, keys, where)
    overrides = {
      **config_lib.flatten(row.overrides or {}),
      **config_lib.flatten(variation.overrides or {}),
    }
    if variation.argument is not None and recipe.config is None:
      raise SegjaxError(f'{where}.argument is of a config, and the recipe has none: leave it out')
    config = recipe.config
    if variation.argument is not None:
      config = f'{config}:{variation.argument}'
    yield Entry(
      row=name,
      recipe=recipe_name,
      config=config and table.root / config,
      script=recipe.script and table.root / recipe.script,
      overrides=tuple((k, v if isinstance(v, str) else repr(v)) for k, v in overrides.items()),
      init_from=variation.init_from or row.init_from,
      checkpoints=row.checkpoints or recipe.checkpoints,
    )


def parent(table: Table, entry: Entry) -> Entry | None:
  """The entry that `entry` starts from.

  Raises:
    SegjaxError: there is no such entry.
  """
  if entry.init_from is None:
    return None
  name = f'{entry.init_from}.{entry.recipe}'
  if name not in table.entries:
    where = f'{table.folder / "table.toml"}: rows.{entry.row}.init_from={entry.init_from}'
    raise SegjaxError(f'{where}: unknown entry {name}{nearest(name, table.entries)}')
  return table.entries[name]


def ancestors(table: Table, entry: Entry) -> list[Entry]:
  """All entries that `entry` starts from, in the order of training.

  Raises:
    SegjaxError: one does not exist, or they form a cycle.
  """
  chain = [entry]
  while (before := parent(table, chain[-1])) is not None:
    if before in chain:
      raise SegjaxError(
        f'{table.folder / "table.toml"}: rows.{chain[-1].row}.init_from={before.row} forms a '
        'cycle: remove one init_from'
      )
    chain.append(before)
  return chain[:0:-1]
