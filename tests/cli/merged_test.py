"""Two runs merged into a panoptic network, by the commands."""

import json
import shutil

import jax
import numpy as np
import pytest

from segjax import main as program
from segjax.data import instance_pipeline, pipeline
from segjax.program.load import load_dataset, load_run, restore
from segjax.tables import results
from segjax.tables import spec as spec_lib
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

TABLE = """
title = 'A paper, Table 1'
source = 'Author, arXiv 0000.00000, Table 1'
split = 'val[:4]'

[columns]
'PQ' = {{ key = 'pq', scale = 100, digits = 1 }}
'size' = {{ key = 'parameters', digits = 0, computed = true }}

[recipes.small]
config = 'configs/merged.py'
differs = 'It is small.'
cost = 'nothing.'

[rows.both]
title = 'Both'
paper = {{ 'PQ' = 40.0 }}
overrides.'data.name' = 'scenes/tiny'
overrides.'data.eval_split' = 'val[:4]'
overrides.'model.semantic' = '{parts}/semantic'
overrides.'model.instance' = '{parts}/instance'
recipes.small = {{}}
"""


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


@pytest.fixture(scope='module')
def runs(parts, merged):
  """The three runs, loaded."""
  paths = {'semantic': parts / 'semantic', 'instance': parts / 'instance', 'merged': merged}
  return {name: load_run(Workdir(path), 'latest') for name, path in paths.items()}


def apply(loaded, *inputs):
  return loaded.run.model.apply(loaded.variables, *inputs, train=False)


def semantic_scores(runs, image):
  """f32[H, W, classes] of the semantic run by itself."""
  seen, back = pipeline.prepare_image(image, runs['semantic'].run.data)
  return back(np.asarray(apply(runs['semantic'], seen[None])[0]))


@pytest.mark.slow
def test_each_part_puts_out_what_it_does_by_itself(runs):
  """Of an image with padding, which each run scales, pads and normalises in its own way."""
  # In pairs of rows, so that scaling to 32 x 32 rounds nothing.
  image = np.random.default_rng(0).integers(0, 256, (32, 32, 3), np.uint8).repeat(2, 0)
  merged, instance = runs['merged'], runs['instance']
  batch = instance_pipeline.prepare_image(image, merged.run.data)
  found = apply(merged, batch['image'], batch['size'])
  batch = instance_pipeline.prepare_image(image, instance.run.data)
  expected = apply(instance, batch['image'], batch['size'])
  jax.tree.map(np.testing.assert_array_equal, found['detections'], expected['detections'])
  scores = semantic_scores(runs, image)
  assert batch['image'].shape == (1, 64, 64, 3) and scores.std((0, 1)).max() > 0.1
  np.testing.assert_allclose(found['semantic'][0, :64, :32], scores, atol=1e-4)


def test_it_is_evaluated_like_any_run_without_its_parts(runs, parts, merged, capsys):
  """Untrained, its things are too unsure to be there: what it finds is what the U-Net does."""
  builder, spec = load_dataset(runs['merged'].run.config)
  stuff = [k for k in range(spec.num_classes) if k not in spec.things]
  true, found = np.zeros(len(stuff), int), np.zeros(len(stuff), int)
  for example in builder.as_data_source('val[:4]'):
    label = semantic_scores(runs, example['image']).argmax(-1)
    found += [(label == k).sum() >= 64 for k in stuff]
    true += [(example['label'] == k).any() for k in stuff]
  assert found.any()
  parts.rename(parts.with_name('elsewhere'))
  try:
    assert run('evaluate', f'--workdir={merged}', '--json') == 0
  finally:
    parts.with_name('elsewhere').rename(parts)
  metrics = json.loads(capsys.readouterr().out)
  assert metrics['step'] == 0
  counts = [metrics['per_class'][spec.class_names[k]] for k in stuff]
  assert [c['tp'] + c['fp'] for c in counts] == found.tolist()
  assert [c['tp'] + c['fn'] for c in counts] == true.tolist()
  assert set(metrics['per_thing']) == {'ball', 'box', 'tree', 'ring', 'star'}


def test_a_merged_run_is_a_row_of_a_table(root, parts, merged, tmp_path, capsys):
  folder = tmp_path / 'experiments/merged'
  config = tmp_path / 'configs/merged.py'
  for path in (folder, config.parent):
    path.mkdir(parents=True)
  shutil.copy(root / 'configs/panoptic_fpn/merged_scenes.py', config)
  (folder / 'table.toml').write_text(TABLE.format(parts=parts))
  assert run('table', folder, '--record', f'both.small={merged}', f'--workdirs={tmp_path}') == 0
  table = spec_lib.read_table(folder)
  [record] = results.read_results(table)
  assert record.weights == 'instance: instance, semantic: semantic'
  assert record.steps == 0 and 'pq' in record.metrics
  # The page does without the parts.
  parts.rename(parts.with_name('elsewhere'))
  try:
    capsys.readouterr()
    assert run('table', folder) == 0
    assert '| Both ' in capsys.readouterr().out
    assert run('table', folder, '--record', f'both.small={merged}') == 2
    assert 'is no workdir of a run' in capsys.readouterr().err
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
