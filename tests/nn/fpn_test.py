"""FPN against its definition (§3)."""

import jax
import numpy as np
import pytest
from networks import abstract, apply, filled

from segjax.nn.fpn import FPN, upsample_nearest


@pytest.mark.parametrize('size', [(6, 4), (5, 3)])
def test_upsampling_repeats_and_cuts_off_the_odd_row_and_column(size):
  x = np.arange(6.0).reshape(1, 3, 2, 1)
  expected = np.kron(x[0, :, :, 0], np.ones((2, 2)))[: size[0], : size[1]]
  np.testing.assert_array_equal(upsample_nearest(x, size)[0, :, :, 0], expected)


def test_a_level_is_its_lateral_and_all_above():
  """With effectively 1x1 output convolutions: kernels that are zero except at the center."""
  rng = np.random.default_rng(0)
  stages = [rng.normal(size=(1, *size)).astype(np.float32) for size in ((5, 6, 2), (3, 3, 4))]
  fpn = FPN(3, first=4)
  variables = filled(abstract(fpn, stages)[0])
  layers = variables['params']
  assert set(layers) == {'lateral4', 'output4', 'lateral5', 'output5'}
  for level in (4, 5):
    layers[f'output{level}']['kernel'][:] = 0
    layers[f'output{level}']['kernel'][1, 1] = np.eye(3)
    layers[f'output{level}']['bias'][:] = level
  p4, p5, p6 = map(np.asarray, apply(fpn, variables, stages))
  lateral = lambda x, level: (
    x @ layers[f'lateral{level}']['kernel'][0, 0] + (layers[f'lateral{level}']['bias'])
  )
  top = lateral(stages[1], 5)
  np.testing.assert_allclose(p5, top + 5, rtol=1e-4, atol=1e-5)
  above = np.repeat(np.repeat(top, 2, 1), 2, 2)[:, :5, :6]
  np.testing.assert_allclose(p4, lateral(stages[0], 4) + above + 4, rtol=1e-4, atol=1e-5)
  np.testing.assert_array_equal(p6, p5[:, ::2, ::2])


@pytest.mark.parametrize(('norm', 'biased'), [('none', True), ('batch', False), ('group', False)])
def test_norms_follow_each_convolution_in_place_of_its_bias(norm, biased):
  stages = [jax.ShapeDtypeStruct((1, n, n, 4), np.float32) for n in (4, 2)]
  variables, levels = abstract(FPN(16, norm=norm, extra=False), stages)
  layers = variables['params']
  assert len(levels) == 2
  assert ('bias' in layers['lateral2']) == ('bias' in layers['output3']) == biased
  norms = {name for name in layers if name.endswith('_norm')}
  assert norms == (
    set() if biased else {f'{x}{i}_norm' for x in ('lateral', 'output') for i in (2, 3)}
  )
