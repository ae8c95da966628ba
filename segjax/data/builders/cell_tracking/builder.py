"""Two data sets of the Cell Tracking Challenge, those of U-Net's Table 2: cell or background.

  cell_tracking/phc_u373 (`cell_tracking` alone)   PhC-C2DH-U373: glioblastoma cells, phase contrast
  cell_tracking/dic_hela                           DIC-C2DH-HeLa: HeLa cells, DIC microscopy
Raw files, as the challenge's training archives unpack; `data.source` is a data set's directory, or
the one above it:
  PhC-C2DH-U373/
    01/tNNN.tif                     frame NNN of the first of two videos, 8-bit gray
    01_GT/SEG/man_segNNN.tif        16-bit: 0 = background, k = k-th cell; only of some frames
    01_ST/SEG/man_segNNN.tif        the same, of nearly all frames
    02/, 02_GT/, 02_ST/             the second video

Which labels: the gold truth, _GT, is annotated by hand, and upstream warns that it does not cover
every cell of a frame: what it leaves out is background here. U-Net's paper counts 35 (U373) and 20
(HeLa) such partially annotated training images. The configs `phc_u373_silver` and `dic_hela_silver`
take the silver truth, _ST, instead: a majority vote of participants' programs, which covers most
cells.

Splits: train is video 01 and val is video 02, as far as they are labeled. That rule is ours (the
challenge's own test videos have no public labels); the frames of one video are too alike to be
divided.

Features: `instance` is the raw label, u16. `label` is 0 = background, 1 = cell, but a pixel of a
cell that another cell touches, at an edge or a corner, is background: so cells stay apart, as the
separating borders of U-Net's section 3 keep them, and `weight_map.border_weight_map` finds each.

Cite Ulman et al., "An objective comparison of cell-tracking algorithms", Nature Methods 14, 2017,
and name the Cell Tracking Challenge as the source. Free for research; other than for the challenge,
ask the providers named on celltrackingchallenge.net; commercial use needs leave.
"""

import dataclasses
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import tensorflow_datasets as tfds

from segjax.data.builders import raw
from segjax.data.formats import common
from segjax.types import SegjaxError

# Split: the video that is in it.
SPLITS = {'train': '01', 'val': '02'}


@dataclasses.dataclass(eq=False)
class CellTrackingConfig(tfds.core.BuilderConfig):
  """The directory of a data set, and its kind of truth: 'GT' for gold, 'ST' for silver."""

  directory: str = ''
  truth: str = 'GT'


class Builder(raw.SemanticBuilder):
  """Prepares PhC-C2DH-U373 or DIC-C2DH-HeLa, with gold or with silver truth."""

  BUILDER_CONFIGS = [
    CellTrackingConfig(
      name=f'{name}{suffix}', description=f'{directory}, {kind}.', directory=directory, truth=truth
    )
    for suffix, truth, kind in (('', 'GT', 'gold truth'), ('_silver', 'ST', 'silver truth'))
    for name, directory in (('phc_u373', 'PhC-C2DH-U373'), ('dic_hela', 'DIC-C2DH-HeLa'))
  ]

  description = 'Cells in the labeled frames of two microscopy videos.'
  classes = 'background', 'cell'
  palette = (213, 94, 0), (86, 180, 233)
  image = tfds.features.Image(shape=(None, None, 1))
  features = {
    'instance': tfds.features.Image(shape=(None, None, 1), dtype=np.uint16, encoding_format='png')
  }

  @property
  def content(self) -> str:
    return self.builder_config.directory

  def find_files(self, source: Path) -> dict[str, Iterator[raw.Files]]:
    others = [c.directory for c in self.BUILDER_CONFIGS if c.directory != self.content]
    root = raw.find_directory(
      source, (self.content, ''), SPLITS['train'], self.content, others=others
    )
    return {split: self._find_frames(root, video) for split, video in SPLITS.items()}

  def _find_frames(self, root: Path, video: str) -> Iterator[raw.Files]:
    for number, label_path in _labeled(root / f'{video}_{self.builder_config.truth}' / 'SEG'):
      yield f'{video}_t{number}', root / video / f't{number}.tif', label_path

  def make(self, files: raw.Files) -> dict[str, Any]:
    name, image_path, label_path = files
    image, instance = raw.read_image(image_path, 'L'), raw.read_image(label_path, 'I;16')
    raw.check_same_size(image, image_path, instance, label_path)
    label = separate_cells(instance)
    return common.encode_example(name, image=image, label=label, instance=instance)


def separate_cells(instance: np.ndarray) -> np.ndarray:
  """The label map of cells that do not touch.

  Args:
    instance: u16[H, W], 0 = background, any other value = one cell.

  Returns:
    u8[H, W]: 1 in cells but for the pixels that have another cell among their 8 neighbors, else 0.
  """
  window = np.ones((3, 3), np.uint8)
  largest = cv2.dilate(instance, window)
  # One less than 0 is the largest of all: background counts last.
  smallest = cv2.erode(instance - np.uint16(1), window) + np.uint16(1)
  return ((instance > 0) & (largest == smallest)).astype(np.uint8)


def _labeled(directory: Path) -> list[tuple[str, Path]]:
  """The labeled frames of a video: their number, as it is written, and their label's file."""
  matches = (re.fullmatch(r'man_seg(\d+)\.tif', path.name) for path in directory.glob('*'))
  frames = sorted((match[1], directory / match[0]) for match in matches if match)
  if not frames:
    raise SegjaxError(
      f'{directory} contains no man_segNNN.tif: add the labels of this video, or correct '
      'config.data.source'
    )
  return frames
