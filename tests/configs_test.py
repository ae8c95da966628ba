"""Every shipped config is complete, can be traced, and documents its command."""

import functools
import json
import pathlib

import jax
import numpy as np
import pytest

from segjax import config as config_lib
from segjax import merge
from segjax.data import datasets
from segjax.data.builders.ade20k_files import THINGS as ADE20K_THINGS
from segjax.experiment import CLASS_WEIGHTS, check_start, parse
from segjax.run import build
from segjax.training import optim
from segjax.training.compile import traced_fast
from segjax.types import Instances, SegjaxError, Segments

ROOT = pathlib.Path(__file__).parent.parent
# Paths from the checkout, such as configs/unet/scenes.py.
CONFIGS = sorted(str(p.relative_to(ROOT)) for p in (ROOT / 'configs').glob('*/*.py'))
# Classes and channels of the real data sets.
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
  'ade20k': (150, 3),
  'cityscapes': (19, 3),
}
# Number of thing classes in instance tasks.
THINGS = {'scenes': 5, 'penn_fudan': 1, 'coco_instances': 80, 'cityscapes_instances': 8}
# Number of classes and the thing classes in panoptic tasks.
PANOPTIC = {
  'scenes': (9, range(4, 9)),
  'coco_panoptic': (133, range(80)),
  'cityscapes_panoptic': (19, range(11, 19)),
  'ade20k_panoptic': (150, [category.id for category in ADE20K_THINGS]),
}
# Workdirs that a config merges, and the configs of these runs.
RUNS = {
  'runs/scenes': 'configs/unet/scenes.py',
  'runs/scenes_instances': 'configs/mask_rcnn/scenes_tiny.py',
}
SIZE = 64
# The original image size.
NATIVE = (50, 70)


@functools.cache
def read(path):
  """The experiment of a config; for a merged network, as if its two runs existed."""
  given = config_lib.read_file(ROOT / path)
  if paths := merge.named_runs(given):
    parts = {part: read(RUNS[p]).to_dict() for part, p in paths.items()}
    given = merge.merged_config(given, parts)
  return parse(given)


def facts(one, name):
  """The number of classes of a data set, its channels, and which classes are things."""
  if 'segments' in one.input.annotations:
    classes, things = PANOPTIC[name]
    return classes, 3, tuple(things)
  if 'objects' in one.input.annotations:
    return THINGS[name.partition('/')[0]], 3, None
  return *SPECS[name], None


def make_spec(one):
  name = one.data.name
  classes, channels, things = facts(one, name)
  names, palette = tuple(f'class {i}' for i in range(classes)), np.zeros((classes, 3), np.uint8)
  return datasets.DatasetSpec(name, '1.0.0', names, palette, channels, {}, things)


def test_a_config_is_in_the_directory_of_its_paper(root):
  assert len(CONFIGS) == len(list((root / 'configs').rglob('*.py'))) > 0


@pytest.mark.parametrize('path', CONFIGS)
def test_config_reads_back(path):
  one = read(path)
  content = json.loads(config_lib.to_json(one.to_dict()))
  assert parse(content) == one, 'what is frozen reads back as it is'
  assert parse(content).digest == one.digest


@pytest.mark.parametrize('path', CONFIGS)
def test_config_builds(path):
  one = read(path)
  spec = make_spec(one)
  check_start(one)
  run = build(one, spec, {rule: [1.0] * spec.num_classes for rule in CLASS_WEIGHTS})
  if 'objects' in one.input.annotations:
    check_objects(run)
  else:
    check_dense(run)


def check_dense(run):
  """From an image to logits of its size."""
  size = run.experiment.data.size.crop_size or run.experiment.data.size.image_size or (SIZE, SIZE)
  if hasattr(run.model, 'output_size'):
    assert tuple(map(run.model.output_size, size)) == size
  margin = 2 * getattr(run.model, 'margin', 0)

  def predict(key, padded, image):
    variables = run.task.init(key, {'image': padded})
    return run.task.forward(variables, {'image': image}, train=False)[0]['logits']

  shapes = (
    jax.ShapeDtypeStruct((1, size[0] + extra, size[1] + extra, run.spec.channels), np.float32)
    for extra in (margin, 0)
  )
  logits = jax.eval_shape(traced_fast(predict), jax.random.key(0), *shapes)
  assert logits.shape == (1, *size, run.spec.num_classes)


def make_batch(one):
  """The shapes of a batch of one image with objects."""
  shape = jax.ShapeDtypeStruct
  objects = (1, one.batch.max_objects)
  batch = {
    'image': shape((1, SIZE, SIZE, 3), np.float32),
    'size': shape((1, 2), np.int32),
    'seed': shape((1,), np.uint32),
    'instances': Instances(
      boxes=shape((*objects, 4), np.float32),
      classes=shape(objects, np.int32),
      masks=shape((*objects, SIZE, SIZE // 8), np.uint8),
      crowd=shape(objects, bool),
      valid=shape(objects, bool),
    ),
  }
  if 'segments' not in one.input.annotations:
    return batch
  ids, some = shape((1, *NATIVE), np.int32), (1, one.batch.max_segments)
  return {
    **batch,
    'label': shape((1, SIZE, SIZE), np.int32),
    'native': shape((1, 2), np.int32),
    'segments': Segments(ids, shape(some, np.int32), shape(some, bool), shape(some, bool)),
  }


def check_objects(run):
  """Training and evaluation forward pass, losses, and parameters that are not updated."""
  one, batch = run.experiment, make_batch(run.experiment)
  variables = jax.eval_shape(run.task.init, jax.random.key(0), batch)

  def learn(variables, batch):
    return run.task.losses(run.task.forward(variables, batch, train=True)[0], batch)

  def find(variables, batch):
    outputs, _ = run.task.forward(variables, batch, train=False)
    return outputs.get('detections'), run.task.predict(outputs, batch)

  if one.train.steps:
    assert set(jax.eval_shape(traced_fast(learn), variables, batch)) == set(one.losses)
    frozen = getattr(run.model, 'frozen_parameters', ())
    optim.make_optimizer(one.optim, one.train.steps, variables['params'], frozen)
  found, predictions = jax.eval_shape(traced_fast(find), variables, batch)
  if getattr(run.model, 'predicts_masks', False):
    whole = 'segments' in predictions
    count = run.model.queries if whole else run.model.inference.objects
    assert predictions['scores'].shape == (1, count)
    assert not whole or predictions['segments'].ids.shape == (1, *NATIVE)
    return
  model = getattr(run.model, 'instance', run.model)  # that part of a merged network
  count = model.box_head.max_detections
  assert found.boxes.shape == (1, count, 4)
  assert (found.masks is not None) == model.masks
  if 'segments' in predictions:
    segments = predictions['segments']
    assert segments.ids.shape == (1, *NATIVE), 'the size of the truth'
    stuff = run.spec.num_classes - len(run.spec.things)
    assert segments.classes.shape == (1, count + stuff)


@pytest.mark.parametrize('path', CONFIGS)
def test_config_evaluates_on_the_same_classes(path):
  one = read(path)
  assert facts(one, one.data.eval_name or one.data.name) == facts(one, one.data.name)


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
  """As in the docstrings of these configs."""
  given = config_lib.read_file(root / path)
  before = config_lib.flatten(parse(given).to_dict())
  one = parse(config_lib.override(given, [(key, 'none')]))
  assert before.get(key, 'a group') is not None
  assert config_lib.flatten(one.to_dict())[key] is None
  assert parse(one.to_dict()) == one


# First steps of the annealing in the authors' config files, and how long each lasts.
ANNEALING = {
  'coco_panoptic.py:small': ((29_564, 73_910, 118_256), 29_564),
  'coco_panoptic.py:base': ((29_564, 73_910, 118_256), 29_564),
  'coco_panoptic.py': ((14_782, 29_564, 44_346, 59_128), 14_782),
  'coco_panoptic.py:giant': ((14_782, 25_869, 36_955, 48_042, 59_128), 14_782),
  'coco_instance.py': ((14_782, 29_564, 44_346, 59_128), 14_782),
  'ade20k_panoptic.py': ((6_520, 13_040, 19_560, 26_080), 6_520),
  'ade20k_panoptic.py:giant': ((6_520, 11_410, 16_300, 21_190, 26_080), 6_520),
  'ade20k_semantic.py': ((6_520, 13_040, 19_560, 26_080), 6_520),
  'cityscapes_semantic.py': ((3_317, 6_634, 9_951, 13_268), 3_317),
}


@pytest.mark.parametrize('name', ANNEALING)
def test_eomt_anneals_as_published(root, name):
  starts, length = ANNEALING[name]
  one = parse(config_lib.read_file(f'{root}/configs/eomt/{name}'))
  assert one.model.annealing == tuple((start, start + length) for start in starts)
  assert one.train.steps // 6 == length


@pytest.mark.parametrize(
  ('name', 'message'),
  [
    ('coco_panoptic.py:xl', "'xl' is no argument of coco_panoptic.py: choose from base, giant, "),
    ('published.py:coco_instance,smal', "'smal' is .* of coco_panoptic.py: did you mean small"),
    ('scenes_tiny.py:detection', "'detection' is no argument of scenes_tiny.py: "),
  ],
)
def test_a_wrong_argument_of_eomt_is_one_sentence(root, name, message):
  with pytest.raises(SegjaxError, match=f'^{message}'):
    config_lib.read_file(f'{root}/configs/eomt/{name}')


def test_published_weights_are_of_the_large_network(root):
  one = parse(config_lib.read_file(f'{root}/configs/eomt/published.py:coco_instance'))
  assert one.model.size == 'large' and one.init_from.source == 'eomt/large'


def test_eomt_anneals_in_proportion_to_other_lengths(root):
  short = config_lib.read_file(f'{root}/configs/eomt/coco_panoptic.py:large,5')
  assert (short['train']['steps'], short['model']['annealing']) == (5, ())
  one = parse(config_lib.read_file(f'{root}/configs/eomt/cityscapes_semantic.py:large,6000'))
  assert one.train.steps == 6_000
  assert one.model.annealing == ((1_000, 2_000), (2_000, 3_000), (3_000, 4_000), (4_000, 5_000))
