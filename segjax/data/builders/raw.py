"""Raw files: finding them, and reading lists, images and label maps, strictly.

Builders hand TFDS encoded bytes or a path for each image feature: an array would make it import
TensorFlow.
"""

import dataclasses
import os
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path, PureWindowsPath
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from segjax.data import images, records
from segjax.data.formats import common
from segjax.types import SegjaxError


class Builder(records.Builder, skip_registration=True):
  """A data set of raw files; it has the name of the directory that its module is in."""

  VERSION = tfds.core.Version('1.0.0')
  RELEASE_NOTES = {'1.0.0': 'First release.'}
  MANUAL_DOWNLOAD_INSTRUCTIONS = 'See the layout of raw files in the module of the builder.'
  # The dataclass of the keys of `config.data.files`; None for a published data set.
  Options: type | None = None

  @classmethod
  def own_config(
    cls, config: str, options: Any, annotations: Sequence[str]
  ) -> tfds.core.BuilderConfig | None:
    """The config of a data set of one's own, whose name the caller completes; None of another.

    Args:
      config: what follows the slash in `config.data.name`.
      options: an instance of `Options`.
      annotations: of the task.
    """
    del config, options, annotations
    return None

  @classmethod
  def watched(cls, source: Path, options: Any) -> list[Path]:
    """The files and directories whose sizes and times tell whether the raw files have changed."""
    del options
    return [source]


# The name of an example, its image and its raw label map.
Files = tuple[str, Path, Path]


class SemanticBuilder(Builder, skip_registration=True):
  """A data set of images, kept as their files are, byte for byte, and of label maps.

  Attributes:
    description: one sentence.
    content: what the directory of raw files holds, for error messages.
    classes: the names of the class indices.
    first: the raw value of class 0; the others follow it.
    void: the raw value of void.
    modes: the pixel modes that an image may have, see `read_image`.
    palette: the color of each class; None for PASCAL VOC's colors of the raw values.
    image, features, metadata: see `common.semantic_info`.
  """

  description: str
  content: str
  classes: Sequence[str]
  first: int = 0
  void: int
  modes: tuple[str, ...] = ('RGB',)
  palette: Sequence[Sequence[int]] | None = None
  image: tfds.features.Image | None = None
  features: Mapping[str, Any] | None = None
  metadata: Mapping[str, Any] | None = None

  def find_files(self, source: Path) -> dict[str, Iterable[Any]]:
    """The `Files` of each split below `source`, or what `make` takes instead, its name first."""
    raise NotImplementedError

  def read_label(self, path: Path) -> np.ndarray:
    """A raw label map [H, W]."""
    return read_label(path)

  def encode_label(self, path: Path, values: np.ndarray, label: np.ndarray) -> Path | bytes:
    """What is stored of a label map: the class indices that the raw values of a file became."""
    return common.encode_png(label)

  def _info(self) -> tfds.core.DatasetInfo:
    palette = self.palette
    if palette is None:
      palette = common.voc_palette(self.first + len(self.classes))[self.first :]
    return common.semantic_info(
      self,
      description=self.description,
      class_names=self.classes,
      palette=palette,
      image=self.image,
      features=self.features,
      metadata=self.metadata,
    )

  def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Any]:
    found = self.find_files(source_directory(dl_manager, self.content))
    return {
      split: records.Split([(str(files[0]), files) for files in listed], self.make)
      for split, listed in found.items()
    }

  def make(self, files: Files) -> dict[str, Any]:
    """An example."""
    name, image_path, label_path = files
    values, image = self.read_label(label_path), read_image(image_path, self.modes)
    label = map_label(values, label_path, len(self.classes), first=self.first, void=self.void)
    check_same_size(image, image_path, label, label_path)
    stored = self.encode_label(label_path, values, label)
    return {'file_name': name, 'image': image_path, 'label': stored}


@dataclasses.dataclass(eq=False)
class FoldConfig(tfds.core.BuilderConfig):
  """Which examples, by their positions, are held out as val; the others are train."""

  held_out: range = range(0)


def fold_configs(held_out: range, description: str, size: int, of_fold: str) -> list[FoldConfig]:
  """The config `default`, which holds out `held_out`, and five folds that hold out `size` each.

  Args:
    held_out, description: of the default.
    size: of a fold.
    of_fold: the description of a fold; it may name `fold`, and `first` and `last` position.
  """
  folds = [range(size * fold, size * fold + size) for fold in range(5)]
  return [
    FoldConfig(name='default', description=description, held_out=held_out),
    *(
      FoldConfig(
        name=f'fold{fold}',
        description=of_fold.format(fold=fold, first=positions[0], last=positions[-1]),
        held_out=positions,
      )
      for fold, positions in enumerate(folds)
    ),
  ]


def missing_content(source: Path, content: str) -> SegjaxError:
  """The error that a directory of raw files does not hold what it should."""
  return SegjaxError(
    f'{source} does not hold {content}: set config.data.source to the directory that does'
  )


def wrong_source(problem: str, content: str) -> SegjaxError:
  """The error of a `problem` that may come from naming the wrong directory of raw files."""
  return SegjaxError(f'{problem}: set config.data.source to the directory that holds {content}')


def source_directory(dl_manager: tfds.download.DownloadManager, content: str) -> Path:
  """The directory of raw files, which the user names as `config.data.source`.

  Args:
    dl_manager: TFDS's download manager; its `manual_dir` is the directory.
    content: what the directory should hold, for the error message.

  Raises:
    SegjaxError: the directory is missing or empty.
  """
  try:
    return Path(dl_manager.manual_dir)
  except AssertionError as e:
    # TFDS names the directory in the first sentence of its message.
    problem = str(e).partition('. ')[0].replace('Manual directory', 'directory of raw files')
    raise wrong_source(problem, content) from e


def find_directory(
  source: Path, places: Iterable[str], holds: str, content: str, *, others: Collection[str] = ()
) -> Path:
  """The first of some directories below `source` that has a certain file or directory.

  Args:
    source: the directory of raw files.
    places: paths below it, '' for itself, in the order of preference.
    holds: path below the place of what it must have.
    content: what `source` should hold, for the error message.
    others: names of other data sets' directories, which `source` itself must not have.

  Raises:
    SegjaxError: none of them has it.
  """
  for place in places:
    is_other = not place and source.absolute().name in others
    if not is_other and (source / place / holds).exists():
      return source / place
  raise missing_content(source, content)


def inside(root: Path, name: str, listed_in: Path, *, outside: bool = False) -> Path:
  """The path of a file that another file names, which must be below `root`.

  Data files come from anywhere: what they name is stored in the prepared data, and may not be any
  file of the machine. A directory that is a link is its user's doing, and may itself be `root`.

  Args:
    root: the directory that the name is relative to.
    name: with slashes or, as tools write it on Windows, backslashes.
    listed_in: the file that names it, for the error.
    outside: whether it may be anywhere (`config.data.files.outside`).

  Raises:
    SegjaxError: the name is absolute, goes up with '..', or is a link to a place outside `root`.
  """
  path = root / name.replace('\\', '/')
  if outside:
    return path
  parts = PureWindowsPath(name)
  if parts.drive or parts.root or '..' in parts.parts:
    problem = f'{listed_in} names {name!r}, which is not'
  elif not Path(os.path.realpath(path)).is_relative_to(os.path.realpath(root)):
    problem = f'{listed_in} names {name!r}, a link to a file that is not'
  else:
    return path
  raise SegjaxError(
    f'{problem} below {root}: move the file there, or set config.data.files.outside=True where '
    'config.data.name has that key'
  )


def read_bytes(path: Path, content: str | None = None) -> bytes:
  """The content of a raw file.

  Raises:
    SegjaxError: it is missing; the sentence says what the source should hold, given `content`.
  """
  try:
    return path.read_bytes()
  except FileNotFoundError as e:
    if content is not None:
      raise wrong_source(f'{path} is missing', content) from e
    raise SegjaxError(f'{path} is missing: add it, or correct config.data.source') from e


def read_lines(path: Path, content: str | None = None) -> list[str]:
  """The lines of a text file that are not blank, without the spaces around them.

  Raises:
    SegjaxError: the file is missing, see `read_bytes`, or is not text.
  """
  try:
    lines = read_bytes(path, content).decode('utf-8-sig').splitlines()
  except UnicodeDecodeError as e:
    raise SegjaxError(f'{path} is not text in UTF-8: save it as such') from e
  return [line.strip() for line in lines if line.strip()]


def read_list(path: Path, content: str) -> list[str]:
  """The images that a text file lists: the first word of each line, blank lines aside.

  Args:
    path: a text file.
    content: what the source should hold, for the error message.

  Raises:
    SegjaxError: the file is missing, is not text, names no image, names one twice, or names one
      that is not below the directory of the images.
  """
  names = [line.split()[0] for line in read_lines(path, content)]
  if not names:
    raise SegjaxError(f'{path} names no image: download the file again')
  if len(set(names)) < len(names):
    twice = next(name for name in names if names.count(name) > 1)
    raise SegjaxError(f'{path} names {twice} twice: download the file again')
  for name in names:
    # Absolute names are harmless: where they are used, a directory comes before them.
    if '..' in PureWindowsPath(name).parts:
      raise SegjaxError(f'{path} names {name}, which leaves its directory: correct the file')
  return names


def read_image(path: Path, mode: str | tuple[str, ...], page: int = 0) -> np.ndarray:
  """Reads an image file, strictly and upright: a truncated file is an error.

  Args:
    path: an image file of any format that Pillow knows.
    mode: the pixel mode, or one of those, that the file must have: 'L' (8-bit gray), 'I;16' (16-bit
      gray), 'P' (palette) or 'RGB' (8 bits a channel).
    page: which page of a file with several, from 0.

  Returns:
    u8[H, W] for 'L' and 'P', whose indices they are; u16[H, W] for 'I;16'; u8[H, W, 3] for 'RGB'.

  Raises:
    SegjaxError: the file or the page is missing, cannot be decoded or has another mode.
  """
  found, pixels = images.decode_stored(read_bytes(path), str(path), page=page)
  modes = (mode,) if isinstance(mode, str) else mode
  if found not in modes:
    raise SegjaxError(
      f'{path} has pixels of mode {found}, not {" or ".join(modes)}: convert it, or download the '
      'file again'
    )
  return pixels.copy()


def read_label(path: Path) -> np.ndarray:
  """Reads a label map u8[H, W] from a gray file or a palette's indices; errors as `read_image`."""
  return read_image(path, ('L', 'P'))


def map_label(raw: np.ndarray, path: Path, classes: int, *, first: int, void: int) -> np.ndarray:
  """Class indices from the values of a raw label map.

  Args:
    raw: [H, W], whole numbers of any type.
    path: where they come from, for the error message.
    classes: how many there are.
    first: the raw value of class 0; the others follow it.
    void: the raw value that becomes `common.stored_void(classes)`.

  Returns:
    u8[H, W], or u16[H, W] of more than 255 classes.

  Raises:
    SegjaxError: there is another value.
  """
  is_void = raw == void
  wrong = ((raw < first) | (raw >= first + classes)) & ~is_void
  if wrong.any():
    raise SegjaxError(
      f'{path} has the label value {raw[wrong][0]}, which is out of range: classes are {first} to '
      f'{first + classes - 1}, void is {void}'
    )
  label = np.where(is_void, common.stored_void(classes), raw.astype(np.int64) - first)
  return label.astype(common.label_dtype(classes))


def files_of(names: Iterable[str], root: Path, image: str, label: str) -> list[Files]:
  """Where the files of some examples are: paths below `root`, with {} for the name."""
  return [(name, root / image.format(name), root / label.format(name)) for name in names]


def check_same_size(
  image: np.ndarray, image_path: Path, label: np.ndarray, label_path: Path
) -> None:
  """Raises a SegjaxError that names both files if image and label differ in height or width."""
  if image.shape[:2] != label.shape[:2]:
    raise images.size_error(
      read_bytes(image_path),
      str(image_path),
      f'its label {label_path}',
      label.shape[:2],
      'download both files again',
    )
