"""Merging two runs into a panoptic network, with the commands."""

import contextlib
import json
import shutil

import commands
import jax
import numpy as np
import pytest

from segjax.data import pipeline
from segjax.ops.normalize import normalize_pixels
from segjax.run import load_dataset, load_run
from segjax.tables import results
from segjax.tables import spec as spec_lib
from segjax.workdir import Workdir

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
overrides.'train.steps' = 0
overrides.'model.semantic' = '{semantic}'
overrides.'model.instance' = '{instance}'
overrides.'init_from.checkpoint' = 'latest'
recipes.small = {{}}
"""


@pytest.fixture(scope='module')
def parts(semantic_run, instance_run):
  """The workdirs of the two runs."""
  return {'semantic': semantic_run, 'instance': instance_run}


def merged_args(parts, workdir, *args):
  return [
    'train',
    commands.CONFIGS['merged'],
    f'--workdir={workdir}',
    '--config.data.name=scenes/tiny',
    '--config.data.eval_split=val[:4]',
    '--config.batch.eval_size=4',
    '--config.train.steps=0',
    '--config.train.images=0',
    *(f'--config.model.{part}={path}' for part, path in parts.items()),
    '--config.init_from.checkpoint=latest',
    *args,
  ]


@pytest.fixture(scope='module')
def merged(tmp_path_factory, parts):
  workdir = tmp_path_factory.mktemp('runs') / 'merged'
  assert commands.run(*merged_args(parts, workdir)) == 0
  return workdir


@contextlib.contextmanager
def moved(parts):
  """Context in which the workdirs of the parts are moved away."""
  places = {path: path.with_name(f'{path.name}_elsewhere') for path in parts.values()}
  for path, other in places.items():
    path.rename(other)
  try:
    yield
  finally:
    for path, other in places.items():
      other.rename(path)


def test_the_merged_network_has_the_weights_of_both(parts, merged):
  ours = {
    name: array
    for name, array in commands.arrays(merged).items()
    if name.startswith(('params.', 'model_state.'))
  }
  for part, path in parts.items():
    theirs = commands.arrays(path)
    taken = {k: v for k, v in ours.items() if f'.{part}.' in k}
    assert taken
    for key, value in taken.items():
      np.testing.assert_array_equal(value, theirs[key.replace(f'.{part}.', '.', 1)])
  assert all('.semantic.' in k or '.instance.' in k for k in ours)


def test_it_sees_what_its_parts_saw(merged):
  config = json.loads((merged / 'config.json').read_text())
  assert config['data']['size']['shapes'] == [[64, 64]]
  assert config['model']['semantic_size'] == [32, 32]
  assert config['model']['semantic_scale'] == [127.5 / 60]
  assert config['model']['semantic_shift'] == [7.5 / 60]
  assert config['model']['instance']['box_head']['max_detections'] == 5


@pytest.fixture(scope='module')
def runs(parts, merged):
  """The three runs, loaded."""
  paths = {**parts, 'merged': merged}
  return {name: load_run(Workdir(path), 'latest') for name, path in paths.items()}


def apply(loaded, image, *inputs):
  data = loaded.run.experiment.data
  image = normalize_pixels(image, data.mean, data.std)
  return loaded.run.model.apply(loaded.variables, image, *inputs, train=False)


def semantic_scores(runs, image):
  """f32[H, W, classes] of the semantic run alone."""
  batch, restore = pipeline.prepare_image(image, runs['semantic'].run.experiment.input)
  return restore(np.asarray(apply(runs['semantic'], batch['image'])[0]))


@pytest.mark.slow
@pytest.mark.nightly
def test_each_part_outputs_what_it_does_by_itself(runs):
  """For an image with padding; each run has its own resizing, padding and normalization."""
  # In pairs of rows, so that resizing to 32 x 32 is exact.
  image = np.random.default_rng(0).integers(0, 256, (32, 32, 3), np.uint8).repeat(2, 0)
  merged, instance = runs['merged'], runs['instance']
  batch, _ = pipeline.prepare_image(image, merged.run.experiment.input)
  found = apply(merged, batch['image'], batch['size'])
  seen, _ = pipeline.prepare_image(image, instance.run.experiment.input)
  expected = apply(instance, seen['image'], seen['size'])
  jax.tree.map(np.testing.assert_array_equal, found['detections'], expected['detections'])
  scores = semantic_scores(runs, image)
  assert batch['image'].shape == (1, 64, 64, 3) and scores.std((0, 1)).max() > 0.1
  np.testing.assert_allclose(found['semantic'][0, :64, :32], scores, atol=1e-4)


def test_it_is_evaluated_like_any_run_without_its_parts(runs, parts, merged, capsys):
  """Without confident detections, the result is that of the U-Net."""
  builder, spec = load_dataset(runs['merged'].run.experiment)
  stuff = [k for k in range(spec.num_classes) if k not in spec.things]
  true, found = np.zeros(len(stuff), int), np.zeros(len(stuff), int)
  for example in builder.as_data_source('val[:4]'):
    label = semantic_scores(runs, example['image']).argmax(-1)
    found += [(label == k).sum() >= 64 for k in stuff]
    true += [(example['label'] == k).any() for k in stuff]
  assert found.any()
  with moved(parts):
    unsure = '--config.eval.score_threshold=1.0'
    metrics = commands.output(capsys, 'evaluate', f'--workdir={merged}', unsure)
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
  (folder / 'table.toml').write_text(TABLE.format(**parts))
  recording = ['table', folder, '--record', f'both.small={merged}', f'--workdirs={tmp_path}']
  assert commands.run(*recording) == 0
  [record] = results.read_results(spec_lib.read_table(folder))
  assert record.weights == 'instance: instance, semantic: semantic'
  assert record.steps == 0 and 'pq' in record.metrics
  with moved(parts):  # the page does not need the parts
    capsys.readouterr()
    assert commands.run('table', folder) == 0
    assert '| Both ' in capsys.readouterr().out
    message = commands.fails(capsys, 'table', folder, '--record', f'both.small={merged}')
  assert 'is not the workdir of a run' in message


@pytest.mark.parametrize(
  ('args', 'message'),
  [
    (['--config.train.steps=2'], 'config.train.steps: a merged network is not trained'),
    (['--config.model.semantic={instance}'], 'name one of the task semantic'),
    (['--config.model.semantic={tmp_path}'], 'is not the workdir of a run'),
  ],
)
def test_what_cannot_be_merged(parts, tmp_path, capsys, args, message):
  args = [arg.format(**parts, tmp_path=tmp_path) for arg in args]
  assert message in commands.fails(capsys, *merged_args(parts, tmp_path / 'new', *args))


def test_the_same_command_again(parts, merged):
  assert commands.run(*merged_args(parts, merged)) == 0
