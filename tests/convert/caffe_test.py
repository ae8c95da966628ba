"""Caffe's tables: complete on both sides, and outputs equal to Caffe's layers written in NumPy."""

import dataclasses
import pickle
import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from caffe_encoder import net

from segjax import main as program
from segjax.convert import caffe
from segjax.convert.load import SOURCES, flat_paths, load_into, read_pretrained
from segjax.convert.table import convert, matches
from segjax.convert.weights import read_metadata, read_weights
from segjax.models.fcn import FCN, FCNAlexNet
from segjax.models.segnet import SegNet, SegNetBasic
from segjax.nn.vgg import VGG16, conv_layers
from segjax.ops.upsample import bilinear_kernel
from segjax.types import SegjaxError

CLASSES, FC = 4, 7
# Of VGG's stages, with few channels, all different, so that no transposition goes unnoticed.
STAGES = tuple((c, n) for c, (_, n) in zip((2, 3, 4, 5, 6), VGG16, strict=True))
ALEXNET_WIDTH, ALEXNET_CHANNELS = 0.02, (2, 6, 8, 8, 6)
# The mean that FCN's files subtract from blue, green and red.
MEAN_BGR = np.array([104.00699, 116.66877, 122.67892])


def published(source, learned='none'):
  """Our network for a source, of the published size."""
  name = source.removeprefix('caffe/')
  if name.startswith('segnet_basic'):
    return SegNetBasic(11, input_norm='local_response')
  if name == 'segnet':
    return SegNet(11)
  if name.endswith('alexnet'):
    return FCNAlexNet(21)
  variant = '32s' if name == 'vgg16' else name.removeprefix('fcn').replace('_', '-')
  return FCN(21, variant, learned)


def small(source, learned='none'):
  """The same with few channels."""
  sizes = {'classes': CLASSES, 'stages': STAGES, 'fc_features': FC, 'width': 3}
  model = published(source, learned)
  if isinstance(model, FCNAlexNet):
    sizes['width'] = ALEXNET_WIDTH
  return model.clone(**{key: size for key, size in sizes.items() if hasattr(model, key)})


def shapes(model):
  """The shapes of a network's variables, without a computation."""
  image = jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.float32)
  return dict(jax.eval_shape(model.init, jax.random.key(0), image))


def loaded(model, pretrained):
  """Variables with the pretrained arrays, and sevens for missing ones."""
  variables = jax.tree.map(lambda x: np.full(x.shape, 7, x.dtype), shapes(model))
  params, model_state, report = load_into(variables.pop('params'), variables, pretrained)
  return {'params': params, **model_state}, report


# --- files as Caffe would have saved them --------------------------------------------------------


def conv_blobs(rng, cin, cout, size):
  """Kernel [out, in, size, size] and bias of a convolution, such that signals keep their size."""
  kernel = rng.normal(scale=np.sqrt(2 / (cin * size * size)), size=(cout, cin, size, size))
  return [kernel.astype('f4'), rng.uniform(-0.1, 0.5, cout).astype('f4')]


def norm_blobs(rng, channels):
  """Scale and shift, of shape [1, C, 1, 1] as in caffe-segnet."""
  shift = rng.uniform(-0.2, 0.5, (1, channels, 1, 1)).astype('f4')
  return [rng.uniform(0.5, 1.5, (1, channels, 1, 1)).astype('f4'), shift]


def vgg_layers(rng, *, norm=False):
  layers, cin = {}, 3
  for stage in conv_layers(STAGES):
    for name, cout in stage:
      layers[name] = conv_blobs(rng, cin, cout, 3)
      if norm:
        layers[f'{name}_bn'] = norm_blobs(rng, cout)
      cin = cout
  return layers


def bilinear_blob(size):
  """FCN's filler: the same triangle from each channel to itself."""
  ramp = 1 - np.abs(np.arange(size) - (size - 1) / 2) / ((size + 1) // 2)
  return np.multiply.outer(np.eye(CLASSES), np.outer(ramp, ramp)).astype('f4')


def alexnet_layers(rng):
  layers, cin = {}, 3
  for cout, name, size, groups in zip(ALEXNET_CHANNELS, *ALEXNET, strict=True):
    layers[name] = conv_blobs(rng, cin // groups, cout, size)
    cin = cout
  return layers


def fcn_layers(rng, source, deconvolution):
  layers = alexnet_layers(rng) if source == 'caffe/fcn_alexnet' else vgg_layers(rng)
  top = len(layers[list(layers)[-1]][1])
  layers['fc6'] = conv_blobs(rng, top, FC, 6 if source == 'caffe/fcn_alexnet' else 7)
  layers['fc7'] = conv_blobs(rng, FC, FC, 1)
  variant = source.removeprefix('caffe/fcn')
  pools = {'16s': (4,), '8s': (4, 3), '8s_at_once': (4, 3)}.get(variant, ())
  layers['score_fr'] = conv_blobs(rng, FC, CLASSES, 1)
  for pool in pools:
    channels = STAGES[pool - 1][0]
    kernel, bias = conv_blobs(rng, channels, CLASSES, 1)
    if variant == '8s_at_once':
      scale = {4: 0.01, 3: 0.0001}[pool]
      layers[f'scale_pool{pool}'] = [np.full(channels, scale, 'f4')]
      kernel = kernel / scale  # as much in the sum as the others
    layers[f'score_pool{pool}'] = [kernel, bias]
  for name, size in UPSCORES[source]:
    layers[name] = [deconvolution(size)]
  return layers


def classifier_layers(rng, layers, size):
  """With fully-connected layers, of which fc8 is ImageNet's."""
  top = len(layers[list(layers)[-1]][1])
  for name, cin, cout in (('fc6', top * size * size, FC), ('fc7', FC, FC), ('fc8', FC, 9)):
    kernel, bias = conv_blobs(rng, cin, cout, 1)
    layers[name] = [kernel.reshape(cout, cin), bias]
  return layers


def segnet_layers(rng):
  layers = vgg_layers(rng, norm=True)
  convolutions = [name for name in layers if not name.endswith('_bn')]
  for name in reversed(convolutions):
    cout, cin = layers[name][0].shape[:2]
    cout, cin = (CLASSES if name == 'conv1_1' else cin), cout
    layers[f'{name}_D'] = conv_blobs(rng, cin, cout, 3)
    if name != 'conv1_1':
      layers[f'{name}_D_bn'] = norm_blobs(rng, cout)
  return layers


def segnet_basic_layers(rng, classifier):
  layers = {}
  for name in BASIC_ENCODER + BASIC_DECODER:
    layers[name] = conv_blobs(rng, 3, 3, 7)
    layers[f'{name}_bn'] = norm_blobs(rng, 3)
  return layers | {classifier: conv_blobs(rng, 3, CLASSES, 1)}


# From the authors' prototxt files.
ALEXNET = (
  ('conv1', 'conv2', 'conv3', 'conv4', 'conv5'),
  (11, 5, 3, 3, 3),  # kernels
  (1, 2, 1, 2, 2),  # groups
)
UPSCORES = {
  'caffe/fcn_alexnet': (('upscore', 63),),
  'caffe/fcn32s': (('upscore', 64),),
  'caffe/fcn16s': (('upscore2', 4), ('upscore16', 32)),
  'caffe/fcn8s': (('upscore2', 4), ('upscore_pool4', 4), ('upscore8', 16)),
  'caffe/fcn8s_at_once': (('upscore2', 4), ('upscore_pool4', 4), ('upscore8', 16)),
}
ENCODERS = ('caffe/vgg16', 'caffe/alexnet')
BASIC_ENCODER = ['conv1', 'conv2', 'conv3', 'conv4']
BASIC_DECODER = ['conv_decode4', 'conv_decode3', 'conv_decode2', 'conv_decode1']


def layers_of(source, seed=0, deconvolution=bilinear_blob):
  rng = np.random.default_rng(seed)
  if source in UPSCORES:
    return fcn_layers(rng, source, deconvolution)
  return {
    'caffe/vgg16': lambda r: classifier_layers(r, vgg_layers(r), 7),
    'caffe/alexnet': lambda r: classifier_layers(r, alexnet_layers(r), 6),
    'caffe/segnet': segnet_layers,
    'caffe/segnet_basic': lambda r: segnet_basic_layers(r, 'conv_classifier'),
    'caffe/segnet_basic_zoo': lambda r: segnet_basic_layers(r, 'dense_softmax_inner_prod'),
  }[source](rng)


def old(source):
  """Whether the released file is of the old generation."""
  return source in ENCODERS


def write(path, source, layers=None):
  layers = layers_of(source) if layers is None else layers
  path.write_bytes(net(layers, v1=old(source), legacy=old(source)))
  return path


@pytest.fixture(scope='module')
def files(tmp_path_factory):
  directory = tmp_path_factory.mktemp('caffe')
  return {s: write(directory / f'{s[6:]}.caffemodel', s) for s in caffe.SOURCES}


def random_deconvolution(size):
  shape = (CLASSES, CLASSES, size, size)
  return np.random.default_rng(size).normal(scale=0.3, size=shape).astype('f4')


# --- the tables ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
  ('source', 'learned', 'count'),
  [
    ('caffe/fcn32s', 'all', 33),
    ('caffe/fcn16s', 'all', 36),
    ('caffe/fcn8s', 'all', 39),
    ('caffe/fcn8s_at_once', 'all', 39),
    ('caffe/fcn32s', 'none', 32),
    ('caffe/fcn16s', 'intermediate', 35),
    ('caffe/fcn8s', 'none', 36),
    ('caffe/fcn_alexnet', '', 16),
    ('caffe/segnet', '', 52 + 4 * 25),
    ('caffe/segnet_basic', '', 18 + 4 * 8),
    ('caffe/segnet_basic_zoo', '', 18 + 4 * 8),
  ],
)
def test_the_real_networks_are_filled_by_one_row_each(source, learned, count):
  """Of the published sizes; what is beyond them is built in."""
  paths = [row.path for row in SOURCES[source].rows]
  ours = flat_paths(shapes(published(source, learned))).keys()
  built_in = {path for path, _ in SOURCES[source].constants}
  assert len(set(paths)) == len(paths)
  assert len(ours) == count
  assert ours - set(paths) == set()
  assert set(paths) - ours <= built_in


def test_vgg16_fills_what_fcn_and_segnet_have_of_it():
  paths = {row.path for row in SOURCES['caffe/vgg16'].rows}
  fcn_paths = flat_paths(shapes(FCN(21, '8s', learned='all'))).keys()
  assert paths < fcn_paths
  assert {p.split('/')[1] for p in fcn_paths - paths} == {
    *('score_fr', 'score_pool4', 'score_pool3'),
    *('upscore2', 'upscore_pool4', 'upscore8'),
  }
  assert paths - flat_paths(shapes(SegNet(11))).keys() == {p for p in paths if '/fc' in p}


@pytest.mark.parametrize('source', caffe.SOURCES)
@pytest.mark.parametrize('learned', ['none', 'all'])
def test_every_array_of_either_side_is_accounted_for(files, source, learned):
  table = SOURCES[source]
  variables, report = loaded(small(source, learned), read_pretrained(files[source], source))
  flat = flat_paths(variables)
  assert set(report.loaded) | set(report.new) == flat.keys()
  assert set(report.loaded) | set(report.unused) == {row.path for row in table.rows}
  assert not any((flat[path] == 7).all() for path in report.loaded)
  assert all((flat[path] == 7).all() for path in report.new)
  names = read_weights(files[source])
  assert {r.key for r in table.rows} == {n for n in names if not matches(n, table.left_out)}
  assert all(any(matches(name, [p]) for name in names) for p in table.left_out)
  if source not in ENCODERS:
    assert report.new == ()


def test_old_and_new_generation_hold_the_same(tmp_path):
  source, layers = 'caffe/segnet', layers_of('caffe/segnet')
  (tmp_path / 'new.caffemodel').write_bytes(net(layers))
  (tmp_path / 'old.caffemodel').write_bytes(net(layers, v1=True, legacy=True))
  new, old = (read_pretrained(tmp_path / f'{n}.caffemodel', source).arrays for n in ('new', 'old'))
  assert new.keys() == old.keys()
  for path, array in new.items():
    np.testing.assert_array_equal(array, old[path])


def test_a_finer_fcn_and_segnet_start_from_coarser_files(files):
  pretrained = read_pretrained(files['caffe/fcn32s'], 'caffe/fcn32s')
  _, report = loaded(small('caffe/fcn16s', 'intermediate'), pretrained)
  assert report.new == (
    'params/score_pool4/bias',
    'params/score_pool4/kernel',
    'params/upscore2/kernel',
  )
  assert report.unused == ('params/upscore32/kernel',)
  _, report = loaded(small('caffe/segnet'), read_pretrained(files['caffe/vgg16'], 'caffe/vgg16'))
  assert len(report.loaded) == 26
  assert [p.split('/')[1] for p in report.unused] == ['fc6', 'fc6', 'fc7', 'fc7']
  with pytest.raises(SegjaxError, match='has params/score_pool3/bias and 3 more, which this'):
    loaded(small('caffe/fcn32s'), read_pretrained(files['caffe/fcn8s'], 'caffe/fcn8s'))
  with pytest.raises(SegjaxError, match='does not have params/score_fr/bias'):
    pretrained = read_pretrained(files['caffe/vgg16'], 'caffe/vgg16')
    loaded(small('caffe/fcn32s'), dataclasses.replace(pretrained, new=()))


def test_deconvolutions_that_are_not_bilinear_need_a_network_that_has_them(tmp_path):
  source = 'caffe/fcn8s'
  path = write(tmp_path / 'x.caffemodel', source, layers_of(source, 0, random_deconvolution))
  pretrained = read_pretrained(path, source)
  for learned, count in (('none', 'upscore2/kernel and 2 more'), ('intermediate', 'upscore8')):
    with pytest.raises(SegjaxError, match=f'x.caffemodel has params/{count}.*config.model'):
      loaded(small(source, learned), pretrained)
  variables, _ = loaded(small(source, 'all'), pretrained)
  kernel = variables['params']['upscore8']['kernel']
  assert kernel[3, 5, 1, 2] == random_deconvolution(16)[1, 2, 3, 5]


def test_a_bilinear_kernel_of_another_size_is_not_the_built_in_one():
  for path, test in SOURCES['caffe/fcn8s'].constants:
    size = {'params/upscore8/kernel': 16}.get(path, 4)
    kernel = np.asarray(bilinear_kernel(size, CLASSES))
    assert test(kernel)
    assert not test(np.asarray(bilinear_kernel(size + 2, CLASSES)))
    assert not test(kernel * 1.001)
    assert not test(kernel + 1e-4)


def test_other_scales_of_the_at_once_network_are_refused(tmp_path):
  source = 'caffe/fcn8s_at_once'
  layers = layers_of(source)
  layers['scale_pool3'][0][1] = 0.01
  pretrained = read_pretrained(write(tmp_path / 'x.caffemodel', source, layers), source)
  with pytest.raises(
    SegjaxError, match='has params/scale_pool3/scale, which this network does not'
  ):
    loaded(small(source), pretrained)


# --- Caffe's layers by their definitions, f8[C, H, W] --------------------------------------------


def caffe_conv(x, blobs, pad=0, stride=1, groups=1):
  kernel, bias = blobs
  x = np.pad(x, [(0, 0), (pad, pad), (pad, pad)])
  windows = np.lib.stride_tricks.sliding_window_view(x, kernel.shape[2:], (1, 2))
  windows = windows[:, ::stride, ::stride]
  parts = [
    np.einsum('cijuv,ocuv->oij', w, k)
    for w, k in zip(np.split(windows, groups), np.split(kernel, groups), strict=True)
  ]
  return np.concatenate(parts) + bias[:, None, None]


def caffe_deconv(x, blobs, stride):
  [kernel] = blobs
  k, (_, h, w) = kernel.shape[-1], x.shape
  y = np.zeros((kernel.shape[1], stride * (h - 1) + k, stride * (w - 1) + k))
  for i in range(h):
    for j in range(w):
      rows, columns = slice(stride * i, stride * i + k), slice(stride * j, stride * j + k)
      y[:, rows, columns] += np.einsum('c,cokl->okl', x[:, i, j], kernel)
  return y


def caffe_bn(x, blobs):
  """`bn_mode: INFERENCE` of caffe-segnet."""
  scale, shift = (b.reshape(-1, 1, 1) for b in blobs)
  return x * scale + shift


def caffe_pool(x):
  """2x2 of stride 2, sizes rounded up: the maxima, and where they are in the map [C, H, W]."""
  c, h, w = x.shape
  padded = np.full((c, h + h % 2, w + w % 2), -np.inf)
  padded[:, :h, :w] = x
  windows = padded.reshape(c, padded.shape[1] // 2, 2, -1, 2).transpose(0, 1, 3, 2, 4)
  windows = windows.reshape(*windows.shape[:3], 4)
  rows, columns = np.ogrid[: windows.shape[1], : windows.shape[2]]
  row, column = np.divmod(windows.argmax(-1), 2)
  return windows.max(-1), (2 * rows + row, 2 * columns + column)


def caffe_upsample(x, mask, size):
  y = np.zeros((len(x), *size))
  channels = np.arange(len(x))[:, None, None]
  y[channels, *mask] = x
  return y


def caffe_lrn(x, size=5, alpha=1e-4, beta=0.75):
  """Across channels."""
  sums = [(x[max(0, c - size // 2) : c + size // 2 + 1] ** 2).sum(0) for c in range(len(x))]
  return x * (1 + alpha / size * np.stack(sums)) ** -beta


def caffe_pool_3x3(x):
  """3x3 of stride 2, the last windows cut off where the map ends."""
  rows, columns = (range(0, 2 * -(-(n - 3) // 2) + 1, 2) for n in x.shape[1:])
  return np.stack(
    [[x[:, i : i + 3, j : j + 3].max((1, 2)) for j in columns] for i in rows]
  ).transpose(2, 0, 1)


def relu(x):
  return np.maximum(x, 0)


def caffe_crop(x, offset, like):
  return x[:, offset : offset + like.shape[1], offset : offset + like.shape[2]]


def caffe_fcn(source, layers, bgr):
  """The net.py of the source on an image f8[3, H, W] of blue, green and red."""
  x = data = bgr - MEAN_BGR[:, None, None]
  pools = {}
  for stage, names in enumerate(conv_layers(STAGES), 1):
    for name, _ in names:
      x = relu(caffe_conv(x, layers[name], 100 if name == 'conv1_1' else 1))
    x, _ = caffe_pool(x)
    pools[stage] = x
  x = relu(caffe_conv(relu(caffe_conv(x, layers['fc6'])), layers['fc7']))
  x = caffe_conv(x, layers['score_fr'])
  if source == 'caffe/fcn32s':
    return caffe_crop(caffe_deconv(x, layers['upscore'], 32), 19, data)
  x = caffe_deconv(x, layers['upscore2'], 2)

  def score(pool):
    scaled = pools[pool]
    if f'scale_pool{pool}' in layers:
      scaled = scaled * layers[f'scale_pool{pool}'][0][:, None, None]
    return caffe_conv(scaled, layers[f'score_pool{pool}'])

  x = x + caffe_crop(score(4), 5, x)
  if source == 'caffe/fcn16s':
    return caffe_crop(caffe_deconv(x, layers['upscore16'], 16), 27, data)
  x = caffe_deconv(x, layers['upscore_pool4'], 2)
  x = x + caffe_crop(score(3), 9, x)
  return caffe_crop(caffe_deconv(x, layers['upscore8'], 8), 31, data)


def caffe_fcn_alexnet(layers, bgr):
  """voc-fcn-alexnet's net.py."""
  x = data = bgr - MEAN_BGR[:, None, None]
  for name, _, groups in zip(*ALEXNET, strict=True):
    pad, stride = {'conv1': (100, 4), 'conv2': (2, 1)}.get(name, (1, 1))
    x = relu(caffe_conv(x, layers[name], pad, stride, groups))
    if name in ('conv1', 'conv2', 'conv5'):
      x = caffe_pool_3x3(x)
    if name in ('conv1', 'conv2'):
      x = caffe_lrn(x)
  x = relu(caffe_conv(relu(caffe_conv(x, layers['fc6'])), layers['fc7']))
  x = caffe_deconv(caffe_conv(x, layers['score_fr']), layers['upscore'], 32)
  return caffe_crop(x, 18, data)


def caffe_segnet(layers, bgr):
  """segnet_inference.prototxt up to the classifier."""
  x, pools = bgr, []

  def unit(x, name):
    return relu(caffe_bn(caffe_conv(x, layers[name], 1), layers[f'{name}_bn']))

  stages = [[name for name, _ in names] for names in conv_layers(STAGES)]
  for names in stages:
    for name in names:
      x = unit(x, name)
    size = x.shape[1:]
    x, mask = caffe_pool(x)
    pools.append((mask, size))
  for names in reversed(stages):
    x = caffe_upsample(x, *pools.pop())
    for name in reversed(names):
      if name == 'conv1_1':
        return caffe_conv(x, layers['conv1_1_D'], 1)
      x = unit(x, f'{name}_D')
  raise AssertionError


def caffe_segnet_basic(layers, bgr):
  """segnet_basic_inference.prototxt up to the classifier."""
  x, pools = caffe_lrn(bgr), []
  for name in BASIC_ENCODER:
    x = relu(caffe_bn(caffe_conv(x, layers[name], 3), layers[f'{name}_bn']))
    size = x.shape[1:]
    x, mask = caffe_pool(x)
    pools.append((mask, size))
  for name in BASIC_DECODER:
    x = caffe_upsample(x, *pools.pop())
    x = caffe_bn(caffe_conv(x, layers[name], 3), layers[f'{name}_bn'])
  [classifier] = [
    name for name in layers if name in ('conv_classifier', 'dense_softmax_inner_prod')
  ]
  return caffe_conv(x, layers[classifier])


# --- equal outputs -------------------------------------------------------------------------------


def normalized(rgb, source):
  """As in the data pipeline, with the mean and std documented in `input`."""
  message = SOURCES[source].input
  mean, std = (re.search(rf'config\.data\.{k}=\(([^)]*)\)', message)[1] for k in ('mean', 'std'))
  mean, std = (np.array([float(x) for x in t.split(',') if x]) for t in (mean, std))
  return ((rgb - mean) / std).astype('f4')


def our_output(model, source, path, rgb):
  """Logits [C, H, W] of our network on an image u8[H, W, 3] of red, green and blue."""
  variables, _ = loaded(model, read_pretrained(path, source))
  logits = jax.jit(model.apply)(variables, normalized(rgb, source)[None])
  return np.asarray(logits)[0].transpose(2, 0, 1)


def image(height, width):
  """RGB, with channels that are much different."""
  rng = np.random.default_rng(1)
  return (rng.integers(0, 120, (height, width, 3)) + [0, 50, 130]).astype('u1')


def as_caffe(rgb):
  """f8[3, H, W], blue, green, red."""
  return rgb[..., ::-1].transpose(2, 0, 1).astype('f8')


def check_close(ours, caffes):
  spread = np.std(caffes)
  assert spread > 1e-3 * np.abs(caffes).max() > 0
  np.testing.assert_allclose(ours, caffes, rtol=1e-4, atol=1e-4 * spread)


@pytest.mark.parametrize(
  ('source', 'learned', 'deconvolution'),
  [
    ('caffe/fcn32s', 'none', bilinear_blob),
    ('caffe/fcn16s', 'all', random_deconvolution),
    ('caffe/fcn8s_at_once', 'all', random_deconvolution),
  ],
)
def test_fcn_gives_what_caffe_gives(tmp_path, source, learned, deconvolution):
  layers = layers_of(source, 3, deconvolution)
  path = write(tmp_path / 'x.caffemodel', source, layers)
  rgb = image(13, 22)
  check_close(
    our_output(small(source, learned), source, path, rgb), caffe_fcn(source, layers, as_caffe(rgb))
  )


@pytest.mark.parametrize(
  ('source', 'reference'),
  [
    ('caffe/fcn_alexnet', caffe_fcn_alexnet),
    ('caffe/segnet', caffe_segnet),
    ('caffe/segnet_basic_zoo', caffe_segnet_basic),
  ],
)
def test_other_networks_give_what_caffe_gives(tmp_path, source, reference):
  layers = layers_of(source, 4)
  path = write(tmp_path / 'x.caffemodel', source, layers)
  rgb = image(27, 34)
  check_close(our_output(small(source), source, path, rgb), reference(layers, as_caffe(rgb)))


def test_a_reversed_kernel_on_rgb_is_the_kernel_on_bgr():
  rng = np.random.default_rng(0)
  kernel, bias = conv_blobs(rng, 3, 5, 3)
  rgb = rng.uniform(size=(1, 6, 7, 3)).astype('f4')
  layer = nn.Conv(5, (3, 3), padding=1)

  def apply(kernel, image):
    return layer.apply({'params': {'kernel': kernel, 'bias': bias}}, image)

  ours = apply(caffe.bgr_oihw_to_rgb_hwio(kernel), rgb)
  np.testing.assert_allclose(
    ours, apply(kernel.transpose(2, 3, 1, 0), rgb[..., ::-1]), rtol=1e-5, atol=1e-6
  )
  assert not np.allclose(ours, apply(kernel.transpose(2, 3, 1, 0), rgb), atol=0.1)
  np.testing.assert_allclose(
    ours[0].transpose(2, 0, 1),
    caffe_conv(as_caffe(rgb[0]), [kernel, bias], 1),
    rtol=1e-4,
    atol=1e-5,
  )
  # Of what is subtracted, too.
  np.testing.assert_array_equal(MEAN_BGR[::-1], caffe.MEAN)


@pytest.mark.parametrize('legacy', [False, True])
def test_inner_products_are_convolutions(legacy):
  """On the map that Caffe flattens as C, H, W; as matrices or as FCN's convolutions."""
  rng = np.random.default_rng(0)
  chw = rng.normal(size=(3, 7, 7))
  weight = rng.normal(size=(5, chw.size))
  blob = weight[None, None] if legacy else weight
  for form in (blob, weight.reshape(5, 3, 7, 7)):
    hwio = caffe.fully_connected(7)(form)
    assert hwio.shape == (7, 7, 3, 5)
    actual = np.einsum('hwi,hwio->o', chw.transpose(1, 2, 0), hwio)
    np.testing.assert_allclose(actual, weight @ chw.ravel())
  for form in (blob, weight.reshape(5, -1, 1, 1)):
    np.testing.assert_allclose(
      chw.ravel() @ caffe.fully_connected(1)(form)[0, 0], weight @ chw.ravel()
    )


def test_vgg16_s_layers_go_into_fcn(files):
  arrays = read_pretrained(files['caffe/vgg16'], 'caffe/vgg16').arrays
  layers = layers_of('caffe/vgg16')
  weight, bias = layers['fc6']
  assert read_weights(files['caffe/vgg16'])['fc6/0'].shape == (1, 1, *weight.shape)
  x = np.random.default_rng(2).normal(size=(STAGES[-1][0], 7, 7)).astype('f4')
  fc6 = {k: arrays[f'params/fc6/{k}'] for k in ('kernel', 'bias')}
  ours = nn.Conv(FC, (7, 7), padding=0).apply({'params': fc6}, x.transpose(1, 2, 0)[None])
  np.testing.assert_allclose(ours.ravel(), weight @ x.ravel() + bias, rtol=1e-4, atol=1e-5)


def test_batch_norm_is_one_multiplication_and_one_addition():
  """With our epsilon; with the authors' the multiplication is 5e-6 too strong."""
  rng = np.random.default_rng(0)
  blobs = scale, shift = norm_blobs(rng, 6)
  x = rng.uniform(1, 2, size=(4, 5, 6)).astype('f4')
  variables = {
    'params': {'scale': caffe.vector(scale), 'bias': caffe.vector(0 * shift)},
    'batch_stats': {'mean': caffe.no_mean(shift), 'var': caffe.unit_variance(scale)},
  }
  variables = jax.tree.map(lambda a: np.asarray(a, 'f4'), variables)
  for epsilon, factor in ((SegNet.bn_epsilon, 1), (SegNetBasic.bn_epsilon, 1), (1e-9, 1 + 5e-6)):
    ours = nn.BatchNorm(use_running_average=True, epsilon=epsilon).apply(variables, x)
    caffes = caffe_bn(x.transpose(2, 0, 1), [blobs[0] * factor, 0 * shift])
    np.testing.assert_allclose(ours.transpose(2, 0, 1), caffes, rtol=3e-7)


def test_vectors_of_old_files_have_four_axes():
  for shape in ((5,), (1, 1, 1, 5), (1, 5, 1, 1)):
    np.testing.assert_array_equal(caffe.vector(np.arange(5.0).reshape(shape)), np.arange(5))
  for shape in ((), (1, 1, 2, 5)):
    with pytest.raises(ValueError, match='more than one axis'):
      caffe.vector(np.zeros(shape))


# --- the command ---------------------------------------------------------------------------------


def run(*args):
  return program.main([str(a) for a in args])


@pytest.mark.parametrize('source', caffe.SOURCES)
def test_convert_writes_a_file_to_start_from(files, tmp_path, source, capsys):
  output = tmp_path / 'out.safetensors'
  assert (
    run('convert', f'--source={source}', f'--weights={files[source]}', f'--output={output}') == 0
  )
  assert f'{len(SOURCES[source].rows)} arrays' in capsys.readouterr().out
  assert read_metadata(output)['input'] == SOURCES[source].input
  direct, again = read_pretrained(files[source], source), read_pretrained(output)
  assert (again.new, again.spare) == (direct.new, direct.spare)
  ours, report = loaded(small(source), again)
  expected, _ = loaded(small(source), direct)
  assert report.loaded
  jax.tree.map(np.testing.assert_array_equal, ours, expected)


def fails(capsys, source, path, output):
  """The sentence that `segjax convert` fails with, having written nothing."""
  before = sorted(output.parent.iterdir())
  args = (f'--source={source}', f'--weights={path}', f'--output={output}')
  assert run('convert', *args) == 2
  message = capsys.readouterr().err
  assert message.startswith('segjax: ')
  assert message.count('\n') == 1
  assert sorted(output.parent.iterdir()) == before
  return message


def test_wrong_files_are_reported_in_a_sentence_and_nothing_is_written(files, tmp_path, capsys):
  path, output = tmp_path / 'x.caffemodel', tmp_path / 'out.safetensors'
  whole = files['caffe/fcn8s'].read_bytes()
  for content in (
    whole[:-10],
    np.random.default_rng(0).bytes(1000),
    pickle.dumps({'conv1_1': np.zeros(3)}),
    b'<html>not found</html>',
  ):
    path.write_bytes(content)
    message = fails(capsys, 'caffe/fcn8s', path, output)
    assert f'{path} is truncated or corrupt' in message
    assert 'download the file again' in message
  path.write_bytes(net({}))
  assert f'{path} contains no weights: use a .caffemodel' in fails(
    capsys, 'caffe/fcn8s', path, output
  )
  message = fails(capsys, 'caffe/fcn32', files['caffe/fcn32s'], output)
  assert 'unknown source caffe/fcn32: did you mean caffe/fcn32s?' in message


@pytest.mark.parametrize('source', caffe.SOURCES)
def test_another_network_of_ours_is_named(files, tmp_path, source, capsys):
  for other in caffe.SOURCES.keys() - {source}:
    message = fails(capsys, other, files[source], tmp_path / 'out.safetensors')
    assert f'{files[source]} is not {other}, it has ' in message
    assert message.endswith(f': use the source {source}\n')


@pytest.mark.parametrize('source', caffe.SOURCES)
def test_a_missing_and_an_extra_layer_are_named(source):
  arrays = {f'{k}/{i}': a for k, blobs in layers_of(source).items() for i, a in enumerate(blobs)}
  key = SOURCES[source].rows[-1].key
  arrays[f'other{key}'] = arrays.pop(key)
  message = f'x.caffemodel is not {source}, it has no {key} and has other{key}: use the file of'
  with pytest.raises(SegjaxError, match=message):
    convert(arrays, SOURCES, source, 'x.caffemodel')


@pytest.mark.parametrize(
  ('source', 'key', 'shape'),
  [
    ('caffe/vgg16', 'conv1_1/0', (2, 4, 3, 3)),
    ('caffe/vgg16', 'conv1_1/0', (2,)),
    ('caffe/vgg16', 'conv2_1/0', (3, 2, 9)),
    ('caffe/vgg16', 'conv1_1/1', (2, 2)),
    ('caffe/vgg16', 'fc6/0', (7, 50)),
    ('caffe/fcn8s', 'upscore8/0', (4, 1, 16, 16)),
    ('caffe/segnet', 'conv1_1_bn/0', (2, 3)),
    ('caffe/segnet_basic', 'conv1/0', (3, 1, 7, 7)),
  ],
)
def test_a_wrong_shape_is_named(source, key, shape):
  arrays = {f'{k}/{i}': a for k, blobs in layers_of(source).items() for i, a in enumerate(blobs)}
  message = f'its {key} is {"x".join(map(str, shape))}: use the file of that network'
  with pytest.raises(SegjaxError, match=message):
    convert(arrays | {key: np.zeros(shape)}, SOURCES, source, 'x.caffemodel')


CONFIG = """
import ml_collections

def get_config():
  return ml_collections.ConfigDict({
    'task': 'semantic',
    'model': {'name': 'segnet.SegNetBasic', 'classes': 9, 'width': 3},
    'losses': {'softmax_cross_entropy': {}},
    'data': {
      'name': 'scenes/tiny', 'train_split': 'train', 'eval_split': 'val',
      'size': {'image_size': (32, 32)},
    },
    'batch': {'size': 4},
    'optim': {'name': 'sgd', 'learning_rate': 0.01},
    'train': {'steps': 1},
  })
"""


@pytest.mark.slow
def test_a_training_starts_from_a_caffe_file(tmp_path, monkeypatch, capsys):
  """With the keys documented in `input`."""
  monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'cache'))
  monkeypatch.delenv('SEGJAX_DATA_DIR', raising=False)
  source, output = 'caffe/segnet_basic', tmp_path / 'basic.safetensors'
  layers = layers_of(source)
  layers['conv_classifier'] = conv_blobs(np.random.default_rng(0), 3, 9, 1)
  weights = write(tmp_path / 'basic.caffemodel', source, layers)
  assert run('convert', f'--source={source}', f'--weights={weights}', f'--output={output}') == 0
  (tmp_path / 'config.py').write_text(CONFIG)
  keys = re.findall(r'config\.\w+\.\w+=(?:\([^)]*\)|\w+)', read_metadata(output)['input'])
  assert len(keys) == 3
  overrides = [f'--{key}' for key in keys]
  args = (f'--config={tmp_path / "config.py"}', f'--workdir={tmp_path / "run"}')
  assert run('train', *args, *overrides, f'--config.init_from.path={output}') == 0
  assert f'50 arrays from {output}\n' in capsys.readouterr().err
