"""`segjax predict`: writes label maps, objects or segments of image files."""

import argparse
import functools
import glob
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from PIL import Image

from segjax import draw
from segjax import run as run_lib
from segjax.cli import options
from segjax.data import images, pipeline
from segjax.data.datasets import DatasetSpec
from segjax.data.formats import panoptic
from segjax.metrics import coco
from segjax.ops.paste_masks import paste_masks
from segjax.report import overlays
from segjax.run import Loaded, notify
from segjax.train import compile
from segjax.types import Detections, SegjaxError, Segments
from segjax.workdir import Workdir

HELP = 'run a trained network on image files'
EXAMPLE = """example:
  segjax predict --workdir=runs/scenes --images='photos/*.jpg' --output=out/

Semantic tasks write NAME.png, whose pixel values are class indices, and NAME_overlay.png. For a
SegNet with dropout, --config.eval.samples=40 adds NAME_uncertainty.png (Bayesian SegNet).
Instance tasks write NAME.json, NAME_overlay.png, and results.json and images.json in COCO format.
Panoptic tasks write NAME_overlay.png, and results.json, results/ and images.json in COCO panoptic
format."""

# One file each for all images, in instance and panoptic tasks.
RESULTS, IMAGES = 'results.json', 'images.json'
# Suffix after the image id in Cityscapes file names.
_CITYSCAPES_ENDING = '_leftImg8bit'
_SUFFIXES = ('.bmp', '.jpeg', '.jpg', '.png', '.tif', '.tiff', '.webp')


def add_arguments(parser: argparse.ArgumentParser) -> None:
  options.add_workdir(parser)
  options.add_checkpoint(parser)
  parser.add_argument('--images', required=True, help='directory, or a quoted glob pattern')
  parser.add_argument('--output', required=True, help='directory to write to')


def run(args: argparse.Namespace) -> int:
  paths, output = find_images(args.images), Path(args.output)
  loaded = run_lib.load_run(Workdir(args.workdir), args.checkpoint, args.overrides)
  writers = {'label': write_labels, 'objects': write_objects, 'segments': write_segments}
  # A network predicts the last annotation that its task reads.
  writers[loaded.run.experiment.input.annotations[-1]](loaded, paths, output)
  return 0


def find_images(pattern: str) -> list[Path]:
  """The image files in a directory or matching a glob pattern, sorted.

  Raises:
    SegjaxError: no images match.
  """
  folder = Path(pattern)
  found = folder.iterdir() if folder.is_dir() else map(Path, glob.glob(pattern, recursive=True))
  found = sorted(path for path in found if path.suffix.lower() in _SUFFIXES)
  if not found:
    raise SegjaxError(
      f'--images={pattern}: no images match ({", ".join(_SUFFIXES)}): give a directory or a pattern'
    )
  return found


def name_outputs(
  paths: Sequence[Path], output: Path, endings: Sequence[str], shared: Sequence[str] = ()
) -> dict[Path, list[Path]]:
  """The output files of each image: its stem with each of `endings`.

  Args:
    paths: of the images.
    output: directory.
    endings: such as '.png' and '_overlay.png'.
    shared: names of files that are written once for all images.

  Raises:
    SegjaxError: two outputs have the same path, or one would overwrite an image.
  """
  targets = {p: [output / f'{p.stem}{ending}' for ending in endings] for p in paths}
  taken: dict[Path, Path] = {p.resolve(): p for p in paths}
  taken |= {(output / name).resolve(): output / name for name in shared}
  for path, files in targets.items():
    for target in files:
      other = taken.setdefault(target.resolve(), path)
      if other is not path or target.resolve() == path.resolve():
        raise SegjaxError(
          f'{target}, the output for {path}, conflicts with {other}: choose another --output '
          'directory, or rename the images'
        )
  return targets


class Prediction(NamedTuple):
  """The prediction for one image.

  Attributes:
    path: of the image.
    image: u8[H, W, C].
    size: (height, width) of the image as the network sees it, inside its padding.
    values: entries of `Task.predict`, without the batch axis.
    restore: scores f[H', W', K] at the size of the network's output -> f[H, W, K].
  """

  path: Path
  image: np.ndarray
  size: tuple[int, int]
  values: dict[str, Any]
  restore: Callable[[np.ndarray], np.ndarray]


def predict_images(
  loaded: Loaded, paths: Iterable[Path], keys: Sequence[str]
) -> Iterator[Prediction]:
  """Yields the predictions of a trained run for image files.

  Args:
    loaded: the run.
    paths: of the images.
    keys: entries of `Task.predict` to keep, if the task has them.

  Raises:
    SegjaxError: a file cannot be decoded.
  """
  task, spec, config = loaded.run.task, loaded.run.spec, loaded.run.experiment.input

  @compile.jit
  def apply(variables, batch):
    outputs, _ = task.forward(variables, batch, train=False)
    return {key: value for key, value in task.predict(outputs, batch).items() if key in keys}

  variables = jax.device_put(loaded.variables)
  for path in paths:
    image = images.decode_image(path.read_bytes(), spec.channels, str(path))
    batch, restore = pipeline.prepare_image(image, config)
    values = jax.tree.map(lambda x: np.asarray(x[0]), apply(variables, batch))
    height, width = batch['size'][0].tolist()
    yield Prediction(path, image, (height, width), values, restore)


def write_labels(loaded: Loaded, paths: Sequence[Path], output: Path) -> None:
  """Writes a label map and an overlay of each image, and its uncertainty if the task samples."""
  targets = name_outputs(paths, output, ('.png', '_overlay.png', '_uncertainty.png'))
  output.mkdir(parents=True, exist_ok=True)
  palette = loaded.run.spec.palette
  for found in predict_images(loaded, paths, ('probability', 'uncertainty')):
    label_path, overlay_path, uncertainty_path = targets[found.path]
    label = found.restore(found.values['probability']).argmax(-1)
    overlays.write_label_png(label_path, label, palette)
    Image.fromarray(overlays.overlay(found.image, label, palette)).save(overlay_path)
    note = ''
    if 'uncertainty' in found.values:
      uncertainty = found.restore(found.values['uncertainty'][..., None])[..., 0]
      Image.fromarray(overlays.heat(uncertainty)).save(uncertainty_path)
      note = f', uncertainty up to {uncertainty.max():.3g}'
    notify(f'{found.path} -> {label_path}{note}')
  notify(f'{len(paths)} images: label maps and overlays are in {output}')


def write_objects(loaded: Loaded, paths: Sequence[Path], output: Path) -> None:
  """Writes `NAME.json` and `NAME_overlay.png` of each image, and all objects in COCO format.

  `COCO('images.json').loadRes('results.json')` of pycocotools reads the results. For the ids of the
  images see `image_numbers`.
  """
  targets = name_outputs(paths, output, ('.json', '_overlay.png'), (RESULTS, IMAGES))
  output.mkdir(parents=True, exist_ok=True)
  spec, config = loaded.run.spec, loaded.run.experiment.eval
  masks = getattr(loaded.run.model, 'masks', True)
  paste = functools.partial(paste_masks, rule=config.paste) if masks else None
  category_ids, numbers = _category_ids(spec), image_numbers(paths)
  results, listed = [], []
  for found in predict_images(loaded, paths, Detections._fields):
    json_path, overlay_path = targets[found.path]
    result = _native_result(found, numbers[found.path], paste)
    entries = coco.coco_results([result], category_ids)
    results += entries
    listed.append(_image_entry(found, numbers[found.path]))
    objects = [
      {'class': spec.class_names[k], **entry}
      for k, entry in zip(result['classes'].tolist(), entries, strict=True)
    ]
    json_path.write_text(json.dumps({**listed[-1], 'objects': objects}, indent=1))
    overlay = draw.draw_result(spec, config.draw_threshold, found.image, result)
    Image.fromarray(overlay).save(overlay_path)
    notify(f'{found.path} -> {json_path}, {len(objects)} objects')
  categories = [
    {'id': number, 'name': name}
    for number, name in zip(category_ids, spec.class_names, strict=True)
  ]
  content = {'images': listed, 'categories': categories, 'annotations': []}
  (output / IMAGES).write_text(json.dumps(content))
  (output / RESULTS).write_text(json.dumps(results))
  notify(f'{len(paths)} images: objects, overlays and {output / RESULTS} are in {output}')


def write_segments(loaded: Loaded, paths: Sequence[Path], output: Path) -> None:
  """Writes all segments in COCO panoptic format, and `NAME_overlay.png` of each image.

  panopticapi's evaluation reads `results.json` and the PNGs of segment ids in the directory
  `results` as predictions. `images.json` lists the images and the categories. For the ids of the
  images see `panoptic_image_ids`.
  """
  targets = name_outputs(paths, output, ('_overlay.png',), (RESULTS, IMAGES))
  output.mkdir(parents=True, exist_ok=True)
  spec = loaded.run.spec
  category_ids, image_ids = _category_ids(spec), panoptic_image_ids(paths)
  listed: list[dict[str, Any]] = []

  def results() -> Iterator[tuple[bytes, dict[str, Any]]]:
    for found in predict_images(loaded, paths, ('segments',)):
      (overlay_path,), image_id = targets[found.path], image_ids[found.path]
      segments = _crop(found.values['segments'], found.image.shape)
      encoded, entry = panoptic.encode_result(
        segments, file_name=found.path.name, image_id=image_id, category_ids=category_ids
      )
      listed.append(_image_entry(found, image_id))
      Image.fromarray(draw.draw_segments(spec, found.image, segments)).save(overlay_path)
      notify(f'{found.path} -> {overlay_path}, {len(entry["segments_info"])} segments')
      yield encoded, entry

  panoptic.write_results(output / RESULTS, results())
  categories = [
    {'id': int(number), 'name': name, 'isthing': int(index in spec.things), 'color': color}
    for index, (number, name, color) in enumerate(
      zip(category_ids, spec.class_names, spec.palette.tolist(), strict=True)
    )
  ]
  (output / IMAGES).write_text(json.dumps({'images': listed, 'categories': categories}))
  notify(f'{len(paths)} images: overlays and {output / RESULTS} are in {output}')


def _native_result(found: Prediction, number: int, paste: coco.Paste | None) -> coco.ImageResult:
  """The objects of an image in its original pixels."""
  height, width = found.image.shape[:2]
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


def _image_entry(found: Prediction, image_id: int | str) -> dict[str, Any]:
  """The entry of an image in COCO format."""
  height, width = found.image.shape[:2]
  return {'id': image_id, 'file_name': found.path.name, 'height': height, 'width': width}


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
