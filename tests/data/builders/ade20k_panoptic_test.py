"""ADE20K panoptic: Mask2Former's files, with their oddities, and what is wrong in them."""

import json

import numpy as np
import pytest
import synthetic_ade20k as ade
from raw_files import remove

from segjax.data import datasets, pipeline
from segjax.data.builders import ade20k_files
from segjax.data.builders.ade20k import builder as ade20k
from segjax.data.builders.ade20k_panoptic import builder as ade20k_panoptic
from segjax.data.config import BatchConfig, DataConfig, InputConfig
from segjax.data.formats import panoptic
from segjax.types import IGNORE_LABEL


@pytest.fixture
def source(tmp_path):
  ade.write(tmp_path / 'raw')
  return tmp_path / 'raw'


def test_segments(prepare, by_name, source):
  builder = prepare(ade20k_panoptic.Builder, source)
  ids, listed = ade.segment_ids()
  floor = 100_000 + ade.FLOOR
  assert floor in [entry['id'] for entry in listed] and not (ids == floor).any()
  numbers = {'ADE_train_00000007': 7, 'ADE_train_00000002': 2, 'ADE_val_00000012': 12}
  for split, stems in ade.STEMS.items():
    examples = by_name(builder, split)
    assert sorted(examples) == sorted(f'{stem}.jpg' for stem in stems)
    for stem in stems:
      example = examples[f'{stem}.jpg']
      assert example['image_id'] == numbers[stem]
      np.testing.assert_array_equal(panoptic.rgb_to_ids(example['panoptic']), ids)
      segments = example['segments']
      kept = [entry for entry in listed if entry['id'] != floor]
      assert segments['id'] == [entry['id'] for entry in kept]
      assert segments['label'] == segments['category_id'] == [e['category_id'] for e in kept]
      assert segments['area'] == [int((ids == entry['id']).sum()) for entry in kept]
      # The file's numbers of the wall and the sky are of before things were drawn over them.
      assert segments['area'][0] < kept[0]['area']
      assert segments['bbox'][1].tolist() == [3, 1, 3, 2] and not any(segments['iscrowd'])
      assert panoptic.read_example(example, stem).classes.tolist() == segments['label']


def test_classes(prepare, source, tmp_path):
  metadata = prepare(ade20k_panoptic.Builder, source).info.metadata
  semantic = ade20k.Builder(data_dir=tmp_path).info
  assert metadata['class_names'] == semantic.features['label'].names
  assert metadata['palette'] == semantic.metadata['palette']
  assert metadata['category_ids'] == list(range(150)) and sum(metadata['isthing']) == 100


def test_classes_are_known_before_the_files(tmp_path):
  config = InputConfig(
    DataConfig('ade20k_panoptic', dir=str(tmp_path)), annotations=('label', 'objects', 'segments')
  )
  spec = datasets.describe(config)
  assert (spec.num_classes, len(spec.things), spec.class_names[12]) == (150, 100, 'person')


def test_tasks_read_it(prepare, source):
  builder = prepare(ade20k_panoptic.Builder, source)
  data, batch = DataConfig('ade20k_panoptic'), BatchConfig(eval_size=1)
  both = InputConfig(data, batch=batch, annotations=('label', 'objects', 'segments'))
  assert len(datasets.spec(builder, both).things) == 100
  config = InputConfig(data, batch=batch)
  spec = datasets.spec(builder, config)
  [(found, _)] = pipeline.eval_batches(builder, spec, config)
  label = found['label'][0]
  assert label[5, 1] == ade.BED - 1 and label[1, 4] == ade.SKY - 1
  assert label[0, 0] == IGNORE_LABEL and label[0, 11] == ade.BED - 1


def test_a_split_without_annotations_is_left_out(prepare, source):
  (source / 'ade20k_panoptic_train.json').unlink()
  builder = prepare(ade20k_panoptic.Builder, source)
  assert sorted(builder.info.splits) == ['val']
  assert 'ade20k_panoptic_train.json' in builder.info.metadata['optional_splits']['train']


def test_changed_files_are_noticed(source):
  def sizes():
    return datasets.fingerprint.fingerprint(ade20k_panoptic.Builder.watched(source, None))

  before = sizes()
  (source / 'notes.txt').write_text('of no meaning')
  assert sizes() == before
  (source / 'ade20k_panoptic_val' / 'ADE_val_00000012.png').write_bytes(b'changed')
  assert sizes() != before


def edit(change):
  """A break: applies `change` to the content of val's file."""

  def break_it(source):
    path = source / 'ade20k_panoptic_val.json'
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))

  return break_it


def put(position, **values):
  return edit(lambda c: c['annotations'][0]['segments_info'][position].update(values))


JSON = r'ade20k_panoptic_val\.json'
BREAKS = {
  'classes': (
    edit(lambda c: c['categories'].pop()),
    rf"{JSON} has other categories than the 150 of ADE20K: write it with Mask2Former's prepare",
  ),
  'things': (
    edit(lambda c: c['categories'][0].update(isthing=1)),
    rf'{JSON} has other categories than the 150 of ADE20K',
  ),
  'area of a thing': (
    put(3, area=5),
    rf'ADE_val_00000012\.png has 12 .* 200001 but .*{JSON} says 5',
  ),
  'thing without a pixel': (
    put(4, id=4),
    r'ADE_val_00000012\.png has pixels of segment 200002, which is not in its list',
  ),
  'image': (
    remove('images/validation/ADE_val_00000012.jpg'),
    rf'1 of 1 images of .*{JSON} are missing, such as .*images/validation/ADE_val_00000012\.jpg',
  ),
  'PNG': (
    remove('ade20k_panoptic_val/ADE_val_00000012.png'),
    rf'1 of 1 PNGs of .*{JSON} are missing, such as .*ade20k_panoptic_val/ADE_val_00000012\.png',
  ),
  'id': (
    edit(lambda c: c['images'][0].update(id='12.jpg')),
    rf"{JSON}: image 12\.jpg has id '12\.jpg', which is not an integer",
  ),
}


@pytest.mark.parametrize('case', BREAKS)
def test_bad_raw_files(refuses, source, case):
  break_it, message = BREAKS[case]
  break_it(source)
  refuses(ade20k_panoptic.Builder, source, message)


def test_upstreams_archive_alone(refuses, source):
  for split in ade20k_files.DIRECTORIES:
    (source / f'ade20k_panoptic_{split}.json').unlink()
  message = r'raw does not hold ade20k_panoptic_\{train,val\}\.json.* set config\.data\.source'
  refuses(ade20k_panoptic.Builder, source, message)


def test_needs_no_tensorflow(needs_no_tensorflow, source):
  needs_no_tensorflow(ade20k_panoptic.Builder, source)
