"""Writes prepared data: by several processes, shard by shard, in bounded memory, resumably.

The place of an example in its split is the hash of its key, as TFDS has it, and depends on nothing
else. So which examples a shard has is known before one of them is made. One process makes them one
by one and writes them to a file, which is renamed when it is whole. A process that is killed leaves
its whole shards in a directory beside the data set's, and the next one that prepares the same data
takes them from there. The files do not depend on the number of processes, nor on interruptions.
"""

import concurrent.futures
import contextlib
import dataclasses
import hashlib
import itertools
import json
import math
import multiprocessing
import os
import pickle
import re
import shutil
import signal
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any, NamedTuple

import tensorflow_datasets as tfds
from array_record.python import array_record_module
from tensorflow_datasets.core import dataset_builder, example_serializer, hashing
from tensorflow_datasets.core.splits import SplitInfo
from tensorflow_datasets.core.utils import shard_utils, tqdm

import segjax
from segjax import storage
from segjax.data import fingerprint, images, tfds_patches
from segjax.types import SegjaxError

# About so many shards a split, of at least and at most so many examples.
_SHARDS, _FEWEST, _MOST = 64, 128, 1024
# Fewer examples are made sooner than other processes have started.
_FEWEST_FOR_WORKERS = 512
# Shards that each worker is given ahead.
_AHEAD = 2
# Random access reads records one by one.
_OPTIONS = 'group_size:1'
_PLAN = 'plan.json'
# How files end that are not whole.
HALF = '.tmp'
# In the directory of a prepared data set: the digest of all its records.
DIGEST_FILE = 'records.json'

Example = Mapping[str, Any]


class Noted(NamedTuple):
  """An example, and what to say about it when all are made.

  Attributes:
    example: as the data set's features want it.
    notes: lists and values that JSON knows.
  """

  example: Example
  notes: Sequence[Any]


@dataclasses.dataclass(frozen=True)
class Split:
  """The examples of a split, each of which is made without the others.

  Attributes:
    items: the key of each example, unique in the split, and what `make` takes. With workers, items
      and `make` are pickled.
    make: makes an example from its item.
    finish: called with the notes on all examples, in the order of the items.
  """

  items: Sequence[tuple[str, Any]]
  make: Callable[[Any], Example | Noted]
  finish: Callable[[Sequence[Any]], None] = lambda notes: None


@dataclasses.dataclass(frozen=True)
class Preparation:
  """How a builder prepares.

  Attributes:
    workers: processes that make examples; 0 or 1 for this one alone.
    directory: where whole shards wait; None for the data set's own directory.
    source: the raw files, or None, and `digest` their fingerprint.
    asked: see `fingerprint.write`.
    report: called with a sentence on what is taken from an earlier start.
  """

  workers: int = 0
  directory: Path | None = None
  source: Path | None = None
  digest: str | None = None
  asked: Any = None
  report: Callable[[str], None] = lambda text: None


class Builder(dataset_builder.FileReaderBuilder, skip_registration=True):
  """A data set whose examples are made one by one, in any order and by any process.

  Attributes:
    preparation: may be set before `download_and_prepare`.
  """

  preparation = Preparation()

  def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Split]:
    """The splits; it lists files, and decodes none."""
    raise NotImplementedError

  def _download_and_prepare(
    self, dl_manager: tfds.download.DownloadManager, download_config: Any = None
  ) -> None:
    del download_config
    splits, how = self._split_generators(dl_manager), self.preparation
    _check_names(splits)
    target = Path(self.data_path)
    places = {split: self._get_filename_template(split) for split in splits}
    plan = {
      split: _shards(split, [key for key, _ in content.items], places[split])
      for split, content in splits.items()
    }
    directory = how.directory or target
    if how.directory is not None:
      _start(directory, _identity(self, plan), how.report)
    with _not_kept_after_errors(how.directory):
      found = _write(self, splits, plan, directory, how.workers)
      for split, content in splits.items():
        _finish(content, plan[split], found[split])
    _move(itertools.chain(*plan.values()), directory, target)
    self.info.set_splits(
      tfds.core.SplitDict(
        [
          SplitInfo(
            name=split,
            shard_lengths=[facts['examples'] for facts in found[split]],
            num_bytes=sum(facts['bytes'] for facts in found[split]),
            filename_template=places[split],
          )
          for split in splits
        ]
      )
    )
    _write_digest(target, found)
    if how.digest is not None:
      fingerprint.write(target, how.source, how.digest, how.asked)


def read_digest(directory: Path, files: Iterable[Path]) -> str:
  """What tells prepared data from other data of as many examples.

  Args:
    directory: of the data set.
    files: of its records. Where nothing is known of their content, their names and sizes count.
  """
  with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
    return str(json.loads((directory / DIGEST_FILE).read_text())['digest'])
  told = [[path.name, path.stat().st_size] for path in sorted(files)]
  return _digest(json.dumps(told))


def _check_names(splits: Iterable[str]) -> None:
  """Raises a SegjaxError for a name that TFDS could not read back."""
  for split in splits:
    if split == 'all' or not re.fullmatch(r'[\w-]+', split):
      raise SegjaxError(
        f'the split {split!r} must have another name, of letters, digits, _ and -, and not "all", '
        'which is all splits together: rename it, in config.data.files.splits or where its files '
        'are named'
      )


def _write_digest(target: Path, found: Mapping[str, Sequence[Mapping[str, Any]]]) -> None:
  told = {split: [facts['digest'] for facts in shards] for split, shards in found.items()}
  digest = _digest(json.dumps(told, sort_keys=True))
  (target / DIGEST_FILE).write_text(json.dumps({'digest': digest}) + '\n')


def _digest(text: str) -> str:
  return hashlib.sha256(text.encode()).hexdigest()[:16]


# --- the plan -------------------------------------------------------------------------------------


class _Shard(NamedTuple):
  """A file: its name, and the positions of its examples among the items of the split."""

  split: str
  name: str
  positions: Sequence[int]


def _shards(split: str, keys: Sequence[str], template: Any) -> list[_Shard]:
  """The shards of a split, in the order that TFDS's writer would give the examples.

  Raises:
    SegjaxError: there is no example, or two have one key.
  """
  if not keys:
    raise SegjaxError(f'the split {split} has no example: correct config.data.source')
  hasher = hashing.Hasher(split)
  hashes = [hasher.hash_key(key) for key in keys]
  order = sorted(range(len(keys)), key=hashes.__getitem__)
  for one, other in itertools.pairwise(order):
    if hashes[one] == hashes[other]:
      raise SegjaxError(f'the split {split} has the example {keys[one]} twice: rename one')
  number = math.ceil(len(keys) / min(max(math.ceil(len(keys) / _SHARDS), _FEWEST), _MOST))
  ends = shard_utils.get_shard_boundaries(len(keys), number)
  paths = (template.sharded_filepath(shard_index=i, num_shards=number) for i in range(number))
  return [
    _Shard(split, path.name, order[start:end])
    for path, start, end in zip(paths, [0, *ends], ends, strict=False)
  ]


def _identity(builder: Builder, plan: Mapping[str, Sequence[_Shard]]) -> str:
  """A digest of all that the shards' contents depend on."""
  places = {split: [[s.name, list(s.positions)] for s in shards] for split, shards in plan.items()}
  told = [
    segjax.__version__,
    tfds.__version__,
    builder.info.full_name,
    builder.info.features.to_json(),
    builder.preparation.digest,
    str(builder.preparation.source),
    places,
  ]
  return _digest(json.dumps(told, sort_keys=True))


def _start(directory: Path, identity: str, report: Callable[[str], None]) -> None:
  """Makes the directory of whole shards; those of other data are deleted."""
  path = directory / _PLAN
  with contextlib.suppress(OSError):
    if path.read_text() == identity:
      if whole := len(list(directory.glob('*.json'))) - 1:
        report(f'whole files of an interrupted preparation, which are kept: {whole} in {directory}')
      return
  shutil.rmtree(directory, ignore_errors=True)
  directory.mkdir(parents=True)
  _write_whole(path, identity)


@contextlib.contextmanager
def _not_kept_after_errors(directory: Path | None) -> Iterator[None]:
  """Deletes the shards where preparing fails for what is wrong with the raw files.

  They stay where it is interrupted, a process dies or the disk is full.
  """
  try:
    yield
  except (OSError, _InterruptedError):
    raise
  except Exception:
    if directory is not None:
      shutil.rmtree(directory, ignore_errors=True)
    raise


def _move(shards: Iterable[_Shard], directory: Path, target: Path) -> None:
  """Moves the shards from the directory where they wait."""
  for shard in shards:
    if directory != target:
      (directory / shard.name).rename(target / shard.name)
    (directory / f'{shard.name}.json').unlink()


def _finish(split: Split, shards: Sequence[_Shard], found: Sequence[Mapping[str, Any]]) -> None:
  """Calls `finish` with the notes of all shards."""
  notes: dict[int, Sequence[Any]] = {}
  for shard, facts in zip(shards, found, strict=True):
    notes |= {shard.positions[int(place)]: noted for place, noted in facts['notes'].items()}
  split.finish([note for position in sorted(notes) for note in notes[position]])


# --- writing --------------------------------------------------------------------------------------


class _InterruptedError(SegjaxError):
  """A worker was killed, or the disk is full: what is written is as good as before."""


class _Writer:
  """Makes the examples of shards and writes them.

  Args:
    make: `Split.make` of each split.
    features: of the data set.
    directory: to write to.
  """

  def __init__(self, make: Mapping[str, Callable[[Any], Any]], features: Any, directory: Path):
    self._make, self._features, self._directory = make, features, directory
    self._serializer = example_serializer.ExampleSerializer(features.get_serialized_info())

  def __call__(self, shard: _Shard, items: Sequence[Any]) -> dict[str, Any]:
    """Writes a shard, from the items of its examples, and what is known of it as JSON beside it.

    Returns:
      examples: their number; bytes: of the records; size: of the file; digest: of the records;
      notes: place in the shard -> notes.
    """
    path = self._directory / shard.name
    half = path.with_name(f'{path.name}.{os.getpid()}{HALF}')
    sha, total, notes = hashlib.sha256(), 0, {}
    try:
      with _explained(path), _open_writer(half) as writer:
        for place, item in enumerate(items):
          made = self._make[shard.split](item)
          if isinstance(made, Noted):
            made, noted = made
            notes |= {str(place): list(noted)} if noted else {}
          record = self._serialize(made)
          writer.write(record)
          sha.update(len(record).to_bytes(8, 'little') + record)
          total += len(record)
      _to_disk(half)
    except BaseException:
      half.unlink(missing_ok=True)
      raise
    half.rename(path)
    facts = {
      'examples': len(items),
      'bytes': total,
      'size': path.stat().st_size,
      'digest': sha.hexdigest(),
      'notes': notes,
    }
    _write_whole(path.with_name(f'{path.name}.json'), json.dumps(facts))
    return facts

  def _serialize(self, example: Example) -> bytes:
    """The record of an example: the same bytes for the same example, unlike TFDS's own method."""
    encoded = self._features.encode_example(example)
    return self._serializer.get_tf_example(encoded).SerializeToString(deterministic=True)


@contextlib.contextmanager
def _explained(path: Path) -> Iterator[None]:
  """Says in a sentence that the disk is full: the library's errors have no number."""
  try:
    yield
  except (OSError, RuntimeError) as e:
    remedy = 'free some space and run the same command again, which keeps the files that are whole'
    if told := storage.explain(e, path, None, remedy):
      raise _InterruptedError(str(told)) from e
    raise


@contextlib.contextmanager
def _open_writer(path: Path) -> Iterator[Any]:
  writer = array_record_module.ArrayRecordWriter(os.fspath(path), _OPTIONS)
  try:
    yield writer
  finally:
    writer.close()


def _to_disk(path: Path) -> None:
  with path.open('rb') as file:
    os.fsync(file.fileno())


def _write_whole(path: Path, text: str) -> None:
  half = path.with_name(f'{path.name}.{os.getpid()}{HALF}')
  half.write_text(text)
  _to_disk(half)
  half.rename(path)


def _kept(directory: Path, shard: _Shard) -> dict[str, Any] | None:
  """What is known of a shard that is written; None of another."""
  path = directory / shard.name
  with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
    facts = json.loads(path.with_name(f'{path.name}.json').read_text())
    if facts['size'] == path.stat().st_size and facts['examples'] == len(shard.positions):
      return facts
  return None


def _write(
  builder: Builder,
  splits: Mapping[str, Split],
  plan: Mapping[str, Sequence[_Shard]],
  directory: Path,
  workers: int,
) -> dict[str, list[dict[str, Any]]]:
  """Writes the shards that are not there yet; returns what is known of each, see `_Writer`."""
  shards = list(itertools.chain(*plan.values()))
  found = {shard.name: _kept(directory, shard) for shard in shards}
  left = [shard for shard in shards if found[shard.name] is None]
  make = {split: content.make for split, content in splits.items()}
  state = make, builder.info.features, directory
  tasks = ((s, [splits[s.split].items[i][1] for i in s.positions]) for s in left)
  count = sum(len(shard.positions) for shard in left)
  bar = tqdm(total=count, desc='Preparing', unit=' examples', leave=False)
  workers = min(workers, len(left)) if count >= _FEWEST_FOR_WORKERS else 0
  with bar, _written(state, tasks, workers) as written:
    for shard, facts in written:
      found[shard.name] = facts
      bar.update(facts['examples'])
  return {split: [found[shard.name] for shard in shards] for split, shards in plan.items()}


@contextlib.contextmanager
def _written(
  state: tuple[Any, Any, Path], tasks: Iterable[tuple[_Shard, Sequence[Any]]], workers: int
) -> Iterator[Iterator[tuple[_Shard, dict[str, Any]]]]:
  """Each shard and what is known of it, once it is written, by this process or by workers."""
  if workers < 2:
    writer = _Writer(*state)
    yield ((shard, writer(shard, items)) for shard, items in tasks)
    return
  make, features, directory = state
  # Unpickled where TFDS is patched, and not by the library that starts the process.
  pickled = pickle.dumps((make, features.to_json(), directory, images.current_limit()))
  pool = concurrent.futures.ProcessPoolExecutor(
    workers, multiprocessing.get_context('spawn'), _start_worker, (pickled,)
  )
  try:
    yield _as_written(pool, tasks, workers * _AHEAD)
  except BrokenProcessPool as e:
    raise _InterruptedError(
      'a process that prepares data died, probably for lack of memory: lower --workers and run the '
      'same command again, which keeps the files that are whole'
    ) from e
  finally:
    pool.shutdown(cancel_futures=True)


def _as_written(
  pool: concurrent.futures.Executor, tasks: Iterable[tuple[_Shard, Sequence[Any]]], most: int
) -> Iterator[tuple[_Shard, dict[str, Any]]]:
  """The shards as they are written, of which at most some are given to the workers at once."""
  waiting: dict[concurrent.futures.Future[dict[str, Any]], _Shard] = {}
  remaining = iter(tasks)
  while True:
    for shard, items in itertools.islice(remaining, most - len(waiting)):
      waiting[pool.submit(_write_shard, shard, items)] = shard
    if not waiting:
      return
    done, _ = concurrent.futures.wait(waiting, return_when='FIRST_COMPLETED')
    for future in done:
      yield waiting.pop(future), future.result()


# --- in a worker ----------------------------------------------------------------------------------

_worker: dict[str, Any] = {}


def _start_worker(pickled: bytes) -> None:
  signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C ends it without a traceback
  end_with_parent()
  with tfds_patches.quiet():
    make, features, directory, limit = pickle.loads(pickled)
  features = tfds.features.FeatureConnector.from_json(features)
  _worker.update(writer=_Writer(make, features, directory), limit=limit)


def _write_shard(shard: _Shard, items: Sequence[Any]) -> dict[str, Any]:
  with images.pixel_limit(_worker['limit']):
    return _worker['writer'](shard, items)


def end_with_parent() -> None:
  """Ends this process, at once, when the one that started it with `multiprocessing` has ended."""

  def wait() -> None:
    multiprocessing.parent_process().join()
    os._exit(1)

  threading.Thread(target=wait, daemon=True).start()
