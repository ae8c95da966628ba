"""Mask R-CNN R50-FPN beside torchvision's, with the same weights; and Panoptic FPN."""

import functools
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from segjax.losses import detection as losses
from segjax.models import mask_rcnn, panoptic_fpn
from segjax.tasks import instance
from segjax.types import Instances
from speed import ours
from speed.row import Options, Row, Work

CLASSES = 80
_RATE = 1e-5
_LOSSES = ('rpn_class', 'rpn_box', 'box_class', 'box_regression', 'mask')
_TOY_SIZE = (64, 96)


def network(
  options: Options, kind: Any = mask_rcnn.MaskRCNN, classes: int = CLASSES, **more: Any
) -> Any:
  """Our network; small at toy size."""
  if options.toy:
    more |= {
      'backbone': mask_rcnn.ResNetConfig('resnet18', width=4),
      'neck': mask_rcnn.FPNConfig(8),
      'rpn': mask_rcnn.RPNConfig(train_proposals=(40, 20), test_proposals=(40, 20)),
      'box_head': mask_rcnn.BoxHeadConfig(hidden=16, max_detections=5),
      'mask_head': mask_rcnn.MaskHeadConfig(features=8, convs=1),
    }
  return kind(classes, dtype=options.dtype, **more)


def _inference(size: tuple[int, int], options: Options) -> Work:
  size = options.pick(size, _TOY_SIZE)
  image, model = make_image(size), network(options)
  limits = np.array([size], np.int32)
  compare = options.peers and not options.toy
  if compare:
    from speed import torchvision_peers as peers

    variables = peers.converted(peers.mask_rcnn(CLASSES))
  else:
    variables = ours.variables(model, image, limits)
  run, cost = ours.call(model.apply, variables, image, limits)
  if not compare:
    return Work(run, cost=cost)
  same = functools.partial(_same_detections, peers.detections)
  return Work(run, peers.inference(CLASSES, image, options), same, cost)


def _same_detections(detections: Any, found: list, others: Mapping[str, list]) -> str:
  """At least 95 in 100 detections agree; rounding decides a few that NMS keeps or not."""
  mine = jax.tree.map(lambda x: np.asarray(x)[0], found[0]['detections'])
  for results in others.values():
    theirs = detections(results[0][0])
    count = int(mine.valid.sum())
    assert abs(count - len(theirs['boxes'])) <= 0.05 * count, (count, len(theirs['boxes']))
    near = np.abs(mine.boxes[:count, None] - theirs['boxes']).max(-1) < 0.5
    near &= mine.classes[:count, None] == theirs['classes']
    hits = near.any(1)
    assert hits.sum() >= 0.95 * count, f'{hits.sum()} of {count} detections agree'
    masks = theirs['masks'][near[hits].argmax(1)]
    error = np.abs(mine.masks[:count][hits] - masks).mean()
    assert error < 0.01, f'masks differ by {error:.3f}'
  return f'{hits.sum()} of {count} detections equal, and their masks'


def _training(size: tuple[int, int], count: int, options: Options) -> Work:
  size, count = options.pick((size, count), (_TOY_SIZE, 3))
  image, model = make_image(size), network(options)
  arrays, objects = make_objects(size, count, slots=max(count, options.pick(100, 4)))
  batch = make_batch(image, arrays)
  compare = options.peers and not options.toy
  if compare:
    from speed import torchvision_peers as peers

    variables = peers.converted(peers.mask_rcnn(CLASSES))
  else:
    variables = ours.variables(model, image, batch['size'])
  task = make_task(model)
  run, cost = ours.training(task, variables, batch, _RATE)
  if not compare:
    return Work(run, cost=cost)
  programs = peers.training(CLASSES, image, objects, _RATE, options)
  same = functools.partial(
    _same_samples, lambda: counts(task, variables, batch, model.mask_size),
    lambda: peers.sample_counts(CLASSES, image, objects),
  )  # fmt: skip
  return Work(run, programs, same, cost)


def counts(task: Any, variables: Any, batch: Any, mask_size: int) -> dict[str, int]:
  """How many samples each loss counts in our network, whose masks have this side length."""

  def forward(variables: Any, batch: Any) -> dict[str, Any]:
    outputs, _ = task.forward(variables, batch, train=True)
    return {name: part.count for name, part in task.losses(outputs, batch).items()}

  run, _ = ours.call(forward, variables, batch)
  # The loss of masks counts their pixels.
  pixels = {'mask': mask_size**2}
  return {name: int(value) // pixels.get(name, 1) for name, value in run().items()}


def _same_samples(mine: Any, theirs: Any, found: list, others: Mapping[str, list]) -> str:
  """As many sampled anchors, RoIs and masks; losses near, as both sample at random."""
  mine, theirs = mine(), theirs()
  for name in ('rpn_class', 'box_class', 'mask'):
    assert abs(mine[name] - theirs[name]) <= 0.05 * theirs[name], (mine, theirs)
  for results in others.values():
    assert abs(found[0] / results[0] - 1) < 0.2, (found, results)
  return (
    f'{mine["rpn_class"]} anchors, {mine["box_class"]} RoIs, {mine["mask"]} masks learn '
    f'({theirs["rpn_class"]}, {theirs["box_class"]}, {theirs["mask"]} in torchvision)'
  )


def _panoptic(size: tuple[int, int], options: Options) -> Work:
  """Panoptic FPN beside our Mask R-CNN: torchvision has none."""
  size = options.pick(size, _TOY_SIZE)
  image, limits = make_image(size), np.array([size], np.int32)
  programs = {}
  for name, model in (
    ('ours', network(options, panoptic_fpn.PanopticFPN, stuff=53)),
    ('our Mask R-CNN', network(options)),
  ):
    variables = ours.variables(model, image, limits)
    programs[name], cost = ours.call(model.apply, variables, image, limits)
  return Work(programs.pop('ours'), programs, cost=None)


# --- inputs ---------------------------------------------------------------------------------------


def make_task(model: Any) -> Any:
  """The task with the five losses."""
  return instance.make_task(
    model,
    instance.EvalConfig(),
    class_names=[str(k) for k in range(model.classes)],
    losses={name: getattr(losses, name) for name in _LOSSES},
  )


def make_image(size: tuple[int, int]) -> np.ndarray:
  """Noise f32[1, H, W, 3]."""
  return np.random.default_rng(0).standard_normal((1, *size, 3)).astype(np.float32)


def make_objects(
  size: tuple[int, int], count: int, slots: int, classes: int = CLASSES
) -> tuple[Instances, list[dict[str, np.ndarray]]]:
  """Ellipses of many sizes: ours, packed and padded to `slots`, and as the peer takes them."""
  rng = np.random.default_rng(1)
  extent = np.exp(rng.uniform(np.log(min(size) / 20), np.log(min(size) / 2), (count, 2)))
  corner = rng.uniform(0, 1, (count, 2)) * (np.array(size[::-1]) - extent)
  boxes = np.concatenate([corner, corner + extent], -1).astype(np.float32)
  y, x = np.mgrid[: size[0], : size[1]] + 0.5
  place = lambda t, low, high: ((t - (low + high) / 2) / (high - low)) ** 2
  masks = np.stack([place(x, b[0], b[2]) + place(y, b[1], b[3]) < 0.25 for b in boxes])
  labels = rng.integers(0, classes, count).astype(np.int32)

  def padded(a: np.ndarray) -> np.ndarray:
    rest = np.zeros((slots - count, *a.shape[1:]), a.dtype)
    return np.concatenate([a, rest])[None]

  arrays = Instances(
    boxes=padded(boxes),
    classes=padded(labels),
    masks=padded(np.packbits(masks, axis=-1)),
    crowd=np.zeros((1, slots), bool),
    valid=padded(np.ones(count, bool)),
  )
  return arrays, [{'boxes': boxes, 'labels': labels + 1, 'masks': masks}]


def make_batch(image: np.ndarray, objects: Instances) -> dict[str, Any]:
  """A training batch of images without padding."""
  count = len(image)
  return {
    'image': image,
    'size': np.array([image.shape[1:3]] * count, np.int32),
    'instances': objects,
    'seed': np.arange(count, dtype=np.uint32),
    'valid': np.ones(count, bool),
  }


def _row(work: str, make: Any, *args: Any, target: float | None) -> Row:
  return Row(work, functools.partial(make, *args), target)


ROWS = {
  'mask_rcnn_infer_640': _row('Mask R-CNN inference, 640²', _inference, (640, 640), target=1.0),
  'mask_rcnn_infer_800': _row(
    'Mask R-CNN inference, 800 × 1344', _inference, (800, 1344), target=1.0
  ),
  'mask_rcnn_train_640': _row(
    'Mask R-CNN train step, 640², 8 objects', _training, (640, 640), 8, target=1.0
  ),
  'mask_rcnn_train_640_100': _row(
    'Mask R-CNN train step, 640², 100 objects', _training, (640, 640), 100, target=None
  ),
  'mask_rcnn_train_800': _row(
    'Mask R-CNN train step, 800 × 1344, 8 objects', _training, (800, 1344), 8, target=None
  ),
  'panoptic_fpn_infer_640': _row(
    'Panoptic FPN inference, 640², over our Mask R-CNN', _panoptic, (640, 640), target=None
  ),
}
