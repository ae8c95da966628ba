"""COCO instances: both configs, exact numbers and masks, and each way in which files are wrong."""

import contextlib
import io
import json

import cv2
import numpy as np
import pytest
import tensorflow_datasets as tfds
from pycocotools import mask as mask_lib
from pycocotools.coco import COCO
from raw_files import remove, rgb, truncate, write
from real_data import real_data

from segjax.data.builders.coco_instances import builder as coco_instances
from segjax.data.formats import coco
from segjax.types import SegjaxError

HEIGHT, WIDTH = 12, 16
CATEGORIES = [
  {'id': 7, 'name': 'traffic light', 'supercategory': 'street'},
  {'id': 1, 'name': 'cat', 'supercategory': 'animal'},
  {'id': 3, 'name': 'dog', 'supercategory': 'animal'},
]
SKIP = {'image': tfds.decode.SkipDecoding()}


def square(x, y, side):
  return [x, y, x + side, y, x + side, y + side, x, y + side]


def block(rows, columns):
  mask = np.zeros((HEIGHT, WIDTH), np.uint8)
  mask[rows, columns] = 1
  return mask


def annotation(id, image_id, category_id, segmentation, **kwargs):
  return {
    'id': id,
    'image_id': image_id,
    'category_id': category_id,
    'segmentation': segmentation,
    'bbox': [1.1, 2.2, 3.3, 1 / 3],
    'area': 12.345678901234567,
    'iscrowd': 0,
    **kwargs,
  }


def content(first_image):
  """The annotations of a split: one of each kind, and an image without any."""
  compressed = mask_lib.encode(np.asfortranarray(block(slice(3, 7), slice(2, 9))))
  a, b, c = (first_image + k for k in range(3))
  segmentations = {
    11: (a, 3, [square(2, 3, 4)]),
    12: (a, 7, [square(1.5, 1.25, 2), square(8.2, 4, 5.1), [9, 0, 13, 2, 12, 4]]),
    10: (c, 1, {'size': [HEIGHT, WIDTH], 'counts': [20, 5, 7, 5, 155]}),
    2**40: (c, 1, {'size': [HEIGHT, WIDTH], 'counts': compressed['counts'].decode()}),
  }
  return {
    'images': [
      {'id': i, 'file_name': f'{i:012d}.jpg', 'height': HEIGHT, 'width': WIDTH} for i in (c, b, a)
    ],
    'categories': CATEGORIES,
    'annotations': [
      annotation(id, image_id, category_id, segmentation, iscrowd=int(id == 10))
      for id, (image_id, category_id, segmentation) in segmentations.items()
    ],
  }


def write_images(directory, entries):
  """Noise, of which the first image is gray: a JPEG of one channel."""
  directory.mkdir(parents=True)
  rng = np.random.default_rng(0)
  for k, entry in enumerate(entries):
    image = rng.integers(0, 256, (HEIGHT, WIDTH, 3), np.uint8)
    cv2.imwrite(str(directory / entry['file_name']), image[..., 0] if k == 0 else image)


def write_source(source, names=('train2017', 'val2017'), directory='{}'):
  """Writes annotations and images of each of `names`."""
  (source / 'annotations').mkdir(parents=True)
  for k, name in enumerate(names):
    written = content(100 * k + 5)
    (source / 'annotations' / f'instances_{name}.json').write_text(json.dumps(written))
    write_images(source / directory.format(name), written['images'])


@pytest.fixture
def source(tmp_path):
  write_source(tmp_path / 'raw')
  return tmp_path / 'raw'


def load(path):
  """pycocotools' own reading of an annotation file."""
  with contextlib.redirect_stdout(io.StringIO()):
    return COCO(path)


def check_against_pycocotools(examples, path):
  """Every number and every mask equals what pycocotools reads. Returns how many objects."""
  api = load(path)
  labels = {id: label for label, id in enumerate(sorted(api.cats))}
  assert sorted(int(e['image_id']) for e in examples.values()) == sorted(api.imgs)
  for example in examples.values():
    image = api.imgs[int(example['image_id'])]
    size = image['height'], image['width']
    assert (example['height'], example['width']) == size
    assert example['file_name'].decode() == image['file_name']
    expected, objects = api.imgToAnns[image['id']], example['objects']
    assert [int(id) for id in objects['id']] == [a['id'] for a in expected]
    for k, entry in enumerate(expected):
      assert objects['category_id'][k] == entry['category_id']
      assert objects['label'][k] == labels[entry['category_id']]
      assert objects['bbox'][k].tolist() == entry['bbox']  # bit by bit
      assert float(objects['area'][k]) == entry['area']
      assert objects['iscrowd'][k] == entry['iscrowd']
      counts = api.annToRLE(entry)['counts']
      assert objects['segmentation'][k] == (counts.encode() if isinstance(counts, str) else counts)
  return len(api.anns)


def test_2017(prepare, by_name, source):
  builder = prepare(coco_instances.Builder, source)
  assert builder.builder_config.name == '2017'
  for split in ('train', 'val'):
    examples = by_name(builder, split, decoders=SKIP)
    path = source / 'annotations' / f'instances_{split}2017.json'
    assert len(examples) == 3
    assert check_against_pycocotools(examples, path) == 4
    for name, example in examples.items():
      assert example['image'] == (source / f'{split}2017' / name).read_bytes()


def test_classes_are_read_back(prepare, source, tmp_path):
  written = prepare(coco_instances.Builder, source)
  again = coco_instances.Builder(data_dir=tmp_path / 'prepared')
  for builder in (written, again, tfds.builder_from_directory(written.data_path)):
    assert builder.info.features['objects']['label'].names == ['cat', 'dog', 'traffic light']
    assert builder.info.metadata['category_ids'] == [1, 3, 7]


@pytest.mark.parametrize('directory', ['{}', 'images/{}', 'images'])
def test_custom(prepare, by_name, tmp_path, directory):
  names = ('fit',) if directory == 'images' else ('fit', 'check_1')
  write_source(tmp_path / 'raw', names, directory)
  builder = prepare(coco_instances.Builder, tmp_path / 'raw', config='custom')
  assert sorted(builder.info.splits) == sorted(names)
  for name in names:
    path = tmp_path / 'raw' / 'annotations' / f'instances_{name}.json'
    assert check_against_pycocotools(by_name(builder, name, decoders=SKIP), path) == 4


def edit(source, change, name='val2017'):
  """Applies `change` to the content of an annotation file."""
  path = source / 'annotations' / f'instances_{name}.json'
  entries = json.loads(path.read_text())
  change(entries)
  path.write_text(json.dumps(entries))


def put(kind, position, **values):
  """A break: overwrites keys of one entry of val's annotations."""
  return lambda source: edit(source, lambda c: c[kind][position].update(values))


def drop(kind, position, key):
  return lambda source: edit(source, lambda c: c[kind][position].pop(key))


def uncompressed(total, size=(HEIGHT, WIDTH)):
  return {'size': list(size), 'counts': [total]}


JSON = r'instances_val2017\.json'
BREAKS = {
  'json missing': (
    remove('annotations/instances_val2017.json'),
    rf'{JSON} is missing: add it',
  ),
  'json cut': (
    truncate('annotations/instances_val2017.json', 100),
    rf'{JSON} is truncated or is not valid JSON \(.*line 1 column',
  ),
  'results': (
    lambda source: (source / 'annotations' / 'instances_val2017.json').write_text(
      '[{"image_id": 1, "score": 0.5}]'
    ),
    rf"{JSON} is a detector's results in COCO format, not a file of instances in COCO format: name",
  ),
  'json list': (
    lambda source: (source / 'annotations' / 'instances_val2017.json').write_text('[]'),
    rf'{JSON} has no list categories',
  ),
  'captions': (lambda s: edit(s, lambda c: c.pop('categories')), rf'{JSON} has no list categories'),
  'no images': (lambda s: edit(s, lambda c: c['images'].clear()), rf'{JSON} lists no images'),
  'category twice': (put('categories', 1, id=7), rf'{JSON} has the category id 7 twice'),
  'name twice': (put('categories', 1, name='dog'), rf'{JSON} has the category name dog twice'),
  'category name': (
    put('categories', 1, name=None),
    rf'{JSON}: category 1 has name None, which is not a line of text',
  ),
  'other categories': (
    put('categories', 1, name='bear'),
    rf'{JSON} and .*train2017\.json have different categories',
  ),
  'image twice': (put('images', 0, id=106), rf'{JSON} has the image id 106 twice'),
  'image size': (
    put('images', 0, height=0),
    rf'{JSON}: image 107 has height 0, which is not a positive',
  ),
  'image id': (put('images', 0, id='7'), rf"{JSON}: image 7 has id '7', which is not an integer"),
  'image missing': (
    remove('val2017/000000000106.jpg'),
    rf'1 of 3 images of .*{JSON} are missing, such as .*val2017/000000000106\.jpg \(image 106\)',
  ),
  'image decoding': (
    truncate('val2017/000000000106.jpg', 150),
    r'val2017/000000000106\.jpg cannot be decoded',
  ),
  'other size': (
    write('val2017/000000000106.jpg', rgb(5, 6)),
    rf'0106\.jpg is 6x5 pixels but image 106 of .*{JSON} is 16x12',
  ),
  'annotation id': (
    drop('annotations', 1, 'id'),
    rf'{JSON}: annotation None has id None, which is not an integer',
  ),
  'annotation twice': (put('annotations', 1, id=11), rf'{JSON} has the annotation id 11 twice'),
  'unknown image': (
    put('annotations', 1, image_id=8),
    rf'{JSON}: annotation 12 has image_id 8, which is not one of its images',
  ),
  'unknown category': (
    put('annotations', 1, category_id=2),
    rf'{JSON}: annotation 12 has category_id 2, which is not one of its categories',
  ),
  'box': (put('annotations', 1, bbox=[1, 2, 3]), rf'{JSON}: annotation 12 has bbox \[1, 2, 3\]'),
  'box nan': (put('annotations', 1, bbox=[1, 2, 3, float('nan')]), 'annotation 12 has bbox'),
  'no box': (drop('annotations', 1, 'bbox'), 'annotation 12 has bbox None'),
  'area': (put('annotations', 1, area=-1), rf'{JSON}: annotation 12 has area -1'),
  'no area': (drop('annotations', 1, 'area'), 'annotation 12 has area None'),
  'crowd': (put('annotations', 1, iscrowd=2), rf'{JSON}: annotation 12 has iscrowd 2'),
  'no mask': (drop('annotations', 1, 'segmentation'), 'annotation 12 has neither polygons nor run'),
  'polygon': (
    put('annotations', 1, segmentation=[[1, 1, 5, 1, float('inf'), 5]]),
    'annotation 12 has a polygon that is not pairs of finite coordinates',
  ),
  'far polygon': (
    put('annotations', 1, segmentation=[[1, 1, 5, 1, 5, 3e9]]),
    'annotation 12 has a polygon that is not pairs',
  ),
  'odd polygon': (
    put('annotations', 1, segmentation=[[1, 1, 5, 1, 5, 5, 2]]),
    'annotation 12 has a polygon that is not pairs',
  ),
  'run lengths of another size': (
    put('annotations', 2, segmentation=uncompressed(192, (16, 12))),
    rf'{JSON}: annotation 10 has a mask of the size \[16, 12\], not \[12, 16\] as its image',
  ),
  'run lengths too short': (
    put('annotations', 2, segmentation=uncompressed(191)),
    rf'{JSON}: annotation 10 has run lengths of 191 pixels for 12x16',
  ),
}


@pytest.mark.parametrize('case', BREAKS)
def test_bad_raw_files(refuses, source, case):
  break_it, message = BREAKS[case]
  break_it(source)
  refuses(coco_instances.Builder, source, message)


def test_what_is_tolerated_is_reported_once(prepare, by_name, source):
  short = [1, 1, 4, 4]

  def damage(entries):
    template = entries['annotations'][0]
    entries['annotations'] += [
      *({**template, 'id': id, 'bbox': [1, 2, id % 2, -3.0]} for id in range(200, 207)),
      {**template, 'id': 209, 'segmentation': []},
      {**template, 'id': 210, 'segmentation': [short, short]},
      {**template, 'id': 211, 'segmentation': [short]},
      {**template, 'id': 220, 'segmentation': [short, square(2, 3, 4)]},
      {**template, 'id': 230, 'segmentation': [square(40, 3, 4)]},
    ]

  edit(source, damage)
  message = (
    rf'{JSON}: 7 annotations are left out, as their box has no area '
    r'\(200, 201, 202, 203, 204, …\); 2 annotations are left out, as they have no polygon of three '
    r'points or more \(210, 211\); 1 annotations are kept without .* fewer than three points '
    r'\(220\); 1 annotations are kept although their mask covers no pixel \(230\); '
    r'1 annotations are kept as boxes without a mask \(209\)$'
  )
  with pytest.warns(UserWarning, match=message) as caught:
    builder = prepare(coco_instances.Builder, source)
  assert len(caught) == 1
  objects = by_name(builder, 'val', decoders=SKIP)['000000000105.jpg']['objects']
  assert [int(id) for id in objects['id']] == [11, 12, 209, 220, 230]
  assert builder.info.metadata['objects_without_mask'] == 1
  found = [counts for counts in objects['segmentation'] if counts]
  masks = [coco.decode_mask(counts, (HEIGHT, WIDTH)) for counts in found]
  np.testing.assert_array_equal(masks[2], masks[0])
  assert masks[3].sum() == 0


def test_published_boxes_stay_as_they_are(prepare, by_name, source):
  box = [WIDTH - 2.0, 1.0, 5.0, 4.0]
  edit(source, lambda entries: entries['annotations'][0].update(bbox=box))
  objects = by_name(prepare(coco_instances.Builder, source), 'val', decoders=SKIP)
  assert objects['000000000105.jpg']['objects']['bbox'][0].tolist() == box


@pytest.mark.parametrize('name', ['', '-1', 'all'])
def test_custom_names_of_splits(prepare, tmp_path, name):
  write_source(tmp_path / 'raw', [name or 'val'])
  if not name:
    (tmp_path / 'raw' / 'annotations' / 'instances_val.json').unlink()
  message = 'cannot name a split' if name else r'raw does not hold annotations/instances_NAME\.json'
  with pytest.raises(SegjaxError, match=message):
    prepare(coco_instances.Builder, tmp_path / 'raw', config='custom')


def test_needs_no_tensorflow(needs_no_tensorflow, tmp_path):
  write_source(tmp_path / 'raw')
  for name in ('train2017', 'val2017'):  # TFDS decodes gray JPEGs to one channel
    for path in (tmp_path / 'raw' / name).iterdir():
      cv2.imwrite(str(path), np.zeros((HEIGHT, WIDTH, 3), np.uint8))
  needs_no_tensorflow(coco_instances.Builder, tmp_path / 'raw')


def test_real_data(prepare, by_name):
  source = real_data('coco_instances')
  builder = prepare(coco_instances.Builder, source)
  assert len(builder.info.features['objects']['label'].names) == 80
  for split, count in (('train', 705), ('val', 815)):
    path = source / 'annotations' / f'instances_{split}2017.json'
    examples = by_name(builder, split, decoders=SKIP)
    assert len(examples) == 80
    assert check_against_pycocotools(examples, path) == count
