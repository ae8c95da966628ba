"""From the pixels of mask files to class indices and objects."""

import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from segjax.data import images
from segjax.data.builders import raw
from segjax.data.builders.files import (
  BACKGROUND,
  Content,
  Object,
  Size,
  empty_label,
  mask_object,
)
from segjax.data.builders.folder.patterns import File
from segjax.types import IGNORE_LABEL, SegjaxError

Color = tuple[int, int, int]
_WHERE = 'config.data.files'
# Suffixes of formats that change values.
LOSSY = ('.jpg', '.jpeg', '.webp')
# Pillow's modes whose pixels are the values or colors of a mask as they are stored.
_STORED = ('1', 'L', 'LA', 'P', 'PA', 'I', 'F', 'RGB', 'RGBA')
# In a table of values: no class.
_UNKNOWN = IGNORE_LABEL - 1


def read_pixels(path: Path, *, colors: bool = False) -> np.ndarray:
  """The pixels of a mask, upright.

  Args:
    path: an image file. An alpha channel is ignored.
    colors: whether a palette file has its colors rather than its indices.

  Returns:
    Integers [H, W] as the file has them (0 or 1 for 1-bit files), or u8[H, W, 3].

  Raises:
    SegjaxError: it cannot be decoded, or has numbers that are not whole.
  """
  encoded = raw.read_bytes(path)
  mode, pixels = images.decode_stored(encoded, str(path))
  if mode == 'P' and colors:
    # Not as a viewer shows it, to which some colors may be transparent.
    pixels = images.read_palette(encoded, str(path))[pixels]
  elif mode not in _STORED and not mode.startswith('I;'):
    pixels = images.decode_image(encoded, 3, str(path))
  if pixels.ndim == 3:
    pixels = pixels[..., :3] if pixels.shape[-1] > 2 else pixels[..., 0]
  if pixels.dtype == bool:
    return pixels.astype(np.uint8)
  if pixels.dtype.kind == 'f':
    if not (pixels == np.rint(pixels)).all():
      raise SegjaxError(f'{path} has numbers that are not whole: save the mask as integers')
    return pixels.astype(np.int64)
  return pixels


def read_palette(path: Path) -> np.ndarray | None:
  """See `images.read_palette`."""
  return images.read_palette(raw.read_bytes(path), str(path))


def read_values(path: Path) -> np.ndarray:
  """The integers [H, W] of a mask; RGB files have to be gray.

  Raises:
    SegjaxError: the file has colors, or as `read_pixels`.
  """
  pixels = read_pixels(path)
  if pixels.ndim == 2:
    return pixels
  if (pixels != pixels[..., :1]).any():
    raise SegjaxError(
      f"{path} has colors where a number for each pixel is wanted: set {_WHERE}.encoding='color' "
      f'and {_WHERE}.colors'
    )
  return pixels[..., 0]


def read_colors(path: Path) -> np.ndarray:
  """The colors of a mask, i32[H, W] as `pack` has them."""
  pixels = read_pixels(path, colors=True)
  if pixels.ndim == 2:
    if pixels.max(initial=0) > 255:
      raise SegjaxError(f"{path} has 16 bits a pixel: set {_WHERE}.encoding='index'")
    pixels = np.repeat(pixels[..., None], 3, -1)
  return pack(pixels)


def read_marked(path: Path, threshold: int) -> np.ndarray:
  """bool[H, W]: pixels of which a channel is above `threshold`."""
  pixels = read_pixels(path, colors=True)
  return (pixels > threshold).any(-1) if pixels.ndim == 3 else pixels > threshold


def read_ids(path: Path) -> np.ndarray:
  """The object ids i64[H, W] of a mask: its values, or its colors packed."""
  pixels = read_pixels(path)
  if pixels.ndim == 3:
    gray = (pixels == pixels[..., :1]).all()
    pixels = pixels[..., 0] if gray else pack(pixels)
  return pixels.astype(np.int64)


def pack(colors: Any) -> np.ndarray:
  """R + 256 G + 65,536 B of u8[..., 3], as COCO has it."""
  red, green, blue = np.moveaxis(np.asarray(colors, np.int32), -1, 0)
  return red | green << 8 | blue << 16


def unpack(value: int) -> Color:
  """The color that `pack` made a number of."""
  return value & 255, value >> 8 & 255, value >> 16


# --- class indices --------------------------------------------------------------------------------


def read_label(files: Sequence[File], options: Any, size: Size) -> np.ndarray:
  """u16[H, W], the class indices in the mask or masks of an image.

  Args:
    files: its mask, or one for each of its classes; of classes that overlap, the later one counts.
    options: see `builder.Options`.
    size: of the image.

  Raises:
    SegjaxError: a mask has another size, or a value without a class.
  """
  if files[0].label is None:
    path = files[0].path
    return check_size(path, _ENCODINGS[options.encoding](path, options), size)
  label = np.full(size, empty_label(options), np.uint16)
  for file in files:
    marked = check_size(file.path, read_marked(file.path, options.threshold), size)
    label[marked] = options.classes.index(file.label)
  return label


def _binary_label(path: Path, options: Any) -> np.ndarray:
  return read_marked(path, options.threshold).astype(np.uint16)


def _index_label(path: Path, options: Any) -> np.ndarray:
  return map_values(read_values(path), path, options)


def map_values(values: np.ndarray, path: Path, options: Any) -> np.ndarray:
  """Class indices of the raw values of a mask; errors as `read_label`."""
  table = _table_of_values(options.class_values, options.void_values)
  in_table = (values >= -1) & (values < len(table) - 1)
  label = table[np.where(in_table, values.astype(np.intp) + 1, len(table) - 1)]
  if (wrong := label == _UNKNOWN).any():
    value, *others = _commonest(values[wrong])
    raise SegjaxError(
      f'{path} has the value {value[0]} in {value[1]} pixels{_and_others(others)}, of no class: '
      f'add it to {_WHERE}.classes, values or void{_advice(path)}'
    )
  return label


def _color_label(path: Path, options: Any) -> np.ndarray:
  colors = read_colors(path)
  label = _table_of_colors(options.colors, options.void_colors)[colors]
  if (wrong := label == _UNKNOWN).any():
    value, *others = _commonest(colors[wrong])
    raise SegjaxError(
      f'{path} has the color {unpack(value[0])} in {value[1]} pixels{_and_others(others)}, of no '
      f'class: add it to {_WHERE}.classes and colors, or to void{_advice(path)}'
    )
  return label


_ENCODINGS: dict[str, Callable[[Path, Any], np.ndarray]] = {
  'index': _index_label,
  'color': _color_label,
  'binary': _binary_label,
}


@functools.lru_cache
def _table_of_values(values: tuple[int, ...], void: tuple[int, ...]) -> np.ndarray:
  """u16, from a raw value + 1 to its class; its last entry, of any other value, is `_UNKNOWN`."""
  table = np.full(max((*values, *void)) + 3, _UNKNOWN, np.uint16)
  table[np.array(values) + 1] = np.arange(len(values))
  table[np.array(void, np.intp) + 1] = IGNORE_LABEL
  return table


@functools.lru_cache(maxsize=4)  # of 32 MiB each
def _table_of_colors(colors: tuple[Color, ...], void: tuple[Color, ...]) -> np.ndarray:
  """u16[2**24], from a packed color to its class."""
  table = np.full(256**3, _UNKNOWN, np.uint16)
  table[pack(colors)] = np.arange(len(colors))
  if void:
    table[pack(void)] = IGNORE_LABEL
  return table


def _commonest(values: np.ndarray) -> list[tuple[int, int]]:
  found, counts = np.unique(values, return_counts=True)
  order = np.argsort(-counts, kind='stable')
  return list(zip(found[order].tolist(), counts[order].tolist(), strict=True))


def _and_others(others: Sequence[Any]) -> str:
  return f', and {len(others)} other{"s" * (len(others) > 1)}' if others else ''


def _advice(path: Path) -> str:
  if path.suffix.lower() not in LOSSY:
    return ''
  return (
    ', or save masks as PNG, as JPEG and WebP change values (for two classes '
    f"{_WHERE}.encoding='binary' and threshold=127 do)"
  )


def check_size(path: Path, pixels: np.ndarray, size: Size) -> np.ndarray:
  """`pixels`, if their size is that of the image.

  Raises:
    SegjaxError: it is not.
  """
  height, width = found = pixels.shape[:2]
  if found == tuple(size):
    return pixels
  remedy = "make a mask of the image's size"
  if found == tuple(size[::-1]):
    remedy = 'rotate the mask, or remove the orientation flag from the EXIF data of the image'
  raise SegjaxError(
    f'{path} is {width}x{height} pixels but its image is {size[1]}x{size[0]}: {remedy}'
  )


# --- objects --------------------------------------------------------------------------------------


def read_objects(
  files: Sequence[File], options: Any, size: Size, label: np.ndarray | None
) -> list[Object]:
  """The objects in the mask or masks of an image.

  Args:
    files: one of ids, one of ids for each class, or one for each object.
    options: see `builder.Options`.
    size: of the image.
    label: u16[H, W], the class indices, from which an object has its class where nothing else says
      it; or None.

  Returns:
    The objects; before them, where no `label` says it, the areas of `void_ids`.

  Raises:
    SegjaxError: a mask has another size or no pixel, or the class of an object is unknown.
  """
  found: list[Object] = []
  void: list[Object] = []
  for file in files:
    if file.object is None:
      ids = check_size(file.path, read_ids(file.path), size)
      if label is None and (area := np.isin(ids, options.void_ids)).any():
        void.append(mask_object(area, IGNORE_LABEL))
      masks = {i: ids == i for i in np.unique(ids).tolist() if i and i not in options.void_ids}
    else:
      masks = {file.object: check_size(file.path, read_marked(file.path, options.threshold), size)}
      if not masks[file.object].any():
        raise SegjaxError(f'{file.path} is an object without a pixel: delete the file')
    for id, mask in masks.items():
      index = _class_of(file, id, mask, options, label)
      if options.classes[index] != BACKGROUND and options.classes[index] not in options.stuff:
        found.append(mask_object(mask, index))
  return void + found


def _class_of(file: File, id: Any, mask: np.ndarray, options: Any, label: np.ndarray | None) -> int:
  """The class of an object: of its file, its id, or most of its pixels; else the only one."""
  if file.label is not None:
    return options.classes.index(file.label)
  if options.divisor:
    return _class_of_value(file.path, id, options)
  if label is None or len(options.things) == 1:
    return options.things[0]
  counts = np.bincount(label[mask], minlength=IGNORE_LABEL + 1)[: len(options.classes)]
  things = np.array(options.things)
  best = int(things[np.argmax(counts[things])])
  if not counts[best]:
    raise SegjaxError(
      f'object {id} of {file.path} is on pixels without the class of an object in its label map: '
      'correct either'
    )
  return best


def _class_of_value(path: Path, id: int, options: Any) -> int:
  value = id // options.divisor
  if value not in options.class_values:
    raise SegjaxError(
      f'{path} has the object id {id}, whose class value {value} is of no class: add it to '
      f'{_WHERE}.classes or values, or the id to {_WHERE}.void_ids'
    )
  return options.class_values.index(value)


def label_of_ids(file: File, options: Any, size: Size) -> np.ndarray:
  """u16[H, W], the class indices of ids that have them (`divisor`)."""
  ids = check_size(file.path, read_ids(file.path), size)
  label = np.full(size, empty_label(options), np.uint16)
  for id in np.unique(ids).tolist():
    if id in options.void_ids:
      label[ids == id] = IGNORE_LABEL
    elif id:
      label[ids == id] = _class_of_value(file.path, id, options)
  return label


def read(
  labels: Sequence[File], instances: Sequence[File], options: Any, objects: bool, size: Size
) -> Content:
  """What is annotated on an image.

  Args:
    labels, instances: its files, either may be empty.
    options: see `builder.Options`.
    objects: whether the task reads objects.
    size: of the image.
  """
  label = read_label(labels, options, size) if labels else None
  if label is None and options.divisor and instances:
    label = label_of_ids(instances[0], options, size)
  if not instances or (label is not None and not objects):
    return Content(label)
  return Content(label, read_objects(instances, options, size, label))
