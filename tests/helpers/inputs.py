"""Configs of the data from flat keywords."""

import dataclasses
from typing import Any

from segjax.data.config import Augment, BatchConfig, DataConfig, InputConfig, SizeConfig

_BATCH = {'batch_size': 'size', 'eval_batch_size': 'eval_size'}


def input_config(
  name: str = 'tiny', annotations: tuple[str, ...] = ('label',), **keys: Any
) -> InputConfig:
  """A config with these keys of any group; `batch_size` and `eval_batch_size` are `batch`'s."""
  data = DataConfig(name, mean=keys.pop('mean', (127.5,)))
  return changed(InputConfig(data, annotations=annotations), **keys)


def changed(config: InputConfig, **keys: Any) -> InputConfig:
  """`config` with these keys of any group; `augment` is a dict of its keys."""
  if 'annotations' in keys:
    config = dataclasses.replace(config, annotations=keys.pop('annotations'))
  augment = dataclasses.replace(config.augment, **keys.pop('augment', {}))
  size, batch, data = {}, {}, {}
  for key, value in keys.items():
    if key in SizeConfig.__dataclass_fields__:
      size[key] = value
    elif key in _BATCH or key in BatchConfig.__dataclass_fields__:
      batch[_BATCH.get(key, key)] = value
    elif key in Augment.__dataclass_fields__:
      augment = dataclasses.replace(augment, **{key: value})
    else:
      data[key] = value
  return dataclasses.replace(
    config,
    data=dataclasses.replace(
      config.data, size=dataclasses.replace(config.data.size, **size), **data
    ),
    augment=augment,
    batch=dataclasses.replace(config.batch, **batch),
  )
