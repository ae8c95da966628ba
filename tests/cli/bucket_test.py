"""The commands with a workdir, data and predictions in a bucket."""

import json

import cv2
import fake_bucket
import fake_gcs
import numpy as np
import pytest
from commands import fails, info, output, run, train, train_args
from processes import spawn

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
  log = [
    json.loads(line) for line in bucket['/bucket/runs/a/metrics.jsonl'].getvalue().split(b'\n')[:-1]
  ]
  assert [(line['step'], line['split']) for line in log] == [(1, 'train'), (2, 'train'), (2, 'val')]
  assert output(capsys, 'evaluate', f'--workdir={ADDRESS}')['step'] == 2
  image = tmp_path / 'in.png'
  cv2.imwrite(str(image), np.full((32, 32, 3), 128, np.uint8))
  args = ('predict', f'--workdir={ADDRESS}', f'--images={image}', '--output=s3://bucket/out')
  assert run(*args, '--save=label,overlay,json,npz') == 0
  assert names(bucket, 'bucket/out') == {'in.png', 'in_overlay.png', 'in.json', 'in.npz'}
  assert 's3://bucket/out is not empty' in fails(capsys, *args)
  assert api.load(ADDRESS).step == 2
  command = ('export', f'--workdir={ADDRESS}', '--format=safetensors', '--output=shared')
  assert run(*command) == 0 and api.load('shared').step == 2
  assert sorted(path.name for path in tmp_path.iterdir()) == ['in.png', 'shared']


@pytest.mark.slow
def test_a_run_lives_in_google_cloud_storage(tmp_path, cache):
  """By its own libraries, of which TensorStore is in C++, against a server that speaks to them."""
  pytest.importorskip('gcsfs')
  pytest.importorskip('google.cloud.storage')
  address, data = 'gs://bucket/run', '--config.data.dir=gs://bucket/data'
  with fake_gcs.serve() as server:

    def succeeds(*args):
      process = spawn(args, cache, **server.environment)
      err = process.communicate(timeout=240)[1]
      assert process.returncode == 0, err
      return err

    args = train_args(address, data, steps=4)
    succeeds(*args)
    assert 'resuming from step 4 of 4' in succeeds(*args)
    succeeds('evaluate', f'--workdir={address}', '--checkpoint=2')
    found = server.files('bucket')
    steps = {name.split('/')[2] for name in found if name.startswith('run/checkpoints/')}
    assert {'2', '4'} <= steps
    assert 'run/.lock' not in found
    assert any(name.startswith('data/scenes/tiny') for name in found)
    log = [json.loads(line) for line in found['run/metrics.jsonl'].splitlines()]
    assert [line['step'] for line in log if line['split'] == 'train'] == [1, 2, 3, 4]


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
