"""torchvision's Mask R-CNN and Faster R-CNN: complete tables, and equal to the last mask.

What narrow networks find is in golden/detection.npz (golden/make_detection.py); where torchvision
is installed, the full ones are compared with ours, in inference and in training.
"""

import dataclasses
import functools
import pathlib
import sys

import cv2
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from instance_batch import make_model
from real_data import real_data
from scipy.optimize import linear_sum_assignment
from synthetic import synthetic, synthetic_image

from segjax.convert import torchvision_detection as tables
from segjax.convert.load import SOURCES, Pretrained, flat_paths, load_into
from segjax.convert.table import convert, leftovers
from segjax.losses import detection as losses
from segjax.nn.rpn import propose
from segjax.ops.masks import pack_masks
from segjax.ops.paste_masks import paste_masks
from segjax.training.compile import jit
from segjax.types import Instances, SegjaxError

GOLDEN = pathlib.Path(__file__).parent / 'golden' / 'detection.npz'
NETWORKS = {
  'maskrcnn_resnet50_fpn': {**tables.V1, 'masks': True},
  'maskrcnn_resnet50_fpn_v2': {**tables.V2, 'masks': True},
  'fasterrcnn_resnet50_fpn': {**tables.V1, 'masks': False},
  'fasterrcnn_resnet50_fpn_v2': {**tables.V2, 'masks': False},
}
VERSIONS = {1: tables.V1, 2: tables.V2}


@pytest.fixture(scope='module')
def golden():
  with np.load(GOLDEN) as file:
    return dict(file)


def shapes_of(golden, name):
  shapes = [tuple(map(int, s.split('x'))) if s else () for s in golden[f'{name}/shapes'].tolist()]
  return dict(zip(golden[f'{name}/names'].tolist(), shapes, strict=True))


@functools.cache
def zeros(model):
  """Zero variables of a model, without a compilation, that take no memory."""
  init = functools.partial(jax.eval_shape, model.init, jax.random.key(0))
  shapes = init(jnp.zeros((1, 64, 64, 3)), jnp.zeros((1, 2), jnp.int32))
  return jax.tree.map(lambda x: np.broadcast_to(x.dtype.type(0), x.shape), dict(shapes))


def shapes(variables):
  return {path: x.shape for path, x in flat_paths(variables).items()}


def loaded(variables, pretrained):
  variables = dict(variables)
  params, model_state, report = load_into(variables.pop('params'), variables, pretrained)
  return {'params': params, **model_state}, report


def converted(arrays, source):
  return Pretrained('FILE', convert(arrays, {'x': source}, 'x', 'FILE'), source.new, source.spare)


# --- the tables ----------------------------------------------------------------------------------


def blank(golden, name, classes=90):
  """The arrays of a file, of any number of classes, which take no memory."""
  per_class = {91: 1 + classes, 364: 4 * (1 + classes)}
  return {
    key: np.broadcast_to(np.float32(0), [per_class.get(n, n) for n in shape])
    for key, shape in shapes_of(golden, name).items()
  }


def taken_shapes(source, file):
  return {row.path: row.transform(file[row.key]).shape for row in source.rows}


@pytest.mark.parametrize('name', NETWORKS)
def test_every_array_of_either_side_is_accounted_for(golden, name):
  source, file = SOURCES[f'torchvision/{name}'], blank(golden, name)
  assert leftovers(file, source) == ([], [])
  left = file.keys() - {row.key for row in source.rows}
  assert {key.rpartition('.')[2] for key in left} == {'num_batches_tracked'}
  assert taken_shapes(source, file) == shapes(zeros(make_model({'classes': 80, **NETWORKS[name]})))


@pytest.mark.parametrize('name', NETWORKS)
def test_a_fine_tuned_file_has_its_own_classes(golden, name):
  source, file = SOURCES[f'torchvision/{name}_all'], blank(golden, name, classes=2)
  assert taken_shapes(source, file) == shapes(zeros(make_model({'classes': 2, **NETWORKS[name]})))


def test_a_fine_tuned_file_names_its_source(golden):
  name = 'torchvision/maskrcnn_resnet50_fpn'
  with pytest.raises(
    SegjaxError, match=f'cls_score.weight is 3x1024: use the file .*, or the source {name}_all'
  ):
    convert(blank(golden, 'maskrcnn_resnet50_fpn', classes=2), SOURCES, name, 'FILE')


@pytest.mark.parametrize('name', NETWORKS)
def test_a_body_fills_all_but_the_class_specific_layers(golden, name):
  source, file = SOURCES[f'torchvision/{name}_body'], blank(golden, name)
  assert leftovers(file, source) == ([], [])
  variables = zeros(make_model({'classes': 2, **NETWORKS[name]}))
  taken = taken_shapes(source, file)
  ones = {path: np.ones(shape, 'f4') for path, shape in taken.items()}
  variables, report = loaded(variables, Pretrained('FILE', ones, source.new, source.spare))
  unmatched = {'params/box/score', 'params/box/deltas', *['params/mask/score'] * ('mask' in name)}
  assert {path.rpartition('/')[0] for path in report.new} == unmatched
  assert len(report.loaded) == len(taken)


def test_a_network_starts_from_one_with_or_without_a_mask_head(golden):
  for name, kwargs in NETWORKS.items():
    source = SOURCES[f'torchvision/{name}']
    ones = {p: np.ones(s, 'f4') for p, s in taken_shapes(source, blank(golden, name)).items()}
    other = make_model({**kwargs, 'classes': 80, 'masks': not kwargs['masks']})
    _, report = loaded(zeros(other), Pretrained('FILE', ones, source.new, source.spare))
    paths = report.unused if kwargs['masks'] else report.new
    assert {path.split('/')[1] for path in paths} == {'mask'}


def test_names_of_older_files_are_known(golden):
  """Those that a network of version 1 had before torchvision 0.13."""
  source, old = SOURCES['torchvision/maskrcnn_resnet50_fpn'], {}
  for key, shape in shapes_of(golden, 'maskrcnn_resnet50_fpn').items():
    layer, _, array = key.rpartition('.')
    if '_blocks.' in key:
      key = f'{layer.removesuffix(".0")}.{array}'
    elif key.startswith('rpn.head.conv.'):
      key = f'rpn.head.conv.{array}'
    elif key.startswith('roi_heads.mask_head.'):
      key = f'roi_heads.mask_head.mask_fcn{1 + int(key.split(".")[2])}.{array}'
    old[key] = np.broadcast_to(np.float32(len(old)), shape)
  assert 'backbone.fpn.inner_blocks.3.bias' in old
  assert 'roi_heads.mask_head.mask_fcn4.weight' in old
  arrays = converted(old, source).arrays
  assert (arrays['params/mask/conv2/bias'] == old['roi_heads.mask_head.mask_fcn2.bias'][0]).all()
  assert (arrays['params/fpn/output5/bias'] == old['backbone.fpn.layer_blocks.3.bias'][0]).all()


def test_classes_are_coco_s_in_the_order_of_their_ids():
  assert len(tables.COCO_IDS) == 80
  assert tables.COCO_IDS[:12] == (*range(1, 12), 13)
  assert tables.COCO_IDS[-2:] == (89, 90)
  rows = {row.path: row.transform for row in SOURCES['torchvision/maskrcnn_resnet50_fpn'].rows}
  ids = np.arange(91.0)
  np.testing.assert_array_equal(rows['params/box/score/bias'](ids), [0, *tables.COCO_IDS])
  kernel = rows['params/box/score/kernel'](np.stack([ids, ids + 100], 1))
  np.testing.assert_array_equal(kernel[:, 12], [13, 113])
  deltas = rows['params/box/deltas/bias'](np.arange(364.0)).reshape(80, 4)
  np.testing.assert_array_equal(deltas, 4 * np.array(tables.COCO_IDS)[:, None] + np.arange(4))
  np.testing.assert_array_equal(rows['params/mask/score/bias'](ids), tables.COCO_IDS)


@pytest.mark.parametrize('feature_maps', ['fpn', 'c4'])
def test_imagenet_s_resnet_fills_the_backbone(feature_maps):
  fields = {'backbone.name': 'resnet18', 'backbone.width': 2, 'box_head.hidden': 4}
  fields |= {f'{part}.features': 4 for part in ('neck', 'box_head', 'mask_head')}
  model = make_model({'classes': 3, 'feature_maps': feature_maps} | fields)
  source, variables = SOURCES['torchvision/resnet18'], zeros(model)
  ours = shapes(variables)
  ones = {row.path: np.ones(ours[row.path], 'f4') for row in source.rows}
  variables, report = loaded(variables, Pretrained('FILE', ones, source.new, source.spare))
  assert report.unused == ()
  for path, value in flat_paths(variables).items():
    assert np.all(value == (1 if '/backbone/' in path else 0)), path


# --- equal to torchvision ------------------------------------------------------------------------


def find(model, variables, image, size):
  """What ours finds in one program: (pyramid, proposals, detections)."""

  @functools.partial(jit, once=True)
  def run(variables, image, size):
    parts = lambda module, _: module.name in ('fpn', 'rpn')
    outputs, state = model.apply(
      variables, image, size, mutable=['intermediates'], capture_intermediates=parts
    )
    [pyramid], [(logits, deltas)] = (state['intermediates'][k]['__call__'] for k in ('fpn', 'rpn'))
    pre_nms, post_nms = model.rpn.test_proposals
    anchors = model._anchors(image.shape[1:3], [level.shape[1:3] for level in pyramid])
    options = {'pre_nms': pre_nms, 'post_nms': post_nms, 'nms_iou': model.rpn.nms_iou}
    proposals = propose(logits, deltas, anchors, size, **options)
    return pyramid, proposals, outputs['detections']

  return jax.tree.map(np.asarray, run(variables, image, size))


def assert_close(actual, expected):
  """Within 1e-5 of the largest; the numbers are the outcome of up to 60 layers."""
  np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-5 * np.abs(expected).max())


def assert_same(found, i, expected, *, pixels):
  """The i-th image's detections: as many and in the same order, ties apart; boxes within `pixels`.

  Returns:
    The place among ours of each of the expected ones.
  """
  count = len(expected['boxes'])
  assert count > 5
  assert found.valid[i].sum() == count
  np.testing.assert_allclose(found.scores[i, :count], expected['scores'], rtol=0, atol=1e-3)
  place = np.arange(count)
  # Ours are in float32, in which those of random weights are often 1, or nearly.
  ties = np.cumsum(np.diff(expected['scores'], prepend=2) < -1e-6)
  for tie in np.unique(ties):
    tied = np.flatnonzero(ties == tie)
    distance = np.abs(expected['boxes'][tied, None] - found.boxes[i, tied]).max(-1)
    other = expected['labels'][tied, None] != found.classes[i, tied] + 1
    place[tied] = tied[linear_sum_assignment(distance + 1e6 * other)[1]]
  np.testing.assert_array_equal(found.classes[i, place] + 1, expected['labels'])
  np.testing.assert_allclose(found.boxes[i, place], expected['boxes'], rtol=0, atol=pixels)
  return place


def narrow(golden, version):
  """(our narrow network, its variables) from the arrays of make_detection.py."""
  name = f'narrow_v{version}'
  arrays = {key: synthetic(key, shape) for key, shape in shapes_of(golden, name).items()}
  for key in golden:
    if key.startswith(name) and key.endswith('.factor'):
      layer = key.removeprefix(f'{name}/').removesuffix('.factor')
      arrays[f'{layer}.weight'] = arrays[f'{layer}.weight'] * golden[key]
      arrays[f'{layer}.bias'] = golden[f'{name}/{layer}.bias']
  source = tables.detection_source('resnet18', tables.all_rows, version=version, masks=True)
  fields = {
    'classes': 5,
    'backbone.name': 'resnet18',
    'backbone.width': 4,
    **{f'{part}.features': 16 for part in ('neck', 'box_head', 'mask_head')},
    'box_head.hidden': 32,
    'box_head.max_detections': 12,
    'rpn.anchor_sizes': (8, 16, 32, 64, 128),
    'rpn.test_proposals': (60, 40),
  }
  model = make_model({**fields, **VERSIONS[version], 'backbone.bn_epsilon': 1e-5})
  variables, report = loaded(zeros(model), converted(arrays, source))
  assert not report.new
  return model, variables


@pytest.mark.parametrize('version', VERSIONS)
def test_narrow_networks_find_what_torchvision_s_find(golden, version):
  model, variables = narrow(golden, version)
  sizes = golden['sizes']
  image = synthetic_image(tuple(golden['padded']), sizes).transpose(0, 2, 3, 1)
  pyramid, proposals, found = find(model, variables, image, sizes.astype(np.int32))
  for level, x in enumerate(pyramid, 2):
    assert_close(x[..., ::8], golden[f'narrow_v{version}/p{level}'].transpose(0, 2, 3, 1))
  for i, (height, width) in enumerate(sizes):
    expected = {
      key.rpartition('/')[2]: x for key, x in golden.items() if f'narrow_v{version}/{i}/' in key
    }
    assert proposals.valid[i].sum() == len(expected['proposals'])
    np.testing.assert_allclose(proposals.boxes[i], expected['proposals'], rtol=0, atol=1e-3)
    assert_same(found, i, expected, pixels=1e-3)
    np.testing.assert_allclose(found.masks[i, :, ::3, ::3], expected['masks'], rtol=0, atol=1e-3)
    pasted = paste_masks(found.masks[i], found.boxes[i], (height, width))
    truth = np.unpackbits(expected['pasted'], axis=-1, count=width).astype(bool)
    assert 0 < truth.mean() < 1
    assert (pasted != truth).mean() < 1e-4
  assert len(set(found.classes[1])) > 1


# --- torchvision itself --------------------------------------------------------------------------

# Fewer proposals than by default: less work.
PROPOSALS = (300, 100)
PADDED, SIZES = (224, 288), ((200, 260), (224, 251))


@pytest.fixture(scope='module')
def maker():
  """golden/make_detection.py, where torchvision and its detection models work."""
  pytest.importorskip('torch', reason='PyTorch is not installed')
  pytest.importorskip('torchvision.models.detection', reason='torchvision is not installed')
  sys.path.append(str(GOLDEN.parent))
  import make_detection

  return make_detection


@pytest.fixture(scope='module', params=[1, pytest.param(2, marks=pytest.mark.slow)])
def pair(request, maker):
  """(version, torchvision's network with outputs that find something, its source, ours)."""
  torch = pytest.importorskip('torch')
  version = request.param
  name = f'maskrcnn_resnet50_fpn{"" if version == 1 else "_v2"}'
  options = {
    f'rpn_{when}_nms_top_n_{mode}': n
    for mode in ('train', 'test')
    for when, n in zip(('pre', 'post'), PROPOSALS, strict=True)
  }
  make = getattr(maker.detection, name)
  original = make(weights=None, weights_backbone=None, **options)
  with torch.no_grad():
    maker.fill(original)
    original.eval()
    maker.rescale(original, torch.tensor(synthetic_image(PADDED, SIZES)), SIZES)
  proposals = {f'rpn.{mode}_proposals': PROPOSALS for mode in ('train', 'test')}
  fields = {**VERSIONS[version], 'backbone.bn_epsilon': 1e-5}  # that of nn.BatchNorm2d
  model = make_model({'classes': 90, **proposals, **fields})
  arrays = {key: x.numpy() for key, x in original.state_dict().items()}
  source = SOURCES[f'torchvision/{name}_all']
  variables, _ = loaded(zeros(model), converted(arrays, source))
  return version, original, arrays, model, variables


def coco_images():
  """Two of COCO's at `SIZES`, as `synthetic_image` gives them: f32[2, 3, *PADDED], normalized."""
  directory = real_data('coco_instances', 'val2017')
  batch = np.zeros((2, 3, *PADDED), np.float32)
  for image, (height, width), path in zip(
    batch, SIZES, sorted(directory.glob('*.jpg')), strict=False
  ):
    pixels = cv2.resize(cv2.imread(str(path))[..., ::-1], (width, height)) / 255
    pixels = (pixels - (0.485, 0.456, 0.406)) / (0.229, 0.224, 0.225)
    image[:, :height, :width] = pixels.transpose(2, 0, 1)
  return batch


@pytest.mark.parametrize('images', ['synthetic', 'coco'])
def test_finds_what_torchvision_finds(pair, maker, images):
  """In float64, ours but for coordinates: in float32 the two differ by up to 2e-3 pixels, and each
  of them by as much from float64."""
  torch = pytest.importorskip('torch')
  _, original, _, model, variables = pair
  image = coco_images() if images == 'coco' else synthetic_image(PADDED, SIZES)
  image = np.float64(image)
  with torch.no_grad():
    original.double().eval()
    expected = maker.find(original, torch.tensor(image), SIZES)
    original.float()
  with jax.enable_x64(True):
    variables = jax.tree.map(np.float64, variables)
    arguments = variables, image.transpose(0, 2, 3, 1), np.array(SIZES)
    pyramid, proposals, found = find(model.clone(dtype='float64'), *arguments)
  for x, theirs in zip(pyramid, expected['features'], strict=True):
    assert_close(x, theirs.numpy().transpose(0, 2, 3, 1))
  for i, size in enumerate(SIZES):
    theirs = expected['proposals'][i].numpy()
    assert proposals.valid[i].sum() == len(theirs)
    np.testing.assert_allclose(proposals.boxes[i, : len(theirs)], theirs, rtol=0, atol=2e-4)
    detected = {key: x.numpy() for key, x in expected['detections'][i].items()}
    assert len(set(detected['labels'])) > 1
    place, theirs = assert_same(found, i, detected, pixels=2e-4), detected['masks']
    np.testing.assert_allclose(found.masks[i, place], theirs[:, 0], rtol=0, atol=1e-4)
    pasted = paste_masks(found.masks[i, place], found.boxes[i, place], size)
    values = maker.paste_masks_in_image(*map(torch.tensor, (theirs, detected['boxes'])), size)
    values = values[:, 0].numpy()
    assert (pasted != (values > 0.5)).mean() < 1e-4
    np.testing.assert_allclose(values[pasted != (values > 0.5)], 0.5, rtol=0, atol=1e-3)


def test_coco_s_classes_are_the_same_among_fewer(pair):
  """80 of 90 classes: each has the weights that it has among the 90."""
  version, _, arrays, model, variables = pair
  name = f'torchvision/maskrcnn_resnet50_fpn{"" if version == 1 else "_v2"}'
  source = SOURCES[name]
  fewer, _ = loaded(zeros(model.clone(classes=80)), converted(arrays, source))
  for layer, axis, groups in (('box/score', -1, 1), ('box/deltas', -1, 4), ('mask/score', -1, 1)):
    part, name = layer.split('/')
    offset = name == 'score' and part == 'box'
    picked = np.array(tables.COCO_IDS) - (not offset)
    index = (groups * picked[:, None] + np.arange(groups)).ravel()
    for array in ('kernel', 'bias'):
      few, many = (v['params'][part][name][array] for v in (fewer, variables))
      np.testing.assert_array_equal(few[..., offset:], np.take(many, index, axis))


def synthetic_objects():
  """For two images (boxes, labels from 1, masks) of ellipses, the first cut off in a corner."""
  rng = np.random.default_rng(0)
  rows, cols = np.indices(PADDED)
  images = []
  for height, width in SIZES:
    masks = []
    for i in range(4):
      radius = rng.uniform(12, 40, 2)
      ends = zip(radius, (height, width), strict=True)
      y, x = (rng.uniform(r, n - r) if i else n - r / 2 for r, n in ends)
      masks.append(((rows - y) / radius[0]) ** 2 + ((cols - x) / radius[1]) ** 2 < 1)
    masks = np.stack(masks) & (rows < height) & (cols < width)
    y, x = masks.any(2), masks.any(1)
    first = lambda a: a.argmax(1)
    last = lambda a: a.shape[1] - a[:, ::-1].argmax(1)
    boxes = np.stack([first(x), first(y), last(x), last(y)], 1).astype(np.float32)
    images.append((boxes, rng.integers(1, 91, len(masks)), masks))
  return images


def test_losses_equal_torchvision_s(pair, maker):
  """All anchors and all proposals are sampled, so that nothing random decides."""
  torch = pytest.importorskip('torch')
  from torchvision.models.detection._utils import BalancedPositiveNegativeSampler

  version, original, _, model, variables = pair
  image, objects = synthetic_image(PADDED, SIZES), synthetic_objects()
  original.train()
  if version == 1:  # frozen norms
    for module in original.modules():
      if isinstance(module, torch.nn.BatchNorm2d):
        module.eval()
  original.rpn.fg_bg_sampler = BalancedPositiveNegativeSampler(10**6, 0.5)
  original.roi_heads.fg_bg_sampler = BalancedPositiveNegativeSampler(10**6, 0.25)
  targets = [
    {
      'boxes': torch.tensor(boxes),
      'labels': torch.tensor(labels),
      'masks': torch.tensor(masks[:, :height, :width].astype(np.uint8)),
    }
    for (boxes, labels, masks), (height, width) in zip(objects, SIZES, strict=True)
  ]
  state = {key: x.clone() for key, x in original.state_dict().items()}
  with torch.no_grad():
    batch = maker.ImageList(torch.tensor(image), list(SIZES))
    features = original.backbone(batch.tensors)
    proposals, expected = original.rpn(batch, features, targets)
    _, more = original.roi_heads(features, proposals, batch.image_sizes, targets)
  original.load_state_dict(state)
  expected = {key: float(x) for key, x in (expected | more).items()}

  boxes, labels, masks = (np.stack(x) for x in zip(*objects, strict=True))
  blank = np.zeros(labels.shape, bool)
  packed = pack_masks(jnp.asarray(masks))
  instances = Instances(boxes, labels.astype(np.int32) - 1, packed, blank, ~blank)
  model = model.clone(rpn=dataclasses.replace(model.rpn, samples=2**15))

  @functools.partial(jit, once=True)
  def run(variables, image, instances):
    keys = jax.random.split(jax.random.key(0), 2)
    apply = functools.partial(model.apply, mutable=['batch_stats'], train=True)
    outputs, _ = apply(variables, image, jnp.array(SIZES), instances, keys)
    rpn, box, mask = outputs['rpn'], outputs['box'], outputs['mask']
    found, cut = box.rois, mask.rois
    of_box = (found.classes, found.positive, found.valid)
    return {
      'loss_objectness': losses.objectness_loss(rpn.logits, rpn.positive, rpn.valid),
      'loss_rpn_box_reg': losses.box_loss(rpn.deltas, rpn.target, rpn.positive, rpn.valid),
      'loss_classifier': losses.class_loss(box.logits, *of_box),
      'loss_box_reg': losses.box_loss(box.deltas, found.target, *of_box[1:], found.classes),
      'loss_mask': losses.mask_loss(mask.logits, mask.target, cut.positive, cut.classes),
    }, (rpn.valid.sum(), found.valid.sum(1), cut.positive.sum(1))

  sums, (anchors, regions, positives) = run(variables, image.transpose(0, 2, 3, 1), instances)
  actual = {key: float(x.sum / x.count) for key, x in sums.items()}
  assert anchors < 2 * 2**15
  np.testing.assert_array_equal(regions, [len(x) + 4 for x in proposals])
  assert all(4 <= n < 128 for n in positives)
  assert actual.keys() == expected.keys()
  for key, x in expected.items():
    np.testing.assert_allclose(actual[key], x, rtol=1e-4, err_msg=key)


def test_names_and_shapes_are_those_of_torchvision(golden, maker):
  """The golden file is up to date."""
  torch = pytest.importorskip('torch')
  for name in NETWORKS:
    with torch.device('meta'):
      network = getattr(maker.detection, name)(weights=None, weights_backbone=None)
    theirs = {key: tuple(x.shape) for key, x in network.state_dict().items()}
    assert theirs == shapes_of(golden, name)
