import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.sharding import NamedSharding, PartitionSpec
from jax.test_util import check_grads

from segjax.ops import conv as conv_lib
from segjax.ops.conv import conv
from segjax.training.compile import jit

ONE, NONE = (1, 1), ((0, 0), (0, 0))
SAME = ((1, 1), (1, 1))
# Name: x's shape, kernel, groups, strides, padding, dilation.
CASES = {
  'dense': ((2, 7, 9, 16), (3, 3), 1, ONE, SAME, ONE),
  'strided': ((2, 7, 9, 16), (3, 3), 1, (2, 2), SAME, ONE),
  'dilated': ((1, 12, 9, 16), (3, 3), 1, ONE, ((2, 2), (2, 2)), (2, 2)),
  'few pixels, a large kernel': ((2, 7, 9, 16), (7, 8), 1, ONE, NONE, ONE),
  'few pixels, uneven padding': ((2, 7, 9, 16), (3, 2), 1, ONE, ((2, 0), (0, 1)), (2, 3)),
  'pointwise': ((2, 7, 9, 16), (1, 1), 1, ONE, NONE, ONE),
  'pointwise, strided': ((2, 7, 9, 16), (1, 1), 1, (2, 3), NONE, ONE),
  'rows': ((1, 40, 33, 16), (3, 3), 1, ONE, SAME, ONE),
  'rows, uneven': ((2, 61, 40, 8), (4, 3), 1, ONE, ((2, 1), (0, 0)), ONE),
  'one image, a strided stem': ((1, 64, 48, 3), (7, 7), 1, (2, 2), ((3, 3), (3, 3)), ONE),
  'a batch in parts': ((6, 15, 12, 4), (3, 2), 1, ONE, ((1, 1), (0, 2)), ONE),
  'a batch that parts do not divide': ((5, 15, 12, 4), (3, 2), 1, ONE, ((1, 1), (0, 2)), ONE),
  'a large batch in parts': ((65, 5, 4, 3), (2, 2), 1, ONE, SAME, ONE),
  'groups': ((2, 7, 9, 16), (3, 3), 4, (2, 2), SAME, ONE),
  'groups, uneven': ((2, 7, 9, 16), (3, 2), 2, (1, 2), ((2, 0), (0, 1)), (2, 3)),
  'groups, pointwise': ((2, 7, 9, 16), (1, 1), 8, ONE, NONE, ONE),
  'depthwise': ((2, 7, 9, 24), (3, 3), 24, ONE, SAME, ONE),
  'depthwise, uneven': ((2, 7, 9, 24), (3, 2), 24, ONE, ((3, 0), (0, 1)), (2, 3)),
  'depthwise, cropped backwards': ((2, 7, 9, 24), (2, 1), 24, ONE, ((2, 3), (1, 0)), ONE),
  'depthwise, strided': ((2, 7, 9, 24), (3, 3), 24, (2, 2), SAME, ONE),
  'rows and columns that no window sees': ((2, 7, 9, 16), (2, 2), 4, (3, 4), NONE, ONE),
}
IMAGE_FORMS = [
  conv_lib.xla_image_gradient,
  conv_lib.pointwise_image_gradient,
  conv_lib.spread_image_gradient,
  conv_lib.flipped_image_gradient,
  conv_lib.shifted_image_gradient,
]
KERNEL_FORMS = [
  conv_lib.tap_kernel_gradient,
  conv_lib.chunked_kernel_gradient,
  conv_lib.row_kernel_gradient,
  conv_lib.batch_kernel_gradient,
  conv_lib.shifted_rows_kernel_gradient,
]


@pytest.fixture(autouse=True)
def one_device(monkeypatch):
  """Tests have four devices, and some forms are for one."""
  monkeypatch.setattr(jax, 'device_count', lambda: 1)


def plain(x, kernel, strides=ONE, padding=NONE, dilation=ONE):
  return lax.conv_general_dilated(
    x,
    kernel,
    strides,
    padding,
    rhs_dilation=dilation,
    dimension_numbers=('NHWC', 'HWIO', 'NHWC'),
    feature_group_count=x.shape[-1] // kernel.shape[2],
  )


def arrays(name, cout=24):
  """x, a kernel, and the other arguments of `conv`."""
  shape, size, groups, *window = CASES[name]
  rng = np.random.default_rng(0)
  x = rng.normal(size=shape).astype('f4')
  return x, rng.normal(size=(*size, shape[-1] // groups, cout)).astype('f4'), window


def gradient_of(x, kernel, window):
  shape = jax.eval_shape(lambda x, kernel: plain(x, kernel, *window), x, kernel).shape
  return np.random.default_rng(1).normal(size=shape).astype('f4')


@pytest.mark.parametrize('name', CASES)
def test_equals_xla_forwards_and_backwards(name):
  x, kernel, window = arrays(name)

  def both(function, x, kernel, g):
    y, pullback = jax.vjp(lambda x, kernel: function(x, kernel, *window), x, kernel)
    return y, *pullback(g)

  g = gradient_of(x, kernel, window)
  run = lambda *a: (both(conv, *a), both(plain, *a))
  ours, theirs = jit(run, once=True)(x, kernel, g)
  for a, b in zip(ours, theirs, strict=True):
    np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-3)
    assert a.dtype == jnp.float32


def test_the_cases_take_every_form():
  """So that the test above compares all of them."""
  images, kernels = set(), set()
  for name in CASES:
    x, kernel, window = arrays(name)
    shapes = kernel.shape, gradient_of(x, kernel, window).shape, x.shape
    images.add(conv_lib.image_gradient_form(*shapes, *window))
    kernels.add(conv_lib.kernel_gradient_form(*shapes, *window))
  assert images == set(IMAGE_FORMS)
  assert kernels == set(KERNEL_FORMS)


def test_devices_share_the_batch_of_a_depthwise_convolution_without_an_exchange():
  x, kernel, window = arrays('depthwise')
  x = np.concatenate([x, x])
  batch, whole = (
    NamedSharding(jax.make_mesh((4,), ('data',)), PartitionSpec(*axes)) for axes in (('data',), ())
  )
  both = lambda x, kernel: jax.vjp(lambda x: conv(x, kernel, *window), x)[1](
    conv(x, kernel, *window)
  )
  shared = jax.jit(both, in_shardings=(batch, whole)).lower(x, kernel).compile()
  assert not re.search('all-gather|all-to-all|all-reduce', shared.as_text())
  given = jax.device_put(x, batch), jax.device_put(kernel, whole)
  for a, b in zip(shared(*given), both(x, kernel), strict=True):
    np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-3)


def test_a_depthwise_convolution_is_computed_once():
  """Not again for each of its readers: one product for each element of the kernel."""
  x, kernel, window = arrays('depthwise')
  function = lambda x: (y := conv(x, kernel, *window)) - y.mean(-1, keepdims=True)
  text = jit(function).lower(x).compile().as_text()
  assert len(re.findall(r' multiply\(', text)) < 2 * kernel[..., 0, 0].size


@pytest.mark.parametrize(
  ('form', 'cin', 'cout', 'dilation'),
  [
    (conv_lib.row_kernel_gradient, 3, 5, 1),
    (conv_lib.chunked_kernel_gradient, 3, 5, 1),
    (conv_lib.shifted_rows_kernel_gradient, 1, 3, 1),
    (conv_lib.shifted_rows_kernel_gradient, 1, 3, 2),
  ],
)
@pytest.mark.parametrize('size', [(1, 1), (5, 3), (9, 2), (13, 40)])
def test_rows_that_do_not_divide_the_height(form, cin, cout, dilation, size, monkeypatch):
  """Parts of four rows, of one to thirteen."""
  monkeypatch.setattr(conv_lib, '_CHUNK', 1)
  rng = np.random.default_rng(0)
  x, kernel = rng.normal(size=(2, *size, 3)), rng.normal(size=(3, 3, cin, cout))
  window = (ONE, ((1, 3), (2, 2)) if dilation == 2 else SAME, (dilation, dilation))
  y, pullback = jax.vjp(lambda kernel: plain(x, kernel, *window), kernel)
  ours = jit(lambda x, g: form(x, g, kernel.shape, *window), once=True)(x, y)
  np.testing.assert_allclose(ours, pullback(y)[0], rtol=1e-4, atol=1e-3)


def test_several_devices_have_no_loop_over_images(monkeypatch):
  x, kernel, window = arrays('rows')
  shapes = kernel.shape, gradient_of(x, kernel, window).shape, x.shape
  monkeypatch.setattr(jax, 'device_count', lambda: 4)
  assert conv_lib.kernel_gradient_form(*shapes, *window) is conv_lib.xla_kernel_gradient
  assert conv_lib.image_gradient_form(*shapes, *window) is conv_lib.xla_image_gradient
  x, kernel, window = arrays('depthwise')
  shapes = kernel.shape, gradient_of(x, kernel, window).shape, x.shape
  assert conv_lib.kernel_gradient_form(*shapes, *window) is conv_lib.shifted_kernel_gradient


@pytest.mark.parametrize('name', ['depthwise', 'depthwise, uneven', 'depthwise, cropped backwards'])
def test_depthwise_forms_of_the_kernel_gradient_agree(name):
  x, kernel, window = arrays(name)
  g = gradient_of(x, kernel, window)
  forms = conv_lib.shifted_kernel_gradient, conv_lib.xla_kernel_gradient
  run = lambda x, g: [form(x, g, kernel.shape, *window) for form in forms]
  a, b = jit(run, once=True)(x, g)
  np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize('name', ['groups', 'depthwise'])
def test_the_gradient_is_defined_on_every_platform(name):
  x, kernel, window = arrays(name)
  loss = lambda x, kernel: conv(x, kernel, *window).sum()
  program = jax.jit(jax.grad(loss, argnums=(0, 1)))
  exported = jax.export.export(program, platforms=('cpu', 'cuda', 'tpu'))(x, kernel)
  assert exported.platforms == ('cpu', 'cuda', 'tpu')


@pytest.mark.parametrize(
  'name', ['rows', 'strided', 'few pixels, a large kernel', 'pointwise', 'depthwise']
)
def test_numerical_gradient_to_second_order(name):
  shape, size, _, *window = CASES[name]
  rng = np.random.default_rng(0)
  shape = (1, shape[1] // 2, shape[2] // 2, 8) if name == 'rows' else (1, *shape[1:3], 2)
  x = rng.normal(size=shape).astype('f4')
  channels = 1 if name == 'depthwise' else shape[-1]
  kernel = rng.normal(size=(*size, channels, 2)).astype('f4')
  function = jax.jit(lambda x, kernel: conv(x, kernel, *window).mean((1, 2)))
  check_grads(function, (x, kernel), 2, ['rev'], atol=2e-2, rtol=2e-2)


@pytest.mark.parametrize('name', ['rows', 'depthwise'])
def test_under_vmap(name):
  x, kernel, window = arrays(name)
  loss = lambda x, kernel: (conv(x, kernel, *window) ** 2).mean()
  gradient = jax.grad(loss, (0, 1))
  both = jit(jax.vmap(gradient), once=True)(np.stack([x, 2 * x]), np.stack([kernel, -kernel]))
  for i, arguments in enumerate([(x, kernel), (2 * x, -kernel)]):
    for a, b in zip(both, gradient(*arguments), strict=True):
      np.testing.assert_allclose(a[i], b, rtol=1e-3, atol=1e-4)


def test_a_depthwise_kernel_has_a_gradient_of_float64():
  x, kernel, window = arrays('depthwise')
  with jax.enable_x64(True):
    x, kernel = x.astype(float), kernel.astype(float)
    gradient = lambda function: jax.grad(lambda k: (function(x, k, *window) ** 2).sum())(kernel)
    np.testing.assert_allclose(gradient(conv), gradient(plain), rtol=1e-12)


def test_one_group_leaves_the_others_alone():
  x, kernel, _ = arrays('groups')
  changed = x.copy()
  changed[..., 4:8] += 1
  a, b = (conv(v, kernel) for v in (x, changed))
  moved = np.abs(a - b).max((0, 1, 2)) > 0
  assert np.flatnonzero(moved).tolist() == list(range(6, 12))


@pytest.mark.parametrize(
  'name', ['groups', 'rows', 'pointwise', 'few pixels, a large kernel', 'depthwise']
)
def test_keeps_bfloat16(name):
  x, kernel, window = arrays(name)
  loss = lambda x, kernel: conv(x, kernel, *window).astype(jnp.float32).sum()
  gradient = functools.partial(jit, once=True)(jax.grad(loss, (0, 1)))
  coarse = gradient(*(jnp.asarray(a, jnp.bfloat16) for a in (x, kernel)))
  for a, b in zip(coarse, gradient(x, kernel), strict=True):
    assert a.dtype == jnp.bfloat16
    error = np.abs(np.asarray(a, np.float32) - b)
    assert error.max() < 0.02 * np.abs(b).max()


def test_a_depthwise_sum_of_bfloat16_is_rounded_once():
  """As matrix products are: 49 terms added in bfloat16 would lose several bits."""
  rng = np.random.default_rng(0)
  x = jnp.asarray(rng.normal(size=(1, 9, 9, 4)), jnp.bfloat16)
  kernel = jnp.asarray(1 + 0.1 * rng.normal(size=(7, 7, 1, 4)), jnp.bfloat16)
  run = functools.partial(jit, once=True)(lambda x, kernel: conv(x, kernel, padding=((3, 3),) * 2))
  exact = run(x.astype(jnp.float32), kernel.astype(jnp.float32))
  np.testing.assert_array_equal(run(x, kernel), exact.astype(jnp.bfloat16))
