"""Images and masks in directories: the format of most tools, see `Options`.

  images/NAME.jpg    masks/NAME.png
An image and its mask have the same name below their directories, but for a suffix (`_mask`). Masks
hold class indices, colors, or 0 and 255; one file for each class; or, for instance and panoptic
tasks, a number for each object. Any nesting is read:
  images/train/NAME.jpg  masks/train/NAME.png          splits={'train': 'train', 'val': 'val'}
  train/images/NAME.jpg  train/masks/NAME.png          images='{split}/images/{name}', …
  masks/CLASS/NAME.png                                 labels='masks/{class}/{name}'
  NAME/images/NAME.png   NAME/masks/OBJECT.png         instances='{name}/masks/{object}'

An image or a mask of 16 bits is read as well as one of 8; the EXIF orientation is applied to both.
"""

import dataclasses
import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from segjax.data.builders import files
from segjax.data.builders.files import BACKGROUND, Byte
from segjax.data.builders.folder import masks, pairing, patterns
from segjax.types import NonNegativeInt, PositiveInt, Range, SegjaxError

_WHERE = 'config.data.files'


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options(files.Options):
  """Keys of `config.data.files` for images and masks in directories.

  The values of `images`, `labels` and `instances` are directories below `config.data.source`, or
  patterns with `{name}`, `{split}`, `{class}` and `{object}`, see `folder.patterns`.

  Attributes:
    images: where images are.
    labels: where the masks of classes are; None where there are none.
    instances: where the masks of objects are: a file whose values (or colors) other than 0 are one
      object each, or, with `{object}` in the pattern, a file for each object.
    encoding: how a mask of classes has them: as values ('index', those of a palette are its
      indices), as colors, which `colors` lists ('color'), or as two classes, below and above
      `threshold` ('binary').
    first: the value of the first class; the others follow it.
    values: the value of each class, where they do not follow each other.
    void: values, which may be -1, or colors of pixels that are of no class.
    threshold: a pixel above it is marked, in binary masks and in those of one class or object.
    divisor: in masks of objects, an object's value is its class's value times this, plus its
      number. None where its class is that of its pixels in `labels`, of its file (`{class}`), or
      the only one.
    void_ids: values of masks of objects that are no object, besides 0; without `labels` their
      pixels are of no class.
  """

  images: str = 'images'
  labels: str | None = 'masks'
  instances: str | None = None
  encoding: Literal['index', 'color', 'binary'] = 'index'
  first: NonNegativeInt = 0
  values: tuple[NonNegativeInt, ...] | None = None
  void: tuple[Annotated[int, Range(-1)] | tuple[Byte, Byte, Byte], ...] = ()
  threshold: NonNegativeInt = 0
  divisor: PositiveInt | None = None
  void_ids: tuple[NonNegativeInt, ...] = ()

  def __post_init__(self):
    super().__post_init__()
    self._check_patterns()
    self._check_values()

  def _check_patterns(self) -> None:
    allowed = {
      'images': ('name', 'split'),
      'labels': ('name', 'split', 'class'),
      'instances': ('name', 'split', 'class', 'object'),
    }
    if self.labels is None and self.instances is None:
      raise SegjaxError(f'{_WHERE}.labels or {_WHERE}.instances must say where the masks are')
    for key, placeholders in allowed.items():
      pattern = getattr(self, key)
      if pattern is None:
        continue
      patterns.check(pattern, placeholders, f'{_WHERE}.{key}')
      if key == 'images' or not patterns.is_directory(pattern):
        continue
      outer, inner = (Path(patterns.base(p)).parts for p in (pattern, self.images))
      if inner[: len(outer)] == outer:
        raise SegjaxError(
          f'{_WHERE}.{key}={pattern} has the images too: set it to a pattern such as '
          "'{name}_mask'"
        )

  def _check_values(self) -> None:
    classes = len(self.classes)
    if self.values is not None and (self.first or len(self.values) != classes):
      raise SegjaxError(
        f'{_WHERE}.values must be one for each of the {classes} classes, without {_WHERE}.first'
      )
    if self.encoding == 'binary' and classes != 2:
      raise SegjaxError(f"{_WHERE}.encoding='binary' is for 2 classes, and there are {classes}")
    known: Sequence[Any] = self.class_values
    if self.encoding == 'color':
      if self.colors is None:
        raise SegjaxError(f"{_WHERE}.encoding='color' needs {_WHERE}.colors, one for each class")
      known = self.colors
    if twice := [value for value in known if known.count(value) > 1]:
      raise SegjaxError(f'{_WHERE} has {twice[0]} for two classes: give each of them one')
    for value, name in zip(known, self.classes, strict=True):
      if value in self.void:
        indices = self.encoding == 'index' and self.values is None and value == self.first
        first = f' and set {_WHERE}.first={self.first + 1}' if indices else ''
        raise SegjaxError(
          f'{_WHERE} has {value} for the class {name} and for void: take {name} out of '
          f'{_WHERE}.classes{first}, or {value} out of {_WHERE}.void'
        )

  @property
  def class_values(self) -> tuple[int, ...]:
    """The value of each class."""
    return self.values or tuple(range(self.first, self.first + len(self.classes)))

  @property
  def void_values(self) -> tuple[int, ...]:
    return tuple(value for value in self.void if isinstance(value, int))

  @property
  def void_colors(self) -> tuple[tuple[int, int, int], ...]:
    return tuple(value for value in self.void if not isinstance(value, int))

  @property
  def things(self) -> tuple[int, ...]:
    """The indices of the classes that objects may have."""
    return tuple(
      index
      for index, name in enumerate(self.classes)
      if name != BACKGROUND and name not in self.stuff
    )


class Builder(files.FilesBuilder):
  """Prepares images and masks in directories: `config.data.name='folder'`."""

  Options = Options
  content = 'images and masks'

  @classmethod
  def find(
    cls, source: Path, options: Options, annotations: Sequence[str]
  ) -> dict[str, list[files.Item]]:
    kinds, objects = kinds_read(options, annotations), 'objects' in annotations
    pairs = {pair.name: pair for pair in pairing.pair(source, options, kinds)}
    splits = files.splits_of(list(pairs), options, source)
    return {
      split: [
        files.Item(
          name,
          pairs[name].image,
          functools.partial(
            masks.read, pairs[name].labels, pairs[name].instances, options, objects
          ),
        )
        for name in names
      ]
      for split, names in splits.items()
    }

  @classmethod
  def watched(cls, source: Path, options: Options) -> list[Path]:
    places = [options.images, options.labels, options.instances]
    lists = [value for value in (options.splits or {}).values() if str(value).endswith('.txt')]
    below = {patterns.base(place) for place in places if place} | set(map(str, lists))
    return [source / path for path in sorted(below)]


def kinds_read(options: Options, annotations: Sequence[str]) -> list[str]:
  """Which masks a task reads, of 'labels' and 'instances'.

  Raises:
    SegjaxError: the task needs objects, and nothing says where they or their classes are.
  """
  if 'objects' not in annotations:
    return ['labels'] if options.labels is not None else ['instances']
  if options.instances is None:
    raise SegjaxError(
      f'{_WHERE}.instances is missing, which instance and panoptic tasks need: set it to the '
      'directory of masks with a number for each object, or choose the semantic task'
    )
  told = options.divisor or 'class' in patterns.keys(options.instances) or len(options.things) == 1
  if not told and options.labels is None:
    raise SegjaxError(
      f'{_WHERE} does not say the class of an object: set labels, divisor, or a pattern with '
      f'{{class}} as {_WHERE}.instances'
    )
  if not options.things:
    raise SegjaxError(f'{_WHERE}.classes has no class of objects: add one')
  if options.labels is not None and ('segments' in annotations or not told):
    return ['labels', 'instances']
  return ['instances']
