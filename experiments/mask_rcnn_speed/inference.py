"""Times the inference of Mask R-CNN R50-FPN compared with torchvision, in one run.

  python experiments/mask_rcnn_speed/inference.py [--size=800x1344] [--repeats=3]

One image, float32, torchvision's random weights in both networks, with scaled classifier weights so
that it detects 100 objects. Needs torch and torchvision. The rows are cumulative:

  features    ResNet-50 and FPN
  proposals   RPN, 1,000 boxes per level, NMS, 1,000 proposals
  detections  box head, NMS, and the masks of 100 detections at the resolution of the mask head
  pasted      masks pasted into the image, on the host

segjax computes a fixed number of RoIs, torchvision only the actual ones. Prints a Markdown table of
the minimum over repeats in milliseconds; repeats of the two libraries are interleaved.
"""

import argparse
import copy
import time
import warnings

import jax
import jax.numpy as jnp
import numpy as np

from segjax.convert import torchvision_detection as source
from segjax.convert.table import convert
from segjax.models import mask_rcnn
from segjax.nn.fpn import FPN
from segjax.nn.resnet import ResNet
from segjax.nn.rpn import RPNHead, anchors_per_location, make_anchors, propose
from segjax.ops.paste_masks import paste_masks
from segjax.training import compile as compile_lib

SOURCE = 'torchvision/maskrcnn_resnet50_fpn'


def torchvision_stages(size):
  """Functions that run the network up to a row, and the weights."""
  import torch
  from torchvision.models.detection import maskrcnn_resnet50_fpn
  from torchvision.models.detection.image_list import ImageList

  torch.manual_seed(0)
  options = {'min_size': min(size), 'max_size': max(size)}
  model = maskrcnn_resnet50_fpn(weights=None, weights_backbone=None, **options).eval()
  with torch.no_grad():
    model.roi_heads.box_predictor.cls_score.weight *= 60
  weights = {name: array.numpy() for name, array in model.state_dict().items()}

  def stages(model, memory_format):
    model = copy.deepcopy(model).to(memory_format=memory_format)

    @torch.inference_mode()
    def run(image, until):
      tensor = torch.as_tensor(image).permute(0, 3, 1, 2).contiguous(memory_format=memory_format)
      features = model.backbone(tensor)
      if until == 'features':
        return features
      shapes = [tuple(tensor.shape[-2:])]
      proposals, _ = model.rpn(ImageList(tensor, shapes), features)
      if until == 'proposals':
        return proposals
      found, _ = model.roi_heads(features, proposals, shapes)
      return found if until == 'detections' else model.transform.postprocess(found, shapes, shapes)

    return run

  return stages(model, torch.contiguous_format), stages(model, torch.channels_last), weights


def segjax_stages(size, weights):
  model = mask_rcnn.MaskRCNN(classes=80)
  image = jax.ShapeDtypeStruct((1, *size, 3), np.float32)
  limits = jnp.array([size], jnp.int32)
  with warnings.catch_warnings():
    warnings.simplefilter('ignore')
    arrays = convert(weights, source.SOURCES, SOURCE, 'torchvision')
  variables: dict = {}
  for path, array in arrays.items():
    node = variables
    *parts, last = path.split('/')
    for part in parts:
      node = node.setdefault(part, {})
    node[last] = jnp.asarray(array)
  expected = jax.eval_shape(model.init, jax.random.key(0), image, limits)
  if jax.tree.structure(expected) != jax.tree.structure(variables):
    raise SystemExit(f'{SOURCE} does not fill the network')

  def part(name):
    return {c: values[name] for c, values in variables.items() if name in values}

  def features(image):
    config = model.backbone
    resnet = ResNet(config.name, norm=config.norm, bn_epsilon=config.bn_epsilon)
    found = resnet.apply(part('backbone'), image)
    return FPN(model.neck.features).apply(part('fpn'), list(found.values()))

  def proposals(image):
    levels = features(image)
    config = model.rpn
    head = RPNHead(anchors_per_location(config, pyramid=True), config.convs)
    logits, deltas = head.apply(part('rpn'), levels)
    grids = [level.shape[1:3] for level in levels]
    anchors = make_anchors(config, size, grids, stride=4, pyramid=True)
    pre_nms, post_nms = config.test_proposals
    return propose(
      logits,
      deltas,
      anchors,
      limits,
      pre_nms=pre_nms,
      post_nms=post_nms,
      nms_iou=config.nms_iou,
    )

  whole = compile_lib.jit(model.apply)
  compiled = {
    'features': compile_lib.jit(features),
    'proposals': compile_lib.jit(proposals),
    'detections': lambda image: whole(variables, image, limits)['detections'],
  }

  def run(image, until):
    if until != 'pasted':
      return jax.block_until_ready(compiled[until](image))
    found = jax.device_get(compiled['detections'](image))
    valid = found.valid[0]
    return found, paste_masks(found.masks[0][valid], found.boxes[0][valid], size)

  return run


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('--size', default='800x1344', help='HEIGHTxWIDTH, multiples of 32')
  parser.add_argument('--repeats', type=int, default=3)
  args = parser.parse_args()
  size = tuple(map(int, args.size.split('x')))
  image = np.random.default_rng(0).normal(size=(1, *size, 3)).astype(np.float32)
  plain, channels_last, weights = torchvision_stages(size)
  programs = {
    'segjax': segjax_stages(size, weights),
    'torchvision': plain,
    'torchvision, channels last': channels_last,
  }
  found = programs['segjax'](image, 'pasted')[0]
  theirs = plain(image, 'detections')[0]
  print(
    f'{jax.devices()[0].device_kind}, jax {jax.__version__}, {args.size}, detections: segjax '
    f'{int(found.valid.sum())}, torchvision {len(theirs["scores"])}\n'
  )
  print('| up to |', ' | '.join(programs), '|')
  print('|---' * (1 + len(programs)) + '|')
  for until in ('features', 'proposals', 'detections', 'pasted'):
    least = dict.fromkeys(programs, float('inf'))
    for repeat in range(args.repeats + 1):  # the first one compiles
      for name, run in programs.items():
        start = time.perf_counter()
        run(image, until)
        if repeat:
          least[name] = min(least[name], 1e3 * (time.perf_counter() - start))
    print('|', until, '|', ' | '.join(f'{ms:.0f}' for ms in least.values()), '|', flush=True)


if __name__ == '__main__':
  main()
