import functools
import math

import jax
import numpy as np
import pytest

from segjax.ops.masks import crop_masks, pack_masks, unpack_masks
from segjax.ops.roi_align import roi_align


@functools.cache
def compiled(function, **options):
  return jax.jit(functools.partial(function, **options))


def crop(packed, boxes, index, image_size=None, **options):
  """`crop_masks`, compiled as one program, once for each shape."""
  return compiled(crop_masks, **options)(packed, boxes, index, image_size=image_size)


CONVENTIONS = {
  'torchvision': {'aligned': False, 'threshold': None},
  'detectron2': {'aligned': True, 'threshold': 0.5},
}


def discs(count, height, width):
  """Masks bool[count, height, width]: discs, some of them cut off by the border."""
  rng = np.random.default_rng(0)
  y, x = np.mgrid[:height, :width]
  center, radius = rng.uniform(0, 1, (count, 2)), rng.uniform(0.1, 0.5, count)
  return np.stack(
    [
      np.hypot(y - a * height, x - b * width) < r * min(height, width)
      for (a, b), r in zip(center, radius, strict=True)
    ]
  )


def random_boxes(count, height, width):
  """Inside the image, of all sizes, a fifth of them with whole coordinates."""
  rng = np.random.default_rng(1)
  size = np.array([width, height, width, height])
  ends = rng.uniform(0, 1, (2, count, 2))
  boxes = np.concatenate([ends.min(0), ends.max(0) + 0.01], -1).clip(0, 1) * size
  boxes[: count // 5] = np.round(boxes[: count // 5])
  return boxes.astype('f4')


@pytest.mark.parametrize('shape', [(3, 4, 16), (2, 5, 13), (1, 2, 1), (2, 3, 2, 9)])
def test_packing_equals_numpy_and_is_undone(shape):
  masks = np.random.default_rng(0).random(shape) < 0.5
  packed = pack_masks(masks)
  assert packed.dtype == np.uint8
  np.testing.assert_array_equal(packed, np.packbits(masks, axis=-1))
  unpacked = unpack_masks(packed, shape[-1])
  assert unpacked.dtype == bool
  np.testing.assert_array_equal(unpacked, masks)


def test_the_first_pixel_is_the_highest_bit():
  assert pack_masks(np.array([True] + [False] * 9)).tolist() == [128, 0]


@pytest.mark.parametrize('convention', CONVENTIONS)
def test_equals_roi_align_of_the_unpacked_masks(convention):
  masks, boxes = discs(4, 21, 30), random_boxes(40, 21, 30)
  index = np.arange(40) % 4
  options = dict(CONVENTIONS[convention])
  crops = crop(
    pack_masks(masks),
    boxes,
    index,
    size=(5, 7),
    width=30,
    **options,
  )
  threshold = options.pop('threshold')
  align = compiled(roi_align, output_size=(5, 7), spatial_scale=1.0, sampling_ratio=0, **options)
  expected = np.zeros((40, 5, 7), 'f4')
  for i in range(4):
    expected[index == i] = align(masks[i, :, :, None].astype('f4'), boxes[index == i])[..., 0]
  if threshold is None:
    np.testing.assert_allclose(crops, expected, atol=1e-5)
  else:
    near = np.abs(expected - threshold) < 1e-5
    assert crops.dtype == bool
    assert near.mean() < 0.1
    np.testing.assert_array_equal(crops[~near], (expected >= threshold)[~near])


def test_a_target_that_is_covered_by_half_is_true():
  mask = pack_masks(np.array([[[True, False]] * 2]))
  box, index = np.float32([[0, 0, 2, 2]]), np.zeros(1, int)
  options = {'size': 1, 'width': 2, 'aligned': True}
  assert crop(mask, box, index, threshold=None, **options).item() == 0.5
  assert crop(mask, box, index, threshold=0.5, **options).item() is True


def test_equals_torchvisions_project_masks_on_boxes():
  torch = pytest.importorskip('torch')
  heads = pytest.importorskip('torchvision.models.detection.roi_heads')
  masks, boxes, index = discs(5, 60, 90), random_boxes(200, 60, 90), np.arange(200) % 5
  theirs = heads.project_masks_on_boxes(
    torch.tensor(masks), torch.tensor(boxes), torch.tensor(index), 14
  )
  ours = crop(pack_masks(masks), boxes, index, size=14, width=90, **CONVENTIONS['torchvision'])
  np.testing.assert_allclose(ours, theirs.numpy(), atol=1e-5)


def test_equals_detectron2s_crop_and_resize():
  """Which is torchvision's RoIAlign, aligned and adaptive, and 0.5 as the threshold."""
  torch, ops_of = pytest.importorskip('torch'), pytest.importorskip('torchvision.ops')
  masks, boxes = discs(30, 60, 90), random_boxes(30, 60, 90)
  rois = torch.tensor(np.concatenate([np.arange(30)[:, None], boxes], 1).astype('f4'))
  theirs = ops_of.roi_align(torch.tensor(masks[:, None].astype('f4')), rois, 28, 1.0, 0, True)
  theirs = theirs[:, 0].numpy()
  ours = crop(
    pack_masks(masks), boxes, np.arange(30), size=28, width=90, **CONVENTIONS['detectron2']
  )
  near = np.abs(theirs - 0.5) < 1e-5
  assert near.mean() < 0.05
  np.testing.assert_array_equal(ours[~near], (theirs >= 0.5)[~near])


@pytest.mark.parametrize('convention', CONVENTIONS)
def test_padding_changes_no_target(convention):
  """Of boxes that end where the image does, too."""
  masks, boxes = np.ones((2, 21, 30), bool), random_boxes(40, 21, 30)
  boxes[:20, 2:] = 30, 21
  index = np.arange(40) % 2
  options = {'size': (11, 15), **CONVENTIONS[convention]}
  alone = crop(pack_masks(masks), boxes, index, width=30, **options)
  padded = pack_masks(np.pad(masks, [(0, 0), (0, 11), (0, 4)]))
  batch = np.stack([padded] * 2), np.stack([boxes] * 2), np.stack([index] * 2)
  crops = crop(*batch, width=34, image_size=np.array([[21, 30], [32, 34]]), **options)
  np.testing.assert_allclose(crops[0], alone, atol=1e-6)
  if convention == 'torchvision':
    assert not np.allclose(crops[1], alone, atol=0.1)


def test_the_box_of_a_rectangle_is_full_and_its_double_is_half_full():
  masks = np.zeros((2, 20, 24), bool)
  masks[1, 4:12, 6:14] = True
  boxes = np.array([[6, 4, 14, 12], [6, 4, 22, 12], [6, 4, 14, 12]], 'f4')
  crops = crop(
    pack_masks(masks),
    boxes,
    np.array([1, 1, 0]),
    size=4,
    width=24,
    **CONVENTIONS['detectron2'],
  )
  assert crops[0].all()
  np.testing.assert_array_equal(crops[1], np.tile([True, True, False, False], (4, 1)))
  assert not crops[2].any()


def test_bad_boxes_no_boxes_and_a_batch():
  masks = np.stack([discs(3, 12, 20), discs(6, 12, 20)[3:]])
  options = {'size': (6, 10), 'width': 20, **CONVENTIONS['torchvision']}
  packed = pack_masks(masks)
  bad = np.array([[math.nan, 0, 5, 5], [0, 0, math.inf, 5], [5, 5, 5, 9], [9, 9, 3, 3]], 'f4')
  assert not crop(packed[0], bad, np.zeros(4, int), **options).any()
  none = crop(packed[0], np.zeros((0, 4), 'f4'), np.zeros(0, int), **options)
  assert none.shape == (0, 6, 10)
  boxes, index = random_boxes(12, 12, 20).reshape(2, 6, 4), np.arange(12).reshape(2, 6) % 3
  both = crop(packed, boxes, index, **options)
  for i in range(2):
    one = crop(packed[i], boxes[i], index[i], **options)
    np.testing.assert_allclose(both[i], one, atol=1e-6)


def test_a_wrong_width_is_an_error():
  packed = pack_masks(discs(1, 4, 20))
  with pytest.raises(ValueError, match='have 2 bytes, not 3'):
    crop_masks(
      packed,
      np.zeros((1, 4), 'f4'),
      np.zeros(1, int),
      size=2,
      width=16,
      **CONVENTIONS['torchvision'],
    )
