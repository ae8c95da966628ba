"""Made-up data in the layouts of the real data sets, and tables that train tiny networks on them.

For tests, and for a look at what a run writes: `run.py --toy`.
"""

import json
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from safetensors.numpy import save_file

_STEPS = {'train.steps': 4, 'train.eval_every': 2, 'train.checkpoint_every': 2}
_COMMON = {**_STEPS, 'train.log_every': 1, 'train.images': 1, 'batch.size': 2}
# VGG16's stages, with one channel in sixteen, and the places of its convolutions in torchvision.
_STAGES = ((4, 2), (8, 2), (16, 3), (32, 3), (32, 3))
_PLACES = (0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28)
_VGG = {**_COMMON, 'model.stages': _STAGES}
_MASK_RCNN = {
  'data.size.short_side': (32,),
  'data.size.longest_side': 64,
  'data.size.shapes': ((64, 64),),
  'model.backbone.width': 4,
  'model.backbone.name': 'resnet18',
  'model.neck.features': 8,
  'model.rpn.train_proposals': (40, 20),
  'model.rpn.test_proposals': (40, 20),
  'model.box_head.hidden': 16,
  'model.box_head.max_detections': 5,
  'model.mask_head.features': 8,
  'model.mask_head.convs': 1,
  'optim.warmup_steps': 0,
}
# Table -> entry -> overrides of its config.
ENTRIES: dict[str, dict[str, dict[str, Any]]] = {
  'segnet_table1': {'segnet_basic_mfb.paper': {**_COMMON, 'model.width': 4}},
  'segnet_table3': {
    'segnet_40k.segnet': _VGG,
    'fcn_learned_40k.fcn_features': {**_VGG, 'model.fc_features': 8},
  },
  'segnet_table6': {},
  'unet_table1': {
    'unet.paper': {
      **_STEPS,
      'train.log_every': 1,
      'model.width': 2,
      'model.depth': 1,
      'data.size.crop_size': (16, 16),
      'eval.test_time_augmentation': 'none',
    }
  },
  'penn_fudan': {'resnet50_fpn.scratch': {**_COMMON, **_MASK_RCNN}},
}


# --- tables ---------------------------------------------------------------------------------------


def shrink_table(path: Path, name: str) -> None:
  """Rewrites a `table.toml` to the rows of `ENTRIES`, with their overrides."""
  content = tomllib.loads(path.read_text(encoding='utf-8'))
  rows = {}
  for entry, overrides in ENTRIES[name].items():
    row, recipe = entry.split('.')
    found = content['rows'][row]
    given = (found.get('recipes') or {}).get(recipe, {})
    merged = {**given.get('overrides', {}), **_spelled(overrides)}
    recipes = {**rows.get(row, {}).get('recipes', {}), recipe: {**given, 'overrides': merged}}
    rows[row] = {**found, 'recipes': recipes}
  content['rows'] = rows or content['rows']
  content.pop('legend', None)  # of rows that are gone
  path.write_text(''.join(f'{key} = {_toml(value)}\n' for key, value in content.items()))


def _spelled(overrides: Mapping[str, Any]) -> dict[str, Any]:
  """As `table.toml` has them: tuples as text."""
  return {k: repr(v) if isinstance(v, tuple) else v for k, v in overrides.items()}


def _toml(value: Any) -> str:
  """A value on one line of TOML."""
  if isinstance(value, Mapping):
    return '{ ' + ', '.join(f'{json.dumps(k)} = {_toml(v)}' for k, v in value.items()) + ' }'
  if isinstance(value, list):
    return '[' + ', '.join(map(_toml, value)) + ']'
  return json.dumps(value, ensure_ascii=False)


# --- data -----------------------------------------------------------------------------------------


def write_data(directory: Path) -> None:
  """Writes all data sets and the weights below a directory, unless they are there."""
  if (directory / 'done').exists():
    return
  rng = np.random.default_rng(0)
  _write_camvid(directory / 'camvid', rng)
  _write_isbi(directory / 'isbi2012', rng)
  _write_penn_fudan(directory / 'PennFudanPed', rng)
  _write_vgg16(directory / 'vgg16_features.safetensors', rng)
  (directory / 'done').touch()


def _write(path: Path, pixels: np.ndarray) -> None:
  path.parent.mkdir(parents=True, exist_ok=True)
  assert cv2.imwrite(str(path), pixels), path


def _write_camvid(directory: Path, rng: np.random.Generator) -> None:
  for split, count in (('train', 4), ('val', 2), ('test', 2)):
    stems = [f'{split}{k}' for k in range(count)]
    for stem in stems:
      label = np.kron(rng.integers(0, 12, (3, 4)), np.ones((8, 8))).astype(np.uint8)
      _write(directory / f'{split}annot' / f'{stem}.png', label)
      _write(directory / split / f'{stem}.jpg', np.stack([20 * label] * 3, -1))
    (directory / f'{split}.txt').write_text('\n'.join(stems) + '\n')


def _write_isbi(directory: Path, rng: np.random.Generator) -> None:
  for k in range(30):
    label = np.kron(rng.random((4, 4)) < 0.8, np.ones((8, 8), bool)).astype(np.uint8) * 255
    _write(directory / 'label' / f'{k}.png', label)
    _write(directory / 'image' / f'{k}.png', label // 2 + 60)


def _write_penn_fudan(directory: Path, rng: np.random.Generator) -> None:
  for k in range(170):
    label = np.zeros((32, 40), np.uint8)
    x = int(rng.integers(2, 20))
    label[4:28, x : x + 10] = 1
    _write(directory / 'PedMasks' / f'Made{k:05d}_mask.png', label)
    _write(directory / 'PNGImages' / f'Made{k:05d}.jpg', np.stack([200 * label] * 3, -1))


def _write_vgg16(path: Path, rng: np.random.Generator) -> None:
  """Weights of a VGG16 of `_STAGES`."""
  arrays, places, channels = {}, iter(_PLACES), 3
  for width, count in _STAGES:
    for _ in range(count):
      name = f'features.{next(places)}'
      kernel = rng.standard_normal((width, channels, 3, 3)) * (2 / (9 * channels)) ** 0.5
      arrays[f'{name}.weight'] = kernel.astype(np.float16)
      arrays[f'{name}.bias'] = np.zeros(width, np.float16)
      channels = width
  save_file(arrays, path)
