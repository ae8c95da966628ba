"""Starts a network from weights: of a file, converted or not yet, or of another run."""

import dataclasses
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np
import safetensors.numpy

from segjax.convert import caffe, detectron2, torchvision, torchvision_detection
from segjax.convert.table import convert, first, fitting, matches
from segjax.convert.weights import read_metadata, read_weights
from segjax.types import NonNegativeInt, SegjaxError, nearest

SOURCES = {
  **torchvision.SOURCES,
  **torchvision_detection.SOURCES,
  **detectron2.SOURCES,
  **caffe.SOURCES,
}
# What notes in a converted file which source it is from.
_NOTE = 'segjax_source'


@dataclasses.dataclass(frozen=True)
class InitFrom:
  """Keys of `config.init_from`: the weights that a new run starts from.

  Attributes:
    path: a file that `segjax convert` wrote, a weights file of `source`, or another run's workdir;
      for a network of several networks, the name of each -> such a path.
    source: the network of another program whose weights file `path` is, a name in `SOURCES`.
    checkpoint: of a workdir: 'latest', 'best', or a step.
  """

  path: str | Mapping[str, str]
  source: str | None = None
  checkpoint: Literal['latest', 'best'] | NonNegativeInt = 'best'


@dataclasses.dataclass(frozen=True)
class Pretrained:
  """Arrays to start from.

  Attributes:
    where: what they were read from, for reports and errors.
    arrays: by path, such as params/conv1_1/kernel.
    new: patterns of the paths that a network may have beyond them; by default any.
    spare: patterns of the paths here that a network may lack; by default any.
  """

  where: str
  arrays: Mapping[str, Any]
  new: tuple[str, ...] = ('',)
  spare: tuple[str, ...] = ('',)


@dataclasses.dataclass(frozen=True)
class Report:
  """What `load_into` did with each path."""

  where: str
  loaded: tuple[str, ...]
  new: tuple[str, ...]
  unused: tuple[str, ...]

  def __str__(self) -> str:
    parts = [f'{len(self.loaded)} arrays from {self.where}']
    for verb, paths in (('keep their initialization', self.new), ('are not used', self.unused)):
      layers = sorted({path.split('/', 1)[-1].rpartition('/')[0] for path in paths})
      parts += [f'{", ".join(layers)} {verb}'] * bool(layers)
    return '; '.join(parts)


def read_pretrained(path: str | Path, source: str | None = None) -> Pretrained:
  """The arrays of a file that `convert_file` wrote, or of the weights file of `source`.

  Raises:
    SegjaxError: the file cannot be read, or is not what it is said to be.
  """
  name = source or read_metadata(path).get(_NOTE)
  arrays = read_weights(path)
  if name is None:
    names = ' or '.join(fitting(arrays, SOURCES))
    raise SegjaxError(
      f'{path} was not written by segjax convert: name its network in config.init_from.source='
      + (names or 'NAME, though the arrays of no known source are like these')
    )
  _check_source(name)
  if source is not None:
    arrays = convert(arrays, SOURCES, source, str(path))
  known = SOURCES[name]
  built_in = [f'^{re.escape(p)}$' for p, test in known.constants if p in arrays and test(arrays[p])]
  return Pretrained(str(path), arrays, known.new, (*known.spare, *built_in))


def as_parts(parts: Mapping[str, Pretrained]) -> Pretrained:
  """The arrays of several networks as those of one that has them as parts, and nothing else."""
  arrays = {}
  for name, pretrained in parts.items():
    for path, value in pretrained.arrays.items():
      collection, _, rest = path.partition('/')
      arrays[f'{collection}/{name}/{rest}'] = value
  where = ' and '.join(pretrained.where for pretrained in parts.values())
  return Pretrained(where, arrays, new=(), spare=())


def _check_source(name: str) -> None:
  if name not in SOURCES:
    raise SegjaxError(f'unknown source {name}{nearest(name, SOURCES)}')


def convert_file(source: str, weights: str | Path, output: str | Path) -> int:
  """`segjax convert`: writes a weights file of another program by our names and in our layout.

  Args:
    source: a name in `SOURCES`.
    weights: the file to read, see `read_weights`.
    output: the `.safetensors` file to write, whole or not at all.

  Returns:
    The number of arrays.

  Raises:
    SegjaxError: see `read_pretrained`; or `output` is not a `.safetensors` file.
  """
  _check_source(source)
  output = Path(output)
  if output.suffix != '.safetensors':
    raise SegjaxError(f'--output={output} must end in .safetensors')
  arrays = convert(read_weights(weights), SOURCES, source, str(weights))
  output.parent.mkdir(parents=True, exist_ok=True)
  temporary = output.with_name(output.name + '.tmp')
  notes = {_NOTE: source, 'input': SOURCES[source].input}
  safetensors.numpy.save_file(arrays, temporary, notes)
  temporary.replace(output)
  return len(arrays)


def flat_paths(tree: Any) -> dict[str, Any]:
  """`{'params/conv1_1/kernel': array, …}` of a tree of variables."""
  leaves = jax.tree_util.tree_leaves_with_path(tree)
  return {jax.tree_util.keystr(path, simple=True, separator='/'): leaf for path, leaf in leaves}


def load_into(params: Any, model_state: Any, pretrained: Pretrained) -> tuple[Any, Any, Report]:
  """`params` and `model_state` with every array of `pretrained` that they have by name.

  What `pretrained` lacks keeps its initialization.

  Args:
    params: the network's parameters.
    model_state: its other collections, such as `{'batch_stats': …}`.
    pretrained: from `read_pretrained`, or of another run: `Pretrained(workdir, flat_paths(…))`.

  Returns:
    params, model_state, and a report to show.

  Raises:
    SegjaxError: nothing matches; a shape differs; or what `pretrained` may lack, or the network may
      leave unused, is more than `pretrained` says.
  """
  variables = {'params': params, **model_state}
  target, arrays, where = flat_paths(variables), pretrained.arrays, pretrained.where
  loaded = sorted(target.keys() & arrays.keys())
  if not loaded:
    raise SegjaxError(
      f'{where} has nothing that this network has (it has {first(sorted(arrays))}; the network '
      f'has {first(sorted(target))}): set config.init_from to weights of such a network'
    )
  for path in loaded:
    theirs, ours = tuple(arrays[path].shape), tuple(target[path].shape)
    if theirs != ours:
      raise SegjaxError(
        f'{where} has {path} of shape {theirs} where this network has {ours}: set config.model to '
        'the sizes of those weights, or config.init_from to others'
      )
  new, unused = sorted(target.keys() - arrays.keys()), sorted(arrays.keys() - target.keys())
  missing = [path for path in new if not matches(path, pretrained.new)]
  if missing:
    raise SegjaxError(
      f'{where} does not have {first(missing)}: set config.init_from to weights that do'
    )
  surplus = [path for path in unused if not matches(path, pretrained.spare)]
  if surplus:
    raise SegjaxError(
      f'{where} has {first(surplus)}, which this network does not have: set config.init_from '
      'to weights without, or config.model to a network with it'
    )

  def replace(path: Any, leaf: Any) -> Any:
    name = jax.tree_util.keystr(path, simple=True, separator='/')
    return np.asarray(arrays[name], leaf.dtype) if name in arrays else leaf

  filled = jax.tree_util.tree_map_with_path(replace, variables)
  report = Report(where, tuple(loaded), tuple(new), tuple(unused))
  return filled.pop('params'), filled, report
