"""A small Mask R-CNN, and two small images with rectangles for objects to learn from."""

import jax
import jax.numpy as jnp
import numpy as np

from segjax.nn.resnet import Variant
from segjax.ops.masks import pack_masks
from segjax.types import Instances

SIZE = 64
# Fields of a MaskRCNN that is quick to compile.
TINY = {
  'classes': 3,
  'backbone': 'shallow',
  'width': 4,
  'features': 8,
  'hidden': 16,
  'mask_convs': 1,
  'rpn_samples': 64,
  'train_proposals': (64, 20),
  'test_proposals': (64, 20),
  'regions': 16,
  'region_positives': 0.5,
  'detections': 6,
}
# What `TINY` calls its backbone: a row of `segjax.nn.resnet.VARIANTS`, for a test to put there.
SHALLOW = Variant('basic', (1, 1, 1, 1))
KEYS = jax.random.split(jax.random.key(1), 2)


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
