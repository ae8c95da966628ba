"""The semantic part of a panoptic network's loss; the others are tested in detection_test."""

import inspect

import numpy as np
import pytest

from segjax.losses import detection, panoptic
from segjax.losses.dense import softmax_cross_entropy
from segjax.types import IGNORE_LABEL


def test_semantic_is_the_cross_entropy_of_labelled_pixels():
  rng = np.random.default_rng(0)
  logits = rng.normal(size=(2, 3, 4, 5)).astype(np.float32)
  label = rng.integers(0, 5, (2, 3, 4)).astype(np.int32)
  label[0, 0] = IGNORE_LABEL
  total, count = panoptic.semantic({'semantic': (logits, label)})
  assert count == 20
  assert total == pytest.approx(float(softmax_cross_entropy(logits, label).sum))
  per_image = panoptic.semantic({'semantic': (logits, label)}, divide_by='images')
  assert per_image.count == 2 and per_image.sum == total


def test_all_losses_of_the_instance_part_are_there():
  of_outputs = [
    name
    for name, function in inspect.getmembers(detection, inspect.isfunction)
    if next(iter(inspect.signature(function).parameters)) == 'outputs' and name[0] != '_'
  ]
  assert sorted(panoptic.__all__) == sorted([*of_outputs, 'semantic'])
