"""The config of a merged network, from those of its parts."""

import pytest

from segjax import merge
from segjax.data.config import DataConfig
from segjax.experiment import parse
from segjax.run import resolve
from segjax.types import SegjaxError

SIZE = {
  'image_size': None,
  'resize': 'stretch',
  'short_side': None,
  'longest_side': 1333,
  'interpolation': 'bilinear',
  'crop_size': None,
  'shapes': ((128, 128),),
}
RUNS = {
  'semantic': {
    'task': 'semantic',
    'model': {'name': 'unet.UNet', 'classes': 9},
    'data': {
      'mean': (100.0, 110.0, 120.0),
      'std': (50.0,),
      'size': {**SIZE, 'image_size': (64, 64), 'crop_size': (32, 32)},
    },
  },
  'instance': {
    'task': 'instance',
    'model': {'name': 'mask_rcnn.MaskRCNN', 'classes': 5},
    'data': {
      'mean': (127.5,),
      'std': (127.5,),
      'size': {**SIZE, 'shapes': ((96, 96),), 'longest_side': 700},
    },
  },
}
GIVEN = {
  'task': 'panoptic',
  'model': {'name': 'merged.Merged', 'semantic': 'runs/a', 'instance': 'runs/b'},
  'data': {'name': 'scenes'},
  'batch': {'max_objects': 9},
  'train': {'steps': 0},
}


def change(part, runs=RUNS, **size):
  data = runs[part]['data']
  return {**runs, part: {**runs[part], 'data': {**data, 'size': {**data['size'], **size}}}}


def test_networks_images_and_weights_follow_from_the_runs():
  config = merge.merged_config(GIVEN, RUNS)
  assert config['task'] == 'panoptic'
  assert config['data'] == {
    'name': 'scenes',
    'mean': (127.5,),
    'std': (127.5,),
    'size': {**SIZE, 'longest_side': 700, 'shapes': ((96, 96),)},
  }
  assert config['batch'] == {'max_objects': 9}
  model = config['model']
  assert model['name'] == 'merged.Merged'
  assert model['semantic'] == RUNS['semantic']['model']
  assert model['instance'] == RUNS['instance']['model']
  assert model['semantic_size'] == (64, 64) and model['semantic_resize'] == 'stretch'
  assert model['semantic_scale'] == (2.55, 2.55, 2.55)
  assert model['semantic_shift'] == (0.55, 0.35, 0.15)
  assert config['init_from'] == {
    'path': {'semantic': 'runs/a', 'instance': 'runs/b'},
    'checkpoint': 'best',
  }


def test_what_is_given_wins():
  given = {
    **GIVEN,
    'model': {**GIVEN['model'], 'semantic_size': (32, 32)},
    'data': {**GIVEN['data'], 'size': {'shapes': ((64, 64),)}},
    'init_from': {'checkpoint': 'latest'},
  }
  config = merge.merged_config(given, RUNS)
  assert config['model']['semantic_size'] == (32, 32)
  assert config['data']['size']['shapes'] == ((64, 64),)
  assert config['init_from']['checkpoint'] == 'latest'


FIT = {'image_size': (96, 128), 'resize': 'fit'}


@pytest.mark.parametrize(
  ('trained', 'given', 'seen'),
  [
    (FIT, {}, (None, (96, 128))),
    (FIT, {'short_side': None}, (None, (96, 128))),
    (FIT, {'short_side': (90,)}, ((90,), None)),
    ({**FIT, 'short_side': (70,)}, {}, ((70,), None)),
    ({'short_side': (80,)}, {}, ((80,), None)),
    ({'short_side': (80,)}, FIT, (None, (96, 128))),
  ],
)
def test_images_are_resized_as_for_the_instance_network(trained, given, seen):
  """One of the two resize options replaces the other."""
  given = {**GIVEN, 'data': {**GIVEN['data'], 'size': given}}
  size = merge.merged_config(given, change('instance', **trained))['data']['size']
  assert (size['short_side'], size['image_size']) == seen


def test_a_semantic_network_may_see_the_same_images():
  """With the same resizing for both, no resizing is needed in between."""
  runs = change(
    'semantic', change('instance', short_side=(60, 80)), image_size=None, short_side=(80,)
  )
  runs = change('semantic', runs, longest_side=700)
  assert merge.merged_config(GIVEN, runs)['model']['semantic_size'] is None
  with pytest.raises(SegjaxError, match='runs/a was trained on images by their shorter side and'):
    merge.merged_config(GIVEN, change('semantic', runs, longest_side=900))


def test_a_merged_config_is_complete():
  """Except for the workdirs, it is an ordinary config."""
  config = merge.merged_config(GIVEN, RUNS)
  one = parse(config)
  assert one.model.semantic.classes == 9 and one.model.instance.classes == 5
  assert isinstance(one.data, DataConfig) and one.data.size.longest_side == 700


def test_named_runs():
  assert merge.named_runs(GIVEN) == {'semantic': 'runs/a', 'instance': 'runs/b'}
  assert merge.named_runs({'model': {'name': 'unet.UNet'}}) == {}
  assert merge.named_runs({'model': {**GIVEN['model'], 'semantic': {}, 'instance': {}}}) == {}
  assert merge.named_runs({}) == {}
  with pytest.raises(SegjaxError, match='config.model.instance is not a workdir'):
    merge.named_runs({'model': {'semantic': 'runs/a', 'instance': {}}})


@pytest.mark.parametrize(
  ('given', 'runs', 'message'),
  [
    (
      GIVEN,
      {**RUNS, 'semantic': RUNS['instance']},
      'config.model.semantic=runs/a is a run of the task instance',
    ),
    ({**GIVEN, 'train': {}}, RUNS, 'config.train.steps: a merged network is not trained'),
    (
      {**GIVEN, 'data': {'mean': (0.0,)}},
      RUNS,
      r'config.data.mean=\(0.0,\) but the network of runs/b was trained with \(127.5,\)',
    ),
    (
      GIVEN,
      change('semantic', change('instance', short_side=(800,)), image_size=None),
      'runs/a was trained on images at their own size and that of runs/b on images resized in',
    ),
    (
      GIVEN,
      change('semantic', change('instance', **FIT), image_size=None),
      'runs/a was trained on images at their own size and that of runs/b on images resized in',
    ),
    (
      {**GIVEN, 'init_from': {'reset': 'heads'}},
      RUNS,
      'config.init_from.reset: a merged network takes over all of its parts',
    ),
    (
      {**GIVEN, 'init_from': {'path': 'runs/c'}},
      RUNS,
      'config.init_from.path: a merged network starts from its parts',
    ),
  ],
)
def test_what_does_not_fit(given, runs, message):
  with pytest.raises(SegjaxError, match=message):
    merge.merged_config(given, runs)


def test_without_a_start():
  start = merge.merged_config({**GIVEN, 'init_from': 'none'}, RUNS)['init_from']
  assert start == merge.merged_config(GIVEN, RUNS)['init_from']


@pytest.mark.parametrize(
  ('changed', 'message'),
  [
    ({'data': 3}, 'config.data=3 has the wrong type: it takes a group of keys'),
    ({'data': {'name': 'scenes', 'mean': 1.0}}, 'config.data.mean=1.0 has the wrong type'),
    ({'data': {'name': 'scenes', 'maen': (1.0,)}}, 'config.data.maen is not a key'),
    ({'train': 7}, 'config.train=7 has the wrong type: it takes a group of keys'),
    ({'train': {'steps': '0'}}, "config.train.steps='0' has the wrong type"),
    ({'init_from': 'runs/c'}, "config.init_from='runs/c' has the wrong type"),
    ({'model': {**GIVEN['model'], 'semantic': 'no_such'}}, 'no_such is not the workdir of a run'),
    ({'data': {'shapes': 3}}, 'config.data.shapes is now config.data.size.shapes'),
  ],
)
def test_mistakes_are_found_before_the_runs_are_read(changed, message):
  with pytest.raises(SegjaxError, match=message):
    resolve({**GIVEN, **changed})


def test_check_classes():
  names, things = ('sky', 'cat', 'dog'), (1, 2)
  paths = merge.named_runs(GIVEN)
  merge.check_classes(names, things, {'semantic': list(names), 'instance': ['cat', 'dog']}, paths)
  with pytest.raises(SegjaxError, match='instance=runs/b was trained on the classes dog, cat and'):
    merge.check_classes(names, things, {'semantic': names, 'instance': ('dog', 'cat')}, paths)
  with pytest.raises(SegjaxError, match='config.model.semantic=runs/a was trained on'):
    merge.check_classes(names, things, {'semantic': ('cat',), 'instance': ('cat', 'dog')}, paths)
