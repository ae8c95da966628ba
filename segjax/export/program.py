"""The function that is exported: a trained run with pre- and postprocessing, for uint8 images."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.export
import jax.numpy as jnp
import numpy as np

from segjax.data import order
from segjax.data.batch import mean_color
from segjax.data.config import SizeConfig
from segjax.export import preprocess
from segjax.result import label_type
from segjax.run import Loaded
from segjax.types import Array, SegjaxError, Segments

Size = tuple[int, int]

# Outputs by the last annotation of a task: dtype, shape and meaning; those of a task that are not
# always there are marked by the entry that they need.
OUTPUTS: dict[str, dict[str, tuple[str, str, str]]] = {
  'label': {
    'label': ('uint8 or uint16', '[B, H, W]', 'class index of each pixel'),
    'probability': ('float32', '[B, H, W, classes]', 'probability of each class of each pixel'),
    'uncertainty': ('float32', '[B, H, W]', 'variance of the probability over dropout samples'),
  },
  'objects': {
    'boxes': ('float32', '[B, K, 4]', 'x0, y0, x1, y1 in pixels of the image, best first'),
    'classes': ('int32', '[B, K]', 'class index of each object'),
    'scores': ('float32', '[B, K]', 'probability of each object'),
    'valid': ('bool', '[B, K]', 'False for padding'),
    'masks': ('float32', '[B, K, M, M]', 'mask inside the box: paste it by paste_masks.py'),
    'regions': ('float32', '[B, K, 4]', 'boxes that the masks fill, which are logits, for `boxes`'),
  },
  'segments': {
    'segments': ('int32', '[B, H, W]', 'segment id of each pixel, from 1 to S; 0 for none'),
    'segment_classes': ('int32', '[B, S]', 'class index of segment i + 1'),
    'segment_scores': ('float32', '[B, S]', 'score of segment i + 1; 0 if stuff has none'),
  },
}


@dataclasses.dataclass(frozen=True)
class Plan:
  """One program: the images that it takes.

  Attributes:
    native: height and width of the images; None for any.
    canvas: height and width of the network's input; None for the next multiples of 32.
    batch: number of images; None for any.
  """

  native: Size | None
  canvas: Size | None
  batch: int | None

  def __str__(self) -> str:
    batch = 'any number of' if self.batch is None else str(self.batch)
    size = 'any size' if self.native is None else '{}x{} pixels'.format(*self.native)
    return f'{batch} images of {size}'


def make_plans(loaded: Loaded, sizes: Sequence[Size], batch: int | None) -> list[Plan]:
  """The programs that a run needs.

  Args:
    loaded: the run.
    sizes: of the images, (height, width); empty for any size.
    batch: number of images; None for any.

  Raises:
    SegjaxError: the network's input depends on the size of the image, and no size is given.
  """
  config, common = loaded.run.experiment.input, loaded.common_size
  size = config.data.size
  fixed = lambda native: Plan(native, order.shape_alone(native, config, common), batch)
  if sizes:
    return [fixed(native) for native in sizes]
  canvases: Sequence[Size | None] = size.shapes or (size.image_size,)
  dense = loaded.run.experiment.input.annotations[-1] == 'label'
  if canvases == (None,) and (size.short_side is not None or not dense):
    raise SegjaxError(
      'config.data.size has neither image_size nor shapes, so the input of the network depends on '
      'the image: give --size=HEIGHTxWIDTH of the images, once for each size'
    )
  plans = [Plan(None, canvas, batch) for canvas in canvases]
  # A program for any size pads to multiples of 32.
  alone = [fixed(common)] if common and not (size.image_size or size.shapes) else []
  return plans + [plan for plan in alone if plan.canvas != order.multiple_shape(common)]


def _smallest(native: Size, size: SizeConfig) -> Size | None:
  height, width = preprocess.seen_size(native, size)
  shapes = size.shapes or ((size.image_size,) if size.image_size else ())
  fitting = [shape for shape in shapes if shape[0] >= height and shape[1] >= width]
  return min(fitting, key=lambda shape: shape[0] * shape[1], default=None)


def choose_plan(plans: Sequence[Plan], native: Size, size: SizeConfig) -> int | None:
  """The index of the program for an image, or None."""
  exact = [i for i, plan in enumerate(plans) if plan.native == native]
  canvas = _smallest(native, size)
  any_size = [i for i, plan in enumerate(plans) if plan.native is None and plan.canvas == canvas]
  return next(iter(exact + any_size), None)


def make_function(
  loaded: Loaded, plan: Plan, *, probability: bool = False
) -> Callable[[Array], dict[str, Array]]:
  """`u8[B, H, W, C] -> outputs by name`, see `OUTPUTS`; the parameters are constants in it.

  Args:
    loaded: the run.
    plan: which images it takes.
    probability: whether the probabilities of all classes are an output, in semantic tasks.
  """
  run, data = loaded.run, loaded.run.experiment.data
  kind = run.experiment.input.annotations[-1]
  finish = {'label': _labels, 'objects': _objects, 'segments': _segments}[kind]

  def function(image: Array) -> dict[str, Array]:
    batch, *native = image.shape[:3]
    native = tuple(native)
    seen = preprocess.seen_size(native, data.size)
    canvas = plan.canvas or order.multiple_shape(native)
    rows = lambda pair: jnp.broadcast_to(
      jnp.stack([jnp.asarray(side, jnp.int32) for side in pair]), (batch, 2)
    )
    x = preprocess.prepare(
      image, seen, canvas, data.size.interpolation, mean_color(data), data.mean, data.std
    )
    inputs: dict[str, Any] = {'image': x, 'size': rows(seen), 'native': rows(native)}
    if kind == 'segments':  # only their shape is used
      blank = jnp.zeros((batch, *native), jnp.int32)
      inputs['segments'] = Segments(blank, None, None, None)
    outputs, _ = run.task.forward(loaded.variables, inputs, train=False)
    found = finish(run.task.predict(outputs, inputs), inputs, seen, native)
    if kind == 'label':
      found['label'] = found['label'].astype(label_type(run.spec.num_classes))
      if not probability:
        del found['probability']
    return found

  return function


def _labels(found: Mapping[str, Array], inputs: Any, seen: Any, native: Any) -> dict[str, Array]:
  del inputs
  restore = lambda x: x[:, : native[0], : native[1]]
  if not preprocess.same(seen, native):
    restore = lambda x: preprocess.resize_scores(x, seen, native)
  probability = restore(found['probability'])
  own_size = preprocess.same(seen, native)
  label = restore(found['label']) if own_size else jnp.argmax(probability, -1)
  outputs = {'label': label, 'probability': probability}
  if 'uncertainty' in found:
    outputs['uncertainty'] = restore(found['uncertainty'][..., None])[..., 0]
  return outputs


def _objects(found: Mapping[str, Array], inputs: Any, seen: Any, native: Any) -> dict[str, Array]:
  del seen, native
  size, native = inputs['size'], inputs['native']
  scale = jnp.tile((native / size)[:, ::-1], (1, 2))[:, None]
  limit = jnp.tile(native[:, ::-1], (1, 2))[:, None].astype(jnp.float32)
  found = {**found, 'boxes': jnp.clip(found['boxes'] * scale, 0.0, limit)}
  return found | ({'regions': found['regions'] * scale} if 'regions' in found else {})


def _segments(found: Mapping[str, Array], inputs: Any, seen: Any, native: Any) -> dict[str, Array]:
  del inputs, seen, native
  segments, scores = found['segments'], found['scores']
  stuff = segments.classes.shape[1] - scores.shape[1]
  return {
    'segments': segments.ids,
    'segment_classes': segments.classes,
    'segment_scores': jnp.pad(scores, ((0, 0), (0, stuff))),
  }


def largest(plan: Plan, size: SizeConfig) -> Size | None:
  """The largest image of a program for any size, where images are only padded; None without one."""
  only_padded = size.image_size is None and size.short_side is None
  return plan.canvas if only_padded and plan.native is None else None


def size_limits(loaded: Loaded, plan: Plan) -> list[str]:
  """What is known of `h` and `w`, as `jax.export` writes it."""
  limit = largest(plan, loaded.run.experiment.data.size) or ()
  return [f'{name} <= {side}' for name, side in zip('hw', limit, strict=False)]


def input_spec(loaded: Loaded, plan: Plan) -> jax.ShapeDtypeStruct:
  """The type of a program's input, with `b`, `h` and `w` for what is any number."""
  height, width = plan.native or ('h', 'w')
  batch = 'b' if plan.batch is None else plan.batch
  text = f'{batch}, {height}, {width}, {loaded.run.spec.channels}'
  shape = jax.export.symbolic_shape(text, constraints=size_limits(loaded, plan))
  return jax.ShapeDtypeStruct(shape, np.uint8)
