import dataclasses
import json

import pytest
import tiny_table

from segjax.tables import page, runs


def facts(entry):
  return {'parameters': 1234} if entry.config else {}


def lines_of(table, *records):
  return page.make_lines(table, records, facts)


def cell(table, lines, row, heading, recipe='small'):
  title = table.rows[row].title
  found = [c for c in page.cells(table, lines) if (c['row'], c['recipe']) == (title, recipe)]
  assert len(found) == 1
  return found[0][heading]


def test_rows_without_a_result_say_so(table):
  lines = lines_of(table)
  assert [(line.row, line.entry and line.entry.recipe) for line in lines] == [
    ('second', 'small'),
    ('first', 'small'),
    ('first', 'measured'),
    ('other', None),
  ]
  cells = page.cells(table, lines)
  assert list(cells[0]) == [
    'row',
    'recipe',
    'mIoU, paper',
    'mIoU, measured',
    'sky, measured',
    'size, paper',
    'size, computed',
    'price, paper',
  ]
  assert list(cells[0].values()) == ['Second', 'small', '62.70', *['not run'] * 2, '–', '1.23', '3']
  assert {c['mIoU, measured'] for c in cells} == {'not run'}
  assert cells[3]['recipe'] == '–'
  assert not any(
    result for line in lines for name, result in line.results.items() if name != 'size'
  )


def test_a_result_is_measured_or_missing(table):
  lines = lines_of(table, tiny_table.make_record())
  assert cell(table, lines, 'first', 'mIoU, measured') == '50.0'
  assert cell(table, lines, 'first', 'sky, measured') == '–'  # run, but not measured
  assert cell(table, lines, 'second', 'mIoU, measured') == 'not run'
  assert cell(table, lines, 'first', 'mIoU, measured', 'measured') == 'not run'


def test_mean_and_spread_over_the_seeds(table):
  records = [
    tiny_table.make_record(seed=s, metrics={'mean_iou': v}) for s, v in enumerate((0.1, 0.2, 0.6))
  ]
  lines = lines_of(table, *records)
  assert cell(table, lines, 'first', 'mIoU, measured') == '30.0 ± 26.5'
  result = next(line for line in lines if line.records).results['mIoU']
  assert result == page.Result(pytest.approx(30), pytest.approx(26.4575, abs=1e-3), 3)
  assert 'mean and standard deviation' in page.render_markdown(table, lines)
  assert 'mean and standard deviation' not in page.render_markdown(table, lines_of(table))


def test_unverified_results_and_other_sources(table):
  lines = lines_of(table)
  assert cell(table, lines, 'first', 'mIoU, paper') == '60.0 (unverified)'
  assert cell(table, lines, 'first', 'size, paper') == '0.00125 (unverified)'
  text = page.render_markdown(table, lines)
  assert '- First: elsewhere' in text
  assert 'quoted from memory' in text


def test_each_checkpoint_has_its_line(table):
  name = 'first.small'
  entry = table.entries[name]._replace(checkpoints=('latest', 'best'))
  table = dataclasses.replace(table, entries={**table.entries, name: entry})
  lines = lines_of(table, tiny_table.make_record(checkpoint='latest'))
  measured = {
    c['recipe']: c['mIoU, measured'] for c in page.cells(table, lines) if c['row'] == 'First'
  }
  assert measured['small, latest checkpoint'] == '50.0'
  assert measured['small, best checkpoint'] == 'not run'


def test_a_config_that_has_changed_is_marked(table):
  digest = runs.entry_digest(table.entries['first.small'])
  same = lines_of(table, tiny_table.make_record(config_digest=digest))
  unknown = lines_of(table, tiny_table.make_record())
  other = lines_of(table, tiny_table.make_record(config_digest='0' * 12))
  assert cell(table, same, 'first', 'mIoU, measured') == '50.0'
  assert cell(table, unknown, 'first', 'mIoU, measured') == '50.0'
  assert cell(table, other, 'first', 'mIoU, measured') == '50.0 †'
  assert cell(table, other, 'first', 'size, computed') == '1.23'
  assert 'has changed since' in page.render_markdown(table, other)
  assert '†' not in page.render_markdown(table, same)


def test_facts_are_asked_for_only_where_computed(table, folder):
  columns = {n: c for n, c in table.columns.items() if not c.computed}
  page.make_lines(dataclasses.replace(table, columns=columns), [], lambda entry: 1 / 0)


def test_markdown(table):
  record = tiny_table.make_record(
    commit='1e077fc8c756', dirty=True, hardware='2 cores', weights='scratch', data='d 1.0.0',
    split='val', versions='jax 0', seconds=3725, date='2026-11-22', parameters=1234,
    config_digest='abc', note='a note', command='segjax train',
  )  # fmt: skip
  text = page.render_markdown(table, lines_of(table, record))
  rows = [line for line in text.splitlines() if line.startswith('|')]
  assert len({line.replace('\\|', '').count('|') for line in rows}) == 1, 'as many cells everywhere'
  assert '| Other \\| method | – | 50 | not run |' in text
  assert '- `small`: [configs/tiny/small.py](../../configs/tiny/small.py). It is small.' in text
  assert (
    '- `second.small`: `configs/tiny/small.py --config.optim.learning_rate=0.0005`, starting from '
    '`first.small`'
  ) in text
  assert (
    '- `first.small`: seed 0; best checkpoint, step 2 of 2; data d 1.0.0; split val; from scratch; '
    '1,234 parameters; commit 1e077fc with uncommitted changes; config abc; jax 0; 2 cores; '
    'training 1 h 2 min 5 s; 2026-11-22; a note'
  ) in text
  assert text.endswith('What else | there is.\n')
  assert str(table.root) not in text
  assert '\n\n\n' not in text


def test_json_has_null_without_a_result(table):
  content = json.loads(json.dumps(page.to_json(table, lines_of(table, tiny_table.make_record()))))
  second, first, script, other = content['rows']
  assert first['measured']['mIoU'] == {'mean': 50.0, 'spread': None, 'seeds': 1}
  assert first['measured']['size']['mean'] == pytest.approx(1.234)
  assert first['records'][0]['seed'] == 0
  assert first['unverified'] and first['source'] == 'elsewhere'
  assert second['paper'] == {'mIoU': 62.7, 'price': 3.0}
  assert second['measured']['mIoU'] is None
  assert second['source'] == table.file.source
  assert script['measured']['mIoU'] is None
  assert other['recipe'] is None


@pytest.mark.parametrize(
  ('seconds', 'text'),
  [(0, '0 s'), (59.6, '1 min'), (1036, '17 min 16 s'), (3600, '1 h'), (3601.2, '1 h 1 s')],
)
def test_spell_seconds(seconds, text):
  assert page.spell_seconds(seconds) == text
