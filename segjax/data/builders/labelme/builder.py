"""Data of your own as LabelMe annotates it: a JSON file for each image.

`data.source` holds the images and the JSON files, in one directory or in two (`data.files.images`
and `data.files.labels`), nested as you like. A JSON file belongs to the image of its own name, else
to the one that its `imagePath` names, which must be below `data.source`, else to the one that is
inside it (`imageData`).

Shapes become objects: polygons, rectangles (upright or turned), circles, and masks. Shapes of one
label with one `group_id` are one object. Points and lines have no area; they are left out, counted
and reported, and so are polygons of fewer than three points and what is outside the image. In
semantic tasks a shape covers those before it in the file.
"""

import base64
import binascii
import contextlib
import dataclasses
import functools
import json
import math
import os
import posixpath
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path, PureWindowsPath
from typing import Any, Literal, NamedTuple

import numpy as np
from pycocotools import mask as mask_lib

from segjax.data import images
from segjax.data.builders import files, polygons, raw
from segjax.types import IGNORE_LABEL, SegjaxError

# Phrases after a number of annotations, see `files.Content.problems`.
WITHOUT_AREA = 'points and lines have no area and were left out'
VOID_OBJECTS = 'objects with a label of config.data.files.void were left out'

# Types of shapes without area.
LINES = ('point', 'points', 'line', 'linestrip')
# Deviation of the polygon that is a circle from it, in pixels.
_CIRCLE_ERROR = 0.05


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options(files.Options):
  """Keys of `config.data.files`, besides those of `files.Options`.

  Attributes:
    images: directory of the images below `config.data.source`.
    labels: directory of the JSON files.
    void: labels whose pixels have no class, and whose objects are left out.
    unpaired: 'empty' takes an image without a JSON file as one without objects.
  """

  images: str = '.'
  labels: str = '.'
  void: tuple[str, ...] = ('__ignore__',)
  unpaired: Literal['error', 'skip', 'empty'] = 'error'


class Shape(NamedTuple):
  """A shape of a JSON file.

  Attributes:
    label: as it is in the file.
    group: what the shapes of one object share; None for a shape that is an object by itself.
    polygon: f64[N, 2], its outline; None for a mask and for what has no area.
    mask: the upper left pixel (x, y) and bool[h, w]; None for an outline.
  """

  label: str
  group: int | str | None
  polygon: np.ndarray | None = None
  mask: tuple[tuple[int, int], np.ndarray] | None = None


class Builder(files.FilesBuilder):
  """Prepares images with LabelMe's JSON files."""

  Options = Options
  content = "images with LabelMe's JSON files"

  @classmethod
  def find(
    cls, source: Path, options: Options, annotations: Sequence[str]
  ) -> dict[str, list[files.Item]]:
    items = find_items(source, options, semantic=annotations[-1] == 'label')
    if not items:
      raise raw.missing_content(source, cls.content)
    splits = files.splits_of(list(items), options, source)
    return {split: [items[name] for name in names] for split, names in splits.items()}


def find_items(source: Path, options: Options, *, semantic: bool) -> dict[str, files.Item]:
  """All images with their annotations, by name.

  Args:
    source: the directory of raw files.
    options: of the format.
    semantic: whether the task is.

  Raises:
    SegjaxError: an image or a JSON file lacks the other, unless `options.unpaired` says otherwise.
  """
  image_root = files.sub_directory(source, options.images, 'images')
  label_root = files.sub_directory(source, options.labels, 'labels')
  pictures: dict[str, list[Path]] = {}
  for path in files.find_files(image_root, images.SUFFIXES):
    pictures.setdefault(files.name_below(image_root, path), []).append(path)
  items, used = {}, set()
  for path in files.find_files(label_root, {'.json'}):
    name = files.name_below(label_root, path)
    named = pictures.get(name, [])
    image = named[0] if len(named) == 1 else _image_of(path, source, options)
    if image is not None:
      used.add(os.path.abspath(image) if isinstance(image, Path) else None)
      read = functools.partial(read_content, path, image, options=options, semantic=semantic)
      items[name] = files.Item(name, image, read)
  every = [path for paths in pictures.values() for path in paths]
  left = [path for path in every if os.path.abspath(path) not in used]
  if left and options.unpaired == 'error':
    raise SegjaxError(
      f'{len(left)} of {len(every)} images have no JSON file below {label_root}, such as '
      f"{left[0]}: add them, or set config.data.files.unpaired to 'empty' or 'skip'"
    )
  if options.unpaired == 'empty':
    items |= _empty_items(image_root, left, items)
  return dict(sorted(items.items()))


def _empty_items(
  root: Path, paths: Sequence[Path], others: Mapping[str, files.Item]
) -> dict[str, files.Item]:
  """Images without objects, by name."""
  found = {}
  for path in paths:
    name = files.name_below(root, path)
    if name in others or name in found:
      raise SegjaxError(f'{path} has the name of another image but for its suffix: rename one')
    found[name] = files.Item(name, path, _no_objects)
  return found


def _no_objects(size: files.Size) -> files.Content:
  del size
  return files.Content(objects=[])


def _image_of(path: Path, source: Path, options: Options) -> files.Readable | None:
  """The image that a JSON file names or contains; None to leave the file out."""
  content, name = load(path), None
  if isinstance(content.get('imagePath'), str):
    name = content['imagePath'].replace('\\', '/')
    # What a JSON file in a directory of its own names is next to that: '../images/im0.jpg'.
    if not PureWindowsPath(name).anchor:
      name = posixpath.normpath(posixpath.join(os.path.relpath(path.parent, source), name))
    # What is elsewhere, or was on another machine, is not needed where it is embedded.
    needless = (SegjaxError,) if content.get('imageData') else ()
    with contextlib.suppress(*needless):
      found = raw.inside(source, name, path)
      if found.is_file():
        return found
  if content.get('imageData'):
    return Embedded(path)
  if options.unpaired == 'skip':
    return None
  raise SegjaxError(
    f'{path} has no imageData, and its image {name or path.stem} is not below {source}: add it, or '
    "set config.data.files.unpaired='skip'"
  )


class Embedded(NamedTuple):
  """The image in a JSON file (`imageData`)."""

  path: Path

  def __str__(self) -> str:
    return f'the imageData of {self.path}'

  def read_bytes(self) -> bytes:
    """The image file."""
    try:
      return base64.b64decode(load(self.path)['imageData'], validate=True)
    except (TypeError, ValueError, binascii.Error) as e:
      raise SegjaxError(f'{self} is corrupt: annotate the image again') from e


def load(path: Path) -> dict[str, Any]:
  """The content of a JSON file.

  Raises:
    SegjaxError: it is not valid JSON, or is not LabelMe's.
  """
  try:
    content = json.loads(raw.read_bytes(path))
  except (ValueError, RecursionError) as e:  # no JSON, or no UTF-8
    raise SegjaxError(
      f'{path} is truncated or is not valid JSON ({e}): save it from LabelMe again'
    ) from e
  if not isinstance(content, dict) or not isinstance(content.get('shapes'), list):
    keys = f'has the keys {", ".join(list(content)[:5])}' if isinstance(content, dict) else 'is not'
    raise SegjaxError(
      f'{path} has no list shapes, so is not of LabelMe (it {keys}): choose its format as '
      'config.data.name, or move it out of config.data.source'
    )
  return content


def read_content(
  path: Path,
  image: files.Readable,
  size: files.Size,
  *,
  options: Options,
  semantic: bool,
) -> files.Content:
  """The objects in a JSON file.

  Args:
    path: of the file.
    image: its image, see `files.Item`.
    size: (H, W) of its image.
    options: of the format.
    semantic: whether the task is; others put the shapes of a group together, and report void.

  Raises:
    SegjaxError: the file is of an image of another size, a label is not a class, or a shape is not
      one.
  """
  content = load(path)
  _check_size(path, content, size, image)
  groups: dict[Any, tuple[int, list[Shape]]] = {}
  problems: list[str] = []
  for number, entry in enumerate(content['shapes']):
    shape = read_shape(path, number, entry)
    label = files.class_index(f'{path}: shape {number}', shape.label, options)
    if shape.polygon is None and shape.mask is None:
      problems.append(WITHOUT_AREA)
    else:
      problems += [VOID_OBJECTS] * (label == IGNORE_LABEL and not semantic)
      # In semantic tasks the order counts, so that each shape is by itself.
      alone = semantic or shape.group is None
      key = number if alone else (shape.label, shape.group)
      groups.setdefault(key, (label, []))[1].append(shape)
  found = [_to_object(path, label, shapes, size, problems) for label, shapes in groups.values()]
  return files.Content(objects=[entry for entry in found if entry], problems=problems)


def _check_size(
  path: Path,
  content: Mapping[str, Any],
  size: files.Size,
  image: files.Readable,
) -> None:
  listed = content.get('imageHeight'), content.get('imageWidth')
  if None in listed or listed == tuple(size):
    return
  if not all(type(value) is int for value in listed):
    raise SegjaxError(f'{path} has an imageHeight or imageWidth that is no number: save it again')
  remedy = 'annotate the image again'
  raise images.size_error(
    raw.read_bytes(image), str(image), f'its JSON file {path}', listed, remedy
  )


def _to_object(
  path: Path, label: int, shapes: Sequence[Shape], size: files.Size, problems: list[str]
) -> files.Object | None:
  outlines = [shape.polygon for shape in shapes if shape.polygon is not None]
  masks = [_mask_counts(path, shape.mask, size) for shape in shapes if shape.mask is not None]
  try:
    return polygons.to_object(outlines, label, size, problems, masks)
  except ValueError as e:
    raise SegjaxError(f'{path}: a shape {shapes[0].label!r} has {e}: correct the file') from e


def _mask_counts(path: Path, mask: tuple[tuple[int, int], np.ndarray], size: files.Size) -> str:
  """The compressed run lengths of a mask that is a part of the image."""
  (x, y), pixels = mask
  (height, width), whole = pixels.shape, np.zeros(size, np.uint8, order='F')
  if x < 0 or y < 0 or y + height > size[0] or x + width > size[1]:
    raise SegjaxError(
      f'{path} has a mask of {width}x{height} pixels at ({x}, {y}), which leaves its image of '
      f'{size[1]}x{size[0]}: correct the file'
    )
  whole[y : y + height, x : x + width] = pixels
  return mask_lib.encode(whole)['counts'].decode()


# --- shapes ---------------------------------------------------------------------------------------


def _rectangle(points: np.ndarray) -> np.ndarray:
  """The corners, from two opposite ones, or all four as newer tools write them."""
  if len(points) == 4:
    return points
  (x0, y0), (x1, y1) = points
  return np.array([[x0, y0], [x1, y0], [x1, y1], [x0, y1]])


def _circle(points: np.ndarray) -> np.ndarray:
  """Corners on a circle, from its center and a point on it."""
  center, edge = points
  radius = math.dist(center, edge)
  if radius <= 2 * _CIRCLE_ERROR:
    return np.tile(center, (3, 1))
  corners = max(12, math.ceil(math.pi / math.acos(1 - _CIRCLE_ERROR / radius)))
  angle = np.linspace(0, 2 * math.pi, corners, endpoint=False)
  return center + radius * np.stack([np.cos(angle), np.sin(angle)], axis=1)


# Type of a shape: the numbers of points that it may have (None = any), and its outline.
_OUTLINES: Mapping[str, tuple[tuple[int, ...] | None, Callable[[np.ndarray], np.ndarray]]] = {
  'polygon': (None, lambda points: points),
  'rectangle': ((2, 4), _rectangle),
  'oriented_rectangle': ((4,), lambda points: points),
  'rotation': ((4,), lambda points: points),  # X-AnyLabeling's name of it
  'circle': ((2,), _circle),
}

KINDS = {*_OUTLINES, 'mask', *LINES}


def read_shape(path: Path, number: int, entry: Any) -> Shape:
  """Reads an entry of `shapes`.

  Args:
    path: of the file, for errors.
    number: of the entry, from 0, for errors.
    entry: as it is in the file.

  Raises:
    SegjaxError: it is not a shape that LabelMe draws.
  """
  who = f'{path}: shape {number}'
  label = entry.get('label') if isinstance(entry, dict) else None
  if not isinstance(label, str):
    raise SegjaxError(f'{who} has no label: give it one in LabelMe')
  kind, group = entry.get('shape_type') or 'polygon', entry.get('group_id')
  if not isinstance(group, int | str | None):
    raise SegjaxError(f'{who} has the group_id {group!r}, which is no number: correct the file')
  if kind in LINES:
    return Shape(label, group)
  points = _points(who, entry.get('points'))
  if kind == 'mask':
    return Shape(label, group, mask=_mask(who, points, entry.get('mask')))
  if kind not in _OUTLINES:
    raise SegjaxError(
      f'{who} is of the type {kind!r}, which is not {", ".join(_OUTLINES)} or mask: draw it as a '
      'polygon, or delete it'
    )
  counts, outline = _OUTLINES[kind]
  if counts is not None and len(points) not in counts:
    raise SegjaxError(
      f'{who} is a {kind} of {len(points)} points, not {" or ".join(map(str, counts))}: draw it '
      'again'
    )
  return Shape(label, group, polygon=outline(points))


def _points(who: str, points: Any) -> np.ndarray:
  """f64[N, 2]."""
  try:
    found = np.array(points, np.float64).reshape(-1, 2)
    if isinstance(points, list) and len(found) == len(points) and np.isfinite(found).all():
      return found
  except (TypeError, ValueError):
    pass
  raise SegjaxError(f'{who} has points that are not pairs of numbers: draw it again')


def _mask(who: str, points: np.ndarray, encoded: Any) -> tuple[tuple[int, int], np.ndarray]:
  """The upper left pixel and bool[h, w], from two corners and the base64 of a PNG."""
  try:
    content = base64.b64decode(encoded, validate=True)
  except (TypeError, ValueError, binascii.Error) as e:
    raise SegjaxError(f'{who} is a mask without the base64 of a PNG: draw it again') from e
  pixels = images.decode_label(content, f'the mask of {who}') > 0
  corners = points.astype(int)
  if corners.shape != (2, 2) or pixels.shape != tuple((corners[1] - corners[0] + 1)[::-1]):
    raise SegjaxError(
      f'{who} is a mask of {pixels.shape[1]}x{pixels.shape[0]} pixels between {points.tolist()}, '
      'which is another size: draw it again'
    )
  return (int(corners[0, 0]), int(corners[0, 1])), pixels
