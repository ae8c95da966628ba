"""Experiments: typed configs, validation, and error messages."""

import dataclasses
import importlib
import inspect
import itertools
import json
import pkgutil
import typing

import flax.linen as nn
import pytest

import segjax.models
from segjax import config as config_lib
from segjax import experiment
from segjax.data.builders.folder.builder import Options as Folder
from segjax.data.weight_map import border_weight_map
from segjax.experiment import GROUPS, LINEN, parse, task_module
from segjax.models.unet import UNet
from segjax.types import Range, SegjaxError

UNET = {
  'task': 'semantic',
  'model': {'name': 'unet.UNet', 'classes': 9, 'padding': 'same'},
  'losses': {'softmax_cross_entropy': {'class_weights': 'median_frequency'}, 'dice': {'scale': 2}},
  'data': {'name': 'scenes', 'size': {'image_size': (64, 64)}, 'weight_map': {'w0': 5}},
}
MASK_RCNN = {
  'task': 'instance',
  'model': {'name': 'mask_rcnn.MaskRCNN', 'classes': 5, 'backbone': {'width': 4}},
  'losses': {'rpn_class': {}, 'rpn_box': {}, 'box_class': {}, 'box_regression': {}, 'mask': {}},
  'data': {'name': 'scenes'},
  'batch': {'max_objects': 16},
}
PANOPTIC = {
  **MASK_RCNN,
  'task': 'panoptic',
  'model': {**MASK_RCNN['model'], 'name': 'panoptic_fpn.PanopticFPN', 'stuff': 4},
  'losses': {**MASK_RCNN['losses'], 'semantic': {}},
}
EOMT = {
  'task': 'semantic',
  'model': {'name': 'eomt.EoMT', 'classes': 9, 'size': 'tiny'},
  'losses': {'query_class': {}, 'query_dice': {}},
  'data': {'name': 'scenes', 'size': {'image_size': (64, 64)}},
}
MERGED = {
  'task': 'panoptic',
  'model': {
    'name': 'merged.Merged',
    'semantic': UNET['model'],
    'instance': {**MASK_RCNN['model'], 'rpn': {'convs': 2}},
  },
  'data': {'name': 'scenes'},
  'train': {'steps': 0},
  'init_from': {'path': {'semantic': 'runs/a', 'instance': 'runs/b'}},
}


def changed(given, *overrides):
  return config_lib.override(given, [(k, repr(v)) for k, v in overrides])


@pytest.mark.parametrize('given', [UNET, MASK_RCNN, PANOPTIC, EOMT, MERGED])
def test_an_experiment_reads_back(given):
  one = parse(given)
  content = json.loads(config_lib.to_json(one.to_dict()))
  assert parse(content) == one
  assert parse(content).digest == one.digest == config_lib.digest(content)
  assert set(content) == set(experiment.KEYS)
  assert parse(changed(content, ('train.seed', 1))) != one


def test_parts_are_typed():
  unet, mask_rcnn, merged = map(parse, (UNET, MASK_RCNN, MERGED))
  assert unet.data.size.image_size == (64, 64) and unet.batch.size == 8
  assert unet.data.weight_map['w0'] == 5.0 and unet.data.weight_map['sigma'] == 5.0
  assert unet.losses['dice'].scale == 2.0 and unet.losses['dice'].rule is None
  assert unet.losses['softmax_cross_entropy'].rule == 'median_frequency'
  assert unet.eval.metrics == ('confusion',)
  assert unet.init_from is None
  assert unet.input.annotations == ('label',)
  assert unet.input.data is unet.data
  assert mask_rcnn.model.backbone.width == 4 and mask_rcnn.model.rpn.samples == 256
  assert mask_rcnn.model_config['rpn']['samples'] == 256
  assert merged.model.instance.rpn.convs == 2 and merged.model.semantic.classes == 9
  assert merged.model_config['instance']['rpn']['convs'] == 2
  assert merged.init_from.path == {'semantic': 'runs/a', 'instance': 'runs/b'}
  with pytest.raises(dataclasses.FrozenInstanceError):
    unet.task = 'instance'


def test_none_leaves_out_a_loss_and_a_start():
  given = config_lib.override(UNET, [('losses.dice', 'none'), ('init_from', 'none')])
  assert set(parse(given).losses) == {'softmax_cross_entropy'}
  assert parse(given).to_dict()['init_from'] is None


def test_a_transform_of_ones_own_is_completed(tmp_path, monkeypatch):
  (tmp_path / 'own_noise.py').write_text('def noise(rng, sample, strength: float = 0.5): ...')
  monkeypatch.syspath_prepend(tmp_path)
  given = {**UNET, 'augment': {'transforms': ({'name': 'own_noise.noise'},)}}
  one = parse(given)
  assert one.augment.transforms == ({'name': 'own_noise.noise', 'strength': 0.5},)
  assert parse(one.to_dict()) == one
  given['augment']['transforms'][0]['strenght'] = 1
  with pytest.raises(SegjaxError, match=r'transforms\[0\]\.strenght is not a key'):
    parse(given)


LOSSES = """
def brightness(logits, target, weight=None, *, power: float = 2.0): ...
def short(logits, label): ...
def scaled(logits, label, weight, scale: float = 3.0): ...
"""


def test_losses_of_ones_own_and_one_loss_twice(tmp_path, monkeypatch):
  (tmp_path / 'own_losses.py').write_text(LOSSES)
  monkeypatch.syspath_prepend(tmp_path)
  losses = {
    'softmax_cross_entropy': {},
    'bright': {'name': 'own_losses.brightness', 'scale': 0.5},
    'brighter': {'name': f'{tmp_path}/own_losses.py:brightness', 'power': 3},
    'dice_of_two': {'name': 'dice', 'scale': 2},
  }
  one = parse({**UNET, 'losses': losses})
  assert {key: loss.function.__name__ for key, loss in one.losses.items()} == {
    'softmax_cross_entropy': 'softmax_cross_entropy',
    'bright': 'brightness',
    'brighter': 'brightness',
    'dice_of_two': 'dice',
  }
  assert one.losses['bright'].arguments == {'power': 2.0}
  assert one.losses['brighter'].arguments == {'power': 3.0}
  assert 'name' not in one.to_dict()['losses']['softmax_cross_entropy']
  assert parse(one.to_dict()) == one
  for change, message in (
    ({'pwoer': 1}, r'losses\.bright\.pwoer is not a key: did you mean power'),
    ({'name': 'own_losses.brightnes'}, r'losses\.bright\.name: own_losses has no brightnes'),
    ({'name': 3}, r'config\.losses\.bright\.name=3 has the wrong type'),
    ({'name': 'dise'}, r'config\.losses\.bright\.name: segjax\.losses\.dense has no dise'),
    ({'name': 'own_losses.short'}, r'short takes 2 parameters: it takes logits, label, weight'),
    ({'name': 'own_losses.scaled'}, r'scaled has a parameter scale: it takes logits, label, we'),
  ):
    with pytest.raises(SegjaxError, match=message):
      parse({**UNET, 'losses': {'bright': {**losses['bright'], **change}}})


def test_a_trained_run_needs_no_code_that_it_does_not_use():
  """Of one's own data set, transforms, losses and metrics; what is there is checked."""
  given = {
    **parse(UNET).to_dict(),
    'data': {**UNET['data'], 'name': 'nowhere.py:Data', 'files': {'a': 1}, 'weight_map': None},
    'augment': {'transforms': ({'name': 'nowhere.noise', 'strength': 1},)},
    'losses': {'mine': {'name': 'nowhere.loss', 'power': 2.0}},
    'eval': {'metrics': ('confusion', 'nowhere.metric')},
  }
  one = parse(given, trained=True)
  assert one.losses['mine'].arguments == {'power': 2.0}
  assert parse(one.to_dict(), trained=True).to_dict() == one.to_dict()
  assert one.data.files == {'a': 1} and one.augment.transforms[0]['strength'] == 1
  with pytest.raises(SegjaxError, match='there is no module nowhere'):
    one.losses['mine'].function(None, None, None)
  for key in ('data', 'augment', 'losses', 'eval'):
    alone = {**parse(UNET).to_dict(), key: given[key]}
    with pytest.raises(SegjaxError, match='nowhere'):
      parse(alone)
  with pytest.raises(SegjaxError, match='dcie'):
    parse({**given, 'losses': {'dcie': {}}}, trained=True)


@pytest.mark.parametrize(
  ('given', 'metrics', 'best'),
  [
    (UNET, ('confusion',), 'mean_iou'),
    (UNET, ('boundary', 'confusion'), 'mean_iou'),
    (UNET, ('boundary',), 'boundary_f1'),
    (UNET, ('isbi',), 'v_rand'),
    (MASK_RCNN, ('coco',), 'mask_ap'),
    (MASK_RCNN, ('coco_box',), 'box_ap'),
    (MERGED, ('pq', 'coco'), 'pq'),
  ],
)
def test_the_best_metric_is_that_of_the_task_if_it_is_measured(given, metrics, best):
  given = {**given, 'eval': {'metrics': metrics}}
  one = parse(given)
  assert one.train.best_metric == one.to_dict()['train']['best_metric'] == best
  with pytest.raises(SegjaxError, match=r'config\.train\.best_metric is missing'):
    parse({**given, 'eval': {'metrics': ()}})
  other = parse({**given, 'train': {**given.get('train', {}), 'best_metric': 'loss'}})
  assert other.train.best_metric == 'loss'


@pytest.mark.parametrize(
  ('train', 'mode'),
  [
    ({}, 'max'),
    ({'best_metric': 'boundary_f1'}, 'max'),
    ({'best_metric': 'of_my_own'}, 'max'),
    ({'best_metric': 'loss'}, 'min'),
    ({'best_metric': 'loss_dice'}, 'min'),
    ({'best_metric': 'rand_error'}, 'min'),
    ({'best_metric': 'loss', 'best_mode': 'max'}, 'max'),
    ({'best_mode': 'min'}, 'min'),
  ],
)
def test_the_best_loss_is_the_smallest(train, mode):
  one = parse({**UNET, 'train': train})
  assert experiment.best_mode(one.train) == mode
  # What is frozen leaves the choice to a metric that is set later.
  later = config_lib.override(one.to_dict(), [('train.best_metric', 'loss')])
  if 'best_mode' not in train:
    assert experiment.best_mode(parse(later).train) == 'min'


# Values of the right type that are out of range or inconsistent.
BAD = [
  (UNET, 'train.seed', 99999999999999999999, 'must be in [0, 4294967295]'),
  (UNET, 'train.seed', -1, 'must be in [0, 4294967295]'),
  (UNET, 'train.steps', -1, 'must be'),
  (UNET, 'train.log_every', 0, 'must be 1 or greater'),
  (UNET, 'train.eval_every', 0, 'must be 1 or greater'),
  (UNET, 'train.checkpoint_every', 0, 'must be 1 or greater'),
  (UNET, 'train.keep', 0, 'must be 1 or greater'),
  (UNET, 'train.images', -1, 'must be 0 or greater'),
  (UNET, 'train.max_skipped', -1, 'must be 0 or greater'),
  (UNET, 'optim.learning_rate', -1, 'must be 0 or greater'),
  (UNET, 'optim.learning_rate', 10**400, 'must be a finite number'),
  (UNET, 'optim.warmup_steps', -1, 'must be 0 or greater'),
  (UNET, 'optim.warmup_steps', 1000, 'must be less than config.train.steps=1000'),
  (UNET, 'optim.accumulate', 0, 'must be 1 or greater'),
  (UNET, 'optim.accumulate', 3, 'does not divide config.batch.size=8'),
  (UNET, 'optim.ema', 1.0, 'must be in [0, 1)'),
  (UNET, 'optim.momentum', 2.0, 'must be'),
  (UNET, 'optim.weight_decay', -0.1, 'must be 0 or greater'),
  (UNET, 'optim.clip_norm', -1.0, 'must be'),
  (UNET, 'model.width', 0, 'must be 1 or greater'),
  (UNET, 'model.classes', 0, 'must be 1 or greater'),
  (UNET, 'model.dropout', 1.5, 'must be in [0, 1'),
  (UNET, 'model.depth', -1, 'must be'),
  (UNET, 'model.depth', 40, 'must be'),
  (UNET, 'losses.dice.scale', -1, 'must be 0 or greater'),
  (UNET, 'losses.dice.smooth', -1.0, 'must be'),
  (UNET, 'eval.samples', -1, 'must be 0 or greater'),
  (UNET, 'batch.size', 0, 'must be 1 or greater'),
  (UNET, 'batch.workers', -1, 'must be 0 or greater'),
  (UNET, 'data.size.image_size', (0, 64), '[0]=0 must be 1 or greater'),
  (UNET, 'data.std', (0.0,), '[0]=0.0 must be greater than 0'),
  (UNET, 'data.weight_map.sigma', 0.0, 'must be greater than 0'),
  (UNET, 'augment.flip_horizontal', 1.5, 'must be in [0, 1]'),
  (UNET, 'augment.scale', (2.0, 1.0), 'must be (low, high)'),
  (UNET, 'mesh.data', 0, 'must be 1 or greater'),
  (UNET, 'mesh.space', 0, 'must be 1 or greater'),
  (UNET, 'batch.max_segments', 3, 'is for tasks that read segments'),
  (MASK_RCNN, 'model.backbone.width', 0, 'must be 1 or greater'),
  (MASK_RCNN, 'model.rpn.anchor_sizes', (8.0,), 'the FPN has 5 levels'),
  (MASK_RCNN, 'model.rpn.samples', 1, 'leaves no positive anchor: raise it to at least 2'),
  (MASK_RCNN, 'model.rpn.nms_iou', 1.5, 'must be in [0, 1]'),
  (MASK_RCNN, 'model.rpn.train_proposals', (0, 1), '[0]=0 must be 1 or greater'),
  (MASK_RCNN, 'model.box_head.samples', 0, 'must be 1 or greater'),
  (MASK_RCNN, 'model.box_head.max_detections', 0, 'must be 1 or greater'),
  (MASK_RCNN, 'model.mask_head.activation', 'softmax', "losses.mask.activation='sigmoid' but"),
  (MASK_RCNN, 'model.roi.sampling_ratio', -1, 'must be 0 or greater'),
  (MASK_RCNN, 'batch.max_objects', 0, 'must be 1 or greater'),
  (MASK_RCNN, 'losses', {}, 'is empty: name a loss'),
  (MASK_RCNN, 'eval.scales', (), 'set at least one scale'),
  (MASK_RCNN, 'eval.scales', (0.0,), '[0]=0.0 must be greater than 0'),
  (MASK_RCNN, 'eval.draw_threshold', 2.0, 'must be in [0, 1]'),
  (
    EOMT,
    'data.size.image_size',
    (64, 100),
    '=64x100 is not a multiple of config.model.patch=16: set it',
  ),
  (EOMT, 'data.size.crop_size', (40, 32), '=40x32 is not a multiple of config.model.patch=16'),
  (EOMT, 'data.size.shapes', ((64, 64), (64, 72)), 'shapes[1]=64x72 is not a multiple of'),
  (EOMT, 'eval.tile', (64, 50), '=64x50 is not a multiple of config.model.patch=16'),
  (EOMT, 'eval.overlap', 5, '=5 is not a multiple of config.model.patch=16'),
  (EOMT, 'eval.window', (50, 50), '=50x50 is not a multiple of config.model.patch=16'),
  (EOMT, 'model.queries', 0, 'must be 1 or greater'),
  (EOMT, 'model.patch', 14, 'must be one of 4, 8, 16, 32'),
  (UNET, 'eval', {'tile': (32, 32), 'window': (32, 32)}, 'config.eval.tile and window'),
  (MERGED, 'model.instance.box_head.samples', 0, 'must be 1 or greater'),
  (MERGED, 'model.semantic.width', 0, 'must be 1 or greater'),
  (MERGED, 'model.semantic', EOMT['model'], 'is of EoMT, which cannot be merged'),
  (MERGED, 'model.instance', EOMT['model'], 'is of EoMT, which cannot be merged'),
]


@pytest.mark.parametrize(('given', 'key', 'value', 'message'), BAD)
def test_a_bad_value_is_one_sentence(given, key, value, message):
  with pytest.raises(SegjaxError) as e:
    parse(put(given, key, value))
  text = str(e.value)
  assert f'config.{key}' in text or (key.endswith('activation') and f'model.{key[6:]}' in text)
  assert message in text
  assert '\n' not in text


def put(given, key, value):
  *groups, last = key.split('.')
  if not groups:
    return {**given, last: value}
  return {**given, groups[0]: put(given.get(groups[0], {}), '.'.join([*groups[1:], last]), value)}


@pytest.mark.parametrize(
  ('change', 'message'),
  [
    ({'dtaa': {}}, 'config.dtaa is not a key: did you mean data'),
    ({'data': 3}, 'config.data=3 has the wrong type: it takes a group of keys'),
    ({'model': 3}, 'config.model=3 has the wrong type: it takes a group of keys'),
    ({'losses': 3}, 'config.losses=3 has the wrong type: it takes a group of keys'),
    ({'losses': {'dice': 3}}, 'config.losses.dice=3 has the wrong type'),
    ({'losses': {'dcie': {}}}, 'config.losses: segjax.losses.dense has no dcie: did you mean dice'),
    ({'losses': {'dice': {'class_weights': 'median'}}}, "class_weights='median' is .*rule"),
    ({'init_from': 'runs/c'}, "config.init_from='runs/c' has the wrong type"),
    ({'ignore_index': 3}, 'config.ignore_index is not a key: did you mean config.data.files.void'),
    ({'optim': {'lr': 3}}, 'config.optim.lr is not a key: did you mean config.optim.learning_rate'),
    ({'eval': {'tiel': 3}}, 'config.eval.tiel is not a key: did you mean tile'),
    ({'task': 3}, 'config.task=3 has the wrong type'),
    ({'task': 'semantics'}, 'config.task: there is no module semantics: did you mean semantic'),
    ({'model': {**UNET['model'], 'name': None}}, 'config.model.name=None has the wrong type'),
  ],
)
def test_a_bad_group_is_one_sentence(change, message):
  with pytest.raises(SegjaxError, match=message):
    parse({**UNET, **change})


def test_keys_of_other_toolkits_lead_to_keys_that_there_are():
  groups = {**GROUPS, 'files': Folder, 'model': UNet}
  for key in itertools.chain(*config_lib._ELSEWHERE.values()):
    *_, group, name = key.split('.')
    assert name in config_lib.arguments(groups[group])


@pytest.mark.parametrize('key', ['task', 'model', 'data'])
def test_what_every_config_says(key):
  with pytest.raises(SegjaxError, match=f'config.{key} is missing: see configs/unet/scenes.py'):
    parse({k: v for k, v in UNET.items() if k != key})


def started(given):
  """The experiment of a config, as a run begins with it."""
  one = parse(given)
  experiment.check_start(one)
  return one


@pytest.mark.parametrize(
  ('given', 'key', 'value', 'message'),
  [
    (EOMT, 'data.weight_map', {}, 'is for losses of pixels: those of EoMT on the task semantic'),
    (PANOPTIC, 'data.weight_map', {'w0': 5}, 'those of PanopticFPN on the task panoptic'),
    (UNET, 'model.padding', 'valid', 'eval.overlap=8: .* is 92 pixels, always: set it to 0'),
    (UNET, 'eval.metrics', ('isbi',), 'isbi is for two classes, .*model.classes=9: leave it out'),
    (UNET, 'data.mean', (0.485, 0.456, 0.406), 'are of pixel values 0 to 1: multiply both by 255'),
    (UNET, 'data.std', (0.229, 0.224, 0.225), 'are of pixel values 0 to 1: multiply both by 255'),
  ],
)
def test_what_a_run_starts_with_does_what_it_says(given, key, value, message):
  if key == 'model.padding':
    given = put(put(given, 'eval', {'overlap': 8}), 'data.size.image_size', 'none')
  given = put(given, key, value)
  assert parse(given), 'what has begun may go on'
  with pytest.raises(SegjaxError, match=message):
    started(given)


def test_one_class_leaves_the_softmax_nothing_to_distinguish():
  one = put(put(UNET, 'model.classes', 1), 'losses', {'mine': {'name': 'softmax_cross_entropy'}})
  with pytest.raises(SegjaxError, match=r'config\.model\.classes=1 .*: name the background'):
    started(one)
  assert started(put(one, 'losses.dice', {})).model.classes == 1
  assert started(put(one, 'train.steps', 0)).model.classes == 1
  assert parse({**one, 'train': {}}), 'what has begun may go on'


@pytest.mark.parametrize(
  ('given', 'name', 'needed'),
  [
    *((MASK_RCNN, name, name) for name in MASK_RCNN['losses']),
    (PANOPTIC, 'semantic', 'semantic'),
    (EOMT, 'query_class', 'query_class'),
    (EOMT, 'query_dice', 'query_mask or query_dice'),
  ],
)
def test_every_part_of_a_network_has_a_loss(given, name, needed):
  with pytest.raises(SegjaxError, match=rf'config\.losses\.{needed} is missing: .* scale to 0'):
    started(put(given, f'losses.{name}', 'none'))
  renamed = put(given, f'losses.{name}', 'none')
  assert started(put(renamed, 'losses.mine', {'name': name, 'scale': 0})).losses['mine'].scale == 0
  assert name not in started(put(renamed, 'train.steps', 0)).losses
  own = {'name': 'segjax.losses.detection.mask'}
  assert len(started(put(renamed, 'losses.mine', own)).losses) == len(given['losses'])
  if name == 'mask':
    faster = put(put(renamed, 'model.masks', False), 'eval.metrics', ('coco_box',))
    assert not started(faster).model.masks


def test_a_mean_over_the_image_is_normalized_over_several_images():
  given = put(UNET, 'model', {'name': 'deeplab.DeepLabV3', 'classes': 9})
  assert started(put(given, 'batch.size', 2))
  with pytest.raises(
    SegjaxError, match=r'batch\.size=1: .* DeepLabV3 needs 2 images at once, not 1'
  ):
    started(put(given, 'batch.size', 1))
  parts = put(put(given, 'batch.size', 4), 'optim.accumulate', 4)
  with pytest.raises(SegjaxError, match=r'batch\.size=4 in 4 parts: .*model\.norm=group'):
    started(parts)
  assert started(put(parts, 'model.norm', 'group'))
  assert started(put(put(given, 'batch.size', 1), 'train.steps', 0))
  assert parse(parts), 'what has begun may go on'


def test_attention_is_annealed_before_the_end():
  given = put(put(EOMT, 'model.annealing', ((0, 50), (50, 99), (20, 30))), 'train.steps', 100)
  assert started(given).train.steps == 100
  assert started(put(given, 'train.steps', 0)).train.steps == 0
  with pytest.raises(SegjaxError, match=r'annealing ends at step 99, not .*steps=99: .*\(\)'):
    started(put(given, 'train.steps', 99))
  assert started(put(put(given, 'train.steps', 99), 'model.annealing', ()))


def test_without_training_neither_losses_nor_the_warmup_matter():
  given = {**UNET, 'losses': {}, 'train': {'steps': 0}, 'optim': {'warmup_steps': 9}}
  assert parse(given).losses == {}
  assert parse({**UNET, 'train': {'steps': 10}, 'optim': {'warmup_steps': 9}})


# --- every number has a range ---------------------------------------------------------------------


def members(package, fits):
  """The objects defined in the modules of a package that satisfy a predicate."""
  for info in pkgutil.iter_modules(package.__path__, f'{package.__name__}.'):
    module = importlib.import_module(info.name)
    for name, value in vars(module).items():
      if getattr(value, '__module__', None) == info.name and fits(name, value):
        yield value


def schemas():
  """Each schema of a config, and its arguments that are not config keys."""
  is_network = lambda name, value: (
    inspect.isclass(value) and issubclass(value, nn.Module) and not name.startswith('_')
  )
  for group in GROUPS.values():
    for hint in typing.get_args(group) or (group,):
      if dataclasses.is_dataclass(hint):
        yield hint, ()
  yield border_weight_map, ('label',)
  for network in members(segjax.models, is_network):
    yield network, LINEN
  for name in ('semantic', 'instance', 'panoptic'):
    module = task_module(name)
    yield module.EvalConfig, ()
    losses = importlib.import_module(module.LOSSES)
    for loss, function in vars(losses).items():
      public = inspect.isfunction(function) and not loss.startswith('_')
      if public and set(module.LOSS_INPUTS) <= set(inspect.signature(function).parameters):
        yield function, module.LOSS_INPUTS


def unbounded(hint, ranged=False):
  """Whether the hint accepts a number without a range; groups have their own schema."""
  origin, args = typing.get_origin(hint), typing.get_args(hint)
  if origin is typing.Annotated:
    return unbounded(args[0], any(isinstance(m, Range) for m in hint.__metadata__))
  if origin is typing.Literal:
    return False
  if dataclasses.is_dataclass(hint) and not origin:
    return any(list_unbounded(hint, ()))
  if args:
    return any(unbounded(a) for a in args if a is not Ellipsis and not isinstance(a, list))
  return hint in (int, float) and not ranged


def list_unbounded(target, injected):
  hints = config_lib.type_hints(target)
  for key in config_lib.arguments(target, injected=injected):
    if unbounded(hints.get(key, typing.Any)):
      yield f'{target.__module__}.{target.__qualname__}.{key}'


def test_every_number_of_a_config_has_a_range():
  seen = dict(schemas())
  assert len(seen) > 25, 'groups, networks, losses and evaluations'
  missing = [key for target, injected in seen.items() for key in list_unbounded(target, injected)]
  assert not missing
