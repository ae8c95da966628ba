"""EoMT beside transformers', with the same weights; its matching beside SciPy's."""

import functools
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from scipy.optimize import linear_sum_assignment

from segjax.losses import queries as losses
from segjax.models import eomt
from segjax.nn.vit import SizeName
from segjax.ops.assignment import assign
from segjax.tasks import instance
from speed import detection, harness, ours
from speed.row import Options, Row, Work

# As published.
_SCALES = {'query_class': 2.0, 'query_mask': 5.0, 'query_dice': 5.0}
_RATE = 1e-5
_SIDE, _TOY_SIDE = 640, 64
# Steps before any of the masked attention is annealed.
_LATER = (10**6, 2 * 10**6)


def network(size: SizeName, options: Options, **more: Any) -> eomt.EoMT:
  """Our network; small at toy size."""
  side = options.pick(_SIDE, _TOY_SIDE)
  if options.toy:
    more |= {'queries': 12, 'matching': eomt.MatchingConfig(points=256)}
  model = eomt.EoMT(
    detection.CLASSES,
    size=options.pick(size, 'tiny'),
    grid=(side // 16, side // 16),
    dtype=options.dtype,
  )
  return model.clone(**more)


def _inference(size: SizeName, options: Options) -> Work:
  side = options.pick(_SIDE, _TOY_SIDE)
  image, model = detection.make_image((side, side)), network(size, options)
  variables, peers = _variables(model, image, options)
  run, cost = ours.call(lambda v, x: model.apply(v, x)[-1], variables, image)
  if peers is None:
    return Work(run, cost=cost)
  tolerance = 1e-4 if options.dtype == 'float32' else 5e-2
  same = functools.partial(_same_outputs, tolerance)
  return Work(run, peers.inference(model, image, options), same, cost)


def _same_outputs(tolerance: float, found: list, others: Mapping[str, list]) -> str:
  for results in others.values():
    theirs = [x.float().cpu().numpy() for x in results[0]]
    said = harness.close(list(found[0]), theirs, tolerance, 'classes and masks')
  return said


def _training(size: SizeName, count: int, options: Options) -> Work:
  side, count = options.pick((_SIDE, count), (_TOY_SIDE, 3))
  model = network(size, options)
  model = model.clone(annealing=(_LATER,) * model.blocks_with_queries)
  image = detection.make_image((side, side))
  arrays, objects = detection.make_objects((side, side), count, slots=options.pick(100, 4))
  batch = detection.make_batch(image, arrays)
  variables, peers = _variables(model, image, options)
  run, cost = ours.training(make_task(model), variables, batch, _RATE)
  if peers is None:
    return Work(run, cost=cost)
  # Those of torchvision count from 1.
  objects = [{**entry, 'labels': entry['labels'] - 1} for entry in objects]
  programs = peers.training(model, image, objects, _RATE, options)
  return Work(run, programs, functools.partial(_same_losses, count), cost)


def _same_losses(count: int, found: list, others: Mapping[str, list]) -> str:
  """Losses of two steps are near: points are at random."""
  for results in others.values():
    errors = [abs(a / b - 1) for a, b in zip(found, results, strict=True)]
    assert max(errors) < 0.05, (found, results)
  return f'losses of two steps equal to {max(errors):.1%}, at points at random of {count} masks'


def _matching(images: int, objects: int, queries: int, options: Options) -> Work:
  """The assignment of objects to queries, on the device and on the host."""
  shape = options.pick((images, objects, queries), (2, 3, 5))
  cost = np.random.default_rng(0).random(shape, np.float32)
  run, count = ours.call(jax.vmap(assign), cost, np.ones(shape[:2], bool))
  on_host = lambda cost: np.stack([linear_sum_assignment(c)[1] for c in cost]).astype(np.int32)
  expected = jax.ShapeDtypeStruct(shape[:2], np.int32)
  by_callback, _ = ours.call(lambda cost: jax.pure_callback(on_host, expected, cost), cost)
  others = {'SciPy': lambda: on_host(cost), 'SciPy, called from the device': by_callback}
  return Work(run, others if options.peers else {}, _same_queries, count)


def _same_queries(found: list, others: Mapping[str, list]) -> str:
  for results in others.values():
    np.testing.assert_array_equal(found[0], results[0])
  return 'the same query for each object'


def make_task(model: eomt.EoMT) -> Any:
  """Instance segmentation with the losses as published."""

  def scaled(name: str) -> Any:
    def loss(outputs: Any) -> Any:
      part = getattr(losses, name)(outputs)
      return part._replace(sum=_SCALES[name] * part.sum)

    return loss

  return instance.make_task(
    model,
    instance.EvalConfig(),
    class_names=[str(k) for k in range(model.classes)],
    losses={name: scaled(name) for name in _SCALES},
  )


def _variables(model: eomt.EoMT, image: np.ndarray, options: Options) -> tuple[Any, Any]:
  """Variables, and the module of the peers, whose weights they are; None without."""
  variables = ours.variables(model, image)
  if 'masked' in variables:
    variables['masked'] = {'share': np.ones(model.blocks_with_queries, np.float32)}
  if not options.peers:
    return variables, None
  from speed import transformers_peers as peers

  return {**variables, **peers.converted(model, peers.network(model))}, peers


def _row(work: str, make: Any, *args: Any, target: float | None = None) -> Row:
  return Row(work, functools.partial(make, *args), target)


ROWS = {
  'eomt_s_infer': _row('EoMT-S inference, 640²', _inference, 'small', target=1.0),
  'eomt_s_train': _row('EoMT-S train step, 640², 8 objects', _training, 'small', 8, target=1.0),
  'eomt_l_infer': _row('EoMT-L inference, 640²', _inference, 'large', target=1.0),
  'eomt_l_train': _row('EoMT-L train step, 640², 8 objects', _training, 'large', 8, target=1.0),
  'match': _row('matching 100 objects with 200 queries, 8 images', _matching, 8, 100, 200),
}
