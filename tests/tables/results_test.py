import json

import numpy as np
import pytest
import tiny_table

from segjax.tables import results
from segjax.types import SegjaxError


def test_records_are_read_as_they_were_written(table):
  records = [
    tiny_table.make_record(metrics={'mean_iou': 0.25, 'per_class': {'sky': {'iou': 1.0}}}),
    tiny_table.make_record(seed=1, note='a | "b" ±', dirty=True, seconds=1.5),
  ]
  assert results.read_results(table) == []
  results.write_records(table, records[1:])
  results.write_records(table, records[:1])
  assert results.read_results(table) == records
  assert [p.name for p in table.folder.iterdir() if 'tmp' in p.name] == []


def test_a_record_takes_the_place_of_one_of_its_key(table):
  best, latest = tiny_table.make_record(), tiny_table.make_record(checkpoint='latest')
  results.write_records(table, [best, latest, tiny_table.make_record(row='second')])
  again = tiny_table.make_record(metrics={'mean_iou': 0.75})
  results.write_records(table, [again])
  assert results.read_results(table) == [tiny_table.make_record(row='second'), again, latest]


def test_a_record_of_another_config_stays(table):
  old, new = (tiny_table.make_record(config_digest=c * 12) for c in 'ab')
  results.write_records(table, [old])
  results.write_records(table, [new])
  assert results.read_results(table) == [old, new]


def test_an_image_is_named_after_its_record_and_replaced(table):
  record = tiny_table.make_record(config_digest='abc')
  name = results.write_image(table, record, b'old')
  assert name == 'images/first.small.seed0.abc.jpg'
  assert results.write_image(table, record, b'new') == name
  assert (table.folder / name).read_bytes() == b'new'
  assert [p.name for p in (table.folder / 'images').iterdir()] == [name.removeprefix('images/')]


@pytest.mark.parametrize(
  ('line', 'message'),
  [
    ('{"row": "first"', 'line 2: not valid JSON'),
    ('{"row": "first", "recipe": "small"}', 'line 2.metrics is missing'),
    ('{"row": "first", "recipe": "small", "metrics": {}, "comit": "x"}', 'did you mean commit?'),
    ('{"row": "frist", "recipe": "small", "metrics": {}}', 'did you mean first.small?'),
    ('[]', 'wrong type'),
  ],
)
def test_a_line_that_is_not_a_record(table, line, message):
  results.write_records(table, [tiny_table.make_record()])
  path = table.folder / 'results.jsonl'
  path.write_text(path.read_text() + line + '\n')
  with pytest.raises(SegjaxError) as e:
    results.read_results(table)
  assert message in str(e.value)
  assert 'results.jsonl' in str(e.value)


def test_facts():
  assert results.parse_facts(['commit=1e077fc', 'seconds=3', 'note=a=b']) == {
    'commit': '1e077fc',
    'seconds': 3.0,
    'note': 'a=b',
  }
  for fact, message in (
    ('comit=1', 'did you mean commit'),
    ('commit', 'KEY=VALUE'),
    ('seconds=soon', 'wrong type'),
    ('metrics={}', 'KEY=VALUE'),
  ):
    with pytest.raises(SegjaxError, match=message):
      results.parse_facts([fact])


def test_keep_metrics_keeps_scalars_and_what_a_column_names(table):
  metrics = {
    'mean_iou': 1 / 3,
    'boundary_f1': float('nan'),
    'loss': 2,
    'per_class': {'sky': {'iou': 0.5, 'dice': 0.6}, 'road': {'iou': 0.1}},
  }
  kept = results.keep_metrics(table, metrics)
  assert kept == {'mean_iou': 0.333333, 'loss': 2.0, 'per_class': {'sky': {'iou': 0.5}}}
  assert results.keep_metrics(table, {}) == {}


def test_look_up():
  metrics = {'a': {'b': 1, 'c': 'x', 'd': float('nan')}, 'e': None}
  assert results.look_up(metrics, 'a.b') == 1.0
  for key in ('a', 'a.c', 'a.d', 'e', 'e.f', 'g.h'):
    assert results.look_up(metrics, key) is None


def test_training_seconds_are_those_of_the_steps():
  log = [
    {'step': 1, 'split': 'train', 'loss': 1},  # compiled: no pace
    {'step': 10, 'split': 'train', 'images_per_second': 8.0},
    {'step': 10, 'split': 'val', 'images_per_second': 1.0},
    {'step': 30, 'split': 'train', 'images_per_second': 4.0},
  ]
  assert results.training_seconds(log, batch_size=4) == 9 * 4 / 8 + 20 * 4 / 4
  assert results.training_seconds(log[:1], 4) is None
  assert results.training_seconds([], 4) is None


def test_weights_are_named_without_their_path(table, tmp_path):
  first, second = table.entries['first.small'], table.entries['second.small']
  file = tmp_path / 'vgg.pth'
  file.write_bytes(b'abc')
  trained = {'init_from': {'path': str(file)}}
  digest = 'ba7816bf8f01cfea'  # of FIPS 180-2's example
  assert results.spell_weights(first, trained, file) == f'vgg.pth, SHA-256 {digest}'
  assert results.spell_weights(first, trained, file, 'VGG16') == f'VGG16, SHA-256 {digest}'
  assert results.spell_weights(first, trained, None) == 'vgg.pth'
  assert results.spell_weights(first, {'init_from': None}, None, 'VGG16') == 'scratch'
  assert results.spell_weights(second, trained, tmp_path, 'VGG16') == 'first.small'
  merged = {'init_from': {'path': {'semantic': 'runs/a', 'instance': '/elsewhere/b'}}}
  assert results.spell_weights(first, merged, None) == 'instance: b, semantic: a'


def test_merge_starts():
  a = {'step': 0, 'commit': 'a', 'dirty': False, 'hardware': 'cpu', 'versions': None}
  assert results.merge_starts([]) == dict.fromkeys(('commit', 'dirty', 'hardware', 'versions'))
  assert results.merge_starts([a, a]) == {k: v for k, v in a.items() if k != 'step'}
  merged = results.merge_starts([a, {**a, 'commit': 'b', 'dirty': True}])
  assert merged['commit'] == 'a, then b'
  assert merged['dirty'] is True
  merged = results.merge_starts([{**a, 'commit': None}, a])
  assert (merged['commit'], merged['versions']) == ('unknown, then a', None)


def test_examples(tmp_path):
  panels = lambda value: {n: np.full((2, 3, 3), value, np.uint8) for n in ('image', 'truth')}
  examples = [('a/b c.png', panels(1)), ('a/b c.png', panels(2))]
  assert results.read_examples(tmp_path, 'first.small') == []
  results.write_examples(tmp_path, 'first.small', examples)
  read = results.read_examples(tmp_path, 'first.small')
  assert [caption for caption, _ in read] == ['a/b c.png'] * 2
  assert [list(p) for _, p in read] == [['image', 'truth']] * 2
  np.testing.assert_array_equal(read[1][1]['truth'], panels(2)['truth'])
  assert [p.name for p in (tmp_path / 'examples').iterdir()] == ['first.small.npz']


def test_a_record_is_one_line(table):
  results.write_records(table, [tiny_table.make_record(note='two\nlines')])
  lines = (table.folder / 'results.jsonl').read_text().splitlines()
  assert len(lines) == 1
  assert json.loads(lines[0])['note'] == 'two\nlines'
