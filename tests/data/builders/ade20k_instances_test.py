"""ADE20K instances: Mask2Former's files, and what is wrong in them."""

import json

import numpy as np
import pytest
import synthetic_ade20k as ade
from raw_files import remove

from segjax.data.builders import ade20k_files
from segjax.data.builders.ade20k_instances import builder as ade20k_instances
from segjax.data.formats import coco


@pytest.fixture
def source(tmp_path):
  ade.write(tmp_path / 'raw')
  return tmp_path / 'raw'


def test_objects(prepare, by_name, source):
  builder = prepare(ade20k_instances.Builder, source)
  names = [c.name for c in ade20k_files.THINGS]
  assert builder.info.features['objects']['label'].names == names
  assert builder.info.metadata['palette'][names.index('person')] == [150, 5, 61]
  assert sorted(builder.info.splits) == ['train', 'val']
  [example] = by_name(builder, 'val').values()
  assert example['image_id'] == 12 and example['file_name'] == b'ADE_val_00000012.jpg'
  objects = example['objects']
  assert objects['category_id'] == [category for _, category, _ in ade.OBJECTS]
  assert [names[label] for label in objects['label']] == ['bed', 'person', 'bed']
  for counts, area, (_, _, place) in zip(
    objects['segmentation'], objects['area'], ade.OBJECTS, strict=True
  ):
    mask = np.zeros((ade.HEIGHT, ade.WIDTH), np.uint8)
    mask[place] = 1
    np.testing.assert_array_equal(coco.decode_mask(counts, mask.shape), mask)
    assert area == mask.sum()


def drop_category(source):
  path = source / 'ade20k_instance_val.json'
  content = json.loads(path.read_text())
  content['categories'].pop()
  path.write_text(json.dumps(content))


BREAKS = {
  'file': (remove('ade20k_instance_val.json'), r'ade20k_instance_val\.json is missing: add it, or'),
  'classes': (
    drop_category,
    r'ade20k_instance_val\.json has other categories than the 100 of ADE20K: .*_ins_seg\.py',
  ),
}


@pytest.mark.parametrize('case', BREAKS)
def test_bad_raw_files(refuses, source, case):
  break_it, message = BREAKS[case]
  break_it(source)
  refuses(ade20k_instances.Builder, source, message)


def test_needs_no_tensorflow(needs_no_tensorflow, source):
  needs_no_tensorflow(ade20k_instances.Builder, source)
