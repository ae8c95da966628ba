"""The commands with a workdir, data and predictions in a bucket."""

import json

import cv2
import fake_bucket
import numpy as np
import pytest
from commands import fails, info, output, run, train

from segjax import api

ADDRESS = 's3://bucket/runs/a'


@pytest.fixture
def bucket():
  with fake_bucket.installed() as files:
    yield files


def names(files, below):
  return {name.removeprefix(f'/{below}/') for name in files if name.startswith(f'/{below}/')}


@pytest.mark.slow
def test_a_run_lives_in_a_bucket(bucket, tmp_path, monkeypatch, capsys):
  """From its training and resuming to its predictions; nothing is written elsewhere."""
  monkeypatch.chdir(tmp_path)
  data = '--config.data.dir=s3://bucket/data'
  assert train(ADDRESS, data, steps=2) == 0
  assert train(ADDRESS, data, '--config.train.steps=2') == 0, 'it is finished'
  found = info(ADDRESS, capsys)
  assert found['step'] == 2 and found['checkpoints'] == [2]
  assert {'config.json', 'metrics.jsonl', 'report.html', 'starts.jsonl'} <= names(
    bucket, 'bucket/runs/a'
  )
  assert any('tensorboard/events' in name for name in bucket)
  assert '/bucket/runs/a/.lock' not in bucket
  log = [json.loads(line) for line in bucket['/bucket/runs/a/metrics.jsonl'].getvalue().split(b'\n')[:-1]]
  assert [(line['step'], line['split']) for line in log] == [(1, 'train'), (2, 'train'), (2, 'val')]
  assert output(capsys, 'evaluate', f'--workdir={ADDRESS}')['step'] == 2
  image = tmp_path / 'in.png'
  cv2.imwrite(str(image), np.zeros((32, 32, 3), np.uint8))
  args = ('predict', f'--workdir={ADDRESS}', f'--images={image}', '--output=s3://bucket/out')
  assert run(*args, '--save=label,overlay,json,npz') == 0
  assert names(bucket, 'bucket/out') == {'in.png', 'in_overlay.png', 'in.json', 'in.npz'}
  assert 's3://bucket/out is not empty' in fails(capsys, *args)
  assert api.load(ADDRESS)(str(image)).label.shape == (32, 32)
  assert sorted(path.name for path in tmp_path.iterdir()) == ['in.png']


@pytest.mark.parametrize(
  'args',
  [
    ('train', '--config=unet/scenes', '--workdir=hdfs://host/a'),
    ('evaluate', '--workdir=hdfs://host/a'),
    ('info', '--workdir=hdfs://host/a'),
    ('data', 'prepare', 'scenes/tiny', '--data_dir=hdfs://host/a'),
    ('predict', '--workdir=x', '--images=x.png', '--output=hdfs://host/a'),
    ('compare', 'a', 'b', '--output=hdfs://host/a'),
  ],
)
def test_another_address_is_never_a_local_directory(args, tmp_path, monkeypatch, capsys):
  monkeypatch.chdir(tmp_path)
  assert 'hdfs://host/a is an address of the kind hdfs://' in fails(capsys, *args)
  assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
  'args',
  [
    ('convert', '--source=torchvision/vgg16', '--output=gs://b/x.safetensors'),
    ('data', 'prepare', 'camvid', '--source=gs://b/raw'),
  ],
)
def test_what_has_to_be_local_says_so(args, capsys):
  assert 'gs://b/' in (sentence := fails(capsys, *args)) and 'on a local disk' in sentence
