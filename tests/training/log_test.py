"""The machine-readable record of a run."""

import json

import numpy as np

from segjax.training.log import RunLog


def lines(path):
  return [json.loads(line) for line in (path / 'metrics.jsonl').read_text().splitlines()]


def test_one_object_a_line_and_events(tmp_path):
  log = RunLog(tmp_path)
  log.scalars(5, 'train', {'loss': 0.5})
  log.scalars(5, 'val', {'mean_iou': float('nan'), 'per_class': {'a': {'iou': 0.25}}})
  log.images(5, 'val', [('x', {'image': np.zeros((2, 3, 3), np.uint8)})])
  log.close()
  first, second = lines(tmp_path)
  assert (first['step'], first['split'], first['loss']) == (5, 'train', 0.5)
  assert second['mean_iou'] is None, 'JSON has no NaN'
  assert second['per_class'] == {'a': {'iou': 0.25}}
  assert list((tmp_path / 'tensorboard').glob('events*'))


def test_resuming_drops_what_the_new_steps_write_again(tmp_path):
  log = RunLog(tmp_path)
  for step in (10, 20, 30):
    log.scalars(step, 'train', {'loss': step})
  log.close()
  with (tmp_path / 'metrics.jsonl').open('a') as f:
    f.write('{"step": 4')  # killed while writing
  log = RunLog(tmp_path, start_step=20)
  log.scalars(30, 'train', {'loss': 31})
  log.close()
  assert [(r['step'], r['loss']) for r in lines(tmp_path)] == [(10, 10), (20, 20), (30, 31)]
