"""`segjax predict`: writes label maps, objects or segments of image files and videos."""

import argparse
import functools
import glob
import itertools
import json
import re
from collections.abc import Callable, Iterator, Mapping, MutableMapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from segjax import draw
from segjax import run as run_lib
from segjax.cli import options
from segjax.data import frames
from segjax.data.datasets import DatasetSpec
from segjax.data.formats import panoptic
from segjax.data.frames import Frame, Source
from segjax.infer import Prediction, predict_files
from segjax.metrics import coco
from segjax.ops.paste_masks import paste_masks
from segjax.report import overlays
from segjax.run import Loaded, notify
from segjax.types import Detections, SegjaxError, Segments
from segjax.workdir import Workdir

EXAMPLE = """examples:
  segjax predict --workdir=runs/scenes --images='photos/*.jpg' --output=out/
  segjax predict --workdir=runs/scenes --images=clip.mp4 --output=out/

Semantic tasks write NAME.png, whose pixel values are class indices, and NAME_overlay.png. For a
SegNet with dropout, --config.eval.samples=40 adds NAME_uncertainty.png (Bayesian SegNet).
Instance tasks write NAME.json, NAME_overlay.png, and results.json and images.json in COCO format.
Panoptic tasks write NAME_overlay.png, and results.json, results/ and images.json in COCO panoptic
format.

The pages of a TIFF file and the frames of a video are images of their own, numbered from 1. What is
written for each is in NAME/, as NAME_page1… or NAME_frame000001…; the overlays of a video are
NAME_overlay.mp4. Files that cannot be read are listed at the end; the exit status is then 2."""

# One file each for all images, in instance and panoptic tasks.
RESULTS, IMAGES = 'results.json', 'images.json'
_OVERLAY, _VIDEO = '_overlay.png', '_overlay.mp4'
# What a Mac leaves beside the files of other file systems, with their suffixes.
_RESOURCE_FORK = '._'
# Suffix after the image id in Cityscapes file names.
_CITYSCAPES_ENDING = '_leftImg8bit'
# Frames of a video between two lines of progress.
_PROGRESS = 100

# What is wrong with each file that could not be read.
Failed = MutableMapping[Path, str]


def add_arguments(parser: argparse.ArgumentParser) -> None:
  options.add_workdir(parser)
  options.add_checkpoint(parser)
  parser.add_argument('--images', required=True, help='file, directory, or quoted glob pattern')
  parser.add_argument('--output', required=True, help='directory to write to')


def run(args: argparse.Namespace) -> int:
  sources = [frames.find_source(path) for path in find_images(args.images)]
  output = Path(args.output)
  loaded = run_lib.load_run(Workdir(args.workdir), args.checkpoint, args.overrides)
  writers = {'label': write_labels, 'objects': write_objects, 'segments': write_segments}
  # A network predicts the last annotation that its task reads.
  write = writers[loaded.run.experiment.input.annotations[-1]]
  failed: dict[Path, str] = {}
  if count := write(loaded, sources, output, failed):
    notify(f'{count} images: the predictions are in {output}')
  _check_failed(failed, len(sources))
  return 0


def _check_failed(failed: Failed, count: int) -> None:
  """Lists the files that could not be read, and raises a SegjaxError if there are any."""
  if not failed:
    return
  sentences = list(failed.values())
  if count == 1:
    raise SegjaxError(sentences[0])
  if len(failed) == 1:
    raise SegjaxError(f'1 of {count} files was left out: {sentences[0]}')
  for sentence in sentences:
    notify(f'left out: {sentence}')
  raise SegjaxError(f'{len(failed)} of {count} files were left out, such as {sentences[0]}')


def find_images(pattern: str) -> list[Path]:
  """The image and video files in a directory or matching a glob pattern, sorted.

  Raises:
    SegjaxError: no images match.
  """
  path = Path(pattern)
  if path.is_dir():
    found = list(path.iterdir())
  else:  # a file's name may have the characters of patterns
    found = [path] if path.exists() else list(map(Path, glob.glob(pattern, recursive=True)))
  found = sorted(
    path
    for path in found
    if path.suffix.lower() in frames.SUFFIXES
    and not path.name.startswith(_RESOURCE_FORK)
    and not path.is_dir()
  )
  if not found:
    raise SegjaxError(
      f'--images={pattern}: no images match ({", ".join(frames.SUFFIXES)}): give a file, a '
      'directory or a pattern'
    )
  return found


# --- where predictions are written ----------------------------------------------------------------


def output_path(frame: Frame, output: Path, ending: str) -> Path:
  """The file of an image with an ending such as '_overlay.png', in a directory that exists."""
  alone = frame.source.kind == 'image'
  path = (output if alone else output / frame.source.stem) / f'{frame.name}{ending}'
  path.parent.mkdir(parents=True, exist_ok=True)
  return path


def check_outputs(
  sources: Sequence[Source], output: Path, endings: Sequence[str], shared: Sequence[str] = ()
) -> None:
  """Checks that no two predictions are written to the same file, and none over an image.

  Args:
    sources: the files with images.
    output: directory.
    endings: such as '.png' and '_overlay.png'.
    shared: names of files that are written once for all images.

  Raises:
    SegjaxError: two outputs have the same path, or one would overwrite an image.
  """
  taken = {source.path.resolve(): source.path for source in sources}
  taken |= {(output / name).resolve(): output / name for name in shared}
  directories = {source.path.parent.resolve(): source.path for source in sources}
  for source in sources:
    for name in _outputs(source, endings):
      target = (output / name).resolve()
      if other := taken.get(target) or directories.get(target):
        raise _conflict(output / name, source, other)
      taken[target] = source.path
  # In the files for all images, a page or a frame has its name alone.
  for source in (source for source in sources if source.kind != 'image'):
    name = re.compile(rf'{re.escape(source.stem)}_{source.kind}\d+')
    for other in sources:
      if name.fullmatch(other.stem):
        raise _conflict(output / source.stem, source, other.path)


def _outputs(source: Source, endings: Sequence[str]) -> list[str]:
  """The names of what is written of a file, in the output directory."""
  if source.kind == 'image':
    return [f'{source.stem}{ending}' for ending in endings]
  return [source.stem] + [f'{source.stem}{_VIDEO}'] * (source.kind == 'frame')


def _conflict(target: Path, source: Source, other: Path) -> SegjaxError:
  return SegjaxError(
    f'{target}, the output for {source.path}, conflicts with {other}: choose another --output '
    'directory, or rename the images'
  )


class Overlays:
  """Writes the overlay of each image, those of a video as a video; a context manager.

  Args:
    output: directory.
  """

  def __init__(self, output: Path):
    self._output = output
    self._source: Source | None = None
    self._video: frames.VideoWriter | None = None
    self._count = 0

  def __enter__(self) -> 'Overlays':
    return self

  def __exit__(self, *error: Any) -> None:
    self._close()

  def write(self, frame: Frame, rgb: np.ndarray, line: str) -> None:
    """Writes u8[H, W, 3], and shows a line on the image, unless it is a frame of a video."""
    if frame.source is not self._source:
      self._close()
      self._source = frame.source
    if frame.rate is None:
      Image.fromarray(rgb).save(output_path(frame, self._output, _OVERLAY))
      notify(f'{frame.source.path} -> {line}')
      return
    if self._video is None:
      self._output.mkdir(parents=True, exist_ok=True)
      self._video = frames.VideoWriter(self._output / f'{frame.source.stem}{_VIDEO}', frame.rate)
    self._video.write(rgb)
    self._count += 1
    if self._count % _PROGRESS == 0:
      notify(f'{frame.source.path}: {self._count} frames')

  def _close(self) -> None:
    if self._video is not None:
      self._video.close()
      notify(f'{self._source.path} -> {self._video.path}, {self._count} frames')
    self._video, self._count = None, 0


# --- tasks ----------------------------------------------------------------------------------------


def write_labels(loaded: Loaded, sources: Sequence[Source], output: Path, failed: Failed) -> int:
  """Writes a label map and an overlay of each image, and its uncertainty if the task samples.

  Returns:
    The number of images.
  """
  check_outputs(sources, output, ('.png', _OVERLAY, '_uncertainty.png'))
  palette, count = loaded.run.spec.palette, 0
  with Overlays(output) as shown:
    for found in predict_files(loaded, sources, ('probability', 'uncertainty'), failed):
      label, uncertainty, count = found.label, found.uncertainty, count + 1
      label_path = output_path(found.frame, output, '.png')
      overlays.write_label_png(label_path, label, palette)
      line = str(label_path)
      if uncertainty is not None:
        path = output_path(found.frame, output, '_uncertainty.png')
        Image.fromarray(overlays.heat(uncertainty)).save(path)
        line += f', uncertainty up to {uncertainty.max():.3g}'
      shown.write(found.frame, overlays.overlay(found.frame.pixels, label, palette), line)
  return count


def write_objects(loaded: Loaded, sources: Sequence[Source], output: Path, failed: Failed) -> int:
  """Writes `NAME.json` and `NAME_overlay.png` of each image, and all objects in COCO format.

  `COCO('images.json').loadRes('results.json')` of pycocotools reads the results. For the ids of the
  images see `image_numbers`.

  Returns:
    The number of images; without any, nothing is written.
  """
  check_outputs(sources, output, ('.json', _OVERLAY), (RESULTS, IMAGES))
  spec, config = loaded.run.spec, loaded.run.experiment.eval
  masks = getattr(loaded.run.model, 'masks', True)
  paste = functools.partial(paste_masks, rule=config.paste) if masks else None
  category_ids, number_of = _category_ids(spec), _ids(sources, image_numbers)
  results: list[dict[str, Any]] = []
  listed: list[dict[str, Any]] = []
  with Overlays(output) as shown:
    for found in predict_files(loaded, sources, Detections._fields, failed):
      number = number_of(found.frame)
      result = _native_result(found, number, paste)
      entries = coco.coco_results([result], category_ids)
      results += entries
      listed.append(_image_entry(found.frame, number))
      objects = [
        {'class': spec.class_names[k], **entry}
        for k, entry in zip(result['classes'].tolist(), entries, strict=True)
      ]
      json_path = output_path(found.frame, output, '.json')
      json_path.write_text(json.dumps({**listed[-1], 'objects': objects}, indent=1))
      overlay = draw.draw_result(spec, config.draw_threshold, found.frame.pixels, result)
      shown.write(found.frame, overlay, f'{json_path}, {len(objects)} objects')
  categories = [
    {'id': number, 'name': name}
    for number, name in zip(category_ids, spec.class_names, strict=True)
  ]
  if listed:
    content = {'images': listed, 'categories': categories, 'annotations': []}
    (output / IMAGES).write_text(json.dumps(content))
    (output / RESULTS).write_text(json.dumps(results))
  return len(listed)


def write_segments(loaded: Loaded, sources: Sequence[Source], output: Path, failed: Failed) -> int:
  """Writes all segments in COCO panoptic format, and `NAME_overlay.png` of each image.

  panopticapi's evaluation reads `results.json` and the PNGs of segment ids in the directory
  `results` as predictions. `images.json` lists the images and the categories. For the ids of the
  images see `panoptic_image_ids`.

  Returns:
    The number of images; without any, nothing is written.
  """
  check_outputs(sources, output, (_OVERLAY,), (RESULTS, Path(RESULTS).stem, IMAGES))
  spec = loaded.run.spec
  category_ids, id_of = _category_ids(spec), _ids(sources, panoptic_image_ids)
  listed: list[dict[str, Any]] = []

  def results() -> Iterator[tuple[bytes, dict[str, Any]]]:
    with Overlays(output) as shown:
      for found in predict_files(loaded, sources, ('segments',), failed):
        frame, image_id = found.frame, id_of(found.frame)
        segments = _crop(found.values['segments'], frame.pixels.shape)
        encoded, entry = panoptic.encode_result(
          segments, file_name=frame.file_name, image_id=image_id, category_ids=category_ids
        )
        listed.append(_image_entry(frame, image_id))
        overlay = draw.draw_segments(spec, frame.pixels, segments)
        path, count = output_path(frame, output, _OVERLAY), len(entry['segments_info'])
        shown.write(frame, overlay, f'{path}, {count} segments')
        yield encoded, entry

  found = results()
  if (first := next(found, None)) is None:
    return 0
  panoptic.write_results(output / RESULTS, itertools.chain([first], found))
  categories = [
    {'id': int(number), 'name': name, 'isthing': int(index in spec.things), 'color': color}
    for index, (number, name, color) in enumerate(
      zip(category_ids, spec.class_names, spec.palette.tolist(), strict=True)
    )
  ]
  (output / IMAGES).write_text(json.dumps({'images': listed, 'categories': categories}))
  return len(listed)


def _native_result(found: Prediction, number: int, paste: coco.Paste | None) -> coco.ImageResult:
  """The objects of an image in its original pixels."""
  height, width = found.frame.pixels.shape[:2]
  annotation = {
    'image_id': number,
    'height': height,
    'width': width,
    'scale': (found.size[0] / height, found.size[1] / width),
    'objects': [],
  }
  return coco.image_result(found.values, annotation, paste)


def _crop(segments: Segments, shape: tuple[int, ...]) -> Segments:
  """The segments of an image without its padding."""
  return segments._replace(ids=segments.ids[: shape[0], : shape[1]])


def _image_entry(frame: Frame, image_id: int | str) -> dict[str, Any]:
  """The entry of an image in COCO format."""
  height, width = frame.pixels.shape[:2]
  return {'id': image_id, 'file_name': frame.file_name, 'height': height, 'width': width}


def _ids(
  sources: Sequence[Source], rule: Callable[[Sequence[Path]], Mapping[Path, Any]]
) -> Callable[[Frame], Any]:
  """The id of each image: by `rule` from its file, or 1, 2, … where a file has several images."""
  if all(source.kind == 'image' for source in sources):
    known = rule([source.path for source in sources])
    return lambda frame: known[frame.source.path]
  counter = itertools.count(1)
  return lambda frame: next(counter)


def image_numbers(paths: Sequence[Path]) -> dict[Path, int]:
  """COCO's `image_id` of each image: its stem if all are distinct numbers, else 1, 2, …."""
  return _numbers_in_names(paths) or {path: n for n, path in enumerate(paths, start=1)}


def panoptic_image_ids(paths: Sequence[Path]) -> Mapping[Path, int | str]:
  """The `image_id` of each image as the public panoptic evaluations expect it.

  COCO's ids are numbers, see `image_numbers`. If a stem is not a number, the id is the stem without
  the suffix of Cityscapes file names.
  """
  if numbers := _numbers_in_names(paths):
    return numbers
  stems = {path: path.stem.removesuffix(_CITYSCAPES_ENDING) for path in paths}
  return stems if len(set(stems.values())) == len(stems) else {path: path.stem for path in paths}


def _numbers_in_names(paths: Sequence[Path]) -> dict[Path, int]:
  """The stem of each path as a number; empty unless all stems are distinct numbers."""
  stems = [path.stem for path in paths]
  if not all(stem.isascii() and stem.isdigit() for stem in stems):
    return {}
  numbers = {path: int(stem) for path, stem in zip(paths, stems, strict=True)}
  return numbers if len(set(numbers.values())) == len(numbers) else {}


def _category_ids(spec: DatasetSpec) -> Sequence[int]:
  """The COCO category id of each class; 1, 2, …, with a notice, if the data set defines none."""
  if spec.category_ids:
    return spec.category_ids
  notify(
    f'{spec.name} defines no category ids: numbering the classes from 1; set '
    'config.data.category_ids to override'
  )
  return range(1, spec.num_classes + 1)
