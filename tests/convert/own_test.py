"""The weights file of a run: what is read is what was written, or an error says why not."""

import numpy as np
import pytest
import safetensors.numpy

from segjax.convert import load, own
from segjax.types import SegjaxError

ARRAYS = {
  'params/conv/kernel': np.arange(6, dtype=np.float32).reshape(2, 3).T,  # not in C order
  'params/conv/bias': np.zeros(0, np.float32),
  'batch_stats/bn/mean': np.array(2.0, np.float32),
  'masked/share': np.ones(3, np.float32),
}


@pytest.fixture
def path(tmp_path):
  own.write(tmp_path / 'model.safetensors', ARRAYS, {'step': '7'})
  return tmp_path / 'model.safetensors'


def test_what_was_written_is_read(path):
  arrays, notes = own.read(path)
  assert notes['step'] == '7' and arrays.keys() == ARRAYS.keys()
  for name, array in ARRAYS.items():
    assert arrays[name].dtype == array.dtype and np.array_equal(arrays[name], array)


def test_others_start_from_it_but_for_the_schedule_of_masks(path):
  pretrained = load.read_pretrained(path)
  assert pretrained.where == str(path)
  assert pretrained.arrays.keys() == ARRAYS.keys() - {'masked/share'}
  # Also where a config names the source of its own weights.
  again = load.read_pretrained(path, 'torchvision/vgg16')
  assert again.arrays.keys() == pretrained.arrays.keys()


def test_a_flipped_byte_is_found(path):
  content = bytearray(path.read_bytes())
  content[-3] ^= 1
  path.write_bytes(content)
  for read in (own.read, load.read_pretrained):
    with pytest.raises(SegjaxError, match=r'model.safetensors is corrupt \(SHA-256 differs\)'):
      read(path)


def test_a_truncated_file_is_found(path):
  path.write_bytes(path.read_bytes()[:-3])
  with pytest.raises(SegjaxError, match='is truncated or corrupt'):
    own.read(path)


def test_a_file_of_others_is_refused(path):
  path.write_bytes(safetensors.numpy.save(ARRAYS))
  with pytest.raises(SegjaxError, match='was not written by segjax export .*: to start from it'):
    own.read(path)


def test_its_metadata_names_segjax(path):
  with safetensors.safe_open(path, framework='numpy') as file:
    notes = file.metadata()
  assert notes['segjax_source'] == own.SOURCE and len(notes['sha256']) == 64
