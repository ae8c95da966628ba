"""`segjax new`: looks at users' own files and writes a config that trains on them."""

import argparse
import functools
import os
import re
import shlex
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from segjax import config as config_lib
from segjax import experiment as experiment_lib
from segjax import run as run_lib
from segjax import storage
from segjax.config_file import Code, printable, render
from segjax.convert.load import nearest_source
from segjax.data import datasets, guess, source_reader, statistics
from segjax.data import images as images_lib
from segjax.data.config import DataConfig, InputConfig
from segjax.data.statistics import Statistics
from segjax.recipes import (
  PUBLISHED,
  WEIGHTS,
  WEIGHTS_MEAN,
  WEIGHTS_STD,
  Facts,
  Machine,
  Note,
  find_weights,
  make_recipe,
)
from segjax.types import PositiveInt, SegjaxError

EXAMPLE = """examples:
  segjax new --task=semantic --images=my/images --labels=my/masks --output=my_config.py
  segjax new --task=instance --images=export/ --output=cells.py --config.data.files.split_seed=1
  segjax new --task=instance --images=export/ --weights=torchvision/maskrcnn_resnet50_fpn

--config.KEY=VALUE sets a key of the config that is written."""

# The examples of a split whose pixels are read; the sizes of all images are.
_LIMIT = 2_000
# A class with a smaller fraction of the pixels is hard to learn.
RARE = 1e-3
# With fewer images a metric says little.
_FEW = 10
# Names that are shown of a long list.
_SHOWN = 5
# Classes that are listed one by one.
_LISTED = 20
# How the names of splits begin, in the order of preference: train, train2017, training.
_TRAIN, _EVAL = ('train',), ('val', 'test')
# Names of classes that files have by number alone.
_NUMBERED = re.compile(r'class[ _]?\d+')
_NETWORKS = {
  'deeplab.DeepLabV3': 'DeepLabV3 on a ResNet',
  'fcn.FCNResNet': 'FCN on a ResNet',
  'segformer.SegFormer': 'SegFormer',
  'unet.UNet': 'U-Net',
  'mask_rcnn.MaskRCNN': 'Mask R-CNN',
  'panoptic_fpn.PanopticFPN': 'Panoptic FPN',
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
  tasks = ('semantic', 'instance', 'panoptic')
  parser.add_argument('--task', required=True, choices=tasks, help='what to train for')
  path, output = storage.user_path, Path('my_config.py')
  parser.add_argument('--images', type=path, help='directory of images, or of a whole export')
  parser.add_argument('--labels', type=path, help='directory or file of the annotations')
  parser.add_argument('--output', type=path, default=output, help='file to write')
  parser.add_argument(
    '--weights',
    type=_weights,
    choices=WEIGHTS,
    metavar='NAME',
    help='published weights to start from instead of from scratch, by default none: '
    + ', '.join(WEIGHTS),
  )
  parser.add_argument(
    '--gpu_memory',
    type=float,
    metavar='GIB',
    help='write for a GPU of so much memory instead of for this machine',
  )
  parser.add_argument('--data_dir', help='directory to write prepared data sets to')
  parser.add_argument('--force', action='store_true', help='overwrite the file')


def _weights(text: str) -> str:
  """The `type` of --weights, whose errors are shorter than a list of all names."""
  if text in WEIGHTS:
    return text
  if storage.user_path(text).exists():
    raise argparse.ArgumentTypeError(
      f'{text} is on this disk: name its network as segjax new --help lists it, --weights=NAME, '
      f'and set --config.init_from.path={text}'
    )
  raise argparse.ArgumentTypeError(f'{text} is unknown{nearest_source(text, WEIGHTS)}')


def run(args: argparse.Namespace) -> int:
  _check_output(args.output, force=args.force)
  if args.weights:
    find_weights(args.weights, args.task)
  machine = this_machine() if args.gpu_memory is None else _gpu(args.gpu_memory)
  given = functools.partial(_given, args.overrides)
  outside = given('data.files.outside', bool, False)
  with images_lib.pixel_limit(given('data.max_pixels', PositiveInt, images_lib.MAX_PIXELS)):
    said = _said_of_values(args.overrides)
    found = guess.guess(args.task, args.images, args.labels, outside=outside, given=said)
    _show(found.found)
    if args.weights:
      found = with_weights(found)
    look = look_at(found, args.task, args.data_dir, args.overrides)
    _show(describe(look))
    text = write_config(look, args.output, args.overrides, machine, args.weights)
    problems = [*found.problems, *find_problems(look)]
  if problems:
    _show(['', 'what looks wrong:', *(f'  - {problem}' for problem in problems)])
  experiment = _check(text, args.output)
  path, run_name = shlex.quote(str(args.output)), shlex.quote(f'runs/{args.output.stem}')
  network = _network_name(experiment.model_config['name'])
  _show(
    [
      '',
      f'wrote {args.output}: {network}, {_count_of(experiment.train.steps, "step")} of '
      f'{_count_of(experiment.batch.size, "image")}; train it with',
      f'  segjax train --config={path} --workdir={run_name}',
    ]
  )
  return 0


def with_weights(found: guess.Guess) -> guess.Guess:
  """The files as published weights take them: gray images are read as RGB."""
  gray = (found.files or {}).get('channels') == 1
  return found._replace(files={**found.files, 'channels': 3}) if gray else found


def _gpu(gibibytes: float) -> Machine:
  if not 0 < gibibytes < 10_000:
    raise SegjaxError(f'--gpu_memory={gibibytes:g} must be the GiB of a GPU, such as 24')
  return Machine(True, int(gibibytes * 2**30))


def _given(overrides: Sequence[tuple[str, str]], key: str, hint: Any, default: Any) -> Any:
  """The value of a key that counts before there is a config."""
  given = dict(overrides).get(key)
  if given is None:
    return default
  return config_lib.check_value(config_lib.parse_value(given), hint, f'config.{key}')


def _said_of_values(overrides: Sequence[tuple[str, str]]) -> guess.Given:
  """`first` and `void`; of another type, which the format may have or refuse, they do not count."""
  first, void = (_given(overrides, f'data.files.{key}', Any, None) for key in ('first', 'void'))
  void = _plain(void) if isinstance(void, list | tuple) else ()
  return guess.Given(
    first if type(first) is int else None,
    tuple(value for value in void if type(value) is int or _is_color(value)),
  )


def _is_color(value: Any) -> bool:
  return isinstance(value, tuple) and [type(part) for part in value] == [int] * 3


def _check_output(output: Path, *, force: bool) -> None:
  if output.suffix != '.py':
    raise SegjaxError(f'--output={output} must be a Python file: end its name in .py')
  if output.is_dir() or not output.absolute().parent.is_dir():
    raise SegjaxError(f'--output={output}: name a file in a directory that exists')
  if output.exists() and not force:
    raise SegjaxError(f'{output} exists: name another --output, or overwrite it with --force')


# --- looking at the data --------------------------------------------------------------------------


class Look(NamedTuple):
  """What was seen of a data set.

  Attributes:
    task: to train for.
    data: the keys of `config.data` that name the data set.
    spec: its classes.
    train, val: the splits to train and to evaluate on, in TFDS's notation.
    seen: statistics of these splits.
    sizes: (height, width) of all of their images.
    counts: their numbers of examples, all of which need not have been looked at.
  """

  task: str
  data: dict[str, Any]
  spec: datasets.DatasetSpec
  train: str
  val: str
  seen: Mapping[str, Statistics]
  sizes: Sequence[tuple[int, int]]
  counts: Mapping[str, int]

  @property
  def annotations(self) -> tuple[str, ...]:
    return experiment_lib.task_module(self.task).ANNOTATIONS

  @property
  def largest(self) -> int:
    """Objects of the fullest image."""
    return max(example.objects for seen in self.seen.values() for example in seen.examples)


def look_at(
  found: guess.Guess, task: str, data_dir: str | None, overrides: Sequence[tuple[str, str]] = ()
) -> Look:
  """Prepares a data set and reads through it.

  Args:
    found: which files, and how they are read.
    task: to train for.
    data_dir: of prepared data sets; None for the default.
    overrides: of the config, of which those of the data set count.

  Raises:
    SegjaxError: what is wrong with the files, or nothing is annotated in them.
  """
  # Absolute, so that the config works from any directory.
  data: dict[str, Any] = {'name': found.name, 'source': os.path.abspath(found.source)}
  data |= {'dir': str(storage.absolute(storage.as_path(data_dir)))} if data_dir else {}
  data |= {'files': found.files} if found.files else {}
  named = [pair for pair in overrides if pair[0].startswith('data.')]
  given = config_lib.override({'data': data}, named)
  data = {key: value for key, value in given['data'].items() if key in (*data, 'files')}
  config = experiment_lib.fill_files(experiment_lib.check_group('data', given))
  annotations = experiment_lib.task_module(task).ANNOTATIONS
  builder = datasets.load(
    config.name,
    config.dir,
    config.source,
    report=run_lib.notify,
    files=config.files,
    annotations=annotations,
  )
  # Boxes without masks are looked at too: whether all objects have masks decides on the network.
  inputs = InputConfig(config, annotations=annotations, masks=False)
  spec = datasets.spec(builder, inputs)
  train, val = choose_splits(spec.splits, config)
  readers = {
    split: source_reader.open_reader(builder, split, inputs, spec)
    for split in dict.fromkeys((train, val))
  }
  sizes = [size for reader in readers.values() for size in reader.sizes]
  seen = {split: statistics.collect(reader, _LIMIT) for split, reader in readers.items()}
  counts = {split: len(reader) for split, reader in readers.items()}
  look = Look(task, data, spec, train, val, seen, sizes, counts)
  _check_annotated(look)
  return look


def choose_splits(splits: Mapping[str, int], config: DataConfig) -> tuple[str, str]:
  """The splits to train and to evaluate on.

  Where there is one, a fifth of it is held out; where that is one image, it is both.
  """
  default = DataConfig('')
  chosen = [
    getattr(config, key) if getattr(config, key) != getattr(default, key) else None
    for key in ('train_split', 'eval_split')
  ]
  find = lambda starts: next(
    (name for start in starts for name in sorted(splits, key=len) if name.startswith(start)), None
  )
  train, val = find(_TRAIN) or next(iter(splits)), find(_EVAL)
  val = None if val == train else val
  if val is None and splits[train] > 1:
    held = max(splits[train] // 5, 1)
    train, val = f'{train}[:-{held}]', f'{train}[-{held}:]'
  return chosen[0] or train, chosen[1] or val or train


def _check_annotated(look: Look) -> None:
  seen, where = look.seen[look.train], look.data['source']
  if look.task == 'semantic':
    classes = np.flatnonzero(seen.pixels)
    if not len(classes):
      raise SegjaxError(f'{where}: no pixel of the training images has a class: check the labels')
    if len(classes) == 1:
      name = look.spec.class_names[classes[0]]
      raise SegjaxError(
        f'{where}: every labeled pixel of the training images is {name}: check the values of the '
        'labels, and config.data.files.classes'
      )
  elif not seen.object_counts.any():
    raise SegjaxError(f'{where}: no training image has an object: check the annotations')


def describe(look: Look) -> list[str]:
  """Lines on the splits, image sizes and classes."""
  counts = {split: len(seen.examples) for split, seen in look.seen.items()}
  total = sum(counts.values())
  sampled = f', of which {total:,} are looked at' if total < len(look.sizes) else ''
  splits = ', '.join(f'{split} {count:,}' for split, count in counts.items())
  heights, widths = np.array(look.sizes).T
  several = len(set(look.sizes))
  sizes = f'{heights[0]} x {widths[0]}'
  if several > 1:
    sizes = (
      f'{several:,} sizes, {heights.min()} to {heights.max()} x {widths.min()} to {widths.max()}'
    )
  kind = {1: 'gray', 3: 'RGB'}[look.spec.channels]
  lines = [f'{len(look.sizes):,} images{sampled} ({splits}), {kind}, {sizes} (height x width)']
  return lines + _class_lines(look)


def _class_lines(look: Look) -> list[str]:
  """The classes, the most frequent first where there are many."""
  seen, names = look.seen[look.train], look.spec.class_names
  labeled = max(int(seen.pixels.sum()), 1)
  order = range(len(names))
  if len(names) > _LISTED:
    amount = seen.object_counts if look.task == 'instance' else seen.pixels
    order = np.argsort(-amount, kind='stable')[:_LISTED].tolist()
  lines = [f'{len(names)} class{"es" * (len(names) > 1)} in the training images:']
  for i in order:
    share = f'{seen.pixels[i] / labeled:.2%} of the pixels'
    objects = _count_of(int(seen.object_counts[i]), 'object')
    wanted = {
      'semantic': [share],
      'instance': [objects],
      'panoptic': [share, *[objects] * (i in (look.spec.things or ()))],
    }
    lines.append(f'  {names[i]}: {", ".join(wanted[look.task])}')
  return lines + [f'  … and {len(names) - _LISTED} more'] * (len(names) > _LISTED)


def _count_of(count: int, what: str) -> str:
  return f'{count:,} {what}{"s" * (count != 1)}'


# --- what looks wrong -----------------------------------------------------------------------------


def find_problems(look: Look) -> list[str]:
  """What is worth a look before training, a line each."""
  lines = []
  for split, seen in look.seen.items():
    lines += _class_problems(look, split, seen)
    for reason, names in statistics.suspicious(seen).items():
      lines.append(
        f'{split}: {len(names):,} of {len(seen.examples):,} images: {reason} {_few(names)}'
      )
  lines += _shared(look)
  if look.train == look.val:
    lines.append('there is one split: the evaluation is on the training images')
  if len(look.seen[look.train].examples) < _FEW:
    lines.append(f'there are few training images, {len(look.seen[look.train].examples)}')
  if len(set(look.sizes)) > 1:
    lines.append(f'images have {len(set(look.sizes)):,} different sizes: see config.data.size')
  return lines


def rare_classes(look: Look) -> dict[str, float]:
  """Classes in the training images with very few pixels: name -> fraction of those labeled."""
  pixels = look.seen[look.train].pixels
  fractions = pixels / max(int(pixels.sum()), 1)
  return {
    name: float(fraction)
    for name, fraction in sorted(
      zip(look.spec.class_names, fractions, strict=True), key=lambda pair: pair[1]
    )
    if 0 < fraction < RARE
  }


def _class_problems(look: Look, split: str, seen: Statistics) -> Iterable[str]:
  counts = seen.pixels + seen.object_counts
  pairs = zip(look.spec.class_names, counts, strict=True)
  if unseen := [name for name, count in pairs if not count]:
    yield f'{split}: {len(unseen)} of {look.spec.num_classes} classes never occur {_few(unseen)}'
  if look.task != 'instance' and split == look.train:
    rare = rare_classes(look)
    listed = [f'{name} {fraction:.3%}' for name, fraction in rare.items()]
    if rare:
      count = f'{len(rare)} class{"es have" if len(rare) > 1 else " has"}'
      yield f'{split}: {count} less than {RARE:.1%} of the pixels {_few(listed)}'
  total = int(seen.pixels.sum()) + seen.ignored
  if seen.ignored > statistics.MOSTLY_IGNORED * total:
    yield f'{split}: {seen.ignored / total:.1%} of the pixels have no class and are ignored'


def _shared(look: Look) -> list[str]:
  """Images that are in both splits, so that a metric is too good."""
  if look.train == look.val:
    return []
  train, val = (look.seen[split].examples for split in (look.train, look.val))
  known = {example.digest for example in train}
  names = [example.name for example in val if example.digest in known]
  return [f'{len(names)} images of {look.val} are also in {look.train} {_few(names)}'] * bool(names)


def _few(names: Sequence[str]) -> str:
  return f'({", ".join(names[:_SHOWN])}{", …" * (len(names) > _SHOWN)})'


def _show(lines: Iterable[str]) -> None:
  for line in lines:
    print(printable(line), flush=True)


# --- the config -----------------------------------------------------------------------------------


def write_config(
  look: Look,
  output: Path,
  overrides: Sequence[tuple[str, str]] = (),
  machine: Machine | None = None,
  weights: str | None = None,
) -> str:
  """The source of the config for a data set.

  Args:
    look: the data set.
    output: the file's path, for the commands in its docstring.
    overrides: `(key, value)` pairs, put in place of what the recipe says.
    machine: that trains; None for this one.
    weights: to start from, a name in `segjax.recipes.WEIGHTS`.
  """
  recipe = make_recipe(_facts(look), this_machine() if machine is None else machine, weights)
  constants, names = _constants(look)
  counts = _class_counts(look, names)
  recipe['model'] = recipe['model']._replace(value={**recipe['model'].value, **counts})
  recipe['data'] = _data(look, recipe['data']['size'], names)
  if weights:
    mean = Note(WEIGHTS_MEAN, 'Of the images that the weights were trained on.')
    recipe['data'] |= {'mean': mean, 'std': WEIGHTS_STD}
  own = recipe['model'].value
  if (other := dict(overrides).get('model.name', own['name'])) != own['name']:
    if weights:
      raise SegjaxError(
        f'--weights={weights} is for {own["name"]}, not for config.model.name={other}: leave one '
        'of them out'
      )
    # The other keys are those of the recipe's network.
    counted = {key: own[key] for key in ('classes', 'stuff') if key in own}
    recipe['model'] = {'name': other, **counted}
  if weights and own['name'] in PUBLISHED:
    key = PUBLISHED[own['name']].key
    if (text := dict(overrides).get(f'model.{key}')) and config_lib.parse_value(text) != own[key]:
      raise SegjaxError(
        f'--weights={weights} is for config.model.{key}={own[key]}, not {text}: leave one of them '
        'out'
      )
  for key, text in overrides:
    if not key.startswith('data.files.'):  # those are what was looked at
      _set(recipe, key, config_lib.parse_value(text))
  name, run_name = (shlex.quote(text) for text in (str(output), f'runs/{output.stem}'))
  network = _network_name(_plain_group(recipe['model'])['name'])
  count = look.spec.num_classes
  return render(
    recipe,
    title=f'{network} on {look.data["source"]}: {look.task} segmentation, {count} '
    f'class{"es" * (count > 1)}.',
    paragraphs=['Written by `segjax new`. ' + describe(look)[0] + '.'],
    commands=[
      f'segjax train --config={name} --workdir={run_name}',
      f'segjax evaluate --workdir={run_name}',
    ],
    constants=constants,
  )


def _facts(look: Look) -> Facts:
  spec, seen = look.spec, look.seen[look.train]
  things = spec.num_classes if spec.things is None else len(spec.things)
  return Facts(
    task=look.task,
    classes=things,
    stuff=spec.num_classes - things,
    channels=spec.channels,
    sizes=look.sizes,
    examples=look.counts[look.train],
    most_objects=look.largest,
    boxes=np.concatenate([example.boxes for example in seen.examples]),
    masks=look.task != 'instance' or not all(e.without_mask == e.objects for e in seen.examples),
    rare=tuple(rare_classes(look)) if look.task == 'semantic' else (),
  )


def this_machine() -> Machine:
  """The device that would train here."""
  device = jax.local_devices()[0]
  if device.platform != 'cpu':
    limit = (device.memory_stats() or {}).get('bytes_limit')
    return Machine(True, limit or 16 * 2**30, jax.local_device_count())
  memory = os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES')
  for path in ('/sys/fs/cgroup/memory.max', '/sys/fs/cgroup/memory/memory.limit_in_bytes'):
    if os.path.exists(path) and (text := Path(path).read_text().strip()).isdigit():
      memory = min(memory, int(text))
  devices = jax.local_device_count()
  return Machine(False, memory // devices, devices)


def _constants(look: Look) -> tuple[dict[str, Any], dict[str, Code]]:
  """Constants of the file, and the keys of `config.data.files` that they stand for."""
  known = {
    'classes': ('CLASSES', 'Names of the class indices, in their order.'),
    'colors': ('COLORS', 'Colors of the classes, RGB.'),
    'stuff': ('STUFF', 'Classes without separate objects; the others are things.'),
  }
  files = look.data.get('files') or {}
  used = {key: known[key] for key in known if files.get(key)}
  constants = {name: Note(_plain(files[key]), why) for key, (name, why) in used.items()}
  if 'CLASSES' in constants and any(map(_NUMBERED.fullmatch, files['classes'])):
    more = ' The files do not say what they are: name them.'
    constants['CLASSES'] = constants['CLASSES']._replace(why=known['classes'][1] + more)
  return constants, {key: Code(name) for key, (name, _) in used.items()}


def _plain(value: Any) -> Any:
  """Lists as tuples."""
  return tuple(map(_plain, value)) if isinstance(value, list | tuple) else value


def _class_counts(look: Look, names: Mapping[str, Code]) -> dict[str, Any]:
  """`classes` and `stuff` of the network, by the constants where these have as many."""
  files, spec = look.data.get('files') or {}, look.spec
  if 'classes' not in names or len(files['classes']) != spec.num_classes:
    return {}
  if look.task != 'panoptic':
    return {'classes': Code('len(CLASSES)')}
  if 'stuff' not in names:
    return {}
  return {'classes': Code('len(CLASSES) - len(STUFF)'), 'stuff': Code('len(STUFF)')}


def _data(look: Look, size: dict[str, Any], names: Mapping[str, Code]) -> dict[str, Any]:
  data, seen = dict(look.data), look.seen[look.train]
  if data.get('files'):
    defaults = config_lib.arguments(datasets.options_of(data['name']))
    data['files'] = {
      key: names.get(key, _plain(value))
      for key, value in data['files'].items()
      if value is not None or defaults.get(key) is not None
    }
  mean = tuple(round(float(value), 2) for value in seen.mean)
  # Images of one color have no deviation to divide by.
  std = tuple(round(float(value), 2) or 1.0 for value in seen.std)
  both = look.train == look.val
  return {
    **data,
    'train_split': look.train,
    'eval_split': Note(look.val, 'There is no other split.') if both else look.val,
    'size': size,
    'mean': Note(mean, 'Of the training images, by channel.'),
    'std': std,
  }


def _set(config: dict[str, Any], key: str, value: Any) -> None:
  """Puts a value in place, below groups that may have a comment; its own comment goes."""
  name, _, rest = key.partition('.')
  if not rest:
    config[name] = value
    return
  group = config.get(name)
  inner = _plain_group(group)
  inner = dict(inner) if isinstance(inner, Mapping) else {}
  _set(inner, rest, value)
  config[name] = group._replace(value=inner) if isinstance(group, Note) else inner


def _plain_group(group: Any) -> Any:
  return group.value if isinstance(group, Note) else group


def _network_name(name: str) -> str:
  return _NETWORKS.get(name, name)


def _check(text: str, output: Path) -> experiment_lib.Experiment:
  """Writes a config and reads it back as `segjax train` would; nothing stays if it cannot.

  Raises:
    SegjaxError: an override that does not fit.
  """
  temporary = output.with_name(f'.{output.stem}.{os.getpid()}.py')
  try:
    storage.write_text(temporary, text)
    experiment = experiment_lib.parse(config_lib.read_file(temporary))
    os.replace(temporary, output)
  finally:
    temporary.unlink(missing_ok=True)
  return experiment
