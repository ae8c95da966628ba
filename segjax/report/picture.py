"""One small image file that shows an image, its ground truth and its prediction side by side."""

import io
from collections.abc import Mapping, Sequence

import cv2
import numpy as np
import numpy.typing as npt
from PIL import Image

from segjax.report import overlays

PANELS = ('image', 'truth', 'prediction')
# Bytes of a file, so that pages with many of them load fast.
LIMIT = 150_000

# Pixels of the longer side of a panel: smaller ones are enlarged by an integer factor.
_READABLE, _LARGEST = 360, 512
# White pixels between two panels.
_GAP = 6
_QUALITIES = (92, 85, 75)
_SHRINK = 0.8


def picture(
  panels: Mapping[str, np.ndarray],
  palette: npt.ArrayLike | None = None,
  class_names: Sequence[str] = (),
) -> bytes:
  """A JPEG file of at most `LIMIT` bytes with the panels `PANELS`, and a legend.

  Args:
    panels: u8[H, W, 3] by name, of one size.
    palette: u8[C, 3], of panels in the colors of the classes; None for no legend.
    class_names: C names.
  """
  shown = [_resized(panels[name]) for name in PANELS]
  if palette is not None:
    shown.append(
      _legend([panels[name] for name in PANELS[1:]], palette, class_names, len(shown[0]))
    )
  gap = np.full((len(shown[0]), _GAP, 3), 255, np.uint8)
  parts = [part for panel in shown for part in (gap, panel)][1:]
  return _encoded(np.concatenate(parts, axis=1))


def _resized(panel: np.ndarray) -> np.ndarray:
  """A panel whose longer side can be seen, and is at most `_LARGEST` pixels."""
  longer = max(panel.shape[:2])
  factor = max(1, round(_READABLE / longer))
  if factor > 1:
    return np.repeat(np.repeat(panel, factor, 0), factor, 1)
  return _scaled(panel, min(1.0, _LARGEST / longer))


def _scaled(canvas: np.ndarray, factor: float) -> np.ndarray:
  height, width = (max(1, round(factor * side)) for side in canvas.shape[:2])
  return cv2.resize(canvas, (width, height), interpolation=cv2.INTER_AREA)


def _legend(
  colored: Sequence[np.ndarray], palette: npt.ArrayLike, class_names: Sequence[str], height: int
) -> np.ndarray:
  """The names of the classes whose color is in a panel, u8[height, w, 3]."""
  colors = np.unique(np.concatenate([panel.reshape(-1, 3) for panel in colored]), axis=0)
  seen = {tuple(color) for color in colors.tolist()}
  present = [k for k, color in enumerate(np.asarray(palette).tolist()) if tuple(color) in seen]
  return overlays.legend(height, np.array([present], np.int64), palette, class_names)


def _encoded(canvas: np.ndarray) -> bytes:
  """A JPEG file of at most `LIMIT` bytes, of lower quality and then smaller if need be."""
  while True:
    for quality in _QUALITIES:
      buffer = io.BytesIO()
      Image.fromarray(canvas).save(buffer, format='JPEG', quality=quality, subsampling=0)
      if buffer.tell() <= LIMIT:
        return buffer.getvalue()
    canvas = _scaled(canvas, _SHRINK)
