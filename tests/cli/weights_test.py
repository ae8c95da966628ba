"""`segjax export --format=safetensors`: a run without its training, for all commands but that."""

import json

import commands
import numpy as np
import pytest
import safetensors.numpy
from commands import fails, info, output, run
from flax.traverse_util import unflatten_dict
from same_results import check_same

import segjax
from segjax import run as run_lib
from segjax.workdir import Workdir

RUNS = ('semantic_run', 'instance_run')


@pytest.fixture(params=RUNS)
def shared(request, tmp_path):
  """(workdir, directory of its weights)."""
  workdir = request.getfixturevalue(request.param)
  assert export(workdir, tmp_path / 'shared') == 0
  return workdir, tmp_path / 'shared'


@pytest.fixture
def weights(semantic_run, tmp_path):
  """The directory of the weights of a U-Net."""
  assert export(semantic_run, tmp_path / 'shared') == 0
  return tmp_path / 'shared'


def export(workdir, directory, *args):
  return run(
    'export', f'--workdir={workdir}', '--format=safetensors', f'--output={directory}', *args
  )


@pytest.mark.filterwarnings('ignore:.*unlike the training images')
def test_it_predicts_as_the_run(shared):
  workdir, directory = shared
  image = np.random.default_rng(0).integers(0, 256, (40, 50, 3), np.uint8)
  predictor = segjax.load(workdir)
  options = {'probability': True} if predictor.task == 'semantic' else {}
  for checkpoint in ('latest', 'best'):
    found = segjax.load(directory, checkpoint=checkpoint)(image, **options)
    check_same(found, predictor(image, **options))


def test_it_is_evaluated_and_described_as_the_run(weights, semantic_run, capsys):
  ours, theirs = (
    output(capsys, 'evaluate', f'--workdir={path}') for path in (weights, semantic_run)
  )
  assert ours == theirs
  ours, theirs = info(weights, capsys), info(semantic_run, capsys)
  of_checkpoints = ('best_value', 'best_step', 'checkpoints')
  assert [ours.pop(key) for key in of_checkpoints] == [None, None, [4]]
  assert ours == {key: value for key, value in theirs.items() if key not in of_checkpoints}


def test_it_has_no_state_of_the_training(weights, semantic_run):
  names = {'config.json', 'dataset.json', 'model.safetensors', 'starts.jsonl'}
  assert {path.name for path in weights.iterdir()} == names
  variables = unflatten_dict(safetensors.numpy.load_file(weights / 'model.safetensors'), sep='/')
  loaded = run_lib.load_run(Workdir(semantic_run))
  images = np.random.default_rng(0).normal(size=(1, 32, 32, loaded.run.spec.channels))
  expected = loaded.run.model.apply(loaded.variables, images)
  assert np.array_equal(loaded.run.model.apply(variables, images), expected)


@pytest.mark.parametrize('name', ['', 'model.safetensors'])
def test_another_run_starts_from_it(weights, semantic_run, tmp_path, name):
  start = f'--config.init_from.path={weights / name}'
  assert commands.train(tmp_path / 'next', start, steps=0) == 0
  found, expected = commands.arrays(tmp_path / 'next'), commands.arrays(semantic_run)
  params = {key for key in expected if key.startswith('params.')}
  assert params and all(np.array_equal(found[key], expected[key]) for key in params)


@pytest.mark.parametrize('name', ['', 'model.safetensors'])
def test_heads_of_a_run_are_not_discarded_as_those_of_published_weights(
  weights, tmp_path, capsys, name
):
  published = {'source': 'torchvision/resnet18', 'reset': 'heads', 'path': weights / name}
  keys = [f'--config.init_from.{key}={value}' for key, value in published.items()]
  message = fails(capsys, *commands.train_args(tmp_path / 'next', *keys, steps=0))
  assert 'would discard its class-specific layers' in message
  assert 'set config.init_from.source=none, and config.init_from.reset=()' in message


def test_training_cannot_go_on_in_it(weights, capsys):
  before = (weights / 'config.json').read_text()
  message = fails(capsys, *commands.train_args(weights))
  assert 'has weights alone' in message and f'--config.init_from.path={weights}' in message
  assert (weights / 'config.json').read_text() == before


def test_mistakes(weights, semantic_run, tmp_path, capsys):
  command = ['export', f'--workdir={semantic_run}', '--format=safetensors']
  message = fails(capsys, *command, f'--output={tmp_path / "other"}', '--size=32x32')
  assert '--size: --format=safetensors writes no program' in message
  assert 'exists' in fails(capsys, *command, f'--output={weights}')
  message = fails(capsys, *command[:2], '--format=safetensor', f'--output={tmp_path / "other"}')
  assert 'did you mean safetensors' in message
  assert not (tmp_path / 'other').exists()
  command = ['evaluate', f'--workdir={weights}', '--checkpoint=2']
  assert 'has no checkpoint 2, only the weights of step 4' in fails(capsys, *command)


def test_the_keys_that_were_set_are_part_of_it(semantic_run, tmp_path):
  assert export(semantic_run, tmp_path / 'shared', '--config.batch.eval_size=3') == 0
  assert json.loads((tmp_path / 'shared' / 'config.json').read_text())['batch']['eval_size'] == 3
