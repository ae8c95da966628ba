"""Runs what `segjax export` wrote, as `segjax.load` runs a workdir."""

import functools
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax.export
import numpy as np

from segjax import infer, storage
from segjax.data import unusual
from segjax.data.config import SizeConfig
from segjax.data.datasets import DatasetSpec
from segjax.data.frames import Frame, Source
from segjax.export import manifest, program
from segjax.export.write import require
from segjax.ops.paste_masks import paste_regions
from segjax.ops.run_lengths import encode_region
from segjax.predictor import Predictor
from segjax.result import Result
from segjax.training.compile import jit
from segjax.types import SegjaxError, tuples

# u8[B, H, W, C] -> outputs by name, see `segjax.export.program.OUTPUTS`.
Run = Callable[[np.ndarray], Mapping[str, np.ndarray]]


def load_exported(path: str | Path) -> 'Exported':
  """The network in a directory that `segjax export` wrote.

  Raises:
    SegjaxError: the directory is no export, was written by a newer version or is corrupt, or the
      library that runs its format is not installed.
  """
  return Exported(storage.user_path(path))


class Exported(Predictor):
  """An exported network; call it with images, as `segjax.predictor.Predictor`.

  Images pass the programs one at a time; a program for a fixed batch is filled up with copies.

  Attributes:
    manifest: the content of `manifest.json`.
    task, class_names, palette, spec, step: as of a `Predictor`.
  """

  def __init__(self, path: Path):
    self.path = path
    self.manifest = manifest.read(path)
    self.spec = DatasetSpec.from_json(self.manifest['spec'])
    self.task = self.manifest['task']
    self.step = self.manifest['step']
    self._max_pixels = self.manifest['max_pixels']
    self._size = _size_config(self.manifest)
    self._images = unusual.ImageRanges.from_json(self.manifest['images'])
    self._plans = manifest.plans(self.manifest)
    kind = self.manifest['format']
    if kind not in _OPEN:
      raise SegjaxError(f'{path / manifest.NAME}: unknown format {kind}: export the run again')
    self._open = _OPEN[kind]()
    self._programs: dict[int, Run] = {}
    self._lock = threading.Lock()

  def run(self, images: np.ndarray) -> dict[str, np.ndarray]:
    """The outputs of a program, as they are.

    Args:
      images: u8[B, H, W, C].

    Raises:
      SegjaxError: no program takes images of this size.
    """
    native = images.shape[1:3]
    index = program.choose_plan(self._plans, native, self._size)
    if index is None:
      known = ', '.join(sorted({_describe(plan, self._size) for plan in self._plans}))
      raise SegjaxError(
        f'{self.path} has no program for images of {native[0]}x{native[1]} pixels (height x width; '
        f'it has {known}): export the run again with --size={native[0]}x{native[1]}'
      )
    with self._lock:
      if index not in self._programs:
        self._programs[index] = self._open(self.path / self.manifest['programs'][index]['file'])
    batch, count = self._plans[index].batch, len(images)
    if batch is not None:
      if count > batch:
        raise SegjaxError(f'{self.path} takes {batch} images at a time, not {count}: give fewer')
      images = np.concatenate([images, np.repeat(images[-1:], batch - count, axis=0)])
    return {key: np.asarray(value)[:count] for key, value in self._programs[index](images).items()}

  def predict_files(
    self, sources: Iterable[Source], *, failed: infer.Failed, **options: Any
  ) -> Iterator[tuple[Frame, Result]]:
    """Yields each image in files with its result, see `Predictor.predict_files`."""
    jobs = infer.file_jobs(sources, self.spec.channels, self._max_pixels)
    return self._results(jobs, options.get('probability', False), failed)

  def _stream(
    self, jobs: Iterable[infer.Job], batch_size: int | None, probability: bool
  ) -> Iterator[Result]:
    del batch_size
    return (result for _, result in self._results(jobs, probability, None))

  def _results(
    self, jobs: Iterable[infer.Job], probability: bool, failed: infer.Failed | None
  ) -> Iterator[tuple[Frame, Result]]:
    self._check_probability(probability)
    if probability and 'probability' not in self.manifest['outputs']:
      raise SegjaxError(
        f'{self.path} has no probabilities: export the run again with --probability'
      )
    return self._read_and_predict(jobs, probability, failed)

  def _read_and_predict(
    self, jobs: Iterable[infer.Job], probability: bool, failed: infer.Failed | None
  ) -> Iterator[tuple[Frame, Result]]:
    for frame in infer.read_ahead(jobs, failed):
      try:
        result = self._predict(frame, probability)
      except SegjaxError as e:
        if failed is None:
          raise
        failed[frame.source.path] = str(e)
        continue
      yield frame, result

  def _predict(self, frame: Frame, probability: bool) -> Result:
    found = {key: value[0] for key, value in self.run(frame.pixels[None]).items()}
    if not probability:
      found.pop('probability', None)
    if 'boxes' in found:
      found = _objects(found, frame.pixels.shape[:2], self.manifest['paste'])
    elif 'segments' in found:
      found = _segments(found, self.spec)
    threshold = self.manifest['draw_threshold']
    return infer.make_result(frame, self.spec, self._images, threshold, found)


def _objects(found: Mapping[str, np.ndarray], size: tuple[int, int], rule: str) -> dict[str, Any]:
  valid = found['valid']
  boxes, masks = found['boxes'][valid], None
  if 'masks' in found:
    masks, filled, options = found['masks'][valid], boxes, {'rule': rule}
    if 'regions' in found:
      filled, options = found['regions'][valid], {'rule': 'logits', 'threshold': 0.0}
    pasted = paste_regions(masks, filled, size, **options)
    masks = [encode_region(region, values, size) for region, values in pasted]
  return {
    'boxes': boxes,
    'classes': found['classes'][valid],
    'scores': found['scores'][valid],
    'encoded_masks': masks,
  }


def _segments(found: Mapping[str, np.ndarray], spec: DatasetSpec) -> dict[str, Any]:
  ids, classes, scores = (found[f'segment{key}'] for key in ('s', '_classes', '_scores'))
  areas = np.bincount(ids.ravel())
  areas[0] = 0
  info = []
  for number in np.flatnonzero(areas).tolist():
    category = int(classes[number - 1])
    isthing, score = category in spec.things, float(scores[number - 1])
    entry = {
      'id': number,
      'category': category,
      'name': spec.class_names[category],
      'isthing': isthing,
      'area': int(areas[number]),
    }
    info.append(entry | ({'score': score} if isthing or score else {}))
  return {'segments': ids, 'segments_info': info}


def _describe(plan: program.Plan, size: SizeConfig) -> str:
  largest = program.largest(plan, size)
  return f'{plan}, up to {largest[0]}x{largest[1]}' if largest else str(plan)


def _size_config(content: Mapping[str, Any]) -> SizeConfig:
  return SizeConfig(**{key: tuples(value) for key, value in content['inside']['size'].items()})


# --- formats --------------------------------------------------------------------------------------


def _open_stablehlo() -> Callable[[Path], Run]:
  require('flatbuffers', 'a StableHLO export')
  return lambda path: jit(jax.export.deserialize(bytearray(path.read_bytes())).call)


def _open_onnx() -> Callable[[Path], Run]:
  runtime = require('onnxruntime', 'an ONNX export')

  def run(session: Any, images: np.ndarray) -> dict[str, np.ndarray]:
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, {'image': images}), strict=True))

  def open_one(path: Path) -> Run:
    providers = runtime.get_available_providers()
    return functools.partial(run, runtime.InferenceSession(str(path), providers=providers))

  return open_one


def _open_savedmodel() -> Callable[[Path], Run]:
  tf = require('tensorflow', 'a SavedModel')

  def open_one(path: Path) -> Run:
    module = tf.saved_model.load(str(path))
    return lambda images: {key: value.numpy() for key, value in module.f(images).items()}

  return open_one


_OPEN: dict[str, Callable[[], Callable[[Path], Run]]] = {
  'onnx': _open_onnx,
  'savedmodel': _open_savedmodel,
  'stablehlo': _open_stablehlo,
}
