"""A flipped byte in a record is named, and stops or is left out."""

import errno
import json
import os
import pickle
from pathlib import Path

import numpy as np
import pytest
import tensorflow_datasets as tfds
from inputs import changed, input_config

from segjax.data import corrupt, datasets, pipeline, read
from segjax.types import SegjaxError

COUNT = 6
STOP = input_config(batch_size=2)
SKIP = changed(STOP, bad_examples='skip')


@pytest.fixture
def noise(png):
  """The PNGs of images of noise, which are in the files of records as they are."""
  rng = np.random.default_rng(0)
  return [png(rng.integers(0, 256, (24, 24, 3), dtype=np.uint8)) for _ in range(COUNT)]


@pytest.fixture
def builder(tmp_path, write_dataset, png, noise):
  features = {
    'file_name': tfds.features.Text(),
    'image': tfds.features.Image(shape=(None, None, 3)),
    'label': tfds.features.LabeledImage(labels=2, shape=(None, None, 1)),
  }
  label = png(np.eye(24, dtype=np.uint8))
  examples = [
    {'file_name': f'e{i}', 'image': image, 'label': label} for i, image in enumerate(noise)
  ]
  return write_dataset(tmp_path, features, {'train': examples, 'val': examples[:3]})


def flip(builder, image, split='train'):
  """Flips a byte of a record, and keeps the file's times, as a failing disk does."""
  [path] = Path(builder.data_path).glob(f'*-{split}.array_record*')
  status, content = path.stat(), bytearray(path.read_bytes())
  middle = len(image) // 2
  assert content.count(image[middle : middle + 16]) == 1
  content[content.index(image[middle : middle + 16]) - 1] ^= 0x10
  path.write_bytes(content)
  os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
  return path


def reader(builder, config, split='train'):
  return read.Reader(builder, split, config, datasets.spec(builder, config))


def names(examples):
  return [examples[index].name for index in range(len(examples))]


def test_a_corrupt_record_is_named(builder, noise):
  order = names(reader(builder, STOP))
  path = flip(builder, noise[4])
  number, examples = order.index('e4'), reader(builder, STOP)
  with pytest.raises(SegjaxError) as e:
    examples[number]
  assert str(e.value) == (
    f'{path}: record {number} (example {number} of the split train of tiny) is corrupt: delete '
    f'{builder.data_path} and prepare the data set again, or set config.data.bad_examples=skip'
  )
  assert examples[number - 1].name == order[number - 1]
  part = reader(builder, STOP, f'train[{number}:]')
  with pytest.raises(SegjaxError, match=rf'record {number} \(example 0 of the split train\['):
    part[0]


@pytest.mark.parametrize('workers', [0, 1])
def test_training_and_evaluation_stop_with_the_sentence(builder, noise, workers):
  for split in ('train', 'val'):
    flip(builder, noise[1], split)
  spec, config = datasets.spec(builder, STOP), changed(STOP, workers=workers)
  with pytest.raises(SegjaxError, match='of the split train of tiny.* is corrupt'):
    for _ in zip(range(COUNT), pipeline.train_batches(builder, spec, config, seed=0), strict=False):
      pass
  with pytest.raises(SegjaxError, match='of the split val of tiny.* is corrupt'):
    list(pipeline.eval_batches(builder, spec, STOP))


def test_corrupt_records_are_left_out_and_counted(builder, noise):
  order = names(reader(builder, STOP))
  flip(builder, noise[4])
  examples = reader(builder, SKIP)
  assert names(examples) == [name for name in order if name != 'e4']
  assert examples.left_out == [
    f'1 of the 6 examples of train in {builder.data_path} are left out, as their records are '
    f'corrupt (examples {order.index("e4")}; config.data.bad_examples=skip)'
  ]
  assert len(examples.sizes) == len(examples) == 5
  again = pickle.loads(pickle.dumps(examples))
  assert names(again) == names(examples)


def test_training_leaves_out_the_same_whenever_it_starts(builder, noise):
  flip(builder, noise[4])
  flip(builder, noise[0], 'val')
  spec, reports = datasets.spec(builder, SKIP), []

  def batches(start):
    found = pipeline.train_batches(
      builder, spec, SKIP, seed=0, start_step=start, report=reports.append
    )
    return [names for _, (_, names) in zip(range(5 - start), found, strict=False)]

  whole = batches(0)
  assert batches(3) == whole[3:]
  assert sorted(sum(whole, [])) == sorted(2 * [f'e{i}' for i in range(COUNT) if i != 4])
  assert len(reports) == 2 and '1 of the 6 examples of train' in reports[0]
  evaluated = [n for _, names in pipeline.eval_batches(builder, spec, SKIP) for n in names]
  assert sorted(evaluated) == ['e1', 'e2']
  pipeline.check_objects(builder, spec, SKIP, 'val', reports.append)
  assert '1 of the 3 examples of val' in reports[-1]


def test_what_was_found_is_kept_until_the_files_change(builder, noise, monkeypatch):
  path = flip(builder, noise[4])
  assert len(reader(builder, SKIP)) == 5
  known = json.loads((builder.data_path / 'corrupt-train.json').read_text())
  assert len(known['corrupt']) == 1
  with monkeypatch.context() as patch:
    patch.setattr(corrupt, '_look', lambda split: pytest.fail('looked again'))
    patch.setattr(corrupt, '_found', {})
    assert len(reader(builder, SKIP)) == 5
  flip(builder, noise[4])  # back
  os.utime(path)
  assert len(reader(builder, SKIP)) == 6


def test_a_record_that_becomes_corrupt_stops_and_is_left_out_by_the_next_start(builder, noise):
  examples = reader(builder, SKIP)
  number = names(examples).index('e2')
  flip(builder, noise[2])
  with pytest.raises(SegjaxError, match='is corrupt: run the same command again, which leaves it'):
    reader(builder, SKIP)[number]
  assert 'e2' not in names(reader(builder, SKIP))


def read_only(path, text):
  raise OSError(errno.EROFS, 'Read-only file system', str(path))


def test_where_nothing_can_be_written_the_pass_is_made_once(builder, noise, monkeypatch):
  flip(builder, noise[4])
  passes, look = [], corrupt._look
  monkeypatch.setattr(corrupt, '_look', lambda split: passes.append(split.name) or look(split))
  monkeypatch.setattr(Path, 'write_text', read_only)
  assert len(reader(builder, SKIP)) == len(reader(builder, SKIP)) == 5
  assert passes == ['train']


def test_a_split_without_a_whole_record(builder, noise):
  for image in noise[:3]:
    flip(builder, image, 'val')
  with pytest.raises(SegjaxError, match='all 3 records of the split val .* are corrupt: delete'):
    reader(builder, SKIP, 'val')


def test_a_missing_file_is_named(builder):
  [path] = Path(builder.data_path).glob('*-train.array_record*')
  path.unlink()
  with pytest.raises(SegjaxError, match=rf'{path}: record 0 .* is missing, as is the file'):
    reader(builder, STOP)[0]
