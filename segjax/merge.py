"""The config of a merged network, from those of the two runs whose networks it is made of.

`config.model` of `segjax.models.merged.Merged` may name two workdirs. What follows from them is
filled in here: their networks, what each of them is to see of an image, and where the weights are.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from segjax.types import SegjaxError

Config = dict[str, Any]

PARTS = ('semantic', 'instance')
# Keys of `config.data.size` that resize images, each in place of the other.
_RESIZES = ('image_size', 'short_side')


def named_runs(given: Mapping[str, Any]) -> dict[str, str]:
  """The workdirs that a config names as the parts of its network: none, or both.

  Raises:
    SegjaxError: it names only one.
  """
  model = given.get('model')
  model = model if isinstance(model, Mapping) else {}
  paths = {part: model[part] for part in PARTS if isinstance(model.get(part), str)}
  if len(paths) == 1:
    [part] = set(PARTS) - set(paths)
    raise SegjaxError(
      f'config.model.{part} is not a workdir but config.model.{next(iter(paths))} is: name one for '
      'each, or describe both networks'
    )
  return paths


def merged_config(given: Mapping[str, Any], runs: Mapping[str, Mapping[str, Any]]) -> Config:
  """`given` with networks in place of the workdirs that it names.

  Images are resized, padded and normalized as for the instance network, except where `given` says
  otherwise, and turned into what the semantic network saw.

  Args:
    given: `named_runs` has both of it; of its groups `data` and `train` every value has the type of
      its key.
    runs: 'semantic' and 'instance' -> the complete config of that workdir.

  Raises:
    SegjaxError: it is to be trained, or to start from elsewhere; a workdir is of another task; the
      semantic network saw its images in a way that does not follow from the instance network's.
  """
  paths = named_runs(given)
  start = _start(given, paths)
  for part in PARTS:
    if runs[part]['task'] != part:
      raise SegjaxError(
        f'config.model.{part}={paths[part]} is a run of the task {runs[part]["task"]}: name one of '
        f'the task {part}'
      )
  theirs, seen = runs['semantic']['data'], runs['instance']['data']
  normalization = {key: seen[key] for key in ('mean', 'std')}
  size = _size(_of_evaluation(seen['size']), given['data'].get('size') or {})
  data = {**normalization, **given['data'], 'size': size}
  for key, value in normalization.items():
    if tuple(data[key]) != tuple(value):
      raise SegjaxError(
        f'config.data.{key}={tuple(data[key])} but the network of {paths["instance"]} was trained '
        f'with {tuple(value)}: leave it out'
      )
  model = {
    **_semantic_size(_of_evaluation(theirs['size']), size, paths),
    **_renormalize(data, theirs),
    **given['model'],
    **{part: runs[part]['model'] for part in PARTS},
  }
  return {**given, 'model': model, 'data': data, 'init_from': start}


def _start(given: Mapping[str, Any], paths: Mapping[str, str]) -> Config:
  """`config.init_from`: the weights of both runs."""
  if (given.get('train') or {}).get('steps') != 0:
    raise SegjaxError(
      'config.train.steps: a merged network is not trained: set it to 0, and train its parts'
    )
  init_from = given.get('init_from')
  init_from = {} if init_from in (None, 'none') else init_from
  if 'path' in init_from:
    raise SegjaxError(
      'config.init_from.path: a merged network starts from its parts: leave it out (a row of a '
      'table: its init_from)'
    )
  if init_from.get('reset'):
    raise SegjaxError(
      'config.init_from.reset: a merged network takes over all of its parts: leave it out'
    )
  return {'checkpoint': 'best', **init_from, 'path': dict(paths)}


def _of_evaluation(size: Mapping[str, Any]) -> Config:
  """A run's sizes without the one of training alone."""
  return {**size, 'image_size': None} if size['short_side'] is not None else {**size}


def _size(seen: Mapping[str, Any], given: Mapping[str, Any]) -> Config:
  """How the instance network saw its images, but for a resizing that `given` replaces."""
  replaced = any(given.get(key) is not None for key in _RESIZES)
  return {**seen, 'crop_size': None, **(dict.fromkeys(_RESIZES) if replaced else {}), **given}


def _semantic_size(theirs: Mapping[str, Any], size: Mapping[str, Any], paths: Any) -> Config:
  """The size at which the semantic network sees an image that was resized by `size`."""
  rule = lambda s: s['short_side'] and (max(s['short_side']), s['longest_side'])
  same = rule(theirs) == rule(size) and size['image_size'] is None
  if theirs['image_size'] is None and not same:
    how = 'by their shorter side' if theirs['short_side'] else 'at their own size'
    raise SegjaxError(
      f'the network of {paths["semantic"]} was trained on images {how} and that of '
      f'{paths["instance"]} on images resized in another way: train the first with '
      'config.data.size.image_size, or merge another one'
    )
  return {'semantic_size': theirs['image_size'], 'semantic_resize': theirs['resize']}


def check_classes(
  class_names: tuple[str, ...],
  things: tuple[int, ...],
  found: Mapping[str, tuple[str, ...]],
  paths: Mapping[str, str],
) -> None:
  """Checks that two networks have the classes of a panoptic data set.

  Args:
    class_names: of the data set.
    things: which of them are things.
    found: 'semantic' and 'instance' -> the classes of that network.
    paths: the workdir of each.

  Raises:
    SegjaxError: one has others, or in another order.
  """
  wanted = {'semantic': class_names, 'instance': tuple(class_names[i] for i in things)}
  for part, names in wanted.items():
    if tuple(found[part]) != names:
      raise SegjaxError(
        f'config.model.{part}={paths[part]} was trained on the classes {_spell(found[part])} and '
        f'not on {_spell(names)}: name a run on the classes of config.data.name'
      )


def _renormalize(data: Mapping[str, Any], theirs: Mapping[str, Any]) -> dict[str, tuple]:
  """The semantic network's scale and shift of images that are normalized by `data`."""
  values = (group[key] for group in (data, theirs) for key in ('mean', 'std'))
  mean, std, their_mean, their_std = np.broadcast_arrays(*(np.float64(value) for value in values))
  shift = (mean - their_mean) / their_std
  return {
    'semantic_scale': tuple((std / their_std).tolist()),
    'semantic_shift': tuple(shift.tolist()),
  }


def _spell(names: tuple[str, ...]) -> str:
  return ', '.join(names[:5]) + (f', … ({len(names)})' if len(names) > 5 else '')
