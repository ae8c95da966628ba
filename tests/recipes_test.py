"""The rules of `segjax new`: valid configs, and for known data those that are shipped."""

import dataclasses
import itertools

import jax
import numpy as np
import pytest

from segjax import config as config_lib
from segjax import experiment, recipes, run
from segjax.convert import load
from segjax.data import order
from segjax.nn import mix_transformer
from segjax.recipes import PUBLISHED, WEIGHTS, Facts, Machine, Note, make_recipe
from segjax.types import SegjaxError

GIB = 2**30
LAPTOP, GPU = Machine(False, 16 * GIB), Machine(True, 80 * GIB)
SIZES = {
  'one': [(64, 64)] * 5,
  'odd': [(37, 51)],
  'large': [(3000, 4000)] * 2,
  'similar': [(360, 480), (300, 480), (240, 300)],
  'both ways': [(375, 500), (500, 375), (333, 500)],
  'panorama': [(100, 2000), (400, 300), (2000, 150)],
  'tiny': [(9, 12), (30, 8)],
}
TASKS = ('semantic', 'instance', 'panoptic')


def plain(value):
  """Without the notes."""
  if isinstance(value, Note):
    return plain(value.value)
  return {k: plain(v) for k, v in value.items()} if isinstance(value, dict) else value


def make_facts(task, sizes, examples=20, **keys):
  boxes = np.random.default_rng(0).uniform(5, 50, (40, 2))
  things = {} if task == 'semantic' else {'most_objects': 7, 'boxes': boxes}
  stuff = {'stuff': 2} if task == 'panoptic' else {}
  return Facts(task, 3, 3, sizes, examples, **{**things, **stuff, **keys})


def config_of(facts, machine):
  config = plain(make_recipe(facts, machine))
  return {**config, 'data': {'name': 'scenes', **config['data']}}


@pytest.mark.parametrize('task', TASKS)
@pytest.mark.parametrize('sizes', SIZES.values(), ids=SIZES)
@pytest.mark.parametrize('machine', [LAPTOP, GPU], ids=['cpu', 'gpu'])
def test_a_recipe_is_a_config_whose_shapes_take_every_image(task, sizes, machine):
  facts = make_facts(task, sizes)
  parsed = experiment.parse(config_of(facts, machine))
  scale = recipes.choose_scale(facts, machine)
  for size in sizes:
    seen = order.eval_size(size, parsed.input)
    shape = order.fit_shape(seen, parsed.input, lambda: 'an image')
    # Whole multiples of 32 may be larger than the images by less than one.
    assert max(shape) < scale.longest_side + 32
    for side in parsed.data.size.short_side or ():
      data = dataclasses.replace(
        parsed.data, size=dataclasses.replace(parsed.data.size, short_side=(side,))
      )
      config = dataclasses.replace(parsed.input, data=data)
      order.fit_shape(order.eval_size(size, config), config, lambda: 'an image')
  assert parsed.batch.size <= facts.examples
  assert 0 < parsed.optim.warmup_steps < parsed.train.steps
  assert parsed.train.eval_every * 4 == parsed.train.steps


def shipped(root, path):
  return experiment.parse(config_lib.read_file(root / path))


def test_camvid_gets_its_own_config(root):
  """But for the means, which are of the data, and the warm-up."""
  facts = Facts('semantic', 11, 3, [(360, 480)] * 468, 367)
  config = config_of(facts, LAPTOP)
  ours, theirs = experiment.parse(config), shipped(root, 'configs/unet/camvid.py')
  assert ours.model_config == theirs.model_config
  assert ours.augment == theirs.augment
  assert ours.data.size == theirs.data.size
  assert ours.batch.size == theirs.batch.size
  assert ours.train.steps == theirs.train.steps
  assert dataclasses.replace(ours.optim, warmup_steps=100) == theirs.optim


def test_pedestrians_get_their_own_config(root):
  rng = np.random.default_rng(0)
  heights = rng.integers(300, 500, 170)
  sizes = [(h, w) for h, w in zip(heights.tolist(), rng.permutation(heights).tolist(), strict=True)]
  boxes = np.stack([rng.uniform(60, 120, 300), rng.uniform(150, 300, 300)], 1)
  facts = Facts('instance', 1, 3, sizes, 120, most_objects=8, boxes=boxes)
  ours = experiment.parse(config_of(facts, LAPTOP))
  theirs = shipped(root, 'configs/mask_rcnn/penn_fudan_cpu.py')
  for key in ('backbone', 'neck', 'rpn', 'roi', 'mask_head'):
    assert ours.model_config[key] == theirs.model_config[key]
  assert ours.data.size == theirs.data.size
  assert (ours.optim, ours.augment) == (theirs.optim, theirs.augment)
  assert (ours.batch.size, ours.train.steps) == (theirs.batch.size, theirs.train.steps)


STARTS = [(name, task) for name, weights in WEIGHTS.items() for task in weights.tasks]


@pytest.mark.parametrize(('weights', 'task'), STARTS)
@pytest.mark.parametrize('machine', [LAPTOP, GPU], ids=['cpu', 'gpu'])
def test_published_weights_fit_the_network_of_their_recipe(weights, task, machine):
  """By the paths of all arrays; that shapes are equal is tested with the tables of the source."""
  facts = make_facts(task, SIZES['similar'])
  config = plain(make_recipe(facts, machine, weights))
  one = experiment.parse({**config, 'data': {'name': 'scenes', **config['data']}})
  assert one.init_from.source == weights and one.init_from.path is None
  assert one.train.best_metric == {'semantic': 'mean_iou', 'instance': 'mask_ap'}.get(task, 'pq')
  shapes = run._variables(one, one.model, channels=3)
  variables = jax.tree.map(lambda x: np.broadcast_to(x.dtype.type(0), x.shape), dict(shapes))
  ours, source = load.flat_paths(variables), load.SOURCES[weights]
  nothing = np.zeros(())
  arrays = {row.path: ours.get(row.path, nothing) for row in source.rows}
  reset = run.class_specific(one, 3) if one.init_from.reset else ()
  pretrained = load.Pretrained('FILE', arrays, source.new, source.spare)
  *_, report = load.load_into(variables.pop('params'), variables, pretrained, reset)
  of_resnet = {path for path in ours if '/backbone/' in path}
  assert of_resnet <= set(report.loaded)
  if WEIGHTS[weights].whole:
    assert not report.new and set(report.loaded) | set(report.reset) == ours.keys()


def test_weights_of_another_task_are_refused():
  semantic, boxes = make_facts('semantic', SIZES['one']), make_facts('instance', SIZES['one'])
  name = 'torchvision/maskrcnn_resnet50_fpn'
  with pytest.raises(SegjaxError, match=f'--weights={name} has no network for the task semantic'):
    make_recipe(semantic, GPU, name)
  with pytest.raises(SegjaxError, match='of objects without masks'):
    make_recipe(boxes._replace(masks=False), GPU, name)
  assert make_recipe(boxes._replace(masks=False), GPU, 'torchvision/resnet50')


def test_a_network_that_needs_two_images_in_a_step_gets_smaller_ones():
  facts, machine = make_facts('semantic', [(1080, 1920)], examples=200), Machine(True, 12 * GIB)
  weights = 'torchvision/{}_resnet101'.format
  fcn, deeplab = (
    plain(make_recipe(facts, machine, weights(name))) for name in ('fcn', 'deeplabv3')
  )
  assert fcn['batch']['size'] == 1 and deeplab['batch']['size'] >= 2
  fcn, deeplab = (one['data']['size']['image_size'] for one in (fcn, deeplab))
  assert fcn[0] == 2 * deeplab[0] and fcn[1] == 2 * deeplab[1]
  tiny = plain(make_recipe(facts, Machine(True, 2**20), weights('deeplabv3')))
  assert tiny['batch']['size'] == 2
  with pytest.raises(
    SegjaxError, match='needs 2 training images .* and there is 1: .*fcn_resnet101'
  ):
    make_recipe(facts._replace(examples=1), machine, weights('deeplabv3'))


def test_images_that_are_too_small_for_a_network_are_refused():
  assert PUBLISHED['segformer.SegFormer'].smallest_side == mix_transformer.SMALLEST_IMAGE
  thin, weights = make_facts('semantic', [(100, 1000)]), 'transformers/segformer_b0'
  with pytest.raises(SegjaxError, match='needs images of 29 x 29 pixels, and these .* 25 x 250'):
    make_recipe(thin, LAPTOP, weights)
  assert make_recipe(thin, LAPTOP, 'torchvision/fcn_resnet50')


@pytest.mark.parametrize('task', TASKS)
def test_each_device_takes_as_many_images(task):
  facts = make_facts(task, [(256, 256)] * 3, examples=100)
  batch = lambda machine: make_recipe(facts, machine)['batch']['size'].value
  one, four = batch(GPU), batch(GPU._replace(devices=4))
  assert one == four and four % 4 == 0
  assert batch(GPU._replace(devices=3)) % 3 == 0
  assert batch(Machine(True, 2**20)) == 1 and batch(Machine(True, 2**20, devices=4)) == 4


@pytest.mark.parametrize('task', TASKS)
def test_less_memory_takes_smaller_batches(task):
  facts = make_facts(task, [(256, 256)] * 3, examples=100)
  batches = [
    config_of(facts, Machine(False, memory))['batch']['size']
    for memory in (2**20, GIB // 2, 64 * GIB)
  ]
  assert batches[0] == 1 and batches == sorted(batches) and batches[0] < batches[-1]
  assert batches[-1] == recipes.choose_scale(facts, LAPTOP).batch


def test_few_images_take_few_steps():
  steps = [
    config_of(make_facts('semantic', [(64, 64)], examples=examples), LAPTOP)['train']['steps']
    for examples in (1, 19, 20_000)
  ]
  assert steps == [400, 1_000, 1_600]


def test_a_size_is_halved_where_that_is_near():
  cases = {(360, 480): (180, 240), (250, 250): (250, 250), (300, 300): (256, 256)}
  for size, expected in cases.items():
    found = recipes.image_sizes(make_facts('semantic', [size]), recipes.SEMANTIC[1])
    assert plain(found) == {'image_size': expected}


def test_room_for_objects_and_segments():
  facts = make_facts('panoptic', [(64, 64)], most_objects=30)
  config = config_of(facts, LAPTOP)
  assert config['batch']['max_objects'] == 40
  assert config['batch']['max_segments'] == 42
  assert config['model']['box_head']['max_detections'] == 60


def test_anchors_follow_the_objects():
  sizes = [(600, 600)] * 3
  anchors = lambda side: config_of(
    make_facts('instance', sizes, boxes=np.full((9, 2), side)), LAPTOP
  )['model']['rpn']['anchor_sizes']
  assert anchors(100.0) == (16.0, 32.0, 64.0, 128.0, 256.0)
  assert anchors(8.0) == (8.0, 16.0, 32.0, 64.0, 128.0)  # 4 pixels as the network sees them


@pytest.mark.parametrize(
  ('width', 'height', 'ratios'),
  [(10, 20, (1.0, 2.0, 3.0)), (20, 10, (0.33, 0.5, 1.0)), (10, 12, (0.5, 1.0, 2.0))],
)
def test_aspect_ratios_follow_the_objects(width, height, ratios):
  facts = make_facts('instance', [(64, 64)], boxes=np.array([[width, height]] * 3, float))
  assert experiment.parse(config_of(facts, LAPTOP)).model.rpn.aspect_ratios == ratios


def test_boxes_alone_train_faster_r_cnn():
  facts = make_facts('instance', [(64, 64)], masks=False)
  config = config_of(facts, LAPTOP)
  assert config['model']['masks'] is False and 'mask_head' not in config['model']
  assert 'mask' not in config['losses']
  assert config['eval']['metrics'] == ('coco_box',)
  assert config['train']['best_metric'] == 'box_ap'


def test_gray_images_have_no_saturation():
  for task, machine in itertools.product(TASKS, (LAPTOP, GPU)):
    config = config_of(make_facts(task, [(200, 200)])._replace(channels=1), machine)
    assert 'saturation' not in config['augment'] and config['augment']['brightness'] > 0


def test_rare_classes_are_named():
  losses = make_recipe(make_facts('semantic', [(64, 64)], rare=('pole', 'sign')), LAPTOP)['losses']
  assert 'pole, sign' in losses.why and 'median_frequency' in losses.why


def test_a_small_image_is_pooled_less():
  depth = lambda side: config_of(make_facts('semantic', [(side, side)]), LAPTOP)['model'].get(
    'depth'
  )
  assert (depth(64), depth(32), depth(8)) == (None, 3, 1)


def test_no_images():
  for sizes, examples in (([], 3), ([(4, 4)], 0)):
    with pytest.raises(SegjaxError, match='no training images'):
      make_recipe(Facts('semantic', 2, 3, sizes, examples), LAPTOP)
