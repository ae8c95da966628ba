"""Runs of earlier versions: their configs are upgraded to equivalent current ones."""

import json
import pathlib

import pytest

from segjax import config as config_lib
from segjax import run
from segjax.data.datasets import DatasetSpec
from segjax.experiment import parse
from segjax.types import SegjaxError
from segjax.upgrade import check_moved, is_old, upgrade
from segjax.workdir import Workdir

# Complete configs frozen by commit 3c258fa: config name -> `config.json`.
OLD = json.loads(pathlib.Path(__file__).with_name('old_configs.json').read_text())
SEMANTIC, INSTANCE = 'unet/phc_u373', 'mask_rcnn/coco_r50_fpn_detectron2'

# The current names of some keys. All others are defaults, or unchanged.
TODAY = {
  'unet/phc_u373': {
    'model.width': 64,
    'data.name': 'cell_tracking/phc_u373',
    'data.size.interpolation': 'area',
    'batch.max_objects': 100,
    'augment.large_scale_jitter': None,
  },
  'mask_rcnn/coco_r50_fpn_detectron2': {
    'batch.size': 16,
    'batch.eval_size': 8,
    'batch.workers': 8,
    'batch.max_objects': 100,
    'batch.max_segments': 128,
    'data.size.interpolation': 'bilinear',
    'data.size.image_size': None,
    'data.size.longest_side': 1333,
    'data.size.short_side': [640, 672, 704, 736, 768, 800],
    'data.size.shapes': [[800, 1088], [1088, 800], [800, 1344], [1344, 800]],
    'augment.flip_horizontal': 0.5,
    'model.feature_maps': 'fpn',
    'model.backbone.name': 'resnet50',
    'model.backbone.stride_in_1x1': True,
    'model.backbone.frozen_stages': 2,
    'model.neck.features': 256,
    'model.rpn.anchor_style': 'detectron2',
    'model.rpn.train_proposals': [2000, 1000],
    'model.rpn.positive_iou': 0.7,
    'model.roi.op': 'roi_align',
    'model.roi.aligned': True,
    'model.roi.sampling_ratio': 0,
    'model.roi.max_samples': 4,
    'model.box_head.samples': 512,
    'model.box_head.max_detections': 100,
    'model.mask_head.convs': 4,
    'losses.rpn_box.beta': 0.0,
  },
  'mask_rcnn/coco_r50_c4': {
    'model.feature_maps': 'c4',
    'model.rpn.anchor_sizes': [32.0, 64.0, 128.0, 256.0, 512.0],
    'model.box_head.resolution': 7,
    'model.box_head.res5_stride': 1,
    'model.mask_head.features': 256,
  },
  'panoptic_fpn/coco_r50': {
    'batch.max_objects': 100,
    'batch.max_segments': 200,
    'model.stuff': 53,
    'model.semantic.features': 128,
    'model.semantic.groups': 32,
    'model.box_head.score_threshold': 0.05,
  },
  'panoptic_fpn/merged_scenes': {
    'model.semantic.name': 'unet.UNet',
    'model.semantic.width': 16,
    'model.semantic_size': [64, 64],
    'model.instance.name': 'mask_rcnn.MaskRCNN',
    'model.instance.backbone.width': 16,
    'model.instance.neck.features': 48,
    'model.instance.box_head.features': 48,
    'model.instance.mask_head.features': 48,
    'model.instance.box_head.samples': 48,
    'data.size.shapes': [[128, 128]],
    'init_from.path.instance': 'runs/scenes_instances',
  },
}


def test_every_kind_of_run_is_there():
  assert set(TODAY) == set(OLD)
  assert {old['task'] for old in OLD.values()} == {'semantic', 'instance', 'panoptic'}


@pytest.mark.parametrize('name', OLD)
def test_an_old_config_means_the_same(name):
  one = parse(upgrade(OLD[name]))
  content = json.loads(config_lib.to_json(one.to_dict()))
  flat = config_lib.flatten(content)
  assert {key: flat[key] for key in TODAY[name]} == TODAY[name]
  assert is_old(OLD[name]) and not is_old(content)
  # Unchanged keys keep their values.
  before = config_lib.flatten(OLD[name])
  assert {k: v for k, v in before.items() if k in flat and flat[k] != v} == {}
  assert parse(content) == one


def test_large_scale_jitter_is_at_the_size_of_the_first_shape():
  old = json.loads(json.dumps(OLD[INSTANCE]))
  old['data'] |= {'jitter': [0.1, 2.0], 'short_side': None, 'copy_paste': 0.5}
  old['data']['shapes'] = [[64, 96]]
  one = parse(upgrade(old))
  assert one.augment.large_scale_jitter == (0.1, 2.0) and one.augment.copy_paste == 0.5
  assert one.augment.flip_horizontal == 0.5
  assert one.data.size.image_size == (64, 96) and one.data.size.resize == 'fit'


def test_a_config_from_before_the_first_instance_tasks():
  """Older configs lack keys that were added later."""
  old = json.loads(json.dumps(OLD[SEMANTIC]))
  old['data'] = {'name': 'scenes', 'batch_size': 4, 'image_size': [64, 64], 'augment': None}
  one = parse(upgrade(old))
  assert one.batch.size == 4 and one.data.size.image_size == (64, 64)


@pytest.mark.parametrize(
  ('given', 'message'),
  [
    ({'data': {'batch_size': 3}}, 'config.data.batch_size is now config.batch.size'),
    ({'data': {'augment': {'scale': 3}}}, 'config.data.augment is now config.augment'),
    ({'data': {'jitter': None}}, 'config.data.jitter is now config.augment.large_scale_jitter'),
    (
      {'model': {'name': 'mask_rcnn.MaskRCNN', 'head_norm': 'group'}},
      'config.model.head_norm is now config.model.box_head.norm and config.model.mask_head.norm',
    ),
    (
      {'model': {'name': 'panoptic_fpn.PanopticFPN', 'backbone': 'resnet50'}},
      'config.model.backbone is now config.model.backbone.name',
    ),
    (
      {'model': {'name': 'merged.Merged', 'instance': {'name': 'x.MaskRCNN', 'regions': 3}}},
      'config.model.instance.regions is now config.model.instance.box_head.samples',
    ),
  ],
)
def test_a_key_that_moved_says_where(given, message):
  with pytest.raises(SegjaxError, match=f'^{message}$'):
    check_moved(given)
  with pytest.raises(SegjaxError, match=f'^{message}$'):
    parse({'task': 'instance', 'model': {}, 'data': {}, **given})


def test_keys_of_other_networks_have_not_moved():
  check_moved({'model': {'name': 'unet.UNet', 'width': 3, 'norm': 'batch'}, 'data': {'name': 'x'}})
  check_moved({'model': {'name': 'mask_rcnn.MaskRCNN', 'backbone': {'name': 'resnet50'}}})


@pytest.fixture
def old_workdir(tmp_path):
  """A workdir with an old config, and a checkpoint directory with nothing but a step."""

  def make(name):
    workdir = Workdir(str(tmp_path / name.replace('/', '_')))
    (workdir.checkpoints / '7').mkdir(parents=True)
    workdir.config.write_text(json.dumps(OLD[name]))
    return workdir

  return make


def test_a_workdir_is_read_by_todays_keys_and_says_so_once(old_workdir, capsys):
  workdir = old_workdir(SEMANTIC)
  assert workdir.is_old()
  assert workdir.read_config()['batch']['size'] == OLD[SEMANTIC]['data']['batch_size']
  one = run.read_experiment(workdir, [('batch.eval_size', '3')])
  assert one.batch.eval_size == 3
  assert run.read_experiment(workdir) == parse(upgrade(OLD[SEMANTIC]))
  assert capsys.readouterr().err.count('was written by an older version of segjax') == 1


def test_semantic_runs_resume(old_workdir):
  workdir = old_workdir(SEMANTIC)
  config = run.read_experiment(workdir).to_dict()
  workdir.check_config(workdir.read_config() | config, config)
  workdir.write_config(config)
  assert not workdir.is_old()


@pytest.mark.parametrize('name', ['mask_rcnn/coco_r50_c4', 'panoptic_fpn/coco_r50'])
def test_instance_and_panoptic_runs_do_not(old_workdir, name):
  workdir = old_workdir(name)
  with pytest.raises(
    SegjaxError, match=f'{workdir.path} was trained by an earlier version .*start'
  ):
    run.assemble(workdir, workdir.read_config())


def test_an_old_data_set_reads():
  old = {
    'name': 'scenes',
    'version': '1.0.0',
    'class_names': ['sky', 'ball'],
    'palette': [[1, 2, 3], [4, 5, 6]],
    'channels': 3,
    'splits': {'train': 4},
  }
  spec = DatasetSpec.from_json(old)
  assert spec.things is None and spec.category_ids is None and spec.num_classes == 2
  things = DatasetSpec.from_json({**old, 'things': [1], 'category_ids': [3, 7]})
  assert things.things == (1,) and things.category_ids == (3, 7)
  assert DatasetSpec.from_json(things.to_json()).to_json() == things.to_json()
