"""Two runs merged into a panoptic network, by the commands."""

import json

import numpy as np
import pytest

from segjax import main as program
from segjax.program.load import restore
from segjax.workdir import Workdir

COMMON = ['--config.data.name=scenes/tiny', '--config.data.eval_split=val[:4]']
COMMON += ['--config.train.steps=0', '--config.train.pictures=0']
UNET = ['--config.model.width=2', '--config.model.depth=2', '--config.data.image_size=(32,32)']
UNET += ['--config.data.mean=(120.0,)', '--config.data.std=(60.0,)']
MASK_RCNN = [
  '--config.data.shapes=((64,64),)',
  '--config.data.eval_batch_size=4',
  '--config.model.width=4',
  '--config.model.features=8',
  '--config.model.hidden=16',
  '--config.model.mask_convs=1',
  '--config.model.train_proposals=(40,20)',
  '--config.model.test_proposals=(40,20)',
  '--config.model.detections=5',
]


@pytest.fixture(scope='module', autouse=True)
def folders(tmp_path_factory):
  cache = tmp_path_factory.mktemp('cache')
  with pytest.MonkeyPatch.context() as patch:
    patch.setenv('XDG_CACHE_HOME', str(cache))
    patch.delenv('SEGJAX_DATA_DIR', raising=False)
    yield cache


def run(*args):
  return program.main([str(a) for a in args])


@pytest.fixture(scope='module')
def parts(tmp_path_factory, root):
  folder = tmp_path_factory.mktemp('parts')
  for name, config, small in (
    ('semantic', 'configs/unet/scenes.py', UNET),
    ('instance', 'configs/mask_rcnn/scenes_tiny.py', MASK_RCNN),
  ):
    args = [f'--config={root / config}', f'--workdir={folder / name}', *COMMON, *small]
    assert run('train', *args) == 0
  return folder


def merged_args(root, parts, workdir):
  return [
    'train',
    f'--config={root / "configs/panoptic_fpn/merged_scenes.py"}',
    f'--workdir={workdir}',
    *COMMON,
    '--config.data.eval_batch_size=4',
    f'--config.model.semantic={parts / "semantic"}',
    f'--config.model.instance={parts / "instance"}',
  ]


@pytest.fixture(scope='module')
def merged(tmp_path_factory, root, parts):
  workdir = tmp_path_factory.mktemp('runs') / 'merged'
  assert run(*merged_args(root, parts, workdir)) == 0
  return workdir


def test_the_merged_network_has_the_weights_of_both(parts, merged):
  arrays = {
    name: restore(Workdir(path), 'latest').state
    for name, path in (
      ('semantic', parts / 'semantic'),
      ('instance', parts / 'instance'),
      ('merged', merged),
    )
  }
  ours = {k: v for k, v in arrays['merged'].items() if k.startswith(('params.', 'model_state.'))}
  for part in ('semantic', 'instance'):
    taken = {k: v for k, v in ours.items() if f'.{part}.' in k}
    assert taken
    for key, value in taken.items():
      np.testing.assert_array_equal(value, arrays[part][key.replace(f'.{part}.', '.', 1)])
  assert all('.semantic.' in k or '.instance.' in k for k in ours)


def test_it_sees_what_its_parts_saw(merged):
  config = json.loads((merged / 'config.json').read_text())
  assert config['data']['shapes'] == [[64, 64]]
  assert config['model']['semantic_size'] == [32, 32]
  assert config['model']['semantic_scale'] == [127.5 / 60]
  assert config['model']['semantic_shift'] == [7.5 / 60]
  assert config['model']['instance']['detections'] == 5


def test_it_is_evaluated_like_any_run_without_its_parts(parts, merged, tmp_path, capsys):
  parts.rename(parts.with_name('elsewhere'))
  try:
    assert run('evaluate', f'--workdir={merged}', '--json') == 0
    metrics = json.loads(capsys.readouterr().out)
    assert 0 <= metrics['pq'] <= 1 and metrics['step'] == 0
    assert set(metrics['per_thing']) == {'ball', 'box', 'tree', 'ring', 'star'}
  finally:
    parts.with_name('elsewhere').rename(parts)


def test_the_same_command_again_and_what_cannot_be(root, parts, merged, tmp_path, capsys):
  args = merged_args(root, parts, merged)
  assert run(*args) == 0
  args = merged_args(root, parts, tmp_path / 'new')
  assert run(*args, '--config.train.steps=2') == 2
  assert 'config.train.steps: a merged network is not trained' in capsys.readouterr().err
  assert run(*args, f'--config.model.semantic={parts / "instance"}') == 2
  assert 'is a run of the task instance: name one of the task semantic' in capsys.readouterr().err
  assert run(*args, f'--config.model.semantic={tmp_path / "nothing"}') == 2
  assert 'is no workdir of a run' in capsys.readouterr().err
