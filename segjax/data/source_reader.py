"""Random access to a source outside the package, in the form of that to a prepared data set."""

import functools
from collections.abc import Sequence
from typing import Any

import numpy as np

from segjax.data import datasets, outside
from segjax.data.config import InputConfig
from segjax.data.geometry import mask_boxes
from segjax.data.read import Annotations, Example, Reader, check_channels, encode_objects
from segjax.data.sample import Objects, Sample, Size
from segjax.types import IGNORE_LABEL, SegjaxError, Segments


def open_reader(
  builder: Any, split: str, config: InputConfig, spec: datasets.DatasetSpec
) -> 'Reader | SourceReader':
  """Random access to a split of a prepared data set, or of a source outside the package."""
  kind = SourceReader if isinstance(builder, outside.SourceBuilder) else Reader
  return kind(builder, split, config, spec)


class SourceReader:
  """`read.Reader` of a source that yields a `Sample` for each index.

  Pickles small: another process makes the source again.

  Args, Raises: as `read.Reader`.
  """

  # As in `Reader`: a source has all of its examples, and a `Sample` has masks.
  left_out: Sequence[str] = ()

  def __init__(
    self,
    builder: outside.SourceBuilder,
    split: str,
    config: InputConfig,
    spec: datasets.DatasetSpec,
  ):
    check_channels(config, spec)
    datasets.count_examples(builder, split, spec.name)
    self.config, self.spec = config, spec
    self._made_of = builder.name, split, builder.files

  def __getstate__(self) -> dict[str, Any]:
    return {key: value for key, value in vars(self).items() if key != 'source'}

  @functools.cached_property
  def source(self) -> Any:
    """The source."""
    return outside.open_source(*self._made_of)

  def __len__(self) -> int:
    return len(self.source)

  def __getitem__(self, index: int) -> 'SourceExample':
    name, sample = self.name(index), self.source[index]
    if not isinstance(sample, Sample):
      raise SegjaxError(f'{name} is a {type(sample).__name__}: return a segjax.data.sample.Sample')
    return SourceExample(self, index, name, _check(sample, self.spec.channels, name)._asdict())

  def name(self, index: int) -> str:
    """The name of an example."""
    name = getattr(self.source, 'name', None)
    return str(name(index)) if callable(name) else f'example {index}'

  @functools.cached_property
  def sizes(self) -> list[Size]:
    """The images' own (height, width)."""
    known = getattr(self.source, 'sizes', None)
    if known is None:
      known = [self.source[index].size for index in range(len(self))]
    return [tuple(size) for size in known]


def _check(sample: Sample, channels: int, name: str) -> Sample:
  """The sample, its arrays of the dtypes that `Sample` has.

  Raises:
    SegjaxError: the image is no u8[H, W, channels], the label no whole numbers, or there is a
      weight, which only `config.data.weight_map` gives a batch.
  """
  image = np.asarray(sample.image)
  if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != channels:
    raise SegjaxError(
      f'the image of {name} is {image.dtype}{list(image.shape)}: return uint8[H, W, {channels}]'
    )
  if sample.weight is not None:
    raise SegjaxError(
      f'{name} has a weight, which is not read from a source: return none, and set '
      f'config.data.weight_map, or give pixels that are not to count the label {IGNORE_LABEL}'
    )
  if sample.label is None:
    return sample._replace(image=image)
  label = np.asarray(sample.label)
  if label.dtype.kind not in 'ui':
    raise SegjaxError(f'the label of {name} is {label.dtype}: return whole numbers')
  if label.size and (label.min() < 0 or label.max() > IGNORE_LABEL):
    wrong = label.min() if label.min() < 0 else label.max()
    raise SegjaxError(
      f'the label of {name} has the value {wrong}: return class indices, and {IGNORE_LABEL} for '
      'pixels without a class'
    )
  return sample._replace(image=image, label=label.astype(np.uint16))


class SourceExample(Example):
  """An example whose `record` is the fields of a `Sample`."""

  def _need(self, what: str) -> Any:
    if (value := self.record[what]) is None:
      raise SegjaxError(f'{self.name} has no {what}, which the task reads: return a Sample with it')
    return value

  @property
  def image(self) -> np.ndarray:
    return self.record['image']

  @property
  def image_id(self) -> int:
    return self.index

  @property
  def label(self) -> np.ndarray:
    label, classes = self._need('label'), self.reader.spec.num_classes
    wrong = label[(label >= classes) & (label != IGNORE_LABEL)]
    if wrong.size:
      raise SegjaxError(
        f'the label of {self.name} has the value {wrong[0]} in {wrong.size} pixels: classes are 0 '
        f'to {classes - 1}, void is {IGNORE_LABEL}'
      )
    return label

  @property
  def segments(self) -> Segments:
    return self._need('segments')

  @property
  def objects(self) -> Objects:
    objects, things = self._need('objects'), len(self.reader.spec.things)
    masks, classes = np.asarray(objects.masks, np.uint8), np.asarray(objects.classes, np.int32)
    if classes.size and not 0 <= classes.min() <= classes.max() < things:
      raise SegjaxError(
        f'an object of {self.name} has a class outside 0 to {things - 1}: number them among the '
        'things'
      )
    crowd = np.zeros(len(masks), bool) if objects.crowd is None else np.asarray(objects.crowd, bool)
    return Objects(mask_boxes(masks), classes, masks, crowd)

  @property
  def annotations(self) -> Annotations:
    return encode_objects(self.objects)
