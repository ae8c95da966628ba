"""Losses of a panoptic network: the detection losses, and the semantic loss.

L = λ_i (L_cls + L_box + L_mask) + λ_s L_sem (Panoptic FPN, arXiv 1901.02446, section 3.1); the λ
are the `scale` of the losses in the config.
"""

from collections.abc import Mapping
from typing import Any

from segjax.losses.dense import DivideBy, softmax_cross_entropy
from segjax.losses.detection import box_class, box_regression, mask, rpn_box, rpn_class
from segjax.types import SumCount

__all__ = ['box_class', 'box_regression', 'mask', 'rpn_box', 'rpn_class', 'semantic']


def semantic(outputs: Mapping[str, Any], *, divide_by: DivideBy = 'count') -> SumCount:
  """L_sem: cross-entropy of the semantic branch over things and stuff.

  Args:
    outputs: of the network in training; 'semantic' is logits f[B, H, W, C] and label i32[B, H, W].
    divide_by: as in `segjax.losses.dense.softmax_cross_entropy`.
  """
  logits, label = outputs['semantic']
  return softmax_cross_entropy(logits, label, divide_by=divide_by)
