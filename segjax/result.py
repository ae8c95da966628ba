"""What a trained network finds in one image: plain NumPy arrays at the image's own size."""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from segjax.data.formats import coco
from segjax.data.windows import Windows
from segjax.report import overlays
from segjax.types import SegjaxError


@dataclasses.dataclass(frozen=True, eq=False)
class Result:
  """The prediction for one image. What a task does not predict is None.

  Attributes:
    image: u8[H, W, C], upright, with as many channels as the network sees. `segjax predict` has
      windows of a large TIFF file instead, see `segjax.data.windows`.
    class_names: one for each class index. In instance tasks, of the objects; in panoptic tasks, of
      things and stuff together.
    palette: u8[classes, 3], the RGB color of each class.
    name: of the image: the stem of its file, else its position among the images, from 1.
    label: u8[H, W], or u16[H, W] above 255 classes: the most probable class of each pixel, in
      semantic tasks.
    probability: f32[H, W, classes], on request, in semantic tasks.
    uncertainty: f32[H, W], the variance over dropout samples (`config.eval.samples`), in semantic
      tasks.
    boxes: f32[n, 4], x0, y0, x1, y1 in pixels, in instance tasks; best first, as the next three.
    classes: i32[n], class index of each object.
    scores: f32[n], probability of each object.
    encoded_masks: n masks as COCO's compressed run lengths (`counts`); None without a mask
      head. `masks` are the same as an array.
    segments: i32[H, W], the id of the segment of each pixel, 0 for none, in panoptic tasks.
    segments_info: one mapping for each segment with pixels: `id`, `category` (class index), `name`
      of the class, `isthing`, `area` in pixels, and the `score` of a thing where it is known.
    category_ids: the id of each class in files of COCO's format; None counts from 1.
    draw_threshold: objects with a lower score are not drawn.
    unlike_training: how the image differs from those of the training, such as 'it is 4000x3000
      pixels, …'; empty where it does not.
  """

  image: np.ndarray | Windows
  class_names: Sequence[str]
  palette: np.ndarray
  name: str = ''
  label: np.ndarray | None = None
  probability: np.ndarray | None = None
  uncertainty: np.ndarray | None = None
  boxes: np.ndarray | None = None
  classes: np.ndarray | None = None
  scores: np.ndarray | None = None
  encoded_masks: Sequence[str] | None = None
  segments: np.ndarray | None = None
  segments_info: Sequence[Mapping[str, Any]] | None = None
  category_ids: Sequence[int] | None = None
  draw_threshold: float = 0.5
  unlike_training: str = ''

  def __repr__(self) -> str:
    height, width = self.size
    if self.label is not None:
      found = f'{len(np.unique(self.label))} classes'
    elif self.segments is not None:
      found = f'{len(self.segments_info)} segments'
    else:
      found = f'{len(self.scores)} objects'
    return f'Result({self.name!r}, {width}x{height} pixels, {found})'

  @property
  def size(self) -> tuple[int, int]:
    """(height, width) of the image."""
    return self.image.shape[:2]

  @functools.cached_property
  def masks(self) -> np.ndarray | None:
    """bool[n, H, W], decoded when it is first asked for: 30 MB for 100 objects of 640x480."""
    if self.encoded_masks is None:
      return None
    masks = np.empty((len(self.encoded_masks), *self.size), bool)
    for k, mask in enumerate(masks):
      mask[...] = self.mask(k)
    return masks

  def mask(self, k: int) -> np.ndarray:
    """bool[H, W], the mask of object `k`."""
    return coco.decode_mask(self.encoded_masks[k], self.size).astype(bool)

  def draw(self, *, legend: bool = True) -> np.ndarray:
    """Draws the prediction on the image.

    Classes are tinted and named in a legend to the right of the image; objects and segments are
    outlined, each with its class name. A small image is enlarged by an integer factor, so that the
    text can be read.

    Args:
      legend: whether a semantic result has its legend; without it, the drawing has the image's
        size.

    Returns:
      u8[sH, sW + legend, 3], s >= 1.
    """
    if self.label is not None:
      drawn = overlays.overlay(self.image, self.label, self.palette)
      if not legend:
        return drawn
      return overlays.with_legend(drawn, self.label, self.palette, self.class_names)
    if self.segments is not None:
      return self._draw_segments()
    return self._draw_objects()

  def to_coco(self, image_id: int | str, kind: str | None = None) -> list[dict[str, Any]]:
    """The objects in COCO's results format, or the segments in its panoptic one.

    An entry of an object has its mask or its box, not both: `COCO.loadRes` of pycocotools would
    take the area of the box for that of the mask, and AP by size would differ.

    Args:
      image_id: of the image in the annotation file.
      kind: 'mask' or 'box'; None for masks where the network predicts them.

    Returns:
      For `COCO.loadRes`, one entry for each object: `image_id`, `category_id`, `score`, and
      `segmentation` or `bbox`. In panoptic tasks one entry of `annotations`: `image_id`,
      `file_name` of the PNG of segment ids, and `segments_info`.

    Raises:
      SegjaxError: a label map has no form in COCO's format; there are no masks.
    """
    if self.segments is not None:
      return [self._coco_segments(image_id)]
    if self.boxes is None:
      raise SegjaxError(
        f'{self.name or "the result"} is a label map, which has no entry in the COCO format: save '
        'label as a PNG'
      )
    kind = kind or ('box' if self.encoded_masks is None else 'mask')
    if kind not in ('box', 'mask') or (kind == 'mask' and self.encoded_masks is None):
      raise SegjaxError(
        f'to_coco: kind={kind!r} is not what this network predicts: use '
        + ("'box'" if self.encoded_masks is None else "'box' or 'mask'")
      )
    return [self._coco_object(image_id, k, kind) for k in range(len(self.scores))]

  def _coco_object(self, image_id: int | str, k: int, kind: str) -> dict[str, Any]:
    entry = {
      'image_id': image_id,
      'category_id': self.category_id(self.classes[k]),
      'score': float(self.scores[k]),
    }
    if kind == 'mask':
      height, width = self.size
      return entry | {'segmentation': {'size': [height, width], 'counts': self.encoded_masks[k]}}
    x0, y0, x1, y1 = self.boxes[k].astype(np.float64).tolist()
    return entry | {'bbox': [x0, y0, x1 - x0, y1 - y0]}

  def _coco_segments(self, image_id: int | str) -> dict[str, Any]:
    return {
      'image_id': image_id,
      'file_name': f'{self.name}.png',
      'segments_info': [
        {'id': info['id'], 'category_id': self.category_id(info['category'])}
        for info in self.segments_info
      ],
    }

  def category_id(self, index: int) -> int:
    """The id of a class in files of COCO's format."""
    return int(index) + 1 if self.category_ids is None else int(self.category_ids[index])

  def _draw_objects(self) -> np.ndarray:
    shown = np.flatnonzero(self.scores >= self.draw_threshold)
    pairs = zip(self.classes[shown], self.scores[shown], strict=True)
    return overlays.objects(
      self.image,
      self.boxes[shown],
      self.palette[self.classes[shown]],
      [f'{self.class_names[k]} {score:.2f}' for k, score in pairs],
      None if self.encoded_masks is None else [self.mask(k) for k in shown],
    )

  def _draw_segments(self) -> np.ndarray:
    count = max((info['id'] for info in self.segments_info), default=0)
    classes, names = np.zeros(count, np.int64), [''] * count
    for info in self.segments_info:
      classes[info['id'] - 1] = info['category']
      names[info['id'] - 1] = self.class_names[info['category']]
    return overlays.segments(self.image, self.segments, self.palette[classes], names)


def label_type(classes: int) -> type[np.unsignedinteger]:
  """The type of the label maps of so many classes, whose highest value is left for void."""
  return np.uint8 if classes <= np.iinfo(np.uint8).max else np.uint16
