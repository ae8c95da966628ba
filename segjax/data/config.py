"""Keys of `config.data`, `config.augment` and `config.batch`: the same for every task."""

import dataclasses
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from segjax.data import images
from segjax.types import (
  AnyFloat,
  Fraction,
  NonNegativeFloat,
  NonNegativeInt,
  PositiveFloat,
  PositiveInt,
  Range,
  SegjaxError,
)

Size = tuple[int, int]
ConfigSize = tuple[PositiveInt, PositiveInt]
# What a task may want to be annotated on an image.
Annotation = Literal['label', 'objects', 'segments']

_BOTH = (
  'config.data.size.image_size and short_side both resize: set one to none, or set '
  'config.augment.large_scale_jitter, which trains at the first, and config.data.size.shapes'
)


@dataclasses.dataclass(frozen=True)
class SizeConfig:
  """Keys of `config.data.size`: the size at which a network sees an image, (height, width).

  Attributes:
    image_size: images are resized to it; None, and no `short_side`, leaves them as they are.
    resize: 'stretch' to `image_size`, or 'fit': keep the aspect ratio, and pad below and to the
      right with the mean color.
    short_side: in place of `image_size`: images are resized so that their shorter side is one of
      these, sampled in training, the largest in evaluation. Where `augment.large_scale_jitter`
      trains at `image_size`, it may be given too, with `shapes`, and is of evaluation alone.
    longest_side: but their longer side is no larger than this.
    interpolation: of the image; 'area' averages where it shrinks and is bilinear where it grows.
    crop_size: of the random crop to train on; None for the whole image.
    shapes: sizes to which images are padded, the smallest that fits; None for `image_size`, else
      the smallest multiples of 32; semantic images that all have one size are not padded. A batch
      holds images of one shape.
  """

  image_size: ConfigSize | None = None
  resize: Literal['stretch', 'fit'] = 'stretch'
  short_side: tuple[PositiveInt, ...] | None = None
  longest_side: PositiveInt = 1333
  interpolation: Literal['area', 'bilinear', 'bicubic'] = 'area'
  crop_size: ConfigSize | None = None
  shapes: tuple[ConfigSize, ...] | None = None

  def __post_init__(self):
    if self.both and self.shapes is None:
      raise SegjaxError(_BOTH)
    if self.short_side == () or self.shapes == ():
      raise SegjaxError('config.data.size.short_side and shapes must be none or name a size')

  @property
  def both(self) -> bool:
    """Whether training and evaluation resize in their own ways."""
    return self.image_size is not None and self.short_side is not None


@dataclasses.dataclass(frozen=True)
class DataConfig:
  """Keys of `config.data`: which data set, and which of its features.

  Attributes:
    name: of the data set: one of segjax's own, with its config after a slash, or one of TFDS.
    dir: directory of prepared data sets, on a disk or in a bucket (`gs://`, `s3://`); None for
      `segjax.data.datasets.default_data_dir()`.
    source: directory of the raw files, for a data set that is not downloaded.
    files: how a format of users' own data is read, see its `Options` in `segjax.data.builders`; of
      a source outside the package, its keyword arguments.
    eval_name: another data set, of the same classes, to evaluate on; None for `name`.
    eval_source: its `source`.
    train_split: split to train on, in TFDS's notation: 'train', 'train[:80%]'.
    eval_split: split to evaluate on; in the log `train` is `train[:]`, beside training batches.
    size: see `SizeConfig`.
    mean: subtracted from pixel values 0..255: one number, or one for each channel.
    std: divides the result, in the same way.
    weight_map: arguments of `weight_map.border_weight_map`, which gives the batch a loss weight for
      each pixel; None for none. It is computed once for each image, as U-Net's section 3 has it,
      after resizing, and augmented along with the label.
    image_key: the feature with the image.
    label_key: the feature with the label map. Of a panoptic data set, which has no `label`, the
      label is the class of each pixel's segment; see `panoptic_key`.
    name_key: the text feature that names an example; None for its index.
    bad_examples: an example whose record is corrupt is an error ('stop'), or is left out and
      counted ('skip'), for which all records are checked once, when a split is first read.
    max_pixels: an image with more is an error, as a damaged or hostile file of a few bytes may
      unpack to any size; the default is Pillow's.
    label_offset: added to label values other than void; results below 0 are void too.
    num_classes: for a data set whose features do not say it.
    class_names: in place of the data set's own.
    objects_key: the feature with the objects.
    things: the class indices of things, for a data set that does not say which those are.
    category_ids: in place of the data set's own: the id of each class in files of COCO's format,
      which `segjax predict` writes; None, where the data set has none either, counts from 1.
    panoptic_key: the feature with the image of segment ids, see `segjax.data.formats.panoptic`.
    segments_key: the feature with the list of segments; None if a pixel of `panoptic_key` is 256
      times its class plus a number, as in scenes: classes are then those of `objects_key`.
    crowd_key: the feature of a segment that says whether it is a crowd.
  """

  name: str
  dir: str | None = None
  source: str | None = None
  files: Mapping[str, Any] | None = None
  eval_name: str | None = None
  eval_source: str | None = None
  train_split: str = 'train'
  eval_split: str = 'val'
  size: SizeConfig = SizeConfig()
  mean: tuple[AnyFloat, ...] = (127.5,)
  std: tuple[PositiveFloat, ...] = (127.5,)
  weight_map: Mapping[str, Any] | None = None
  image_key: str = 'image'
  label_key: str = 'label'
  name_key: str | None = 'file_name'
  bad_examples: Literal['stop', 'skip'] = 'stop'
  max_pixels: PositiveInt = images.MAX_PIXELS
  label_offset: Annotated[int, Range(-65_535, 65_535)] = 0
  num_classes: PositiveInt | None = None
  class_names: tuple[str, ...] | None = None
  objects_key: str = 'objects'
  things: tuple[NonNegativeInt, ...] | None = None
  category_ids: tuple[NonNegativeInt, ...] | None = None
  panoptic_key: str = 'panoptic'
  segments_key: str | None = 'segments'
  crowd_key: str = 'iscrowd'


@dataclasses.dataclass(frozen=True)
class Augment:
  """Keys of `config.augment`: how training examples vary. Every default is off.

  Attributes:
    flip_horizontal: probability of a left-right flip.
    flip_vertical: probability of an upside-down flip.
    rotate90: turn by a whole number of quarter turns, each of the four as likely.
    rotate: turn by an angle uniform in ±`rotate` degrees.
    scale: enlarge by a factor uniform in [low, high]; above 1 zooms in. Much below 0.5 aliases.
    large_scale_jitter: resize to fit `data.size.image_size`, times a factor uniform in [low, high],
      then crop or pad to that size (arXiv 2012.07177); needs `data.size.resize='fit'`.
    shift: move by whole pixels, uniform in ±`shift` on each axis, past the image's border too.
    elastic_sigma: standard deviation in pixels of the displacements at the elastic grid's nodes
      (U-Net, section 3.1: 10).
    elastic_grid: nodes of the elastic grid along each axis, borders included (U-Net: 3).
    interpolation: of the image where it is moved by parts of a pixel. 'bilinear' smooths noise, so
      that training images look softer than those of an evaluation; 'bicubic' smooths less.
    copy_paste: probability with which objects of another image are pasted (arXiv 2012.07177).
    brightness: add a value uniform in ±`brightness`, as a fraction of white.
    contrast: scale the distance from the image's mean gray by a factor uniform in 1±`contrast`.
    saturation: scale the distance from gray by a factor uniform in 1±`saturation` (RGB only).
    hue: turn the hue by an angle uniform in ±`hue`, as a fraction of the circle (RGB only).
    transforms: your own, applied last in this order, each a group with the module path of a
      function as its `name`, and its keyword arguments:
      `function(rng, sample, **arguments) -> Sample`, see `segjax.data.sample`.
  """

  flip_horizontal: Fraction = 0.0
  flip_vertical: Fraction = 0.0
  rotate90: bool = False
  rotate: Annotated[float, Range(0, 180)] = 0.0
  scale: tuple[PositiveFloat, PositiveFloat] = (1.0, 1.0)
  large_scale_jitter: tuple[PositiveFloat, PositiveFloat] | None = None
  shift: NonNegativeFloat = 0.0
  elastic_sigma: NonNegativeFloat = 0.0
  elastic_grid: Annotated[int, Range(2)] = 3
  interpolation: Literal['bilinear', 'bicubic'] = 'bilinear'
  copy_paste: Fraction = 0.0
  brightness: Fraction = 0.0
  contrast: Fraction = 0.0
  saturation: Fraction = 0.0
  hue: Fraction = 0.0
  transforms: tuple[Mapping[str, Any], ...] = ()

  def __post_init__(self):
    for key in ('scale', 'large_scale_jitter'):
      if (value := getattr(self, key)) is not None and value[0] > value[1]:
        raise SegjaxError(f'config.augment.{key}={value} must be (low, high) with low <= high')


@dataclasses.dataclass(frozen=True)
class BatchConfig:
  """Keys of `config.batch`.

  Attributes:
    size: examples in a training step, over all hosts.
    eval_size: examples in an evaluation step, over all hosts, rounded up to a multiple of the
      devices along the batch; None for `size`.
    shuffle: whether each epoch has an order of its own.
    workers: processes that prepare training batches; 0 for threads of the main process.
    max_objects: N, maximum objects per image, of tasks with objects: of more the largest are kept,
      and the rest is counted and reported.
    max_segments: S, maximum segments per image, of panoptic tasks: more is an error in evaluation.
  """

  size: PositiveInt = 8
  eval_size: PositiveInt | None = None
  shuffle: bool = True
  workers: NonNegativeInt = 0
  max_objects: PositiveInt = 100
  max_segments: PositiveInt = 128


@dataclasses.dataclass(frozen=True)
class InputConfig:
  """All that says what the batches of a run are.

  Attributes:
    data, augment, batch: groups of the config.
    annotations: what the task reads: ('label',), ('objects',) or all three.
    masks: whether objects need their masks; without, one that has none is its box.
    queries: the masks that the network can predict of an image, one for each object and each class
      that is no object; None where their number has no limit.
  """

  data: DataConfig
  augment: Augment = Augment()
  batch: BatchConfig = BatchConfig()
  annotations: tuple[Annotation, ...] = ('label',)
  masks: bool = True
  queries: PositiveInt | None = None

  @property
  def most_objects(self) -> int:
    """The objects of an image that a network is trained on."""
    return min(self.batch.max_objects, self.queries or self.batch.max_objects)

  @property
  def most_objects_key(self) -> str:
    """The key, with its value, that says `most_objects`."""
    own = self.most_objects == self.batch.max_objects
    return f'config.{"batch.max_objects" if own else "model.queries"}={self.most_objects}'

  def __post_init__(self):
    if self.augment.large_scale_jitter is not None and (
      self.data.size.image_size is None or self.data.size.resize != 'fit'
    ):
      raise SegjaxError(
        "config.augment.large_scale_jitter: set config.data.size.image_size and resize='fit'"
      )
    if self.augment.large_scale_jitter is None and self.data.size.both:
      raise SegjaxError(_BOTH)
    if 'segments' in self.annotations and self.data.label_offset:
      raise SegjaxError(
        'config.data.label_offset is for label maps, and this task reads segments: leave it out'
      )
    self._check_unused()

  def _check_unused(self) -> None:
    """Raises a SegjaxError for a key that means nothing without an annotation that is not read."""
    unused = {
      'label': ('data.weight_map', 'data.label_offset'),
      'objects': ('data.things', 'data.category_ids', 'batch.max_objects', 'augment.copy_paste'),
      'segments': ('batch.max_segments',),
    }
    for annotation in set(unused) - set(self.annotations):
      for path in unused[annotation]:
        name, key = path.split('.')
        group = getattr(self, name)
        if getattr(group, key) != type(group).__dataclass_fields__[key].default:
          raise SegjaxError(
            f'config.{path} is for tasks that read {annotation}, and this one reads '
            f'{" and ".join(self.annotations)}: leave it out'
          )
