import dataclasses
import json

import pytest
import tiny_table

from segjax.tables import page, runs, spec


def facts(entry):
  return {'parameters': 1234} if entry.config else {}


def lines_of(table, *records):
  return page.make_lines(table, records, facts)


def cell(table, lines, row, heading, recipe='small'):
  title = table.rows[row].title
  found = [c for c in page.cells(table, lines) if (c['row'], c['recipe']) == (title, recipe)]
  assert len(found) == 1
  return found[0][heading]


def test_rows_without_a_result_are_folded(table):
  lines = lines_of(table)
  assert [(line.row, line.entry and line.entry.recipe) for line in lines] == [
    ('second', 'small'),
    ('first', 'small'),
    ('first', 'measured'),
    ('other', None),
  ]
  kinds = page.sort_lines(lines)
  assert kinds == ([], lines[:3], lines[3:])
  assert page.cells(table, kinds.not_run)[0] == {
    'row': 'Second',
    'recipe': 'small',
    'mIoU (%), paper': '62.70',
    'size, paper': '–',
    'size, computed': '1.23',
    'price, paper': '3',
  }
  assert page.cells(table, kinds.quoted) == [{'row': 'Other | method', 'mIoU (%), paper': '50'}]
  text = page.render_markdown(table, lines)
  assert 'No row has been run.' in text
  assert '<summary>not run (3)</summary>' in text
  assert '<summary>quoted from the paper, without a recipe (1)</summary>' in text


def test_a_result_is_measured_or_missing(table):
  lines = page.sort_lines(lines_of(table, tiny_table.make_record()))
  (measured,) = page.cells(table, lines.measured)
  assert measured['mIoU (%), measured'] == '50.0'
  assert measured['sky, measured'] == '–'  # run, but not measured
  assert 'price, paper' not in measured, 'no measured row has it'
  assert [line.entry.name for line in lines.not_run] == ['second.small', 'first.measured']


def test_measured_rows_come_first(table):
  text = page.render_markdown(table, lines_of(table, tiny_table.make_record()))
  measured, not_run = text.index('| First | small |'), text.index('<summary>not run (2)</summary>')
  assert measured < not_run < text.index('| Second | small |')
  assert text.count('<details markdown="1">') == text.count('</details>') == 3


def test_a_table_without_recipes_is_not_folded(table):
  table = dataclasses.replace(table, entries={}, recipes={})
  text = page.render_markdown(table, lines_of(table))
  assert '<details' not in text
  assert '| Second | 62.70 | – | 3 |' in text


def test_a_table_that_is_only_begun(tmp_path):
  head, _, _ = tiny_table.TABLE.partition('[legend]')
  folder = tiny_table.write_table(tmp_path, f'{head}[columns]\n[recipes]\n[rows]\n')
  table = spec.read_table(folder)
  assert 'No rows yet.' in page.render_markdown(table, lines_of(table))


def test_mean_and_spread_over_the_seeds(table):
  records = [
    tiny_table.make_record(seed=s, metrics={'mean_iou': v}) for s, v in enumerate((0.1, 0.2, 0.6))
  ]
  lines = lines_of(table, *records)
  assert cell(table, lines, 'first', 'mIoU (%), measured') == '30.0 ± 26.5 (n = 3)'
  result = next(line for line in lines if line.records).results['mIoU']
  assert result == page.Result(pytest.approx(30), pytest.approx(26.4575, abs=1e-3), 3)
  assert 'sample standard deviation over c seeds' in page.render_markdown(table, lines)
  assert 'standard deviation' not in page.render_markdown(table, lines_of(table))


def test_terms_of_the_headings_are_explained(table):
  text = page.render_markdown(table, lines_of(table))
  assert '\n- mIoU: mean IoU; Second: the one after the first\n' in text


def test_unverified_results_and_other_sources(table):
  lines = lines_of(table)
  assert cell(table, lines, 'first', 'mIoU (%), paper') == '60.0 (unverified)'
  assert cell(table, lines, 'first', 'size, paper') == '0.00125 (unverified)'
  text = page.render_markdown(table, lines)
  assert '- First: elsewhere' in text
  assert 'quoted from memory' in text


def test_each_checkpoint_has_its_line(table):
  name = 'first.small'
  entry = table.entries[name]._replace(checkpoints=('latest', 'best'))
  table = dataclasses.replace(table, entries={**table.entries, name: entry})
  lines = page.sort_lines(lines_of(table, tiny_table.make_record(checkpoint='latest')))
  assert [page.recipe_cell(line) for line in lines.measured] == ['small, latest checkpoint']
  assert 'small, best checkpoint' in [page.recipe_cell(line) for line in lines.not_run]


def test_a_result_of_an_earlier_config_is_a_line_of_its_own(table):
  digest = runs.entry_digest(table.entries['first.small'])
  old = [
    tiny_table.make_record(config_digest='0' * 12, metrics={'mean_iou': 0.25}, seed=seed)
    for seed in (0, 1)
  ]
  new = tiny_table.make_record(config_digest=digest)
  text = page.render_markdown(table, lines_of(table, *old))
  assert '| First | small, earlier config 000000000000 | 60.0 (unverified) | 25.0 ± 0.0' in text
  assert '- earlier config: measured with a config' in text
  lines = page.sort_lines(lines_of(table, *old, new))
  assert [(line.earlier, len(line.records)) for line in lines.measured] == [
    (None, 1),
    ('0' * 12, 2),
  ]
  current, earlier = page.cells(table, lines.measured)
  assert (current['recipe'], current['mIoU (%), measured']) == ('small', '50.0')
  assert (current['size, computed'], earlier['size, computed']) == ('1.23', '–')
  assert 'first.small' not in [line.entry.name for line in lines.not_run]


def test_what_only_an_earlier_config_measured_is_not_run(table):
  lines = page.sort_lines(lines_of(table, tiny_table.make_record(config_digest='0' * 12)))
  assert 'first.small' in [line.entry.name for line in lines.not_run]
  assert [line.entry.name for line in lines.measured] == ['first.small']


@pytest.mark.parametrize('current', [True, False], ids=['current', 'unknown'])
def test_a_result_of_the_current_or_an_unknown_config_is_not_marked(table, current):
  digest = runs.entry_digest(table.entries['first.small']) if current else None
  text = page.render_markdown(table, lines_of(table, tiny_table.make_record(config_digest=digest)))
  assert 'earlier config' not in text
  assert '| First | small | 60.0 (unverified) | 50.0 |' in text


def test_each_image_is_shown_once_with_its_caption(table):
  shown = tiny_table.make_record(image='images/a.jpg', image_note='x.png, the median of 3 images')
  other = tiny_table.make_record(seed=1)
  text = page.render_markdown(table, lines_of(table, shown, other))
  assert text.count('![') == 1
  assert '![first.small: image, ground truth, prediction](images/a.jpg)' in text
  assert '`first.small`, seed 0, best checkpoint: x.png, the median of 3 images' in text
  assert text.index('](images/a.jpg)') > text.index('## Images')
  assert '## Images' not in page.render_markdown(table, lines_of(table, other))


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
  for part in text.split('<summary>'):
    rows = [line for line in part.splitlines() if line.startswith('|')]
    assert len({line.replace('\\|', '').count('|') for line in rows}) <= 1, 'as many cells'
  assert '| Other \\| method | 50 |' in text
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


def test_each_commit_of_a_resumed_run_is_shown():
  record = tiny_table.make_record(commit='1e077fc8c756, then 7ac4161fa3b2', hardware='a, then b')
  assert 'commit 1e077fc, then 7ac4161; a, then b' in page.provenance(record)


def test_json_has_null_without_a_result(table):
  content = json.loads(json.dumps(page.to_json(table, lines_of(table, tiny_table.make_record()))))
  second, first, script, other = content['rows']
  assert first['measured']['mIoU'] == {'mean': 50.0, 'spread': None, 'seeds': 1}
  assert first['measured']['size']['mean'] == pytest.approx(1.234)
  assert first['records'][0]['seed'] == 0
  assert first['unverified'] and first['source'] == 'elsewhere'
  assert first['earlier_config'] is None
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


# 'Second' and 'First' as two folds, of which no one starts from the other.
MEAN = tiny_table.TABLE.replace("init_from = 'first'\n", '').replace(
  '[rows.other]', "[rows.both]\ntitle = 'Mean'\nmean_of = ['first', 'second']\n\n[rows.other]"
)


def mean_line(lines):
  return next(line for line in lines if line.row == 'both')


def test_a_row_that_is_the_mean_of_others(tmp_path):
  table = spec.read_table(tiny_table.write_table(tmp_path, MEAN))
  make = lambda row, value, **more: tiny_table.make_record(
    row=row, metrics={'mean_iou': value}, **more
  )
  first = [make('first', value, seed=seed) for seed, value in enumerate((0.1, 0.3))]
  second = make('second', 0.6)
  lines = lines_of(table, *first, second)
  # Of the rows' means, 20 and 60, whatever the number of their seeds.
  assert cell(table, lines, 'both', 'mIoU (%), measured') == '40.0 ± 28.3 (n = 2)'
  assert cell(table, lines, 'both', 'sky, measured') == '–'
  assert cell(table, lines, 'both', 'size, computed') == '1.23'
  assert mean_line(lines).records == (*first, second)
  assert page.sort_lines(lines).measured[-1] == mean_line(lines)
  # Only `first` has the other recipe.
  assert [line.entry.recipe for line in lines if line.row == 'both'] == ['small']
  text = page.render_markdown(table, lines)
  assert [text.count(f'`{row}.small`: seed') for row in ('first', 'second', 'both')] == [2, 1, 0]


@pytest.mark.parametrize('digest', ['0' * 12, None], ids=['earlier', 'missing'])
def test_a_mean_needs_each_of_its_rows(tmp_path, digest):
  table = spec.read_table(tiny_table.write_table(tmp_path, MEAN))
  records = [tiny_table.make_record()]
  if digest:
    records.append(tiny_table.make_record(row='second', config_digest=digest))
  line = mean_line(lines_of(table, *records))
  assert line in page.sort_lines(lines_of(table, *records)).not_run
  assert (line.records, line.results['mIoU']) == ((), None)


def test_what_is_computed_is_shown_of_a_mean_if_it_is_the_same(tmp_path):
  table = spec.read_table(tiny_table.write_table(tmp_path, MEAN))
  lines = page.make_lines(table, [], lambda entry: {'parameters': len(entry.row)})
  assert mean_line(lines).results['size'] is None
