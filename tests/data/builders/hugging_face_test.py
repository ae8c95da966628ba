"""Hugging Face data sets on disk: layouts, columns, and each way in which files can be wrong."""

import json
import sys

import numpy as np
import pyarrow
import pytest
import synthetic_hf
from synthetic_labelme import SIZE, draw, encode

from segjax.data import datasets
from segjax.data.builders.hugging_face import builder as hugging_face
from segjax.data.builders.hugging_face import tables
from segjax.data.formats import coco
from segjax.types import SegjaxError

CLASSES = 'background', 'square', 'disk'
TRAIN, VAL = synthetic_hf.table(5), synthetic_hf.table(2, seed=1)


def options(**kwargs):
  return hugging_face.Options(**{'classes': CLASSES, **kwargs})


def find(source, annotations=('label',), **kwargs):
  return hugging_face.Builder.find(source, options(**kwargs), annotations)


def names(source, **kwargs):
  found = find(source, **kwargs)
  return {split: [item.name for item in items] for split, items in found.items()}


def write_saved(root):
  synthetic_hf.write_saved(root, {'train': TRAIN, 'validation': VAL})


def write_parquet(root):
  synthetic_hf.write_parquet(root / 'data' / 'train-00000-of-00002.parquet', TRAIN.slice(0, 4), 3)
  synthetic_hf.write_parquet(root / 'data' / 'train-00001-of-00002.parquet', TRAIN.slice(4))
  synthetic_hf.write_parquet(root / 'data' / 'validation-00000-of-00001.parquet', VAL)


def write_converted(root):
  synthetic_hf.write_parquet(root / 'default' / 'train' / '0000.parquet', TRAIN)
  synthetic_hf.write_parquet(root / 'default' / 'validation' / '0000.parquet', VAL)


def write_arrow_files(root):
  for name, rows in {'my_set-train': TRAIN, 'my_set-validation': VAL}.items():
    root.mkdir(exist_ok=True)
    with pyarrow.ipc.new_file(str(root / f'{name}.arrow'), rows.schema) as writer:
      writer.write_table(rows)


LAYOUTS = {
  'save_to_disk': write_saved,
  'parquet': write_parquet,
  'converted parquet': write_converted,
  'arrow files': write_arrow_files,
}


@pytest.mark.parametrize('layout', LAYOUTS)
def test_layouts(tmp_path, layout):
  LAYOUTS[layout](tmp_path / 'raw')
  found = find(tmp_path / 'raw')
  assert {split: [item.name for item in items] for split, items in found.items()} == {
    'train': [f'train/im{i:02}' for i in range(5)],
    'val': [f'validation/im{i:02}' for i in range(2)],
  }
  for split, seed in {'train': 0, 'val': 1}.items():
    rng = np.random.default_rng(seed)
    for item in found[split]:
      image, shapes = draw(rng)
      assert item.image.read_bytes() == encode(image, 'JPEG')
      content = item.read(SIZE)
      np.testing.assert_array_equal(content.label, synthetic_hf.masks(shapes)[0])
      assert content.objects is None


def test_one_split_is_divided_by_fractions(tmp_path):
  synthetic_hf.write_arrow(tmp_path / 'raw', TRAIN, shards=2)
  splits = names(tmp_path / 'raw')
  assert [len(splits[split]) for split in ('train', 'val')] == [4, 1]
  assert sorted(splits['train'] + splits['val']) == [f'im{i:02}' for i in range(5)]


def test_splits_by_name_list_and_fraction(tmp_path):
  source = tmp_path / 'raw'
  write_saved(source)
  assert names(source, splits={'train': 'validation', 'val': 'train'})['train'] == [
    'validation/im00',
    'validation/im01',
  ]
  (source / 'list.txt').write_text('train/im03\nvalidation/im00\n')
  listed = names(source, splits={'train': 'list.txt'})
  assert listed == {'train': ['train/im03', 'validation/im00']}
  parts = names(source, splits={'train': 0.6, 'val': 0.4})
  assert sorted(parts['train'] + parts['val']) == sorted(sum(names(source).values(), []))


def test_names(tmp_path):
  ids = pyarrow.array(['b', 'a/c', 'd.jpg'])
  rows = synthetic_hf.table(3, paths=False, id=ids, twice=pyarrow.array(['a', 'a', 'b']))
  synthetic_hf.write_arrow(tmp_path / 'raw', rows)
  one = {'splits': {'train': 1.0}}
  assert names(tmp_path / 'raw', **one)['train'] == [f'{i:06}' for i in range(3)]
  assert names(tmp_path / 'raw', names='id', **one)['train'] == ['b', 'c', 'd']
  with pytest.raises(SegjaxError, match=r'files\.names=twice: a name of .* comes twice'):
    names(tmp_path / 'raw', names='twice', **one)


def test_columns_of_numbers_and_of_paths(tmp_path):
  source = tmp_path / 'raw'
  label = synthetic_hf.masks(draw(np.random.default_rng(0))[1])[0]
  rows = {
    'image': pyarrow.array([{'bytes': None, 'path': 'im/a.png'}], synthetic_hf.IMAGE),
    'label': pyarrow.array([label.tolist()]),
  }
  synthetic_hf.write_arrow(source, pyarrow.table(rows))
  (source / 'im').mkdir()
  (source / 'im' / 'a.png').write_bytes(encode(label))
  (item,) = find(source, splits={'train': 1.0})['train']
  assert item.name == 'a' and item.image.read_bytes() == encode(label)
  np.testing.assert_array_equal(item.read(SIZE).label, label)


def load(tmp_path, annotations, **kwargs):
  kwargs = {'classes': CLASSES, **kwargs}
  return datasets.load(
    'hugging_face', tmp_path / 'prepared', tmp_path / 'raw', files=kwargs, annotations=annotations
  )


def test_prepares_each_task(tmp_path, by_name):
  write_parquet(tmp_path / 'raw')
  label, _ = synthetic_hf.masks(draw(np.random.default_rng(0))[1])
  builder = load(tmp_path, ('label',))
  assert {k: v.num_examples for k, v in builder.info.splits.items()} == {'train': 5, 'val': 2}
  example = by_name(builder, 'train')['train/im00']
  np.testing.assert_array_equal(example['label'][..., 0], label)

  builder = load(tmp_path, ('objects',), instances='instances')
  example = by_name(builder, 'train')['train/im00']
  assert example['objects']['label'] == [1, 2]
  mask = coco.decode_mask(example['objects']['segmentation'][1], SIZE)
  np.testing.assert_array_equal(mask, label == 2)

  panoptic = ('label', 'objects', 'segments')
  builder = load(tmp_path, panoptic, instances='instances', stuff=('background',))
  assert by_name(builder, 'val')['validation/im00']['segments']['label'] == [0, 1, 2]


def test_values_have_the_keys_of_masks_in_a_folder(tmp_path):
  write_saved(tmp_path / 'raw')
  item = find(tmp_path / 'raw', classes=('square', 'disk'), first=1, void=(0,))['train'][0]
  label, _ = synthetic_hf.masks(draw(np.random.default_rng(0))[1])
  expected = np.where(label == 0, 65_535, label.astype(int) - 1)
  np.testing.assert_array_equal(item.read(SIZE).label, expected)
  item = find(tmp_path / 'raw', classes=('background', 'square'))['train'][0]
  message = r'train/data.*\.arrow: row 0, column label, has the value 2 in \d+ pixels, of no class'
  with pytest.raises(SegjaxError, match=message):
    item.read(SIZE)
  item = find(tmp_path / 'raw')['train'][0]
  with pytest.raises(
    SegjaxError, match='row 0, column label, is 64x48 pixels but its image is 9x9'
  ):
    item.read((9, 9))


def replaced(column, value):
  """Writes a split whose second row has another value."""

  def write(root):
    cells = TRAIN.column(column).to_pylist()
    cells[1] = value
    rows = TRAIN.set_column(
      TRAIN.schema.get_field_index(column), column, pyarrow.array(cells, synthetic_hf.IMAGE)
    )
    synthetic_hf.write_saved(root, {'train': rows, 'validation': VAL})

  return write


def edit(name, content):
  """Writes a data set and replaces a file of it."""

  def write(root):
    write_saved(root)
    (root / name).write_bytes(content)

  return write


STATE = 'train/state.json'
DATA = 'train/data-00000-of-00001.arrow'
BREAKS = {
  'null': (replaced('image', None), 'row 1, column image, has no image'),
  'empty image': (replaced('image', {'bytes': b'', 'path': None}), 'row 1, column image, has no'),
  'no image': (
    replaced('image', {'bytes': b'GIF?', 'path': 'a.gif'}),
    'row 1, column image, cannot be decoded',
  ),
  'no mask': (replaced('label', None), 'row 1, column label, has no image'),
  'path': (
    replaced('image', {'bytes': None, 'path': '../../secret.png'}),
    r"data-00000.* names '\.\./\.\./secret\.png', which is not below",
  ),
  'absolute path': (replaced('image', {'bytes': None, 'path': '/etc/a.png'}), 'is not below'),
  'missing path': (replaced('image', {'bytes': None, 'path': 'a.png'}), r'a\.png is missing'),
  'truncated': (edit(DATA, b'\xff\xff\xff\xff\x10'), r'\.arrow cannot be read by pyarrow'),
  'empty file': (edit(DATA, b''), r'\.arrow cannot be read by pyarrow'),
  'state': (edit(STATE, b'{'), r'train/state\.json is not valid JSON'),
  'no files': (edit(STATE, b'{"_data_files": []}'), r'state\.json names no data files'),
  'selection': (
    edit(STATE, b'{"_indices_data_files": [{"filename": "a"}]}'),
    r'flatten_indices\(\)',
  ),
  'file elsewhere': (
    edit(STATE, json.dumps({'_data_files': [{'filename': '../../a.arrow'}]}).encode()),
    r"state\.json names '\.\./\.\./a\.arrow', which is not below",
  ),
  'split elsewhere': (
    edit('dataset_dict.json', b'{"splits": ["../train"]}'),
    r"dataset_dict\.json names '\.\./train', which is not below",
  ),
  'no splits': (edit('dataset_dict.json', b'{}'), r'dataset_dict\.json names no splits'),
  'split missing': (edit('dataset_dict.json', b'{"splits": ["a"]}'), r'a/state\.json is missing'),
}


@pytest.mark.parametrize('case', BREAKS)
def test_wrong_files(tmp_path, case):
  break_it, message = BREAKS[case]
  break_it(tmp_path / 'raw')
  with pytest.raises(SegjaxError, match=message):
    load(tmp_path, ('label',))
  assert not list((tmp_path / 'prepared').rglob('*.array_record*'))


def test_truncated_parquet(tmp_path):
  write_parquet(tmp_path)
  path = tmp_path / 'data' / 'validation-00000-of-00001.parquet'
  path.write_bytes(path.read_bytes()[:-20])
  with pytest.raises(SegjaxError, match=r'validation-00000-of-00001\.parquet cannot be read'):
    find(tmp_path)


def test_wrong_columns(tmp_path):
  write_saved(tmp_path / 'raw')
  message = r'files\.labels=mask: .* has no such column, but image, label, instances'
  with pytest.raises(SegjaxError, match=message):
    find(tmp_path / 'raw', labels='mask')
  with pytest.raises(SegjaxError, match='must name a column of masks'):
    options(labels=None)
  synthetic_hf.write_parquet(tmp_path / 'p' / 'train-0.parquet', TRAIN)
  synthetic_hf.write_parquet(tmp_path / 'p' / 'train-1.parquet', TRAIN.select(['image']))
  with pytest.raises(SegjaxError, match=r'train-1\.parquet has the columns image but .*train-0'):
    find(tmp_path / 'p')


def test_no_objects(tmp_path):
  write_saved(tmp_path / 'raw')
  with pytest.raises(SegjaxError, match=r'files\.instances is missing'):
    find(tmp_path / 'raw', ('objects',))


def test_without_pyarrow(tmp_path, monkeypatch):
  monkeypatch.setitem(sys.modules, 'pyarrow', None)
  with pytest.raises(SegjaxError, match=r"pip install 'segjax\[hf\]'"):
    tables.arrow()


def test_a_row_group_is_read_once(tmp_path, monkeypatch):
  synthetic_hf.write_parquet(tmp_path / 'train.parquet', synthetic_hf.table(6), group=3)
  items = find(tmp_path, splits={'train': 1.0})['train']
  count, load_part = 0, tables._load

  def counted(*args):
    nonlocal count
    count += 1
    return load_part(*args)

  monkeypatch.setattr(tables, '_load', counted)
  for item in items:
    item.image.read_bytes()
    item.read(SIZE)
  assert count == 2
