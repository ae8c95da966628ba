"""Random changes of a training sample: a warp, colors, copy-paste, and the user's own.

Every function takes the generator that is its only source of randomness.
"""

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import cv2
import numpy as np

from segjax.data.config import Augment
from segjax.data.geometry import Warp
from segjax.data.masks import Masks, Window, concatenate
from segjax.data.sample import Objects, Sample, Size
from segjax.lookup import locate
from segjax.types import SegjaxError

Transform = Callable[..., Sample]

# Rotations by 0 to 3 quarter turns.
_QUARTERS = np.array([[[1, 0], [0, 1]], [[0, -1], [1, 0]], [[-1, 0], [0, -1]], [[0, 1], [-1, 0]]])


def sample_warp(
  rng: np.random.Generator,
  augment: Augment,
  in_size: Size,
  out_size: Size,
  *,
  margin: int = 0,
  clip: bool = False,
) -> Warp:
  """Samples a crop and its geometric augmentation.

  Without the margin, the crop (before rotation, shift and elastic displacement) is in the image at
  a position uniform among the whole pixels; where the image is too small it is centered. Shift and
  elastic displacement are in output pixels.

  Args:
    rng: sampled in the same order whatever the sizes.
    augment: its geometry. With everything off, the warp is a plain crop.
    in_size: of the image.
    out_size: (h, w) of the label's crop.
    margin: context in pixels that the image has around the label on each side: half of what an
      unpadded network shrinks its input by.
    clip: where the image, turned by quarters and scaled, is smaller than `out_size`, the output is
      as small, and all of it is image.
  """
  nodes = None
  if augment.elastic_sigma:
    nodes = rng.normal(0.0, augment.elastic_sigma, (2, augment.elastic_grid, augment.elastic_grid))
  shift = np.zeros(2)
  if augment.shift:
    shift = np.rint(rng.uniform(-augment.shift, augment.shift, 2))
  quarter_turns = int(rng.integers(4)) if augment.rotate90 else 0
  scale = rng.uniform(*augment.scale)
  angle = math.radians(rng.uniform(-augment.rotate, augment.rotate))
  flip = rng.random(2) < (augment.flip_horizontal, augment.flip_vertical)

  cos, sin = math.cos(angle), math.sin(angle)
  turn = np.array([[cos, -sin], [sin, cos]])
  turned = lambda size: size if quarter_turns % 2 == 0 else size[::-1]
  if clip:
    height, width = (
      max(1, min(limit, math.floor(side * scale)))
      for limit, side in zip(out_size, turned(in_size), strict=True)
    )
    out_size = height, width
  footprint = [side / scale for side in turned(out_size)]
  center_y, center_x = (
    max(_place(rng, available, needed), 0 if clip else -available) + (needed - 1) / 2
    for available, needed in zip(in_size, footprint, strict=True)
  )
  return Warp(
    size=out_size,
    center=np.float32([center_x, center_y]),
    matrix=(_QUARTERS[quarter_turns] @ turn * np.where(flip, -1, 1) / scale).astype(np.float32),
    shift=shift.astype(np.float32),
    nodes=None if nodes is None else nodes.astype(np.float32),
    margin=margin,
  )


def _place(rng: np.random.Generator, available: int, needed: float) -> int:
  """First pixel of `needed` pixels among `available`: uniform, or centered where they are fewer."""
  free = math.floor(available - needed)
  return int(rng.integers(free + 1)) if free > 0 else free // 2


# --- colors ---------------------------------------------------------------------------------------

# From RGB to brightness and two axes of color (NTSC's YIQ): gray is on the first axis alone.
_RGB_TO_YIQ = np.array(
  [[0.299, 0.587, 0.114], [0.595716, -0.274453, -0.321263], [0.211456, -0.522591, 0.311135]]
)
_YIQ_TO_RGB = np.linalg.inv(_RGB_TO_YIQ)


def shift_color(rng: np.random.Generator, image: np.ndarray, augment: Augment) -> np.ndarray:
  """Changes brightness, contrast, saturation and hue in one affine map of the channels.

  Args:
    rng: sampled in the same order whatever is on.
    image: u8[H, W, C]. Only C = 3 has a saturation and a hue; of others they do nothing.
    augment: off returns the image itself.

  Returns:
    u8[H, W, C], rounded and clipped to 0..255.
  """
  ranges = augment.brightness, augment.contrast, augment.saturation, augment.hue
  offset, contrast, saturation, turn = rng.uniform(-1, 1, 4) * ranges
  if not (offset or contrast or saturation or turn):
    return image
  channels = image.shape[2]
  color = np.eye(channels)
  luma = np.full(channels, 1 / channels)
  if channels == 3:
    cos, sin = (1 + saturation) * np.array([math.cos(math.tau * turn), math.sin(math.tau * turn)])
    color = _YIQ_TO_RGB @ [[1, 0, 0], [0, cos, -sin], [0, sin, cos]] @ _RGB_TO_YIQ
    luma = _RGB_TO_YIQ[0]
  mean = luma @ cv2.mean(image)[:channels]
  bias = np.full((channels, 1), 255 * offset - contrast * mean)
  return cv2.transform(image, np.hstack([(1 + contrast) * color, bias])).reshape(image.shape)


# --- copy-paste -----------------------------------------------------------------------------------


def choose_to_paste(rng: np.random.Generator, objects: Objects) -> Objects:
  """Each object but crowds with probability 1/2."""
  chosen = rng.random(len(objects.classes)) < 0.5
  return objects.take(np.flatnonzero(chosen & ~objects.crowd))


def paste(sample: Sample, other: Sample) -> Sample:
  """The objects of another sample on top of this one (Copy-Paste, arXiv 2012.07177, section 3).

  They keep their position. What they hide of an object is gone from its mask, its box is then that
  of the pixels that are left, and an object that is hidden completely is gone. Labels, where both
  have them, are pasted in the same way.

  Args:
    sample: to paste on.
    other: at most as large; see `choose_to_paste`.
  """
  if not len(other.objects.classes):
    return sample
  height, width = other.size
  above = other.objects._replace(masks=Masks(sample.size, Masks.of(other.objects.masks).windows))
  on_top = above.masks.union()

  def put(below: np.ndarray, above: np.ndarray) -> np.ndarray:
    result = below.copy()
    result[on_top] = above[on_top[:height, :width]]
    return result

  return sample.change(
    image=lambda image: put(image, other.image),
    label=lambda label: put(label, other.label),
    weight=lambda weight: put(weight, other.weight),
    objects=lambda objects: _join(_hide(objects, on_top), above),
  )


def _hide(objects: Objects, on_top: np.ndarray) -> Objects:
  """What is left of objects under bool[H, W]: those of which a pixel is, with the boxes of that."""
  masks = Masks.of(objects.masks)
  left = masks.map(lambda w: Window(w.y, w.x, w.pixels * ~on_top[w.inside]))
  boxes = np.where((left.areas != masks.areas)[:, None], left.boxes, objects.boxes)
  return objects._replace(boxes=boxes, masks=left).take(np.flatnonzero(left.areas))


def _join(first: Objects, second: Objects) -> Objects:
  join = lambda a, b: (concatenate if isinstance(a, Masks) else np.concatenate)((a, b))
  return Objects(*map(join, first, second))


# --- the user's own -------------------------------------------------------------------------------


@functools.lru_cache
def find_transform(name: str) -> Transform:
  """The function that an entry of `config.augment.transforms` names, see `segjax.lookup`."""
  return locate(name, 'config.augment.transforms')


def apply_transforms(
  rng: np.random.Generator,
  sample: Sample,
  transforms: Sequence[Mapping[str, Any]],
  largest: Size,
  name: str,
) -> Sample:
  """The user's own transforms, one after the other.

  Args:
    rng: handed on to each.
    sample: handed on to the first.
    transforms: `config.augment.transforms`.
    largest: size that the result fits into.
    name: of the example, for errors.

  Raises:
    SegjaxError: the result of one is not what a sample is.
  """
  if transforms:
    sample = sample.change(objects=lambda o: o._replace(masks=np.asarray(o.masks)))
  for entry in transforms:
    path, arguments = entry['name'], {k: v for k, v in entry.items() if k != 'name'}
    changed = find_transform(path)(rng, sample, **arguments)
    if problem := _problem(changed, sample, largest):
      raise SegjaxError(
        f'config.augment.transforms: {path} returned {problem} for {name}: return the sample with '
        'changed arrays of the same dtypes and of one height and width'
      )
    sample = changed
  return sample


def _problem(changed: Any, sample: Sample, largest: Size) -> str | None:
  """What is wrong with a changed sample."""
  if not isinstance(changed, Sample):
    return f'{type(changed).__name__}, not a Sample,'
  size = changed.size
  if size != sample.size and any(side > limit for side, limit in zip(size, largest, strict=True)):
    return f'an image of {size}, larger than {tuple(largest)},'
  before, after = (
    {**x._asdict(), **(x.objects._asdict() if x.objects else {})} for x in (sample, changed)
  )
  inner = size
  if sample.label is not None:  # less the margin
    added = np.subtract(size, sample.size)
    inner = tuple((added + sample.label.shape).tolist())
  count = np.shape(after.get('classes'))
  shapes = {'image': (*size, sample.image.shape[2]), 'label': inner, 'weight': inner}
  shapes |= {'boxes': (*count, 4), 'classes': count, 'masks': (*count, *inner), 'crowd': count}
  for key, shape in shapes.items():
    old, new = (getattr(x.get(key), 'dtype', None) for x in (before, after))
    if old != new or (new is not None and after[key].shape != shape):
      found = f'{new}{list(after[key].shape)}' if new is not None else 'none'
      return f'{key} {found} in place of {old}{list(shape)}'
  return None
