"""Configs of earlier versions: where each of their keys is now."""

from collections.abc import Mapping, Sequence
from typing import Any

from segjax.config import plain
from segjax.types import SegjaxError

# Group -> its keys that were elsewhere, each as `new=old`, or alone where only the group is new.
_MOVED = {
  'batch': 'size=data.batch_size eval_size=data.eval_batch_size shuffle=data.shuffle '
  'workers=data.workers max_objects=data.instances max_segments=data.segments',
  'data.size': 'image_size=data.image_size resize=data.resize crop_size=data.crop_size '
  'short_side=data.short_side longest_side=data.longest_side shapes=data.shapes',
  '': 'augment=data.augment',
  'augment': 'copy_paste=data.copy_paste large_scale_jitter=data.jitter',
  'train': 'images=train.pictures',
}
# The same of `config.model` where that is a Mask R-CNN or Panoptic FPN.
_MOVED_IN_MODEL = {
  'backbone': 'name=backbone width norm bn_epsilon stride_in_1x1 frozen_stages',
  'neck': 'features norm=fpn_norm',
  'rpn': 'anchor_sizes aspect_ratios anchor_style=anchors convs=rpn_convs samples=rpn_samples '
  'positive_iou=rpn_high negative_iou=rpn_low train_proposals test_proposals nms_iou=rpn_nms',
  'roi': 'op=roi mode=roi_mode sampling_ratio max_samples aligned',
  'box_head': 'features resolution=box_bins convs=box_convs layers=box_layers hidden '
  'norm=head_norm res5_stride samples=regions positive_fraction=region_positives '
  'positive_iou=region_iou max_detections=detections score_threshold nms_iou=detection_nms',
  'mask_head': 'features norm=head_norm convs=mask_convs mlp=mask_mlp activation=mask_activation '
  'class_agnostic=mask_agnostic resolution=mask_bins',
  'semantic': 'features=semantic_features groups=semantic_groups',
}


def _by_old_key(moved: Mapping[str, str]) -> dict[str, list[str]]:
  """Old key, or group of keys -> where it is now."""
  found: dict[str, list[str]] = {}
  for group, keys in moved.items():
    for entry in keys.split():
      new, _, old = entry.partition('=')
      found.setdefault(old or new, []).append(f'{group}.{new}'.lstrip('.'))
  return found


MOVED, MOVED_IN_MODEL = _by_old_key(_MOVED), _by_old_key(_MOVED_IN_MODEL)
_MODELS = ('MaskRCNN', 'PanopticFPN')


def is_old(config: Mapping[str, Any]) -> bool:
  """Whether a complete config was written before its keys moved."""
  return 'batch' not in config


def upgrade(old: Mapping[str, Any]) -> dict[str, Any]:
  """A complete config by today's keys, of one that was written before they moved.

  Networks and their weights mean the same. So do the batches of semantic tasks; those of others
  are resized by the same rule, and vary at random in another way.
  """
  config = _move(plain(old), MOVED)
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
  config[path[-1]] = plain(value)


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
