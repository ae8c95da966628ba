import json
import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest

from segjax.report import curves
from segjax.report.curves import Curve


def _write(path, *lines):
  path.write_text('\n'.join(lines), encoding='utf-8')
  return path


def test_read_log_leaves_out_lines_truncated(tmp_path):
  records = [{'step': step, 'split': 'train', 'loss': 1 / step} for step in (1, 2, 3)]
  lines = [json.dumps(record) for record in records]
  path = _write(tmp_path / 'metrics.jsonl', lines[0], lines[1], lines[2][:-4])
  assert curves.read_log(path) == records[:2]
  # The resumed process appends after the half line of the one that was killed.
  path = _write(tmp_path / 'metrics.jsonl', lines[0], lines[1][:-4] + lines[1], '17', lines[2], '')
  assert curves.read_log(path) == [records[0], records[2]]


def test_read_log_survives_a_truncated_character(tmp_path):
  path = tmp_path / 'metrics.jsonl'
  path.write_bytes(b'{"step": 1, "split": "train"}\n{"note": "\xc3')
  assert curves.read_log(path) == [{'step': 1, 'split': 'train'}]


def test_read_log_of_a_run_without_one_is_empty(tmp_path):
  assert curves.read_log(tmp_path / 'metrics.jsonl') == []


@pytest.mark.parametrize('count', [7, 8, 9, 40, 41, 1000])
def test_of_a_long_training_a_part_is_read_evenly(tmp_path, count):
  train = [{'step': step, 'split': 'train', 'loss': 1.0} for step in range(1, count + 1)]
  val = [{'step': step, 'split': 'val', 'loss': 1.0} for step in range(5, count, 5)]
  log = sorted(train + val, key=lambda record: record['step'])
  path = _write(tmp_path / 'metrics.jsonl', *map(json.dumps, log))
  read = curves.read_log(path, most=4)
  assert [record for record in read if record['split'] == 'val'] == val
  *steps, last = (record['step'] for record in read if record['split'] == 'train')
  assert last == count and 4 <= len(steps) + 1 <= 9
  assert len(set(np.diff(steps))) == 1 and last - steps[-1] <= steps[0] == steps[1] - steps[0]
  assert curves.read_log(path) == log


def test_collect_curves_sorts_and_keeps_the_last_logged_value():
  log = [
    {'step': 10, 'split': 'train', 'time': 'x', 'learning_rate': 0.1, 'loss': 3.0},
    {'step': 20, 'split': 'train', 'time': 'x', 'learning_rate': 0.1, 'loss': 2.0},
    {'step': 20, 'split': 'val', 'time': 'x', 'mean_iou': 0.5, 'loss': 2.5},
    {'step': 10, 'split': 'train', 'time': 'x', 'learning_rate': 0.1, 'loss': 2.9},
    {'step': 30, 'split': 'train', 'time': 'x', 'learning_rate': 0.1, 'loss': float('nan')},
  ]
  collected = curves.collect_curves(log)
  assert list(collected) == ['loss', 'mean_iou', 'learning_rate']
  assert list(collected['loss']) == ['train', 'val']
  np.testing.assert_array_equal(collected['loss']['train'].steps, [10, 20])
  np.testing.assert_array_equal(collected['loss']['train'].values, [2.9, 2.0])
  np.testing.assert_array_equal(collected['mean_iou']['val'].values, [0.5])


def test_collect_curves_leaves_out_a_metric_that_was_never_finite():
  assert curves.collect_curves([{'step': 1, 'split': 'train', 'loss': float('inf')}]) == {}


@pytest.mark.parametrize('count, window', [(9, 1), (9, 3), (9, 5), (2, 5), (1, 3)])
def test_smooth_is_the_mean_of_the_values_within_half_a_window(count, window):
  values = np.random.default_rng(0).normal(size=count)
  expected = [values[max(0, i - window // 2) : i + window // 2 + 1].mean() for i in range(count)]
  np.testing.assert_allclose(curves.smooth(values, window), expected)


def _drawn(name='loss', count=100, split='train', values=None):
  values = np.linspace(2, 1, count) if values is None else values
  return curves.curve_svg(name, {split: Curve(np.arange(count), values)}, {split: 0})


def test_curve_svg_is_an_element_in_the_colors_of_the_page():
  svg = _drawn()
  assert ElementTree.fromstring(svg).tag == '{http://www.w3.org/2000/svg}svg'
  assert svg.startswith('<svg') and 'currentColor' in svg and '#123456' not in svg
  assert 'var(--series-0, #2563eb)' in svg
  assert '<metadata' not in svg and '<image' not in svg
  assert svg == _drawn()


@pytest.mark.parametrize(
  'kwargs, lines',
  [
    ({}, 2),  # the noisy values and their mean
    ({'split': 'val'}, 1),
    ({'name': 'learning_rate'}, 1),
  ],
)
def test_only_measured_training_values_are_smoothed(kwargs, lines):
  assert _drawn(**kwargs).count('stroke: var(--series-0') == lines


def test_one_point_is_visible():
  assert '<use' in _drawn(count=1).split('var(--series-0', 1)[1]


def test_a_wide_range_of_positive_values_gets_a_logarithmic_axis():
  svg = _drawn(values=np.geomspace(1e-4, 1, 100))
  assert all(f'>{tick}</text>' in svg for tick in ('0.001', '0.01', '0.1'))


@pytest.mark.parametrize(
  'values',
  [
    np.linspace(-2e-4, -1e-4, 100),
    np.linspace(0, 1e-5, 100),
    np.geomspace(1e-5, 10, 100),
    np.linspace(100_000, 120_034, 100),
    np.full(100, -1.25e8),
  ],
)
def test_labels_of_any_length_are_inside_the_plot(values, monkeypatch):
  from matplotlib.figure import Figure

  boxes, savefig = [], Figure.savefig

  def save(figure, *args, **kwargs):
    savefig(figure, *args, **kwargs)
    boxes.append((figure.get_tightbbox().extents, figure.bbox_inches.extents))

  monkeypatch.setattr(Figure, 'savefig', save)
  _drawn('grad_norm', values=values)
  [(drawn, whole)] = boxes
  assert (drawn[:2] >= whole[:2]).all() and (drawn[2:] <= whole[2:]).all()


def test_iou_has_an_axis_in_percent():
  svg = _drawn('mean_iou', values=np.linspace(0, 0.8, 100))
  assert all(f'>{tick}</text>' in svg for tick in ('0%', '40%', '80%'))


def test_drawing_leaves_matplotlib_as_it_was():
  import matplotlib

  with matplotlib.rc_context():
    matplotlib.rcdefaults()  # what an earlier drawing has set would stay unseen
    before = dict(matplotlib.rcParams)
    _drawn()
    assert dict(matplotlib.rcParams) == before


def test_a_learning_rate_has_a_linear_axis():
  """On a logarithmic one, a decay to zero is a cliff."""
  values = np.linspace(1e-4, 1, 100)
  assert '>0.001</text>' in _drawn('grad_norm', values=values)
  svg = _drawn('learning_rate', values=values)
  assert '>0.001</text>' not in svg and '>0.25</text>' in svg


def test_a_seventh_series_has_the_color_of_the_first_and_is_dashed():
  line = Curve(np.arange(30), np.linspace(2, 1, 30))
  first = curves.curve_svg('x', {'a': line}, {'a': 0})
  seventh = curves.curve_svg('x', {'a': line}, {'a': 6})
  assert 'var(--series-0' in seventh and 'var(--series-1' not in seventh
  assert 'stroke-dasharray' in seventh and 'stroke-dasharray' not in first
