"""Initializes a network from a weights file or from another run."""

import dataclasses
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np
import safetensors.numpy

from segjax import storage
from segjax.convert import (
  addresses,
  caffe,
  detectron2,
  eomt,
  own,
  segformer,
  torchvision,
  torchvision_detection,
)
from segjax.convert.table import convert, first, fitting, matches
from segjax.convert.weights import read_metadata, read_weights
from segjax.types import NonNegativeInt, SegjaxError, nearest

SOURCES = {
  **torchvision.SOURCES,
  **torchvision_detection.SOURCES,
  **detectron2.SOURCES,
  **caffe.SOURCES,
  **eomt.SOURCES,
  **segformer.SOURCES,
}


@dataclasses.dataclass(frozen=True)
class InitFrom:
  """Keys of `config.init_from`: initial weights of a run.

  Attributes:
    path: a file written by `segjax convert`, a weights file of `source` or the directory of a model
      of transformers, or the workdir of another run or what `segjax export --format=safetensors`
      made of it; for a merged network, a mapping from part to path. None downloads the file of
      `source`, see `segjax.convert.addresses`.
    source: the network of another framework that the file is of, a name in `SOURCES`.
    checkpoint: of a workdir: 'latest', 'best', or a step.
    reset: what keeps its initialization: 'heads' for the class-specific head layers, to fine-tune
      to other classes, or regular expressions that are searched in the paths of parameters.
  """

  path: str | Mapping[str, str] | None = None
  source: str | None = None
  checkpoint: Literal['latest', 'best'] | NonNegativeInt = 'best'
  reset: Literal['heads'] | tuple[str, ...] = ()

  def __post_init__(self):
    if self.path is None and self.source is None:
      raise SegjaxError(
        'config.init_from.path is missing: set it to a weights file or a workdir, or set '
        'config.init_from.source to download its weights'
      )


@dataclasses.dataclass(frozen=True)
class Pretrained:
  """Pretrained arrays.

  Attributes:
    where: their origin, for reports and errors.
    arrays: by path, such as params/conv1_1/kernel.
    new: patterns of paths that may be missing in `arrays`; by default any.
    spare: patterns of paths in `arrays` that the network may not have; by default any.
    resized: see `segjax.convert.table.Source`.
  """

  where: str
  arrays: Mapping[str, Any]
  new: tuple[str, ...] = ('',)
  spare: tuple[str, ...] = ('',)
  resized: tuple[tuple[str, Callable[[Any, tuple[int, ...]], Any]], ...] = ()


@dataclasses.dataclass(frozen=True)
class Report:
  """The paths that `load_into` loaded, re-initialized, did not find, and did not use."""

  where: str
  loaded: tuple[str, ...]
  new: tuple[str, ...]
  unused: tuple[str, ...]
  reset: tuple[str, ...] = ()

  def __str__(self) -> str:
    parts = [f'{len(self.loaded)} arrays from {self.where}']
    for verb, paths in (
      ('are re-initialized', self.reset),
      ('keep their initialization', self.new),
      ('are not used', self.unused),
    ):
      layers = sorted({_layer(path) for path in paths})
      parts += [f'{", ".join(layers)} {verb}'] * bool(layers)
    return '; '.join(parts)


def _layer(path: str) -> str:
  """'head/conv' of 'params/head/conv/kernel', and 'query' of 'params/query'."""
  name = path.split('/', 1)[-1]
  return name.rpartition('/')[0] or name


def is_of_run(path: str | Path) -> bool:
  """Whether `own.write` wrote the file."""
  return read_metadata(path).get(own.NOTE) == own.SOURCE


def read_pretrained(path: str | Path, source: str | None = None) -> Pretrained:
  """Reads a file written by `convert_file` or `own.write`, or a weights file of `source`.

  Raises:
    SegjaxError: the file cannot be read, or does not match its source.
  """
  if is_of_run(path):
    return of_run(str(path), own.read(Path(path))[0])
  noted = read_metadata(path).get(own.NOTE)
  if noted and source and noted != source:
    raise SegjaxError(
      f'{path} was converted from {noted}, not from {source}: set config.init_from.source=none, or '
      'give another file'
    )
  name = noted or source
  arrays = read_weights(path)
  if name is None:
    names = ' or '.join(fitting(arrays, SOURCES))
    raise SegjaxError(
      f'{path} was not written by segjax convert: set config.init_from.source='
      + (names or 'NAME (no known source has these arrays)')
    )
  check_source(name)
  if not noted:
    arrays = convert(arrays, SOURCES, name, str(path))
  known = SOURCES[name]
  built_in = [f'^{re.escape(p)}$' for p, test in known.constants if p in arrays and test(arrays[p])]
  spare = (*known.spare, *built_in)
  return Pretrained(str(path), arrays, known.new, spare, known.resized)


def of_run(where: str, arrays: Mapping[str, Any]) -> Pretrained:
  """The weights of another run, `{'params/conv1_1/kernel': array, …}`."""
  # How much attention is masked is for the new run's schedule to say.
  return Pretrained(where, {k: v for k, v in arrays.items() if not k.startswith('masked/')})


def as_parts(parts: Mapping[str, Pretrained]) -> Pretrained:
  """Combines the arrays of several networks for a network that has them as parts."""
  arrays = {}
  for name, pretrained in parts.items():
    for path, value in pretrained.arrays.items():
      collection, _, rest = path.partition('/')
      arrays[f'{collection}/{name}/{rest}'] = value
  where = ' and '.join(pretrained.where for pretrained in parts.values())
  return Pretrained(where, arrays, new=(), spare=())


def check_source(name: str) -> None:
  """Raises a SegjaxError with the nearest name if this is not one in `SOURCES`."""
  if name not in SOURCES:
    raise SegjaxError(f'unknown source {name}{nearest_source(name, SOURCES)}')


def nearest_source(name: str, names: Iterable[str]) -> str:
  """`': did you mean X?'`, as `nearest`.

  Args:
    name: one of `names` misspelt or without its framework ('segformer_b0'), or the id of a model on
      the Hugging Face Hub ('nvidia/segformer-b0-finetuned-ade-512-512'), or its address.
    names: in `SOURCES`.
  """
  names = list(names)
  if found := _published_as(name, names) or _spelled(name, names):
    return f': did you mean {" or ".join(found)}?'
  return nearest(name, names)


def _published_as(name: str, names: Iterable[str]) -> list[str]:
  """The first source that is downloaded from the directory of this name, if any."""
  model = (name.partition('huggingface.co/')[2] or name).strip('/')
  remotes = {source: addresses.find(source) for source in names} if '/' in model else {}
  return [source for source, file in remotes.items() if file and f'/{model}/' in file.url][:1]


def _spelled(name: str, names: Iterable[str]) -> list[str]:
  """The sources of this name without their framework; for a Hub id also what it begins with."""
  alike = lambda text: text.lower().replace('-', '_')
  owner, _, wanted = alike(name).rpartition('/')
  spellings = {}
  for source in names:
    framework, _, short = alike(source).partition('/')
    spellings[source] = (short, f'{framework}_{short}')
  if found := [source for source, ours in spellings.items() if wanted in ours]:
    return found
  if not owner or owner in {alike(source).partition('/')[0] for source in spellings}:
    return []
  begins = lambda ours: max(len(text) * wanted.startswith(f'{text}_') for text in ours)
  longest = max(spellings, key=lambda source: begins(spellings[source]), default=None)
  return [longest] if longest and begins(spellings[longest]) else []


def convert_file(
  source: str,
  weights: str | Path | None,
  output: str | Path,
  report: Callable[[str], None] | None = None,
) -> int:
  """Converts a weights file of another framework to our names and layout.

  Args:
    source: a name in `SOURCES`.
    weights: the file to read, see `read_weights`; None downloads that of `source`.
    output: the `.safetensors` file to write (atomically).
    report: called with a line before a download.

  Returns:
    The number of arrays.

  Raises:
    SegjaxError: see `read_pretrained`; or `output` is not a `.safetensors` file.
  """
  check_source(source)
  output = storage.local_path(output, '--output')
  if output.suffix != '.safetensors':
    raise SegjaxError(f'--output={output} must end in .safetensors')
  if weights is None:
    weights = addresses.get(source, report)
  arrays = convert(read_weights(weights), SOURCES, source, str(weights))
  notes = {own.NOTE: source, 'input': SOURCES[source].input}
  storage.write_bytes(output, safetensors.numpy.save(arrays, notes))
  return len(arrays)


def flat_paths(tree: Any) -> dict[str, Any]:
  """Flattens a tree of variables to `{'params/conv1_1/kernel': array, …}`."""
  leaves = jax.tree_util.tree_leaves_with_path(tree)
  return {jax.tree_util.keystr(path, simple=True, separator='/'): leaf for path, leaf in leaves}


def load_into(
  params: Any, model_state: Any, pretrained: Pretrained, reset: Sequence[str] = ()
) -> tuple[Any, Any, Report]:
  """Loads the arrays of `pretrained` into `params` and `model_state` by path.

  Unmatched parameters keep their initialization.

  Args:
    params: parameters of the network.
    model_state: other collections, such as `{'batch_stats': …}`.
    pretrained: from `read_pretrained`, or `of_run`.
    reset: patterns of paths, without their collection, that keep their initialization whatever
      `pretrained` has.

  Returns:
    params, model_state, and a report.

  Raises:
    SegjaxError: nothing matches; a shape differs; there are missing or unexpected paths that
      `pretrained` does not allow; or a pattern of `reset` matches nothing.
  """
  variables = {'params': params, **model_state}
  where = pretrained.where
  _check_reset(reset, flat_paths(variables))
  target, kept = _split(flat_paths(variables), reset)
  arrays, _ = _split(_fitted(pretrained, target), reset)
  loaded = sorted(target.keys() & arrays.keys())
  if not loaded:
    raise SegjaxError(
      f'{where} has no array of this network (it has {first(sorted(arrays))}; the network has '
      f'{first(sorted(target))}): set config.init_from to weights of this network'
    )
  for path in loaded:
    theirs, ours = tuple(arrays[path].shape), tuple(target[path].shape)
    if theirs != ours:
      remedy = 'for other classes set config.init_from.reset=heads'
      if len(ours) == 4 and (theirs[2], ours[2]) == (3, 1):
        remedy = 'to read gray images as RGB set config.data.files.channels=3'
      raise SegjaxError(
        f'{where} has {path} of shape {theirs} where this network has {ours}: change config.model '
        f'or config.init_from, or {remedy}'
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
      f'{where} has {first(surplus)}, which this network does not have: change config.model or '
      'config.init_from'
    )

  def replace(path: Any, leaf: Any) -> Any:
    name = jax.tree_util.keystr(path, simple=True, separator='/')
    return np.asarray(arrays[name], leaf.dtype) if name in arrays else leaf

  filled = jax.tree_util.tree_map_with_path(replace, variables)
  report = Report(where, tuple(loaded), tuple(new), tuple(unused), tuple(sorted(kept)))
  return filled.pop('params'), filled, report


def _fitted(pretrained: Pretrained, target: Mapping[str, Any]) -> Mapping[str, Any]:
  """The arrays, of which those that can be are resized to the shapes of the network."""
  arrays = dict(pretrained.arrays)
  for path in arrays.keys() & target.keys():
    shape = tuple(target[path].shape)
    for pattern, resize in pretrained.resized:
      same_kind = arrays[path].shape[2:] == shape[2:] and len(shape) > 2
      if re.search(pattern, path) and arrays[path].shape != shape and same_kind:
        arrays[path] = resize(arrays[path], shape)
  return arrays


def _split(
  arrays: Mapping[str, Any], reset: Sequence[str]
) -> tuple[dict[str, Any], dict[str, Any]]:
  """(the other arrays, those that a pattern of `reset` is found in), by path."""
  kept = {path for path in arrays if matches(path.partition('/')[2], reset)}
  return {p: a for p, a in arrays.items() if p not in kept}, {p: arrays[p] for p in kept}


def _check_reset(reset: Sequence[str], paths: Iterable[str]) -> None:
  names = [path.partition('/')[2] for path in paths]
  for pattern in reset:
    try:
      found = any(re.search(pattern, name) for name in names)
    except re.error as e:
      raise SegjaxError(
        f'config.init_from.reset: {pattern!r} is not a regular expression: {e}'
      ) from e
    if not found:
      raise SegjaxError(
        f'config.init_from.reset: {pattern!r} matches no parameter; paths look like {names[-1]}'
      )
