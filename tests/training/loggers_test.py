"""Copies of the log in W&B and MLflow: offline, by the libraries themselves where installed."""

import importlib.util
import json
import struct
import sys

import numpy as np
import pytest

from segjax.training import loggers
from segjax.types import SegjaxError

CONFIG = {'optim.learning_rate': 0.1, 'model.name': 'unet.UNet', 'data.mean': [1.0, 2.0]}
# The libraries' own use of what is deprecated.
LIBRARY = pytest.mark.filterwarnings('ignore')
IMAGE = np.zeros((4, 6, 3), np.uint8)


def write(workdir, name, steps, warn=pytest.fail, completed=True):
  [logger] = loggers.open_loggers([name], workdir, CONFIG, warn)
  for step in steps:
    logger.scalars(step, {'train/loss': 1 / step, 'val[:6]/mean_iou': step / 10})
  logger.image(steps[-1], 'val[:6]/a', IMAGE)
  logger.close(completed)


@LIBRARY
def test_mlflow(tmp_path, monkeypatch):
  """A resumed run goes on in the same log."""
  mlflow = pytest.importorskip('mlflow', reason='mlflow is not installed: segjax[mlflow]')
  # Without a server it keeps the log in the working directory.
  monkeypatch.chdir(tmp_path)
  for name in ('MLFLOW_TRACKING_URI', 'MLFLOW_ALLOW_FILE_STORE'):
    monkeypatch.delenv(name, raising=False)
  monkeypatch.setenv('MLFLOW_EXPERIMENT_NAME', 'mine')
  write(tmp_path, 'mlflow', [1, 2], completed=False)
  client = mlflow.MlflowClient()
  [run] = client.search_runs([client.get_experiment_by_name('mine').experiment_id])
  assert (run.info.status, run.info.run_name) == ('KILLED', tmp_path.name)
  write(tmp_path, 'mlflow', [3, 4])
  [run] = client.search_runs([run.info.experiment_id])
  assert run.info.status == 'FINISHED'
  assert run.data.params == {
    'optim.learning_rate': '0.1',
    'model.name': 'unet.UNet',
    'data.mean': '[1.0, 2.0]',
  }
  history = client.get_metric_history(run.info.run_id, 'val_6_/mean_iou')
  assert [(m.step, m.value) for m in history] == [(s, s / 10) for s in (1, 2, 3, 4)]
  [file] = (tmp_path / 'mlruns').rglob('config.json')
  assert json.loads(file.read_text())['data'] == {'mean': [1.0, 2.0]}
  assert list((tmp_path / 'mlruns').rglob('*.png'))


def offline_records(data):
  """The records of a `.wandb` file: LevelDB's log format after a header of seven bytes."""
  assert data[:4] == b':W&B'
  position, block, record = 7, 32 * 1024, b''
  while position < len(data):
    if block - position % block < 7:  # the rest of a block is padding
      position += block - position % block
    _, length, kind = struct.unpack('<IHB', data[position : position + 7])
    record += data[position + 7 : position + 7 + length]
    position += 7 + length
    if kind in (1, 4):  # whole, or the last part
      yield record
      record = b''


@LIBRARY
def test_wandb(tmp_path, monkeypatch):
  """A resumed run goes on in the same log."""
  pytest.importorskip('wandb', reason='wandb is not installed: segjax[wandb]')
  from wandb.proto import wandb_internal_pb2

  monkeypatch.setenv('WANDB_MODE', 'offline')
  monkeypatch.setenv('WANDB_PROJECT', 'mine')
  write(tmp_path, 'wandb', [1, 2], completed=False)
  write(tmp_path, 'wandb', [3, 4])
  found, ids, codes, config, projects = {}, set(), [], {}, set()
  for file in sorted((tmp_path / 'wandb').glob('offline-run-*/*.wandb')):
    for data in offline_records(file.read_bytes()):
      record = wandb_internal_pb2.Record.FromString(data)
      if record.HasField('run'):
        ids.add(record.run.run_id)
        projects.add(record.run.project)
        config |= {u.key or u.nested_key[0]: u.value_json for u in record.run.config.update}
      if record.HasField('exit'):
        codes.append(record.exit.exit_code)
      values = {
        (item.key or item.nested_key[0]): json.loads(item.value_json)
        for item in record.history.item
      }
      if 'train/loss' in values:
        found[values['step']] = (values['train/loss'], values['val[:6]/mean_iou'])
  assert found == {step: (1 / step, step / 10) for step in (1, 2, 3, 4)}
  assert len(ids) == 1 and projects == {'mine'}
  assert codes == [1, 0]
  assert json.loads(config['optim']) == {'learning_rate': 0.1}
  assert list((tmp_path / 'wandb').rglob('*.png'))


@pytest.mark.parametrize('name', ['wandb', 'mlflow'])
def test_a_library_that_is_missing_is_one_sentence(name, monkeypatch):
  monkeypatch.setattr(importlib.util, 'find_spec', lambda name: None)
  with pytest.raises(
    SegjaxError, match=rf"{name} is not installed: pip install 'segjax\[{name}\]'"
  ):
    loggers.check([name])


class Server:
  """Stands for a library whose server is gone after some calls."""

  id = 'abc'

  def __init__(self, workdir, config, run_id):
    self.left = 1
    if config.get('refuse'):
      raise ConnectionError('no route to host\nmore')

  def scalars(self, step, values):
    self.left -= 1
    if self.left < 0:
      raise ConnectionError('gone')

  def image(self, step, name, image):
    raise AssertionError('called after it failed')

  close = image


@pytest.fixture
def server(monkeypatch):
  monkeypatch.setitem(loggers._LOGGERS, 'wandb', Server)
  monkeypatch.setattr(importlib.util, 'find_spec', lambda name: name)


def test_a_server_that_is_gone_does_not_end_the_training(server, tmp_path):
  said = []
  write(tmp_path, 'wandb', [1, 2, 3], warn=said.append)
  assert said == ['wandb failed, and training continues without it (ConnectionError: gone)']
  assert json.loads((tmp_path / 'loggers.json').read_text()) == {'wandb': 'abc'}


def test_a_log_that_cannot_be_started_is_one_sentence(server, tmp_path):
  with pytest.raises(SegjaxError, match=r'wandb cannot start a log .*no route to host\): run') as e:
    loggers.open_loggers(['wandb'], tmp_path, {'refuse': True}, pytest.fail)
  assert 'more' not in str(e.value)
  assert not list(tmp_path.iterdir())


def test_without_loggers_nothing_is_imported_or_written(tmp_path, monkeypatch):
  for name in ('wandb', 'mlflow'):
    monkeypatch.setitem(sys.modules, name, None)
  assert loggers.open_loggers([], tmp_path, CONFIG, pytest.fail) == []
  assert not list(tmp_path.iterdir())
