"""FCN against the numbers of the paper (arXiv 1411.4038) and of the released files."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from networks import abstract, apply, count

from segjax.models.fcn import (
  FCN,
  ONLY_SCORE,
  PAD,
  VARIANTS,
  FCNAlexNet,
  FCNGoogLeNet,
  Upsample,
  bilinear_upsample,
)
from segjax.nn.vgg import VGG16, conv_layers
from segjax.ops.upsample import bilinear_kernel, conv_transpose
from segjax.ops.windows import Window, bilinear_crop, receptive_field
from segjax.training import optim
from segjax.training.compile import jit

WIDTH = 180  # of images of one row
IMAGE = np.random.default_rng(0).normal(size=(1, 6, 20, 3)).astype('f4')


def tiny(variant='8s', channels=1, **kwargs):
  """An FCN on VGG16 with a given number of channels in all layers, and fixed upsampling."""
  stages = tuple((channels, convolutions) for _, convolutions in VGG16)
  defaults = {'classes': 1, 'learned': 'none', 'fc_features': channels}
  return FCN(variant=variant, stages=stages, **defaults | kwargs)


def filled(model, kernel, channels=1):
  """Variables of a tiny model: every kernel by `kernel(path, shape)`, every bias zero."""
  variables, _ = abstract(model, (1, 1, WIDTH, channels))

  def fill(path, leaf):
    path = jax.tree_util.keystr(path, simple=True, separator='/')
    return np.zeros(leaf.shape, 'f4') if path.endswith('bias') else kernel(path, leaf.shape)

  return jax.tree_util.tree_map_with_path(fill, variables)


def random_kernels(path, shape):
  """He initialization without compilation; zero scores; bilinear upsampling."""
  if 'upscore' in path:
    return np.asarray(bilinear_kernel(shape[0], shape[-1]))
  if 'score' in path:
    return np.zeros(shape, 'f4')
  rng = np.random.default_rng(len(path) + sum(shape))
  return rng.normal(0, np.sqrt(2 / np.prod(shape[:3])), shape).astype('f4')


def random_variables(model, **scores):
  """Variables of a model of 3 channels; `scores` are the kernels' values, one for each layer."""
  variables = filled(model, random_kernels, channels=3)
  for name, value in scores.items():
    kernel = variables['params'][name]['kernel']
    kernel[:] = value
  return variables


def center_tap(path, shape):
  """Kernels that copy the center, and zero scores."""
  kernel = np.zeros(shape, np.float32)
  if 'score' not in path:
    kernel[shape[0] // 2, shape[1] // 2] = 1
  return kernel


def passing_on(model, score):
  """Variables that copy a pixel's value to the scores named `score` only."""
  variables = filled(model, center_tap)
  variables['params'][score]['kernel'] = np.ones((1, 1, 1, 1), np.float32)
  return variables


# --- the paper's numbers -------------------------------------------------------------------------


def test_paper_has_134m_parameters():
  for variant in VARIANTS:
    variables, logits = abstract(FCN(21, variant), (1, 500, 375, 3))
    assert round(count(variables) / 1e6) == 134
    assert logits.shape == (1, 500, 375, 21)


def test_receptive_field_is_404_and_stride_32():
  """The receptive field of a score, from its gradients in a rising and a falling image.

  The gradient of pooling goes to one pixel of a window: in these to its last and its first.
  """
  model = tiny('32s')
  variables = filled(model, lambda _, shape: np.ones(shape, np.float32))
  rising = jnp.linspace(1, 2, 480)
  images = [row.reshape(1, 1, 480, 1) for row in (rising, rising[::-1])]

  @functools.partial(jit, once=True)
  @jax.grad
  def gradient(image, i):
    _, state = model.apply(
      variables,
      image,
      capture_intermediates=lambda module, _: module.name == 'score_fr',
      mutable=['intermediates'],
    )
    return state['intermediates']['score_fr']['__call__'][0][0, 0, i, 0]

  seen = [
    np.flatnonzero(sum(abs(gradient(image, i)) for image in images)[0, 0, :, 0]) for i in (7, 8)
  ]
  assert [s.max() - s.min() + 1 for s in seen] == [404, 404]
  assert seen[1].min() - seen[0].min() == model.stride == 32


def axis(layers):
  """(step, center): output i of stacked layers is centered at pixel step·i + center."""
  step, center = 1, 0
  for kernel, stride, pad in layers:
    center += step * ((kernel - 1) / 2 - pad)
    step *= stride
  return step, center


@pytest.mark.parametrize('variant', VARIANTS)
def test_crop_offsets_follow_from_the_layers(variant):
  """Each crop aligns scores with the pixels that they were computed from."""
  layers, pools = [], {}
  for stage, convolutions in enumerate(conv_layers(), 1):
    layers += [(3, 1, PAD if name == 'conv1_1' else 1) for name, _ in convolutions]
    layers += [(2, 2, 0)]
    pools[stage] = axis(layers)
  step, center = axis([*layers, (7, 1, 0), (1, 1, 0)])

  def up(stride):
    """Input i of a transposed convolution is the center of its outputs from s·i to s·i + 2s - 1."""
    return step // stride, center - (stride - 0.5) * step / stride

  for skip in VARIANTS[variant].skips:
    step, center = up(2)
    pool_step, pool_center = pools[skip.pool]
    assert pool_step == step
    assert skip.offset == (center - pool_center) / step
  step, center = up(VARIANTS[variant].stride)
  assert (step, VARIANTS[variant].offset) == (1, -center)


# --- alignment -----------------------------------------------------------------------------------

# The at-once network has the crops of the other 8s.
BRANCHES = [
  (variant, score, 2**pool)
  for variant in ('32s', '16s', '8s')
  for score, pool in [
    ('score_fr', 5),
    *((f'score_pool{s.pool}', s.pool) for s in VARIANTS[variant].skips),
  ]
]


@pytest.mark.parametrize(('variant', 'score', 'stride'), BRANCHES)
def test_things_come_out_where_they_were(variant, score, stride):
  model = tiny(variant)
  variables = passing_on(model, score)
  columns = np.arange(WIDTH)
  starts = np.arange(64, 64 + stride)
  border = 80 - (80 + PAD - 1) % stride  # cells start where conv1_1 does, at -(PAD - 1)
  rows = np.concatenate([columns == starts[:, None], columns[None] >= border])
  images = rows[:, None, :, None].astype('f4')
  logits = np.asarray(apply(model, variables, images))[:, 0, :, 0]

  # The response to a delta is centered on the cell of the delta; cells are a stride apart.
  deltas, region = logits[:-1], logits[-1]
  centers = deltas @ columns / deltas.sum(1)
  assert np.abs(centers - starts).max() <= (stride - 1) / 2 + 1e-3
  assert np.mean(centers - starts) == pytest.approx(0, abs=1e-3)
  assert sum(np.diff(centers) > 0.5) == 1
  assert np.ptp(centers) == pytest.approx(stride, abs=1e-3)

  # Scores of 0 on one side of a border and 1 on the other cross 1/2 exactly between the two.
  assert not region[: border - stride].any()
  np.testing.assert_allclose(region[border + stride : border + 40], region.max(), rtol=1e-6)
  before, after = region[border - 1 : border + 1] / region.max()
  assert before < 0.5 < after
  assert before + after == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize('variant', VARIANTS)
@pytest.mark.parametrize('size', [(1, 1), (1, 300), (33, 64), (97, 128)])
def test_any_size_goes_in_and_the_same_comes_out(variant, size):
  _, logits = abstract(tiny(variant, classes=2), (2, *size, 3))
  assert logits.shape == (2, *size, 2)
  assert logits.dtype == jnp.float32


# --- AlexNet and GoogLeNet -----------------------------------------------------------------------

AVERAGE_POOLING = Window(7)  # GoogLeNet's last, which FCN discards
# Networks with few channels.
SMALL = {
  'alexnet': FCNAlexNet(1, width=1 / 64, fc_features=16),
  'torchvision alexnet': FCNAlexNet(1, 'torchvision', width=1 / 64, fc_features=32),
  'googlenet': FCNGoogLeNet(1, width=1 / 64),
  'torchvision googlenet': FCNGoogLeNet(1, 'torchvision', width=1 / 64),
}


@pytest.mark.parametrize(('model', 'millions'), [(FCNAlexNet(21), 57), (FCNGoogLeNet(21), 6)])
def test_table_1_parameters(model, millions):
  variables, logits = abstract(model, (1, 500, 375, 3))
  assert round(count(variables) / 1e6) == millions
  assert logits.shape == (1, 500, 375, 21)


@pytest.mark.parametrize(
  ('windows', 'sees', 'upsampling'),
  [
    # Kernel and crop of the released files, where there is one.
    (FCN(21).windows, 404, (2 * VARIANTS['32s'].stride, VARIANTS['32s'].offset)),
    (FCNAlexNet(21).windows, 355, (63, 18)),
    ((*FCNGoogLeNet(21).windows, AVERAGE_POOLING), 907, (63, 2)),
  ],
)
def test_table_1_receptive_fields_and_the_crops(windows, sees, upsampling):
  seen = receptive_field(windows)
  assert (seen.size, seen.stride) == (sees, 32)
  assert bilinear_crop(seen) == upsampling


@functools.cache
def response(name):
  """(variables -> logits of eight images of one row, the width of these, the shapes)."""
  model = SMALL[name]
  width = receptive_field(model.windows).size + 4 * model.stride
  variables, _ = abstract(model, (8, 1, width, 1))
  return (
    jit(lambda v, rows: model.apply(v, rows[:, None, :, None])[:, 0, :, 0], once=True),
    width,
    variables,
  )


def filled_with(shapes, kernel):
  """Variables with `kernel(path, shape)` for every kernel; other variables are neutral."""

  def fill(path, leaf):
    path = jax.tree_util.keystr(path, simple=True, separator='/')
    if path.endswith('kernel'):
      return np.broadcast_to(kernel(path, leaf.shape), leaf.shape).astype('f4')
    return np.full(leaf.shape, path.endswith(('scale', 'var')), 'f4')

  return jax.tree_util.tree_map_with_path(fill, shapes)


def mean_of_all(path, shape):
  return np.full(shape, 1 / np.prod(shape[:3]))


def mean_of_the_middle(path, shape):
  """Of one tap, or of the middle two; of all of conv1's, whose stride skips pixels.

  Nothing comes by a pooling of stride 1, so that a response stays near where it is from.
  """
  if 'conv1/' in path:
    return mean_of_all(path, shape)
  taps = np.abs(np.arange(shape[0]) - (shape[0] - 1) / 2) < 1
  return np.outer(taps, taps)[..., None, None] * ('pool_proj' not in path)


@pytest.mark.parametrize('name', SMALL)
def test_a_score_sees_what_the_windows_say(name):
  """Images that are 1 from, or up to, some column reach a score or just do not.

  At the pixel of a score, the bilinear kernels of the other scores are zero.
  """
  respond, width, shapes = response(name)
  seen = receptive_field(SMALL[name].windows)
  columns, rows, pixels = np.arange(width), [], []
  middle = int((width // 2 - seen.center) // seen.stride)
  for score in (middle, middle + 1):
    pixel = int(seen.stride * score + seen.center)
    first, last = pixel - (seen.size - 1) // 2, pixel + (seen.size - 1) // 2
    assert first > 0
    assert last < width - 1
    rows += [columns >= last, columns >= last + 1, columns <= first, columns <= first - 1]
    pixels += [pixel] * 4
  logits = respond(filled_with(shapes, mean_of_all), np.array(rows, 'f4'))
  assert (logits[np.arange(8), np.array(pixels)] > 0).tolist() == [True, False] * 4


@pytest.mark.parametrize('name', SMALL)
def test_a_delta_comes_out_where_it_was(name):
  """Responses to deltas on both sides of the pixel of a score are centered on it, on average."""
  respond, width, shapes = response(name)
  seen = receptive_field(SMALL[name].windows)
  pixel = int(seen.stride * ((width // 2 - seen.center) // seen.stride) + seen.center)
  offsets = np.array([-16, -11, -6, -1, 1, 6, 11, 16])
  columns = np.arange(width)
  logits = respond(
    filled_with(shapes, mean_of_the_middle), (columns == pixel + offsets[:, None]).astype('f4')
  )
  logits = np.asarray(logits, np.float64)
  assert not logits[:, [0, -1]].any()
  centers = logits @ columns / logits.sum(1)
  assert np.abs(centers - pixel - offsets).max() <= 16
  assert np.mean(centers) == pytest.approx(pixel, abs=1e-3)
  # Shifting by a stride shifts the response by a stride.
  moved = respond(
    filled_with(shapes, mean_of_the_middle), (columns == pixel + 32 + offsets[:, None]).astype('f4')
  )
  np.testing.assert_allclose(moved[:, 32:], logits[:, :-32], rtol=1e-4, atol=1e-6 * logits.max())


@pytest.mark.parametrize('name', SMALL)
@pytest.mark.parametrize('size', [(1, 1), (33, 64), (98, 300)])
def test_any_size_goes_into_the_others_too(name, size):
  _, logits = abstract(SMALL[name], (2, *size, 3))
  assert logits.shape == (2, *size, 1)
  assert logits.dtype == jnp.float32
  assert SMALL[name].stride == 32


@pytest.mark.parametrize('size', [(26, 27), (45, 46), (58, 59), (77, 78), (90, 91), (217, 333)])
def test_torchvisions_alexnet_ends_where_the_image_does(size):
  """Its scores reach less far than Caffe's, by up to 13 pixels; an image below 27 has none."""
  _, logits = abstract(SMALL['torchvision alexnet'], (1, *size, 3))
  assert logits.shape == (1, *size, 1)


@pytest.mark.parametrize(('size', 'padded'), [((58, 46), (59, 59)), ((1, 60), (27, 60))])
def test_torchvisions_alexnet_pads_images_that_its_scores_do_not_reach(size, padded):
  model = FCNAlexNet(2, 'torchvision', width=1 / 32, fc_features=4)
  image = np.random.default_rng(0).normal(size=(1, *size, 3)).astype('f4')
  variables, _ = abstract(model, (1, 32, 32, 3))
  rng = np.random.default_rng(1)
  variables = jax.tree.map(lambda x: rng.normal(0, 0.1, x.shape).astype('f4'), variables)
  below, right = np.subtract(padded, size)
  larger = np.pad(image, [(0, 0), (0, below), (0, right), (0, 0)])
  apply = jax.jit(model.apply)
  ours, theirs = apply(variables, image), apply(variables, larger)[:, : size[0], : size[1]]
  assert ours.shape == (1, *size, 2)
  assert np.std(theirs) > 0
  np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-6 * np.abs(theirs).max())


@pytest.mark.slow
@pytest.mark.parametrize('name', SMALL)
def test_every_parameter_gets_a_finite_gradient(name):
  """Dropout is active in training; the zero-initialized scores are set to one first."""
  model = SMALL[name].clone(classes=2, width=1 / 16, dropout=0.5)
  variables = filled_with(abstract(model, IMAGE.shape)[0], random_kernels)
  state = {k: v for k, v in variables.items() if k != 'params'}

  @functools.partial(jit, once=True)
  @jax.value_and_grad
  def loss(params, key):
    logits, _ = model.apply(
      {'params': params, **state},
      100 * IMAGE,
      train=True,
      rngs={'dropout': key},
      mutable=list(state),
    )
    return (logits * jnp.cos(jnp.arange(logits.size).reshape(logits.shape))).sum()

  _, gradient = loss(variables['params'], jax.random.key(1))
  assert {k for k, v in gradient.items() if any(np.any(x) for x in v.values())} == {'score_fr'}
  params = jax.tree.map(np.copy, variables['params'])
  kernel = params['score_fr']['kernel']
  kernel[:] = np.linspace(-1, 1, kernel.size).reshape(kernel.shape)
  values = []
  for key in (1, 2):
    value, gradient = loss(params, jax.random.key(key))
    assert np.isfinite(value)
    for path, leaf in jax.tree_util.tree_leaves_with_path(gradient):
      assert np.isfinite(leaf).all(), path
      assert leaf.any(), path
    values.append(value)
  assert values[0] != values[1]


def test_the_others_compute_in_bfloat16_with_float32_parameters():
  for name in SMALL:
    variables, logits = abstract(SMALL[name].clone(dtype='bfloat16'), (1, 9, 9, 3))
    assert {x.dtype for x in jax.tree.leaves(variables)} == {jnp.dtype('float32')}
    assert logits.dtype == jnp.float32


# --- parameters ----------------------------------------------------------------------------------


def test_only_learned_upsampling_has_parameters():
  shapes = {
    learned: abstract(FCN(5, learned=learned), (1, 9, 9, 3))[0]['params']
    for learned in ('none', 'intermediate', 'all')
  }
  kernels = {
    learned: {k: v['kernel'].shape for k, v in tree.items() if k.startswith('upscore')}
    for learned, tree in shapes.items()
  }
  between = {'upscore2': (4, 4, 5, 5), 'upscore_pool4': (4, 4, 5, 5)}
  assert kernels == {
    'none': {},
    'intermediate': between,
    'all': between | {'upscore8': (16, 16, 5, 5)},
  }
  assert all('bias' not in shapes['all'][k] for k in kernels['all'])


def test_learned_upsampling_starts_as_the_fixed_one():
  fixed, learned = (tiny(channels=4, classes=2, learned=kind) for kind in ('none', 'all'))
  scores = {'score_fr': [0.7, -0.3], 'score_pool4': [0.2, 0.1], 'score_pool3': [-0.5, 0.4]}
  params = random_variables(fixed, **scores)['params']
  expected = apply(fixed, {'params': params}, IMAGE)
  assert np.ptp(expected) > 0.1
  initial = random_variables(learned, **scores)['params']
  key = jax.random.key(0)
  for name in ('upscore2', 'upscore_pool4', 'upscore8'):
    layer = Upsample(initial[name]['kernel'].shape[0] // 2, learned=True)
    initial[name] = layer.init(key, np.zeros((1, 1, 1, 2), 'f4'))['params']
  actual = apply(learned, {'params': initial}, IMAGE)
  np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.slow
def test_scores_start_at_zero_and_get_a_gradient():
  model = tiny(channels=4)
  variables = jit(model.init, once=True)(jax.random.key(0), IMAGE)
  assert not apply(model, variables, IMAGE).any()
  of_all = jax.grad(lambda v: model.apply(v, IMAGE).sum())
  gradient = jit(of_all, once=True)(variables)['params']
  for name in ('score_fr', 'score_pool4', 'score_pool3'):
    assert gradient[name]['kernel'].any()


def test_at_once_scales_the_features_before_their_scores():
  plain, scaled = (tiny(v, channels=4) for v in ('8s', '8s-at-once'))
  apply_plain, apply_scaled = (jit(m.apply, once=True) for m in (plain, scaled))
  for score, factor in (('score_fr', 1), ('score_pool4', 0.01), ('score_pool3', 0.0001)):
    variables = random_variables(plain, **{score: 1})
    full = apply_plain(variables, IMAGE)
    assert full.any()
    actual = apply_scaled(variables, IMAGE)
    np.testing.assert_allclose(actual, factor * full, rtol=1e-4, atol=1e-9)


def test_32s_fixed_moves_nothing_but_its_scores():
  model = tiny('32s')
  variables, _ = abstract(model, (1, 9, 9, 3))
  params = jax.tree.map(lambda x: np.ones(x.shape, 'f4'), variables['params'])
  config = optim.OptimConfig(weight_decay=0.5, multipliers=ONLY_SCORE)
  optimizer = optim.make_optimizer(config, 1, params)
  update = jit(lambda p: optimizer.update(p, optimizer.init(p), p), once=True)
  updates, _ = update(params)
  moved = {name for name, layer in updates.items() if any(v.any() for v in layer.values())}
  assert moved == {'score_fr'}


def test_dropout_acts_in_training_only():
  model = tiny('32s', channels=16)
  variables = random_variables(model, score_fr=1)
  run = lambda key: model.apply(variables, IMAGE, train=True, rngs={'dropout': key})
  run = jit(run, once=True)
  train = [np.asarray(run(jax.random.key(i))) for i in (0, 1)]
  assert not np.allclose(train[0], train[1])
  exact = tiny('32s', channels=16, dropout=0.0)
  np.testing.assert_allclose(
    apply(model, variables, IMAGE),
    apply(exact, variables, IMAGE, train=True),
    rtol=1e-6,
  )


def test_bfloat16_computes_in_bfloat16_with_float32_parameters():
  exact, coarse = (tiny('32s', channels=4, dtype=d) for d in ('float32', 'bfloat16'))
  abstract_variables, _ = abstract(coarse, IMAGE.shape)
  assert {x.dtype for x in jax.tree.leaves(abstract_variables)} == {jnp.dtype('float32')}
  variables = random_variables(exact, score_fr=1)
  a, b = (np.asarray(apply(m, variables, IMAGE)) for m in (exact, coarse))
  assert b.dtype == jnp.float32
  np.testing.assert_allclose(a, b, atol=0.05 * np.abs(a).max())
  assert not np.array_equal(a, b)


# --- helpers -------------------------------------------------------------------------------------


@pytest.mark.parametrize(('stride', 'kernel_size'), [(2, 4), (8, 16), (4, 7)])
def test_bilinear_upsample_is_the_transposed_convolution(stride, kernel_size):
  """Also with an odd kernel."""
  x = np.random.default_rng(0).normal(size=(2, 3, 1, 4)).astype('f4')

  @functools.partial(jit, once=True)
  def run(x):
    kernel = bilinear_kernel(kernel_size, 4)
    return bilinear_upsample(x, stride, kernel_size), conv_transpose(x, kernel, stride)

  np.testing.assert_allclose(*run(x), atol=1e-6)
