"""ONNX models of JAX functions: each operation, and each network, against JAX."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from segjax.models import deeplab, fcn, segformer, segnet, unet
from segjax.ops.conv import conv as segjax_conv
from segjax.types import SegjaxError

pytest.importorskip('onnx', reason="ONNX is not installed: pip install 'segjax[export]'")
onnxruntime = pytest.importorskip('onnxruntime', reason='onnxruntime is not installed')

from segjax.export.onnx import model as onnx_model  # noqa: E402

X = np.random.default_rng(0).normal(size=(2, 6, 5, 3)).astype(np.float32)
INTEGERS = np.arange(2 * 6 * 5 * 3, dtype=np.int32).reshape(X.shape) % 7
KERNEL = np.random.default_rng(1).normal(size=(3, 3, 3, 4)).astype(np.float32)


def run(function, x, sizes=None):
  """What onnxruntime computes for a function, with sizes such as 'b, h, 5, 3'."""
  shape = jax.export.symbolic_shape(sizes or ', '.join(map(str, x.shape)))
  found = onnx_model.convert(function, jax.ShapeDtypeStruct(shape, x.dtype))
  session = onnxruntime.InferenceSession(found.SerializeToString())
  names = [output.name for output in session.get_outputs()]
  return dict(zip(names, session.run(names, {'image': x}), strict=True))


def check(function, x, sizes=None, **tolerances):
  expected = jax.jit(function)(x)
  found = run(function, x, sizes)
  assert found.keys() == expected.keys()
  for name, value in expected.items():
    assert found[name].dtype == value.dtype and found[name].shape == value.shape
    np.testing.assert_allclose(found[name], value, **({'rtol': 1e-5, 'atol': 1e-5} | tolerances))


def conv(x, kernel=KERNEL, **options):
  settings = {'window_strides': (1, 1), 'padding': 'SAME', **options}
  numbers = ('NHWC', 'HWIO', 'NHWC')
  return lax.conv_general_dilated(x, kernel, dimension_numbers=numbers, **settings)


def window(x, **options):
  return lax.reduce_window(x, -jnp.inf, lax.max, (1, 3, 2, 1), (1, 2, 1, 1), **options)


FLOATS = {
  'elements': lambda x: jnp.tanh(x) + jnp.exp(-jnp.abs(x)) * lax.rsqrt(1 + x**2) - x**3 / 2,
  'functions': lambda x: jax.nn.sigmoid(x) + jnp.log1p(x**2) + jnp.sign(x) * jnp.sqrt(jnp.abs(x)),
  'errors': lambda x: lax.erf(x) + 2 * lax.erfc(x) + jax.nn.gelu(x, approximate=False),
  'rounding': lambda x: jnp.round(x * 2) + jnp.floor(x) - jnp.ceil(3 * x),
  'halves': lambda x: jnp.round(jnp.floor(4 * x) / 2),
  'choices': lambda x: jnp.where(x > 0, x, jnp.clip(x, -0.5, 2.0)),
  'of three': lambda x: lax.select_n((x > 0).astype(jnp.int32) + (x > 1), x, 2 * x, 3 * x),
  'finite': lambda x: jnp.isfinite(1 / jnp.maximum(x, 0)) & ~(x > 1) | jnp.isnan(jnp.sqrt(x)),
  'shapes': lambda x: (
    jnp.concatenate([x[:, ::-1], x[:, 1:4:2]], 1).swapaxes(1, 3).reshape(2, 5, -1)
  ),
  'stacks': lambda x: (
    jnp.stack(jnp.unstack(x, axis=3), 1)
    + jnp.tile(x[:, :1, :5, :1].reshape(2, 1, 1, 5), (1, 3, 6, 1))
  ),
  'split': lambda x: sum(jnp.split(x, [2], axis=1)[1].sum(1) for _ in range(2)),
  'padding': lambda x: lax.pad(x, -1.0, ((0, 0, 0), (2, -1, 0), (-2, 3, 0), (0, 0, 0))),
  'mirrored': lambda x: jnp.pad(x, ((0, 0), (1, 2), (3, 0), (0, 0)), mode='reflect'),
  'reductions': lambda x: x.sum((1, 2)) + x.max(1).min(1) + x.mean() + jnp.prod(x, axis=(1, 2)),
  'all and any': lambda x: (x > 0).any(1) & (x < 2).all(1),
  'indices': lambda x: jnp.argmax(x, -1) + jnp.argmin(x, 2)[..., :1],
  'cumulative': lambda x: jnp.cumsum(x, 1) + lax.cumsum(x, 2, reverse=True),
  'sorted': lambda x: jnp.sort(x, 1) + jnp.argsort(jnp.round(x), 2, descending=True),
  'best': lambda x: functools.reduce(jnp.add, lax.top_k(jnp.abs(jnp.round(x)), 2)),
  'product': lambda x: jnp.einsum('bhwc,bhvc->bvhw', x, jnp.cos(x)) + (x[0, 0] @ x[1, 0].T).sum(),
  'convolution': conv,
  'depthwise': lambda x: segjax_conv(x, KERNEL[:, :, :1, :3], padding=((1, 1), (1, 1))),
  'computed again': jax.checkpoint(lambda x: jnp.sin(x) @ x[0, 0].T),
  'by platform': lambda x: lax.platform_dependent(x, tpu=lambda x: 2 * x, default=lambda x: 1 + x),
  'dilated': lambda x: conv(x, rhs_dilation=(2, 1), padding=((2, 1), (0, 3))),
  'strided': lambda x: conv(x, window_strides=(2, 2), padding='SAME'),
  'cut': lambda x: conv(x, padding=((-1, 2), (1, -1))),
  'grouped': lambda x: conv(x, KERNEL[:, :, :1, :3], feature_group_count=3),
  'transposed': lambda x: conv(x, lhs_dilation=(2, 3), padding=((2, 1), (0, 4))),
  'transposed groups': lambda x: conv(
    x, KERNEL[:, :, :1, :3], lhs_dilation=(2, 2), padding=((1, 2), (0, 1)), feature_group_count=3
  ),
  'pooling': lambda x: window(x, padding='VALID'),
  'pooling, padded': lambda x: window(x, padding=((0, 0), (1, 1), (0, 1), (0, 0))),
  'sums': lambda x: lax.reduce_window(x, 0.0, lax.add, (1, 1, 1, 3), (1, 1, 1, 1), 'SAME'),
  'taken': lambda x: jnp.take(x, jnp.array([[5, 0], [-1, 9]]), 1, mode='clip'),
  'filled': lambda x: jnp.take(x, jnp.array([4, 7]), 2, mode='fill', fill_value=3.0),
  'rows': lambda x: jax.vmap(lambda a, i: a[i])(x, jnp.argmax(x[:, :, 0, 0], 1)),
  'windows': lambda x: jax.vmap(lambda a, i: lax.dynamic_slice(a, (i, 1, 0), (2, 3, 3)))(
    x, jnp.array([1, 9])
  ),
  'window': lambda x: lax.dynamic_slice(x, (0, jnp.argmax(x[0, :, 0, 0]), -4, 0), (2, 3, 2, 3)),
  'update': lambda x: lax.dynamic_update_slice(
    x, -x[:, :2, :3], (0, jnp.argmax(x[0, :, 0, 0]), 1, 0)
  ),
  'updates': lambda x: jax.vmap(lambda a, i: lax.dynamic_update_slice(a, -a[:2, :3], (i, 1, 0)))(
    x, jnp.array([1, 9])
  ),
  'scattered': lambda x: x.at[:, jnp.array([1, 9, 3])].set(7.0, mode='drop'),
  'added': lambda x: x.at[jnp.array([0, 0, 1]), :, jnp.array([4, 4, 2])].add(
    x[0, 0, :3, 0, None, None]
  ),
  'greatest': lambda x: jnp.zeros((2, 4)).at[:, jnp.array([1, 1, 3])].max(x[:, 0, 0]),
  'branch': lambda x: lax.switch(
    (x.sum() > 0).astype(jnp.int32), [lambda x: x, lambda x: 2 * x], x
  ),
  'branches': lambda x: jnp.stack(
    [lax.switch(i, [jnp.sin, jnp.cos, jnp.exp], x) for i in jnp.argsort(x[0, :3, 0, 0])]
  ),
  'loop': lambda x: lax.while_loop(lambda s: s[0] < 4, lambda s: (s[0] + 1, s[1] * 2 + x), (0, x))[
    1
  ],
  'loop of each': lambda x: jax.vmap(
    lambda a: lax.while_loop(lambda s: s.sum() < 50, lambda s: s + 1, a)
  )(x),
  'scan': lambda x: lax.scan(lambda s, a: (s + a, s * a), x[:, 0], x.swapaxes(0, 1), reverse=True)[
    1
  ],
  'scan, last': lambda x: lax.scan(lambda s, a: (s + a, None), x[:, 0], x.swapaxes(0, 1))[0],
}
INTEGER = {
  'arithmetic': lambda x: lax.div(x * 5 + 1, jnp.int32(3)) - lax.rem(x - 3, jnp.int32(4)),
  'divided': lambda x: (x - 3) // 2 + (x - 3) % 4,
  'bits': lambda x: (x & 5) | ~x,
  'types': lambda x: (x.astype(jnp.uint8) + jnp.uint8(3)).astype(jnp.float32) * (x > 2),
  'first': lambda x: jnp.argmax(x > 2, 1) - jnp.argmin(x[::-1] > 2, 2)[:, :1],
  'counted': lambda x: jax.vmap(lambda a: jnp.bincount(a.ravel(), length=9))(x),
  'bool': lambda x: jnp.where(x > 2, x > 4, x == 1).at[:, 0].set(True, mode='drop'),
}


@pytest.mark.parametrize('name', FLOATS)
def test_operations_on_floats(name):
  check(lambda x: {'y': FLOATS[name](x)}, X)


@pytest.mark.parametrize('name', INTEGER)
def test_operations_on_integers(name):
  check(lambda x: {'y': INTEGER[name](x)}, INTEGERS)


@pytest.mark.parametrize('sizes', [(1, 1), (2, 3), (5, 8)])
def test_sizes_that_are_not_known_are_computed(sizes):
  def function(x):
    b, h, w, c = x.shape
    half = jnp.pad(x, ((0, 0), (0, h % 2), (0, -w % 3), (0, 0)))[:, ::2, ::3]
    tall = jnp.concatenate([half, half], 1) * jnp.arange(2 * half.shape[1])[:, None, None]
    line = tall.reshape(b, -1, c)
    return {
      'line': line + jnp.ones((b, line.shape[1], 1)),
      'sizes': jnp.stack([h // 2, -(-w // 2)]),
    }

  x = np.random.default_rng(0).normal(size=(3, *sizes, 2)).astype(np.float32)
  check(function, x, 'b, h, w, 2')


def random_variables(model, x):
  """Variables without zeros, so that nothing is left out of the output."""
  rng = np.random.default_rng(1)

  def leaf(path, shape):
    if 'var' in str(path[-1]):
      return (1 + rng.random(shape.shape)).astype(np.float32)
    fan = np.sqrt(max(1, np.prod(shape.shape[:-1])))
    return (rng.normal(size=shape.shape) / fan).astype(np.float32)

  return jax.tree_util.tree_map_with_path(leaf, jax.eval_shape(model.init, jax.random.key(0), x))


STAGES = ((4, 1),) * 5
NETWORKS = {
  'U-Net': unet.UNet(3, width=2, depth=2, padding='same', norm='batch'),
  'U-Net, group norm': unet.UNet(3, width=4, depth=1, padding='same', norm='group'),
  **{f'FCN-{v}': fcn.FCN(3, variant=v, stages=STAGES, fc_features=4) for v in ('32s', '8s')},
  'FCN, learned': fcn.FCN(3, variant='16s', learned='all', stages=STAGES, fc_features=4),
  'FCN-AlexNet': fcn.FCNAlexNet(3, width=0.05, fc_features=4),
  'FCN-AlexNet, torchvision': fcn.FCNAlexNet(3, 'torchvision', width=0.05, fc_features=4),
  'FCN-GoogLeNet': fcn.FCNGoogLeNet(3, width=0.05),
  'FCN-ResNet': fcn.FCNResNet(3, width=2),
  'DeepLabV3': deeplab.DeepLabV3(3, width=2, rates=(1, 2)),
  'DeepLabV3+': deeplab.DeepLabV3Plus(3, 'resnet18', width=2),
  'SegFormer': segformer.SegFormer(3, features=8),
  'SegNet': segnet.SegNet(3, stages=((4, 1), (4, 1))),
  'SegNet-Basic': segnet.SegNetBasic(3, width=2),
  'SegNet-Basic, LRN': segnet.SegNetBasic(
    3, width=2, variant='FCN-Basic', input_norm='local_response'
  ),
}


@pytest.mark.parametrize('name', NETWORKS)
def test_networks_on_images_of_any_size(name):
  model = NETWORKS[name]
  x = np.random.default_rng(0).normal(size=(2, 60, 90, 3)).astype(np.float32)
  variables = random_variables(model, x[:, :32, :32])

  def function(image):
    # In this form JAX knows that the sides are multiples of 32.
    pads = [(0, -(-side // 32) * 32 - side) for side in image.shape[1:3]]
    return {'logits': model.apply(variables, jnp.pad(image, ((0, 0), *pads, (0, 0))))}

  check(function, x, 'b, h, w, 3', atol=1e-4)


def test_an_unpadded_network():
  model = unet.UNet(2, width=2, depth=1)
  x = np.random.default_rng(0).normal(size=(1, 44, 44, 1)).astype(np.float32)
  variables = random_variables(model, x)
  check(lambda image: {'logits': model.apply(variables, image)}, x)


def test_what_onnx_does_not_have_is_named():
  with pytest.raises(SegjaxError, match='the operation .* of the network has no counterpart'):
    run(lambda x: {'y': x + jax.random.normal(jax.random.key(0), x.shape)}, X)
  with pytest.raises(SegjaxError, match='conv_general_dilated with batch groups'):
    run(lambda x: {'y': conv(x, KERNEL[:, :, :3, :4], batch_group_count=2)}, X)
