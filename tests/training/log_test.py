"""The machine-readable record of a run."""

import errno
import io
import json
import os
import struct
import subprocess
import sys

import fake_bucket
import numpy as np
import pytest
from tensorboardX.proto import event_pb2
from tensorboardX.proto.plugin_hparams_pb2 import HParamsPluginData

from segjax import storage
from segjax.training import log as log_lib
from segjax.training.log import RunLog
from segjax.types import SegjaxError


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


def test_an_evaluation_that_is_made_again_is_logged_once(tmp_path):
  """It was killed before the checkpoint had its metrics."""
  log = RunLog(tmp_path)
  for step in (10, 20):
    log.scalars(step, 'train', {'loss': step})
    log.scalars(step, 'val', {'mean_iou': step})
  log.close()
  log = RunLog(tmp_path, start_step=20, evaluated=False)
  log.scalars(20, 'val', {'mean_iou': 21})
  log.close()
  entries = [(r['step'], r['split'], r.get('mean_iou')) for r in lines(tmp_path)]
  assert entries == [(10, 'train', None), (10, 'val', 10), (20, 'train', None), (20, 'val', 21)]


def full(*_args, **_kwargs):
  raise OSError(errno.ENOSPC, 'No space left on device')


def test_a_full_disk_is_one_sentence(tmp_path, monkeypatch):
  log = RunLog(tmp_path)
  log.scalars(1, 'train', {'loss': 0.5})
  written = (tmp_path / 'metrics.jsonl').read_text()

  class Full(io.StringIO):
    flush = full

  file, log._lines._file = log._lines._file, Full()
  message = r'metrics.jsonl cannot be written, because the disk is full \(\d+ bytes needed, .* free'
  with pytest.raises(SegjaxError, match=message):
    log.scalars(2, 'train', {'loss': 0.25})
  log._lines._file = file
  monkeypatch.setattr(log._events._writer, 'write', full)
  message = 'tensorboard cannot be written, because the disk is full'
  with pytest.raises(SegjaxError, match=message):
    log.scalars(2, 'train', {'loss': 0.25})
  log.close()
  assert (tmp_path / 'metrics.jsonl').read_text().startswith(written)


def test_the_error_that_ends_a_run_is_not_hidden_by_a_full_disk(tmp_path, monkeypatch):
  with pytest.raises(KeyboardInterrupt), RunLog(tmp_path) as log:
    writer = log._events._writer
    monkeypatch.setattr(writer, 'close', full)
    raise KeyboardInterrupt
  writer._writer.close()


def test_in_a_bucket_the_log_is_written_at_evaluations_and_at_the_end(monkeypatch):
  with fake_bucket.installed() as files:
    path = storage.as_path('s3://bucket/run')
    log = RunLog(path)
    log.scalars(5, 'train', {'loss': 0.5})
    assert '/bucket/run/metrics.jsonl' not in files
    log.flush()
    assert [line['step'] for line in lines(path)] == [5]
    log.scalars(6, 'train', {'loss': 0.5})
    log.images(6, 'val', [('x', {'image': np.zeros((2, 3, 3), np.uint8)})])
    assert [line['step'] for line in lines(path)] == [5, 6]
    monkeypatch.setattr(log_lib, '_FLUSH', 0.0)
    log.scalars(7, 'train', {'loss': 0.5})
    assert [line['step'] for line in lines(path)] == [5, 6, 7]
    log.close()
    log = RunLog(path, start_step=6)
    log.close()
    assert [line['step'] for line in lines(path)] == [5, 6]
    sizes = [content.size for name, content in files.items() if 'tfevents' in name]
    assert len(sizes) == 2 and max(sizes) > 100, 'one file for each start'


def events(path):
  """The events of TensorBoard's files, by their own framing: length, CRC, data, CRC."""
  for file in sorted((path / 'tensorboard').glob('events*')):
    data = file.read_bytes()
    while data:
      (length,) = struct.unpack('<Q', data[:8])
      yield event_pb2.Event.FromString(data[12 : 12 + length])
      data = data[16 + length :]


CONFIG = {
  'optim.learning_rate': 0.1,
  'model.name': 'unet.UNet',
  'model.dropout': None,
  'data.mean': [1.0, 2.0],
  'mesh.on': True,
}


def test_tensorboard_has_the_config_as_text_and_as_hyperparameters(tmp_path):
  with RunLog(tmp_path) as log:
    log.config(CONFIG, ['val[:6]/mean_iou'])
  values = {v.tag: v for event in events(tmp_path) for v in event.summary.value}
  text = values['config/text_summary'].tensor.string_val[0].decode()
  assert text.splitlines() == [
    '    data.mean: [1.0, 2.0]',
    '    mesh.on: true',
    '    model.dropout: null',
    '    model.name: "unet.UNet"',
    '    optim.learning_rate: 0.1',
  ]
  content = lambda tag: HParamsPluginData.FromString(values[tag].metadata.plugin_data.content)
  experiment = content('_hparams_/experiment').experiment
  assert [info.name.tag for info in experiment.metric_infos] == ['val__6_/mean_iou']
  given = content('_hparams_/session_start_info').session_start_info.hparams
  found = {key: getattr(value, value.WhichOneof('kind')) for key, value in given.items()}
  assert found == {
    'optim.learning_rate': 0.1,
    'model.name': 'unet.UNet',
    'data.mean': '[1.0, 2.0]',
    'mesh.on': True,
  }


class Noted:
  """A logger that keeps what it gets."""

  def __init__(self):
    self.calls = []

  def __getattr__(self, method):
    return lambda *args: self.calls.append((method, *args))


def test_loggers_get_finite_scalars_images_and_the_end(tmp_path):
  noted, panel = Noted(), np.zeros((2, 3, 3), np.uint8)
  with RunLog(tmp_path, loggers=[noted]) as log:
    log.scalars(5, 'val', {'iou': 0.5, 'loss': float('nan'), 'per_class': {'a': {'iou': 0.25}}})
    log.images(5, 'val', [('x', {'image': panel, 'truth': panel})])
  scalars, (method, step, name, image), end = noted.calls
  assert scalars == ('scalars', 5, {'val/iou': 0.5})
  assert (method, step, name, image.shape) == ('image', 5, 'val/x', (2, 6, 3))
  assert end == ('close', True)


def test_loggers_are_told_that_a_run_was_stopped(tmp_path):
  noted = Noted()
  with pytest.raises(KeyboardInterrupt), RunLog(tmp_path, loggers=[noted]):
    raise KeyboardInterrupt
  assert noted.calls == [('close', False)]


def test_tensorboard_does_not_import_torch(tmp_path):
  (tmp_path / 'torch.py').write_text('raise AssertionError("imported")')
  code = (
    'import pathlib, sys\nfrom segjax.training.log import RunLog\n'
    f'log = RunLog(pathlib.Path({str(tmp_path)!r}))\n'
    'log.scalars(1, "train", {"loss": 0.5})\nlog.close()\nprint("torch" in sys.modules)'
  )
  path = os.pathsep.join([str(tmp_path), *sys.path])
  env = {**os.environ, 'PYTHONPATH': path}
  result = subprocess.run(
    [sys.executable, '-c', code], env=env, capture_output=True, text=True, check=True
  )
  assert result.stdout.strip() == 'False'
  assert list((tmp_path / 'tensorboard').glob('events*'))
