"""GoogLeNet's tables against the numbers of its paper, of Caffe's model and of torchvision's."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from segjax.nn import googlenet
from segjax.nn.googlenet import FORMS, STAGES, Inception, inception
from segjax.ops.windows import Window, receptive_field


class Encoder(nn.Module):
  form: str
  width: float = 1.0
  dtype: str = 'float32'

  @nn.compact
  def __call__(self, image, *, train=False):
    form = FORMS[self.form]
    return googlenet.encode(image, form, width=self.width, padding=3, train=train, dtype=self.dtype)


def abstract(model, size):
  image = jax.ShapeDtypeStruct((1, size, size, 3), jnp.float32)
  return jax.eval_shape(model.init_with_output, jax.random.key(0), image)


# The parameters of Caffe's bvlc_googlenet and of torchvision's, without auxiliary classifiers and
# less the classifier's.
@pytest.mark.parametrize(
  ('form', 'parameters'),
  [('caffe', 6_998_552 - 1025 * 1000), ('torchvision', 6_624_904 - 1025 * 1000)],
)
def test_1024_maps_of_7x7_come_out(form, parameters):
  features, variables = abstract(Encoder(form), 224)
  assert features.shape == (1, 7, 7, 1024)
  assert sum(x.size for x in jax.tree.leaves(variables['params'])) == parameters
  assert ('batch_stats' in variables) == (form == 'torchvision')


def test_modules_output_what_table_1_says():
  outputs = {
    name: channels.one + channels.three + channels.five + channels.pool_proj
    for stage in STAGES
    for name, channels in stage.items()
  }
  assert list(outputs.values()) == [256, 480, 512, 512, 512, 528, 832, 832, 1024]


def test_a_module_is_four_branches_side_by_side():
  """With a `unit` that notes its arguments, and outputs its input with a number for its name."""
  calls = {}

  def unit(x, channels, window, *, name):
    calls[name] = (channels, window)
    return 10 * x + len(calls)

  x = np.zeros((1, 3, 3, 1), 'f4')
  x[0, 0, 0] = 1
  module = functools.partial(
    inception, channels=Inception(1, 2, 3, 4, 5, 6), five=Window(5, 1, 2), unit=unit, name='m'
  )
  y = jax.jit(module)(x)
  one, same = Window(1), Window(3, padding=1)
  assert calls == {
    'm_3x3_reduce': (2, one),
    'm_5x5_reduce': (4, one),
    'm_1x1': (1, one),
    'm_3x3': (3, same),
    'm_5x5': (5, Window(5, 1, 2)),
    'm_pool_proj': (6, one),
  }
  # The number of a branch's last layer is its last digit, that of its reduction the one before.
  assert y[0, 2, 2].tolist() == [3, 14, 25, 6]
  assert y[0, 0, 0].tolist() == [13, 114, 125, 16]
  assert y[0, 1, 1].tolist() == [3, 14, 25, 16]  # a pooling of 3x3 and stride 1 sees the corner


@pytest.mark.parametrize(('form', 'sees'), [('caffe', 715), ('torchvision', 379)])
def test_windows_of_the_forms(form, sees):
  assert receptive_field(googlenet.windows(FORMS[form], padding=3))[::2] == (32, sees)


def test_width_narrows_every_layer():
  features, variables = abstract(Encoder('caffe', width=1 / 64), 64)
  assert features.shape == (1, 2, 2, 6 + 6 + 2 + 2)
  assert variables['params']['conv2_reduce']['kernel'].shape == (1, 1, 2, 2)
  assert variables['params']['inception_5b_5x5']['kernel'].shape == (5, 5, 2, 2)


def test_bfloat16_computes_in_bfloat16_with_float32_parameters():
  features, variables = abstract(Encoder('torchvision', dtype='bfloat16'), 64)
  assert features.dtype == jnp.bfloat16
  assert {x.dtype for x in jax.tree.leaves(variables)} == {jnp.dtype('float32')}
