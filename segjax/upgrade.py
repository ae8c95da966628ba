"""Configs of earlier versions: where each of their keys is now."""

from collections.abc import Mapping, Sequence
from typing import Any

from segjax.types import SegjaxError

# Old key, or group of keys -> where it is now.
MOVED: dict[str, tuple[str, ...]] = {
  'data.batch_size': ('batch.size',),
  'data.eval_batch_size': ('batch.eval_size',),
  'data.shuffle': ('batch.shuffle',),
  'data.workers': ('batch.workers',),
  'data.instances': ('batch.max_objects',),
  'data.segments': ('batch.max_segments',),
  'data.image_size': ('data.size.image_size',),
  'data.resize': ('data.size.resize',),
  'data.crop_size': ('data.size.crop_size',),
  'data.short_side': ('data.size.short_side',),
  'data.longest_side': ('data.size.longest_side',),
  'data.shapes': ('data.size.shapes',),
  'data.augment': ('augment',),
  'data.copy_paste': ('augment.copy_paste',),
  'data.jitter': ('augment.large_scale_jitter',),
}
# The same of `config.model` where that is a Mask R-CNN or Panoptic FPN.
MOVED_IN_MODEL: dict[str, tuple[str, ...]] = {
  'backbone': ('backbone.name',),
  'width': ('backbone.width',),
  'norm': ('backbone.norm',),
  'bn_epsilon': ('backbone.bn_epsilon',),
  'stride_in_1x1': ('backbone.stride_in_1x1',),
  'frozen_stages': ('backbone.frozen_stages',),
  'features': ('neck.features', 'box_head.features', 'mask_head.features'),
  'fpn_norm': ('neck.norm',),
  'anchor_sizes': ('rpn.anchor_sizes',),
  'aspect_ratios': ('rpn.aspect_ratios',),
  'anchors': ('rpn.anchor_style',),
  'rpn_convs': ('rpn.convs',),
  'rpn_samples': ('rpn.samples',),
  'rpn_high': ('rpn.positive_iou',),
  'rpn_low': ('rpn.negative_iou',),
  'train_proposals': ('rpn.train_proposals',),
  'test_proposals': ('rpn.test_proposals',),
  'rpn_nms': ('rpn.nms_iou',),
  'roi': ('roi.op',),
  'roi_mode': ('roi.mode',),
  'sampling_ratio': ('roi.sampling_ratio',),
  'max_samples': ('roi.max_samples',),
  'aligned': ('roi.aligned',),
  'box_bins': ('box_head.resolution',),
  'box_convs': ('box_head.convs',),
  'box_layers': ('box_head.layers',),
  'hidden': ('box_head.hidden',),
  'head_norm': ('box_head.norm', 'mask_head.norm'),
  'res5_stride': ('box_head.res5_stride',),
  'regions': ('box_head.samples',),
  'region_positives': ('box_head.positive_fraction',),
  'region_iou': ('box_head.positive_iou',),
  'detections': ('box_head.max_detections',),
  'score_threshold': ('box_head.score_threshold',),
  'detection_nms': ('box_head.nms_iou',),
  'mask_convs': ('mask_head.convs',),
  'mask_mlp': ('mask_head.mlp',),
  'mask_activation': ('mask_head.activation',),
  'mask_agnostic': ('mask_head.class_agnostic',),
  'mask_bins': ('mask_head.resolution',),
  'semantic_features': ('semantic.features',),
  'semantic_groups': ('semantic.groups',),
}
_MODELS = ('MaskRCNN', 'PanopticFPN')


def is_old(config: Mapping[str, Any]) -> bool:
  """Whether a complete config was written before its keys moved."""
  return 'batch' not in config


def upgrade(old: Mapping[str, Any]) -> dict[str, Any]:
  """A complete config by today's keys, of one that was written before they moved.

  Networks and their weights mean the same. So do the batches of semantic tasks; those of others
  are resized by the same rule, and vary at random in another way.
  """
  config = _move(_copy(old), MOVED)
  config['model'] = _upgrade_model(config['model'])
  size, augment = config['data'].setdefault('size', {}), config.get('augment') or {}
  size['interpolation'] = 'area' if config['task'] == 'semantic' else 'bilinear'
  if augment.get('large_scale_jitter') is not None:
    # Images were resized to fit the first shape, and cropped and padded to it.
    size |= {'image_size': size['shapes'][0], 'resize': 'fit'}
  batch = {key: value for key, value in config['batch'].items() if value is not None}
  return {**config, 'batch': batch, 'augment': {k: v for k, v in augment.items() if v is not None}}


def _upgrade_model(model: Any) -> Any:
  if not isinstance(model, Mapping):
    return model
  model = {k: _upgrade_model(v) for k, v in model.items()}  # networks that are made of others
  return _move(model, MOVED_IN_MODEL) if _has_parts(model) else model


def _has_parts(model: Mapping[str, Any]) -> bool:
  return str(model.get('name')).rpartition('.')[2] in _MODELS


def _move(config: dict[str, Any], moved: Mapping[str, Sequence[str]]) -> dict[str, Any]:
  """`config` with the values of the old keys under the new ones."""
  values = {old: _pop(config, old.split('.')) for old in moved}
  for old, new in moved.items():
    for key in new:
      if values[old] is not _MISSING:
        _put(config, key.split('.'), values[old])
  return config


_MISSING = object()


def _pop(config: dict[str, Any], path: Sequence[str]) -> Any:
  for name in path[:-1]:
    config = config.get(name) or {}
  return config.pop(path[-1], _MISSING)


def _put(config: dict[str, Any], path: Sequence[str], value: Any) -> None:
  for name in path[:-1]:
    if not isinstance(config.get(name), dict):
      config[name] = {}
    config = config[name]
  config[path[-1]] = _copy(value)


def _copy(value: Any) -> Any:
  return {k: _copy(v) for k, v in value.items()} if isinstance(value, Mapping) else value


def check_moved(given: Mapping[str, Any]) -> None:
  """Raises a SegjaxError for a key of an earlier version: it says where the key is now."""
  for old, new in MOVED.items():
    group, key = old.split('.')
    if isinstance(keys := given.get(group), Mapping) and key in keys:
      raise SegjaxError(f'config.{old} is now {_spell("config", new)}')
  _check_model(given.get('model'), 'config.model')


def _check_model(model: Any, where: str) -> None:
  if not isinstance(model, Mapping):
    return
  for key, value in model.items():
    if isinstance(value, Mapping):
      _check_model(value, f'{where}.{key}')
    elif key in MOVED_IN_MODEL and _has_parts(model):
      raise SegjaxError(f'{where}.{key} is now {_spell(where, MOVED_IN_MODEL[key])}')


def _spell(where: str, keys: Sequence[str]) -> str:
  return ' and '.join(f'{where}.{key}' for key in keys)
