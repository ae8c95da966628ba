"""`segjax predict`: images in, files out."""

import glob
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from PIL import Image

from segjax.data import images, instance_pipeline, pipeline
from segjax.data.datasets import DatasetSpec
from segjax.data.formats import panoptic
from segjax.data.pipeline import DataConfig
from segjax.metrics import coco
from segjax.report import overlays
from segjax.tasks.base import Task
from segjax.train import compile
from segjax.types import SegjaxError, Segments

# What is written of all images together, where there are objects.
RESULTS, IMAGES = 'results.json', 'images.json'
# What follows the id in the names of Cityscapes' images.
_CITYSCAPES_ENDING = '_leftImg8bit'

Draw = Callable[..., np.ndarray]


class Network(NamedTuple):
  """A trained network: its task and variables, and what it knows of its data."""

  task: Task
  variables: Mapping[str, Any]
  spec: DatasetSpec
  data: DataConfig


def find_images(pattern: str) -> list[Path]:
  """The image files that a folder holds or a glob pattern names, sorted.

  Raises:
    SegjaxError: there are none.
  """
  folder = Path(pattern)
  found = folder.iterdir() if folder.is_dir() else map(Path, glob.glob(pattern, recursive=True))
  suffixes = {'.png', '.jpg', '.jpeg', '.tif', '.tiff', '.bmp', '.webp'}
  found = sorted(p for p in found if p.suffix.lower() in suffixes)
  if not found:
    kinds = ', '.join(sorted(suffixes))
    raise SegjaxError(f'--images={pattern} holds no image ({kinds}): give a folder or a pattern')
  return found


def name_outputs(
  paths: Sequence[Path], output: Path, endings: Sequence[str], shared: Sequence[str] = ()
) -> dict[Path, list[Path]]:
  """The files of each image, `NAME` and each of `endings`.

  Args:
    paths: of the images.
    output: folder.
    endings: such as '.png' and '_overlay.png'.
    shared: names of files for all images together.

  Raises:
    SegjaxError: two images would get the same file, or one would overwrite an image.
  """
  targets = {p: [output / f'{p.stem}{ending}' for ending in endings] for p in paths}
  taken: dict[Path, Path] = {p.resolve(): p for p in paths}
  taken |= {(output / name).resolve(): output / name for name in shared}
  for path, files in targets.items():
    for target in files:
      other = taken.setdefault(target.resolve(), path)
      if other is not path or target.resolve() == path.resolve():
        raise SegjaxError(
          f'{target}, for {path}, would overwrite or be mixed up with that of {other}: give '
          '--output another folder, or the images other names'
        )
  return targets


def write_labels(
  network: Network, paths: Sequence[Path], output: Path, tell: Callable[[str], None]
) -> None:
  """A label map and an overlay for each image, and its uncertainty if the task samples."""
  task, variables, spec, data = network
  targets = name_outputs(paths, output, ('.png', '_overlay.png', '_uncertainty.png'))
  output.mkdir(parents=True, exist_ok=True)

  @compile.jit
  def apply(variables, image):
    outputs, _ = task.forward(variables, {'image': image}, train=False)
    predictions = task.predict(outputs, {'image': image})
    return {k: v for k, v in predictions.items() if k in ('probability', 'uncertainty')}

  variables = jax.device_put(variables)
  for path, (label_path, overlay_path, uncertainty_path) in targets.items():
    image = images.decode_image(path.read_bytes(), spec.channels, str(path))
    prepared, restore = pipeline.prepare_image(image, data)
    scores = {k: np.asarray(v[0]) for k, v in apply(variables, prepared[None]).items()}
    label = restore(scores['probability']).argmax(-1)
    overlays.write_label_png(label_path, label, spec.palette)
    Image.fromarray(overlays.overlay(image, label, spec.palette)).save(overlay_path)
    told = ''
    if 'uncertainty' in scores:
      uncertainty = restore(scores['uncertainty'][..., None])[..., 0]
      Image.fromarray(overlays.heat(uncertainty)).save(uncertainty_path)
      told = f', uncertainty up to {uncertainty.max():.3g}'
    tell(f'{path} -> {label_path}{told}')
  tell(f'{len(paths)} images: label maps and overlays are in {output}')


def write_objects(
  network: Network,
  paths: Sequence[Path],
  output: Path,
  tell: Callable[[str], None],
  *,
  paste: coco.Paste | None,
  draw: Callable[[np.ndarray, coco.ImageResult], np.ndarray],
) -> None:
  """`NAME.json` and `NAME_overlay.png` for each image, and all objects in COCO's format.

  `results.json` is what `pycocotools`' `COCO('images.json').loadRes('results.json')` reads. The
  number of an image is its name, where all names are numbers as COCO's are, else its place.

  Args:
    network: of an instance task.
    paths: of the images.
    output: folder.
    tell: what the person sees.
    paste: as `coco.image_result` has it; None for boxes alone.
    draw: the overlay of an image u8[H, W, C] and its result.
  """
  task, variables, spec, data = network
  shared = (RESULTS, IMAGES)
  targets = name_outputs(paths, output, ('.json', '_overlay.png'), shared)
  output.mkdir(parents=True, exist_ok=True)

  @compile.jit
  def apply(variables, batch):
    outputs, _ = task.forward(variables, batch, train=False)
    return task.predict(outputs, batch)

  variables = jax.device_put(variables)
  category_ids = _category_ids(spec, tell)
  numbers = image_numbers(paths)
  results, listed = [], []
  for path, (json_path, overlay_path) in targets.items():
    image = images.decode_image(path.read_bytes(), spec.channels, str(path))
    batch = instance_pipeline.prepare_image(image, data)
    found = {k: np.asarray(v[0]) for k, v in apply(variables, batch).items()}
    height, width = image.shape[:2]
    size = batch['size'][0].tolist()
    annotation = {
      'image_id': numbers[path],
      'height': height,
      'width': width,
      'scale': (size[0] / height, size[1] / width),
      'objects': [],
    }
    result = coco.image_result(found, annotation, paste)
    entries = coco.coco_results([result], category_ids)
    results += entries
    listed.append({'id': numbers[path], 'file_name': path.name, 'height': height, 'width': width})
    objects = [
      {'class': spec.class_names[k], **entry}
      for k, entry in zip(result['classes'].tolist(), entries, strict=True)
    ]
    json_path.write_text(json.dumps({**listed[-1], 'objects': objects}, indent=1))
    Image.fromarray(draw(image, result)).save(overlay_path)
    tell(f'{path} -> {json_path}, {len(objects)} objects')
  categories = [
    {'id': number, 'name': name}
    for number, name in zip(category_ids, spec.class_names, strict=True)
  ]
  content = {'images': listed, 'categories': categories, 'annotations': []}
  (output / IMAGES).write_text(json.dumps(content))
  (output / RESULTS).write_text(json.dumps(results))
  tell(f'{len(paths)} images: objects, overlays and {output / RESULTS} are in {output}')


def write_segments(
  network: Network,
  paths: Sequence[Path],
  output: Path,
  tell: Callable[[str], None],
  *,
  draw: Callable[[np.ndarray, Segments], np.ndarray],
) -> None:
  """All segments in COCO's panoptic format, and `NAME_overlay.png` for each image.

  `results.json` and the PNGs of segment ids in the folder `results` are what panopticapi's
  evaluation takes for a prediction; `images.json` has the images and the categories. The ids of
  images are those of `panoptic_image_ids`.

  Args:
    network: of a panoptic task.
    paths: of the images.
    output: folder.
    tell: what the person sees.
    draw: the overlay of an image u8[H, W, C] and its `Segments`, without the batch axis.
  """
  task, variables, spec, data = network
  targets = name_outputs(paths, output, ('_overlay.png',), (RESULTS, IMAGES))
  output.mkdir(parents=True, exist_ok=True)

  @compile.jit
  def apply(variables, batch):
    outputs, _ = task.forward(variables, batch, train=False)
    return task.predict(outputs, batch)['segments']

  variables = jax.device_put(variables)
  category_ids = _category_ids(spec, tell)
  image_ids = panoptic_image_ids(paths)
  listed: list[dict[str, Any]] = []

  def results() -> Iterator[tuple[bytes, dict[str, Any]]]:
    for path, (overlay_path,) in targets.items():
      image = images.decode_image(path.read_bytes(), spec.channels, str(path))
      height, width = image.shape[:2]
      batch = instance_pipeline.prepare_panoptic(image, data)
      found = Segments(*(np.asarray(field[0]) for field in apply(variables, batch)))
      found = found._replace(ids=found.ids[:height, :width])
      encoded, entry = panoptic.encode_result(
        found, file_name=path.name, image_id=image_ids[path], category_ids=category_ids
      )
      listed.append(
        {'id': image_ids[path], 'file_name': path.name, 'height': height, 'width': width}
      )
      Image.fromarray(draw(image, found)).save(overlay_path)
      tell(f'{path} -> {overlay_path}, {len(entry["segments_info"])} segments')
      yield encoded, entry

  panoptic.write_results(output / RESULTS, results())
  categories = [
    {'id': int(number), 'name': name, 'isthing': int(index in spec.things), 'color': color}
    for index, (number, name, color) in enumerate(
      zip(category_ids, spec.class_names, spec.palette.tolist(), strict=True)
    )
  ]
  (output / IMAGES).write_text(json.dumps({'images': listed, 'categories': categories}))
  tell(f'{len(paths)} images: overlays and {output / RESULTS} are in {output}')


def image_numbers(paths: Sequence[Path]) -> dict[Path, int]:
  """COCO's `image_id` of each image: its name, where all names are different numbers."""
  return _numbers_in_names(paths) or {path: n for n, path in enumerate(paths, start=1)}


def panoptic_image_ids(paths: Sequence[Path]) -> Mapping[Path, int | str]:
  """The `image_id` of each image as public evaluations of segments have it.

  COCO's are numbers, as for `image_numbers`. Where names are none, the id is the name, less the
  ending that all images of Cityscapes have.
  """
  if numbers := _numbers_in_names(paths):
    return numbers
  stems = {path: path.stem.removesuffix(_CITYSCAPES_ENDING) for path in paths}
  return stems if len(set(stems.values())) == len(stems) else {path: path.stem for path in paths}


def _numbers_in_names(paths: Sequence[Path]) -> dict[Path, int]:
  """The number that each name is; empty unless all are, and different ones."""
  stems = [path.stem for path in paths]
  if not all(stem.isascii() and stem.isdigit() for stem in stems):
    return {}
  numbers = {path: int(stem) for path, stem in zip(paths, stems, strict=True)}
  return numbers if len(set(numbers.values())) == len(numbers) else {}


def _category_ids(spec: DatasetSpec, tell: Callable[[str], None]) -> Sequence[int]:
  """The number of each class in COCO's format; says so where they are only counted."""
  if spec.category_ids:
    return spec.category_ids
  tell(
    f'{spec.name} has no numbers of its own for its categories: they count from 1, for others set '
    'config.data.category_ids'
  )
  return range(1, spec.num_classes + 1)
