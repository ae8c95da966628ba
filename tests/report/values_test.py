import jax.numpy as jnp
import numpy as np
import pytest

from segjax.report.values import (
  column_names,
  format_metric,
  format_share,
  format_value,
  split_metrics,
)


@pytest.mark.parametrize(
  'value, text',
  [
    (0.81234, '0.8123'),
    (1.0, '1.0000'),
    (0.0, '0.0000'),
    (-0.5, '-0.5000'),
    (2.34567, '2.346'),
    (12.3456, '12.35'),
    (123.456, '123.5'),
    (12345.6, '12,346'),
    (1e-4, '0.0001'),
    (2.5e-7, '2.5e-07'),
    (7, '7'),
    (31030658, '31,030,658'),
    (np.int64(2**40), '1,099,511,627,776'),
    (np.float32(0.25), '0.2500'),
    (jnp.int32(1000), '1,000'),
    (jnp.float32(0.5), '0.5000'),
    (float('nan'), '–'),
    (np.float32('nan'), '–'),
    (None, '–'),
    (float('inf'), '∞'),
    (float('-inf'), '−∞'),
    ('text', 'text'),
  ],
)
def test_format_value(value, text):
  assert format_value(value) == text


@pytest.mark.parametrize(
  ('name', 'value', 'text'),
  [
    ('mean_iou', 0.61723, '61.7%'),
    ('iou', np.float32(1), '100.0%'),
    ('mask_ap50', 0.7249, '72.5%'),
    ('box_ar_small', 0.0, '0.0%'),
    ('pq_things', 0.5, '50.0%'),
    ('sq', 0.5, '50.0%'),
    ('mask_ap', float('nan'), '–'),
    ('pq', None, '–'),
    ('pixel_accuracy', 0.5, '0.5000'),
    ('loss', 0.5, '0.5000'),
    ('map_size', 0.5, '0.5000'),
    ('mIoU, paper', '62.7', '62.7'),
  ],
)
def test_iou_ap_and_pq_are_in_percent(name, value, text):
  assert format_metric(name, value) == text


def test_split_metrics_splits_scalars_and_tables():
  per_class = {'sky': {'iou': 0.5}}
  metrics = {'mean_iou': 0.5, 'per_class': per_class, 'pixels': 3}
  assert split_metrics(metrics) == ({'mean_iou': 0.5, 'pixels': 3}, {'per_class': per_class})


def test_column_names_are_those_of_all_rows_in_order():
  assert column_names({'a': {'y': 1, 'x': 2}, 'b': {'x': 1, 'z': 0}}) == ['y', 'x', 'z']


@pytest.mark.parametrize(
  ('share', 'text'),
  [(0, '0.0%'), (1, '100.0%'), (0.12345, '12.3%'), (0.001, '0.1%'), (0.00042, '0.042%')],
)
def test_shares_below_a_thousandth_keep_two_digits(share, text):
  assert format_share(share) == text
