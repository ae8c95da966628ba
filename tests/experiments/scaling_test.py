"""The page of experiments/scaling, and what its rows compute."""

import numpy as np
import pytest


@pytest.fixture(scope='module', autouse=True)
def package(root):
  with pytest.MonkeyPatch.context() as patch:
    patch.syspath_prepend(root / 'experiments')
    yield


def test_the_readme_is_up_to_date(root):
  from scaling import bounds, page

  directory = root / 'experiments/scaling'
  assert (directory / 'README.md').read_text() == page.render(
    page.read(directory / 'results.jsonl'), bounds.read_speed(root)
  ), 'run: python experiments/scaling/run.py --page'


def test_differences_are_the_largest():
  from scaling.layouts import differences

  array = np.array([1.0, -4.0])
  one = {
    'losses': np.array([1.0, 2.0]),
    'metrics': {'a': 0.5, 'b': np.nan},
    'arrays': {'params.x': array, 'params.y': array / 8, 'zero': np.zeros(2)},
  }
  other = {
    'losses': np.array([1.0, 1.6]),
    'metrics': {'a': 0.25, 'b': np.nan},
    'arrays': {'params.x': array + [0, 1], 'params.y': -array / 8, 'zero': np.zeros(2)},
  }
  assert differences(one, other) == {'loss': 0.25, 'arrays': 0.25, 'metrics': 0.25}
  assert differences(one, one) == {'loss': 0, 'arrays': 0, 'metrics': 0}


def test_the_exchange_of_gradients_by_hand():
  from scaling.bounds import Chip, exchange_seconds

  chip = Chip(peak=1.0, near=4.0, group=2, far=1.0)
  assert exchange_seconds(1, 1, chip) == 0
  assert exchange_seconds(1, 2, chip) == 2 * 4 / 2 / 4
  # Each of two sends half of its array to the other group.
  assert exchange_seconds(1, 4, chip) == 1 + 2 * (4 / 2) / 2


def test_the_share_that_every_process_has():
  from scaling.bounds import evaluation_seconds

  values = [{'processes': 1, 'seconds': [4.0]}, {'processes': 4, 'seconds': [1.6] * 4}]
  each, fixed = evaluation_seconds(values)
  assert each == pytest.approx(4 / 396) and fixed == pytest.approx(0.2)


@pytest.mark.parametrize(
  ('config', 'channels', 'work'),
  [
    ('mask_rcnn/coco_r50_fpn', 3, 'Mask R-CNN, R50-FPN, 800 × 1344'),
    ('unet/isbi2012', 1, 'U-Net, 572²'),
    ('segnet/camvid', 3, 'SegNet, 360 × 480'),
  ],
)
def test_the_parameters_are_those_of_the_configs(root, config, channels, work):
  from scaling.bounds import WORK

  from segjax import config as config_lib
  from segjax import run

  experiment = run.resolve(config_lib.read_file(str(root / f'configs/{config}.py')))
  assert run.parameter_count(experiment, channels) == WORK[work].parameters


def test_metrics_that_differ_are_shown():
  from scaling.page import evaluation_table

  values = [
    {'processes': 1, 'seconds': [4.0], 'metrics': [{'ap': 0.5}]},
    {'processes': 2, 'seconds': [2.0, 2.4], 'metrics': [{'ap': 0.5}, {'ap': 0.4}]},
  ]
  _, rows = evaluation_table({'evaluation': {'values': values}})
  assert rows == [['1', '4.00', '1.00', 'equal'], ['2', '2.00, 2.40', '0.55', 'DIFFER']]


@pytest.mark.slow
def test_two_processes_evaluate_objects_to_the_last_digit(tmp_path):
  """Each pastes and compares its own images, and they have different numbers of images."""
  from scaling import evaluation

  one, two = evaluation.measure(str(tmp_path), images=21, counts=(1, 2))
  [expected] = one['metrics']
  assert two['metrics'] == [expected] * 2
  assert 0.05 < expected['mask_ap'] < 0.95 and 0.05 < expected['box_ap'] < 0.95


def test_each_process_gets_its_rows_of_each_batch():
  """Together they are the images of one process, in order."""
  from scaling import evaluation

  from segjax.training.sharding import Part

  zeros = {key: np.zeros((1, 2)) for key in ('boxes', 'classes', 'scores', 'masks', 'valid')}
  batches = [(zeros, {'annotations': [{'image_id': 0}]})]
  names = [
    [names for _, names in evaluation.local_batches(batches, Part(i, count))]
    for count in (1, 2)
    for i in range(count)
  ]
  assert names[0] == [a + b for a, b in zip(names[1], names[2], strict=True)]
  rows = len(names[0]) * evaluation.BATCH
  assert sum(names[0], []) == [str(i) for i in range(1, rows + 1)]
  assert evaluation.IMAGES < rows < evaluation.IMAGES + evaluation.BATCH
