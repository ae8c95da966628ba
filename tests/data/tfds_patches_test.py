"""What segjax changes of tensorflow-datasets."""

import sys

from tensorflow_datasets.core import shuffle

from segjax.data import tfds_patches


def shuffled(directory, records):
  shuffler = shuffle.Shuffler(directory, 'salt')
  for key, record in enumerate(records):
    shuffler.add(key, record)
  return [record for _, record in shuffler]


def test_a_split_that_memory_does_not_hold_is_shuffled_without_tensorflow(tmp_path, monkeypatch):
  records = [bytes([number]) * (number % 7) for number in range(200)]
  in_memory = shuffled(tmp_path, records)
  monkeypatch.setattr(shuffle, 'MAX_MEM_BUFFER_SIZE', 300)
  monkeypatch.setitem(sys.modules, 'tensorflow', None)  # its import fails
  with tfds_patches.quiet():
    assert shuffled(tmp_path, records) == in_memory
  assert sorted(in_memory) == sorted(records) and in_memory != records
  assert not list(tmp_path.iterdir())
