"""Matches and averages against pycocotools, detection by detection and number by number."""

import contextlib
import io

import numpy as np
import pytest
from pycocotools import mask as mask_lib
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from segjax.metrics import average_precision
from segjax.metrics.average_precision import AREAS, MAX_DETECTIONS, RECALLS, THRESHOLDS, Objects

CLASSES = 3
# Sides of boxes, such that areas are on and around the limits of the size ranges.
SIDES = (4, 8, 16, 24, 32, 33, 48, 64, 96, 97, 128)


def random_image(rng):
  """The objects and detections of an image: lists of (class, box, area or score, crowd).

  Coarse boxes and scores, so that IoUs and scores are often equal.
  """
  objects, detections = [], []
  for _ in range(rng.choice([0, 1, 3, 8])):
    box = [*(8.0 * rng.integers(0, 12, 2)), *rng.choice(SIDES, 2).astype(float)]
    share = rng.choice([1, 1, 0.5])  # the area of a mask in the box
    label = int(rng.integers(CLASSES - 1))  # the last class has no objects
    objects.append((label, box, box[2] * box[3] * share, int(rng.random() < 0.2)))
  for _ in range(rng.choice([0, 1, 4, 12])):
    box = [*(8.0 * rng.integers(0, 12, 2)), *rng.choice(SIDES, 2).astype(float)]
    label = int(rng.integers(CLASSES))
    if objects and rng.random() < 0.8:
      label, near, _, _ = objects[rng.integers(len(objects))]
      box = [max(1.0, x + rng.choice([0, 0, 0, 2, -4, 8])) for x in near]
    for _ in range(rng.choice([1, 1, 1, 2, 120], p=[0.6, 0.2, 0.1, 0.09, 0.01])):
      detections.append((label, box, float(rng.integers(1, 9)) / 8, 0))
  return objects, detections


def random_split(count, seed):
  rng = np.random.default_rng(seed)
  return [random_image(rng) for _ in range(count)]


def evaluate_directly(images):
  """pycocotools' evaluation; the ids of detections count from 1 in the order of the split."""

  def index(entries):
    api = COCO()
    api.dataset = {
      'images': [{'id': i} for i in range(len(images))],
      'categories': [{'id': k} for k in range(CLASSES)],
      'annotations': [{'id': number, **entry} for number, entry in enumerate(entries, 1)],
    }
    api.createIndex()
    return api

  truth, found = [], []
  for i, (objects, detections) in enumerate(images):
    for label, box, area, crowd in objects:
      common = {'image_id': i, 'category_id': label, 'bbox': box}
      truth.append({**common, 'area': area, 'iscrowd': crowd})
    for label, box, score, _ in detections:
      common = {'image_id': i, 'category_id': label, 'bbox': box}
      found.append({**common, 'area': box[2] * box[3], 'iscrowd': 0, 'score': score})
  with contextlib.redirect_stdout(io.StringIO()):
    evaluation = COCOeval(index(truth), index(found), 'bbox')
    evaluation.evaluate()
    evaluation.accumulate()
  return evaluation


def flatten(images, side):
  """Columns of the objects (0) or the detections (1): image, class, box, value, crowd."""
  rows = [(i, *entry) for i, image in enumerate(images) for entry in image[side]]
  columns = zip(*rows, strict=True) if rows else [[]] * 5
  image, label, box, value, crowd = (np.array(column) for column in columns)
  integers = (x.astype(np.int64) for x in (image, label))
  return *integers, box.reshape(-1, 4).astype(float), value.astype(float), crowd.astype(bool)


def prepare(images):
  """The arguments of `match` and `curves`, and the index of each sorted detection."""
  image, label, box, score, _ = flatten(images, 1)
  order, detections = average_precision.order_detections(image, label, score)
  box = box[order]
  image, label, true, area, crowd = flatten(images, 0)
  place = np.lexsort((image, label))
  objects = Objects(image[place], label[place], area[place], crowd[place])
  true = true[place]
  groups = average_precision.common_groups(detections, objects)
  ious = [mask_lib.iou(box[rows], true[at], objects.crowd[at]) for rows, at in groups]
  pairs = average_precision.near_pairs(groups, ious)
  return order, detections, box[:, 2] * box[:, 3], objects, pairs


def inside(areas):
  return (areas[:, None] >= AREAS[:, 0]) & (areas[:, None] <= AREAS[:, 1])


def curves(images):
  _, *arguments = prepare(images)
  return average_precision.curves(*arguments, CLASSES)


def test_the_parameters_are_those_of_pycocotools():
  params = COCOeval(iouType='bbox').params
  np.testing.assert_array_equal(THRESHOLDS, params.iouThrs)
  np.testing.assert_array_equal(RECALLS, params.recThrs)
  np.testing.assert_array_equal(AREAS, params.areaRng)
  assert list(MAX_DETECTIONS) == params.maxDets


def test_each_detection_of_1000_images_has_the_outcome_of_pycocotools():
  images = random_split(1000, seed=0)
  order, detections, areas, objects, pairs = prepare(images)
  matches = average_precision.match(detections, inside(areas), objects, pairs)
  shape = (len(flatten(images, 1)[0]), len(THRESHOLDS), len(AREAS))
  right, counted, known = (np.zeros(shape, bool) for _ in range(3))
  counted[order] = inside(areas)[:, None]
  known[order] = True
  right[order[matches.detections]] = matches.right
  counted[order[matches.detections]] = matches.counted

  evaluation = evaluate_directly(images)
  expected_right, expected_counted, expected_known = (np.zeros(shape, bool) for _ in range(3))
  areas_of = {tuple(limits): a for a, limits in enumerate(evaluation.params.areaRng)}
  for entry in filter(None, evaluation.evalImgs):
    place, a = np.array(entry['dtIds'], int) - 1, areas_of[tuple(entry['aRng'])]
    expected_known[place, :, a] = True
    expected_counted[place, :, a] = ~entry['dtIgnore'].T
    expected_right[place, :, a] = ((entry['dtMatches'] > 0) & ~entry['dtIgnore']).T
  np.testing.assert_array_equal(known, expected_known)
  np.testing.assert_array_equal(right, expected_right)
  np.testing.assert_array_equal(counted, expected_counted)
  # Nothing of it is trivial.
  assert 0 < right.mean() < 1 and 0 < (known & ~counted).mean() < 1 and not known.all()

  found = average_precision.curves(detections, areas, objects, pairs, CLASSES)
  np.testing.assert_array_equal(found.precision, evaluation.eval['precision'][..., -1])
  np.testing.assert_array_equal(found.recall, evaluation.eval['recall'])


@pytest.mark.parametrize('count', [1, 2, 5])
def test_small_splits_equal_pycocotools(count):
  for seed in range(15):
    images = random_split(count, seed)
    found, expected = curves(images), evaluate_directly(images).eval
    np.testing.assert_array_equal(found.precision, expected['precision'][..., -1])
    np.testing.assert_array_equal(found.recall, expected['recall'])


BOX, LEFT, RIGHT = ([x, 10.0, 20.0, 20.0] for x in (10.0, 6.0, 14.0))
CASES = {
  'nothing': [([], [])],
  'nothing found': [([(0, BOX, 400, 0)], [])],
  'nothing there': [([], [(0, BOX, 0.5, 0)])],
  'a crowd alone': [([(0, BOX, 400, 1)], [(0, BOX, 0.5, 0)] * 2)],
  'an equal object and crowd': [([(0, BOX, 400, 1), (0, BOX, 400, 0)], [(0, BOX, 0.5, 0)] * 3)],
  'equal objects': [([(0, BOX, 400, 0)] * 3, [(0, BOX, 0.5, 0)] * 2)],
  'equally near, the first free': [
    ([(0, LEFT, 400, 0), (0, RIGHT, 400, 0)], [(0, BOX, 0.5, 0), (0, LEFT, 0.4, 0)])
  ],
  'equally near, the last free': [
    ([(0, LEFT, 400, 0), (0, RIGHT, 400, 0)], [(0, BOX, 0.5, 0), (0, RIGHT, 0.4, 0)])
  ],
  'objects of other sizes': [([(0, BOX, 400, 0), (0, BOX, 2000, 0)], [(0, BOX, 0.5, 0)] * 3)],
  'more than 100': [([(0, BOX, 400, 0)], [(0, [50.0] * 4, 0.5, 0)] * 100 + [(0, BOX, 0.4, 0)])],
  'not more than 100': [([(0, BOX, 400, 0)], [(0, [50.0] * 4, 0.5, 0)] * 99 + [(0, BOX, 0.4, 0)])],
  'equal scores in two images': [
    ([(0, BOX, 400, 0)], [(0, [50.0] * 4, 0.5, 0)]),
    ([(0, BOX, 400, 0)], [(0, BOX, 0.5, 0)]),
  ],
}


@pytest.mark.parametrize('case', CASES)
def test_special_cases_equal_pycocotools(case):
  found, expected = curves(CASES[case]), evaluate_directly(CASES[case]).eval
  np.testing.assert_array_equal(found.precision, expected['precision'][..., -1])
  np.testing.assert_array_equal(found.recall, expected['recall'])


def test_an_object_outside_the_size_range_is_taken_only_if_no_other_is_free():
  """By hand: one small and one medium object in one place, found twice, with equal IoU."""
  images = CASES['objects of other sizes'][:1]
  images = [(images[0][0], images[0][1][:2])]
  found = curves(images)
  for size in (1, 2):  # small, medium: the first takes the one in the range, the second the other
    assert (found.recall[:, 0, size, -1] == 1).all()
    np.testing.assert_allclose(found.precision[:, :, 0, size], 1)
  assert (found.recall[:, 0, 3] == -1).all()
