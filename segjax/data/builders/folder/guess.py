"""Recognizes images and masks in directories, for `segjax new`."""

import collections
import csv
import itertools
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from segjax.data import images as images_lib
from segjax.data.builders import guessing, raw
from segjax.data.builders.files import BACKGROUND
from segjax.data.builders.folder import builder, layout, masks, pairing, patterns
from segjax.data.builders.folder.pairing import Pair
from segjax.data.formats import common
from segjax.data.guess import NOTHING_GIVEN, Given, Guess, Task
from segjax.types import SegjaxError

# Masks that are looked into; of more, so many that are spread over all.
_LOOKED_AT = 2000
# More values or colors than these are no classes.
_MOST_CLASSES = 1000
_MOST_COLORS = 256
# Ids from here on are read as 1000 * class + number.
_DIVISOR = 1000
# Values that are void where they are the highest, and far from the others or these are indices.
_VOID = (255, 65_535)
# Masks that were smoothed have more values than these.
_FEW = 8
# Gray values this close to 0 and 255 are those of a smoothed or compressed binary mask.
_NEAR = 32
_NAME_FILES = ('classes.txt', 'labels.txt', 'codes.txt', 'class_names.txt')
_TABLES = ('class_dict.csv', 'labelmap.txt')
# As Hugging Face data sets have it beside them: the number of a class -> its name.
_NUMBERED_NAMES = 'id2label.json'


class Seen(NamedTuple):
  """What some masks hold.

  Attributes:
    colors: whether they are colors, packed, rather than values.
    pixels: value -> number of pixels, in the order of values.
    masks: the different values of each mask.
    lossy: whether a format changed the values.
    palette: u8[256, 3], the colors of palette files, or None.
    several: the indices that have more than one color in them.
  """

  colors: bool
  pixels: Mapping[int, int]
  masks: Sequence[frozenset[int]]
  lossy: bool
  palette: np.ndarray | None
  several: frozenset[int]

  @property
  def values(self) -> list[int]:
    return list(self.pixels)


class Reading(NamedTuple):
  """How masks of classes are read.

  Attributes:
    files: keys of `config.data.files`.
    found: a few words on it.
    problems: as in `Guess`.
  """

  files: dict[str, Any]
  found: str
  problems: list[str]


def guess(
  task: Task, images: Path | None, labels: Path | None, *, given: Given = NOTHING_GIVEN
) -> Guess | None:
  """Images and masks in directories; None where files are others.

  Args:
    task, images, labels: see `segjax.data.guess.Guesser`.
    given: what the user says of the values of masks.

  Raises:
    SegjaxError: they are images and masks, but these cannot be of classes or objects.
  """
  if images is None or (labels is not None and not labels.is_dir()):
    return None
  found = layout.find(task, images, labels)
  if found is None:
    if images.is_dir():
      _check_files(images, labels)
    return None
  pairs, problems = _pairs_of(found)
  reading = read_masks(task, found, pairs, given)
  places = {'images': found.images, 'labels': found.labels}
  places |= {'instances': found.instances} if found.instances else {}
  splits, unused = guessing.find_splits(found.source, [pair.name for pair in pairs])
  files = {
    **places,
    **reading.files,
    'channels': find_channels(pairs),
    'splits': splits,
    'unpaired': 'skip' if problems else 'error',
  }
  narrow = guessing.narrow([pair.image for pair in pairs])
  problems += [*unused, *wrong_sizes(pairs), *narrow, *reading.problems]
  return Guess('folder', found.source, files, [_describe(found, pairs, reading)], problems)


def _check_files(images: Path, labels: Path | None) -> None:
  """Raises a SegjaxError if directories have no images, or no mask is named as an image."""
  first = lambda directory: next((path for path, _ in patterns.walk(directory)), None)
  if (image := first(images)) is None:
    suffixes = ', '.join(images_lib.SUFFIXES)
    raise SegjaxError(f'{images} has no images ({suffixes}): correct --images, or add them')
  if labels is not None and (mask := first(labels)) and not images.samefile(labels):
    raise SegjaxError(
      f'most images in {images}, such as {image.name}, have no mask of their name in {labels}, '
      f'where {mask.name} is: rename the masks as their images, or as NAME_mask'
    )


def _describe(found: layout.Layout, pairs: Sequence[Pair], reading: Reading) -> str:
  places = [str(found.source / p) for p in (found.labels, found.instances) if p is not None]
  return (
    f'{guessing.count(len(pairs), "image")} in {found.source / found.images}, with masks in '
    f'{" and ".join(places)}: {reading.found}'
  )


class _Draft(NamedTuple):
  """The keys of `builder.Options` that say which files belong together."""

  images: str
  labels: str | None
  instances: str | None
  classes: tuple[str, ...]


def _pairs_of(found: layout.Layout) -> tuple[list[Pair], list[str]]:
  """The images that have masks, and sentences on files that have no partner."""
  draft = _Draft(found.images, found.labels, found.instances, ())
  kinds = [kind for kind in ('labels', 'instances') if getattr(found, kind) is not None]
  pairs, alone = pairing.match(found.source, draft, kinds)
  return pairs, [f'{sentence}: such files are left out' for sentence in alone]


def find_channels(pairs: Sequence[Pair]) -> int:
  """1 where all images are gray, else 3."""
  for pair in guessing.sample(pairs, guessing.IMAGES_LOOKED_AT):
    mode, _ = images_lib.decode_stored(raw.read_bytes(pair.image), str(pair.image))
    if mode not in ('1', 'L', 'LA', 'I') and not mode.startswith('I;'):
      return 3
  return 1


def wrong_sizes(pairs: Sequence[Pair]) -> list[str]:
  """A sentence on masks that have another size than their image."""
  wrong = []
  for pair in pairs:
    sizes = [
      images_lib.read_size(raw.read_bytes(path), str(path))
      for path in (pair.image, *(file.path for file in (*pair.labels, *pair.instances)))
    ]
    if any(size != sizes[0] for size in sizes):
      wrong.append(pair.image)
  if not wrong:
    return []
  return [f'{len(wrong)} images have masks of another size, such as {wrong[0]}']


# --- classes --------------------------------------------------------------------------------------


def read_masks(
  task: Task, found: layout.Layout, pairs: Sequence[Pair], given: Given = NOTHING_GIVEN
) -> Reading:
  """How the masks of images are read, from what they hold.

  Args:
    task: of the user.
    found: whether there are masks of classes and of objects, and where names of classes may be.
    pairs: images with their masks.
    given: what the user says of the values of masks of classes.

  Raises:
    SegjaxError: the masks cannot be of classes or objects.
  """
  looked_at = guessing.sample(pairs, _LOOKED_AT)
  if found.instances is None:
    return _read_classes(found, looked_at, given)
  objects = _read_objects(task, found, looked_at)
  if task == 'semantic' or found.labels is None:
    return _with_background(objects) if task == 'semantic' else objects
  classes = _read_classes(found, looked_at, given)
  stuff = _stuff(looked_at, classes.files)
  problems = [*classes.problems, *objects.problems]
  if len(stuff) == len(classes.files['classes']):
    problems.append('no class has an object in its pixels')
  ids = {key: value for key, value in objects.files.items() if key == 'void_ids'}
  of_classes = {**classes.files, 'stuff': stuff}
  if task == 'instance':
    of_classes = _things_alone(classes.files, stuff)
  return Reading({**of_classes, **ids}, f'{classes.found}, and ids', problems)


def _with_background(objects: Reading) -> Reading:
  """The keys of a semantic task on masks of objects: without stuff, the rest is background."""
  files = objects.files
  if 'stuff' in files or BACKGROUND in files['classes'] or 0 in files.get('values', ()):
    return objects
  classes = (BACKGROUND, *files['classes'])
  values = {'values': (0, *files['values'])} if 'values' in files else {}
  return objects._replace(files={**files, 'classes': classes, **values})


def _things_alone(files: Mapping[str, Any], stuff: Sequence[str]) -> dict[str, Any]:
  """The keys of masks of classes with the classes of objects alone: the others are void."""
  options = builder.Options(**{**files, 'images': 'images', 'labels': 'masks'})
  things = [i for i, name in enumerate(options.classes) if name not in stuff]
  if not things or not stuff or options.encoding == 'binary':
    return {**files, 'stuff': tuple(stuff)}
  pick = lambda values: tuple(values[i] for i in things)
  rest = lambda values: tuple(value for i, value in enumerate(values) if i not in things)
  of_classes = {key: value for key, value in files.items() if key != 'first'}
  of_classes['classes'] = pick(options.classes)
  if options.colors is not None:
    of_classes['colors'] = pick(options.colors)
  values = options.class_values
  if options.encoding == 'color':
    values = options.colors
  else:
    of_classes['values'] = pick(values)
  return {**of_classes, 'void': (*options.void, *rest(values))}


def _read_classes(found: layout.Layout, pairs: Sequence[Pair], given: Given) -> Reading:
  named = _files_of_classes([file for pair in pairs for file in pair.labels])
  if named:
    return named
  paths, where = [pair.labels[0].path for pair in pairs], found.source / found.labels
  seen, names = _without(_look(paths), given), _class_names(found.source)
  numbered = {} if names else _read_numbered(found)
  if not seen.values:
    raise SegjaxError(
      f'every pixel of the masks in {where} has no class by config.data.files.first and void: set '
      'them to other values'
    )
  if len(seen.values) > _FEW and not _is_smooth(seen) and _are_smoothed(paths):
    raise SegjaxError(
      f'the masks in {where} are compressed or smoothed, so that they have {len(seen.values)} '
      f'different {"colors" if seen.colors else "values"} rather than those of classes: save them '
      'as PNG of class indices, without interpolation'
    )
  if seen.several:  # an index is not the same class everywhere, but a color is
    reading = _of_colors(_without(_look(paths, colors=True), given), names, where)
    reading = reading._replace(found=f'{reading.found}, as each mask has a palette of its own')
  elif seen.colors:
    reading = _of_colors(seen, names, where)
  else:
    reading = _of_values(seen, names, where, given.first, len(numbered))
    reading = _with_numbered(reading, numbered)
  if not given.void or reading.files.get('encoding') == 'binary':  # which has no void
    return reading
  void = (*given.void, *reading.files.get('void', ()))
  return reading._replace(files={**reading.files, 'void': tuple(dict.fromkeys(void))})


def _without(seen: Seen, given: Given) -> Seen:
  """What masks hold but for what the user calls void, and for values below the first class."""
  void = {
    value if isinstance(value, int) else int(masks.pack(value))
    for value in given.void
    if seen.colors == isinstance(value, tuple)
  }
  low = 0 if seen.colors or given.first is None else given.first
  out = {value for value in seen.pixels if value in void or 0 <= value < low}
  pixels = {value: count for value, count in seen.pixels.items() if value not in out}
  return seen._replace(pixels=pixels, masks=[one - out for one in seen.masks])


def _files_of_classes(files: Sequence[patterns.File]) -> Reading | None:
  """Where there is a file for each class: any value above 0 is of it."""
  classes = sorted({file.label for file in files if file.label is not None}, key=pairing.natural)
  if not classes:
    return None
  if BACKGROUND not in classes:
    classes.insert(0, BACKGROUND)
  smooth = any(_is_smooth(_look([file.path])) for file in files[:20])
  threshold = {'threshold': 127} if smooth else {}
  return Reading({'classes': tuple(classes), **threshold}, 'a file for each class', [])


def _look(paths: Sequence[Path], *, colors: bool = False) -> Seen:
  """What masks hold; those of gray RGB count as values, unless others have colors.

  Args:
    paths: of the masks.
    colors: whether all count as colors, also those of palettes and of gray.
  """
  found: list[dict[int, int]] = []
  gray: list[bool] = []
  for path in paths:
    pixels = masks.read_pixels(path, colors=colors)
    gray.append(pixels.ndim == 2 or bool((pixels == pixels[..., :1]).all()))
    flat = masks.pack(pixels) if pixels.ndim == 3 else pixels
    values, counts = np.unique(flat, return_counts=True)
    if gray[-1] and pixels.ndim == 3:
      values = values & 255
    found.append(dict(zip(values.tolist(), counts.tolist(), strict=True)))
  palettes = [None if colors else masks.read_palette(path) for path in paths]
  palette, several = _merge(palettes, found)
  if palette is not None and not all(gray):  # beside colors an index stands for its own
    return _look(paths, colors=True)
  colors = colors or not all(gray)
  if colors:  # gray ones are colors too
    found = [
      {value * 0x10101 if is_gray else value: count for value, count in one.items()}
      for one, is_gray in zip(found, gray, strict=True)
    ]
  total = collections.Counter()
  for one in found:
    total.update(one)
  lossy = any(path.suffix.lower() in masks.LOSSY for path in paths)
  each = [frozenset(one) for one in found]
  return Seen(colors, dict(sorted(total.items())), each, lossy, palette, several)


def _merge(
  palettes: Sequence[np.ndarray | None], used: Sequence[Iterable[int]]
) -> tuple[np.ndarray | None, frozenset[int]]:
  """The colors of the first palette and of the indices that masks use, which may have several."""
  merged = next((palette.copy() for palette in palettes if palette is not None), None)
  colors = collections.defaultdict(set)
  for palette, indices in zip(palettes, used, strict=True):
    for index in indices if palette is not None else ():
      colors[index].add(tuple(palette[index].tolist()))
  for index, found in colors.items():
    merged[index] = min(found)
  return merged, frozenset(index for index, found in colors.items() if len(found) > 1)


def _is_smooth(seen: Seen) -> bool:
  """Whether a binary mask was compressed or smoothed: almost all values are close to 0 or 255."""
  values = np.array(seen.values)
  if seen.colors or len(values) < 3 or values[-1] > 255:
    return False
  counts = np.array(list(seen.pixels.values()))
  near = (values < _NEAR) | (values > 255 - _NEAR)
  if not seen.lossy and len(values) <= _FEW:
    return False
  return values[-1] > 255 - _NEAR and counts[near].sum() > 0.95 * counts.sum()


def _are_numbers_of_objects(seen: Seen) -> bool:
  """Whether each mask has the values 0 to k, with different k: those of objects, not of classes."""
  tops = {max(one) for one in seen.masks}
  counted = all(one | {0} == set(range(max(one) + 1)) for one in seen.masks)
  return counted and len(tops) >= 4


_BINARY = (BACKGROUND, 'object')


def _of_values(
  seen: Seen, names: Sequence[str], where: Path, first: int | None = None, numbered: int = 0
) -> Reading:
  """How masks of values are read.

  Args:
    seen: what they hold.
    names: of classes in a file, in their order.
    where: they are.
    first: the value of the first class, where the user says it.
    numbered: how many classes a file names by their number.
  """
  values = seen.values
  if values[0] == -1 and len(values) > 1:
    return _with_negative_void(seen, names, where, first, numbered)
  two = tuple(names) if len(names) == 2 else _BINARY
  if _is_smooth(seen):
    return Reading(
      {'classes': two, 'encoding': 'binary', 'threshold': 127},
      'two classes, below and above 127',
      ['masks have values between 0 and 255, as of a compressed or smoothed file: 128 or more is '
       f'taken as {two[1]}'],
    )  # fmt: skip
  if len(values) == 2 and values[0] == 0 and values[1] != 1:
    found = f'two classes, of the values 0 and {values[1]}'
    return Reading({'classes': two, 'values': tuple(values)}, found, [])
  # Names of a file, as many as there are values, are those of classes.
  if _are_numbers_of_objects(seen) and max(len(names), numbered) < len(values) - 1:
    return Reading(
      {'classes': two, 'encoding': 'binary'},
      'two classes, 0 and more',
      ['values look like numbers of objects rather than classes: all but 0 are taken as '
       f'{two[1]}; for objects choose --task=instance'],
    )  # fmt: skip
  void = values[-1:] if _has_void(seen, names) else []
  values = [value for value in values if value not in void]
  if len(values) > _MOST_CLASSES:
    raise SegjaxError(
      f'masks in {where} have {len(values)} different values, which cannot be classes: for numbers '
      'of objects choose --task=instance, else save masks of class indices'
    )
  return _of_indices(values, void, seen, names, first)


def _with_negative_void(
  seen: Seen, names: Sequence[str], where: Path, first: int | None, numbered: int
) -> Reading:
  """Masks in which -1 is void, which is no class, index or number of an object."""
  pixels = {value: count for value, count in seen.pixels.items() if value != -1}
  others = seen._replace(pixels=pixels, masks=[one - {-1} for one in seen.masks])
  reading = _of_values(others, names, where, first, numbered)
  if reading.files.get('encoding') == 'binary':  # which has no void
    problem = f'the value -1 is taken as {reading.files["classes"][0]}'
    return reading._replace(problems=[problem, *reading.problems])
  files = {**reading.files, 'void': (-1, *reading.files.get('void', ()))}
  return reading._replace(files=files, problems=[_void_line(-1, seen), *reading.problems])


def _void_line(value: int, seen: Seen) -> str:
  share = seen.pixels[value] / sum(seen.pixels.values())
  return f'the value {value} ({share:.1%} of the pixels) is taken as void, which is ignored'


def _has_void(seen: Seen, names: Sequence[str]) -> bool:
  """Whether the highest value is void: by its number, and by what the others and the names are."""
  *others, top = values = seen.values
  if top not in _VOID or not others:
    return False
  if _are_indices(others, names):
    return True
  named = [bool(_fitting(listed, names)) for listed in (others, values)]
  if any(named) and not all(named):
    return named[0]
  gaps = [b - a for a, b in itertools.pairwise(others)]
  # Codes of classes, such as gray values, are spread evenly.
  return _is_voc(seen) or top - others[-1] > 2 * max(gaps)


def _is_voc(seen: Seen) -> bool:
  """Whether masks have PASCAL VOC's palette."""
  if seen.palette is None:
    return False
  return bool((seen.palette == common.voc_palette(256))[seen.values].all())


def _are_indices(values: Sequence[int], names: Sequence[str]) -> bool:
  """Whether values follow each other, but for a few that are not used."""
  return bool(values) and values[-1] - values[0] < 2 * len(values) + len(names)


def _of_indices(
  values: Sequence[int],
  void: Sequence[int],
  seen: Seen,
  names: Sequence[str],
  first: int | None,
) -> Reading:
  """Masks of class indices, or of other values, one for each class."""
  problems, low, high = [], values[0], values[-1]
  files: dict[str, Any] = {}
  if _are_indices(values, names):
    if first is None:
      first = 1 if low == 1 else 0 if low <= len(values) + len(names) else low
    listed = list(range(first, max(high + 1, first + len(names))))
    files |= {'first': first} if first else {}
    if unused := [value for value in listed if value not in values]:
      problems.append(f'no mask has the value {unused[0]}' + _more(unused))
  else:
    listed = list(values)
    files['values'] = tuple(listed)
  classes = _names_for(listed, names)
  if void:
    files['void'] = tuple(void)
    problems.append(_void_line(void[0], seen))
  elif high in _VOID and len(values) > 1:
    problems.append(
      f'the value {high} is taken as a class: if it is void, set config.data.files.void=({high},), '
      'and take it out of classes, values and colors there'
    )
  is_colored = seen.palette is not None and (seen.palette != seen.palette[:, :1]).any()
  if is_colored and high < 256:
    files['colors'] = tuple(tuple(seen.palette[value].tolist()) for value in listed)
  if len(values) == 1:
    problems.append(f'all pixels have the value {values[0]}')
  number = f'{len(classes)} class{"es" * (len(classes) > 1)}'
  found = f'{number}, of the values {listed[0]} to {listed[-1]}'
  return Reading({'classes': classes, **files}, found, problems)


def _more(items: Sequence[Any]) -> str:
  return f' and {len(items) - 1} others' if len(items) > 1 else ''


def _names_for(values: Sequence[int], names: Sequence[str]) -> tuple[str, ...]:
  """Names of the classes: those of a file where they fit, else by the values."""
  if fitting := _fitting(values, names):
    return fitting
  if len(values) == 2 and values[0] == 0:
    return _BINARY
  return tuple(BACKGROUND if value == 0 else f'class_{value}' for value in values)


def _fitting(values: Sequence[int], names: Sequence[str]) -> tuple[str, ...]:
  """The names of a file, where there are as many as values, or one less for 0; else none."""
  if len(names) == len(values):
    return tuple(names)
  if len(names) == len(values) - 1 and values[0] == 0 and BACKGROUND not in names:
    return (BACKGROUND, *names)
  return ()


def _of_colors(seen: Seen, names: Sequence[str], where: Path) -> Reading:
  """How masks of colors are read, which are in `where`."""
  found = [masks.unpack(value) for value in seen.values]
  if len(found) > _MOST_COLORS:
    raise SegjaxError(
      f'masks in {where} have {len(found)} different colors, which cannot be classes: save them as '
      'PNG, without smoothing, or as class indices'
    )
  table = names if isinstance(names, Table) else None
  if table is not None and set(found) <= set(table.colors):
    files = {'classes': tuple(table), 'colors': table.colors, 'encoding': 'color'}
    return Reading(files, f'{len(table)} colors, named in {table.path}', [])
  # The color of most pixels is often the background, but black says so.
  ordered = sorted(found, key=lambda color: (color != (0, 0, 0), color))
  classes = tuple(
    BACKGROUND if color == (0, 0, 0) else 'color_{:02x}{:02x}{:02x}'.format(*color)
    for color in ordered
  )
  files = {'classes': classes, 'colors': tuple(ordered), 'encoding': 'color'}
  return Reading(files, f'{len(classes)} colors', [])


# --- names of classes -----------------------------------------------------------------------------


class Table(list):
  """Names of classes, with their colors.

  Attributes:
    colors: one for each name.
    path: of the file that has them.
  """

  colors: tuple[tuple[int, int, int], ...]
  path: Path


def _class_names(source: Path) -> list[str]:
  """The names that a file beside the data lists; none where there is no such file."""
  for directory in (source, source.parent):
    for name in _TABLES:
      if (path := directory / name).is_file() and (table := _read_table(path)):
        return table
    for name in _NAME_FILES:
      if (path := directory / name).is_file():
        lines = [
          line.strip()
          for line in path.read_text(encoding='utf-8-sig', errors='replace').splitlines()
        ]
        if (names := [line for line in lines if line]) and len(set(names)) == len(names):
          return names
  return []


def _read_numbered(found: layout.Layout) -> dict[int, str]:
  """Number -> name of a class, of `id2label.json` beside the data or in the directory of masks."""
  for directory in (found.source, found.source.parent, found.source / patterns.base(found.labels)):
    if (path := directory / _NUMBERED_NAMES).is_file():
      try:
        content = json.loads(path.read_bytes())
        return {int(key): str(name) for key, name in content.items()}
      except (AttributeError, ValueError):
        return {}
  return {}


def _with_numbered(reading: Reading, numbered: Mapping[int, str]) -> Reading:
  """The names of a file by the values of masks; in their order where these are other numbers."""
  files = reading.files
  if not numbered or files.get('encoding', 'index') != 'index':
    return reading
  first, classes = files.get('first', 0), files['classes']
  listed = files.get('values') or range(first, first + len(classes))
  keys = [key for key in sorted(numbered) if key not in _VOID]
  last = max([listed[-1], *keys])
  values = files.get('values') or range(first, last + 1)
  names = tuple(numbered[value] for value in sorted(numbered) if value in values)
  if len(names) < len(values):
    # Such as those of transformers with `do_reduce_labels`, which begin at 0 for the value 1.
    in_order = keys in (list(range(len(keys))), list(range(1, len(keys) + 1)))
    names = _fitting(listed, [numbered[key] for key in keys]) if in_order else ()
  if not names or len(set(names)) < len(names):
    return reading
  # Classes that no mask has may have no color.
  kept = {k: v for k, v in files.items() if k != 'colors' or len(v) == len(names)}
  return reading._replace(files={**kept, 'classes': names})


def _read_table(path: Path) -> Table | None:
  """Kaggle's class_dict.csv (name,r,g,b) or CVAT's labelmap.txt (name:r,g,b:parts:actions)."""
  table, colors = Table(), []
  for row in csv.reader(path.read_text(encoding='utf-8-sig', errors='replace').splitlines()):
    match = re.fullmatch(r'\s*([^:,#]+?)\s*[:,]\s*(\d+)\s*,\s*(\d+)\s*,\s*(\d+)\D*', ','.join(row))
    if match and all(int(value) < 256 for value in match.groups()[1:]):
      table.append(match[1])
      colors.append(tuple(int(value) for value in match.groups()[1:]))
  table.colors, table.path = tuple(colors), path
  return table if table and len(set(colors)) == len(set(table)) == len(table) else None


# --- objects --------------------------------------------------------------------------------------


def _read_objects(task: Task, found: layout.Layout, pairs: Sequence[Pair]) -> Reading:
  """How masks of objects are read."""
  files = [file for pair in pairs for file in pair.instances]
  keys = patterns.keys(found.instances)
  if 'object' not in keys:
    _check_numbers(files, found.source / patterns.base(found.instances))
  if 'class' in keys:
    classes = tuple(sorted({file.label for file in files}, key=pairing.natural))
    one = task != 'semantic' and all(len(seen.values) < 3 for seen in _each(files[:20]))
    problem = (
      'masks have one value besides 0, so one object of each class: if several objects share it, '
      'number them, or choose --task=semantic'
    )
    return Reading({'classes': classes}, 'masks of objects for each class', [problem] * one)
  if 'object' in keys:
    threshold = {'threshold': 127} if any(map(_is_smooth, _each(files[:20]))) else {}
    return Reading({'classes': ('object',), **threshold}, 'a file for each object', [])
  seen = _look([file.path for file in files])
  values = [value for value in seen.values if value]
  if not values:
    return Reading({'classes': ('object',)}, 'no object', ['all masks are empty'])
  if 0 in seen.several:
    raise SegjaxError(
      f'masks in {found.source / patterns.base(found.instances)} have palettes of their own, in '
      'which 0, the number of no object, is not always one color: save them without a palette, '
      'with a number for each object'
    )
  names = _class_names(found.source)
  if not seen.colors and values[0] >= _DIVISOR:
    return _of_class_and_number(values, names)
  files_: dict[str, Any] = {'classes': tuple(names) if len(names) == 1 else ('object',)}
  problems = []
  if values[-1] == 255 and len(values) > 1 and values[-2] < 200 and not seen.colors:
    files_['void_ids'] = (255,)
    problems.append('the value 255 is taken as void, and as no object')
  one = len(seen.pixels) > 1 and len(values) == 1 and task != 'semantic'
  if one and all(len(in_mask - {0}) <= 1 for in_mask in seen.masks):
    problems.append(
      f'masks have one value ({values[0]}) besides 0, so one object each: if several objects share '
      'it, number them, or choose --task=semantic'
    )
  return Reading(files_, 'a value for each object', problems)


def _check_numbers(files: Sequence[patterns.File], where: Path) -> None:
  """Raises a SegjaxError if values of masks are no numbers of objects, as those of soft edges."""
  paths = guessing.sample([file.path for file in files], 20)
  if _look(paths).values != [0] and _are_smoothed(paths):
    raise SegjaxError(
      f'the masks in {where} are compressed or smoothed, so that their values are not numbers of '
      'objects: save them as PNG with a number for each object, or choose --task=semantic and name '
      'them with --labels'
    )


def _are_smoothed(paths: Sequence[Path]) -> bool:
  """Whether masks have values that no one drew, of a lossy format or between those of neighbors."""
  some = guessing.sample(paths, 20)
  if any(path.suffix.lower() in ('.jpg', '.jpeg') for path in some):  # WebP may not be lossy
    return True
  return 2 * sum(_has_edge_values(masks.read_ids(path)) for path in some) > len(some)


def _has_edge_values(ids: np.ndarray) -> bool:
  """Whether most values of a mask are on few of its pixels, no 2 x 2 of which are neighbors."""
  corner = ids[1:, 1:]
  square = (corner == ids[:-1, 1:]) & (corner == ids[1:, :-1]) & (corner == ids[:-1, :-1])
  values, counts = np.unique(ids, return_counts=True)
  edge = ~np.isin(values, corner[square]) & (values > 0)
  few = counts[edge].sum() < 0.5 * counts[values > 0].sum()
  return len(values) > _FEW and edge.sum() > 0.5 * len(values) and bool(few)


def _each(files: Iterable[patterns.File]) -> list[Seen]:
  return [_look([file.path]) for file in files]


def _of_class_and_number(values: Sequence[int], names: Sequence[str]) -> Reading:
  """Ids of 1000 * class + number; a class without numbers is stuff."""
  numbers = collections.defaultdict(set)
  for value in values:
    numbers[value // _DIVISOR].add(value % _DIVISOR)
  listed = sorted(numbers)
  known = names if len(names) in (len(listed), listed[-1] + 1) else ()
  if len(known) == listed[-1] + 1 and len(known) != len(listed):
    listed, classes = list(range(len(known))), tuple(known)
  else:
    classes = tuple(known) or tuple(f'class_{value}' for value in listed)
  stuff = tuple(
    name for value, name in zip(listed, classes, strict=True) if numbers.get(value) == {0}
  )
  files: dict[str, Any] = {'classes': classes, 'values': tuple(listed), 'divisor': _DIVISOR}
  found = f'{len(classes)} classes, of the values {_DIVISOR} x class + number of the object'
  return Reading({**files, 'stuff': stuff} if stuff else files, found, [])


def _stuff(pairs: Sequence[Pair], files: Mapping[str, Any]) -> tuple[str, ...]:
  """The classes that have no pixel in an object, but for the background: what is left over."""
  options = builder.Options(**{**files, 'images': 'images', 'labels': 'masks'})
  count = len(options.classes)
  inside, every = np.zeros(count, np.int64), np.zeros(count, np.int64)
  for pair in pairs:
    size = images_lib.read_size(raw.read_bytes(pair.image), str(pair.image))
    label = masks.read_label(pair.labels, options, size)
    marked = np.zeros(size, bool)
    for file in pair.instances:
      marked |= masks.check_size(file.path, masks.read_ids(file.path), size) > 0
    inside += np.bincount(label[marked], minlength=count)[:count]
    every += np.bincount(label.reshape(-1), minlength=count)[:count]
  # Objects' borders may be a pixel off.
  things = inside > 0.5 * every
  return tuple(name for name, thing in zip(options.classes, things, strict=True) if not thing)
