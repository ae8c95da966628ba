"""Every shipped config is complete, builds as shapes, and says how it is used."""

import functools
import pathlib

import jax
import numpy as np
import pytest

from segjax import config as config_lib
from segjax import merge
from segjax.data import datasets
from segjax.program.build import CLASS_WEIGHTS, build, complete
from segjax.train import optim
from segjax.types import Instances, Segments

ROOT = pathlib.Path(__file__).parent.parent
# Paths from the checkout, such as configs/unet/scenes.py.
CONFIGS = sorted(str(p.relative_to(ROOT)) for p in (ROOT / 'configs').glob('*/*.py'))
# Facts of the real data sets that the configs name: classes and channels.
SPECS = {
  'scenes': (9, 3),
  'camvid': (11, 3),
  'isbi2012': (2, 1),
  'oxford_iiit_pet': (3, 3),
  'cell_tracking/phc_u373': (2, 1),
  'cell_tracking/dic_hela': (2, 1),
  'voc/2011': (21, 3),
  'sbd': (21, 3),
  'nyud': (40, 3),
  'sun_rgbd': (37, 3),
}
# Kinds of things in those of instance tasks.
THINGS = {'scenes': 5, 'penn_fudan': 1, 'coco_instances': 80, 'cityscapes_instances': 8}
# Classes and, of these, things of those of panoptic tasks; things come last in some, first in COCO.
PANOPTIC = {
  'scenes': (9, range(4, 9)),
  'coco_panoptic': (133, range(80)),
  'cityscapes_panoptic': (19, range(11, 19)),
}
# What a config that merges two runs calls them, and the configs of such runs.
RUNS = {
  'runs/scenes': 'configs/unet/scenes.py',
  'runs/scenes_instances': 'configs/mask_rcnn/scenes_tiny.py',
}
SIZE = 64


def read(path):
  """A complete config; of a merged network, as if its two runs were there."""
  given = config_lib.read_file(ROOT / path)
  if paths := merge.named_runs(given):
    given = merge.merged_config(given, {part: read(RUNS[p]) for part, p in paths.items()})
  return complete(given)


def make_spec(data):
  name = data['name']
  if data['segments'] is not None:
    classes, indices = PANOPTIC[name]
    class_names = tuple(f'class {i}' for i in range(classes))
    palette = np.zeros((classes, 3), np.uint8)
    return datasets.DatasetSpec(name, '1.0.0', class_names, palette, 3, {}, tuple(indices))
  classes, channels = SPECS[name] if data['instances'] is None else (things(name), 3)
  class_names = tuple(f'class {i}' for i in range(classes))
  return datasets.DatasetSpec(
    name, '1.0.0', class_names, np.zeros((classes, 3), np.uint8), channels, {}
  )


def test_a_config_lies_in_the_folder_of_its_paper(root):
  assert len(CONFIGS) == len(list((root / 'configs').rglob('*.py'))) > 0


def things(name):
  return THINGS[name.partition('/')[0]]


@pytest.mark.parametrize('path', CONFIGS)
def test_config_is_complete_and_builds(path):
  config = read(path)
  assert complete(config) == config, 'what is frozen reads back as it is'
  spec = make_spec(config['data'])
  rules = {rule: [1.0] * spec.num_classes for rule in CLASS_WEIGHTS}
  run = build(config, spec, rules)
  if run.data.instances is not None:
    check_instances(run)
    return
  size = run.data.crop_size or run.data.image_size or (64, 64)
  if hasattr(run.model, 'output_size'):
    assert tuple(map(run.model.output_size, size)) == size
  margin = 2 * getattr(run.model, 'margin', 0)

  def predict(key, padded, image):
    variables = run.task.init(key, {'image': padded})
    return run.task.forward(variables, {'image': image}, train=False)[0]['logits']

  shapes = (
    jax.ShapeDtypeStruct((1, size[0] + extra, size[1] + extra, spec.channels), np.float32)
    for extra in (margin, 0)
  )
  logits = jax.eval_shape(predict, jax.random.key(0), *shapes)
  assert logits.shape == (1, *size, spec.num_classes)


def check_instances(run):
  """Both ways through the network, the losses, and what the optimiser is to leave alone."""
  shape = jax.ShapeDtypeStruct
  objects = (1, run.data.instances)
  batch = {
    'image': shape((1, SIZE, SIZE, 3), np.float32),
    'size': shape((1, 2), np.int32),
    'draw': shape((1,), np.uint32),
    'instances': Instances(
      boxes=shape((*objects, 4), np.float32),
      classes=shape(objects, np.int32),
      masks=shape((*objects, SIZE, SIZE // 8), np.uint8),
      crowd=shape(objects, bool),
      valid=shape(objects, bool),
    ),
  }
  if run.data.segments is not None:
    ids, some = shape((1, 50, 70), np.int32), (1, run.data.segments)
    batch |= {
      'label': shape((1, SIZE, SIZE), np.int32),
      'native': shape((1, 2), np.int32),
      'segments': Segments(ids, shape(some, np.int32), shape(some, bool), shape(some, bool)),
    }
  variables = jax.eval_shape(run.task.init, jax.random.key(0), batch)

  def learn(variables, batch):
    return run.task.losses(run.task.forward(variables, batch, train=True)[0], batch)

  if run.config['train']['steps']:
    assert set(jax.eval_shape(learn, variables, batch)) == set(run.config['losses'])
  find = functools.partial(run.task.forward, train=False)
  found = jax.eval_shape(find, variables, batch)[0]['detections']
  count = getattr(run.model, 'instance', run.model).detections  # of a merged network's part
  assert found.boxes.shape == (1, count, 4)
  assert (found.masks is not None) == run.model.masks
  if run.data.segments is not None:
    merge_both = lambda v, b: run.task.predict(find(v, b)[0], b)['segments']
    segments = jax.eval_shape(merge_both, variables, batch)
    assert segments.ids.shape == (1, 50, 70), 'the size of the truth'
    stuff = run.spec.num_classes - len(run.spec.things)
    assert segments.classes.shape == (1, count + stuff)
  optimizer = optim.OptimConfig(**run.config['optim'])
  frozen = getattr(run.model, 'frozen_parameters', ())
  optim.make_optimizer(optimizer, 10, variables['params'], frozen)


@pytest.mark.parametrize('path', CONFIGS)
def test_config_evaluates_on_the_same_classes(path):
  data = read(path)['data']
  if data['segments'] is not None:
    assert PANOPTIC[data['eval_name'] or data['name']] == PANOPTIC[data['name']]
    return
  if data['instances'] is not None:
    assert things(data['eval_name'] or data['name']) == things(data['name'])
    return
  assert SPECS[data['eval_name'] or data['name']] == SPECS[data['name']]


@pytest.mark.parametrize('path', CONFIGS)
def test_config_says_its_command(root, path):
  text = (root / path).read_text()
  assert f'segjax train --config={path} --workdir=' in text
  assert 'arXiv' in text


@pytest.mark.parametrize(
  ('path', 'key'),
  [
    ('configs/segnet/camvid_cpu.py', 'init_from'),
    ('configs/segnet/basic_camvid.py', 'losses.softmax_cross_entropy.class_weights'),
  ],
)
def test_none_takes_away_what_a_config_says(root, path, key):
  """As these configs' docstrings say."""
  given = config_lib.read_file(root / path)
  before = config_lib.flatten(complete(given))
  config = complete(config_lib.override(given, [(key, 'none')]))
  assert before.get(key, 'a group') is not None
  assert config_lib.flatten(config)[key] is None
  assert complete(config) == config
