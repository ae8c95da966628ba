"""A trained run, applied to images of any size and number, of which some may be broken.

Images are read and prepared in threads, pass the network in batches of one shape, and become
`Result` objects in threads again, in the order in which they came.
"""

import collections
import concurrent.futures
import contextlib
import functools
import os
import tempfile
import threading
from collections.abc import (
  Callable,
  Generator,
  Iterable,
  Iterator,
  Mapping,
  MutableMapping,
  Sequence,
)
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import jax
import numpy as np

from segjax.data import frames, images, order, pipeline, unusual
from segjax.data.batch import mean_color
from segjax.data.datasets import DatasetSpec
from segjax.data.frames import Frame, Source
from segjax.data.windows import Windows
from segjax.metrics import coco
from segjax.ops import tiles
from segjax.ops.paste_masks import paste_regions
from segjax.result import Result, label_type
from segjax.run import Loaded, notify
from segjax.training import compile
from segjax.types import Detections, SegjaxError, Segments

# A semantic network sees larger images, at their own size, by blocks of about this many pixels a
# side. Without `config.eval.tile` the blocks are the tiles, and this much of their surroundings
# is seen with them.
_WHOLE_PIXELS, _BLOCK, _CONTEXT = 2**24, 1024, 128
# Pixels of the images that wait in a stage, unless it is a single image.
_WAITING_PIXELS = 2**25
# On an accelerator: pixels of the images of a batch, unless its size is given.
_BATCH_PIXELS = 2**22
_THREADS = min(8, (os.cpu_count() or 1) + 1)

Size = tuple[int, int]
T = TypeVar('T')
U = TypeVar('U')
# What is wrong with each file that could not be read.
Failed = MutableMapping[Path, str]


class Job(NamedTuple):
  """An image to predict, what reads it, and how many pixels it has, 0 where nobody knows."""

  source: Source
  read: Callable[[], Frame]
  pixels: int = 0


class Network:
  """A trained run as a function of batches. Any thread may call it; each shape compiles once.

  Attributes:
    loaded: the run.
  """

  def __init__(self, loaded: Loaded):
    self.loaded = loaded
    self._variables = jax.device_put(loaded.variables)
    self._programs: dict[tuple[str, ...], Callable[..., Any]] = {}
    self._compiled: set[Any] = set()
    self._lock = threading.Lock()

  def __call__(self, batch: dict[str, Any], keys: Sequence[str]) -> dict[str, Any]:
    """The entries `keys` of `Task.predict` that the task has, as NumPy arrays."""
    keys = tuple(keys)
    shapes = tuple(x.shape for x in jax.tree.leaves(batch))
    with self._lock:
      if keys not in self._programs:
        self._programs[keys] = self._make(keys)
    program = self._programs[keys]
    if (keys, shapes) in self._compiled:
      return self._run(program, batch)
    with self._lock:  # other threads wait, so that none compiles the same
      found = self._run(program, batch)
      self._compiled.add((keys, shapes))
    return found

  @property
  def programs(self) -> int:
    """How many programs were compiled: one for each shape of a batch, and what is asked of it."""
    return len(self._compiled)

  def _run(self, program: Callable[..., Any], batch: dict[str, Any]) -> dict[str, Any]:
    return jax.tree.map(np.asarray, program(self._variables, batch))

  def _make(self, keys: tuple[str, ...]) -> Callable[..., Any]:
    task = self.loaded.run.task

    @compile.jit
    def predict(variables, batch):
      outputs, _ = task.forward(variables, batch, train=False)
      return {key: value for key, value in task.predict(outputs, batch).items() if key in keys}

    return predict


class _Prepared(NamedTuple):
  """An image as the network sees it.

  Attributes:
    frame: the image, and where it comes from.
    batch: of this image alone; None for a large image, which passes the network by blocks.
    size: of the image as the network sees it, inside its padding.
    restore: scores f[H', W', K] at the size of the network's output -> f[H, W, K].
    keys: entries of `Task.predict` to keep.
  """

  frame: Frame
  batch: dict[str, Any] | None
  size: Size
  restore: Callable[[np.ndarray], np.ndarray]
  keys: tuple[str, ...]

  @property
  def program(self) -> Any:
    """Equal for images that can share a batch."""
    return self.batch and (self.keys, tuple(x.shape for x in jax.tree.leaves(self.batch)))


class _Failure(NamedTuple):
  source: Source
  error: SegjaxError


def stream(
  network: Network,
  jobs: Iterable[Job],
  *,
  batch_size: int | None = None,
  probability: bool = False,
  failed: Failed | None = None,
) -> Generator[tuple[Frame, Result], None, None]:
  """Yields the predictions for images, in their order.

  Args:
    network: the trained run.
    jobs: what reads each image, in a thread.
    batch_size: images of one shape that follow each other pass the network together, at most so
      many; None chooses by the device and the size of the images.
    probability: whether results have the probabilities of all classes.
    failed: to which what is wrong with a file is added, and the next one is read; None raises it.

  Raises:
    SegjaxError: an image cannot be read or does not fit into memory, where `failed` is None.
  """
  prepare = functools.partial(_prepare, network.loaded, probability)
  finish = functools.partial(_finish, network.loaded, probability)
  run = functools.partial(_run_batch, network, batch_size)
  ahead = (batch_size or _default_batch(network.loaded, 1)) + _THREADS
  check = functools.partial(_check, failed)
  with _threads(_THREADS) as pool, _threads(1) as device:
    ready = check(ordered(pool, prepare, jobs, ahead, lambda job: job.pixels))
    batches = _batches(ready, functools.partial(_batch_limit, network.loaded, batch_size))
    done = check(found for rows in ordered(device, run, batches, 1) for found in rows)
    pixels = lambda pair: pair[0].frame.area
    yield from ordered(pool, lambda pair: (pair[0].frame, finish(*pair)), done, ahead, pixels)


def file_jobs(
  sources: Iterable[Source], channels: int, max_pixels: int, *, windows: bool = False
) -> Iterator[Job]:
  """What reads the images in files; the frames of a video and pages of a TIFF one after another.

  Args:
    sources: the files.
    channels: 1 for gray, 3 for RGB.
    max_pixels: a larger image is an error.
    windows: whether large TIFF files may be read by windows, see `frames.read_frames`.
  """
  above = _WHOLE_PIXELS if windows else None
  for source in sources:
    found = frames.read_frames(source, channels, max_pixels=max_pixels, windows_above=above)
    if source.kind == 'image':
      yield Job(source, functools.partial(next, found), images.count_pixels(source.path))
      continue
    while True:
      try:
        frame = next(found)
      except StopIteration:
        break
      except (SegjaxError, OSError) as e:
        yield Job(source, functools.partial(_raise, e))
        break
      yield Job(source, functools.partial(_return, frame), frame.area)


def _raise(error: Exception) -> Frame:
  raise error


def _return(frame: Frame) -> Frame:
  return frame


def read(job: Job) -> Frame:
  """The image of a job.

  Raises:
    SegjaxError: it cannot be read.
  """
  try:
    return job.read()
  except OSError as e:
    path = job.source.path
    raise SegjaxError(f'{path} cannot be read ({e.strerror or e}): check the file') from e


def read_ahead(jobs: Iterable[Job], failed: Failed | None) -> Iterator[Frame]:
  """The images of jobs, in their order, read in threads; `failed` as for `stream`."""
  with _threads(_THREADS) as pool:
    found = ordered(pool, _read_or_fail, jobs, _THREADS, lambda job: job.pixels)
    yield from _check(failed, found)


def _read_or_fail(job: Job) -> Frame | _Failure:
  try:
    return read(job)
  except SegjaxError as e:
    return _Failure(job.source, e)


# --- stages ---------------------------------------------------------------------------------------


@contextlib.contextmanager
def _threads(count: int) -> Iterator[concurrent.futures.Executor]:
  executor = concurrent.futures.ThreadPoolExecutor(count, 'segjax_infer')
  try:
    yield executor
  finally:
    executor.shutdown(cancel_futures=True)


def ordered(
  executor: concurrent.futures.Executor,
  function: Callable[[T], U],
  items: Iterable[T],
  ahead: int,
  pixels: Callable[[T], int] = lambda item: 0,
) -> Iterator[U]:
  """`map` in threads, at most `ahead` items before the one that is asked for.

  Of large images fewer: a single one, or so many as have `_WAITING_PIXELS`.

  Args:
    executor: the threads.
    function: of an item.
    items: its arguments.
    ahead: number of items.
    pixels: of an item.
  """
  pending: collections.deque[tuple[concurrent.futures.Future[U], int]] = collections.deque()
  for item in items:
    size = pixels(item)
    while pending and size + sum(other for _, other in pending) > _WAITING_PIXELS:
      yield pending.popleft()[0].result()
    pending.append((executor.submit(function, item), size))
    del item  # which the executor holds as long as it is needed
    if len(pending) > ahead:
      yield pending.popleft()[0].result()
  while pending:
    yield pending.popleft()[0].result()


def _check(failed: Failed | None, items: Iterable[Any]) -> Iterator[Any]:
  """The items that are no failures; of these, notes what is wrong or raises it."""
  for item in items:
    if not isinstance(item, _Failure):
      yield item
    elif failed is None:
      raise item.error
    else:
      failed[item.source.path] = str(item.error)


def _prepare(loaded: Loaded, probability: bool, job: Job) -> _Prepared | _Failure:
  frame = _read_or_fail(job)
  if isinstance(frame, _Failure):
    return frame
  config, native = loaded.run.experiment.input, frame.pixels.shape[:2]
  # Resized images are as small as the config says.
  own_size = config.data.size.image_size is None and config.data.size.short_side is None
  settings = loaded.run.experiment.eval
  tiled = hasattr(settings, 'tile') and settings.window is None and own_size
  keys = _keys(config.annotations[-1], own_size, probability)
  if tiled and native[0] * native[1] > _WHOLE_PIXELS:
    return _Prepared(frame, None, native, lambda scores: scores, keys)
  frame = frame._replace(pixels=np.asarray(frame.pixels))
  batch, restore = pipeline.prepare_image(frame.pixels, config, loaded.common_size)
  height, width = batch['size'][0].tolist()
  return _Prepared(frame, batch, (height, width), restore, keys)


def _keys(annotation: str, own_size: bool, probability: bool) -> tuple[str, ...]:
  """What to keep of `Task.predict`, which is large."""
  if annotation == 'objects':
    return (*Detections._fields, 'regions')
  if annotation == 'segments':
    return ('segments', 'scores')
  # A label map cannot be resized without the probabilities.
  label = ('label', 'uncertainty') if own_size else ('probability', 'uncertainty')
  return (*label, 'probability') if own_size and probability else label


def _batches(prepared: Iterable[_Prepared], limit: Callable[[int], int]) -> Iterator[list]:
  """Images that follow each other and share a program, as many as `limit` has for their pixels."""
  group: list[_Prepared] = []
  for image in prepared:
    if group and (image.batch is None or group[0].program != image.program):
      yield group
      group = []
    group.append(image)
    if len(group) >= _limit_of(image, limit):
      yield group
      group = []
  if group:
    yield group


def _limit_of(image: _Prepared, limit: Callable[[int], int]) -> int:
  return 1 if image.batch is None else limit(int(np.prod(image.batch['image'].shape[1:3])))


def _batch_limit(loaded: Loaded, batch_size: int | None, pixels: int) -> int:
  return batch_size or _default_batch(loaded, pixels)


def _default_batch(loaded: Loaded, pixels: int) -> int:
  """Images in a batch: one on a CPU, which a batch does not make faster."""
  if jax.default_backend() == 'cpu':
    return 1
  config = loaded.run.experiment.batch
  return max(1, min(config.eval_size or config.size, _BATCH_PIXELS // pixels))


def _run_batch(
  network: Network, batch_size: int | None, group: list[_Prepared]
) -> list[tuple[_Prepared, dict[str, Any]] | _Failure]:
  """Each image with the entries of `Task.predict` for it, without the batch axis."""
  first = group[0]
  try:
    if first.batch is None:
      return [(first, _predict_blocks(network, first))]
    limit = functools.partial(_batch_limit, network.loaded, batch_size)
    found = network(_stack(group, _limit_of(first, limit)), first.keys)
  except jax.errors.JaxRuntimeError as e:
    if 'RESOURCE_EXHAUSTED' not in str(e):
      raise
    if len(group) > 1:
      return [found for image in group for found in _run_batch(network, batch_size, [image])]
    return [_Failure(first.frame.source, _memory_error(first.frame))]
  return [
    (image, jax.tree.map(lambda x, row=row: x[row], found)) for row, image in enumerate(group)
  ]


def _stack(group: Sequence[_Prepared], count: int) -> dict[str, Any]:
  """The batch of several images; the last one repeats up to `count`, to compile one program."""
  if len(group) == 1:
    return group[0].batch
  rows = [image.batch for image in group]
  rows += rows[-1:] * (count - len(rows))
  return jax.tree.map(lambda *parts: np.concatenate(parts), *rows)


def _memory_error(frame: Frame) -> SegjaxError:
  height, width = frame.pixels.shape[:2]
  return SegjaxError(
    f'{frame.source.path} of {width}x{height} pixels does not fit into memory: divide it into '
    'tiles, or lower config.eval.tile or config.data.size, whichever the run has'
  )


# --- results --------------------------------------------------------------------------------------


def _finish(loaded: Loaded, probability: bool, image: _Prepared, values: dict[str, Any]) -> Result:
  run, frame = loaded.run, image.frame
  make = {'label': _dense, 'objects': _objects, 'segments': _segments}
  fields = make[run.experiment.input.annotations[-1]](loaded, image, values)
  if not probability:
    fields.pop('probability', None)
  threshold = getattr(run.experiment.eval, 'draw_threshold', 0.0)
  return make_result(frame, run.spec, loaded.images, threshold, fields)


def make_result(
  frame: Frame,
  spec: DatasetSpec,
  ranges: unusual.ImageRanges | None,
  draw_threshold: float,
  fields: Mapping[str, Any],
) -> Result:
  """The result of an image.

  Args:
    frame: the image.
    spec: of the data set that the network was trained on.
    ranges: of its images; None if nobody knows.
    draw_threshold: see `Result`.
    fields: of the `Result`, what the task predicts.
  """
  return Result(
    image=frame.pixels,
    class_names=spec.class_names,
    palette=spec.palette,
    name=frame.name,
    category_ids=spec.category_ids,
    draw_threshold=draw_threshold,
    unlike_training=unusual.describe(frame.pixels, ranges),
    **fields,
  )


def _dense(loaded: Loaded, image: _Prepared, values: dict[str, Any]) -> dict[str, Any]:
  height, width = image.frame.pixels.shape[:2]
  fields: dict[str, Any] = {}
  if 'probability' in values:
    fields['probability'] = image.restore(values['probability'])
  label = values['label'] if 'label' in values else fields['probability'].argmax(-1)
  fields['label'] = label[:height, :width].astype(label_type(loaded.run.spec.num_classes))
  if 'uncertainty' in values:
    fields['uncertainty'] = image.restore(values['uncertainty'][..., None])[..., 0]
  return fields


def _objects(loaded: Loaded, image: _Prepared, values: dict[str, Any]) -> dict[str, Any]:
  height, width = image.frame.pixels.shape[:2]
  annotation = {
    'height': height,
    'width': width,
    'scale': (image.size[0] / height, image.size[1] / width),
  }
  masks = getattr(loaded.run.model, 'masks', True)
  rule = loaded.run.experiment.eval.paste
  paste = functools.partial(paste_regions, rule=rule) if masks else None
  found = coco.image_result(values, annotation, paste)
  corner, size = found['boxes'][:, :2], found['boxes'][:, 2:]
  return {
    'boxes': np.concatenate([corner, corner + size], axis=1).astype(np.float32),
    'classes': found['classes'].astype(np.int32),
    'scores': found['scores'].astype(np.float32),
    'encoded_masks': found['masks'],
  }


def _segments(loaded: Loaded, image: _Prepared, values: dict[str, Any]) -> dict[str, Any]:
  height, width = image.frame.pixels.shape[:2]
  spec, found, scores = loaded.run.spec, values['segments'], values['scores']
  ids = found.ids[:height, :width]
  ids, areas = kept_segments(ids, found)
  info = []
  for number in np.flatnonzero(areas).tolist():
    category = int(found.classes[number - 1])
    entry = {
      'id': number,
      'category': category,
      'name': spec.class_names[category],
      'isthing': category in spec.things,
      'area': int(areas[number]),
    }
    if number <= len(scores):  # segment k + 1 is detection k
      entry['score'] = float(scores[number - 1])
    info.append(entry)
  return {'segments': ids, 'segments_info': info}


def kept_segments(ids: np.ndarray, found: Segments) -> tuple[np.ndarray, np.ndarray]:
  """i32[H, W] without segments that are not valid, and the pixels of each id, none of id 0."""
  ids = np.where(np.concatenate([[False], found.valid])[ids], ids, 0).astype(np.int32)
  areas = np.bincount(ids.ravel(), minlength=len(found.valid) + 1)
  areas[0] = 0
  return ids, areas


# --- large images ---------------------------------------------------------------------------------


def _predict_blocks(network: Network, image: _Prepared) -> dict[str, np.ndarray]:
  """`label` of a large image and, if asked for, `probability` and `uncertainty`.

  With a tile and without overlap, or with a margin, they are those of the image as a whole. With
  overlap, tiles are at other places, and differ as much as the overlap lets tiles differ.
  """
  loaded, pixels = network.loaded, image.frame.pixels
  config = loaded.run.experiment.input
  height, width = pixels.shape[:2]
  shape = order.multiple_shape((height, width))
  block, context = _block_size(loaded.run.model, loaded.run.experiment.eval, shape)
  if image.frame.rate is None:
    path = image.frame.source.path
    notify(f'{path}: {width}x{height} pixels, by blocks of {block[1]}x{block[0]}')
  run = functools.partial(_predict_block, network, image.keys)
  read = functools.partial(_read_padded, pixels, mean_color(config.data))
  found = tiles.map_blocks(run, read, shape, block, context, _empty)
  return {key: value[:height, :width] for key, value in found.items()}


def _read_padded(
  pixels: np.ndarray | Windows, color: Any, rows: np.ndarray, columns: np.ndarray
) -> np.ndarray:
  """Rows and columns of an image, padded with a color at the bottom and right as the whole is."""
  top, left = rows.min(), columns.min()
  window = np.empty((rows.max() + 1 - top, columns.max() + 1 - left, pixels.shape[2]), np.uint8)
  window[...] = color
  inside = pixels[top : rows.max() + 1, left : columns.max() + 1]
  window[: inside.shape[0], : inside.shape[1]] = inside
  return window[(rows - top)[:, None], columns - left]


def _empty(shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
  """An array for the results of a large image: scores, of many bytes a pixel, are on the disk."""
  if dtype.kind != 'f':
    return np.empty(shape, dtype)
  with tempfile.TemporaryFile() as file:  # which is gone when the array is
    return np.memmap(file, dtype, 'w+', shape=shape)


def _predict_block(
  network: Network, keys: Sequence[str], pixels: np.ndarray
) -> dict[str, np.ndarray]:
  batch, restore = pipeline.prepare_image(pixels, network.loaded.run.experiment.input)
  found = {key: value[0] for key, value in network(batch, keys).items()}
  height, width = pixels.shape[:2]
  classes = network.loaded.run.spec.num_classes
  values = {'label': found['label'][:height, :width].astype(label_type(classes))}
  if 'probability' in found:
    values['probability'] = restore(found['probability'])
  if 'uncertainty' in found:
    values['uncertainty'] = restore(found['uncertainty'][..., None])[..., 0]
  return values


def _block_size(model: Any, config: Any, size: Size) -> tuple[Size, int]:
  """Rows and columns of a block, whole tiles that start where pooling does, and its context."""
  stride = getattr(model, 'stride', 1)
  fit = getattr(model, 'output_size', lambda side: side)
  margin = getattr(model, 'margin', 0) or config.overlap or (0 if config.tile else _CONTEXT)
  sides = []
  for tile, side in zip(config.tile or (_BLOCK, _BLOCK), size, strict=True):
    step = fit(max(tile, stride)) // stride * stride
    sides.append(step * -(-min(_BLOCK, side) // step))
  return (sides[0], sides[1]), -(-margin // stride) * stride
