"""Ways to break a directory of raw files: each a function of the directory."""

from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np

Break = Callable[[Path], None]


def remove(name: str) -> Break:
  """Deletes a file."""
  return lambda source: (source / name).unlink()


def rename(name: str, other: str) -> Break:
  """Moves a file or a directory."""
  return lambda source: (source / name).rename(source / other)


def truncate(name: str, count: int) -> Break:
  """Deletes the last `count` bytes of a file."""

  def break_it(source: Path) -> None:
    content = (source / name).read_bytes()
    (source / name).write_bytes(content[:-count])

  return break_it


def write(name: str, pixels: np.ndarray) -> Break:
  """Writes another image or label."""

  def break_it(source: Path) -> None:
    assert (source / name).is_file()
    assert cv2.imwrite(str(source / name), pixels)

  return break_it


def gray(height: int, width: int, value: int = 0) -> np.ndarray:
  """u8[height, width]."""
  return np.full((height, width), value, np.uint8)


def rgb(height: int, width: int) -> np.ndarray:
  """u8[height, width, 3]."""
  return np.zeros((height, width, 3), np.uint8)
