"""A trained run, applied to images of any size and number, of which some may be broken."""

import functools
from collections.abc import Callable, Iterator, MutableMapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from segjax.data import frames, order, pipeline
from segjax.data.batch import mean_color
from segjax.data.frames import Frame, Source
from segjax.ops import tiles
from segjax.run import Loaded, notify
from segjax.train import compile
from segjax.types import SegjaxError

# A semantic network sees larger images, at their own size, by blocks of about this many pixels a
# side. Without `config.eval.tile` the blocks are the tiles, and this much of their surroundings
# is seen with them.
_WHOLE_PIXELS, _BLOCK, _CONTEXT = 2**24, 1024, 128

# Scores of a batch of one image -> predictions without the batch axis, see `Task.predict`.
Apply = Callable[[dict[str, Any]], dict[str, Any]]


class Prediction(NamedTuple):
  """The prediction for one image.

  Attributes:
    frame: the image, and where it comes from.
    size: (height, width) of the image as the network sees it, inside its padding.
    values: entries of `Task.predict`, without the batch axis.
    restore: scores f[H', W', K] at the size of the network's output -> f[H, W, K].
  """

  frame: Frame
  size: tuple[int, int]
  values: dict[str, Any]
  restore: Callable[[np.ndarray], np.ndarray]

  @property
  def label(self) -> np.ndarray:
    """i[H, W], the most probable class of each pixel, in semantic tasks."""
    if 'label' in self.values:
      return self.values['label']
    return self.restore(self.values['probability']).argmax(-1)

  @property
  def uncertainty(self) -> np.ndarray | None:
    """f32[H, W], in semantic tasks that sample."""
    found = self.values.get('uncertainty')
    return None if found is None else self.restore(found[..., None])[..., 0]


def predict_files(
  loaded: Loaded, sources: Sequence[Source], keys: Sequence[str], failed: MutableMapping[Path, str]
) -> Iterator[Prediction]:
  """Yields the predictions of a trained run for the images in files.

  Args:
    loaded: the run.
    sources: the files.
    keys: entries of `Task.predict` to keep, if the task has them.
    failed: to which what is wrong with a file is added, and the next one is read.
  """
  apply = _make_apply(loaded, keys)
  for source in sources:
    predictions = _predict_file(loaded, source, apply)
    # Not around the loop's body: what goes wrong there is not the file's fault.
    while True:
      try:
        found = next(predictions)
      except StopIteration:
        break
      except SegjaxError as e:
        failed[source.path] = str(e)
        break
      except OSError as e:
        failed[source.path] = f'{source.path} cannot be read ({e.strerror or e}): check the file'
        break
      yield found


def _make_apply(loaded: Loaded, keys: Sequence[str]) -> Apply:
  task, variables = loaded.run.task, jax.device_put(loaded.variables)

  @compile.jit
  def predict(variables, batch):
    outputs, _ = task.forward(variables, batch, train=False)
    return {key: value for key, value in task.predict(outputs, batch).items() if key in keys}

  return lambda batch: jax.tree.map(lambda x: np.asarray(x[0]), predict(variables, batch))


def _predict_file(loaded: Loaded, source: Source, apply: Apply) -> Iterator[Prediction]:
  channels, most = loaded.run.spec.channels, loaded.run.experiment.data.max_pixels
  for frame in frames.read_frames(source, channels, max_pixels=most):
    try:
      yield _predict(loaded, frame, apply)
    except jax.errors.JaxRuntimeError as e:
      if 'RESOURCE_EXHAUSTED' not in str(e):
        raise
      height, width = frame.pixels.shape[:2]
      raise SegjaxError(
        f'{source.path} of {width}x{height} pixels does not fit into memory: divide it into tiles, '
        'or lower config.eval.tile or config.data.size, whichever the run has'
      ) from e


def _predict(loaded: Loaded, frame: Frame, apply: Apply) -> Prediction:
  config, pixels = loaded.run.experiment.input, frame.pixels
  native = pixels.shape[:2]
  # Resized images are as small as the config says.
  own_size = config.data.size.image_size is None and config.data.size.short_side is None
  tiled = hasattr(loaded.run.experiment.eval, 'tile') and own_size
  if tiled and native[0] * native[1] > _WHOLE_PIXELS:
    values = _predict_blocks(loaded, frame, apply)
    return Prediction(frame, native, values, lambda scores: scores)
  batch, restore = pipeline.prepare_image(pixels, config)
  height, width = batch['size'][0].tolist()
  return Prediction(frame, (height, width), apply(batch), restore)


# --- large images ---------------------------------------------------------------------------------


def _predict_blocks(loaded: Loaded, frame: Frame, apply: Apply) -> dict[str, np.ndarray]:
  """`label` u16[H, W] and, if the task samples, `uncertainty` f32[H, W] of a large image.

  With a tile and without overlap, or with a margin, they are those of the image as a whole. With
  overlap, tiles are at other places, and differ as much as the overlap lets tiles differ.
  """
  config, pixels = loaded.run.experiment.input, frame.pixels
  height, width, channels = pixels.shape
  shape = order.multiple_shape((height, width))
  if shape != (height, width):  # padded as the whole image would be
    padded = np.empty((*shape, channels), np.uint8)
    padded[...] = mean_color(config.data)
    padded[:height, :width] = pixels
    pixels = padded
  block, context = _block_size(loaded.run.model, loaded.run.experiment.eval, shape)
  if frame.rate is None:
    notify(f'{frame.source.path}: {width}x{height} pixels, by blocks of {block[1]}x{block[0]}')
  found = tiles.map_blocks(functools.partial(_predict_block, config, apply), pixels, block, context)
  return {key: value[:height, :width] for key, value in found.items()}


def _predict_block(config: Any, apply: Apply, pixels: np.ndarray) -> dict[str, np.ndarray]:
  batch, restore = pipeline.prepare_image(pixels, config)
  values = apply(batch)
  found = {'label': restore(values['probability']).argmax(-1).astype(np.uint16)}
  if 'uncertainty' in values:
    found['uncertainty'] = restore(values['uncertainty'][..., None])[..., 0]
  return found


def _block_size(model: Any, config: Any, size: tuple[int, int]) -> tuple[tuple[int, int], int]:
  """Rows and columns of a block, whole tiles that start where pooling does, and its context."""
  stride = getattr(model, 'stride', 1)
  fit = getattr(model, 'output_size', lambda side: side)
  margin = getattr(model, 'margin', 0) or config.overlap or (0 if config.tile else _CONTEXT)
  sides = []
  for tile, side in zip(config.tile or (_BLOCK, _BLOCK), size, strict=True):
    step = fit(max(tile, stride)) // stride * stride
    sides.append(step * -(-min(_BLOCK, side) // step))
  return (sides[0], sides[1]), -(-margin // stride) * stride
