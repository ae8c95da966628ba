"""Objects of an image on the host: read from an example, moved along with the image, padded to N.

Two kinds of examples are read: those of `segjax.data.formats.coco` (a mask as run lengths for each object),
and those with a picture `instance` whose pixel values are the ids of `objects` (scenes).
Sizes are (height, width) in pixels.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import cv2
import numpy as np

from segjax.data import transforms
from segjax.data.formats import coco
from segjax.types import IGNORE_LABEL, Instances, Segments

Size = tuple[int, int]


class Objects(NamedTuple):
  """The n objects of one image.

  Attributes:
    boxes: f32[n, 4], [x0, y0, x1, y1] in pixels.
    classes: i32[n], index among the things.
    masks: u8[n, H, W], 0 or 1.
    crowd: bool[n].
  """

  boxes: np.ndarray
  classes: np.ndarray
  masks: np.ndarray
  crowd: np.ndarray

  def take(self, index: np.ndarray) -> 'Objects':
    """Those at `index`, in its order."""
    return Objects(*(field[index] for field in self))


class Picture(NamedTuple):
  """An image and what is known of its pixels; they move together.

  Attributes:
    image: u8[H, W, C].
    objects: in it.
    label: u8[H, W], class index or IGNORE_LABEL; None where nothing asks for it.
  """

  image: np.ndarray
  objects: Objects
  label: np.ndarray | None = None

  @property
  def size(self) -> Size:
    return self.image.shape[:2]


def annotations(
  objects: Mapping[str, Any], size: Size, instance: np.ndarray | None, things: Mapping[int, int]
) -> list[dict[str, Any]]:
  """The objects of an example as COCO has them: id, category, bbox, area, iscrowd, rle.

  Args:
    objects: the feature, a dict of lists.
    size: of the image.
    instance: i[H, W], the id of the object at each pixel, where `objects` has no masks.
    things: label in the data set -> `category`, index among the things, for those that are looked
      for.
  """
  if instance is None:
    columns = zip(*objects.values(), strict=True)
    entries = [dict(zip(objects, values, strict=True)) for values in columns]
  else:
    entries = [
      coco.mask_object(instance == number, id=number, label=label, category_id=0)
      for number, label in zip(objects['id'], objects['label'], strict=True)
    ]
  return [_annotation(entry, size, things) for entry in entries if int(entry['label']) in things]


def segment_annotations(segments: Segments, things: Mapping[int, int]) -> list[dict[str, Any]]:
  """`annotations` of those segments of an image that are things.

  Args:
    segments: without the batch axis.
    things: class index -> index among the things, for things alone.
  """
  entries = [
    coco.mask_object(
      segments.ids == number, id=number, label=int(label), category_id=0, iscrowd=bool(crowd)
    )
    for number, (label, crowd) in enumerate(zip(segments.classes, segments.crowd, strict=True), 1)
    if int(label) in things
  ]
  return [_annotation(entry, segments.ids.shape, things) for entry in entries]


def segment_label(segments: Segments) -> np.ndarray:
  """u8[H, W], the class index of each pixel's segment, IGNORE_LABEL for void."""
  return np.concatenate([[IGNORE_LABEL], segments.classes]).astype(np.uint8)[segments.ids]


def _annotation(entry: Mapping[str, Any], size: Size, things: Mapping[int, int]) -> dict[str, Any]:
  return {
    'id': int(entry['id']),
    'category': things[int(entry['label'])],
    'bbox': [float(x) for x in entry['bbox']],
    'area': float(entry['area']),
    'iscrowd': bool(entry['iscrowd']),
    'rle': {'size': list(size), 'counts': _text(entry['segmentation'])},
  }


def _text(counts: str | bytes) -> str:
  return counts if isinstance(counts, str) else counts.decode()


def decode(found: Sequence[Mapping[str, Any]], size: Size) -> Objects:
  """The boxes and masks of `annotations`."""
  xywh = np.array([entry['bbox'] for entry in found], np.float32).reshape(-1, 4)
  return Objects(
    boxes=np.concatenate([xywh[:, :2], xywh[:, :2] + xywh[:, 2:]], axis=1),
    classes=np.array([entry['category'] for entry in found], np.int32),
    masks=_stack([coco.decode_mask(entry['rle']['counts'], size) for entry in found], size),
    crowd=np.array([entry['iscrowd'] for entry in found], bool),
  )


def _stack(masks: Sequence[np.ndarray], size: Size) -> np.ndarray:
  return np.stack(masks) if masks else np.zeros((0, *size), np.uint8)


def short_side_size(size: Size, short: int, longest: int) -> Size:
  """`size` scaled so that its shorter side is `short`, or its longer one `longest` if that is less.

  As detectron2's `ResizeShortestEdge`, to the nearest pixel.
  """
  scale = min(short / min(size), longest / max(size))
  height, width = (max(1, int(side * scale + 0.5)) for side in size)
  return height, width


def resize(
  picture: Picture, size: Size, window: tuple[tuple[int, int], Size] | None = None
) -> Picture:
  """The image bilinearly, masks and label by the nearest pixel, boxes in proportion.

  Args:
    picture: to resize.
    size: that it gets.
    window: (corner, size) of what is then left, as by `crop`; of the masks no more than one is ever
      held whole.
  """
  if picture.size == tuple(size):
    return picture if window is None else crop(picture, *window)
  y, x = (new / old for new, old in zip(size, picture.size, strict=True))
  region = np.s_[:, :] if window is None else _region(*window)
  label = lambda values: np.ascontiguousarray(transforms.resize_label(values, size)[region])
  image = cv2.resize(picture.image, size[::-1], interpolation=cv2.INTER_LINEAR)
  image = image.reshape(*size, -1)[region]
  objects = picture.objects._replace(
    boxes=picture.objects.boxes * np.float32([x, y, x, y]),
    masks=_stack([label(mask) for mask in picture.objects.masks], image.shape[:2]),
  )
  resized = Picture(image, objects, None if picture.label is None else label(picture.label))
  return resized if window is None else _moved(resized, window[0])


def flip(picture: Picture) -> Picture:
  """Left and right exchanged."""
  width = picture.size[1]
  x0, y0, x1, y1 = picture.objects.boxes.T
  objects = picture.objects._replace(
    boxes=np.stack([width - x1, y0, width - x0, y1], axis=1),
    masks=picture.objects.masks[:, :, ::-1],
  )
  label = None if picture.label is None else picture.label[:, ::-1]
  return Picture(picture.image[:, ::-1], objects, label)


def crop(picture: Picture, corner: tuple[int, int], size: Size) -> Picture:
  """What of the window of `size` at `corner` (y, x) lies in the picture.

  Objects without a pixel in it are gone. The box of one that the border cuts is that of the pixels
  that are left.
  """
  region = _region(corner, size)
  objects = picture.objects._replace(masks=picture.objects.masks[(slice(None), *region)])
  label = None if picture.label is None else picture.label[region]
  return _moved(Picture(picture.image[region], objects, label), corner)


def _region(corner: tuple[int, int], size: Size) -> tuple[slice, slice]:
  rows, columns = (slice(start, start + n) for start, n in zip(corner, size, strict=True))
  return rows, columns


def _moved(picture: Picture, corner: tuple[int, int]) -> Picture:
  """A picture whose boxes are still in pixels of the one from which it was cut, at `corner`."""
  masks, (top, left) = picture.objects.masks, corner
  boxes = picture.objects.boxes - np.float32([left, top, left, top])
  cut = ((boxes < 0) | (boxes > np.float32([*picture.size[::-1]] * 2))).any(1)
  boxes = np.where(cut[:, None], mask_boxes(masks), boxes)
  objects = picture.objects._replace(boxes=boxes).take(masks.any((1, 2)))
  return picture._replace(objects=objects)


def mask_boxes(masks: np.ndarray) -> np.ndarray:
  """f32[n, 4], the boxes around the pixels of [n, H, W]; zeros where there is none."""
  boxes = np.zeros((len(masks), 4), np.float32)
  for box, mask in zip(boxes, masks, strict=True):
    columns, rows = np.flatnonzero(mask.any(0)), np.flatnonzero(mask.any(1))
    if columns.size:
      box[:] = columns[0], rows[0], columns[-1] + 1, rows[-1] + 1
  return boxes


def largest(objects: Objects, count: int) -> Objects:
  """The `count` objects with the most pixels, in their order."""
  if len(objects.classes) <= count:
    return objects
  areas = objects.masks.sum((1, 2), dtype=np.int64)
  return objects.take(np.sort(np.argsort(-areas, kind='stable')[:count]))


def paste(rng: np.random.Generator, picture: Picture, other: Picture) -> Picture:
  """Objects of another picture on top of this one (Copy-Paste, arXiv 2012.07177, section 3).

  Each of `other`'s objects but crowds is pasted with probability 1/2, at its place. What they hide
  of an object is gone from its mask; its box is then that of the pixels that are left, and one that
  is hidden whole is left out. Labels, where there are any, are pasted likewise.

  Args:
    rng: the only source of chance.
    picture: to paste on.
    other: of any size; what lies outside `picture` is cut off.
  """
  height, width = picture.size
  other = crop(other, (0, 0), (height, width))
  some = rng.random(len(other.objects.classes)) < 0.5
  pasted = other.objects.take(np.flatnonzero(some & ~other.objects.crowd))
  if not len(pasted.classes):
    return picture
  inside = other.size
  masks = np.zeros((len(pasted.classes), height, width), np.uint8)
  masks[:, : inside[0], : inside[1]] = pasted.masks
  pasted = pasted._replace(masks=masks)
  on_top = masks.any(0)
  window = np.s_[: inside[0], : inside[1]]

  def put(below: np.ndarray, above: np.ndarray) -> np.ndarray:
    result = below.copy()
    result[window][on_top[window]] = above[on_top[window]]
    return result

  below = picture.objects
  left = below.masks * ~on_top
  hidden = (left != below.masks).any((1, 2))
  below = below._replace(
    boxes=np.where(hidden[:, None], mask_boxes(left), below.boxes), masks=left
  ).take(np.flatnonzero(left.any((1, 2)) | ~hidden))
  objects = Objects(*(np.concatenate(fields) for fields in zip(below, pasted, strict=True)))
  label = picture.label
  if label is not None and other.label is not None:
    label = put(label, other.label)
  return Picture(put(picture.image, other.image), objects, label)


def pad(picture: Picture, size: Size, count: int, colour: np.ndarray) -> dict[str, np.ndarray]:
  """One image's part of a batch: `size` large, with `count` objects.

  Args:
    picture: at most as large, with at most as many objects.
    size: of the image, the masks and the label.
    count: N.
    colour: u8[C], beside and below the image.

  Returns:
    image u8[H, W, C]; size i32[2], of the picture; instances, `Instances` without the batch axis,
    masks packed as `segjax.ops.masks.pack_masks` does; label u8[H, W], IGNORE_LABEL outside.
  """
  objects, n = picture.objects, len(picture.objects.classes)
  height, width = picture.size
  packed = np.zeros((count, size[0], -(-size[1] // 8)), np.uint8)
  packed[:n, :height, : -(-width // 8)] = np.packbits(objects.masks, axis=-1)

  def extend(field: np.ndarray) -> np.ndarray:
    return np.concatenate([field, np.zeros((count - n, *field.shape[1:]), field.dtype)])

  part = {
    'image': transforms.pad(picture.image, size, colour),
    'size': np.array(picture.size, np.int32),
    'instances': Instances(
      boxes=extend(objects.boxes.astype(np.float32)),
      classes=extend(objects.classes),
      masks=packed,
      crowd=extend(objects.crowd),
      valid=np.arange(count) < n,
    ),
  }
  if picture.label is not None:
    part['label'] = transforms.pad(picture.label, size, IGNORE_LABEL)
  return part
