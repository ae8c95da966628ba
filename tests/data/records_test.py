"""Prepared data: its order, several processes, interruptions, and what is told of it."""

import json
import os
from pathlib import Path

import numbers_builder
import pytest
import tensorflow_datasets as tfds
from numbers_builder import Builder, contents, prepare

from segjax.data import records
from segjax.types import SegjaxError


@pytest.fixture
def whole(tmp_path):
  """The data set, prepared by one process without interruption."""
  return prepare(Builder(data_dir=tmp_path / 'whole'))


def numbers(builder, split):
  return [int(example['number']) for example in builder.as_data_source(split)]


def test_order_is_that_of_tfds(tmp_path, whole):
  """So that indices, and with them the batches of a run, are those of earlier versions."""

  class Theirs(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    name = 'theirs'
    VERSION = tfds.core.Version('1.0.0')
    _info = Builder._info

    def _split_generators(self, dl_manager):
      return {'train': self._generate_examples(700), 'val': self._generate_examples(70)}

    def _generate_examples(self, count):
      for number, key in enumerate(numbers_builder.keys(count)):
        yield key, numbers_builder.example(number)

  theirs = Theirs(data_dir=tmp_path)
  theirs.download_and_prepare(
    file_format='array_record',
    download_config=tfds.download.DownloadConfig(try_download_gcs=False),
  )
  for split in ('train', 'val'):
    assert numbers(whole, split) == numbers(theirs, split)
    assert whole.info.splits[split].num_bytes == theirs.info.splits[split].num_bytes
  assert whole.info.splits['train'].shard_lengths == [117, 116, 117, 117, 116, 117]
  assert whole.info.splits['val'].shard_lengths == [70]


def test_notes_come_in_the_order_of_the_items(whole):
  assert whole.notes == {'train': [0, 100, 200, 300, 400, 500, 600], 'val': [0]}


def interrupted(monkeypatch, directory, shards, error=KeyboardInterrupt):
  """A preparation that ends with an error in the shard after the first `shards`."""
  call, written = records._Writer.__call__, []

  def stop(self, shard, items):
    if len(written) == shards:
      raise error('stop')
    written.append(shard.name)
    return call(self, shard, items)

  with monkeypatch.context() as patch:
    patch.setattr(records._Writer, '__call__', stop)
    with pytest.raises(error):
      prepare(Builder(data_dir=directory), directory=directory / 'shards')
  return written


def resumed(monkeypatch, directory, **preparation):
  """A preparation to its end, and the shards that it wrote."""
  call, written = records._Writer.__call__, []

  def listed(self, shard, items):
    written.append(shard.name)
    return call(self, shard, items)

  with monkeypatch.context() as patch:
    patch.setattr(records._Writer, '__call__', listed)
    builder = Builder(data_dir=directory)
    return prepare(builder, directory=directory / 'shards', **preparation), written


def test_interrupted_preparation_resumes(tmp_path, monkeypatch, whole):
  kept = interrupted(monkeypatch, tmp_path, 4)
  assert not list(tmp_path.glob('numbers/*')), 'nothing is half prepared'
  reports = []
  builder, written = resumed(monkeypatch, tmp_path, report=reports.append)
  assert len(kept) == 4 and len(written) == 3 and not set(kept) & set(written)
  assert reports == [
    f'whole files of an interrupted preparation, which are kept: 4 in {tmp_path / "shards"}'
  ]
  assert contents(builder) == contents(whole)
  assert builder.notes == whole.notes
  digests = [(b.data_path / records.DIGEST_FILE).read_text() for b in (builder, whole)]
  assert digests[0] == digests[1]
  assert os.listdir(tmp_path / 'shards') == ['plan.json']


def test_damaged_shards_of_an_interrupted_preparation_are_written_again(
  tmp_path, monkeypatch, whole
):
  short, undescribed, missing, _ = interrupted(monkeypatch, tmp_path, 4)
  shards = tmp_path / 'shards'
  (shards / short).write_bytes((shards / short).read_bytes()[:-1])
  (shards / f'{undescribed}.json').write_text('{')
  (shards / missing).unlink()
  builder, written = resumed(monkeypatch, tmp_path)
  assert len(written) == 6
  assert contents(builder) == contents(whole)
  assert os.listdir(shards) == ['plan.json']


def test_shards_of_other_raw_files_are_not_kept(tmp_path, monkeypatch):
  interrupted(monkeypatch, tmp_path, 4)
  _, written = resumed(monkeypatch, tmp_path, source=tmp_path, digest='other')
  assert len(written) == 7


@pytest.mark.parametrize(
  ('error', 'kept'), [(SegjaxError, False), (ValueError, False), (OSError, True)]
)
def test_errors_of_raw_files_leave_nothing(tmp_path, monkeypatch, error, kept):
  """A full disk or a lost connection does: what was written is as good as before."""
  interrupted(monkeypatch, tmp_path, 4, error)
  assert (tmp_path / 'shards').exists() == kept
  assert not list(tmp_path.glob('numbers/*'))


def test_prepared_data_says_what_it_was_prepared_from(tmp_path):
  builder = prepare(Builder(data_dir=tmp_path), source=tmp_path / 'raw', digest='abc', asked=[1])
  told = json.loads((builder.data_path / 'source.json').read_text())
  assert told == {'source': str(tmp_path / 'raw'), 'digest': 'abc', 'asked': [1]}


def test_digest_tells_examples_apart(tmp_path, monkeypatch, whole):
  def digest(builder):
    path = Path(builder.data_path)
    return records.read_digest(path, path.glob('*.array_record*'))

  assert digest(prepare(Builder(data_dir=tmp_path / 'again'))) == digest(whole)
  with monkeypatch.context() as patch:
    patch.setattr(numbers_builder, 'example', lambda n: {'number': n + (n == 5), 'text': ''})
    assert digest(prepare(Builder(data_dir=tmp_path / 'other'))) != digest(whole)
  known = digest(whole)
  (whole.data_path / records.DIGEST_FILE).unlink()
  assert digest(whole) == digest(whole) != known


@pytest.mark.parametrize(
  ('items', 'message'),
  [([], 'train has no example'), ([('a', 0), ('a', 1)], 'train has the example a twice')],
)
def test_splits_without_examples_or_with_one_twice(tmp_path, monkeypatch, items, message):
  split = records.Split(items, lambda number: {'number': number, 'text': ''})
  monkeypatch.setattr(Builder, '_split_generators', lambda self, manager: {'train': split})
  with pytest.raises(SegjaxError, match=message):
    prepare(Builder(data_dir=tmp_path))


@pytest.mark.slow
@pytest.mark.parametrize('name', ['all', 'train+val', 'set 1', 'val[0]'])
def test_names_of_splits_can_be_read_back(tmp_path, monkeypatch, name):
  split = records.Split([('a', 1)], numbers_builder.example)
  monkeypatch.setattr(Builder, '_split_generators', lambda self, dl_manager: {name: split})
  with pytest.raises(SegjaxError, match='must have another name, of letters'):
    prepare(Builder(data_dir=tmp_path))
  assert not list(tmp_path.rglob('*.array_record*'))


def test_workers_write_the_same_and_survive_their_death(tmp_path, whole):
  shards = tmp_path / 'shards'
  (tmp_path / 'stop').write_text('333')
  with pytest.raises(SegjaxError, match='a process that prepares data died.*lower --workers'):
    prepare(Builder(data_dir=tmp_path), workers=2, directory=shards)
  reports = []
  builder = prepare(Builder(data_dir=tmp_path), workers=2, directory=shards, report=reports.append)
  assert contents(builder) == contents(whole)
  assert builder.notes == whole.notes
