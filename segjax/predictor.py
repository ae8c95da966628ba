"""A trained network as a Python function of images: arrays, Pillow images and files."""

import itertools
import os
import re
import warnings
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from segjax import infer, storage
from segjax.data import frames, images
from segjax.data.datasets import DatasetSpec
from segjax.data.frames import Frame, Source
from segjax.result import Result
from segjax.run import Loaded
from segjax.types import SegjaxError

_URL = re.compile(r'[A-Za-z][A-Za-z0-9+.-]+://')


class Predictor:
  """A trained run; call it with images.

  It may be used by several threads, and compiles one program for each padded shape of a batch.

  Attributes:
    task: 'semantic', 'instance' or 'panoptic'.
    class_names: one for each class index.
    palette: u8[classes, 3], the RGB color of each class.
    spec: of the data set that it was trained on.
    step: of the checkpoint.
  """

  def __init__(self, loaded: Loaded):
    self._network = infer.Network(loaded)
    self.spec: DatasetSpec = loaded.run.spec
    self.task: str = loaded.run.experiment.task
    self.step: int = loaded.restored.step
    self._max_pixels: int = loaded.run.experiment.data.max_pixels

  @property
  def class_names(self) -> tuple[str, ...]:
    """One for each class index."""
    return self.spec.class_names

  @property
  def palette(self) -> np.ndarray:
    """u8[classes, 3], the RGB color of each class."""
    return self.spec.palette

  def __repr__(self) -> str:
    return f'Predictor({self.task}, {len(self.class_names)} classes, step {self.step})'

  def __call__(
    self, images: Any, *, batch_size: int | None = None, probability: bool = False
  ) -> Result | list[Result]:
    """Predicts one or several images.

    Args:
      images: one image: u8[H, W] or u8[H, W, C] with 1 or 3 channels (RGB), a Pillow image, or the
        path of an image file. Several: u8[N, H, W, C], or a list or an iterator of images. Gray and
        RGB are converted to what the network sees.
      batch_size: images of one shape that follow each other pass the network together, at most so
        many. By default one on a CPU, which a batch does not make faster; elsewhere as many as in
        the evaluation, and fewer where they are large.
      probability: also keep the probability of each class of each pixel, in semantic tasks.

    Returns:
      A `Result` of one image. A list of several, and of a file with several: the pages of a TIFF or
      the frames of a video.

    Raises:
      SegjaxError: no images; one of another type, shape or with NaN; a file that cannot be read; a
        URL; an image that does not fit into memory.
    """
    jobs, single = self._jobs(images)
    found = list(self._stream(jobs, batch_size, probability))
    if not found:
      raise SegjaxError('there are no images to predict: give at least one')
    self._warn([result for result in found if result.unlike_training], len(found))
    return found[0] if single else found

  def stream(
    self, images: Iterable[Any], *, batch_size: int | None = None, probability: bool = False
  ) -> Iterator[Result]:
    """Yields the result of each image, for more images than fit into memory.

    Images are read ahead in threads. Arguments and errors are those of a call; nothing warns of
    unusual images, see `Result.unlike_training`.
    """
    jobs, _ = self._jobs(images)
    return self._stream(jobs, batch_size, probability)

  def predict_files(
    self, sources: Iterable[Source], *, failed: infer.Failed, **options: Any
  ) -> Iterator[tuple[Frame, Result]]:
    """Yields each image in files with its result.

    The image of a large TIFF file may be what reads windows of it, see `frames.read_frames`, and
    the scores of a large image may be mapped from the disk.

    Args:
      sources: the files, see `frames.find_source`.
      failed: to which what is wrong with a file is added, and the next one is read.
      options: `batch_size` and `probability` of a call.
    """
    jobs = infer.file_jobs(sources, self.spec.channels, self._max_pixels, windows=True)
    return infer.stream(self._network, jobs, failed=failed, **options)

  def _stream(
    self, jobs: Iterable[infer.Job], batch_size: int | None, probability: bool
  ) -> Iterator[Result]:
    if batch_size is not None and (type(batch_size) is not int or batch_size < 1):
      raise SegjaxError(f'batch_size={batch_size!r} must be an integer of 1 or more')
    self._check_probability(probability)
    found = infer.stream(self._network, jobs, batch_size=batch_size, probability=probability)
    return (result for _, result in found)

  def _check_probability(self, wanted: bool) -> None:
    if wanted and self.task != 'semantic':
      raise SegjaxError(
        f'probability=True: a network of the task {self.task} has none for each pixel: leave it out'
      )

  def _jobs(self, images: Any) -> tuple[Iterator[infer.Job], bool]:
    """What reads each image, and whether it is one alone."""
    if isinstance(images, str | os.PathLike):
      source = _find_file(images)
      return self._file_jobs(source), source.kind == 'image'
    if isinstance(images, Image.Image):
      return iter([self._array_job(1, images)]), True
    if hasattr(images, '__array__'):
      array = np.asarray(images)
      if array.ndim != 4:
        return iter([self._array_job(1, array)]), True
      images = array
    if not isinstance(images, Iterable):
      raise SegjaxError(
        f'{type(images).__name__} is not an image: give an array, a Pillow image, a path, or a '
        'list of them'
      )
    each = (self._item_jobs(number, image) for number, image in enumerate(images, 1))
    return itertools.chain.from_iterable(each), False

  def _item_jobs(self, number: int, image: Any) -> Iterator[infer.Job]:
    if isinstance(image, str | os.PathLike):
      return self._file_jobs(_find_file(image))
    return iter([self._array_job(number, image)])

  def _file_jobs(self, source: Source) -> Iterator[infer.Job]:
    return infer.file_jobs([source], self.spec.channels, self._max_pixels)

  def _array_job(self, number: int, image: Any) -> infer.Job:
    # Checked at once: a caller may change an array that it reuses.
    source = Source(Path(f'image {number}'), 'image')
    pixels = as_pixels(image, self.spec.channels, str(source.path))
    frame = Frame(source, str(number), pixels)
    return infer.Job(source, lambda: frame)

  def _warn(self, unlike: Sequence[Result], count: int) -> None:
    if unlike:
      first = f'{unlike[0].name}: {unlike[0].unlike_training}'
      warnings.warn(describe_unlike(first, len(unlike), count), stacklevel=3)


def describe_unlike(first: str, unlike: int, count: int) -> str:
  """A sentence on images that are unlike those of the training.

  Args:
    first: name of one of them, and how it differs.
    unlike: how many they are.
    count: number of images.
  """
  verb = 'is' if unlike == 1 else 'are'
  return f'{unlike} of {count} images {verb} unlike the training images, such as {first}'


def as_pixels(image: Any, channels: int, what: str) -> np.ndarray:
  """An image as the network reads it.

  Args:
    image: u8[H, W], u8[H, W, 1], u8[H, W, 3] or a Pillow image.
    channels: 1 or 3; an image of the other number is converted, as files are.
    what: its name, for errors.

  Returns:
    u8[H, W, channels], no view of `image`.

  Raises:
    SegjaxError: another type or shape, no pixels, or NaN.
  """
  if isinstance(image, Image.Image):
    return np.array(images.read_pillow(image, channels, what))
  if not hasattr(image, '__array__'):
    raise SegjaxError(
      f'{what} is a {type(image).__name__}: give an array, a Pillow image or a path'
    )
  array = np.asarray(image)
  _check_array(array, what)
  pixels = array.reshape(*array.shape[:2], -1)
  if pixels.shape[2] == channels:
    return np.array(pixels)
  if channels == 3:
    return np.repeat(pixels, 3, axis=2)
  return np.asarray(Image.fromarray(pixels).convert('L'))[..., None]


def _check_array(array: np.ndarray, what: str) -> None:
  shape = list(array.shape)
  if array.dtype.kind == 'f' and np.isnan(array).any():
    raise SegjaxError(f'{what} has NaN: replace these pixels, and convert it to uint8 of 0 to 255')
  if array.dtype != np.uint8:
    raise SegjaxError(
      f'{what} has pixels of {array.dtype}: convert it to uint8 of 0 to 255, without normalization'
    )
  if array.ndim not in (2, 3):
    raise SegjaxError(
      f'{what} has the shape {shape}: give [height, width] or [height, width, channels]'
    )
  if not array.size:
    raise SegjaxError(f'{what} has the shape {shape}, without a pixel: leave it out')
  if array.ndim == 3 and array.shape[2] not in (1, 3):
    if array.shape[0] in (1, 3):
      remedy = 'move the channels last, by image.transpose(1, 2, 0)'
    elif array.shape[2] == 4:
      remedy = 'leave out the alpha channel, by image[..., :3]'
    else:
      remedy = 'give 1 or 3 channels, and several images as a list'
    raise SegjaxError(f'{what} has the shape {shape}, with {shape[2]} channels: {remedy}')


def check_no_url(path: str) -> None:
  """Raises a SegjaxError for the address of a file that is not on this machine."""
  if _URL.match(path):
    raise SegjaxError(f'{path} is a URL: download the file, and give its path')


def _find_file(path: str | os.PathLike[str]) -> Source:
  check_no_url(os.fspath(path))
  path = storage.user_path(path)
  if path.is_dir():
    raise SegjaxError(
      f'{path} is a directory: give its files, such as sorted(pathlib.Path(…).iterdir())'
    )
  if path.suffix.lower() not in frames.SUFFIXES:
    raise SegjaxError(
      f'{path} is not an image file by its suffix: give one of {", ".join(frames.SUFFIXES)}'
    )
  return frames.find_source(path)
