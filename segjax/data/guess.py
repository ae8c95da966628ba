"""Which format files of users' own are in, for `segjax new`."""

import functools
import importlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

from segjax.types import SegjaxError

Task = Literal['semantic', 'instance', 'panoptic']


class Guess(NamedTuple):
  """A format that files are in.

  Attributes:
    name: `config.data.name`.
    source: `config.data.source`.
    files: `config.data.files`, with every key that matters.
    found: what was found, a line each.
    problems: what looks wrong, a line each.
  """

  name: str
  source: Path
  files: dict[str, Any]
  found: list[str]
  problems: list[str]


class Given(NamedTuple):
  """What a user says of the values of masks, before they are looked at.

  Attributes:
    first: `config.data.files.first`; None where nothing is said.
    void: `config.data.files.void`.
  """

  first: int | None = None
  void: tuple[int | tuple[int, int, int], ...] = ()


NOTHING_GIVEN = Given()

# From the task, the directory of images or of a whole export, and the directory or file of the
# annotations; None where files are in another format.
Guesser = Callable[[Task, Path | None, Path | None], Guess | None]

# Each a package of `segjax.data.builders` with a module `guess`. The first that knows the files
# wins: those with files of their own come before plain folders of masks.
FORMATS = (
  'coco_panoptic',
  'coco_instances',
  'yolo',
  'labelme',
  'hugging_face',
  'cityscapes',
  'folder',
)
# Those whose guess takes `outside`, as files that name images are a part of them.
_LISTING = ('coco_panoptic', 'coco_instances', 'yolo')
# Those whose guess takes `given`, as their masks have values.
_OF_VALUES = ('hugging_face', 'folder')


def guess(
  task: Task,
  images: Path | None,
  labels: Path | None,
  guessers: Sequence[Guesser] | None = None,
  *,
  outside: bool = False,
  given: Given = NOTHING_GIVEN,
) -> Guess:
  """The format that files are in.

  Args:
    task: to train for.
    images: the directory of images, or of a whole export.
    labels: the directory or the file of the annotations; None where `images` has both.
    guessers: in place of those of `FORMATS`.
    outside: `config.data.files.outside`, of the formats that have it.
    given: of masks of values.

  Raises:
    SegjaxError: a path is missing or is a file where it must be a directory, or no format has such
      files.
  """
  for key, path in (('--images', images), ('--labels', labels)):
    if path is not None and not path.exists():
      raise SegjaxError(f'{key}={path} does not exist: correct the path')
  if images is not None and not images.is_dir():
    raise SegjaxError(f'--images={images} is not a directory: name the one of the images')
  if images is None and labels is None:
    raise SegjaxError('name your files with --images=DIRECTORY and --labels=DIRECTORY_OR_FILE')
  for known in _guessers(outside=outside, given=given) if guessers is None else guessers:
    if (found := known(task, images, labels)) is not None:
      return found
  importlib.import_module('segjax.data.builders.coco_guess').check_looks(images, labels)
  named = [str(path) for path in dict.fromkeys((images, labels)) if path is not None]
  raise SegjaxError(
    f'{" and ".join(named)} {"are" if len(named) > 1 else "is"} in no known format: name a '
    'directory of images with --images, and with --labels a directory of masks, a JSON file in '
    "COCO's format, LabelMe files, or YOLO's data.yaml"
  )


def _guessers(*, outside: bool, given: Given) -> list[Guesser]:
  modules = {name: f'segjax.data.builders.{name}.guess' for name in FORMATS}
  known = {name: importlib.import_module(module).guess for name, module in modules.items()}
  known |= {name: functools.partial(known[name], outside=outside) for name in _LISTING}
  known |= {name: functools.partial(known[name], given=given) for name in _OF_VALUES}
  return list(known.values())
