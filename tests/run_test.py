"""Assembly of a run from an experiment and a data set, and incompatible combinations."""

import json

import jax
import numpy as np
import pytest

from segjax import run as run_lib
from segjax.data.datasets import DatasetSpec
from segjax.experiment import parse
from segjax.types import SegjaxError
from segjax.workdir import Workdir

SEMANTIC = {
  'task': 'semantic',
  'model': {'name': 'unet.UNet', 'classes': 3, 'width': 2, 'depth': 1, 'padding': 'same'},
  'losses': {'softmax_cross_entropy': {'class_weights': 'median_frequency', 'scale': 2}},
  'data': {'name': 'scenes', 'size': {'image_size': (8, 8)}},
}
INSTANCE = {
  'task': 'instance',
  'model': {'name': 'mask_rcnn.MaskRCNN', 'classes': 2},
  'losses': {'rpn_class': {}, 'rpn_box': {}, 'box_class': {}, 'box_regression': {}, 'mask': {}},
  'data': {'name': 'scenes'},
}
PANOPTIC = {
  **INSTANCE,
  'task': 'panoptic',
  'model': {'name': 'panoptic_fpn.PanopticFPN', 'classes': 2, 'stuff': 1},
  'losses': {**INSTANCE['losses'], 'semantic': {}},
}
EOMT = {
  'task': 'semantic',
  'model': {'name': 'eomt.EoMT', 'classes': 4, 'size': 'tiny'},
  'losses': {'query_class': {}, 'query_mask': {}},
  'data': {'name': 'scenes', 'size': {'image_size': (32, 32)}},
}
# Fewer channels than by default, for speed.
NARROW = {'backbone': {'width': 4}, 'neck': {'features': 8}, 'box_head': {'hidden': 16}}
HEADS = {'box/score', 'box/deltas', 'mask/score'}
MERGED = {
  'task': 'panoptic',
  'model': {'name': 'merged.Merged', 'semantic': 'runs/a', 'instance': 'runs/b'},
  'data': {'name': 'scenes'},
  'train': {'steps': 0},
}


def make_spec(classes=3, things=None):
  names, palette = tuple(f'class {i}' for i in range(classes)), np.zeros((classes, 3), np.uint8)
  return DatasetSpec('made', '1.0.0', names, palette, 3, {'train': 4}, things)


def test_losses_have_their_scale_and_their_weights():
  one = parse(SEMANTIC)
  run = run_lib.build(one, make_spec(), {'median_frequency': [1.0, 2.0, 0.0]})
  assert run.model is one.model and run.task.batch_spec
  logits, label = np.zeros((1, 1, 3, 3), np.float32), np.arange(3).reshape(1, 1, 3)
  losses = run.task.losses({'logits': logits}, {'label': label})
  total, count = losses['softmax_cross_entropy']
  np.testing.assert_allclose(total, 2 * np.log(3) * (1 + 2), rtol=1e-6)
  assert count == 3


def test_class_weights_are_counted_where_a_rule_is_named():
  counts = (np.array([8, 4, 4]), np.array([16, 16, 16]))
  found = run_lib.find_class_weights(parse(SEMANTIC), lambda: counts)
  assert found == {'median_frequency': [0.5, 1.0, 1.0]}
  without = {**SEMANTIC, 'losses': {'dice': {'class_weights': (1.0, 2.0, 3.0)}}}
  assert run_lib.find_class_weights(parse(without), lambda: 1 / 0) == {}


@pytest.mark.parametrize(
  ('loss', 'classes', 'right', 'wrong'),
  [('dice', 3, 3, 2), ('focal', 3, 3, 4), ('focal', 1, 2, 1), ('dice', 1, 1, 2)],
)
def test_class_weights_are_as_many_as_the_classes(loss, classes, right, wrong):
  def build(weights):
    losses = {'mine': {'name': loss, 'class_weights': [1.0] * weights}}
    model = {**SEMANTIC['model'], 'classes': classes}
    return run_lib.build(
      parse({**SEMANTIC, 'model': model, 'losses': losses}), make_spec(classes), {}
    )

  assert build(right).task
  message = rf'config\.losses\.mine\.class_weights has {wrong} values and needs {right}, one for '
  message += (
    'the background and for the class' if loss == 'focal' and classes == 1 else 'each class'
  )
  with pytest.raises(SegjaxError, match=message):
    build(wrong)


@pytest.mark.parametrize(
  ('given', 'spec', 'message'),
  [
    (SEMANTIC, make_spec(4), 'config.model.classes=3 but the data set made has 4 classes: set'),
    (INSTANCE, make_spec(3, (0, 1, 2)), 'config.model.classes=2 but .* 3 classes'),
    (PANOPTIC, make_spec(3, (2,)), 'config.model.classes=2 but .* 1 classes of things'),
    (EOMT, make_spec(3), 'config.model.classes=4 but the data set made has 3 classes'),
    ({**EOMT, 'task': 'instance'}, make_spec(5, range(5)), 'config.model.classes=4 but .* 5 class'),
    ({**EOMT, 'task': 'panoptic'}, make_spec(3, (2,)), 'config.model.classes=4 but .* 3 classes: '),
    (PANOPTIC, make_spec(4, (2, 3)), 'config.model.stuff=1 but .* 2 classes of stuff'),
    (
      {
        **MERGED,
        'model': {
          **MERGED['model'],
          'semantic': SEMANTIC['model'],
          'instance': {**INSTANCE['model'], 'classes': 3},
        },
      },
      make_spec(3, (1, 2)),
      'config.model.instance.classes=3 but .* 2 classes of things',
    ),
  ],
)
def test_the_network_has_the_classes_of_the_data_set(given, spec, message):
  with pytest.raises(SegjaxError, match=message):
    run_lib.build(parse(given), spec, {'median_frequency': [1.0] * 3})


def test_parameters_are_counted_without_an_image():
  """A 3x3 convolution to 2 channels, a second one, and so on: counted by hand."""
  conv = lambda size, inside, out: size * size * inside * out + out
  block = lambda inside, out: conv(3, inside, out) + conv(3, out, out)
  up = conv(2, 4, 2)
  expected = block(3, 2) + block(2, 4) + up + block(4, 2) + conv(1, 2, 3)
  one = parse(SEMANTIC)
  assert run_lib.parameter_count(one, 3) == expected
  assert run_lib.parameter_count(one, 1) == expected - 9 * 2 * 2


@pytest.mark.parametrize(
  ('given', 'layers'),
  [
    (SEMANTIC, {'head'}),
    (
      {**SEMANTIC, 'model': {'name': 'fcn.FCN', 'classes': 3, 'variant': '16s'}},
      {'score_fr', 'score_pool4', 'upscore2'},
    ),
    ({**INSTANCE, 'model': {**INSTANCE['model'], **NARROW}}, HEADS),
    ({**PANOPTIC, 'model': {**PANOPTIC['model'], **NARROW}}, {*HEADS, 'semantic/score'}),
    # One mask for all classes does not depend on them.
    (
      {**INSTANCE, 'model': {**INSTANCE['model'], **NARROW, 'mask_head': {'class_agnostic': True}}},
      HEADS - {'mask/score'},
    ),
  ],
)
def test_class_specific_layers(given, layers):
  found = run_lib.class_specific(parse(given), 3)
  assert {pattern[1:-1].rpartition('/')[0] for pattern in found} == layers


def test_the_mesh_splits_an_image_where_the_task_does():
  one = parse({**SEMANTIC, 'mesh': {'data': 2, 'space': 2}})
  weights = {'median_frequency': [1.0] * 3}
  assert dict(run_lib.make_mesh(run_lib.build(one, make_spec(), weights)).shape) == {
    'data': 2,
    'space': 2,
  }
  one = parse({**INSTANCE, 'mesh': {'data': 1, 'space': 2}})
  with pytest.raises(SegjaxError, match='config.mesh.space=2: the task instance does not split'):
    run_lib.make_mesh(run_lib.build(one, make_spec(2, (0, 1)), {}))
  one = parse({**EOMT, 'mesh': {'data': 1, 'space': 2}})
  with pytest.raises(SegjaxError, match='space=2: the task semantic with EoMT does not split'):
    run_lib.make_mesh(run_lib.build(one, make_spec(4), {}))


@pytest.fixture
def frozen(tmp_path):
  """Freezes a config in a workdir that has a data set and no checkpoint."""

  def freeze(name, given):
    workdir = Workdir(str(tmp_path / name))
    workdir.path.mkdir()
    workdir.write_config(parse(given).to_dict())
    workdir.write_dataset({'spec': make_spec().to_json(), 'class_weights': {}})
    return workdir

  return freeze


def test_an_evaluation_knows_its_mesh(monkeypatch):
  """By which each device has its own images, see `segjax.ops.by_image`."""
  seen = []

  def eval_step(variables, batch):
    seen.append(dict(jax.sharding.get_abstract_mesh().shape))
    return {}, (), {}, variables

  monkeypatch.setattr(run_lib.step, 'make_eval_step', lambda task: eval_step)
  monkeypatch.setattr(run_lib.pipeline, 'check_objects', lambda *_: None)
  run = run_lib.build(parse(SEMANTIC), make_spec(), {'median_frequency': [1.0] * 3})
  evaluator = run_lib.Evaluator(run, (None, None), 'val', run_lib.make_mesh(run), 0)
  evaluator._eval_step(np.zeros(4, np.float32), {})
  assert seen == [{'data': 4, 'space': 1}]


def test_a_merged_network_without_masks_names_the_key_of_its_part():
  model = {
    'name': 'merged.Merged',
    'semantic': SEMANTIC['model'],
    'instance': {**INSTANCE['model'], 'masks': False},
  }
  given = {**MERGED, 'model': model, 'init_from': {'path': {'semantic': 'a', 'instance': 'b'}}}
  with pytest.raises(SegjaxError, match=r'^config\.model\.instance\.masks: .* set it to true'):
    run_lib.build(parse(given), make_spec(3, (1, 2)), {})


def test_two_runs_become_a_merged_one(frozen):
  paths = {
    'semantic': str(frozen('a', SEMANTIC).path),
    'instance': str(frozen('b', INSTANCE).path),
  }
  one = run_lib.resolve({**MERGED, 'model': {'name': 'merged.Merged', **paths}})
  assert one.model.semantic == parse(SEMANTIC).model
  assert one.model.instance == parse(INSTANCE).model
  assert one.model.semantic_size == (8, 8) and one.init_from.path == paths
  assert run_lib.resolve(json.loads(json.dumps(one.to_dict()))) == one, 'frozen, it is complete'


def test_what_was_trained_stays_as_it_is(frozen):
  workdir = frozen('a', SEMANTIC)
  with pytest.raises(SegjaxError, match='config.model.width belongs to the training of'):
    run_lib.load_run(workdir, 'latest', [('model.width', '3')])
  with pytest.raises(SegjaxError, match='config.batch.size=0 must be 1 or greater'):
    run_lib.load_run(workdir, 'latest', [('batch.size', '0')])


def test_thresholds_of_inference_can_be_set_later(frozen):
  workdir = frozen('b', INSTANCE)
  with pytest.raises(SegjaxError, match=r'only config\.data, .*config\.model\.box_head\.nms_iou, '):
    run_lib.load_run(workdir, 'latest', [('model.box_head.samples', '8')])
  # The key is read, and its value checked.
  with pytest.raises(SegjaxError, match=r'config\.model\.box_head\.score_threshold=2'):
    run_lib.load_run(workdir, 'latest', [('model.box_head.score_threshold', '2.0')])


def test_without_a_checkpoint(frozen):
  workdir = frozen('a', SEMANTIC)
  assert not run_lib.is_trained(workdir)
  with pytest.raises(SegjaxError, match='has no checkpoint yet: train until the first one'):
    run_lib.restore(workdir, 'latest')


def test_the_given_config_is_a_file_or_that_of_the_workdir(frozen, tmp_path):
  workdir, path = frozen('a', SEMANTIC), tmp_path / 'config.py'
  path.write_text(
    'import ml_collections\n'
    'def get_config(size):\n'
    f'  return ml_collections.ConfigDict({{**{INSTANCE!r}, "batch": {{"size": int(size)}}}})\n'
  )
  given = run_lib.read_given(workdir, f'{path}:3', [('train.seed', '5')])
  assert parse(given).task == 'instance' and given['batch']['size'] == 3
  assert given['train'] == {'seed': 5}
  given = run_lib.read_given(workdir, None, [('train.seed', '5')])
  assert parse(given).task == 'semantic' and parse(given).train.seed == 5
