import decimal

import pytest
import tiny_table

from segjax.tables import spec
from segjax.types import SegjaxError


def test_reads_rows_recipes_and_entries(table, tmp_path):
  assert table.name == 'tiny_table1'
  assert list(table.entries) == ['second.small', 'first.small', 'first.measured']
  second, first, measured = table.entries.values()
  assert second.config == first.config == tmp_path / 'configs/tiny/small.py'
  assert (measured.config, measured.script) == (None, table.folder / 'measure.py')
  assert second.overrides == (('optim.learning_rate', '0.0005'),)
  assert first.overrides == (('eval.test_time_augmentation', 'flip'),)
  assert second.checkpoints == ('best',)
  assert table.columns['mIoU'].scale == 100.0
  assert table.columns['price'].key is None


def test_headline_is_the_first_measured_column_unless_given(folder):
  assert spec.read_table(folder).headline == 'mIoU'
  tiny_table.write_table(folder.parent.parent, f"headline = 'sky'\n{tiny_table.TABLE}")
  assert spec.read_table(folder).headline == 'sky'


def test_columns_in_percent(table):
  assert [name for name, column in table.columns.items() if column.percent] == ['mIoU']


def test_results_of_the_paper_stay_as_they_are_printed(table):
  assert table.rows['second'].paper == {'mIoU': decimal.Decimal('62.70'), 'price': 3}
  assert str(table.rows['second'].paper['mIoU']) == '62.70'


def test_a_variation_adds_to_its_row(folder):
  text = tiny_table.TABLE.replace(
    "recipes.small.overrides.'eval.test_time_augmentation' = 'flip'",
    """overrides.'model.width' = 4
checkpoints = ['latest', 'best']
recipes.small.overrides = { 'model.width' = 3, 'data.mean' = [8, 16], 'init_from' = 'none' }
recipes.small.init_from = 'other'""",
  ).replace('recipes = {}', 'recipes.small = {}')
  (folder / 'table.toml').write_text(text.replace('= .', '= 0.'))
  first = spec.read_table(folder).entries['first.small']
  assert first.overrides == (
    ('model.width', '3'),
    ('data.mean', '[8, 16]'),
    ('init_from', 'none'),
  )
  assert first.init_from == 'other'
  assert first.checkpoints == ('latest', 'best')


def test_overrides_may_be_groups(folder):
  text = tiny_table.TABLE.replace(
    "recipes.small.overrides.'eval.test_time_augmentation' = 'flip'",
    """overrides = { model.width = 4, 'data.size' = "{'image_size': (8, 8)}" }
recipes.small.overrides = { model.width = 3, optim.learning_rate = 0.5 }""",
  )
  (folder / 'table.toml').write_text(text.replace('= .', '= 0.'))
  assert spec.read_table(folder).entries['first.small'].overrides == (
    ('model.width', '3'),
    ('data.size', "{'image_size': (8, 8)}"),
    ('optim.learning_rate', '0.5'),
  )


def test_an_argument_of_the_config(folder):
  text = tiny_table.TABLE.replace('= .', '= 0.')
  line = "recipes.small.overrides.'eval.test_time_augmentation' = 'flip'"
  (folder / 'table.toml').write_text(text.replace(line, "recipes.small.argument = 'wide'"))
  table = spec.read_table(folder)
  assert table.entries['first.small'].config == table.root / 'configs/tiny/small.py:wide'
  wrong = text.replace('recipes.measured = {}', "recipes.measured.argument = 'wide'")
  (folder / 'table.toml').write_text(wrong)
  with pytest.raises(SegjaxError, match=r'rows\.first\.recipes\.measured\.argument is of a config'):
    spec.read_table(folder)


def test_ancestors(table):
  second, first, _ = table.entries.values()
  assert spec.ancestors(table, second) == [first]
  assert spec.ancestors(table, first) == []


@pytest.mark.parametrize(
  ('old', 'new', 'message'),
  [
    ("title = 'First'", "titel = 'First'", 'rows.first.titel is not a key: did you mean title?'),
    ('split =', 'splt =', 'splt is not a key: did you mean split?'),
    ("title = 'A paper, Table 1'", '', 'title is missing'),
    ('digits = 1', "digits = 'one'", 'columns.mIoU.digits='),
    ("cost = 'seconds.'", '', 'recipes.small.cost is missing'),
    ('small.py', 'large.py', 'recipes.small: no file configs/tiny/large.py'),
    (
      "config = 'configs",
      "config = '/configs",
      'small: /configs/tiny/small.py is an absolute path',
    ),
    ('script =', "config = 'configs/tiny/small.py'\nscript =", 'recipes.measured needs either'),
    (
      "cost = 'seconds.'",
      "cost = ''\ncheckpoints = ['last']",
      'checkpoint last: did you mean latest?',
    ),
    (
      "init_from = 'first'",
      "init_from = 'frist'",
      'frist.small: did you mean first.small?',
    ),
    ("init_from = 'first'", "init_from = 'second'", 'forms a cycle'),
    ('recipes.small = {}', 'recipes.smal = {}', 'smal is an unknown recipe: did you mean small?'),
    ('recipes.small = {}', 'recipes.small = { over = 1 }', 'recipes.small.over is not a key'),
    (
      "'mIoU' = 60.0",
      "'mIuO' = 60.0",
      'mIuO is an unknown column: did you mean mIoU?',
    ),
    ("'mIoU' = 60.0", "'mIoU' = '60.0'", "rows.first.paper.mIoU='60.0' is not a number"),
    ("'mIoU' = 60.0", "'mIoU' = true", 'is not a number'),
    ('[rows.other]', '[rows.Other]', 'rows.Other is used in file names'),
    ('[columns]', '[columns', 'is not valid TOML'),
    ("split = 'val'", 'split = 3', 'split=3 has the wrong type'),
    ("split = 'val'", "headline = 'mIuO'", 'mIuO is not a measured column: did you mean mIoU?'),
    ("split = 'val'", "headline = 'size'", 'size is not a measured column'),
    ("mIoU = 'mean", "IoU = 'mean", 'legend.IoU is in no heading and no title of a row'),
    (
      "'mIoU' = 50 }\nrecipes = {}",
      "'mIoU' = 50 }\nmean_of = ['frist', 'second']",
      'rows.other.mean_of: frist is not a trained row: did you mean first?',
    ),
    (
      "'mIoU' = 50 }\nrecipes = {}",
      "'mIoU' = 50 }\nmean_of = ['first', 'first']",
      'rows.other.mean_of needs two rows or more',
    ),
    (
      "'mIoU' = 50 }\n",
      "'mIoU' = 50 }\nmean_of = ['first', 'second']\n",
      'rows.other is a mean and not trained: leave out recipes',
    ),
  ],
)
def test_what_is_wrong_is_one_sentence(tmp_path, old, new, message):
  assert old in tiny_table.TABLE
  folder = tiny_table.write_table(tmp_path, tiny_table.TABLE.replace(old, new, 1))
  with pytest.raises(SegjaxError) as e:
    spec.read_table(folder)
  assert message in str(e.value)
  assert 'table.toml' in str(e.value)


def test_find_table(folder, monkeypatch):
  assert spec.find_table(str(folder)) == folder
  monkeypatch.chdir(folder.parent.parent)
  assert spec.find_table('tiny_table1').resolve() == folder
  assert spec.read_table(spec.find_table('tiny_table1')).root == folder.parent.parent
  with pytest.raises(SegjaxError, match='no experiments/tiny_table2/.*did you mean tiny_table1?'):
    spec.find_table('tiny_table2')
