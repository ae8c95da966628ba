"""COCO AP: small cases by hand, and equality with pycocotools used directly."""

import contextlib
import io
import json

import numpy as np
import pytest
from pycocotools import mask as mask_lib
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from real_data import real_data

from segjax.metrics import coco
from segjax.types import SegjaxError

# A class of pycocotools that predates NumPy 2.
OLD_ARRAY = 'ignore:__array__ implementation:DeprecationWarning'
NAMES = ('cat', 'dog', 'bird')
SIZE = (100, 120)


def rectangle(box, size=SIZE):
  """u8[H, W] of the pixels whose centers are in a box."""
  x0, y0, x1, y1 = box
  rows, columns = (np.arange(s) + 0.5 for s in size)
  inside = ((rows >= y0) & (rows < y1))[:, None] & (columns >= x0) & (columns < x1)
  return inside.astype(np.uint8)


WHOLE = (slice(None), slice(None))


def paste(masks, boxes, size):
  """Fills boxes: what a network's masks of all ones mean."""
  assert masks.shape == (len(boxes), 2, 2)
  return [(WHOLE, rectangle(box, size).astype(bool)) for box in boxes]


def encode(mask):
  return mask_lib.encode(np.asfortranarray(mask))


def thing(number, category, box, crowd=False):
  x0, y0, x1, y1 = box
  return {
    'id': number,
    'category': category,
    'bbox': [x0, y0, x1 - x0, y1 - y0],
    'area': (x1 - x0) * (y1 - y0),
    'iscrowd': crowd,
    'rle': encode(rectangle(box)),
  }


def annotated(image_id, objects, scale=(1, 1)):
  """An entry of `batch['annotations']`; objects are (category, box) or (category, box, crowd)."""
  return {
    'image_id': image_id,
    'height': SIZE[0],
    'width': SIZE[1],
    'file_name': f'{image_id}.png',
    'scale': scale,
    'objects': [thing(number, *o) for number, o in enumerate(objects)],
  }


def batch_of(*images, slots=4):
  """A batch from pairs of annotations and detections, (class, score, box), highest score first."""
  predictions = {
    'boxes': np.full((len(images), slots, 4), 7, np.float32),
    'classes': np.zeros((len(images), slots), np.int32),
    'scores': np.full((len(images), slots), 0.99, np.float32),
    'masks': np.ones((len(images), slots, 2, 2), np.float32),
    'valid': np.zeros((len(images), slots), bool),
  }
  for i, (_, detections) in enumerate(images):
    for k, (category, score, box) in enumerate(detections):
      for key, value in zip(('boxes', 'classes', 'scores'), (box, category, score), strict=True):
        predictions[key][i, k] = value
      predictions['valid'][i, k] = True
  return predictions, {
    'valid': np.ones(len(images), bool),
    'annotations': [annotation for annotation, _ in images],
  }


def metric(kinds=('box', 'mask')):
  return coco.coco_metrics(NAMES, kinds, paste)


def evaluate(*images, **kwargs):
  m = metric(**kwargs)
  return m.compute(m.from_batch(*batch_of(*images)))


# A small object, 30 x 30, found exactly, and a medium one, 50 x 40, found with an IoU of 25 / 40;
# between their scores a false positive of 10 x 10.
SMALL, MEDIUM = (10, 10, 40, 40), (50, 50, 100, 90)
FOUND = [(0, 0.9, SMALL), (0, 0.8, (90, 5, 100, 15)), (0, 0.7, (50, 50, 100, 75))]


@pytest.mark.parametrize('kind', ['box', 'mask'])
def test_hand_computed(kind):
  result = evaluate((annotated(3, [(0, SMALL), (0, MEDIUM)]), FOUND))
  # The second object is found at the thresholds 0.5, 0.55 and 0.6. There precision is 1 at the 51
  # recalls up to 0.5, and 2/3 at the other 50; at the other thresholds 1 at 51 of 101.
  both, one = (51 + 50 * 2 / 3) / 101, 51 / 101
  expected = {
    'ap': (3 * both + 7 * one) / 10,
    'ap50': both,
    'ap75': one,
    'ap_small': 1,  # the false positive comes after it
    'ap_medium': 3 / 10,  # small detections are not false positives here
    'ar1': 1 / 2,
    'ar10': (3 * 1 + 7 * 1 / 2) / 10,
    'ar100': (3 * 1 + 7 * 1 / 2) / 10,
    'ar_small': 1,
    'ar_medium': 3 / 10,
  }
  assert {name: result[f'{kind}_{name}'] for name in expected} == pytest.approx(expected)
  assert np.isnan([result[f'{kind}_ap_large'], result[f'{kind}_ar_large']]).all()
  assert result['per_class']['cat'][f'{kind}_ap'] == result[f'{kind}_ap']
  assert np.isnan(result['per_class']['dog'][f'{kind}_ap'])


def numbers(result):
  """The flat dict of all numbers, with nan as -1, so that dicts compare."""
  flat = {
    **{name: value for name, value in result.items() if name != 'per_class'},
    **{
      f'{name}: {key}': value
      for name, values in result['per_class'].items()
      for key, value in values.items()
    },
  }
  return {name: -1 if np.isnan(value) else value for name, value in flat.items()}


def test_kinds_say_what_is_measured():
  both = numbers(evaluate((annotated(3, [(0, SMALL), (0, MEDIUM)]), FOUND)))
  predictions, batch = batch_of((annotated(3, [(0, SMALL), (0, MEDIUM)]), FOUND))
  without_masks = coco.coco_metrics(NAMES, ('box',), paste)
  boxes = numbers(
    without_masks.compute(without_masks.from_batch({**predictions, 'masks': None}, batch))
  )
  assert boxes == {name: value for name, value in both.items() if 'box_' in name}
  assert len(boxes) == 12 + len(NAMES)


@pytest.mark.parametrize('kind', ['box', 'mask'])
def test_detections_in_a_crowd_do_not_count(kind):
  crowd, alone = (0, 0, 60, 60), (70, 60, 110, 90)
  inside = [(0, 0.9, (5, 5, 30, 30)), (0, 0.8, (30, 5, 50, 30)), (0, 0.7, alone)]
  result = evaluate((annotated(3, [(0, crowd, True), (0, alone)]), inside))
  assert result[f'{kind}_ap'] == pytest.approx(1)
  # As an object it would be missed, and two detections false before the third.
  result = evaluate((annotated(3, [(0, crowd, False), (0, alone)]), inside))
  assert result[f'{kind}_ap'] == pytest.approx(51 / 101 * 1 / 3)
  # A crowd is not an object: there is nothing to measure.
  result = evaluate((annotated(3, [(0, crowd, True)]), inside))
  assert np.isnan(result[f'{kind}_ap'])


def test_nothing_found_and_nothing_to_find():
  missed = numbers(evaluate((annotated(3, [(0, SMALL), (1, MEDIUM)]), [])))
  assert {missed[f'{kind}_{name}'] for kind in coco.KINDS for name in ('ap', 'ap50', 'ar100')} == {
    0
  }
  assert missed['cat: mask_ap'] == missed['dog: box_ap'] == 0
  assert missed['bird: mask_ap'] == -1
  assert set(numbers(evaluate((annotated(3, []), FOUND))).values()) == {-1}
  assert set(numbers(evaluate((annotated(3, []), []))).values()) == {-1}
  assert set(numbers(metric().compute(coco.compare([], coco.KINDS))).values()) == {-1}


def test_a_class_without_objects_is_left_out_of_the_mean():
  image = annotated(3, [(0, SMALL), (1, MEDIUM)])
  found = [(0, 0.9, SMALL), (2, 0.8, MEDIUM)]  # the second is classified as a bird
  result = evaluate((image, found))
  assert result['mask_ap'] == pytest.approx((1 + 0) / 2)
  assert np.isnan(result['per_class']['bird']['mask_ap'])


def test_detections_come_back_to_the_original_image():
  objects = [(0, SMALL), (0, MEDIUM)]
  expected = evaluate((annotated(3, objects), FOUND))
  scaled = [(category, score, np.multiply(box, (2, 0.5, 2, 0.5))) for category, score, box in FOUND]
  result = evaluate((annotated(3, objects, scale=(0.5, 2)), scaled))
  assert numbers(result) == numbers(expected)


def test_boxes_are_clipped_to_the_image():
  corner = (80, 60, SIZE[1], SIZE[0])
  beyond = (80, 60, 200, 150)
  image = annotated(3, [(0, corner)]), [(0, 0.9, beyond)]
  [result] = coco.image_results(*batch_of(image), paste)
  assert result['boxes'].tolist() == [[80, 60, 40, 40]]
  assert evaluate(image)['box_ap'] == pytest.approx(1)
  image = annotated(3, []), [(0, 0.9, (150, 130, 160, 150))]
  [outside] = coco.image_results(*batch_of(image), paste)
  assert outside['boxes'].tolist() == [[120, 100, 0, 0]]


def test_what_is_not_valid_leaves_no_trace():
  image = (annotated(3, [(0, SMALL), (0, MEDIUM)]), FOUND)
  expected = numbers(evaluate(image))
  predictions, batch = batch_of(image, (annotated(4, [(0, SMALL)]), FOUND), slots=9)
  batch['valid'][1] = False
  batch['annotations'][1] = None
  assert numbers(metric().compute(metric().from_batch(predictions, batch))) == expected


def test_merging_batches_equals_one_batch_in_any_order():
  a = (annotated(3, [(0, SMALL), (1, MEDIUM)]), FOUND)
  b = (annotated(8, [(0, MEDIUM), (2, SMALL, True)]), [(2, 0.95, SMALL), (0, 0.6, MEDIUM)])
  c = (annotated(5, []), [(0, 0.85, SMALL)])
  m = metric()
  states = [m.from_batch(*batch_of(image)) for image in (a, b, c)]
  expected = numbers(evaluate(a, b, c))
  assert numbers(m.compute(m.merge(m.merge(*states[:2]), states[2]))) == expected
  assert numbers(m.compute(m.merge(states[2], m.merge(states[1], states[0])))) == expected


@pytest.mark.parametrize('count', [1, 2, 3, 5])
def test_classes_shared_between_processes_equal_all_at_once(count):
  """Also where there are more processes than classes."""
  rng = np.random.default_rng(count)
  corners = rng.integers(0, 60, (12, 9, 2))
  boxes = np.concatenate([corners, corners + rng.integers(8, 50, corners.shape)], -1)
  images = [
    (
      annotated(
        i, [(int(rng.integers(3)), tuple(box), bool(rng.random() < 0.1)) for box in own[:4]]
      ),
      [(int(rng.integers(3)), float(rng.random()), tuple(box)) for box in own[2:]],
    )
    for i, own in enumerate(boxes.tolist())
  ]
  m = metric()
  state = m.from_batch(*batch_of(*images, slots=9))
  expected = m.compute(state)
  assert expected['mask_ap'] > 0
  found = m.join([m.share(state, i, count) for i in range(count)])
  np.testing.assert_equal(found, expected)


def test_what_travels_between_processes_is_small():
  """A few numbers for each detection and object, whatever the size of the image and its masks."""
  state = metric().from_batch(*batch_of((annotated(3, [(0, SMALL), (1, MEDIUM)]), FOUND)))
  assert all(isinstance(column, np.ndarray) for column in state.values())
  assert sum(column.nbytes for column in state.values()) < 400


def test_masks_are_pasted_into_the_image():
  """By segjax's own rule: the left half of each box, at a scale other than 1."""
  left = [(SMALL[0], SMALL[1], 25, SMALL[3]), (MEDIUM[0], MEDIUM[1], 75, MEDIUM[3])]
  image = annotated(3, [(0, box) for box in left], scale=(2, 2))
  found = [(0, 0.9, np.multiply(SMALL, 2)), (0, 0.8, np.multiply(MEDIUM, 2))]
  predictions, batch = batch_of((image, found))
  masks = np.zeros((1, 4, 28, 28), np.float32)
  masks[..., :14] = 1
  m = coco.coco_metrics(NAMES)
  result = m.compute(m.from_batch({**predictions, 'masks': masks}, batch))
  assert result['mask_ap75'] == pytest.approx(1)
  assert result['box_ap75'] == 0


def test_two_images_with_one_id_are_refused():
  with pytest.raises(SegjaxError, match='two images of the split have the same image_id'):
    evaluate((annotated(3, []), []), (annotated(3, []), []))


def test_nothing_is_printed(capsys):
  evaluate((annotated(3, [(0, SMALL)]), FOUND))
  assert capsys.readouterr() == ('', '')


# pycocotools, used directly.


IOU_TYPES = {'box': 'bbox', 'mask': 'segm'}


def quietly(function, *args):
  with contextlib.redirect_stdout(io.StringIO()):
    return function(*args)


def evaluate_directly(truth, results, kind):
  """pycocotools' twelve numbers and {category id: AP}, as its own demonstration gets them."""

  def run():
    evaluation = COCOeval(truth, truth.loadRes(results), IOU_TYPES[kind])
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    return evaluation

  evaluation = quietly(run)
  precision = evaluation.eval['precision'][..., 0, 2]
  by_category = {
    id: precision[:, :, k][precision[:, :, k] > -1] for k, id in enumerate(evaluation.params.catIds)
  }
  return evaluation.stats, {id: v.mean() if len(v) else -1 for id, v in by_category.items()}


def distort(truth, seed):
  """Detections that miss, add, shift, relabel and rescore the objects of `truth`, crowds included.

  Returns:
    {image id: [(score, category id, box f32[4], mask u8[H, W])]}, highest score first, with ties.
  """
  rng = np.random.default_rng(seed)
  found = {}
  for image_id, image in truth.imgs.items():
    detections = []
    for entry in truth.imgToAnns[image_id]:
      for _ in range(rng.choice(3, p=[0.15, 0.6, 0.25])):
        size = max(4, *entry['bbox'][2:])
        dx, dy = np.rint(rng.normal(0, 0.08 * size, 2)).astype(int)
        x, y, w, h = entry['bbox']
        box = np.array([x, y, x + w, y + h]) + (dx, dy, dx, dy) + rng.normal(0, 0.03 * size, 4)
        limits = (image['width'], image['height']) * 2
        mask = np.roll(truth.annToMask(entry), (dy, dx), (0, 1))
        category = rng.choice(truth.getCatIds()) if rng.random() < 0.15 else entry['category_id']
        box = np.clip(np.concatenate([np.minimum(box[:2], box[2:]), box[2:]]), 0, limits)
        detections.append((rng.integers(1, 20) / 20, category, np.float32(box), mask))
    found[image_id] = sorted(detections, key=lambda d: -d[0])
  return found


def as_results(found, kind):
  """Entries of COCO's results format, of boxes or of masks alone."""
  return [
    {
      'image_id': image_id,
      'category_id': int(category),
      'score': float(np.float32(score)),
      **(
        {'segmentation': encode(mask)}
        if kind == 'mask'
        else {'bbox': [*box[:2].astype(float), *(box[2:].astype(float) - box[:2])]}
      ),
    }
    for image_id, detections in found.items()
    for score, category, box, mask in detections
  ]


def as_batches(truth, found, size, table):
  """The same detections and the annotations as batches.

  A mask goes into the list `table`, and its number, [1, 1], into the batch.
  """
  labels = {id: label for label, id in enumerate(sorted(truth.cats))}
  slots = max(len(detections) for detections in found.values())
  ids = list(found)
  for start in range(0, len(ids), size):
    predictions, annotations = batch_of(*[(None, [])] * size, slots=slots)[0], [None] * size
    predictions['masks'] = np.zeros((size, slots, 1, 1))
    part = ids[start : start + size]
    for i, image_id in enumerate(part):
      for k, (score, category, box, mask) in enumerate(found[image_id]):
        values = {'boxes': box, 'classes': labels[category], 'scores': score, 'valid': True}
        for key, value in {**values, 'masks': len(table)}.items():
          predictions[key][i, k] = value
        table.append(mask)
      image = truth.imgs[image_id]
      annotations[i] = {
        'image_id': image_id,
        'height': image['height'],
        'width': image['width'],
        'file_name': image['file_name'],
        'scale': (1.0, 1.0),
        'objects': [
          {
            'id': a['id'],
            'category': labels[a['category_id']],
            'bbox': a['bbox'],
            'area': a['area'],
            'iscrowd': bool(a['iscrowd']),
            'rle': truth.annToRLE(a),
          }
          for a in truth.imgToAnns[image_id]
        ],
      }
    valid = np.arange(size) < len(part)
    yield predictions, {'valid': valid, 'annotations': annotations}


def check_against_pycocotools(truth, seed, batch_size=16):
  """Every number equals pycocotools'. Returns them."""
  found = distort(truth, seed)
  names = [truth.cats[id]['name'] for id in sorted(truth.cats)]
  table = []

  def look_up(masks, boxes, size):
    del boxes, size
    return [(WHOLE, table[int(number)].astype(bool)) for number in masks.ravel()]

  m = coco.coco_metrics(names, paste=look_up)
  batches = as_batches(truth, found, batch_size, table)
  result = m.compute(m.merge(*(m.from_batch(*batch) for batch in batches)))
  for kind in coco.KINDS:
    stats, by_category = evaluate_directly(truth, as_results(found, kind), kind)
    expected = {f'{kind}_{name}': v for name, v in zip(coco.STATS, stats, strict=True)}
    expected |= {f'{truth.cats[id]["name"]}: {kind}_ap': v for id, v in by_category.items()}
    ours = numbers(result)
    assert {name: ours[name] for name in expected} == expected
  return result


def synthetic(seed):
  """A ground truth of polygons and run lengths, with ids as they come in real files."""
  rng = np.random.default_rng(seed)
  images = [
    {'id': int(i), 'height': 90, 'width': 140, 'file_name': f'{i}'} for i in (900, 17, 4, 5)
  ]
  entries = []
  for image in images[:-1]:
    for _ in range(12):
      x, y, w, h = rng.uniform((0, 0, 8, 8), (80, 40, 60, 50))
      crowd = int(rng.random() < 0.15)
      mask = rectangle((x, y, x + w, y + h), (90, 140))
      entries.append(
        {
          'id': 1000 - len(entries),
          'image_id': image['id'],
          'category_id': int(rng.choice([2, 5, 9])),
          'bbox': [x, y, w, h],
          'area': w * h * 0.9,
          'iscrowd': crowd,
          'segmentation': encode(mask) if crowd else [[x, y, x + w, y, x + w, y + h, x, y + h]],
        }
      )
  truth = COCO()
  categories = [{'id': id, 'name': f'c{id}'} for id in (9, 2, 5, 70)]
  truth.dataset = {'images': images, 'annotations': entries, 'categories': categories}
  quietly(truth.createIndex)
  return truth


@pytest.mark.filterwarnings(OLD_ARRAY)
@pytest.mark.parametrize('seed', range(3))
def test_equals_pycocotools(seed):
  result = check_against_pycocotools(synthetic(seed), seed, batch_size=3)
  assert 0.05 < result['mask_ap'] < 0.95  # neither trivial
  assert 0.05 < result['box_ap'] < 0.95


@pytest.mark.filterwarnings(OLD_ARRAY)
def test_equals_pycocotools_on_real_data():
  annotations = real_data('coco_instances', 'annotations')
  truth = quietly(COCO, annotations / 'instances_val2017.json')
  result = check_against_pycocotools(truth, 0)
  assert 0.05 < result['mask_ap'] < 0.95
  assert 0.05 < result['box_ap'] < 0.95


def test_more_masks_than_pycocotools_measures_at_a_time():
  objects, found = [(0, SMALL), (0, MEDIUM)], [(0, 0.9, SMALL), (0, 0.8, MEDIUM)]
  result = evaluate(*((annotated(i, objects), found) for i in range(150)))
  assert result['mask_ap_small'] == result['mask_ap_medium'] == pytest.approx(1)


def test_results_can_be_read_by_pycocotools(tmp_path):
  images = [
    (annotated(3, [(0, SMALL), (2, MEDIUM)]), FOUND),
    (annotated(9, []), []),
    (annotated(7, [(2, SMALL)]), [(2, 0.5, SMALL)]),
  ]
  results = coco.image_results(*batch_of(*images), paste)
  category_ids = [11, 22, 33]
  path = tmp_path / 'results.json'
  path.write_text(json.dumps(coco.coco_results(results, category_ids)))
  truth = COCO()
  truth.dataset = {
    'images': [{'id': i, 'height': SIZE[0], 'width': SIZE[1]} for i in (3, 9, 7)],
    'categories': [{'id': id, 'name': str(id)} for id in category_ids],
    'annotations': [],
  }
  quietly(truth.createIndex)
  read = quietly(truth.loadRes, str(path))
  assert [len(read.imgToAnns[i]) for i in (3, 9, 7)] == [3, 0, 1]
  first, last = read.imgToAnns[3][0], read.imgToAnns[7][0]
  assert first['category_id'] == 11 and last['category_id'] == 33
  assert first['bbox'] == [10, 10, 30, 30]
  assert first['score'] == np.float32(0.9)
  assert mask_lib.area(read.annToRLE(first)) == 900
  assert mask_lib.toBbox(read.annToRLE(first)).tolist() == [10, 10, 30, 30]
  boxes = coco.image_results(*batch_of(*images), None)
  assert 'segmentation' not in coco.coco_results(boxes, category_ids)[0]


CAT = (10, 10, 30, 30)
CASES = {
  'found': ([(0, CAT)], [(0, 0.9, CAT)], 1.0),
  'another class': ([(0, CAT)], [(1, 0.9, CAT)], 0.0),
  'too far away': ([(0, CAT)], [(0, 0.9, (20, 10, 40, 30))], 0.0),
  'an IoU of one half': ([(0, CAT)], [(0, 0.9, (10, 10, 30, 20))], 1.0),
  'a low score': ([(0, CAT)], [(0, 0.4, CAT)], 0.0),
  'found twice': ([(0, CAT)], [(0, 0.9, CAT), (0, 0.8, CAT)], 2 / 3),
  'one of two': ([(0, CAT), (0, (60, 60, 90, 90))], [(0, 0.9, CAT)], 2 / 3),
  'a crowd': ([(0, CAT, True)], [(0, 0.9, (12, 12, 18, 18))], np.nan),
  'an object in a crowd': (
    [(0, CAT), (0, (0, 0, 60, 60), True)],
    [(0, 0.9, CAT), (0, 0.8, (40, 40, 50, 50))],
    1.0,
  ),
  'nothing': ([], [], np.nan),
  'nothing there': ([], [(0, 0.9, CAT)], 0.0),
  'nothing found': ([(0, CAT)], [], 0.0),
}


@pytest.mark.filterwarnings(OLD_ARRAY)
@pytest.mark.parametrize('kinds', [('box', 'mask'), ('box',)])
def test_the_score_of_an_image_is_its_f1(kinds):
  """By hand, and one image of a batch does not depend on the others."""
  images = [(annotated(i, objects), found) for i, (objects, found, _) in enumerate(CASES.values())]
  predictions, batch = batch_of(*images)
  batch['valid'][1] = False
  metric = coco.coco_metrics(NAMES, kinds, paste)
  state = metric.from_batch(predictions, batch)
  expected = [f1 for _, _, f1 in CASES.values()]
  expected[1] = np.nan
  np.testing.assert_allclose(metric.image_scores(predictions, batch, state), expected)


def test_each_detection_of_a_crowded_image_counts_in_its_f1():
  """AP takes 100 detections of a class; the worst images are not those with the most objects."""
  boxes = [(2 * (i % 40), 3 * (i // 40), 2 * (i % 40) + 2, 3 * (i // 40) + 3) for i in range(130)]
  image = annotated(0, [(0, b) for b in boxes]), [(0, 0.9, b) for b in boxes]
  predictions, batch = batch_of(image, slots=130)
  whole = metric(kinds=('box',))
  state = whole.from_batch(predictions, batch)
  np.testing.assert_array_equal(whole.image_scores(predictions, batch, state), [1])
  # As with 100 found of 130 objects: the recall ends at 100/130.
  assert whole.compute(state)['box_ap'] == pytest.approx(77 / 101)
