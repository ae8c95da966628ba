import functools
import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from segjax.ops import roi_align as ops
from segjax.ops.roi_align import box_levels, multilevel_roi_align, roi_align, roi_pool, roi_warp

FORMS = ['gather', 'matrix']
NAN, INF = math.nan, math.inf
# Of a 6 x 8 map: inside, off each side, over all of it, far away, thin, and without an area.
BOXES = [
  [1.3, 0.4, 6.2, 4.9],
  [0, 0, 8, 6],
  [-3.2, -2.6, 2.4, 1.7],
  [5.5, 3.5, 11.3, 9.2],
  [-4, -5, 13, 12],
  [-30, -30, -20, -20],
  [30, 2, 40, 4],
  [2.2, 1.1, 2.4, 5.3],
  [3, 2, 3, 4],
  [3, 2, 3, 2],
  [5, 4, 2, 1],
]


OPTIONS = {'output_size': (2, 3), 'spatial_scale': 1.0, 'sampling_ratio': 2, 'aligned': True}


@functools.cache
def compiled(function, **options):
  return jax.jit(functools.partial(function, **options))


@functools.cache
def compiled_both(function, **options):
  def both(g, *arrays):
    y, pullback = jax.vjp(functools.partial(function, **options), *arrays)
    return y, pullback(jnp.ones_like(y) if g is None else g.astype(y.dtype))

  return jax.jit(both)


def run(function, *arrays, **options):
  """Compiled as one program, once for each shape."""
  return compiled(function, **options)(*arrays)


def run_both(function, *arrays, g=None, **options):
  """The result, and the gradients of the arrays for output gradient g, or ones; compiled."""
  return compiled_both(function, **options)(g, *arrays)


def random_features(*shape, seed=0):
  return np.random.default_rng(seed).normal(size=shape).astype('f4')


def random_boxes(count, height, width, seed=1):
  """Of all sizes, a third of them over a border; with integer, empty, inverted and far-off ones."""
  rng = np.random.default_rng(seed)
  size = np.array([width, height])
  corner = rng.uniform(-0.5, 1.2, (count, 2)) * size
  extent = np.exp(rng.uniform(np.log(0.01), np.log(1.5), (count, 2))) * size
  boxes = np.concatenate([corner, corner + extent], -1)
  boxes[: count // 10] = np.round(boxes[: count // 10])
  some = boxes[count // 10 : count // 5]
  some[0::4, 2:] = some[0::4, :2]
  some[1::4, 2] = some[1::4, 0]
  some[2::4] = some[2::4, [2, 3, 0, 1]]
  some[3::4] += 10 * (size.max())
  return rng.permutation(boxes).astype('f4')


def defined_bins(box, size, output_size, scale, ratio, aligned, border, zero_empty, bound=99):
  """In loops and float64: for each bin the positions (y, x) that it samples."""
  box = np.asarray(box, 'f8')
  x0, y0, x1, y1 = box * scale - (0.5 if aligned else 0)
  bins = {(p, q): [] for p in range(output_size[0]) for q in range(output_size[1])}
  if not np.isfinite(box).all() or (zero_empty and (box[2] <= box[0] or box[3] <= box[1])):
    return bins
  h, w = y1 - y0, x1 - x0
  if not aligned:
    h, w = max(h, 1), max(w, 1)
  h, w = h / output_size[0], w / output_size[1]
  most_rows, most_columns = np.broadcast_to(bound, 2)
  tall = ratio if ratio > 0 else min(most_rows, max(0, math.ceil(h)))
  wide = ratio if ratio > 0 else min(most_columns, max(0, math.ceil(w)))
  for (p, q), samples in bins.items():
    for i, j in itertools.product(range(tall), range(wide)):
      samples.append((y0 + h * (p + (i + 0.5) / tall), x0 + w * (q + (j + 0.5) / wide)))
  return bins


def defined_value(image, y, x, border):
  """Bilinear interpolation, in float64."""
  height, width = image.shape[:2]
  if border == 'zero' and not (-1 <= y <= height and -1 <= x <= width):
    return np.zeros(image.shape[2])
  y, x = np.clip(y, 0, height - 1), np.clip(x, 0, width - 1)
  total = 0
  for row, col in itertools.product(range(height), range(width)):
    total = total + max(0, 1 - abs(y - row)) * max(0, 1 - abs(x - col)) * image[row, col]
  return total


def defined(
  image, boxes, output_size, *, scale=1.0, ratio=2, aligned=True, mode='avg', border='zero',
  zero_empty=True, bound=99,
):  # fmt: skip
  """RoIAlign from its definition."""
  out = np.zeros((len(boxes), *output_size, image.shape[2]))
  reduce = {'avg': np.mean, 'max': np.max}[mode]
  image = image.astype('f8')
  for r, box in enumerate(boxes):
    bins = defined_bins(
      box, image.shape[:2], output_size, scale, ratio, aligned, border, zero_empty, bound
    )
    for (p, q), samples in bins.items():
      if samples:
        out[r, p, q] = reduce([defined_value(image, *s, border) for s in samples], axis=0)
  return out


# detectron2, tests/layers/test_roi_align.py: 0 … 24 in 5 x 5, the box [1, 1, 3, 3] in 4 x 4 bins.
DETECTRON2 = {
  False: [[7.5, 8, 8.5, 9], [10, 10.5, 11, 11.5], [12.5, 13, 13.5, 14], [15, 15.5, 16, 16.5]],
  True: [[4.5, 5, 5.5, 6], [7, 7.5, 8, 8.5], [9.5, 10, 10.5, 11], [12, 12.5, 13, 13.5]],
}


@pytest.mark.parametrize('form', FORMS)
@pytest.mark.parametrize('aligned', [False, True])
def test_detectron2s_table(aligned, form):
  pooled = run(
    roi_align, np.arange(25, dtype='f4').reshape(5, 5, 1), np.array([[1, 1, 3, 3]], 'f4'),
    output_size=4, spatial_scale=1.0, sampling_ratio=0, aligned=aligned, form=form,
  )  # fmt: skip
  np.testing.assert_allclose(pooled[0, :, :, 0], DETECTRON2[aligned], rtol=1e-6)


# The ONNX operator RoiAlign, tests aligned_false ("output_half_pixel") and aligned_true.
ONNX_FEATURES = """
.2764 .7150 .1958 .3416 .4638 .0259 .2963 .6518 .4856 .7250
.9637 .0895 .2919 .6753 .0234 .6132 .8085 .5324 .8992 .4467
.3265 .8479 .9698 .2471 .9336 .1878 .4766 .4308 .3400 .2162
.0206 .1720 .2155 .4394 .0653 .3406 .7724 .3921 .2541 .5799
.4062 .2194 .4473 .4687 .7109 .9327 .9815 .6320 .1728 .6119
.3097 .1283 .4984 .5068 .4279 .0173 .4388 .0430 .4671 .7119
.1011 .8477 .4726 .1777 .9923 .4042 .1869 .7795 .9946 .9689
.1366 .3671 .7011 .6234 .9867 .5585 .6985 .5609 .8788 .9928
.5697 .8511 .6711 .9406 .8751 .7496 .1650 .1049 .1559 .2514
.7012 .4056 .7879 .3461 .0415 .2998 .5094 .3727 .5482 .0502
"""
ONNX_BOXES = [[0, 0, 9, 9], [0, 5, 4, 9], [5, 5, 9, 9]]
ONNX = {
  False: """
.4664 .4466 .3405 .5688 .6068 .3714 .4296 .3835 .5562 .3510 .2768 .4883 .5222 .5528 .4171
.4713 .4844 .6904 .4920 .8774 .6239 .7125 .6289 .3355 .3495
.3022 .4305 .4696 .3978 .5423 .3656 .7050 .5165 .3172 .7015 .2912 .5059 .6476 .6235 .8299
.5916 .7389 .7048 .8372 .8893 .6227 .6153 .7097 .6154 .4585
.2384 .3379 .3717 .6100 .7601 .3767 .3785 .7147 .9243 .9727 .5749 .5826 .5709 .7619 .8770
.5355 .2566 .2141 .2796 .3600 .4365 .3504 .2887 .3661 .2349
""",
  True: """
.5178 .3434 .3229 .4474 .6344 .4031 .5366 .4428 .4861 .4023 .2512 .4002 .5155 .6954 .3465
.3350 .4601 .5881 .3439 .6849 .4932 .7141 .8217 .4719 .4039
.3070 .2187 .3337 .4880 .4870 .1871 .4914 .5561 .4192 .3686 .1433 .4608 .5971 .5310 .4982
.2788 .4386 .6022 .7000 .7524 .5774 .7024 .7251 .7338 .8163
.2393 .4075 .3379 .2525 .4743 .3671 .2702 .4105 .6419 .8308 .5556 .4543 .5564 .7502 .9300
.6626 .5617 .4813 .4954 .6663 .6636 .3721 .2056 .1928 .2478
""",
}


@pytest.mark.parametrize('form', FORMS)
@pytest.mark.parametrize('aligned', [False, True])
def test_onnx_table(aligned, form):
  features = np.array(ONNX_FEATURES.split(), 'f4').reshape(10, 10, 1)
  pooled = run(
    roi_align, features, np.array(ONNX_BOXES, 'f4'), output_size=5, spatial_scale=1.0,
    sampling_ratio=2, aligned=aligned, form=form,
  )  # fmt: skip
  expected = np.array(ONNX[aligned].split(), 'f4').reshape(3, 5, 5)
  np.testing.assert_allclose(pooled[..., 0], expected, atol=1e-4)


CONVENTIONS = [
  {'ratio': 2, 'aligned': True},
  {'ratio': 2, 'aligned': False, 'zero_empty': False, 'mode': 'max'},
  {'ratio': 3, 'aligned': True, 'scale': 0.5, 'border': 'clamp', 'zero_empty': False},
  {'ratio': 0, 'aligned': False},
  {'ratio': 0, 'aligned': True, 'mode': 'max', 'border': 'clamp'},
  {'ratio': -1, 'aligned': True, 'zero_empty': False, 'bound': 3},
]


@pytest.mark.parametrize('form', FORMS)
@pytest.mark.parametrize('convention', CONVENTIONS, ids=str)
def test_equals_the_definition(convention, form):
  image, output_size = random_features(6, 8, 2), (2, 3)
  expected = defined(image, BOXES, output_size, **convention)
  options = dict(convention)
  pooled = run(
    roi_align,
    image,
    np.array(BOXES, 'f4'),
    output_size=output_size,
    spatial_scale=options.pop('scale', 1.0),
    sampling_ratio=options.pop('ratio'),
    max_samples=options.pop('bound', 9),
    form=form,
    **options,
  )
  assert np.abs(expected).sum((1, 2, 3)).astype(bool).sum() >= 6
  np.testing.assert_allclose(pooled, expected, atol=1e-5)


@pytest.mark.parametrize('form', FORMS)
def test_of_a_linear_image_gives_the_centers_of_the_bins(form):
  y, x = np.mgrid[:9, :12] + 0.5
  pooled = run(
    roi_align, np.stack([y, x], -1).astype('f4'), np.array([[2, 1, 10, 7]], 'f4'), form=form,
    **OPTIONS | {'output_size': (3, 4)},
  )  # fmt: skip
  centers = np.stack(np.meshgrid([2, 4, 6], [3, 5, 7, 9], indexing='ij'), -1)
  np.testing.assert_allclose(pooled[0], centers, atol=1e-5)


@pytest.mark.parametrize('ratio', [2, 0])
@pytest.mark.parametrize('aligned', [False, True])
def test_equals_torchvision_on_ten_thousand_boxes(aligned, ratio):
  torch, ops_of = pytest.importorskip('torch'), pytest.importorskip('torchvision.ops')
  image, boxes = random_features(12, 17, 2), random_boxes(10_000, 48, 68)
  theirs = ops_of.roi_align(
    torch.tensor(image.transpose(2, 0, 1)[None]), [torch.tensor(boxes)], (3, 4), 0.25, ratio,
    aligned,
  )  # fmt: skip
  theirs = theirs.numpy().transpose(0, 2, 3, 1)
  align = functools.partial(
    run, roi_align, output_size=(3, 4), spatial_scale=0.25, sampling_ratio=ratio, aligned=aligned,
    max_samples=7,
  )  # fmt: skip
  ours = align(image, boxes, zero_empty=False)
  np.testing.assert_allclose(ours, theirs, atol=1e-5)
  # The default differs in nothing but the boxes without an area.
  empty = (boxes[:, :2] >= boxes[:, 2:]).any(-1)
  assert 500 < empty.sum() < 2000
  ours = align(image, boxes)
  np.testing.assert_allclose(ours[~empty], theirs[~empty], atol=1e-5)
  assert not ours[empty].any()
  np.testing.assert_allclose(align(image, boxes[:300], form='matrix'), ours[:300], atol=1e-5)


@pytest.mark.parametrize('form', FORMS)
def test_max_is_the_maximum_of_torchvisions_samples(form):
  """With one sample a bin, and as many bins as there are samples, torchvision gives the samples."""
  torch, ops_of = pytest.importorskip('torch'), pytest.importorskip('torchvision.ops')
  image, boxes = random_features(12, 17, 2), random_boxes(300, 12, 17)
  samples = ops_of.roi_align(
    torch.tensor(image.transpose(2, 0, 1)[None]), [torch.tensor(boxes)], (6, 9), 1.0, 1, True
  )
  maxima = torch.nn.functional.max_pool2d(samples, 3).numpy().transpose(0, 2, 3, 1)
  options = OPTIONS | {'sampling_ratio': 3, 'mode': 'max', 'zero_empty': False}
  ours = run(roi_align, image, boxes, form=form, **options)
  np.testing.assert_allclose(ours, maxima, atol=1e-5)


@pytest.mark.parametrize('mode', ['avg', 'max'])
@pytest.mark.parametrize('form', FORMS)
def test_gradients_equal_finite_differences(form, mode):
  """Of the definition in float64; the features' by the linearity of the average."""
  rng = np.random.default_rng(3)
  image, boxes = random_features(6, 8, 2), np.array(BOXES, 'f4')
  g = rng.normal(size=(len(BOXES), 2, 3, 2)).astype('f4')
  loss = lambda image, boxes: (defined(image, boxes, (2, 3), mode=mode) * g).sum()
  _, (d_image, d_boxes) = run_both(roi_align, image, boxes, g=g, mode=mode, form=form, **OPTIONS)
  step = 1e-6
  for r, k in itertools.product(range(8), range(4)):
    change = np.zeros(boxes.shape)
    change[r, k] = step
    slope = (loss(image, boxes + change) - loss(image, boxes - change)) / (2 * step)
    if r not in (1, 4):  # there samples are on pixels, where the derivative does not exist
      np.testing.assert_allclose(d_boxes[r, k], slope, atol=1e-4)
  change = rng.normal(size=image.shape) * step
  slope = loss(image.astype('f8') + change, boxes) - loss(image.astype('f8') - change, boxes)
  np.testing.assert_allclose((d_image * change).sum(), slope / 2, rtol=1e-4)


@pytest.mark.parametrize('aligned', [False, True])
def test_gradient_of_the_features_equals_torchvisions(aligned):
  torch, ops_of = pytest.importorskip('torch'), pytest.importorskip('torchvision.ops')
  image, boxes = random_features(12, 17, 2), random_boxes(500, 12, 17)
  g = random_features(500, 2, 3, 2, seed=2)
  theirs = torch.tensor(image.transpose(2, 0, 1)[None], requires_grad=True)
  pooled = ops_of.roi_align(theirs, [torch.tensor(boxes)], (2, 3), 1.0, 2, aligned)
  pooled.backward(torch.tensor(g.transpose(0, 3, 1, 2)))
  expected = theirs.grad[0].numpy().transpose(1, 2, 0)
  for form in FORMS:
    options = OPTIONS | {'aligned': aligned, 'zero_empty': False, 'form': form}
    _, (ours, _) = run_both(roi_align, image, boxes, g=g, **options)
    np.testing.assert_allclose(ours, expected, atol=1e-4)


# Of a 6 x 8 map, up to three times as large: both sides, one side, around it, and off it.
LARGE_BOXES = [
  [-5.3, -6.1, 12.6, 11.2],
  [-3.7, 1.2, 19.9, 5.7],
  [1.6, -11.4, 6.3, 6.2],
  [0.3, 0.2, 22.1, 17.6],
  [-15.2, -12.3, 8.4, 5.1],
  [2.3, 1.4, 7.7, 4.9],
  [9.5, 7.5, 30.2, 24.1],
]
# Exact up to the map for 1 x 3 bins; for all of them; for none above 3 x 9 pixels.
BOUNDS = {None: (6, 3), (18, 8): (18, 8), 3: (3, 3)}


def exact(boxes, bound):
  """Which boxes have at most `bound` rows and columns of samples in each of 1 x 3 bins."""
  sides = boxes[:, [3, 2]] - boxes[:, [1, 0]]
  return (np.ceil(sides / (1, 3)) <= bound).all(-1)


@pytest.mark.parametrize('mode', ['avg', 'max'])
@pytest.mark.parametrize('max_samples', BOUNDS, ids=str)
def test_boxes_larger_than_the_map_up_to_the_bound_and_beyond(max_samples, mode):
  """The adaptive number is exact up to the bound; a larger box has the bound, evenly spaced."""
  image, boxes, bound = random_features(6, 8, 2), np.array(LARGE_BOXES, 'f4'), BOUNDS[max_samples]
  options = {'ratio': 0, 'mode': mode}
  bounded = defined(image, boxes, (1, 3), bound=bound, **options)
  unbounded = defined(image, boxes, (1, 3), **options)
  right = exact(boxes, bound)
  assert right.sum() == {None: 1, (18, 8): 7, 3: 0}[max_samples]
  different = np.abs(bounded - unbounded).max((1, 2, 3)) > 1e-3
  assert not different[right].any()
  assert different[~right].sum() >= (~right).sum() - 1  # The last box is off the map.
  g = random_features(len(boxes), 1, 3, 2, seed=2)
  results = [
    run_both(
      roi_align, image, boxes, g=g, output_size=(1, 3), spatial_scale=1.0, sampling_ratio=0,
      aligned=True, mode=mode, max_samples=max_samples, form=form,
    )
    for form in FORMS
  ]  # fmt: skip
  for pooled, _ in results:
    np.testing.assert_allclose(pooled, bounded, atol=1e-5)
  for ours, theirs in zip(*map(jax.tree.leaves, results), strict=True):
    np.testing.assert_allclose(ours, theirs, atol=1e-4)
  # The gradients, by finite differences of the definition in float64.
  loss = lambda image, boxes, g: (defined(image, boxes, (1, 3), bound=bound, **options) * g).sum()
  _, (d_image, d_boxes) = results[0]
  step, image = 1e-6, image.astype('f8')
  for r, k in itertools.product((0, 3, 5), range(4)):
    change = np.eye(4)[k] * step
    slope = loss(image, [boxes[r] + change], g[r]) - loss(image, [boxes[r] - change], g[r])
    np.testing.assert_allclose(d_boxes[r, k], slope / (2 * step), atol=1e-4)
  change = np.random.default_rng(3).normal(size=image.shape) * step
  slope = loss(image + change, boxes, g) - loss(image - change, boxes, g)
  np.testing.assert_allclose((d_image * change).sum(), slope / 2, rtol=1e-3)


def test_the_default_is_torchvisions_for_boxes_up_to_the_map_and_a_bound_for_any():
  torch, ops_of = pytest.importorskip('torch'), pytest.importorskip('torchvision.ops')
  image, boxes = random_features(12, 17, 2), random_boxes(4000, 48, 68)
  g = random_features(4000, 3, 4, 2, seed=2)
  theirs = torch.tensor(image.transpose(2, 0, 1)[None], requires_grad=True)
  pooled = ops_of.roi_align(theirs, [torch.tensor(boxes)], (3, 4), 0.25, 0, True)
  pooled.backward(torch.tensor(g.transpose(0, 3, 1, 2)))
  pooled = pooled.detach().numpy().transpose(0, 2, 3, 1)
  within = ((boxes[:, 2:] - boxes[:, :2]) / 4 <= (17, 12)).all(-1)
  assert 100 < (~within).sum() < 1000
  options = OPTIONS | {
    'output_size': (3, 4), 'spatial_scale': 0.25, 'sampling_ratio': 0, 'zero_empty': False,
  }  # fmt: skip
  default = run(roi_align, image, boxes, **options)
  np.testing.assert_allclose(default[within], pooled[within], atol=1e-5)
  assert np.abs(default[~within] - pooled[~within]).max() > 0.01
  # 1.5 times the map: 18 rows in 3 bins, 25.5 columns in 4.
  ours, (d_image, _) = run_both(roi_align, image, boxes, g=g, max_samples=(6, 7), **options)
  np.testing.assert_allclose(ours, pooled, atol=1e-5)
  np.testing.assert_allclose(d_image, theirs.grad[0].numpy().transpose(1, 2, 0), atol=1e-3)


BAD_BOXES = [
  [NAN, 1, 2, 3], [1, 1, INF, 3], [-INF, -INF, INF, INF], [1, NAN, 2, -INF], [3, 2, 3, 4],
  [3, 2, 3, 2], [5, 4, 2, 1],
]  # fmt: skip
HUGE_BOXES = [
  [-3e38, -3e38, 3e38, 3e38],
  [1e38, 1e38, 3e38, 3e38],
  [1, 1, 1e9, 2],
  [0, 0, 1e-38, 1],
]


@pytest.mark.parametrize(
  'form, mode, ratio',
  [
    ('gather', 'avg', 2), ('gather', 'avg', 0), ('gather', 'max', 0), ('matrix', 'avg', 0),
    ('matrix', 'max', 2),
  ],
)  # fmt: skip
def test_bad_boxes_give_zeros_and_every_gradient_is_finite(form, mode, ratio):
  image, bad = random_features(6, 8, 2), np.array(BAD_BOXES, 'f4')
  options = OPTIONS | {'mode': mode, 'form': form, 'sampling_ratio': ratio, 'max_samples': 2}
  for x in jax.tree.leaves(run_both(roi_align, image, bad, **options)):
    assert not x.any()
  # Every box, bad ones and those without an area included, is finite in all.
  boxes = np.array([*BOXES, *BAD_BOXES, *HUGE_BOXES], 'f4')
  for x in jax.tree.leaves(run_both(roi_align, image, boxes, zero_empty=False, **options)):
    assert np.isfinite(x).all()


def test_an_empty_box_of_the_2017_convention():
  """Is zeros by default, and one pixel from its corner by torchvision's rule."""
  align = functools.partial(
    run, roi_align, np.arange(30.0, dtype='f4').reshape(5, 6, 1), output_size=1, spatial_scale=1.0,
    sampling_ratio=1, aligned=False,
  )  # fmt: skip
  box = np.array([[2, 1, 2, 1]], 'f4')
  assert align(box).item() == 0
  assert align(box, zero_empty=False).item() == 1.5 * 6 + 2.5


@pytest.mark.parametrize('mode', ['avg', 'max'])
@pytest.mark.parametrize('form', FORMS)
def test_no_boxes(form, mode):
  image, boxes = random_features(6, 8, 2), np.zeros((0, 4), 'f4')
  pooled, (d_image, d_boxes) = run_both(roi_align, image, boxes, mode=mode, form=form, **OPTIONS)
  assert pooled.shape == (0, 2, 3, 2)
  assert d_boxes.shape == (0, 4)
  assert d_image.shape == image.shape
  assert not d_image.any()


@pytest.mark.parametrize('mode', ['avg', 'max'])
@pytest.mark.parametrize('form', FORMS)
def test_the_work_may_be_divided_in_any_way(form, mode, monkeypatch):
  """Samples in a loop, the scatter box by box, matrices box by box: the same results."""
  image, boxes = random_features(6, 8, 2), np.array(BOXES, 'f4')
  g = random_features(len(BOXES), 2, 3, 2, seed=2)
  results = lambda: jax.tree.leaves(
    run_both(roi_align, image, boxes, g=g, form=form, mode=mode, **OPTIONS)
  )
  whole = results()
  for name in ('_UNROLL', '_SCATTER_ROWS', '_MATRIX_ELEMENTS'):
    monkeypatch.setattr(ops, name, 1)
  compiled_both.cache_clear()
  divided = results()
  compiled_both.cache_clear()
  for a, b in zip(whole, divided, strict=True):
    np.testing.assert_allclose(a, b, atol=1e-5)


@pytest.mark.parametrize('form', FORMS)
def test_a_batch_is_its_images(form):
  images = random_features(2, 6, 8, 2)
  boxes = np.stack([BOXES, BOXES[::-1]]).astype('f4')
  options = {'mode': 'avg', 'form': form, **OPTIONS}
  g = np.ones((*boxes.shape[:2], 2, 3, 2), 'f4')
  batch = jax.tree.leaves(run_both(roi_align, images, boxes, g=g, **options))
  for i in range(2):
    one = run_both(roi_align, images[i], boxes[i], g=g[i], **options)
    for both, alone in zip(batch, jax.tree.leaves(one), strict=True):
      np.testing.assert_allclose(both[i], alone, atol=1e-5)


@pytest.mark.parametrize('form', FORMS)
def test_keeps_the_type_and_computes_in_float32(form):
  half, boxes = jnp.asarray(random_features(6, 8, 2), jnp.bfloat16), np.array(BOXES, 'f4')
  pooled, (d_image, d_boxes) = run_both(roi_align, half, boxes, form=form, **OPTIONS)
  assert (pooled.dtype, d_image.dtype, d_boxes.dtype) == (jnp.bfloat16, jnp.bfloat16, jnp.float32)
  expected = run(roi_align, half.astype(jnp.float32), boxes, form=form, **OPTIONS)
  np.testing.assert_array_equal(pooled, expected.astype(jnp.bfloat16))


STRIDES = (4, 8, 16, 32)


def pyramid(height=64, width=96, channels=2):
  return [random_features(height // s, width // s, channels, seed=s) for s in STRIDES]


# Squares and other boxes of the level at which their level begins: sqrt(area) = 112, 224, 448.
@pytest.mark.parametrize(
  'box, stride',
  [
    ([0, 0, 111.9, 111.9], 4), ([5, 5, 117, 117], 8), ([0, 0, 56, 224], 8), ([0, 0, 223, 224], 8),
    ([1, 2, 225, 226], 16), ([0, 0, 447, 447], 16), ([0, 0, 448, 448], 32),
    ([0, 0, 5000, 5000], 32), ([0, 0, 1, 1], 4), ([3, 3, 3, 3], 4), ([NAN, 0, 9, 9], 4),
  ],
)  # fmt: skip
def test_the_level_of_a_box(box, stride):
  assert STRIDES[box_levels(jnp.array(box, jnp.float32), strides=STRIDES)] == stride


def test_levels_equal_torchvisions():
  torch, poolers = pytest.importorskip('torch'), pytest.importorskip('torchvision.ops.poolers')
  rng = np.random.default_rng(0)
  size = np.exp(rng.uniform(0, np.log(2000), (10_000, 2)))
  size[::10] = np.exp2(rng.integers(0, 11, (1000, 1))) * 7 * rng.choice([1, 4], (1000, 1))
  corner = rng.integers(0, 100, size.shape)
  boxes = np.concatenate([corner, corner + size], -1).astype('f4')
  for strides in (STRIDES, (8, 16), (2, 4, 8, 16, 32, 64)):
    levels = [int(math.log2(s)) for s in (strides[0], strides[-1])]
    theirs = poolers.LevelMapper(*levels)([torch.tensor(boxes)])
    np.testing.assert_array_equal(box_levels(boxes, strides=strides), theirs.numpy())


@pytest.mark.parametrize('strides', [(4, 8, 32), (4, 6), (8, 4), (3, 6)])
def test_strides_must_be_consecutive_powers_of_two(strides):
  with pytest.raises(ValueError, match='must be consecutive powers of two'):
    box_levels(np.zeros((1, 4), 'f4'), strides=strides)


@pytest.mark.parametrize('mode', ['avg', 'max'])
def test_multilevel_is_each_box_on_its_level(mode):
  """With maps of one shape and boxes in pixels of their map, so that all levels share a program."""
  maps = [random_features(8, 12, 2, seed=stride) for stride in STRIDES]
  boxes, g = random_boxes(60, 600, 900), random_features(60, 2, 3, 2, seed=5)
  options = {'output_size': (2, 3), 'sampling_ratio': 2, 'aligned': True, 'mode': mode}
  levels = np.asarray(box_levels(boxes, strides=STRIDES))
  assert set(levels) == {0, 1, 2, 3}
  results = [
    run_both(multilevel_roi_align, maps, boxes, g=g, strides=STRIDES, form=form, **options)
    for form in FORMS
  ]
  for level, stride in enumerate(STRIDES):
    here = levels == level
    of_level = np.where(here[:, None, None, None], g, 0)
    expected, (d_map, d_boxes_of_map) = run_both(
      roi_align, maps[level], boxes / stride, g=of_level, spatial_scale=1.0, **options
    )
    for pooled, (d_maps, d_boxes) in results:
      np.testing.assert_allclose(pooled[here], expected[here], atol=1e-5)
      np.testing.assert_allclose(d_maps[level], d_map, atol=1e-4)
      np.testing.assert_allclose(d_boxes[here], d_boxes_of_map[here] / stride, atol=1e-4)


def test_multilevel_equals_torchvision():
  torch, poolers = pytest.importorskip('torch'), pytest.importorskip('torchvision.ops.poolers')
  maps = [np.stack([f, 2 - f]) for f in pyramid()]
  boxes = np.clip(8 * random_boxes(80, 40, 50), 0, [96, 64, 96, 64]).reshape(2, 40, 4).astype('f4')
  tensors = {str(i): torch.tensor(f.transpose(0, 3, 1, 2)) for i, f in enumerate(maps)}
  # A canonical scale that spreads these boxes over the levels.
  pooler = poolers.MultiScaleRoIAlign(list(tensors), 3, 2, canonical_scale=40)
  theirs = pooler(tensors, [torch.tensor(b) for b in boxes], [(64, 96)] * 2)
  ours = run(
    multilevel_roi_align,
    maps,
    boxes,
    strides=STRIDES,
    output_size=3,
    sampling_ratio=2,
    aligned=False,
    canonical_scale=40,
    zero_empty=False,
  )
  theirs = theirs.numpy().transpose(0, 2, 3, 1).reshape(ours.shape)
  np.testing.assert_allclose(ours, theirs, atol=1e-5)


def c_round(x):
  return math.floor(x + 0.5) if x >= 0 else -math.floor(-x + 0.5)


def defined_pool(image, boxes, output_size, scale):
  """RoIPool in loops; all it does is whole numbers and the size of a bin."""
  out = np.zeros((len(boxes), *output_size, image.shape[2]), image.dtype)
  for r, box in enumerate(boxes):
    x0, y0, x1, y1 = (c_round(float(x) * scale) for x in box)
    bins = []
    for start, end, n, length in (
      (y0, y1, output_size[0], image.shape[0]),
      (x0, x1, output_size[1], image.shape[1]),
    ):
      size = max(end - start + 1, 1) / n
      edges = [(math.floor(p * size) + start, math.ceil((p + 1) * size) + start) for p in range(n)]
      bins.append([slice(*np.clip(e, 0, length)) for e in edges])
    for p, q in itertools.product(*map(range, output_size)):
      part = image[bins[0][p], bins[1][q]]
      if part.size:
        out[r, p, q] = part.max((0, 1))
  return out


@pytest.mark.parametrize('scale', [1.0, 0.5])
def test_roi_pool_equals_the_definition(scale):
  # Negative values: a zero from outside the map would win.
  image = random_features(7, 9, 2) - 9
  boxes = np.array([*BOXES, [0.5, 1.5, 2.5, 3.5], [-0.5, -1.5, 4.49, 5.5]], 'f4') / scale
  pooled = run(roi_pool, image, boxes, output_size=(2, 3), spatial_scale=scale)
  np.testing.assert_array_equal(pooled, defined_pool(image, boxes, (2, 3), scale))


def test_roi_pool_equals_torchvision_forwards_and_backwards():
  torch, ops_of = pytest.importorskip('torch'), pytest.importorskip('torchvision.ops')
  image, boxes = random_features(13, 18, 2) - 9, random_boxes(2000, 26, 36)
  theirs = torch.tensor(image.transpose(2, 0, 1)[None], requires_grad=True)
  pooled = ops_of.roi_pool(theirs, [torch.tensor(boxes)], (3, 4), 0.5)
  g = random_features(2000, 3, 4, 2, seed=2)
  ours, (d_image, _) = run_both(roi_pool, image, boxes, g=g, output_size=(3, 4), spatial_scale=0.5)
  np.testing.assert_array_equal(ours, pooled.detach().numpy().transpose(0, 2, 3, 1))
  pooled.backward(torch.tensor(g.transpose(0, 3, 1, 2)))
  expected = theirs.grad[0].numpy().transpose(1, 2, 0)
  np.testing.assert_allclose(d_image, expected, rtol=1e-4, atol=1e-4)


def test_roi_pool_of_bad_boxes_of_none_and_of_a_batch():
  image = random_features(2, 6, 8, 2)
  options = {'output_size': 2, 'spatial_scale': 1.0}
  pool = functools.partial(run, roi_pool, **options)
  bad = np.array(BAD_BOXES[:4] + HUGE_BOXES, 'f4')
  pooled, (d_image, d_boxes) = run_both(roi_pool, image[0], bad, **options)
  assert not pooled[:4].any()
  assert np.isfinite(d_image).all()
  assert not d_boxes.any()
  assert pool(image[0], np.zeros((0, 4), 'f4')).shape == (0, 2, 2, 2)
  boxes = np.stack([BOXES, BOXES[::-1]]).astype('f4')
  both = pool(image, boxes)
  np.testing.assert_array_equal(both[1], pool(image[1], boxes[1]))
  assert pool(image.astype(jnp.bfloat16), boxes).dtype == jnp.bfloat16


@pytest.mark.parametrize('mode', ['avg', 'max'])
def test_roi_warp_with_a_bin_a_pixel_is_the_crop(mode):
  image = random_features(6, 8, 2)
  # 1.6 to 4.4 is rounded to the pixels 2 to 4, 0.5 to 3.4 to the pixels 1 to 3.
  warped = run(
    roi_warp, image, np.array([[1.6, 0.5, 4.4, 3.4]], 'f4'), output_size=3, spatial_scale=1.0,
    sampling_ratio=1, mode=mode,
  )  # fmt: skip
  np.testing.assert_allclose(warped[0], image[1:4, 2:5], atol=1e-6)


@pytest.mark.parametrize('form', FORMS)
@pytest.mark.parametrize('mode', ['avg', 'max'])
def test_roi_warp_is_roi_align_of_the_rounded_box(mode, form):
  image, boxes = random_features(6, 8, 2), np.array(BOXES, 'f4')
  edges = []
  for box in boxes:
    x0, y0, x1, y1 = (c_round(float(x)) for x in box)
    edges.append([x0, y0, x0 + max(x1 - x0 + 1, 1), y0 + max(y1 - y0 + 1, 1)])
  expected = defined(image, edges, (2, 3), mode=mode)
  both = np.array([*boxes / 2, *BAD_BOXES[:4]], 'f4')
  warped, (_, d_boxes) = run_both(
    roi_warp, image, both, output_size=(2, 3), spatial_scale=2.0, sampling_ratio=2, mode=mode,
    form=form,
  )  # fmt: skip
  np.testing.assert_allclose(warped[:-4], expected, atol=1e-5)
  assert not warped[-4:].any()
  assert not d_boxes.any()


@pytest.mark.parametrize('max_samples', [None, 2])
def test_roi_warp_takes_the_adaptive_number_of_a_box_as_large_as_the_map(max_samples):
  """Rounded, it has 7 x 9 pixels on a map of 6 x 8, so 4 x 3 samples in each of 2 x 3 bins."""
  image, box = random_features(6, 8, 2), np.array([[0, 0, 8, 6]], 'f4')
  warped = run(
    roi_warp, image, box, output_size=(2, 3), spatial_scale=1.0, sampling_ratio=0,
    max_samples=max_samples,
  )  # fmt: skip
  expected = defined(image, [[0, 0, 9, 7]], (2, 3), ratio=0, bound=max_samples or 99)
  np.testing.assert_allclose(warped, expected, atol=1e-5)
