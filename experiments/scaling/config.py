"""Small networks on the built-in synthetic scenes that no shipped config has, for `layouts.py`."""

import ml_collections

from segjax.config import base_config

MODELS = {
  'segnet': {
    'name': 'segnet.SegNet',
    'classes': 9,
    'stages': ((16, 2), (32, 2)),
    'dropout': 0.5,
    'dropout_stages': (2,),
  },
  'fcn': {
    'name': 'fcn.FCN',
    'classes': 9,
    'variant': '8s',
    'stages': ((8, 1), (8, 1), (16, 1), (16, 1), (16, 1)),
    'fc_features': 64,
  },
}


def get_config(model: str) -> ml_collections.ConfigDict:
  config = base_config(__file__, '../../configs/unet/scenes.py')
  config.model = MODELS[model]
  return config
