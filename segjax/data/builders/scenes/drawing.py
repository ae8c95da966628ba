"""Renders the images of the scenes data set, with their annotation: NumPy and OpenCV, no data.

An image is a landscape (sky, hill, grass, water: stuff) with toys in it (ball, box, tree, ring,
star: things). The hues of things lean to their kind and overlap, their textures are shared, and
light and haze change both: color helps, shape decides. Stuff differs in texture and in place.

Coordinates: `u` grows to the right and `v` downwards, as rows do; inside a thing they are in units
of its radius, with the origin at its center. Colors are RGB, float32, 0 to 1.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import cv2
import numpy as np


class SceneClass(NamedTuple):
  """One class: its name, whether it is countable, and the color to paint it with."""

  name: str
  isthing: bool
  color: tuple[int, int, int]


CLASSES = (
  SceneClass('sky', False, (120, 180, 240)),
  SceneClass('hill', False, (140, 110, 90)),
  SceneClass('grass', False, (90, 170, 70)),
  SceneClass('water', False, (30, 90, 170)),
  SceneClass('ball', True, (230, 60, 60)),
  SceneClass('box', True, (245, 160, 30)),
  SceneClass('tree', True, (20, 100, 50)),
  SceneClass('ring', True, (170, 70, 200)),
  SceneClass('star', True, (250, 230, 60)),
)
SKY, HILL, GRASS, WATER = range(4)

_TILE = 512


class Scene(NamedTuple):
  """A synthetic image and its annotation.

  Attributes:
    image: u8[size, size, 3] RGB.
    label: u8[size, size] class index of each pixel.
    instance: u8[size, size] 0 = no thing, k = k-th thing, counted from the farthest.
    classes: class index of things 1, 2, ...; each of them has visible pixels.
  """

  image: np.ndarray
  label: np.ndarray
  instance: np.ndarray
  classes: tuple[int, ...]


class _Form(NamedTuple):
  """What a kind of thing looks like, each f32[h, w] over its window.

  Attributes:
    distance: about the distance to the outline in radii, negative inside.
    shade: brightness that the light gives the surface; 1 is neutral.
    s, t: texture coordinates on the surface.
  """

  distance: np.ndarray
  shade: np.ndarray
  s: np.ndarray
  t: np.ndarray


class _Place(NamedTuple):
  """Where a thing is: kind, center column and row, radius (pixels), nearness 0 to 1, support."""

  kind: str
  u: float
  v: float
  radius: float
  near: float
  stands: bool


class _Sprite(NamedTuple):
  """A painted thing, not yet in the image: what covers the rows and columns of `window`."""

  index: int
  window: tuple[slice, slice]
  alpha: np.ndarray
  rgb: np.ndarray
  shadow: np.ndarray | None


class _View(NamedTuple):
  """What all parts of one image share; fields of pixels are f32[size, size].

  Attributes:
    size: rows and columns.
    horizon: row of the horizon, in pixels.
    light: unit vector towards the light: right, down, towards the viewer.
    haze: RGB of the sky at the horizon, which far things fade into.
    rows, columns: pixel centers.
    right, away: coordinates of the ground seen in each pixel; `away` is 1 in the bottom row.
  """

  size: int
  horizon: float
  light: np.ndarray
  haze: np.ndarray
  rows: np.ndarray
  columns: np.ndarray
  right: np.ndarray
  away: np.ndarray


def draw_scene(rng: np.random.Generator, size: int) -> Scene:
  """Renders one image of `size` x `size` pixels; all that is random in it comes from `rng`."""
  overhead, haze = _sky_colors(rng)
  view = _view(rng, size, haze)
  label = _landscape(rng, view)
  air = _paint_sky(rng, view, overhead)
  layers = np.stack(
    [air, _paint_hill(rng, view), _paint_grass(rng, view), _paint_water(rng, view, air)]
  )
  image = np.take_along_axis(layers, label[None, ..., None].astype(np.intp), axis=0)[0]

  sprites = _visible([_sprite(rng, view, place) for place in _places(rng, view)], size)
  instance = np.zeros((size, size), np.uint8)
  for number, sprite in enumerate(sprites, start=1):
    _paste(image, sprite)
    inside = sprite.alpha > 0.5
    instance[sprite.window][inside] = number
    label[sprite.window][inside] = sprite.index
  image = _expose(rng, view, image)
  return Scene(image, label, instance, tuple(sprite.index for sprite in sprites))


def _view(rng, size: int, haze: np.ndarray) -> _View:
  """Samples where the horizon is and where the light comes from."""
  azimuth = rng.choice([-1, 1]) * rng.uniform(0.3, 0.8)
  light = np.array([azimuth, -rng.uniform(0.4, 0.8), rng.uniform(0.4, 0.8)], np.float32)
  light /= np.linalg.norm(light)
  horizon = size * rng.uniform(0.28, 0.55)
  rows, columns = np.mgrid[:size, :size].astype(np.float32) + 0.5
  away = 1 / np.maximum((rows - horizon) / (size - horizon), 0.04)
  right = (columns / size - 0.5) * away
  return _View(size, horizon, light, haze, rows, columns, right, away)


# Noise and color.


@functools.cache
def _noise_tile(exponent: float) -> np.ndarray:
  """Periodic f32[512, 512] noise with amplitude 1 / frequency^exponent, mean 0, deviation 1."""
  white = np.random.default_rng(0).standard_normal((_TILE, _TILE))
  frequency = np.hypot(np.fft.fftfreq(_TILE)[:, None], np.fft.rfftfreq(_TILE)[None])
  frequency[0, 0] = np.inf
  tile = np.fft.irfft2(np.fft.rfft2(white) / frequency**exponent, (_TILE, _TILE))
  return (tile / tile.std()).astype(np.float32)


def _noise(rng, u: np.ndarray, v: np.ndarray, exponent: float) -> np.ndarray:
  """Noise at (u, v), in pixels of a tile shifted by a random offset; same shape as `u`."""
  du, dv = rng.uniform(0, _TILE, 2).astype(np.float32)
  tile = _noise_tile(exponent)
  return cv2.remap(tile, u + du, v + dv, cv2.INTER_LINEAR, borderMode=cv2.BORDER_WRAP)


def _rgb(hue: float, saturation: float, value: float) -> np.ndarray:
  """RGB of a hue (0 to 1, red = 0, green = 1/3), a saturation and a value."""
  ramp = np.abs(np.mod(hue * 6 + np.array([0, 4, 2]), 6) - 3) - 1
  return (value * (1 - saturation * (1 - np.clip(ramp, 0, 1)))).astype(np.float32)


def _mix(first: np.ndarray, second: np.ndarray, weight: np.ndarray) -> np.ndarray:
  """`first` where `weight` [h, w] is 0, `second` where it is 1; RGB [..., 3]."""
  return first + (second - first) * weight[..., None]


def _edge(x: np.ndarray, softness: float) -> np.ndarray:
  """0 where x is well below 0 and 1 well above, with a ramp of 2 * `softness`."""
  return np.clip(0.5 + x * (0.5 / softness), 0, 1)


# Stuff.


def _sky_colors(rng) -> tuple[np.ndarray, np.ndarray]:
  """Colors of the sky overhead and at the horizon: a clear day, an evening or an overcast one."""
  kind = rng.choice(3, p=[0.5, 0.3, 0.2])
  hue, saturation, value = (
    (rng.uniform(0.52, 0.65), rng.uniform(0.4, 0.85), rng.uniform(0.55, 0.95)),
    (rng.uniform(0.7, 1.15), rng.uniform(0.25, 0.6), rng.uniform(0.4, 0.85)),
    (rng.uniform(0.5, 0.7), rng.uniform(0.0, 0.2), rng.uniform(0.45, 0.85)),
  )[kind]
  horizon_hue = hue + (rng.uniform(0.05, 0.15) if kind == 1 else 0)
  top = _rgb(hue, saturation, value)
  return top, _rgb(horizon_hue, saturation * rng.uniform(0.3, 0.8), min(1.0, value * 1.2))


def _landscape(rng, view: _View) -> np.ndarray:
  """u8[size, size] of SKY, HILL, GRASS and WATER."""
  across = view.columns[:1] / view.size
  ridge = _noise(rng, across * rng.uniform(30, 90), np.zeros_like(across), 1.5)
  height = view.size * (rng.uniform(0.02, 0.16) + rng.uniform(0.03, 0.09) * ridge)
  above = view.rows < view.horizon
  label = np.where(above, SKY, GRASS).astype(np.uint8)
  label[above & (view.rows > view.horizon - height)] = HILL

  pond = _noise(rng, view.right * rng.uniform(20, 60), view.away * rng.uniform(10, 40), 1.8)
  # Far away ponds would be specks of a pixel: there all is land, or all is sea.
  pond += rng.choice([-1, 1], p=[0.6, 0.4]) * 0.25 * np.maximum(view.away - 5, 0)
  share = max(0.0, rng.uniform(-0.1, 0.55))
  label[~above & (pond > np.quantile(pond[~above], 1 - share))] = WATER
  return label


def _paint_sky(rng, view: _View, overhead: np.ndarray) -> np.ndarray:
  up = np.clip(1 - view.rows / view.horizon, 0, 1)
  air = _mix(view.haze, overhead, up)
  near = 128 / view.size / (0.25 + up)  # clouds are small at the horizon
  clouds = _noise(rng, view.columns * near, view.rows * 2.2 * near, 1.7)
  cover = rng.uniform(0.2, 0.9) * _edge(clouds - rng.uniform(-0.3, 1.2), rng.uniform(0.3, 1.0))
  return _mix(air, _rgb(0, 0, rng.uniform(0.75, 1.0)), cover)


def _paint_hill(rng, view: _View) -> np.ndarray:
  scale = 128 / view.size
  rock = _noise(rng, view.columns * 1.5 * scale, view.rows * 2.5 * scale, 1.4)
  relief = np.gradient(rock, axis=1) / scale * np.sign(view.light[0])
  color = _rgb(rng.uniform(0, 0.75), rng.uniform(0.1, 0.35), rng.uniform(0.25, 0.6))
  hill = color * (1 + 0.10 * rock + 0.45 * relief)[..., None]
  return _mix(hill, view.haze, np.full_like(rock, rng.uniform(0.0, 0.45)))


def _paint_grass(rng, view: _View) -> np.ndarray:
  right, away = view.right, view.away
  color = _rgb(rng.uniform(0.12, 0.36), rng.uniform(0.3, 0.7), rng.uniform(0.3, 0.6))
  other = _rgb(rng.uniform(0.09, 0.36), rng.uniform(0.3, 0.7), rng.uniform(0.3, 0.7))
  blades = _noise(rng, right * 330, away * 60, 0.6)
  patches = _noise(rng, right * 60, away * 60, 1.6)
  grass = color * (1 + rng.uniform(0.12, 0.3) * blades)[..., None]
  grass = _mix(grass, grass * 0.4 + other * 0.6, _edge(patches - 0.5, 1.0))
  flowers = _noise(rng, right * 250, away * 250, 0.3) > rng.uniform(2.2, 5.0)
  grass[flowers] = _rgb(rng.uniform(0, 1), rng.uniform(0, 0.9), 0.95)
  return grass


def _paint_water(rng, view: _View, air: np.ndarray) -> np.ndarray:
  """Water mirrors the sky `air` at the horizon, broken by waves that lie in the ground's plane."""
  right, away = view.right, view.away
  mirrored = np.clip(2 * view.horizon - view.rows[:, 0], 0, view.size - 1).astype(np.intp)
  deep = _rgb(rng.uniform(0.45, 0.68), rng.uniform(0.3, 0.8), rng.uniform(0.15, 0.5))
  water = _mix(air[mirrored], deep, np.full_like(away, 0.55))
  drift = _noise(rng, right * 40, away * 40, 1.4)
  waves = np.sin(away**0.4 * rng.uniform(40, 90) + drift * 2.5)
  glint = _noise(rng, right * 60, away * 260, 0.5)
  return water * (1 + 0.14 * waves + 0.08 * glint)[..., None]


# Things: each kind is a function of (rng, u, v, light) that renders its form at coordinates u, v.


def _ball(rng, u, v, light) -> _Form:
  radius = np.hypot(u, v)
  front = np.sqrt(np.clip(1 - radius**2, 0, 1))
  facing = u * light[0] + v * light[1] + front * light[2]
  gloss = rng.uniform(0, 0.9) * np.clip(facing, 0, 1) ** 30
  turned, rolled = _rotated(u, v, rng.uniform(0, 2 * np.pi))
  s, t = np.arctan2(turned, front + 1e-3), np.arcsin(np.clip(rolled, -1, 1))
  return _Form(radius - 1, 0.4 + 0.75 * np.clip(facing, 0, 1) + gloss, s, t)


def _box(rng, u, v, light) -> _Form:
  # A box seen from a corner and from above; `right`, `left` and `up` are its edges at the front
  # top corner, so that its outline is the zonogon of the three.
  turn, lean = rng.uniform(0.25, 1.3), rng.uniform(0.3, 0.55)
  a, b, height = rng.uniform(0.7, 1.3, 3)
  edges = np.array(
    [
      [a * np.cos(turn), -lean * a * np.sin(turn)],
      [-b * np.sin(turn), -lean * b * np.cos(turn)],
      [0, -height],
    ],
    np.float32,
  )
  reach = max(np.linalg.norm(edges.T @ sign) / 2 for sign in ([1, 1, 1], [1, -1, 1], [-1, 1, 1]))
  right, left, up = edges = edges / np.float32(reach)
  u, v = _rotated(u, v, rng.normal(0, 0.12))
  distance = np.full_like(u, -np.inf)
  for edge in edges:
    normal = np.array([-edge[1], edge[0]]) / np.linalg.norm(edge)
    support = np.abs(edges @ normal).sum() / 2
    distance = np.maximum(distance, np.abs(normal[0] * u + normal[1] * v) - support)

  # The three faces meet at the front top corner and share the plane out among themselves.
  corner = (up - right - left) / 2
  toward = light[0] * 0.35
  shade, s, t = np.zeros_like(u), np.zeros_like(u), np.zeros_like(u)
  faces = ((right, -up, 0.75 + toward), (left, -up, 0.75 - toward), (right, left, 1.15))
  for first, second, brightness in faces:
    inverse = np.linalg.inv(np.stack([first, second], axis=1))
    x = inverse[0, 0] * (u - corner[0]) + inverse[0, 1] * (v - corner[1])
    y = inverse[1, 0] * (u - corner[0]) + inverse[1, 1] * (v - corner[1])
    here = (x >= 0) & (y >= 0)
    shade[here], s[here], t[here] = brightness, 1.6 * x[here], 1.6 * y[here]
  return _Form(distance, shade, s, t)


def _tree(rng, u, v, light) -> _Form:
  u, v = _rotated(u, v, rng.normal(0, 0.06))
  trunk = np.maximum(np.abs(u) - rng.uniform(0.07, 0.16), np.abs(v - 0.5) - 0.5)
  if rng.random() < 0.5:  # a fir: tiers of triangles
    tiers, slope = int(rng.integers(2, 5)), rng.uniform(0.6, 1.0)
    step = 1.5 / tiers
    crown = np.full_like(u, np.inf)
    for tier in range(tiers):
      top = -1 + tier * step * 0.85
      side = (np.abs(u) - slope * (v - top) * (0.75 + 0.1 * tier)) / float(np.hypot(1, slope))
      crown = np.minimum(crown, np.maximum(side, v - top - step * 1.15))
  else:  # a leaf tree: a heap of discs
    crown = np.full_like(u, np.inf)
    low, high = (-0.45, -0.6, 0.3), (0.45, 0.1, 0.48)
    for x, y, radius in rng.uniform(low, high, (6, 3)).astype(np.float32):
      crown = np.minimum(crown, np.hypot(u - x, v - y) - radius)
  crown = crown + 0.04 * _noise(rng, u * 30, v * 30, 1.0)
  leaves = 1 + 0.22 * _noise(rng, u * 25, v * 25, 0.7)
  bark = 0.5 + 0.1 * np.sin(u * 60)
  lit = 0.85 + 0.35 * (u * light[0] + v * light[1])
  shade = np.where(crown < 0, leaves * lit, bark)
  return _Form(np.minimum(trunk, crown), shade, u, v)


def _ring(rng, u, v, light) -> _Form:
  angle = rng.uniform(0, 2 * np.pi)
  u, v = _rotated(u, v, angle)
  light_u, light_v = _rotated(light[0], light[1], angle)
  squash, tube = rng.uniform(0.5, 1.0), rng.uniform(0.16, 0.28)
  v = v / squash
  radius = np.maximum(np.hypot(u, v), 1e-3)
  across = (radius - 1 + tube) / tube
  front = np.sqrt(np.clip(1 - across**2, 0, 1))
  facing = across * (u * light_u + v * light_v) / radius + front * light[2]
  shade = 0.4 + 0.75 * np.clip(facing, 0, 1)
  distance = (np.abs(across) - 1) * tube * squash
  return _Form(distance, shade, np.arctan2(v, u) * 1.5, across * tube)


def _star(rng, u, v, light) -> _Form:
  turn = rng.uniform(0, 2 * np.pi)
  u, v = _rotated(u, v, turn)
  light_u, light_v = _rotated(light[0], light[1], turn)
  points, inner = int(rng.integers(4, 8)), rng.uniform(0.38, 0.55)
  half = np.pi / points
  angle = np.arctan2(v, u)
  sector = np.round(angle / (2 * half)) * 2 * half
  folded = angle - sector
  # One straight edge from the tip (1, 0) to the notch, the same in each folded half sector.
  radius = np.hypot(u, v)
  x, y = radius * np.cos(folded), radius * np.abs(np.sin(folded))
  notch = inner * np.array([np.cos(half), np.sin(half)], np.float32)
  edge = notch - np.array([1, 0], np.float32)
  normal = np.array([edge[1], -edge[0]]) / np.linalg.norm(edge)
  distance = (x - 1) * normal[0] + y * normal[1]
  facet = sector + np.sign(folded) * (np.pi / 2)
  shade = 0.85 + 0.4 * (np.cos(facet) * light_u + np.sin(facet) * light_v)
  return _Form(distance, shade, u, v)


class _Kind(NamedTuple):
  """How things of one kind differ. Colors lean to a kind, as real things' do, and overlap.

  Attributes:
    form: renders the shape.
    radius: range of the radius of a near thing, as a share of the image.
    hue: middle of its hues, which reach `_HUE_SPREAD` to either side and so into its neighbors'.
    patterns: which of `_PATTERNS` it may carry, all equally likely.
  """

  form: Callable[..., _Form]
  radius: tuple[float, float]
  hue: float
  patterns: tuple[str, ...]


_KINDS = {
  'ball': _Kind(_ball, (0.13, 0.21), 0.95, ('plain', 'stripes', 'dots')),
  'box': _Kind(_box, (0.15, 0.23), 0.55, ('plain', 'checks', 'stripes')),
  'tree': _Kind(_tree, (0.20, 0.31), 0.35, ('plain', 'mottled')),
  'ring': _Kind(_ring, (0.17, 0.25), 0.75, ('plain', 'stripes')),
  'star': _Kind(_star, (0.17, 0.25), 0.15, ('plain', 'shaded')),
}
_HUE_SPREAD = 0.11

_INDEX = {scene_class.name: index for index, scene_class in enumerate(CLASSES)}


def _rotated(u, v, angle: float):
  cos, sin = np.float32(np.cos(angle)), np.float32(np.sin(angle))
  return u * cos - v * sin, u * sin + v * cos


def _places(rng, view: _View) -> list[_Place]:
  """Samples kinds and places, the farthest first."""
  places = []
  for _ in range(rng.integers(2, 8)):
    kind = str(rng.choice(list(_KINDS)))
    near = rng.uniform(0.0, 1.0)
    radius = view.size * rng.uniform(*_KINDS[kind].radius) * (0.6 + 0.5 * near)
    stands = kind in ('box', 'tree') or rng.random() < 0.7
    if stands:
      foot = view.horizon + (view.size - view.horizon) * (0.04 + 0.96 * near)
      v = foot - 0.95 * radius
    else:  # in the air
      v = rng.uniform(0.05, 0.6) * view.size
    places.append(_Place(kind, rng.uniform(0, view.size), v, radius, near, stands))
  return sorted(places, key=lambda place: place.near)


def _sprite(rng, view: _View, place: _Place) -> _Sprite:
  """Paints one thing in a window large enough for it and its shadow."""
  reach = np.array([1.2, 1.7]) * place.radius + 2
  center = np.array([place.v, place.u])
  start = np.clip(np.floor(center - reach), 0, view.size).astype(int)
  stop = np.clip(np.ceil(center + reach), 0, view.size).astype(int)
  window = slice(start[0], stop[0]), slice(start[1], stop[1])
  rows, columns = np.mgrid[window].astype(np.float32) + 0.5
  u = (columns - np.float32(place.u)) / np.float32(place.radius)
  v = (rows - np.float32(place.v)) / np.float32(place.radius)

  kind = _KINDS[place.kind]
  form = kind.form(rng, u, v, view.light)
  alpha = np.clip(0.5 - form.distance * place.radius, 0, 1)
  colors = [
    _rgb(kind.hue + rng.uniform(-1, 1) * _HUE_SPREAD, rng.uniform(0.55, 1), rng.uniform(0.4, 1))
    for _ in range(2)
  ]
  frequency, phase = np.float32(rng.uniform(4, 9)), np.float32(rng.uniform(0, 6))
  pattern = _PATTERNS[rng.choice(kind.patterns)](
    rng, form.s * frequency + phase, form.t * frequency
  )
  rgb = _mix(colors[0], colors[1], pattern) * form.shade[..., None]
  fade = rng.uniform(0, 0.35) * (1 - place.near)
  rgb = _mix(rgb, view.haze, np.full_like(u, fade))
  shadow = None
  if place.stands:
    shift = -0.5 * view.light[0] / max(0.3, -float(view.light[1]))
    ellipse = np.hypot((u - shift) / 1.1, (v - 0.92) / 0.28)
    shadow = 1 - rng.uniform(0.3, 0.6) * _edge(1 - ellipse, 0.35)
  return _Sprite(_INDEX[place.kind], window, alpha, rgb, shadow)


# Weight of the second color, 0 to 1, at texture coordinates in which a wave is 2 pi long.
_PATTERNS: dict[str, Callable[..., np.ndarray]] = {
  'plain': lambda rng, s, t: np.zeros_like(s),
  'stripes': lambda rng, s, t: _edge(np.sin(s), 0.3),
  'checks': lambda rng, s, t: _edge(np.sin(s) * np.sin(t), 0.2),
  'dots': lambda rng, s, t: _edge(np.sin(s) * np.sin(t) - 0.3, 0.2),
  'mottled': lambda rng, s, t: _edge(_noise(rng, s * 6, t * 6, 1.2), 1.0),
  'shaded': lambda rng, s, t: np.clip(0.5 + s / 10, 0, 1),
}


def _visible(sprites: list[_Sprite], size: int) -> list[_Sprite]:
  """Leaves out what is almost hidden, so that each thing left has pixels to be found by.

  A thing must show 20 pixels in a 128 x 128 image (in proportion on others, 8 at least) and a
  fifth of what it covers. Seen from the nearest: what is left out hides nothing.
  """
  least = max(8, 20 * size**2 // 128**2)
  taken = np.zeros((size, size), bool)
  kept = []
  for sprite in reversed(sprites):
    inside = sprite.alpha > 0.5
    shown = np.count_nonzero(inside & ~taken[sprite.window])
    if shown >= max(least, 0.2 * np.count_nonzero(inside)):
      taken[sprite.window] |= inside
      kept.append(sprite)
  return kept[::-1]


def _paste(image: np.ndarray, sprite: _Sprite) -> None:
  """Puts a thing and its shadow on `image`, in place."""
  below = image[sprite.window]
  if sprite.shadow is not None:
    below = below * sprite.shadow[..., None]
  image[sprite.window] = _mix(below, sprite.rgb, sprite.alpha)


def _expose(rng, view: _View, image: np.ndarray) -> np.ndarray:
  """u8 image as a camera would take it: uneven light, color cast, blur, sensor noise."""
  u, v = view.columns / view.size - 0.5, view.rows / view.size - 0.5
  angle = rng.uniform(0, 2 * np.pi)
  ramp = rng.uniform(0, 0.5) * (u * np.float32(np.cos(angle)) + v * np.float32(np.sin(angle)))
  vignette = rng.uniform(0, 0.4) * (u**2 + v**2)
  cast = (rng.uniform(0.85, 1.3) * rng.uniform(0.93, 1.07, 3)).astype(np.float32)
  image = image * (1 + ramp - vignette)[..., None] * cast
  if rng.random() < 0.3:
    image = cv2.GaussianBlur(image, (0, 0), rng.uniform(0.4, 0.7))
  noise = rng.standard_normal(image.shape, np.float32)
  image = image + np.float32(rng.uniform(0.01, 0.04)) * noise
  return np.rint(255 * np.clip(image, 0, 1)).astype(np.uint8)
