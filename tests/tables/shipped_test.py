"""The tables of experiments/: configs can be traced, sources exist, READMEs are up to date."""

import decimal
import functools
import pathlib
import re
import runpy
import sys

import jax
import pytest

from segjax.cli.table import entry_facts
from segjax.convert import load
from segjax.experiment import parse
from segjax.metrics import coco
from segjax.models import segnet, unet
from segjax.report import picture, values
from segjax.tables import page, results, runs, scoreboard, spec

EXPERIMENTS = pathlib.Path(__file__).parent.parent.parent / 'experiments'
NAMES = sorted(p.parent.name for p in EXPERIMENTS.glob('*/table.toml'))
UNVERIFIED = {'fcn32s_fixed_pami'}  # quoted from memory


def read(name):
  return spec.read_table(EXPERIMENTS / name)


def test_the_tables_of_the_papers():
  there = {'fcn': (1, 2, 3), 'segnet': (1, 3, 4, 6), 'unet': (1, 2), 'mask_rcnn': (1, 2, 3, 7)}
  there |= {'panoptic': (1, 5, 6), 'panoptic_fpn': (3,)}
  assert {'model_zoo', 'eomt_model_zoo'} <= set(NAMES)
  assert set(NAMES) >= {f'{paper}_table{n}' for paper, numbers in there.items() for n in numbers}


@pytest.mark.parametrize('name', NAMES)
def test_every_config_builds_and_every_path_exists(name):
  """Traced with the overrides of the row; `read_table` checks the paths of recipes."""
  table = read(name)
  assert table.entries or not table.recipes, 'a table without recipes quotes a paper'
  for entry in table.entries.values():
    if entry.config:
      facts = entry_facts(entry)
      assert facts['parameters'] > 0, entry.name
      assert 'train.seed' not in dict(entry.overrides), 'the seed is for --seeds'
  readme = (EXPERIMENTS / name / 'README.md').read_text()
  for link in re.findall(r'\]\((\.\./[^)]*)\)', readme):
    assert (EXPERIMENTS / name / link).exists(), link


@pytest.mark.parametrize('name', NAMES)
def test_every_result_of_the_paper_is_a_number_with_its_source(name):
  table = read(name)
  sourced = all(row.source for row in table.rows.values() if row.paper)  # of no paper's table
  assert sourced or re.search(r'arXiv \d{4}\.\d{4,5}, (Table \d|model zoo)', table.file.source)
  values = [v for row in table.rows.values() for v in (row.paper or {}).values()]
  assert values or table.file.source.startswith('Not in the paper')
  assert all(isinstance(v, int | decimal.Decimal) and v >= 0 for v in values)
  assert {n for n, row in table.rows.items() if row.unverified} <= UNVERIFIED
  titles = [row.title for row in table.rows.values()]
  assert len(set(titles)) == len(titles)


@pytest.mark.parametrize('name', NAMES)
def test_every_column_is_a_metric_of_its_configs(name):
  """With a misspelled key a result would always be missing."""
  known = {
    'pixel_accuracy', 'mean_class_accuracy', 'mean_iou', 'frequency_weighted_iou', 'boundary_f1',
    'pixel_error', 'rand_error', 'v_rand', 'v_info', 'per_class.cell.iou',
    'forward_ms', 'backward_ms', 'training_mb', 'inference_mb', 'model_mb',
    'voc_2011_test.mean_iou', 'voc_2012_test.mean_iou',  # from the evaluation server
    'pq', 'pq_things', 'pq_stuff',
    *(f'{kind}_{name}' for kind in ('box', 'mask') for name in coco.STATS),
    'parameters', 'stride', 'receptive_field',
  }  # fmt: skip
  columns = read(name).columns.values()
  assert {c.key for c in columns if c.key} <= known
  assert all(c.computed == (c.key in ('parameters', 'stride', 'receptive_field')) for c in columns)


@pytest.mark.parametrize('name', NAMES)
def test_readme_is_the_rendered_table(name):
  table = read(name)
  lines = page.make_lines(table, results.read_results(table), entry_facts)
  readme = (EXPERIMENTS / name / 'README.md').read_text(encoding='utf-8')
  assert readme == page.render_markdown(table, lines), (
    f'run: segjax table {name} > experiments/{name}/README.md'
  )


def test_scoreboard_is_the_rendered_tables():
  boards = [scoreboard.make_board(t, results.read_results(t)) for t in map(read, NAMES)]
  page_of_all = scoreboard.render_markdown(boards, scoreboard.other_pages(EXPERIMENTS))
  written = (EXPERIMENTS / 'README.md').read_text(encoding='utf-8')
  assert written == page_of_all, 'run: segjax table --all > experiments/README.md'


@pytest.mark.parametrize('name', NAMES)
def test_scores_are_in_percent_and_all_else_is_as_the_paper_prints_it(name):
  table = read(name)
  for heading, column in table.columns.items():
    metric = (column.key or '').rpartition('.')[2]
    score = values.better(metric) is max or metric in ('v_rand', 'v_info')
    assert column.percent == (score or heading.startswith(('AP', 'PQ', 'mIoU'))), heading
    if column.key and not column.computed:
      assert column.lower_is_better != column.percent, heading


@pytest.mark.parametrize('name', NAMES)
def test_results_have_as_many_digits_as_those_of_the_paper(name):
  table = read(name)
  rows = [row for row in table.rows.values() if not row.source]  # of the table itself
  for heading, column in table.columns.items():
    printed = [row.paper[heading] for row in rows if heading in (row.paper or {})]
    if printed and column.key and not column.computed and table.file.split:
      digits = max(-decimal.Decimal(value).as_tuple().exponent for value in printed)
      assert column.digits == digits, heading


@pytest.mark.parametrize('name', NAMES)
def test_abbreviations_in_headings_are_explained(name):
  table = read(name)
  legend = table.file.legend or {}
  for heading in table.columns:
    if re.search(r'[A-Z]|\.', heading):
      assert any(spec.mentions(heading, term) for term in legend), heading


@pytest.mark.parametrize('name', NAMES)
def test_images_are_small_and_those_of_the_records(name):
  shown = {r.image for r in results.read_results(read(name)) if r.image}
  files = {p.relative_to(EXPERIMENTS / name) for p in (EXPERIMENTS / name).glob('images/*')}
  assert {path.as_posix() for path in files} == shown
  assert all((EXPERIMENTS / name / path).stat().st_size <= picture.LIMIT for path in files)


@pytest.mark.parametrize('name', NAMES)
def test_every_record_says_where_it_is_from(name):
  table = read(name)
  for record in results.read_results(table):
    where = f'{name}: {record.entry}'
    for key in ('commit', 'hardware', 'versions', 'date', 'command', 'parameters'):
      assert getattr(record, key), f'{where} has no {key}'
    if table.entries[record.entry].config:
      for key in ('split', 'data', 'weights', 'config_digest'):
        assert getattr(record, key), f'{where} has no {key}'
      assert None not in (record.step, record.steps), where
      assert record.seed is not None, where
      assert record.split == (table.file.split or record.split), where
    assert record.checkpoint in table.entries[record.entry].checkpoints, where
    text = (EXPERIMENTS / name / 'results.jsonl').read_text()
    assert not re.search(r'[ ="](/|~|[A-Z]:\\)\w', text), f'{where} has a path of a machine'


def test_the_chain_of_fcn_starts_each_network_from_the_one_before():
  table = read('fcn_table2')
  for recipe, suffix in (('paper', ''), ('released', '_released')):
    entry = table.entries[f'fcn8s{suffix}.{recipe}']
    assert [e.row for e in spec.ancestors(table, entry)] == [f'fcn32s{suffix}', f'fcn16s{suffix}']
    assert runs.given_config(entry)['model']['variant'] == '8s'


def test_segnet_table_1_has_every_variant_twice():
  table = read('segnet_table1')
  for recipe in table.recipes:
    entries = [e for e in table.entries.values() if e.recipe == recipe]
    configs = [runs.given_config(e) for e in entries]
    kinds = {
      (c['model']['variant'], c['losses']['softmax_cross_entropy']['class_weights'])
      for c in configs
    }
    assert kinds == {(v, w) for v in segnet.VARIANTS for w in ('median_frequency', 'natural')}


def test_mask_rcnn_table_2_trains_no_network_twice():
  table = read('mask_rcnn_table2')
  digests = [runs.entry_digest(entry) for entry in table.entries.values()]
  assert len(set(digests)) == len(digests)


def test_rows_of_mask_rcnn_that_two_tables_share_are_the_same_training():
  first, third = read('mask_rcnn_table1').entries, read('mask_rcnn_table3').entries
  for name in ('r101_fpn.fpn', 'x101_fpn.x101'):
    assert runs.entry_digest(first[name]) == runs.entry_digest(third[name])


def test_the_model_zoo_trains_nothing_and_takes_weights_that_can_be_read():
  table = read('model_zoo')
  for entry in table.entries.values():
    config = runs.given_config(entry)
    assert config['train']['steps'] == 0
    assert config['init_from']['source'] in load.SOURCES
  files = [runs.given_config(entry)['init_from']['path'] for entry in table.entries.values()]
  assert len(set(files)) == len(files)


@pytest.mark.parametrize('row', ['torchvision_v1', 'torchvision_v2', 'r50_fpn_3x', 'r50_c4_3x'])
def test_the_networks_of_the_model_zoo_have_a_place_for_every_weight(row):
  experiment = parse(runs.given_config(read('model_zoo').entries[f'{row}.weights']))
  image, size = (jax.ShapeDtypeStruct(s, t) for s, t in (((1, 64, 64, 3), 'f4'), ((1, 2), 'i4')))
  variables = jax.eval_shape(experiment.model.init, jax.random.key(0), image, size)
  rows = load.SOURCES[experiment.init_from.source].rows
  assert {r.path for r in rows} == set(load.flat_paths(variables))


def test_segnet_table_6_measures_its_rows(monkeypatch, capsys):
  """The script on a small network, at a size for which it records results."""
  written = []
  monkeypatch.setattr(results, 'write_records', lambda table, records: written.extend(records))
  monkeypatch.setattr(sys, 'argv', ['measure.py', '--size=16x24', '--repeats=2'])
  script = runpy.run_path(str(EXPERIMENTS / 'segnet_table6/measure.py'))
  table = read('segnet_table6')
  assert list(script['NETWORKS']) == list(table.rows)
  assert script['SIZE'] == (360, 480)
  small = unet.UNet(script['CLASSES'], width=2, depth=1, padding='same', norm='batch')
  variables = script['main'].__globals__
  variables |= {'NETWORKS': {'unet': small}, 'measure': functools.cache(script['measure'])}
  script['main']()
  assert written == [], 'only the size of the paper is recorded'
  variables['SIZE'] = (16, 24)
  script['main']()
  (record,) = written
  assert set(record.metrics) == {column.key for column in table.columns.values()}
  assert all(value >= 0 for name, value in record.metrics.items() if name != 'backward_ms')
  assert record.metrics['training_mb'] > record.metrics['inference_mb']
  assert record.metrics['training_mb'] > 4 * 16 * 24 * 3 * 4 / 1e6, 'more than the images alone'
  assert record.metrics['model_mb'] == pytest.approx(4 * record.parameters / 1e6, abs=0.01)
  assert record.entry in table.entries
  assert '16 x 24, medians of 2' in record.note
