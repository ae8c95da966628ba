"""What `segjax predict` writes of each image, and of all of them."""

import argparse
import concurrent.futures
import contextlib
import functools
import itertools
import json
import os
import re
import tempfile
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path, PurePath
from typing import Any, BinaryIO, NamedTuple

import cv2
import jax
import numpy as np

from segjax import infer, storage
from segjax.data import frames
from segjax.data.datasets import DatasetSpec
from segjax.data.formats import panoptic
from segjax.data.frames import Frame, Source
from segjax.predictor import Predictor
from segjax.report import overlays, png
from segjax.result import Result
from segjax.run import notify
from segjax.training import sharding
from segjax.types import SegjaxError, nearest

# What each task can save, the default first.
SAVES = {
  'semantic': ('label', 'overlay', 'json', 'npz', 'prob'),
  'instance': ('overlay', 'json', 'npz'),
  'panoptic': ('overlay', 'json', 'npz'),
}
_DEFAULT = {
  'semantic': ('label', 'overlay'),
  'instance': ('overlay', 'json'),
  'panoptic': ('overlay', 'json'),
}
_ENDINGS = {
  'label': '.png',
  'overlay': '_overlay.png',
  'json': '.json',
  'npz': '.npz',
  'prob': '_prob.npz',
}
_UNCERTAINTY, _VIDEO = '_uncertainty.png', '_overlay.mp4'
# One file each for all images, in instance and panoptic tasks, as COCO's evaluation reads them.
BOXES, MASKS = 'results_bbox.json', 'results_segm.json'
SEGMENTS, IMAGES = 'results.json', 'images.json'
_SHARED = {'instance': (BOXES, MASKS, IMAGES), 'panoptic': (SEGMENTS, 'results', IMAGES)}
# Suffix after the image id in Cityscapes file names.
_CITYSCAPES_ENDING = '_leftImg8bit'
# Of overlays, which are looked at: a quarter of the time of zlib's default, for 1.2 of the bytes.
_FAST = (cv2.IMWRITE_PNG_COMPRESSION, 1)
# Overlays of label maps with more pixels are drawn and written by strips.
_LARGE = 2**24
# Rows of probabilities that are written at once.
_STRIP = 512
_THREADS = min(8, (os.cpu_count() or 1) + 1)


def choose(args: argparse.Namespace, predictor: Predictor) -> tuple[str, ...]:
  """What `--save` asks for.

  Raises:
    SegjaxError: an unknown word, or what the task does not predict.
  """
  if predictor.task not in SAVES:
    raise SegjaxError(
      f'segjax predict does not write what the task {predictor.task} predicts: use segjax.load'
    )
  possible = SAVES[predictor.task]
  for word in args.save or ():
    if word not in _ENDINGS:
      raise SegjaxError(f'--save={word} is unknown{nearest(word, _ENDINGS)}')
    if word not in possible:
      raise SegjaxError(
        f'--save={word}: a network of the task {predictor.task} does not predict it: choose from '
        f'{", ".join(possible)}'
      )
  return args.save or _DEFAULT[predictor.task]


class Place(NamedTuple):
  """Where predictions are written.

  Attributes:
    output: directory.
    folders: the sub-folder of what is written for each image file.
  """

  output: Path
  folders: Mapping[Path, PurePath]

  def relative(self, frame: Frame, ending: str) -> PurePath:
    """The file of an image with an ending such as '_overlay.png', in `output`."""
    folder = self.folders[frame.source.path]
    alone = frame.source.kind == 'image'
    return (folder if alone else folder / frame.source.stem) / f'{frame.name}{ending}'

  def shared_name(self, frame: Frame, suffix: str) -> str:
    """The name of an image in the files for all of them."""
    return (self.folders[frame.source.path] / f'{frame.name}{suffix}').as_posix()

  def names(self, source: Source, endings: Sequence[str]) -> list[PurePath]:
    """What is written of a file."""
    folder = self.folders[source.path]
    if source.kind == 'image':
      return [folder / f'{source.stem}{ending}' for ending in endings]
    names = [source.stem] + [f'{source.stem}{_VIDEO}'] * (source.kind == 'frame')
    return [folder / name for name in names]


def check_unused(output: Path, overwrite: bool) -> None:
  """Raises a SegjaxError for a directory with files, unless they may be replaced."""
  if output.exists() and not output.is_dir():
    raise SegjaxError(f'--output={output} is a file: choose a directory')
  if not overwrite and output.is_dir() and any(output.iterdir()):
    raise SegjaxError(
      f'--output={output} is not empty: choose another directory, or add --overwrite to replace '
      'its files'
    )


def check_outputs(
  place: Place, sources: Sequence[Source], endings: Sequence[str], shared: Sequence[str] = ()
) -> None:
  """Checks that no two predictions are written to the same file, and none over an image.

  Args:
    place: where they are written.
    sources: the files with images.
    endings: such as '.png' and '_overlay.png'.
    shared: names of files that are written once for all images.

  Raises:
    SegjaxError: two outputs have the same path, or one would overwrite an image.
  """
  output, resolved = place.output, storage.resolved
  taken = {source.path.resolve(): source.path for source in sources}
  taken |= {resolved(output / name): output / name for name in shared}
  directories = {source.path.parent.resolve(): source.path for source in sources}
  for source in sources:
    for name in place.names(source, endings):
      target = resolved(output / name)
      if other := taken.get(target) or directories.get(target):
        raise _conflict(output / name, source, other)
      taken[target] = source.path
  # In the files for all images, a page or a frame has its name alone.
  for source in (source for source in sources if source.kind != 'image'):
    name = re.compile(rf'{re.escape(source.stem)}_{source.kind}\d+')
    for other in sources:
      together = place.folders[source.path] == place.folders[other.path]
      if together and name.fullmatch(other.stem):
        raise _conflict(output / source.stem, source, other.path)


def _conflict(target: Path, source: Source, other: Path) -> SegjaxError:
  return SegjaxError(
    f'{target}, the output for {source.path}, conflicts with {other}: choose another --output '
    'directory, or rename the images'
  )


# --- writing --------------------------------------------------------------------------------------


class _Written(NamedTuple):
  """What is left of an image when its own files are written.

  Attributes:
    frame: the image.
    result: its prediction.
    image_id: its id in files of COCO's format.
    drawn: u8[H, W, 3], of a frame of a video, whose overlays are written in their order.
    entries: of the files for all images, by the name of the file.
  """

  frame: Frame
  result: Result
  image_id: int | str
  drawn: np.ndarray | None
  entries: Mapping[str, Sequence[Mapping[str, Any]]]


class Writer:
  """Writes the predictions of images in threads, and the files for all of them at the end.

  A context manager.

  Args:
    place: where to write.
    predictor: whose results they are.
    sources: the files with images.
    saves: words of `SAVES`.
    annotations: a JSON file in COCO's format that has the ids of the images.

  Raises:
    SegjaxError: two predictions would be written to the same file, or one over an image; an image
      is not in `annotations`.
  """

  def __init__(
    self,
    place: Place,
    predictor: Predictor,
    sources: Sequence[Source],
    saves: Sequence[str],
    annotations: Path | None = None,
  ):
    self.saves = tuple(saves)
    self._place, self._task, self._spec = place, predictor.task, predictor.spec
    shared = _SHARED.get(self._task, ()) if 'json' in saves else ()
    endings = [_ENDINGS[word] for word in saves]
    if self._task == 'semantic':
      endings.append(_UNCERTAINTY)
    check_outputs(place, sources, endings, shared)
    rule = panoptic_image_ids if self._task == 'panoptic' else image_numbers
    if annotations is not None:
      if not shared:
        raise SegjaxError(
          '--annotations is for the files for all images of objects or segments: leave it out, or '
          'add json to --save'
        )
      for source in sources:
        if source.kind != 'image':
          raise SegjaxError(
            f'{source.path} has several images, which --annotations={annotations} cannot list: '
            'leave it out'
          )
      rule = functools.partial(listed_ids, annotations)
    if jax.process_count() > 1 and 'json' in saves:
      _check_countable(sources)
    self._id_of = _ids(sources, rule)
    self._entries: dict[str, list[Mapping[str, Any]]] = {}
    self._video = _Videos(place)

  def __enter__(self) -> 'Writer':
    return self

  def __exit__(self, kind: Any, *error: Any) -> None:
    if kind is not None:
      self._video.discard()
      return
    self._video.close()
    self._entries = gather_entries(self._entries)
    if self._entries and jax.process_index() == 0:
      self._write_shared()

  def write_all(self, found: Iterable[tuple[Frame, Result]]) -> Iterator[Result]:
    """Writes each image's own files, and yields its result when they are written."""
    with concurrent.futures.ThreadPoolExecutor(_THREADS, 'segjax_write') as pool:
      numbered = ((frame, result, self._id_of(frame)) for frame, result in found)
      write, area = lambda args: self._write(*args), lambda args: args[0].area
      for written in infer.ordered(pool, write, numbered, _THREADS, area):
        if written.drawn is not None:
          self._video.write(written.frame, written.drawn)
        for name, entries in written.entries.items():
          self._entries.setdefault(name, []).extend(entries)
        yield written.result

  def _write(self, frame: Frame, result: Result, image_id: int | str) -> _Written:
    drawn = None
    for word in self.saves:
      if word == 'overlay' and frame.rate is not None:
        drawn = result.draw()
        continue
      with self._writing(frame, _ENDINGS[word]) as file:
        self._encode(file, word, frame, result, image_id)
    if result.uncertainty is not None:
      with self._writing(frame, _UNCERTAINTY) as file:
        file.write(_encode_png(overlays.heat(result.uncertainty)))
    shared = self._shared_entries(frame, result, image_id) if 'json' in self.saves else {}
    return _Written(frame, result, image_id, drawn, shared)

  def _writing(self, frame: Frame, ending: str) -> contextlib.AbstractContextManager[BinaryIO]:
    return storage.writing(self._place.output / self._place.relative(frame, ending))

  def _encode(
    self, file: BinaryIO, word: str, frame: Frame, result: Result, image_id: int | str
  ) -> None:
    if word == 'label':
      overlays.write_label_png(file, result.label, result.palette)
    elif word == 'overlay':
      _write_overlay(file, result)
    elif word == 'json':
      image = _image_entry(self._place, frame, image_id)
      file.write(json.dumps({**image, **_describe(result, image_id)}, indent=1).encode())
    elif word == 'npz':
      np.savez_compressed(file, class_names=np.array(result.class_names), **_arrays(result))
    else:
      _write_probability(file, result.probability)

  # --- the files for all images ---

  def _shared_entries(
    self, frame: Frame, result: Result, image_id: int | str
  ) -> dict[str, list[Mapping[str, Any]]]:
    if self._task == 'semantic':
      return {}
    entries = {IMAGES: [_image_entry(self._place, frame, image_id)]}
    if self._task == 'instance':
      entries[BOXES] = result.to_coco(image_id, 'box')
      if result.encoded_masks is not None:
        entries[MASKS] = result.to_coco(image_id, 'mask')
      return entries
    name = self._place.shared_name(frame, '.png')
    path = self._place.output / Path(SEGMENTS).stem / name
    storage.write_bytes(path, panoptic.encode_ids(result.segments))
    entries[SEGMENTS] = [{**result.to_coco(image_id)[0], 'file_name': name}]
    return entries

  def _write_shared(self) -> None:
    images = {
      'images': self._entries.pop(IMAGES),
      'categories': _categories(self._spec, self._task),
    }
    if self._task == 'instance':
      images['annotations'] = []
    contents: dict[str, Any] = {IMAGES: images, **self._entries}
    if SEGMENTS in contents:
      contents[SEGMENTS] = {'annotations': contents[SEGMENTS]}
    for name, content in contents.items():
      storage.write_bytes(self._place.output / name, json.dumps(content).encode())


def gather_entries(entries: Mapping[str, list[Any]]) -> dict[str, list[Any]]:
  """The entries of all processes by the name of their file, in the order of the processes."""
  names = sorted(set(sharding.gather_lists({'names': list(entries)})['names']))
  return sharding.gather_lists({name: entries.get(name, []) for name in names})


class _Videos:
  """Writes the overlays of one video after another.

  OpenCV writes to a local file: of a bucket to a temporary one, which is copied when it is whole.
  """

  def __init__(self, place: Place):
    self._place = place
    self._source: Source | None = None
    self._video: frames.VideoWriter | None = None
    self._path: Path | None = None
    self._temporary: tempfile.TemporaryDirectory[str] | None = None
    self._count = 0

  def write(self, frame: Frame, rgb: np.ndarray) -> None:
    """Appends u8[H, W, 3] to the video of the frame's file."""
    if frame.source is not self._source:
      self.close()
      self._source = frame.source
      (name,) = (n for n in self._place.names(frame.source, ()) if n.name.endswith(_VIDEO))
      self._path = local = self._place.output / name
      if storage.is_bucket(self._path):
        self._temporary = tempfile.TemporaryDirectory(prefix='segjax-video-')
        local = Path(self._temporary.name) / name.name
      storage.make_directory(local.parent)
      self._video = frames.VideoWriter(local, frame.rate)
    self._video.write(rgb)
    self._count += 1

  def close(self) -> None:
    """Completes the last video."""
    if self._video is not None:
      self._video.close()
      if self._temporary is not None:
        storage.copy_file(self._video.path, self._path)
        self._temporary.cleanup()
      notify(f'{self._source.path} -> {self._path}, {self._count} frames')
    self._video, self._temporary, self._count = None, None, 0

  def discard(self) -> None:
    """Leaves out the last video, which is not whole."""
    if self._video is not None:
      self._video.discard()
    if self._temporary is not None:
      self._temporary.cleanup()
    self._video, self._temporary, self._count = None, None, 0


def _write_overlay(file: BinaryIO, result: Result) -> None:
  if result.label is None or result.label.size <= _LARGE:
    file.write(_encode_png(result.draw()))
    return
  # The same without a drawing of the whole.
  label, palette = result.label, result.palette
  legend = overlays.legend(len(label), label, palette, result.class_names)
  strips = _beside(overlays.overlay_strips(result.image, label, palette), legend)
  png.write_rgb(file, (len(label), label.shape[1] + legend.shape[1]), strips)


def _beside(strips: Iterable[np.ndarray], legend: np.ndarray) -> Iterator[np.ndarray]:
  top = 0
  for strip in strips:
    yield np.hstack([strip, legend[top : top + len(strip)]])
    top += len(strip)


def _write_probability(file: BinaryIO, probability: np.ndarray) -> None:
  """As `np.savez_compressed` of float16, which would hold several copies of a large array."""
  with (
    zipfile.ZipFile(file, 'w', zipfile.ZIP_DEFLATED) as archive,
    archive.open('probability.npy', 'w', force_zip64=True) as entry,
  ):
    header = {'descr': '<f2', 'fortran_order': False, 'shape': probability.shape}
    np.lib.format.write_array_header_1_0(entry, header)
    for top in range(0, len(probability), _STRIP):
      entry.write(probability[top : top + _STRIP].astype('<f2').tobytes())


def _encode_png(rgb: np.ndarray) -> bytes:
  return cv2.imencode('.png', np.ascontiguousarray(rgb[..., ::-1]), _FAST)[1].tobytes()


def _arrays(result: Result) -> dict[str, np.ndarray]:
  fields = ('label', 'uncertainty', 'boxes', 'classes', 'scores', 'masks', 'segments')
  arrays = {field: value for field in fields if (value := getattr(result, field)) is not None}
  if result.segments_info is not None:
    arrays['segment_ids'] = np.array([info['id'] for info in result.segments_info], np.int32)
    categories = [info['category'] for info in result.segments_info]
    arrays['segment_classes'] = np.array(categories, np.int32)
  return arrays


def _describe(result: Result, image_id: int | str) -> dict[str, Any]:
  """The prediction as `NAME.json` has it."""
  if result.segments_info is not None:
    return {'segments': list(result.segments_info)}
  if result.label is not None:
    counts = overlays.count_labels(result.label, len(result.class_names)).tolist()
    pairs = zip(result.class_names, counts, strict=True)
    return {'classes': [{'class': name, 'pixels': count} for name, count in pairs if count]}
  merged = [{'class': result.class_names[k]} for k in result.classes]
  for kind in ('box', 'mask')[: 1 + (result.encoded_masks is not None)]:
    for entry, more in zip(merged, result.to_coco(image_id, kind), strict=True):
      entry |= more
  return {'objects': merged}


# --- ids ------------------------------------------------------------------------------------------


def _image_entry(place: Place, frame: Frame, image_id: int | str) -> dict[str, Any]:
  """The entry of an image in COCO format."""
  height, width = frame.pixels.shape[:2]
  name = place.shared_name(frame, frame.source.path.suffix)
  return {'id': image_id, 'file_name': name, 'height': height, 'width': width}


def _categories(spec: DatasetSpec, task: str) -> list[dict[str, Any]]:
  """The entries of `categories` in COCO format; in panoptic tasks with things and colors."""
  if not spec.category_ids:
    notify(
      f'{spec.name} defines no category ids: numbering the classes from 1; set '
      'config.data.category_ids to override'
    )
  ids = spec.category_ids or range(1, spec.num_classes + 1)
  entries = [
    {'id': int(number), 'name': name} for number, name in zip(ids, spec.class_names, strict=True)
  ]
  if task == 'panoptic':
    for k, (entry, color) in enumerate(zip(entries, spec.palette.tolist(), strict=True)):
      entry |= {'isthing': int(k in spec.things), 'color': color}
  return entries


def _check_countable(sources: Sequence[Source]) -> None:
  """Raises a SegjaxError for a video, whose frames nobody can count before they are read."""
  for source in sources:
    if source.kind == 'frame':
      raise SegjaxError(
        f'{source.path} is a video, whose frames several processes cannot number: leave out '
        '--distributed, or json in --save'
      )


def _ids(
  sources: Sequence[Source], rule: Callable[[Sequence[Path]], Mapping[Path, Any]]
) -> Callable[[Frame], Any]:
  """The id of each image: by `rule` from its file, or 1, 2, … where a file has several images."""
  if all(source.kind == 'image' for source in sources):
    known = rule([source.path for source in sources])
    return lambda frame: known[frame.source.path]
  if any(source.kind == 'frame' for source in sources):
    counter = itertools.count(1)
    return lambda frame: next(counter)
  # The same for whatever part of the files is read.
  numbers = itertools.accumulate((len(source.pages) or 1 for source in sources), initial=1)
  counters = {s.path: itertools.count(first) for s, first in zip(sources, numbers, strict=False)}
  return lambda frame: next(counters[frame.source.path])


def image_numbers(paths: Sequence[Path]) -> dict[Path, int]:
  """COCO's `image_id` of each image: its stem if all are distinct numbers, else 1, 2, …."""
  return _numbers_in_names(paths) or {path: n for n, path in enumerate(paths, start=1)}


def listed_ids(annotations: Path, paths: Sequence[Path]) -> dict[Path, int | str]:
  """The id of each image in a JSON file in COCO's format.

  An image is the entry whose `file_name` its path ends with, else the only one of its name: the
  images may have moved.

  Raises:
    SegjaxError: the file cannot be read; or an image is not listed, or more than once.
  """
  by_name: dict[str, list[tuple[tuple[str, ...], int | str]]] = {}
  try:
    for image in json.loads(annotations.read_text(encoding='utf-8'))['images']:
      parts = PurePath(image['file_name'].replace('\\', '/')).parts
      by_name.setdefault(parts[-1], []).append((parts, image['id']))
  except (OSError, ValueError, LookupError, TypeError, AttributeError) as e:
    raise SegjaxError(
      f'--annotations={annotations} is not a JSON file with images, each with id and file_name '
      f'({type(e).__name__}): name the file that the images are annotated in'
    ) from e
  found = {}
  for path in paths:
    parts, listed = path.absolute().parts, by_name.get(path.name, [])
    fitting = [entry for entry in listed if parts[-len(entry[0]) :] == entry[0]] or listed
    if len(fitting) != 1:
      times = f'{len(fitting)} times' if fitting else 'not'
      raise SegjaxError(
        f'{path} is {times} among the images of --annotations={annotations}: name the file that '
        'lists it once'
      )
    found[path] = fitting[0][1]
  return found


def panoptic_image_ids(paths: Sequence[Path]) -> Mapping[Path, int | str]:
  """The `image_id` of each image as the public panoptic evaluations expect it.

  COCO's ids are numbers, see `image_numbers`. If a stem is not a number, the id is the stem without
  the suffix of Cityscapes file names.
  """
  if numbers := _numbers_in_names(paths):
    return numbers
  stems = {path: path.stem.removesuffix(_CITYSCAPES_ENDING) for path in paths}
  if len(set(stems.values())) == len(stems):
    return stems
  stems = {path: path.stem for path in paths}
  # Of one name in several folders: the path tells them apart.
  return stems if len(set(stems.values())) == len(stems) else {p: p.as_posix() for p in paths}


def _numbers_in_names(paths: Sequence[Path]) -> dict[Path, int]:
  """The stem of each path as a number; empty unless all stems are distinct numbers."""
  stems = [path.stem for path in paths]
  if not all(stem.isascii() and stem.isdigit() for stem in stems):
    return {}
  numbers = {path: int(stem) for path, stem in zip(paths, stems, strict=True)}
  return numbers if len(set(numbers.values())) == len(numbers) else {}
