"""SegFormer; against transformers: tests/convert/segformer_test.py."""

import jax
import networks
import numpy as np
import pytest
from networks import abstract, apply, count, filled

from segjax.models.segformer import SegFormer
from segjax.nn import mix_transformer as mit
from segjax.training.compile import jit

SIZE = (2, 37, 45, 3)


@pytest.fixture(autouse=True)
def narrow(monkeypatch):
  monkeypatch.setitem(mit.SIZES, 'narrow', mit.MitSize((4, 8, 20, 32), (1, 2, 1, 1)))


def tiny(**kwargs):
  options = {'classes': 3, 'size': 'narrow', 'features': 8, 'dropout': 0.0, 'drop_path': 0.0}
  return SegFormer(**options | kwargs)


def images(shape=SIZE):
  return np.random.default_rng(0).normal(size=shape).astype(np.float32)


# Table 1 of the paper, 150 classes.
@pytest.mark.parametrize(
  ('size', 'millions'),
  [('b0', 3.8), ('b1', 13.7), ('b2', 27.5), ('b3', 47.3), ('b4', 64.1), ('b5', 84.7)],
)
def test_parameters_are_those_of_the_paper(size, millions):
  variables, logits = abstract(SegFormer(150, size), (1, 96, 64, 3))
  assert logits.shape == (1, 96, 64, 150)
  assert round(count(variables['params']) / 1e6, 1) == pytest.approx(millions, abs=0.101)


def test_the_decoder_is_the_one_of_the_paper():
  """Eq. 4: each stage is projected and resized, and all are concatenated before the fusion."""
  model, x = tiny(), images()
  variables = filled(abstract(model, x.shape)[0])
  backbone = mit.MixTransformer('narrow', 0.0)
  stages = apply(backbone, {'params': variables['params']['backbone']}, x)
  p, statistics = variables['params'], variables['batch_stats']['fuse_norm']
  parts = []
  for i, stage in enumerate(stages, 1):
    y = stage @ p[f'project{i}']['kernel'] + p[f'project{i}']['bias']
    parts.append(jax.image.resize(y, (*stages[0].shape[:3], 8), 'linear'))
  y = np.concatenate(parts, -1) @ p['fuse'].reshape(32, 8)
  y = (y - statistics['mean']) / np.sqrt(statistics['var'] + 1e-5)
  y = np.maximum(y * p['fuse_norm']['scale'] + p['fuse_norm']['bias'], 0)
  y = y @ p['classifier_score']['kernel'][0, 0] + p['classifier_score']['bias']
  expected = np.asarray(jax.image.resize(y, (*SIZE[:3], 3), 'linear'))
  assert np.ptp(expected) > 1
  np.testing.assert_allclose(apply(model, variables, x), expected, rtol=1e-3, atol=1e-4)


def test_stride_is_that_of_the_last_stage():
  features = abstract(mit.MixTransformer('narrow'), (1, 64, 96, 3))[1]
  assert features[-1].shape[1:3] == (64 // tiny().stride, 96 // tiny().stride)


def test_everything_learns():
  """A bias of all keys changes no softmax, and the normalization takes away those before it."""
  before_norm = [f'project{i}/bias' for i in (1, 2, 3, 4)]
  networks.check_everything_learns(
    tiny(), images((2, 64, 72, 3)), without=['key/bias', *before_norm]
  )


def test_dropout_acts_in_training_only():
  networks.check_dropout_acts_in_training_only(tiny(dropout=0.5), images())


def test_blocks_are_left_out_in_training_only():
  model, x = tiny(drop_path=0.5), images()
  variables = filled(abstract(model, x.shape)[0])
  train = jit(
    lambda key: model.apply(
      variables, x, train=True, rngs={'dropout': key}, mutable=['batch_stats']
    )[0],
    once=True,
  )
  a, b = (np.asarray(train(jax.random.key(i))) for i in (0, 1))
  assert np.abs(a - b).max() > 0.1
  np.testing.assert_allclose(
    apply(model, variables, x), apply(tiny(), variables, x), rtol=1e-6, atol=1e-6
  )


def test_bfloat16_computes_in_it_and_outputs_float32():
  networks.check_bfloat16_computes_in_it_and_outputs_float32(tiny(), images())


def test_remat_has_the_same_gradients():
  x, key = images((2, 64, 32, 3)), jax.random.key(0)
  variables = filled(abstract(tiny(), x.shape)[0])

  def gradient(model):
    def loss(params):
      logits, _ = model.apply(
        {**variables, 'params': params},
        x,
        train=True,
        mutable=['batch_stats'],
        rngs={'dropout': key},
      )
      return (logits**2).mean()

    return jit(jax.grad(loss), once=True)(variables['params'])

  make = lambda remat: tiny(remat=remat, drop_path=0.5)
  program = lambda remat: str(jax.make_jaxpr(lambda v: make(remat).apply(v, x))(variables))
  again = [program(remat).count('prevent_cse=True') for remat in (False, True)]
  assert again == [4, 8], 'scores, and blocks: of five, the two of a stage are traced once'
  # Random numbers are drawn again alike.
  plain, again = (gradient(make(remat)) for remat in (False, True))
  largest = max(np.abs(g).max() for g in jax.tree.leaves(plain))
  for a, b in zip(*map(jax.tree.leaves, (plain, again)), strict=True):
    np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5 * largest)
