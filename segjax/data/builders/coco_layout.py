"""Where the files of a data set in COCO's format are: as the tools that write it lay them out.

  annotations/instances_NAME.json   COCO, CVAT and Datumaro, with the images in NAME/, images/NAME/
                                    or images/; CVAT's one file instances_default.json is divided
  NAME/_annotations.coco.json       Roboflow, beside the images of train/, valid/ and test/
  train.json, val.json              converters, with the images beside them or in images/
  FILE.json                         labelme2coco (annotations.json) and Label Studio (result.json):
                                    one file, which is divided into splits
In these, `valid` and `validation` are the split val. Anything else, `config.data.files` says.
"""

import dataclasses
import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path, PureWindowsPath
from typing import Any, NamedTuple

from segjax.data import images
from segjax.data.builders import files, raw
from segjax.types import SegjaxError

# Places of annotation files, in the order of preference, with {} for 'instances' or 'panoptic'.
_PLACES = (
  'annotations/{}_*.json',
  '*/_annotations.coco*.json',
  '{}_*.json',
  'annotations/*.json',
  '*.json',
)
_WHERE = 'config.data.files'


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options(files.Options):
  """Keys of `config.data.files` of `coco_instances/custom` and `coco_panoptic/custom`.

  Attributes:
    classes: names of categories, in the order of class indices; None for all that are used, in the
      order of their ids. A semantic or panoptic task from `coco_instances/custom` needs it.
    splits: of one annotation file: split -> fraction of the images, the directory in which their
      `file_name`s start, or a text file that lists them.
    unpaired: an image that is listed and missing is an error or is left out.
    annotations: the annotation file below `config.data.source`, or that of each split; None looks
      where the module `segjax.data.builders.coco_layout` says.
    images: the directory below `config.data.source` that `file_name`s are relative to, or that of
      each split; None for the first of the usual places that has the files.
    outside: whether a `file_name` may be absolute, go up with '..', or be a link to a file that is
      not below the directory of images.
  """

  classes: tuple[str, ...] | None = None
  annotations: str | Mapping[str, str] | None = None
  images: str | Mapping[str, str] | None = None
  outside: bool = False

  def __post_init__(self):
    for key in ('classes', 'stuff'):  # as the names in a file
      if names := getattr(self, key):
        object.__setattr__(self, key, tuple(name.strip() for name in names))
    if self.classes is not None:
      super().__post_init__()
    for key, given in (('colors', self.colors), ('stuff', self.stuff)):
      if given and self.classes is None:
        raise SegjaxError(f'{_WHERE}.{key} is for the names in {_WHERE}.classes: set that too')
    if isinstance(self.annotations, Mapping) and self.splits is not None:
      raise SegjaxError(
        f'{_WHERE}.splits divides one annotation file, and {_WHERE}.annotations has one for each '
        'split: leave splits out'
      )


class Part(NamedTuple):
  """An annotation file.

  Attributes:
    path: of the file.
    name: as the file's own directories are called, such as 'val2017'; '' where it has no name.
    split: that it has; None where it is divided.
  """

  path: Path
  name: str
  split: str | None


def find_parts(source: Path, options: Options, kind: str, content: str) -> list[Part]:
  """The annotation files of a data set of one's own.

  Args:
    source: the directory of raw files.
    options: of the data set.
    kind: 'instances' or 'panoptic'.
    content: what `source` should hold, for the error message.

  Raises:
    SegjaxError: there is none; there are several of which the splits are unknown.
  """
  if isinstance(options.annotations, Mapping):
    return [named_part(source, split, name) for split, name in options.annotations.items()]
  if options.annotations is not None:
    return [named_part(source, None, options.annotations)]
  paths = find_files(source, kind)
  if not paths:
    raise raw.missing_content(source, content)
  parts = [Part(path, *_split_of(path, kind)) for path in paths]
  if len(parts) > 1 and _unclear(parts):  # there may be other JSON files
    parts = [part for part in parts if is_kind(part.path, kind)] or parts
  if len(parts) == 1 and (options.splits is not None or parts[0].split in (None, 'default')):
    return [parts[0]._replace(split=None)]
  if options.splits is not None:
    raise SegjaxError(
      f'{_WHERE}.splits divides one annotation file, and {source} has {len(parts)}: leave it out, '
      f'or set {_WHERE}.annotations to the one'
    )
  _check_splits(parts)
  return parts


def find_files(source: Path, kind: str) -> list[Path]:
  """The annotation files in the first of the usual places that has any."""
  found = (sorted(source.glob(place.format(kind))) for place in _PLACES)
  return next(filter(None, found), [])


def named_part(source: Path, split: str | None, name: str) -> Part:
  """The annotation file of a split, or of all splits, that the user names.

  Raises:
    SegjaxError: there is none.
  """
  path = source / name
  if not path.is_file():
    key = f'{_WHERE}.annotations' + (f'.{split}' if split else '')
    raise SegjaxError(f'{key}: {path} is not a file: name one below config.data.source')
  found = re.fullmatch(r'(?:instances|panoptic)_(\w+)', path.stem)
  own = found[1] if found else path.parent.name if path.stem.startswith('_') else path.stem
  return Part(path, own, split)


def _split_of(path: Path, kind: str) -> tuple[str, str | None]:
  """The name of an annotation file, and the split; None if it names none."""
  stem = path.name.removesuffix('.json')
  if stem.startswith('_annotations'):
    name = path.parent.name
  elif stem.startswith(f'{kind}_'):
    name = stem.removeprefix(f'{kind}_')
  else:
    words = re.split(r'[\W_]+', stem.lower())
    known = {files.SPLIT_NAMES.get(word) for word in words} - {None}
    return stem, known.pop() if len(known) == 1 else None
  split = files.SPLIT_NAMES.get(name.lower(), name)
  if not re.fullmatch(r'\w+', split) or split == 'all':
    raise SegjaxError(f'{path} cannot name a split: rename it, with letters and digits alone')
  return name, split


def _unclear(parts: Sequence[Part]) -> list[Path]:
  """The files whose split is not known, or is another file's too."""
  counts = Counter(part.split for part in parts)
  return [part.path for part in parts if part.split is None or counts[part.split] > 1]


def _check_splits(parts: Sequence[Part]) -> None:
  if unclear := _unclear(parts):
    raise SegjaxError(
      f'{len(unclear)} annotation files, such as {unclear[0]}, do not say which split they are: '
      f"set {_WHERE}.annotations to the one to use, or to {{'train': FILE, 'val': FILE}} (or name "
      'one for segjax new, with --labels=FILE)'
    )


def is_kind(path: Path, kind: str) -> bool:
  """Whether a file has the keys of COCO's format, and annotations of a kind."""
  if path.suffix.lower() != '.json':
    return False
  try:
    content = json.loads(path.read_bytes())
  except (OSError, ValueError):
    return False
  keys = 'categories', 'images', 'annotations'
  if not isinstance(content, dict) or not all(isinstance(content.get(k), list) for k in keys):
    return False
  entries = [entry for entry in content['annotations'][:1] if isinstance(entry, dict)]
  panoptic = any('segments_info' in entry for entry in entries)
  return panoptic == (kind == 'panoptic')


# --- images ---------------------------------------------------------------------------------------


def image_directories(source: Path, part: Part, options: Options) -> list[Path]:
  """The directories that `file_name`s may be relative to, in the order of preference."""
  given = options.images
  if isinstance(given, Mapping):
    if part.split not in given:
      raise SegjaxError(f'{_WHERE}.images names no directory for {part.split}: add it')
    return [source / given[part.split]]
  if given is not None:
    return [source / given]
  beside, name = part.path.parent, part.name
  named = [source / name, source / 'images' / name] if name else []
  places = [*named, source / 'images', beside, beside / 'images', source]
  return [place for place in dict.fromkeys(places) if place.is_dir()] or [source / name]


def watched(source: Path, parts: Sequence[Part], options: Options, kind: str) -> list[Path]:
  """The annotation files, and the directories and files that their images may be among.

  The source itself is not one of them: prepared data may be in it.
  """
  found = [part.path for part in parts]
  for part in parts:
    places = image_directories(source, part, options)
    found += [place for place in places if place not in (source, part.path.parent)]
    if source in places and options.images is None:
      found += sorted(path for path in source.iterdir() if path.is_file())
    found += [path for path in png_directories(source, part) if kind == 'panoptic']
    if part.path.parent != source:
      found.append(part.path.parent)
  return list(dict.fromkeys(found))


def png_directories(source: Path, part: Part) -> list[Path]:
  """The directories in which the PNGs of a panoptic file may be, in the order of preference."""
  name, beside = f'panoptic_{part.name}', part.path.parent
  return [source / 'annotations' / name, source / name, beside / part.path.stem, beside]


class Located(NamedTuple):
  """Where listed files are.

  Attributes:
    directory: that their names are relative to.
    paths: of each file, whether or not there is one.
  """

  directory: Path
  paths: list[Path]


def locate(
  directories: Sequence[Path], names: Sequence[str], listed_in: Path, *, outside: bool
) -> Located:
  """Finds listed files.

  They are below the first directory that has them all, else below the one that has the most. Where
  none has any, the names' own directories are of another machine: each is then the one file of that
  name, at any depth.

  An absolute name is mostly of another machine too: it is replaced by its last part, if that is
  enough to find the file.

  Args:
    directories: one or more.
    names: of the files.
    listed_in: the file that lists them, for the error.
    outside: whether they may be outside the directory.

  Raises:
    SegjaxError: a name leaves the directory, see `raw.inside`.
  """
  short = names if outside else [_without_root(name) for name in names]
  if short != names and len(set(short)) == len(set(names)):
    found = _locate(directories, short, listed_in, outside=False)
    if all(path.is_file() for path in found.paths):
      return found
  return _locate(directories, names, listed_in, outside=outside)


def _without_root(name: str) -> str:
  path = PureWindowsPath(name)  # which knows the separators of all machines
  return path.name if path.anchor else name


def _locate(
  directories: Sequence[Path], names: Sequence[str], listed_in: Path, *, outside: bool
) -> Located:
  best, fewest = Located(directories[0], []), len(names) + 1
  for directory in directories:
    paths = [raw.inside(directory, name, listed_in, outside=outside) for name in names]
    missing = sum(not path.is_file() for path in paths)
    if missing < fewest:
      best, fewest = Located(directory, paths), missing
    if not missing:
      break
  if fewest < len(names):
    return best
  return Located(directories[-1], _search(directories[-1], best.paths, listed_in, outside))


def _search(directory: Path, paths: Sequence[Path], listed_in: Path, outside: bool) -> list[Path]:
  """The one file below `directory` that has the name of each path, else the path."""
  found: dict[str, list[str]] = {}
  for path in images.walk(directory):
    found.setdefault(path.name, []).append(path.relative_to(directory).as_posix())
  matches = [found.get(path.name, ()) for path in paths]
  return [
    raw.inside(directory, match[0], listed_in, outside=outside) if len(match) == 1 else path
    for path, match in zip(paths, matches, strict=True)
  ]


def divide(
  names: Sequence[str], part: Part, options: Any, source: Path
) -> Iterator[tuple[str, list[int]]]:
  """The splits of an annotation file, and the indices of the images in each.

  Raises:
    SegjaxError: as `files.splits_of`; or a split has no image.
  """
  if part.split is not None:
    yield part.split, list(range(len(names)))
    return
  stems = [str(Path(name.replace('\\', '/')).with_suffix('')) for name in names]
  if len(set(stems)) < len(stems):  # the suffixes tell them apart
    stems = list(names)
  index = {stem: i for i, stem in enumerate(stems)}
  for split, chosen in files.splits_of(stems, options, source).items():
    if not chosen:
      raise SegjaxError(
        f'{_WHERE}.splits has no image of {part.path} for {split}: correct it, or add images'
      )
    yield split, [index[stem] for stem in chosen]
