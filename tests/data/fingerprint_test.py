"""What prepared data was prepared from, and that a change is noticed."""

import json
import os

import cv2
import numpy as np
import pytest
from PIL import Image

from segjax.data import datasets, fingerprint
from segjax.types import SegjaxError


def test_fingerprint_sees_names_sizes_and_times_and_nothing_else(tmp_path):
  root = tmp_path / 'a'
  (root / 'b').mkdir(parents=True)
  (root / 'b' / 'x').write_text('1')
  os.utime(root / 'b' / 'x', (1, 1))
  first = fingerprint.fingerprint([root])
  (root / '.DS_Store').write_text('hidden')
  assert fingerprint.fingerprint([root]) == first
  root.rename(tmp_path / 'moved')
  root = tmp_path / 'moved'
  assert fingerprint.fingerprint([root]) == first

  os.utime(root / 'b' / 'x', (2, 2))
  later = fingerprint.fingerprint([root])
  (root / 'b' / 'x').write_text('12')
  os.utime(root / 'b' / 'x', (2, 2))
  longer = fingerprint.fingerprint([root])
  (root / 'b' / 'x').rename(root / 'b' / 'y')
  renamed = fingerprint.fingerprint([root])
  (root / 'b' / 'z').touch()
  assert len({first, later, longer, renamed, fingerprint.fingerprint([root])}) == 5
  assert fingerprint.fingerprint([root / 'none']) == fingerprint.fingerprint([])


def test_prepared_data_among_the_raw_files_does_not_count(tmp_path):
  for root in (tmp_path / 'image', tmp_path / 'label'):
    root.mkdir()
    for i in range(30):
      cv2.imwrite(str(root / f'{i}.png'), np.zeros((8, 8), np.uint8))
  reports = []
  for _ in range(2):
    datasets.load('isbi2012', tmp_path / 'prepared', tmp_path, reports.append)
  assert len(reports) == 1


def coco(root, images):
  """A directory in COCO's format of so many images with an object each."""
  (root / 'train').mkdir(parents=True, exist_ok=True)
  (root / 'annotations').mkdir(exist_ok=True)
  for i in range(1, images + 1):
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(root / 'train' / f'{i}.png')
  box = {'category_id': 1, 'bbox': [1, 1, 3, 3], 'area': 9, 'iscrowd': 0}
  polygon = {'segmentation': [[1, 1, 4, 1, 4, 4, 1, 4]]}
  numbers = range(1, images + 1)
  content = {
    'images': [{'id': i, 'file_name': f'{i}.png', 'width': 8, 'height': 8} for i in numbers],
    'annotations': [{'id': i, 'image_id': i, **box, **polygon} for i in numbers],
    'categories': [{'id': 1, 'name': 'box'}],
  }
  (root / 'annotations' / 'instances_train.json').write_text(json.dumps(content))


def count(source, tmp_path, reports):
  builder = datasets.load('coco_instances/custom', tmp_path / 'data', source, reports.append)
  return builder.info.splits['train'].num_examples


def test_data_sets_of_one_s_own_do_not_share_and_changed_files_are_prepared_again(tmp_path):
  reports = []
  for name, images in (('a', 2), ('b', 3)):
    coco(tmp_path / name, images)
    assert count(tmp_path / name, tmp_path, reports) == images
  assert count(tmp_path / 'a', tmp_path, reports) == 2
  assert len(reports) == 2, reports
  coco(tmp_path / 'a', 4)
  assert count(tmp_path / 'a', tmp_path, reports) == 4
  assert 'was prepared from other files' in reports[2] and 'preparing' in reports[3]
  prepared = list((tmp_path / 'data' / 'coco_instances').glob('custom*'))
  assert len(prepared) == 2
  left = [{file.name for file in path.iterdir()} for path in prepared]
  assert left == [{'1.0.0', '.1.0.0.lock'}] * 2, 'nothing is left aside'


def test_a_failed_second_preparation_leaves_the_first(tmp_path):
  reports = []
  coco(tmp_path / 'a', 2)
  assert count(tmp_path / 'a', tmp_path, reports) == 2
  file = tmp_path / 'a' / 'annotations' / 'instances_train.json'
  file.write_text(file.read_text()[:-5])
  with pytest.raises(SegjaxError, match='truncated'):
    count(tmp_path / 'a', tmp_path, reports)
  assert count(None, tmp_path, reports) == 2, 'without a source what is there is taken'


def test_without_a_source_prepared_data_is_as_it_is_asked_for(tmp_path):
  coco(tmp_path / 'a', 2)

  def load(source, name, task='objects'):
    files = {'classes': (name,)}
    where = 'coco_instances/custom', tmp_path / 'data', source
    return datasets.load(*where, files=files, annotations=(task,)).data_path

  prepared = load(tmp_path / 'a', 'box')
  assert load(None, 'box') == prepared
  message = r"was prepared with another config\.data\.files\.classes, \['box'\]: name the raw files"
  with pytest.raises(SegjaxError, match=message):
    load(None, 'cat')
  with pytest.raises(SegjaxError, match='was prepared for another task: name the raw files'):
    load(None, 'box', 'label')
  semantic = load(tmp_path / 'a', 'box', 'label')
  assert [load(None, 'box', task) for task in ('objects', 'label')] == [prepared, semantic]
  # Of what older versions prepared nothing more is known.
  note = semantic / fingerprint.FILE
  note.write_text(json.dumps({**json.loads(note.read_text()), 'asked': None}))
  assert load(None, 'cat') == semantic


def test_published_data_of_another_source_is_prepared_again(tmp_path):
  for source, value in (('a', 0), ('b', 255)):
    for directory in ('image', 'label'):
      (tmp_path / source / directory).mkdir(parents=True)
      for i in range(30):
        pixels = np.full((8, 8), value, np.uint8)
        Image.fromarray(pixels).save(tmp_path / source / directory / f'{i}.png')
  reports = []
  for source, value in (('a', 0), ('b', 255)):
    builder = datasets.load('isbi2012', tmp_path / 'data', tmp_path / source, reports.append)
    assert builder.as_data_source('val')[0]['image'].max() == value
  (builder.data_path / fingerprint.FILE).unlink()
  datasets.load('isbi2012', tmp_path / 'data', tmp_path / 'a', reports.append)
  assert 'does not say what it was prepared from' in reports[-1]
