"""`segjax predict`: writes label maps, objects or segments of image files and videos."""

import argparse
import functools
import glob
import io
import os
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path, PurePath
from typing import TypeVar

import jax
from jax.experimental import multihost_utils

from segjax import infer, storage
from segjax.cli import options, predict_files, processes
from segjax.data import frames, images
from segjax.predictor import Predictor, check_no_url, describe_unlike
from segjax.report import console
from segjax.result import Result
from segjax.run import notify
from segjax.trained import open_trained
from segjax.training import sharding
from segjax.types import SegjaxError

T = TypeVar('T')

EXAMPLE = """examples:
  segjax predict --workdir=runs/scenes --images='photos/*.jpg' --output=out/
  segjax predict --workdir=runs/scenes --images photos/ more/a.jpg list.txt --output=out/
  segjax predict --workdir=runs/scenes --images=clip.mp4 --output=out/ --save=overlay
  segjax predict --workdir=exported/ --images=photos/ --output=out/
  segjax predict --workdir=runs/instances --images=photos/ --output=out/ \\
    --config.model.box_head.score_threshold=0.5

--save names what is written of each image, by default label,overlay in semantic tasks and
overlay,json in others:
  label    NAME.png, whose pixel values are class indices (semantic tasks)
  overlay  NAME_overlay.png, the prediction drawn on the image
  json     NAME.json; of objects and segments also one file for all images in COCO's format:
           results_bbox.json and results_segm.json, or results.json and results/, with images.json;
           image ids are the numbers in the names, else 1, 2, …, or those of --annotations
  npz      NAME.npz, the arrays: label, or boxes, classes, scores and masks, or segments
  prob     NAME_prob.npz, the probability of each class as float16 (semantic tasks)
For a SegNet with dropout, --config.eval.samples=40 adds NAME_uncertainty.png (Bayesian SegNet).

The sub-folders of a directory, and of what ** matches, are kept in the output. The pages of a TIFF
file and the frames of a video are images of their own, numbered from 1. What is written for each is
in NAME/, as NAME_page1… or NAME_frame000001…; the overlays of a video are NAME_overlay.mp4. Files
that cannot be read are listed at the end; the exit status is then 2. With --distributed each
process predicts its part of the files, and the first one writes the files for all images."""

# What a Mac leaves beside the files of other file systems, with their suffixes.
_RESOURCE_FORK = '._'
# A text file with the path of an image on each line.
_LIST = '.txt'


def add_arguments(parser: argparse.ArgumentParser) -> None:
  options.add_workdir(parser, 'directory of the run, or of an export')
  options.add_checkpoint(parser)
  parser.add_argument(
    '--images',
    required=True,
    nargs='+',
    help='files, directories, quoted glob patterns, or .txt files with a path on each line',
  )
  parser.add_argument('--output', required=True, help='directory to write to')
  parser.add_argument(
    '--save',
    type=lambda text: tuple(text.split(',')),
    metavar='label,overlay,json,npz,prob',
    help='what to write of each image; default: label,overlay (semantic) or overlay,json',
  )
  parser.add_argument(
    '--annotations',
    type=storage.user_path,
    help="COCO's JSON file that lists the images, for their ids in the files for all images",
  )
  parser.add_argument(
    '--batch_size',
    type=options.count,
    default=0,
    help='images of one shape that run together (an export runs one at a time)',
  )
  parser.add_argument(
    '--overwrite', action='store_true', help='write to a directory that has files'
  )
  options.add_distributed(parser)


def run(args: argparse.Namespace) -> int:
  processes.start(args)
  output = storage.as_path(args.output)
  folders = find_images(args.images, output)
  sources = [frames.find_source(path) for path in folders]
  predictor = open_trained(args.workdir, args.checkpoint, args.overrides)
  place = predict_files.Place(output, folders)
  saves = predict_files.choose(args, predictor)
  writer = predict_files.Writer(place, predictor, sources, saves, args.annotations)
  predict_files.check_unused(output, args.overwrite)
  if jax.process_count() > 1:
    multihost_utils.sync_global_devices('nothing is written yet')
  failed: dict[Path, str] = {}
  if summary := _predict(predictor, writer, own_part(sources), failed, args.batch_size or None):
    notify(f'{summary}: the predictions are in {output}')
  _check_failed(_gather_failed(failed), len(sources))
  return 0


def own_part(items: Sequence[T]) -> Sequence[T]:
  """The part of this process: parts follow each other, so that joined they are in order."""
  index, count = jax.process_index(), jax.process_count()
  return items[len(items) * index // count : len(items) * (index + 1) // count]


def _gather_failed(failed: Mapping[Path, str]) -> dict[Path, str]:
  """The files that any process could not read."""
  pairs = [(str(path), sentence) for path, sentence in failed.items()]
  gathered = sharding.gather_lists({'failed': pairs})['failed']
  return {Path(path): sentence for path, sentence in gathered}


def _predict(
  predictor: Predictor,
  writer: predict_files.Writer,
  sources: Sequence[frames.Source],
  failed: infer.Failed,
  batch_size: int | None,
) -> str:
  """Predicts and writes the images of this process; the summary of all, or '' without any."""
  probability = 'prob' in writer.saves
  found = predictor.predict_files(
    sources, failed=failed, batch_size=batch_size, probability=probability
  )
  unlike, pace = [], _Pace()
  total = len(sources) if all(source.kind == 'image' for source in sources) else None
  stream = sys.stderr if jax.process_index() == 0 else io.StringIO()
  with writer, console.ImageProgress(total, stream) as progress:
    for result in pace.count(writer.write_all(found)):
      progress.advance()
      if result.unlike_training:
        unlike.append(f'{result.name}: {result.unlike_training}' if not unlike else '')
  every = sharding.gather_lists({'unlike': unlike, 'paces': [(pace.images, pace.rate)]})
  images = sum(count for count, _ in every['paces'])
  if every['unlike']:
    first = next(filter(None, every['unlike']))
    notify(describe_unlike(first, len(every['unlike']), images))
  return _describe_pace(images, sum(rate for _, rate in every['paces']))


class _Pace:
  """Counts images, and how many there are a second after the first, which compiles."""

  def __init__(self):
    self.images, self._first, self._last = 0, 0.0, 0.0

  def count(self, results: Iterable[Result]) -> Iterator[Result]:
    for result in results:
      self._last = time.monotonic()
      self._first = self._first or self._last
      self.images += 1
      yield result

  @property
  def rate(self) -> float:
    """Images a second; 0 of less than two."""
    seconds = self._last - self._first
    return (self.images - 1) / seconds if seconds else 0.0


def _describe_pace(images: int, rate: float) -> str:
  """Such as '12 images, 3.5 images/s'; '' without an image."""
  text = f'{images} image' + 's' * (images > 1)
  return (f'{text}, {rate:.3g} images/s' if rate else text) * (images > 0)


def _check_failed(failed: Mapping[Path, str], count: int) -> None:
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


# --- images ---------------------------------------------------------------------------------------


def find_images(patterns: Sequence[str], output: Path) -> dict[Path, PurePath]:
  """The image and video files that are named, each with its sub-folder in the output.

  Args:
    patterns: files, directories, glob patterns, and lists of files.
    output: a directory whose files are left out where a directory to read contains it.

  Raises:
    SegjaxError: a URL; a list that cannot be read; no images match one of them.
  """
  found: dict[Path, PurePath] = {}
  for pattern in map(os.path.expanduser, patterns):
    check_no_url(pattern)
    matching = _find(pattern, output)
    if not matching:
      raise SegjaxError(
        f'--images={pattern}: no images match ({", ".join(frames.SUFFIXES)}): give a file, a '
        'directory or a pattern'
      )
    known = {path.resolve() for path in found}
    found |= {path: folder for path, folder in matching.items() if path.resolve() not in known}
  return found


def _find(pattern: str, output: Path) -> dict[Path, PurePath]:
  path = Path(pattern)
  if path.suffix.lower() == _LIST and path.is_file():
    return _read_list(path)
  if path.is_dir():
    # Not those that an earlier call wrote into a directory inside it.
    place = storage.resolved(output)
    inside = place != path.resolve()
    written = functools.partial(_is_inside, directory=place) if inside else None
    below = images.walk(path, frames.SUFFIXES)
    paths = (p for p in below if not (written and written(p)))
    return _only_images(paths, path)
  if path.exists() or path.is_symlink():  # a file's name may have the characters of patterns
    return _only_images([path], path.parent)
  return _only_images(map(Path, glob.glob(pattern, recursive=True)), _fixed_part(pattern))


def _read_list(path: Path) -> dict[Path, PurePath]:
  try:
    # Notepad of Windows writes a byte order mark.
    lines = path.read_text(encoding='utf-8-sig').splitlines()
  except UnicodeDecodeError:
    raise SegjaxError(f'{path} is not a text file with a path on each line: correct it') from None
  found = [os.path.expanduser(line.strip()) for line in lines if line.strip()]
  for image in found:
    check_no_url(image)
    if Path(image).suffix.lower() not in frames.SUFFIXES:
      raise SegjaxError(f'{path} lists {image}, which is no image by its suffix: remove the line')
  return dict.fromkeys(map(Path, found), PurePath())


def _only_images(paths: Iterable[Path], root: Path) -> dict[Path, PurePath]:
  return {
    path: path.parent.relative_to(root)
    for path in sorted(paths)
    if path.suffix.lower() in frames.SUFFIXES
    and not path.name.startswith(_RESOURCE_FORK)
    and not path.is_dir()
  }


def _fixed_part(pattern: str) -> Path:
  """The directories of a pattern before its first special character."""
  parts = PurePath(pattern).parts[:-1]
  fixed = next((i for i, part in enumerate(parts) if glob.has_magic(part)), len(parts))
  return Path(*parts[:fixed])


def _is_inside(path: Path, directory: Path) -> bool:
  return Path(os.path.realpath(path)).is_relative_to(directory)
