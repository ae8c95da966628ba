"""The page that compares runs."""

import re

import numpy as np
import pytest

from segjax.report import compare_page
from segjax.report.compare_page import ComparedImage, ComparedRun


def make_run(name, *, config=None, log=(), metrics=None, facts=None):
  return ComparedRun(name, facts or {}, config or {}, log, metrics or {})


def logged(split, steps, **values):
  return [
    {'step': step, 'split': split, 'time': 'x', **{k: v[i] for k, v in values.items()}}
    for i, step in enumerate(steps)
  ]


def test_only_keys_that_differ_are_shown():
  runs = [
    make_run('a', config={'x.same': 1, 'x.rate': 0.1, 'x.name': 'u', 'x.list': [1, 2], 'only': 1}),
    make_run('b', config={'x.same': 1, 'x.rate': 0.2, 'x.name': 'u', 'x.list': [1, 3]}),
  ]
  rows = {row.name: [cell.text for cell in row.cells] for row in compare_page.config_rows(runs)}
  assert rows == {'only': ['1', '–'], 'x.list': ['[1, 2]', '[1, 3]'], 'x.rate': ['0.1', '0.2']}
  assert compare_page.describe_configs(runs) == '3 of 5 keys differ'


@pytest.mark.parametrize(
  ('metric', 'values', 'best'),
  [
    ('mean_iou', [0.1, 0.3, 0.2], [False, True, False]),
    ('mean_iou', [0.3, 0.3, 0.2], [True, True, False]),
    ('mean_iou', [0.3, 0.3, 0.3], [False] * 3),
    ('mean_iou', [0.3, 0.30001, 0.3], [False] * 3),  # they look equal
    ('mean_iou', [float('nan'), 0.3, None], [False] * 3),
    ('pixel_accuracy', [0.1, 0.3, 0.2], [False, True, False]),
    ('loss_rpn_box', [0.1, 0.3, 0.2], [True, False, False]),
    ('rand_error', [0.1, 0.3, 0.2], [True, False, False]),
    ('images', [1.0, 2.0, 3.0], [False] * 3),
  ],
)
def test_the_best_run_of_a_metric(metric, values, best):
  runs = [make_run(str(i), metrics={metric: value}) for i, value in enumerate(values)]
  [row] = compare_page.metric_rows(runs)
  assert (row.name, [cell.best for cell in row.cells]) == (metric, best)


def test_a_metric_that_a_run_lacks_is_missing_there():
  runs = [make_run('a', metrics={'pq': 0.5}), make_run('b', metrics={'mask_ap': 0.25})]
  rows = {r.name: [cell.text for cell in r.cells] for r in compare_page.metric_rows(runs)}
  assert rows == {'pq': ['50.0%', '–'], 'mask_ap': ['–', '25.0%']}


def test_curves_of_runs_are_on_one_axis():
  train, val = ('train', [1, 2]), ('val', [2])
  runs = [
    make_run('a', log=logged(*train, loss=[3.0, 2.0]) + logged(*val, loss=[2.5], pq=[0.5])),
    make_run('b', log=logged(*train, loss=[4.0, 3.0]) + logged('val[:6]', [2], loss=[3.5])),
  ]
  plots = {plot.title: plot for plot in compare_page.plots(runs)}
  assert list(plots) == ['loss, training', 'loss, evaluation', 'pq']
  assert list(plots['loss, evaluation'].curves) == ['a', 'b']
  np.testing.assert_array_equal(plots['loss, training'].curves['b'].values, [4, 3])
  assert list(plots['pq'].curves) == ['a']
  assert plots['loss, training'].noisy == ['a', 'b'] and not plots['pq'].noisy


def test_classes_have_a_bar_per_run_and_counts_have_none():
  table = lambda iou: {'road': {'iou': iou, 'dice': 0.5, 'tp': 3}, 'car': {'iou': 0.0}}
  runs = [
    make_run('a', metrics={'per_class': table(0.5)}),
    make_run('b', metrics={'per_class': table(1.0)}),
  ]
  found = compare_page.sections(runs, {'road': (1, 2, 3)}, None)
  shown = {section.title: section for section in found if section.body}
  assert list(shown) == ['Per class: iou', 'Per class: dice']
  assert [section.collapsed for section in shown.values()] == [False, True]
  bars = re.findall(r'width: ([\d.]+)%', shown['Per class: iou'].body)
  assert bars == ['50.0', '100.0', '0.0', '0.0']
  assert 'rgb(1, 2, 3)' in shown['Per class: iou'].body


def test_the_worst_images_on_average_come_first():
  a = {'x': 0.5, 'y': 0.1, 'z': 0.3, 'only a': 0.0}
  b = {'x': 0.1, 'y': 0.9, 'z': 0.2}
  assert compare_page.worst_images([a, b], 2) == [('z', (0.3, 0.2)), ('x', (0.5, 0.1))]
  assert compare_page.worst_images([a, {'w': 0.1}], 2) == []


def test_images_are_side_by_side_with_the_score_of_each_run():
  panel = np.zeros((4, 4, 3), np.uint8)
  panels = {'image': panel, 'truth': panel, 'prediction': panel, 'errors': panel}
  image = ComparedImage('x.png', (0.25, 0.5), [panels, panels])
  body = compare_page.images_section(['a', 'b'], [image], 'mean_iou', {}).body
  captions = [c.strip() for c in re.findall(r'<figcaption>(.*?)</figcaption>', body, re.DOTALL)]
  assert captions == ['x.png', 'image', 'truth', 'a: mean_iou 25.0%', 'b: mean_iou 50.0%']
