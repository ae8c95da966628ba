"""U-Net's loss weights: more where two cells nearly touch."""

from collections.abc import Sequence

import cv2
import numpy as np

from segjax.types import IGNORE_LABEL, NonNegativeFloat, NonNegativeInt, PositiveFloat, SegjaxError

# exp(-reach**2 / 2) = 1.5e-8: farther than this many sigmas a cell border adds nothing in float32.
_REACH = 6.0


def border_weight_map(
  label: np.ndarray,
  *,
  w0: NonNegativeFloat = 10.0,
  sigma: PositiveFloat = 5.0,
  foreground: NonNegativeInt = 1,
  background_only: bool = False,
  class_weights: Sequence[NonNegativeFloat] | None = None,
) -> np.ndarray:
  """The weight map w = w_c + w0 exp(-(d1 + d2)^2 / (2 sigma^2)) of U-Net, eq. 2.

  A cell is a 4-connected component of the foreground; its border is its pixels that touch another
  class. d1 and d2 are the distances of any pixel, inside a cell or not, to the borders of the
  nearest and the second nearest cell, infinite beyond 6 sigma. With fewer than two cells the map is
  w_c.

  Args:
    label: i[H, W], class indices and IGNORE_LABEL.
    w0: weight between two cells that touch.
    sigma: how far the weight reaches, in pixels.
    foreground: the class of the cells.
    background_only: leave the border term out inside cells, where eq. 2 as printed has it too; the
      network then prefers to see a border where it doubts.
    class_weights: w_c for each class, to balance their frequencies in the training set; None for 1.

  Returns:
    f32[H, W], 0 at IGNORE_LABEL.
  """
  mask = (label == foreground).astype(np.uint8)
  # Pixels beyond the image are no other class: a cell that it cuts has no border there.
  inner = cv2.erode(mask, cv2.getStructuringElement(cv2.MORPH_CROSS, (3, 3)))
  cells, component, stats, _ = cv2.connectedComponentsWithStats(mask, connectivity=4)
  border = np.where(inner == 1, 0, component)

  nearest = np.full(label.shape, np.inf, np.float32)
  second = nearest.copy()
  reach = int(np.ceil(_REACH * sigma))
  for cell in range(1, cells):
    left, top, width, height = stats[cell, :4]
    near = (
      slice(max(top - reach, 0), top + height + reach),
      slice(max(left - reach, 0), left + width + reach),
    )
    outside = (border[near] != cell).astype(np.uint8)
    if outside.all():  # a cell that fills the image
      continue
    distance = cv2.distanceTransform(outside, cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
    # OpenCV's last bit varies from call to call; the squares are whole numbers.
    distance = np.sqrt(np.rint(distance**2))
    # The smaller of two goes first, what it displaces competes for the second place.
    second[near] = np.minimum(second[near], np.maximum(nearest[near], distance))
    nearest[near] = np.minimum(nearest[near], distance)

  gap = w0 * np.exp(-((nearest + second) ** 2) / (2 * sigma**2))
  if background_only:
    gap = np.where(label == foreground, 0, gap)
  labeled = label != IGNORE_LABEL
  balance = 1.0
  if class_weights is not None:
    if label[labeled].max(initial=0) >= len(class_weights):
      raise SegjaxError(
        f'config.data.weight_map.class_weights={tuple(class_weights)} must be one for each class'
      )
    balance = np.asarray(class_weights)[np.where(labeled, label, 0)]
  return np.where(labeled, balance + gap, 0).astype(np.float32)
