"""Geometry and colour changes of an image and its label, as pure functions of (arrays, generator).

The geometry of one example, its crop included, is one map of sampling positions, used by one
`cv2.remap` each for the image, the label and the weight map. So a picture is interpolated once,
and the three stay aligned to the pixel. The colour of one example is one affine map likewise.

Sizes are (height, width) in pixels. A map is f32[H, W, 2]: for each output pixel the (x, y) in the
input, in units of pixel centres (the centre of the first pixel is 0, 0).
"""

import dataclasses
import functools
import math

import cv2
import numpy as np

from segjax.types import IGNORE_LABEL, SegjaxError

Size = tuple[int, int]


@dataclasses.dataclass(frozen=True)
class Augment:
  """What training examples are varied by: the keys of `config.data.augment`. A default is off.

  Attributes:
    flip_horizontal: probability of a left-right flip.
    flip_vertical: probability of an upside-down flip.
    rotate90: turn by a whole number of quarter turns, each of the four as likely.
    rotate: turn by an angle uniform in ±`rotate` degrees.
    scale: enlarge by a factor uniform in [low, high]; above 1 zooms in. Much below 0.5 aliases.
    shift: move by whole pixels, uniform in ±`shift` on each axis, past the image's border too.
    elastic_sigma: standard deviation in pixels of the displacements at the elastic grid's nodes
      (U-Net, section 3.1: 10).
    elastic_grid: nodes of the elastic grid along each axis, borders included (U-Net: 3).
    brightness: add a value uniform in ±`brightness`, as a fraction of white.
    contrast: scale the distance from the image's mean grey by a factor uniform in 1±`contrast`.
    saturation: scale the distance from grey by a factor uniform in 1±`saturation` (RGB only).
    hue: turn the hue by an angle uniform in ±`hue`, as a fraction of the circle (RGB only).
  """

  flip_horizontal: float = 0.0
  flip_vertical: float = 0.0
  rotate90: bool = False
  rotate: float = 0.0
  scale: tuple[float, float] = (1.0, 1.0)
  shift: float = 0.0
  elastic_sigma: float = 0.0
  elastic_grid: int = 3
  brightness: float = 0.0
  contrast: float = 0.0
  saturation: float = 0.0
  hue: float = 0.0

  def __post_init__(self):
    object.__setattr__(self, 'scale', tuple(self.scale))
    for key in ('flip_horizontal', 'flip_vertical', 'brightness', 'contrast', 'saturation', 'hue'):
      if not 0 <= getattr(self, key) <= 1:
        raise SegjaxError(f'data.augment.{key}={getattr(self, key)} must lie in [0, 1]')
    for key in ('rotate', 'shift', 'elastic_sigma'):
      if not getattr(self, key) >= 0:
        raise SegjaxError(f'data.augment.{key}={getattr(self, key)} must not be negative')
    if len(self.scale) != 2 or not 0 < self.scale[0] <= self.scale[1]:
      raise SegjaxError(f'data.augment.scale={self.scale} must be (low, high) with 0 < low <= high')
    if self.elastic_grid < 2:
      raise SegjaxError(f'data.augment.elastic_grid={self.elastic_grid} must be 2 or more')


def augment_example(
  rng: np.random.Generator,
  image: np.ndarray,
  label: np.ndarray,
  weight: np.ndarray | None = None,
  *,
  out_size: Size,
  augment: Augment,
  margin: int = 0,
) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
  """Draws a crop and its augmentation.

  Args:
    rng: the only source of chance; equal states give equal results.
    image: uint8[H, W, C], C is 1 or 3.
    label: uint8[H, W].
    weight: float32[H, W] or None.
    out_size: (h, w) of the label's crop.
    augment: what may vary. With everything off, the result is the plain crop, bit for bit.
    margin: context in pixels that the image has around the label on each side: half of what an
      unpadded network shrinks its input by.

  Returns:
    uint8[h + 2·margin, w + 2·margin, C], mirrored where it passes the image's border;
    uint8[h, w], `IGNORE_LABEL` outside the image; float32[h, w] or None.
  """
  positions = sample_map(rng, image.shape[:2], out_size, augment, margin)
  inner = positions[margin : margin + out_size[0], margin : margin + out_size[1]]
  return (
    shift_colour(rng, warp(image, positions), augment),
    warp_label(label, inner),
    None if weight is None else warp(weight, inner),
  )


def sample_map(
  rng: np.random.Generator,
  in_size: Size,
  out_size: Size,
  augment: Augment,
  margin: int = 0,
) -> np.ndarray:
  """Where each output pixel lies in the input: f32[h + 2·margin, w + 2·margin, 2].

  Without the margin, the crop (before rotation, shift and elastic displacement) lies in the image
  at a position uniform among the whole pixels; where the image is too small it is centred. Shift
  and elastic displacement are in output pixels.
  """
  height, width = (size + 2 * margin for size in out_size)
  # Output pixels from the centre of the crop; halves are exact in float32.
  x, y = np.meshgrid(
    np.arange(width, dtype=np.float32) - np.float32((width - 1) / 2),
    np.arange(height, dtype=np.float32) - np.float32((height - 1) / 2),
  )
  if augment.elastic_sigma:
    dx, dy = elastic_displacement(rng, (height, width), augment.elastic_sigma, augment.elastic_grid)
    x, y = x + dx, y + dy
  if augment.shift:
    dx, dy = np.rint(rng.uniform(-augment.shift, augment.shift, 2)).astype(np.float32)
    x, y = x + dx, y + dy

  quarter_turns = int(rng.integers(4)) if augment.rotate90 else 0
  scale = rng.uniform(*augment.scale)
  angle = math.radians(rng.uniform(-augment.rotate, augment.rotate))
  flip = rng.random(2) < (augment.flip_horizontal, augment.flip_vertical)
  cos, sin = math.cos(angle), math.sin(angle)
  turn = np.array([[cos, -sin], [sin, cos]])
  quarter = np.linalg.matrix_power(np.array([[0, -1], [1, 0]]), quarter_turns)
  (xx, xy), (yx, yy) = (quarter @ turn @ np.diag(np.where(flip, -1, 1)) / scale).astype(np.float32)

  footprint = [size / scale for size in (out_size if quarter_turns % 2 == 0 else out_size[::-1])]
  centre_y, centre_x = (
    np.float32(_place(rng, available, needed) + (needed - 1) / 2)
    for available, needed in zip(in_size, footprint, strict=True)
  )
  return np.stack([xx * x + xy * y + centre_x, yx * x + yy * y + centre_y], axis=-1)


def _place(rng: np.random.Generator, available: int, needed: float) -> int:
  """First pixel of `needed` pixels among `available`: uniform, or centred where they are fewer."""
  free = math.floor(available - needed)
  return int(rng.integers(free + 1)) if free > 0 else free // 2


def elastic_displacement(
  rng: np.random.Generator, size: Size, sigma: float, grid: int = 3
) -> np.ndarray:
  """Smooth displacement of each pixel (U-Net, section 3.1).

  Vectors drawn from a Gaussian of standard deviation `sigma` at `grid` × `grid` nodes, which span
  the picture with nodes in its corners, and bicubic interpolation between them.

  Returns:
    f32[2, h, w]: the displacements in x and in y, in the unit of `sigma`.
  """
  nodes = rng.normal(0.0, sigma, (2, grid, grid)).astype(np.float32)
  rows, columns = (_cubic_matrix(n, grid) for n in size)
  # Plain sums: a BLAS product may differ in its last bits with the number of threads.
  across = sum(rows[:, i, None] * nodes[:, None, i] for i in range(grid))
  return sum(across[:, :, j, None] * columns[:, j] for j in range(grid))


@functools.lru_cache(maxsize=16)
def _cubic_matrix(size: int, nodes: int) -> np.ndarray:
  """f32[size, nodes]: weights of cubic convolution (Keys, a = -1/2) from nodes to pixels."""
  at = np.linspace(0, nodes - 1, size)
  first = np.floor(at).astype(int)
  matrix = np.zeros((size, nodes))
  for step in (-1, 0, 1, 2):
    d = np.abs(at - (first + step))
    near = (1.5 * d - 2.5) * d**2 + 1
    far = ((-0.5 * d + 2.5) * d - 4) * d + 2
    matrix[np.arange(size), np.clip(first + step, 0, nodes - 1)] += np.where(d <= 1, near, far)
  return matrix.astype(np.float32)


def warp(array: np.ndarray, positions: np.ndarray) -> np.ndarray:
  """Bilinear samples of an image or a weight map, mirrored about the centres of its border pixels.

  Args:
    array: uint8 or float32, [H, W] or [H, W, C] with C at most 4.
    positions: f32[h, w, 2].

  Returns:
    [h, w] or [h, w, C] of the same dtype; exact where the positions are whole pixels.
  """
  out = cv2.remap(array, positions, None, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT_101)
  return out.reshape(positions.shape[:2] + array.shape[2:])


def warp_label(label: np.ndarray, positions: np.ndarray) -> np.ndarray:
  """Nearest samples of uint8[H, W], `IGNORE_LABEL` outside: uint8[h, w]."""
  return cv2.remap(
    label,
    positions,
    None,
    cv2.INTER_NEAREST,
    borderMode=cv2.BORDER_CONSTANT,
    borderValue=IGNORE_LABEL,
  )


# From RGB to brightness and two axes of colour (NTSC's YIQ): grey lies on the first axis alone.
_RGB_TO_YIQ = np.array(
  [
    [0.299, 0.587, 0.114],
    [0.595716, -0.274453, -0.321263],
    [0.211456, -0.522591, 0.311135],
  ]
)
_YIQ_TO_RGB = np.linalg.inv(_RGB_TO_YIQ)


def shift_colour(rng: np.random.Generator, image: np.ndarray, augment: Augment) -> np.ndarray:
  """Changes brightness, contrast, saturation and hue in one affine map of the channels.

  Args:
    rng: draws in the same order whatever is on.
    image: uint8[H, W, C]. Only C = 3 has a saturation and a hue; grey values shift alone.
    augment: off leaves the image as it is.

  Returns:
    uint8[H, W, C], rounded and clipped to 0..255.
  """
  offset, contrast, saturation, turn = rng.uniform(-1, 1, 4) * (
    augment.brightness,
    augment.contrast,
    augment.saturation,
    augment.hue,
  )
  if not (offset or contrast or saturation or turn):
    return image
  channels = image.shape[2]
  colour = np.eye(channels)
  luma = np.full(channels, 1 / channels)
  if channels == 3:
    cos, sin = (1 + saturation) * np.array([math.cos(math.tau * turn), math.sin(math.tau * turn)])
    colour = _YIQ_TO_RGB @ [[1, 0, 0], [0, cos, -sin], [0, sin, cos]] @ _RGB_TO_YIQ
    luma = _RGB_TO_YIQ[0]
  mean = luma @ cv2.mean(image)[:channels]
  bias = np.full((channels, 1), 255 * offset - contrast * mean)
  return cv2.transform(image, np.hstack([(1 + contrast) * colour, bias])).reshape(image.shape)


def resize_image(image: np.ndarray, size: Size) -> np.ndarray:
  """uint8[H, W, C] → uint8[h, w, C]: area means where an axis shrinks, bilinear where it grows."""
  smaller = tuple(min(old, new) for old, new in zip(image.shape[:2], size, strict=True))
  for target, method in ((smaller, cv2.INTER_AREA), (tuple(size), cv2.INTER_LINEAR)):
    if image.shape[:2] != target:
      image = cv2.resize(image, target[::-1], interpolation=method).reshape(*target, -1)
  return image


def resize_label(label: np.ndarray, size: Size) -> np.ndarray:
  """[H, W] → [h, w]: the nearest pixel centre, so that the label stays aligned with the image."""
  if label.shape == tuple(size):
    return label
  # cv2.INTER_NEAREST aligns corners of pixels instead, half a pixel off.
  return cv2.resize(label, tuple(size)[::-1], interpolation=cv2.INTER_NEAREST_EXACT)


def fit_size(size: Size, box: Size) -> Size:
  """The largest size of `size`'s aspect ratio, to the pixel, that fits into `box`."""
  ratio = min(b / s for s, b in zip(size, box, strict=True))
  height, width = (max(1, min(b, round(s * ratio))) for s, b in zip(size, box, strict=True))
  return height, width


def pad(array: np.ndarray, size: Size, value: float | tuple[float, ...]) -> np.ndarray:
  """`array` [H, W, ...] in the upper left corner of [h, w, ...], the rest filled with `value`."""
  if array.shape[:2] == tuple(size):
    return array
  out = np.empty((*size, *array.shape[2:]), array.dtype)
  out[...] = value
  out[: array.shape[0], : array.shape[1]] = array
  return out
