"""The config of a merged network, from those of the two runs whose networks it is made of.

`config.model` of `segjax.models.merged.Merged` may name two workdirs. What follows from them is put
in place here: their networks, what each of them is to see of an image, and where the weights are.
"""

from collections.abc import Mapping
from typing import Any

from segjax.types import SegjaxError

Config = dict[str, Any]

PARTS = ('semantic', 'instance')
# Keys of `config.data` by which the instance network sees its images.
_SEEN = ('mean', 'std', 'short_side', 'jitter', 'longest_side', 'shapes')
# Of those, the ones that scale images, each in place of the other.
_SCALES = ('short_side', 'jitter')


def named_runs(given: Mapping[str, Any]) -> dict[str, str]:
  """The workdirs that a config names as the parts of its network: none, or both.

  Raises:
    SegjaxError: it names one alone.
  """
  model = given.get('model')
  model = model if isinstance(model, Mapping) else {}
  paths = {part: model[part] for part in PARTS if isinstance(model.get(part), str)}
  if len(paths) == 1:
    [part] = set(PARTS) - set(paths)
    raise SegjaxError(
      f'config.model.{part} is no workdir but config.model.{next(iter(paths))} is: name one for '
      'each, or describe both networks'
    )
  return paths


def merged_config(given: Mapping[str, Any], runs: Mapping[str, Mapping[str, Any]]) -> Config:
  """`given` with networks in place of the workdirs that it names.

  Images are scaled, padded and normalised as for the instance network, but where `given` says
  otherwise, and turned into what the semantic network saw.

  Args:
    given: `named_runs` has both of it; its groups are groups, and of `data` and `train` every value
      is of its key's type.
    runs: 'semantic' and 'instance' -> the complete config of that workdir.

  Raises:
    SegjaxError: it is to be trained, or to start from elsewhere; a workdir is of another task; the
      semantic network saw its images in a way that does not follow from the instance network's.
  """
  paths = named_runs(given)
  if given.get('train', {}).get('steps') != 0:
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
  for part in PARTS:
    if runs[part]['task'] != part:
      raise SegjaxError(
        f'config.model.{part}={paths[part]} is a run of the task {runs[part]["task"]}: name one of '
        f'the task {part}'
      )
  theirs, seen = runs['semantic']['data'], runs['instance']['data']
  data = {**_taken(seen, given['data']), **given['data']}
  for key in ('mean', 'std'):
    if tuple(data[key]) != tuple(seen[key]):
      raise SegjaxError(
        f'config.data.{key}={tuple(data[key])} but the network of {paths["instance"]} was trained '
        f'with {tuple(seen[key])}: leave it out'
      )
  if theirs['image_size'] is None and any(data[k] is not None for k in _SCALES):
    raise SegjaxError(
      f'the network of {paths["semantic"]} was trained on images at their own size and that of '
      f'{paths["instance"]} on scaled ones: train the first with config.data.image_size, or merge '
      'another one'
    )
  model = {
    'semantic_size': theirs['image_size'],
    'semantic_resize': theirs['resize'],
    **_renormalise(data, theirs),
    **given['model'],
    **{part: runs[part]['model'] for part in PARTS},
  }
  start = {'checkpoint': 'best', **init_from, 'path': paths}
  return {**given, 'model': model, 'data': data, 'init_from': start}


def check_classes(
  class_names: tuple[str, ...],
  things: tuple[int, ...],
  found: Mapping[str, tuple[str, ...]],
  paths: Mapping[str, str],
) -> None:
  """Checks that two networks know the classes of a panoptic data set.

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


def _taken(seen: Mapping[str, Any], given: Mapping[str, Any]) -> Config:
  """By what the instance network saw its images, but for a scaling that `given` has another of."""
  taken = {key: seen[key] for key in _SEEN}
  scaled = any(given.get(key) is not None for key in _SCALES)
  return {**taken, **dict.fromkeys(_SCALES)} if scaled else taken


def _renormalise(data: Mapping[str, Any], theirs: Mapping[str, Any]) -> dict[str, tuple]:
  """The semantic network's scale and shift of images that are normalised by `data`."""
  mean, std, their_mean, their_std = _alike(
    data['mean'], data['std'], theirs['mean'], theirs['std']
  )
  return {
    'semantic_scale': tuple(s / t for s, t in zip(std, their_std, strict=True)),
    'semantic_shift': tuple(
      (m - n) / t for m, n, t in zip(mean, their_mean, their_std, strict=True)
    ),
  }


def _alike(*values: tuple[float, ...]) -> list[tuple[float, ...]]:
  """All of one length: one number is for each channel."""
  length = max(map(len, values))
  return [tuple(v) * (length if len(v) == 1 else 1) for v in values]


def _spell(names: tuple[str, ...]) -> str:
  return ', '.join(names[:5]) + (f', … ({len(names)})' if len(names) > 5 else '')
