import cv2
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.test_util import check_grads
from real_data import real_data

from segjax.losses import dense
from segjax.types import IGNORE_LABEL, SegjaxError

# Compiled once for each shape.
softmax_cross_entropy = jax.jit(
  dense.softmax_cross_entropy, static_argnames=('divide_by', 'label_smoothing', 'hardest')
)
sigmoid_cross_entropy = jax.jit(dense.sigmoid_cross_entropy, static_argnames='divide_by')
focal = jax.jit(dense.focal, static_argnames=('divide_by', 'gamma', 'alpha'))
dice = jax.jit(dense.dice)
tversky = jax.jit(dense.tversky)
lovasz = jax.jit(dense.lovasz)
LOSSES = [softmax_cross_entropy, sigmoid_cross_entropy, focal, dice, tversky, lovasz]
# The count is of images, whatever their pixels weigh.
OF_REGIONS = (dice, tversky, lovasz)
every_loss = pytest.mark.parametrize('loss', LOSSES, ids=lambda loss: loss.__name__)


def example(classes=3, size=(2, 4, 5), seed=0):
  """Logits, and labels of which about a fifth are ignored."""
  rng = np.random.default_rng(seed)
  logits = rng.normal(size=(*size, classes)).astype(np.float32)
  label = rng.integers(0, max(classes, 2), size).astype(np.int32)
  label[rng.random(size) < 0.2] = IGNORE_LABEL
  return jnp.asarray(logits), jnp.asarray(label)


def log_softmax(logits):
  z = np.asarray(logits, np.float64)
  return z - np.log(np.exp(z).sum(-1, keepdims=True))


def sigmoid(logits):
  return 1 / (1 + np.exp(-np.asarray(logits, np.float64)))


def test_softmax_cross_entropy_of_known_probabilities():
  # p = (1/4, 3/4) at each of three pixels, of which the last is ignored.
  logits = jnp.log(jnp.array([[0.25, 0.75]] * 3)).reshape(1, 1, 3, 2)
  label = jnp.array([0, 1, IGNORE_LABEL]).reshape(1, 1, 3)
  total, count = softmax_cross_entropy(logits, label)
  np.testing.assert_allclose(total, np.log(4) + np.log(4 / 3), rtol=1e-6)
  assert count == 2


def test_softmax_cross_entropy_equals_optax_on_the_labelled_pixels():
  logits, label = example()
  keep = np.asarray(label) != IGNORE_LABEL
  expected = optax.softmax_cross_entropy_with_integer_labels(logits[keep], label[keep])
  total, count = softmax_cross_entropy(logits, label)
  np.testing.assert_allclose(total, expected.sum(), rtol=1e-5)
  assert count == keep.sum()


def test_softmax_cross_entropy_of_a_single_channel_has_nothing_to_learn():
  logits, label = example(classes=1)
  label = jnp.where(label == 1, 0, label)
  total, gradient = jax.value_and_grad(lambda x: softmax_cross_entropy(x, label).sum)(logits)
  assert total == 0
  assert not gradient.any()


def test_softmax_cross_entropy_is_exact_for_large_logits():
  logits = jnp.array([1e4, 1e4 + 1.0]).reshape(1, 1, 1, 2)
  total, _ = softmax_cross_entropy(logits, jnp.zeros((1, 1, 1), jnp.int32))
  np.testing.assert_allclose(total, np.log1p(np.e), rtol=1e-6)


@pytest.mark.parametrize('classes', [1, 3])
def test_sigmoid_cross_entropy_equals_optax_on_the_labelled_pixels(classes):
  logits, label = example(classes)
  keep = np.asarray(label) != IGNORE_LABEL
  target = np.eye(3)[label[keep]] if classes == 3 else np.asarray(label)[keep][:, None]
  expected = optax.sigmoid_binary_cross_entropy(logits[keep], jnp.asarray(target)).mean(-1).sum()
  total, count = sigmoid_cross_entropy(logits, label)
  np.testing.assert_allclose(total, expected, rtol=1e-5)
  assert count == keep.sum()


@pytest.mark.parametrize('gamma, alpha', [(2.0, 0.25), (0.5, None), (0.0, 0.5)])
def test_focal_equals_its_formula(gamma, alpha):
  logits, label = example()
  keep = np.asarray(label) != IGNORE_LABEL
  target = np.eye(3)[label[keep]]
  p = sigmoid(logits[keep])
  p_t = np.where(target == 1, p, 1 - p)
  alpha_t = 1 if alpha is None else np.where(target == 1, alpha, 1 - alpha)
  expected = -alpha_t * (1 - p_t) ** gamma * np.log(p_t)
  total, count = focal(logits, label, gamma=gamma, alpha=alpha)
  np.testing.assert_allclose(total, expected.mean(-1).sum(), rtol=1e-5)
  assert count == keep.sum()


def test_focal_has_the_papers_defaults():
  logits, label = example()
  np.testing.assert_array_equal(
    dense.focal(logits, label), dense.focal(logits, label, gamma=2.0, alpha=0.25)
  )


@pytest.mark.parametrize('gamma', [0.0, 0.5, 2.0])
def test_focal_gradient_is_finite_where_p_is_0_or_1(gamma):
  logits = jnp.array([[200.0, -200.0], [-200.0, 200.0]]).reshape(1, 1, 2, 2)
  label = jnp.zeros((1, 1, 2), jnp.int32)
  gradient = jax.grad(lambda x: focal(x, label, gamma=gamma).sum)(logits)
  assert np.isfinite(gradient).all()


def test_dice_of_known_masks():
  # Image 1: certain predictions, class 1 in columns 0 and 1, truth in columns 1 and 2 of 4.
  # Dice of class 1 is (2 * 1 + 1) / (2 + 2 + 1), and of class 0 the same.
  prediction = np.array([[1, 1, 0, 0], [0, 0, 0, 0]])
  label = np.array([[0, 1, 1, 0], [0, 0, 0, IGNORE_LABEL]])[:, None]
  logits = jnp.asarray(200.0 * np.eye(2)[prediction] - 100.0)[:, None]
  total, count = dice(logits, jnp.asarray(label))
  np.testing.assert_allclose(total, 1 - 3 / 5, rtol=1e-6)  # Image 2 is right: loss 0.
  assert count == 2
  # A single channel has class 1 only; class weights choose among more.
  single, _ = dice(logits[..., 1:], jnp.asarray(label))
  np.testing.assert_allclose(single, 1 - 3 / 5, rtol=1e-6)
  logits = logits.at[0, 0, 3].set(jnp.array([-100.0, 100.0]))  # Class 1: 3/6, class 0: 1/4.
  for weights, expected in [([0, 1], 3 / 6), ([1, 0], 3 / 4), ([1, 3], (3 / 4 + 3 * 3 / 6) / 4)]:
    total, _ = dice(logits, jnp.asarray(label), class_weights=weights)
    np.testing.assert_allclose(total, expected, rtol=1e-6)


def test_dice_equals_its_formula():
  logits, label = example()
  expected = 0
  for z, t in zip(np.asarray(logits), np.asarray(label), strict=True):
    keep = t != IGNORE_LABEL
    p, g = np.exp(log_softmax(z[keep])), np.eye(3)[t[keep]]
    score = (2 * (p * g).sum(0) + 0.5) / (p.sum(0) + g.sum(0) + 0.5)
    expected += 1 - score.mean()
  total, count = dice(logits, label, smooth=0.5)
  np.testing.assert_allclose(total, expected, rtol=1e-5)
  assert count == 2


def test_smoothed_labels_equal_optax():
  logits, label = example()
  keep = np.asarray(label) != IGNORE_LABEL
  targets = optax.smooth_labels(jax.nn.one_hot(label[keep], 3), 0.2)
  expected = optax.softmax_cross_entropy(logits[keep], targets)
  total, count = softmax_cross_entropy(logits, label, label_smoothing=0.2)
  np.testing.assert_allclose(total, expected.sum(), rtol=1e-5)
  assert count == keep.sum()


@pytest.mark.parametrize('divide_by', ['count', 'weight', 'images'])
@pytest.mark.parametrize('fraction', [0.01, 0.3, 0.7])
def test_only_the_hardest_pixels_of_each_image_count(fraction, divide_by):
  logits, label = example(size=(3, 4, 5))
  label = label.at[2].set(IGNORE_LABEL)
  weight = jnp.asarray(np.random.default_rng(1).uniform(0.5, 2, label.shape), jnp.float32)
  total, counts = 0, {'count': 0, 'weight': 0, 'images': 2}
  for z, t, w in zip(*map(np.asarray, (logits, label, weight)), strict=True):
    keep = t != IGNORE_LABEL
    loss = -w[keep] * np.take_along_axis(log_softmax(z[keep]), t[keep][:, None], 1)[:, 0]
    hardest = np.argsort(-loss)[: int(np.ceil(fraction * keep.sum() - 1e-6))]
    total += loss[hardest].sum()
    counts['count'] += len(hardest)
    counts['weight'] += w[keep][hardest].sum()
  found = softmax_cross_entropy(logits, label, weight, divide_by=divide_by, hardest=fraction)
  np.testing.assert_allclose(found, (total, counts[divide_by]), rtol=1e-5)


def test_equally_hard_pixels_share_the_places():
  """Three pixels are equally hard, and two of four count: nothing depends on their order."""
  logits = jnp.array([[0.0, 0.0]] * 3 + [[5.0, 0.0]]).reshape(1, 1, 4, 2)
  label = jnp.zeros((1, 1, 4), jnp.int32)
  total, count = softmax_cross_entropy(logits, label, hardest=0.5)
  np.testing.assert_allclose(total, 2 * np.log(2), rtol=1e-6)
  assert count == 2
  gradient = jax.grad(lambda x: softmax_cross_entropy(x, label, hardest=0.5).sum)(logits)[0, 0]
  np.testing.assert_allclose(gradient[:, 0], [-1 / 3, -1 / 3, -1 / 3, 0], rtol=1e-6)


@pytest.mark.parametrize('alpha, beta', [(0.3, 0.7), (1.0, 1.0)])
def test_tversky_equals_its_formula(alpha, beta):
  logits, label = example()
  expected = 0
  for z, t in zip(np.asarray(logits), np.asarray(label), strict=True):
    keep = t != IGNORE_LABEL
    p, g = np.exp(log_softmax(z[keep])), np.eye(3)[t[keep]]
    hit, extra, missed = ((a * b).sum(0) for a, b in [(p, g), (p, 1 - g), (1 - p, g)])
    expected += 1 - ((hit + 0.5) / (hit + alpha * extra + beta * missed + 0.5)).mean()
  options = {'false_positives': alpha, 'false_negatives': beta, 'smooth': 0.5}
  total, count = tversky(logits, label, **options)
  np.testing.assert_allclose(total, expected, rtol=1e-5)
  assert count == 2


@pytest.mark.parametrize('classes', [1, 3])
def test_tversky_with_equal_weights_is_dice(classes):
  logits, label = example(classes)
  weights = [1.0, 2.0, 0.5][:classes]
  halves = {'false_positives': 0.5, 'false_negatives': 0.5, 'smooth': 0.5}
  np.testing.assert_allclose(
    tversky(logits, label, class_weights=weights, **halves),
    dice(logits, label, class_weights=weights, smooth=1.0),
    rtol=1e-5,
  )


def iou_loss(wrong, true):
  """Of the set of wrong pixels (Berman et al. 2018, eq. 6)."""
  return len(wrong) / len(true | wrong) if wrong else 0.0


def lovasz_extension(errors, true):
  """Of `iou_loss`, by its definition: each set of the so far largest errors (eq. 8 and 9)."""
  order = np.argsort(-errors, kind='stable').tolist()
  sets = [set(order[:i]) for i in range(len(order) + 1)]
  losses = [iou_loss(wrong, true) for wrong in sets]
  return sum(errors[pixel] * d for pixel, d in zip(order, np.diff(losses), strict=True))


@pytest.mark.parametrize('classes', [1, 4])
def test_lovasz_equals_its_definition(classes):
  """Also of an image in which a class, and of a single channel class 1, is not present."""
  logits, label = example(classes, size=(3, 4, 5))
  label = label.at[0].set(jnp.where(label[0] == IGNORE_LABEL, IGNORE_LABEL, 0))
  expected = 0
  for z, t in zip(np.asarray(logits), np.asarray(label), strict=True):
    keep = t != IGNORE_LABEL
    p = sigmoid(z[keep]) if classes == 1 else np.exp(log_softmax(z[keep]))
    g = t[keep][:, None] == (np.ones(1) if classes == 1 else np.arange(classes))
    sets = [set(np.flatnonzero(column).tolist()) for column in g.T]
    losses = [lovasz_extension(abs(g - p)[:, c], true) for c, true in enumerate(sets)]
    expected += np.mean([x for x, true in zip(losses, sets, strict=True) if true or classes == 1])
  total, count = lovasz(logits, label)
  np.testing.assert_allclose(total, expected, rtol=1e-5)
  assert count == 3


def test_lovasz_of_certain_predictions_is_the_iou_loss():
  rng = np.random.default_rng(0)
  prediction, label = rng.integers(0, 3, (2, 1, 6, 7))
  ious = [
    ((prediction == c) & (label == c)).sum() / ((prediction == c) | (label == c)).sum()
    for c in range(3)
  ]
  logits = 200.0 * jnp.asarray(np.eye(3)[prediction])
  np.testing.assert_allclose(lovasz(logits, label).sum, 1 - np.mean(ious), rtol=1e-6)
  weights = [1.0, 0.0, 3.0]
  expected = 1 - np.average(ious, weights=weights)
  total = lovasz(logits, label, class_weights=weights).sum
  np.testing.assert_allclose(total, expected, rtol=1e-6)


def test_a_pixel_of_weight_2_counts_in_lovasz_as_two():
  logits, label = example(size=(1, 1, 6))
  twice = lambda x: jnp.concatenate([x, x[:, :, :2]], axis=2)
  weight = jnp.array([2.0, 2, 1, 1, 1, 1])[None, None]
  expected = lovasz(twice(logits), twice(label))
  np.testing.assert_allclose(lovasz(logits, label, weight), expected, rtol=1e-5)


def test_the_gradient_of_lovasz_is_precise_in_a_large_image():
  """What a pixel takes from the IoU is little more than the rounding of an IoU."""
  rng = np.random.default_rng(0)
  logits = rng.normal(size=(1, 400, 500, 2)).astype(np.float32)
  label = rng.integers(0, 2, (1, 400, 500))
  p = np.exp(log_softmax(logits)).reshape(-1, 2)
  by_error = np.zeros_like(p)
  for c in range(2):
    g = (label == c).ravel()
    order = np.argsort(-abs(g - p[:, c]))
    hit, extra = np.cumsum(g[order]), np.cumsum(~g[order])
    taken = np.diff(1 - (g.sum() - hit) / (g.sum() + extra), prepend=0.0)
    by_error[order, c] = np.where(g[order], -1, 1) * taken / 2
  expected = p * (by_error - (p * by_error).sum(1, keepdims=True))
  found = jax.grad(lambda x: lovasz(x, label).sum)(logits).reshape(-1, 2)
  np.testing.assert_allclose(found, expected, atol=1e-4 * abs(expected).max())


@every_loss
def test_ignored_pixels_change_nothing(loss):
  logits, label = example()
  ignored = (label == IGNORE_LABEL)[..., None]
  a, b = loss(logits, label), loss(jnp.where(ignored, 50.0, logits), label)
  np.testing.assert_allclose(a, b, rtol=1e-6)
  gradient = jax.grad(lambda x: loss(x, label).sum)(logits)
  assert not np.asarray(gradient)[ignored[..., 0]].any()
  assert np.asarray(gradient)[~ignored[..., 0]].any(-1).all()


@every_loss
def test_all_ignored_is_zero_without_nan(loss):
  logits, label = example()
  label = jnp.full_like(label, IGNORE_LABEL)
  total, count = loss(logits, label)
  gradient = jax.grad(lambda x: loss(x, label).sum)(logits)
  assert total == 0
  assert count == 0
  assert not np.asarray(gradient).any()


@every_loss
def test_sums_and_counts_add_over_a_split_batch_and_padding(loss):
  logits, label = example(size=(4, 4, 5))
  whole = loss(logits, label)
  parts = [loss(logits[i : i + 2], label[i : i + 2]) for i in (0, 2)]
  np.testing.assert_allclose(whole, np.sum(parts, axis=0), rtol=1e-5)
  pad = ((0, 1), (0, 3), (0, 2))
  padded = loss(jnp.pad(logits, (*pad, (0, 0))), jnp.pad(label, pad, constant_values=IGNORE_LABEL))
  np.testing.assert_allclose(whole, padded, rtol=1e-5)


@every_loss
def test_bfloat16_logits_are_summed_in_float32(loss):
  logits, label = example()
  low = logits.astype(jnp.bfloat16)
  result = loss(low, label)
  assert result.sum.dtype == result.count.dtype == jnp.float32
  np.testing.assert_allclose(result, loss(low.astype(jnp.float32), label), rtol=1e-6)


@every_loss
def test_numerical_gradient(loss):
  logits, label = example(size=(1, 2, 3))
  check_grads(jax.jit(lambda x: loss(x, label).sum), (logits,), 1, ['rev'], atol=1e-2, rtol=1e-2)


@every_loss
def test_pixel_weights_0_and_1_select_pixels(loss):
  logits, label = example()
  weight = jnp.asarray(np.random.default_rng(1).integers(0, 2, label.shape), jnp.float32)
  selected = loss(logits, jnp.where(weight == 1, label, IGNORE_LABEL))
  np.testing.assert_allclose(loss(logits, label, weight).sum, selected.sum, rtol=1e-5)
  if loss not in OF_REGIONS:
    weighted = loss(logits, label, weight, divide_by='weight')
    np.testing.assert_allclose(weighted, selected, rtol=1e-5)
    assert loss(logits, label, weight).count == (label != IGNORE_LABEL).sum()


@pytest.mark.parametrize(
  'loss, classes',
  [
    (softmax_cross_entropy, 3),
    (sigmoid_cross_entropy, 3),
    (sigmoid_cross_entropy, 1),
    (focal, 3),
  ],
)
def test_class_weights_multiply_the_pixels_of_their_class(loss, classes):
  logits, label = example(classes)
  weights = [2.0, 0.5, 3.0][: max(classes, 2)]
  by_pixel = jnp.where(label == IGNORE_LABEL, 7.0, jnp.asarray([*weights, 0.0])[label % 4])
  for divide_by in ('count', 'weight'):
    np.testing.assert_allclose(
      loss(logits, label, class_weights=weights, divide_by=divide_by),
      loss(logits, label, by_pixel, divide_by=divide_by),
      rtol=1e-5,
    )


def test_divided_by_images_the_sum_over_pixels_is_the_loss():
  """FCN's release; an image that is padded or ignored as a whole is none."""
  logits, label = example()
  label = label.at[0].set(IGNORE_LABEL)
  by_pixels = softmax_cross_entropy(logits, label)
  by_images = softmax_cross_entropy(logits, label, divide_by='images')
  assert by_images.sum == by_pixels.sum
  assert by_images.count == len(label) - 1


@every_loss
def test_more_classes_than_a_byte_holds(loss):
  """Labels 255 and above are classes like the others."""
  logits, label = example(300)
  large = np.array([254, 255, 256, 299])
  label = label.at[0, 0, :4].set(large)
  shift = np.roll(np.arange(300), 100)  # so that classes 155, 156 and so on take their place
  moved = jnp.where(label == IGNORE_LABEL, IGNORE_LABEL, (label + 100) % 300)
  np.testing.assert_allclose(loss(logits, label), loss(logits[..., shift], moved), rtol=1e-5)
  gradient = np.asarray(jax.grad(lambda x: loss(x, label).sum)(logits))[0, 0]
  assert (gradient[np.arange(4), large] < 0).all()


def test_wrong_arguments():
  logits, label = example()
  with pytest.raises(SegjaxError, match='2 values for 3 classes'):
    softmax_cross_entropy(logits, label, class_weights=[1, 2])
  with pytest.raises(SegjaxError, match='2 values for 3 classes'):
    lovasz(logits, label, class_weights=[1, 2])
  with pytest.raises(SegjaxError, match="divide_by is 'mean': choose from count, weight, images"):
    focal(logits, label, divide_by='mean')


def test_median_frequency_weights_hand_computed():
  # Frequencies 0.1, 0.4, 0.2; the fourth class never occurs.
  weights = dense.median_frequency_weights([10, 20, 40, 0], [100, 50, 200, 0])
  np.testing.assert_allclose(weights, [2, 0.5, 1, 0])
  assert weights.dtype == np.float32
  np.testing.assert_array_equal(dense.natural_weights([10, 0], [100, 0]), [1, 1])


def test_median_frequency_weights_of_camvid_are_near_the_released_ones():
  # SegNet's released weights, sky to bicyclist; they were counted on other renderings of the labels
  # (the sign's weight differs by 2.5 times).
  released = [0.2595, 0.1826, 4.564, 0.1417, 0.9051, 0.3826, 9.6446, 1.8418, 0.6823, 6.2478, 7.3614]
  pixels, image_pixels = np.zeros(11), np.zeros(11)
  for path in real_data('camvid', 'trainannot').glob('*.png'):
    label = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
    counts = np.bincount(label.ravel(), minlength=12)[:11]
    pixels += counts
    image_pixels += np.where(counts > 0, label.size, 0)
  ratio = np.delete(dense.median_frequency_weights(pixels, image_pixels) / released, 6)
  assert (abs(np.log(ratio)) < np.log(1.25)).all()
