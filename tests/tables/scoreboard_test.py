import dataclasses
import json

import pytest
import tiny_table

from segjax.tables import runs, scoreboard, spec


def board_of(table, *records):
  return scoreboard.make_board(table, records)


def rows(text):
  return [line for line in text.splitlines() if line.startswith('| [tiny_table1]')]


def test_only_measured_rows_have_a_line(table):
  board = board_of(table, tiny_table.make_record(row='second', metrics={'mean_iou': 0.6}))
  text = scoreboard.render_markdown([board], {})
  line, count = rows(text)
  link = '[tiny_table1](tiny_table1/README.md)'
  assert line == f'| {link} | Second | small | mIoU (%) ↑ | 62.70 | 60.0 | −2.7 |'
  assert count == f'| {link} | A paper, Table 1 | 1 | 2 | 1 |'
  assert 'all tables (1; not run: 2)' in text
  assert '- `tiny_table1`, `small`: It is small.' in text
  assert 'measured`: It is a script' not in text, 'a recipe without a measured row'
  assert '- mIoU: mean IoU\n' in text
  assert 'the one after' not in text, 'a term of no headline'


def test_lower_is_better_and_several_seeds(table):
  file = dataclasses.replace(table.file, headline='sky')
  table = dataclasses.replace(table, file=file)
  records = [
    tiny_table.make_record(seed=seed, metrics={'per_class': {'sky': {'iou': value}}})
    for seed, value in enumerate((0.25, 0.75))
  ]
  text = scoreboard.render_markdown([board_of(table, *records)], {})
  assert '| First | small | sky ↓ | – | 0.500 ± 0.354 (n = 2) | – |' in text
  assert 'sample standard deviation over c seeds' in text
  assert 'unverified' in text


def test_a_row_without_the_headline_has_its_first_result(table):
  record = tiny_table.make_record(metrics={'per_class': {'sky': {'iou': 0.25}}})
  board = board_of(table, record)
  assert '| First | small | sky ↓ | – | 0.250 | – |' in scoreboard.render_markdown([board], {})
  (row,) = scoreboard.to_json([board])['measured']
  assert row['metric'] == 'sky' and row['measured']['mean'] == 0.25


def test_an_earlier_config_is_marked(table):
  digest = runs.entry_digest(table.entries['first.small'])
  current = tiny_table.make_record(config_digest=digest)
  earlier = tiny_table.make_record(config_digest='0' * 12, metrics={'mean_iou': 0.7})
  board = board_of(table, current, earlier)
  lines = rows(scoreboard.render_markdown([board], {}))
  assert '| small | mIoU (%) ↑ | 60.0 (unverified) | 50.0 | −10.0 |' in lines[0]
  assert (
    '| small, earlier config 000000000000 | mIoU (%) ↑ | 60.0 (unverified) | 70.0 | +10.0 |'
    in (lines[1])
  )
  assert [row['earlier_config'] for row in scoreboard.to_json([board])['measured']] == [
    None,
    '0' * 12,
  ]


def test_a_result_that_was_not_measured_has_no_distance(table):
  board = board_of(table, tiny_table.make_record(metrics={}))
  assert '| 60.0 (unverified) | – | – |' in scoreboard.render_markdown([board], {})
  (row,) = scoreboard.to_json([board])['measured']
  assert (row['measured'], row['distance'], row['paper']) == (None, None, 60.0)


def test_json(table):
  found = json.loads(json.dumps(scoreboard.to_json([board_of(table, tiny_table.make_record())])))
  (row,) = found['measured']
  assert row['distance'] == pytest.approx(-10)
  assert row['measured'] == {'mean': 50.0, 'spread': None, 'seeds': 1}
  assert row['differs'] == 'It is small.'
  assert (row['metric'], row['lower_is_better']) == ('mIoU (%)', False)
  assert found['tables'] == [
    {'table': 'tiny_table1', 'title': 'A paper, Table 1', 'measured': 1, 'not_run': 2, 'quoted': 1}
  ]


def test_nothing_is_measured(table):
  text = scoreboard.render_markdown([board_of(table)], {})
  assert 'None yet.' in text and 'What differs' not in text
  assert scoreboard.to_json([board_of(table)])['measured'] == []


def test_measured_tables_come_first_and_other_pages_are_linked(table, tmp_path):
  other = spec.read_table(tiny_table.write_table(tmp_path / 'other'))
  other = dataclasses.replace(other, file=dataclasses.replace(other.file, title='Other'))
  experiments = table.folder.parent
  (table.folder / 'README.md').write_text('# A table')
  (experiments / 'speed').mkdir()
  (experiments / 'speed/README.md').write_text('<!-- written -->\n# Speed\n')
  others = scoreboard.other_pages(experiments)
  assert others == {'speed/README.md': 'Speed'}
  boards = [board_of(table), board_of(other, tiny_table.make_record())]
  text = scoreboard.render_markdown(boards, others)
  assert text.index('| Other | 1 |') < text.index('| A paper, Table 1 | 0 |')
  assert '- [Speed](speed/README.md)' in text
