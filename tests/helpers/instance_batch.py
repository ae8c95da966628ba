"""A small Mask R-CNN, and two small images with rectangles for objects to train it on."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from segjax.models.mask_rcnn import MaskRCNN
from segjax.nn.resnet import Variant
from segjax.ops.masks import pack_masks
from segjax.types import Instances

SIZE = 64
# Keys of a MaskRCNN that is quick to compile.
TINY = {
  'classes': 3,
  'backbone.name': 'shallow',
  'backbone.width': 4,
  'neck.features': 8,
  'rpn.samples': 64,
  'rpn.train_proposals': (64, 20),
  'rpn.test_proposals': (64, 20),
  'box_head.features': 8,
  'box_head.hidden': 16,
  'box_head.samples': 16,
  'box_head.positive_fraction': 0.5,
  'box_head.max_detections': 6,
  'mask_head.features': 8,
  'mask_head.convs': 1,
}
# What `TINY` calls its backbone: a row of `segjax.nn.resnet.VARIANTS`, for a test to put there.
SHALLOW = Variant('basic', (1, 1, 1, 1))
KEYS = jax.random.split(jax.random.key(1), 2)


def make_model(fields, kind=MaskRCNN):
  """A network by the keys that its fields have in a config: 'classes', 'rpn.samples'."""
  defaults = {f.name: f.default for f in dataclasses.fields(kind)}
  given, groups = {}, {}
  for key, value in fields.items():
    group, _, name = key.rpartition('.')
    (groups.setdefault(group, {}) if group else given)[name] = value
  groups = {name: dataclasses.replace(defaults[name], **keys) for name, keys in groups.items()}
  return kind(**given, **groups)


def make_batch(count=5, padding=0, crowd=False, seed=0):
  """Two images: `count` rectangles in the first, none in the second."""
  rng = np.random.default_rng(seed)
  total = max(count + padding, 1)
  masks = np.zeros((2, total, SIZE, SIZE), bool)
  boxes = np.zeros((2, total, 4), np.float32)
  for i in range(count):
    x0, y0 = rng.integers(0, 40, 2)
    w, h = rng.integers(8, 24, 2)
    masks[0, i, y0 : y0 + h, x0 : x0 + w] = True
    boxes[0, i] = x0, y0, x0 + w, y0 + h
  valid = np.zeros((2, total), bool)
  valid[0, :count] = True
  classes = np.where(valid, np.arange(total) % 3, 0).astype(np.int32)
  instances = Instances(boxes, classes, pack_masks(jnp.asarray(masks)), valid & crowd, valid)
  image = rng.normal(size=(2, SIZE, SIZE, 3)).astype(np.float32)
  return image, np.array([[SIZE, SIZE], [50, 60]], np.int32), instances
