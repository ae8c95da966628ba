"""PQ against the public algorithm, see `public_panoptic`."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from public_panoptic import Labeled, public_averages, public_counts
from real_data import real_data

from segjax.metrics import panoptic
from segjax.types import SegjaxError, Segments

NAMES = ('cat', 'dog', 'sky', 'road')
ISTHING = (True, True, False, False)
VARIANTS = [(c, f) for c in ('last', 'all') for f in ('sum', 'each')]


def to_segments(image, size, count):
  """`Segments` without the batch axis, padded to `size` and `count`."""
  ids = np.zeros(size, np.int32)
  for k, number in enumerate(image.segments, start=1):
    ids[: image.ids.shape[0], : image.ids.shape[1]][image.ids == number] = k
  fields = np.zeros((3, count), np.int32)
  n = len(image.segments)
  fields[:2, :n] = np.array(list(image.segments.values()), int).reshape(n, 2).T
  fields[2, :n] = 1
  return Segments(ids, fields[0], fields[1].astype(bool), fields[2].astype(bool))


def stack(images, size, counts):
  return [
    jax.tree.map(lambda *x: np.stack(x), *(to_segments(i, size, n) for i in side))
    for side, n in zip(zip(*images, strict=True), counts, strict=True)
  ]


def check(pairs, names, isthing, size, counts, variants=(('last', 'sum'),), batch=4):
  """The metric over (truth, prediction) pairs, in batches, equals the public algorithm to 1e-9."""
  for crowds, forgiven in variants:
    metric = panoptic.panoptic_metrics(names, isthing, crowds=crowds, forgiven=forgiven)
    step, state, stats = jax.jit(metric.from_batch), None, {}
    for start in range(0, len(pairs), batch):
      part = pairs[start : start + batch]
      valid = np.arange(batch) < len(part)
      part += part[:1] * (batch - len(part))  # padding of the batch does not count
      truth, prediction = stack(part, size, counts)
      new = step({'segments': prediction}, {'segments': truth, 'valid': valid})
      state = new if state is None else metric.merge(state, new)
    for truth, prediction in pairs:
      public_counts(truth, prediction, stats, crowds, forgiven)
    result = metric.compute(jax.device_get(state))
    for label, name in enumerate(names):
      ours, (iou, *numbers) = result['per_class'][name], stats.get(label, [0.0, 0, 0, 0])
      assert [ours['tp'], ours['fp'], ours['fn']] == numbers
      if numbers[0]:
        assert ours['sq'] == pytest.approx(iou / numbers[0], abs=1e-12, rel=0)
    for group, expected in public_averages(stats, isthing).items():
      ours = [result[f'{name}{group}'] for name in ('pq', 'sq', 'rq')]
      np.testing.assert_allclose(ours, expected, rtol=0, atol=1e-12)
  return stats


def described(ids, segments):
  """`Labeled` of the segments that have a pixel."""
  present = set(np.unique(ids).tolist())
  return Labeled(ids, {k: v for k, v in segments.items() if k in present})


def shift(image, rng):
  moved = np.zeros_like(image.ids)
  y, x = rng.integers(1, 1 + np.array(image.ids.shape) // 12)
  moved[y:, x:] = image.ids[:-y, :-x]
  return described(moved, image.segments)


def join(image, rng):
  """Segments of a class become one, for some classes."""
  ids, first = image.ids.copy(), {}
  for number, (label, _) in image.segments.items():
    if first.setdefault(label, number) != number and rng.random() < 0.6:
      ids[ids == number] = first[label]
  return described(ids, image.segments)


def split(image, rng):
  """The right or lower part of some segments becomes another one."""
  ids, segments = image.ids.copy(), dict(image.segments)
  for number, entry in image.segments.items():
    if rng.random() < 0.6:
      mask = image.ids == number
      mask[:, : int(np.quantile(np.nonzero(mask)[1], rng.uniform(0.1, 0.9)))] = False
      ids[mask] = max(segments) + 1
      segments[max(segments) + 1] = entry
  return described(ids, segments)


def relabel(image, rng):
  labels = sorted({label for label, _ in image.segments.values()})
  return image._replace(
    segments={
      number: (int(rng.choice(labels)) if rng.random() < 0.4 else label, crowd)
      for number, (label, crowd) in image.segments.items()
    }
  )


def drop(image, rng):
  gone = [number for number in image.segments if rng.random() < 0.4]
  return described(np.where(np.isin(image.ids, gone), 0, image.ids), image.segments)


def all_of_them(image, rng):
  for distort in (split, join, relabel, drop, shift):
    image = distort(image, rng)
  return image


DISTORTIONS = [shift, join, split, relabel, drop, all_of_them]


def distorted(image, k, rng):
  """A prediction, which has no crowds: copies of them are segments like others."""
  prediction = DISTORTIONS[k % len(DISTORTIONS)](image, rng)
  return prediction._replace(segments={n: (c, False) for n, (c, _) in prediction.segments.items()})


def random_image(rng, size=(20, 26), crowds=True):
  """Blocks of ids with gaps between them, in an order that is not theirs."""
  blocks = rng.integers(0, 9, (size[0] // 4, -(-size[1] // 4)))
  ids = np.kron(blocks, np.ones((4, 4), int))[:, : size[1]]
  ids = np.where(rng.random(size) < 0.1, rng.integers(0, 9, size), ids) * 1000
  numbers = rng.permutation([n for n in np.unique(ids) if n]).tolist()
  return Labeled(
    ids, {n: (int(rng.integers(0, 4)), bool(crowds and rng.random() < 0.4)) for n in numbers}
  )


def test_equals_the_public_algorithm_on_random_maps():
  rng = np.random.default_rng(0)
  pairs = [(random_image(rng), random_image(rng, crowds=False)) for _ in range(12)]
  for k in range(30):
    image = random_image(rng)
    pairs.append((image, distorted(image, k, rng)))
  results = [
    check(pairs, NAMES, ISTHING, (20, 28), (9, 18), [variant], batch=16) for variant in VARIANTS
  ]
  # Each option matters here, and everything is counted.
  assert len({str(sorted(r.items())) for r in results}) == len(VARIANTS)
  assert all(min(stat[1:]) > 3 for stat in results[0].values())


@pytest.fixture
def coco_panoptic():
  """[Labeled] of the real annotations, and the categories."""
  directory = real_data('coco_panoptic', 'annotations')
  content = json.loads((directory / 'panoptic_train2017.json').read_text())
  index = {category['id']: i for i, category in enumerate(content['categories'])}
  labeled = []
  for annotation in content['annotations']:
    rgb = np.array(Image.open(directory / 'panoptic_train2017' / annotation['file_name']), np.int64)
    segments = {
      entry['id']: (index[entry['category_id']], bool(entry['iscrowd']))
      for entry in annotation['segments_info']
    }
    labeled.append(Labeled(rgb @ [1, 256, 65536], segments))
  return labeled, content['categories']


def test_equals_the_public_algorithm_on_coco(coco_panoptic):
  labeled, categories = coco_panoptic
  rng = np.random.default_rng(0)
  pairs = [(image, distorted(image, k, rng)) for k, image in enumerate(labeled)]
  names = [category['name'] for category in categories]
  isthing = [category['isthing'] for category in categories]
  counts = [max(len(image.segments) for image in side) for side in zip(*pairs, strict=True)]
  stats = check(pairs, names, isthing, (640, 640), counts, batch=10)
  totals = np.sum(list(stats.values()), axis=0)
  assert totals[1] > 300 and totals[2] > 200 and totals[3] > 200


panoptic_counts = jax.jit(
  panoptic.panoptic_counts, static_argnames=('num_classes', 'crowds', 'forgiven')
)


def counts(truth, prediction, classes=((1, 1, 1), (1, 1, 1)), crowd=(0, 0, 0), **kwargs):
  """Counts of class 1 in one image of twelve pixels; all segments are valid but for `valid`."""
  valid = kwargs.pop('valid', ((1, 1, 1), (1, 1, 1)))
  segments = [
    Segments(
      np.pad(np.array(ids, np.int32), [(0, 0), (0, 12 - len(ids[0]))])[None],
      np.array([c], np.int32), np.array([w], bool), np.array([v], bool),
    )
    for ids, c, w, v in zip(
      (truth, prediction), classes, (crowd, (0, 0, 0)), valid, strict=True
    )
  ]  # fmt: skip
  state = panoptic_counts(*segments[::-1], num_classes=2, **kwargs)
  assert all(x.dtype == jnp.int32 for x in state.values())
  return {
    **{key: np.asarray(state[key])[1].item() for key in ('tp', 'fp', 'fn')},
    'iou': panoptic.add_up(state['iou'])[1].item(),
  }


ONE = ((1, 0, 0), (1, 0, 0))


def test_hand_computed():
  # Segment 1 shares 5 of 7 pixels, segment 2 exactly half (2 of 4), segment 3 is missed.
  truth = [[1, 1, 1, 1, 1, 1, 2, 2, 2, 3]]
  prediction = [[1, 1, 1, 1, 1, 2, 2, 2, 1, 0]]
  valid = ((1, 1, 1), (1, 1, 0))
  assert counts(truth, prediction, valid=valid) == {
    'tp': 1, 'fp': 1, 'fn': 2, 'iou': pytest.approx(5 / 7, abs=1e-12)
  }  # fmt: skip


def test_an_iou_of_one_half_is_no_match():
  truth, prediction = [[1, 1, 1, 1, 2, 2]], [[1, 1, 0, 0, 0, 0]]
  classes = ((1, 0, 0), (1, 0, 0))
  valid = ((1, 1, 0), (1, 0, 0))
  assert counts(truth, prediction, classes, valid=valid) == {'tp': 0, 'fp': 1, 'fn': 1, 'iou': 0}
  assert counts(truth, [[1, 1, 1, 0, 0, 0]], classes, valid=valid)['iou'] == 0.75


def test_void_is_left_out_of_the_union():
  assert counts([[1, 1, 0, 0, 0]], [[1] * 5], valid=ONE) == {'tp': 1, 'fp': 0, 'fn': 0, 'iou': 1}
  # What is not valid is void.
  state = counts([[1, 1, 2, 3, 3]], [[1] * 5], valid=ONE)
  assert state == {'tp': 1, 'fp': 0, 'fn': 0, 'iou': 1}
  state = counts([[1, 1, 1, 1, 1]], [[1, 1, 1, 2, 2]], valid=ONE)
  assert state == {'tp': 1, 'fp': 0, 'fn': 0, 'iou': pytest.approx(0.6, abs=1e-12)}


@pytest.mark.parametrize('covered, mistakes', [(2, 1), (3, 0)])
@pytest.mark.parametrize('what', ['void', 'crowd'])
@pytest.mark.parametrize('forgiven', ['sum', 'each'])
def test_a_prediction_on_void_or_a_crowd_is_forgiven(covered, mistakes, what, forgiven):
  """More than half of four pixels."""
  number = {'void': 0, 'crowd': 2}[what]
  truth = [[number] * covered + [1] * (12 - covered)]
  prediction = [[1] * 4 + [0] * 8]
  valid = ((1, 1, 0), (1, 0, 0))
  state = counts(truth, prediction, crowd=(0, 1, 0), valid=valid, forgiven=forgiven)
  assert state == {'tp': 0, 'fp': mistakes, 'fn': 1, 'iou': 0}


def test_a_crowd_of_another_class_does_not_count():
  truth, prediction = [[2] * 6], [[1] * 6]
  state = counts(truth, prediction, ((0, 0, 0), (1, 0, 0)), (0, 1, 0), valid=((0, 1, 0), (1, 0, 0)))
  assert state == {'tp': 0, 'fp': 1, 'fn': 0, 'iou': 0}
  # One of the same class is not matched either, and not missed.
  state = counts(truth, prediction, crowd=(0, 1, 0), valid=((0, 1, 0), (1, 0, 0)))
  assert state == {'tp': 0, 'fp': 0, 'fn': 0, 'iou': 0}


def test_where_the_public_code_departs_from_the_paper():
  # The eight pixels of the prediction overlap two crowds of two pixels each and one void pixel.
  truth, prediction = [[1, 1, 2, 2, 0, 3, 3, 3]], [[1] * 8]
  arguments = (truth, prediction, ((1, 1, 0), (1, 0, 0)), (1, 1, 0))
  mistakes = {
    (crowds, forgiven): counts(
      *arguments, crowds=crowds, forgiven=forgiven, valid=((1, 1, 1), (1, 0, 0))
    )['fp']
    for crowds, forgiven in VARIANTS
  }
  assert mistakes == {
    ('last', 'sum'): 1, ('last', 'each'): 1, ('all', 'sum'): 0, ('all', 'each'): 1
  }  # fmt: skip


def test_a_crowd_that_is_not_valid_hides_none():
  crowd, valid = (1, 1, 0), ((1, 0, 0), (1, 0, 0))
  assert counts([[1] * 6 + [3] * 2], [[1] * 8], crowd=crowd, valid=valid)['fp'] == 0


def test_segments_without_pixels_and_images_without_segments():
  """A valid one cannot match; where there is nothing, nothing is counted."""
  assert counts([[0, 0]], [[0, 0]], valid=ONE) == {'tp': 0, 'fp': 1, 'fn': 1, 'iou': 0}
  nothing = ((0, 0, 0), (0, 0, 0))
  assert counts([[0, 0]], [[0, 0]], valid=nothing) == {'tp': 0, 'fp': 0, 'fn': 0, 'iou': 0}
  empty = Segments(np.zeros((2, 3, 4), int), *(np.zeros((2, 0), t) for t in (int, bool, bool)))
  state = panoptic.panoptic_counts(empty, empty, 3)
  assert {key: value.shape for key, value in state.items()} == {
    'tp': (3,), 'fp': (3,), 'fn': (3,), 'iou': (3, panoptic.DIGITS)
  }  # fmt: skip
  assert not any(value.any() for value in state.values())


def test_division_is_exact_to_the_last_digit():
  rng = np.random.default_rng(0)
  below = np.concatenate([2 ** np.arange(1, 30), rng.integers(1, 2**30, 300), [1, 3, 2**30 - 1]])
  above = np.minimum(below, (below * rng.random(len(below))).astype(int))
  above[::7], above[1::7] = below[::7], 0
  digits = np.asarray(jax.jit(panoptic._divide)(jnp.int32(above), jnp.int32(below)))
  whole = [int(a) * 2**45 // int(b) for a, b in zip(above, below, strict=True)]
  assert [int(a) * 2**30 + int(b) * 2**15 + int(c) for a, b, c in digits] == whole
  assert digits[:, 1:].max() < 2**15 and digits.max() == 2**15
  np.testing.assert_allclose(panoptic.add_up(digits), above / below, rtol=0, atol=3e-14)


def test_sums_are_the_same_in_any_order_and_stay_exact():
  rng = np.random.default_rng(3)
  metric = panoptic.panoptic_metrics(NAMES, ISTHING)
  step, pairs = jax.jit(metric.from_batch), []
  for k in range(6):
    image = random_image(rng)
    pairs.append((image, distorted(image, k, rng)))

  def state(part):
    truth, prediction = stack(part, (20, 28), (9, 18))
    batch = {'segments': truth, 'valid': np.ones(len(part), bool)}
    return jax.device_get(step({'segments': prediction}, batch))

  whole = state(pairs)
  assert whole['iou'].any()
  parts = [state(pairs[i : i + 2]) for i in (0, 2, 4)]
  for order in ((0, 1, 2), (2, 0, 1)):
    total = parts[order[0]]
    for i in order[1:]:
      total = metric.merge(total, parts[i])
    jax.tree.map(np.testing.assert_array_equal, total, whole)
  big = {key: np.full_like(value, 2**31 - 1) for key, value in whole.items()}
  assert metric.merge(big, big)['iou'].max() == 2**32 - 2


def test_devices_count_what_lies_on_them():
  """A batch sharded over four devices gives the same counts, without communicating maps."""
  rng = np.random.default_rng(4)
  pairs = [(random_image(rng), random_image(rng, crowds=False)) for _ in range(4)]
  truth, prediction = stack(pairs, (20, 28), (9, 9))
  mesh = jax.make_mesh((4,), ('data',), axis_types=(jax.sharding.AxisType.Auto,))
  place = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec('data'))
  step = jax.jit(lambda p, t: panoptic.panoptic_counts(p, t, len(NAMES)))
  args = jax.device_put((prediction, truth), place)
  jax.tree.map(np.testing.assert_array_equal, step(*args), step(prediction, truth))
  text = step.lower(*args).compile().as_text()
  assert 'all-reduce' in text
  assert 'all-gather' not in text and 'all-to-all' not in text


def scored(**kwargs):
  """Four classes: two pairs, one of them perfect; no pair; nothing; a false positive only."""
  iou = np.zeros((4, panoptic.DIGITS), np.int32)
  iou[0] = [2**15 + 2**14 + 2**13, 0, 0]
  state = {
    'tp': np.array([2, 0, 0, 0]), 'fp': np.array([1, 0, 0, 1]), 'fn': np.array([0, 3, 0, 0]),
    'iou': iou,
  }  # fmt: skip
  return panoptic.scores(state, NAMES, ISTHING, **kwargs)


def test_scores():
  result = scored()
  assert result['per_class']['cat'] == {
    'pq': 1.75 / 2.5, 'sq': 0.875, 'rq': 0.8, 'tp': 2, 'fp': 1, 'fn': 0
  }  # fmt: skip
  assert result['per_class']['dog'] == {'pq': 0, 'sq': 0, 'rq': 0, 'tp': 0, 'fp': 0, 'fn': 3}
  assert all(np.isnan(result['per_class']['sky'][key]) for key in ('pq', 'sq', 'rq'))
  expected = {'pq': 0.7 / 3, 'sq': 0.875 / 3, 'rq': 0.8 / 3}
  expected |= {'pq_things': 0.35, 'sq_things': 0.4375, 'rq_things': 0.4}
  expected |= {'pq_stuff': 0, 'sq_stuff': 0, 'rq_stuff': 0}
  assert {k: v for k, v in result.items() if k != 'per_class'} == pytest.approx(expected)


def test_segmentation_quality_of_no_pairs():
  result = scored(unmatched_sq='skip')
  assert (result['sq'], result['sq_things']) == (0.875, 0.875)
  assert np.isnan(result['sq_stuff']) and np.isnan(result['per_class']['dog']['sq'])
  assert result['pq'] == scored()['pq']
  metric = panoptic.panoptic_metrics(NAMES, ISTHING, unmatched_sq='skip')
  state = {key: np.array([0, 1, 0, 0]) for key in ('tp', 'fp', 'fn')}
  state |= {'iou': np.zeros((4, 3), int), 'tp': np.zeros(4, int)}
  assert np.isnan(metric.compute(state)['sq'])


def test_nothing_measured_is_nan():
  state = {key: np.zeros(4, np.int32) for key in ('tp', 'fp', 'fn')}
  result = panoptic.scores({**state, 'iou': np.zeros((4, 3), np.int32)}, NAMES, ISTHING)
  assert all(np.isnan(value) for key, value in result.items() if key != 'per_class')


def test_sizes_must_agree():
  truth, prediction = (
    Segments(np.zeros(shape, int), *(np.zeros((1, 1), bool),) * 3)
    for shape in ((1, 4, 5), (1, 4, 6))
  )
  with pytest.raises(SegjaxError, match=r'the shape \(1, 4, 6\) and the truth \(1, 4, 5\)'):
    panoptic.panoptic_counts(prediction, truth, 2)


def test_a_batch_has_few_enough_segments():
  many = Segments(
    *(jax.ShapeDtypeStruct(shape, jnp.int32) for shape in [(8, 2, 2), *[(8, 8192)] * 3])
  )
  message = r'room for 65536 true segments, more than the 65535 .*config\.batch\.eval_size'
  with pytest.raises(SegjaxError, match=message):
    jax.eval_shape(lambda x: panoptic.panoptic_counts(x, x, 2), many)


def test_the_score_of_an_image_is_its_own_pq():
  rng = np.random.default_rng(3)
  truths = [random_image(rng) for _ in range(4)]
  pairs = [(truth, distorted(truth, k, rng)) for k, truth in enumerate(truths)]
  truth, prediction = stack(pairs, (20, 26), (40, 40))
  metric = panoptic.panoptic_metrics(NAMES, ISTHING)
  batch = {'segments': truth, 'valid': np.array([True, True, True, False])}
  score = lambda p, b: metric.image_scores({'segments': p}, b, None)
  scored = jax.jit(score)(prediction, batch)
  own = []
  for row in range(3):
    part = lambda segments, row=row: Segments(*(x[row : row + 1] for x in segments))
    counts = panoptic.panoptic_counts(part(prediction), part(truth), len(NAMES))
    own.append(metric.compute(counts)['pq'])
  np.testing.assert_allclose(scored, [*own, np.nan], rtol=1e-6)
  assert len(set(own)) == 3
