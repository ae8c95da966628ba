"""Networks that compute activations again in the backward pass, against those that keep them."""

import jax
import numpy as np
import pytest
from instance_batch import KEYS, SHALLOW, TINY, make_batch, make_model
from networks import abstract, filled

from segjax.models.fcn import FCNResNet
from segjax.models.unet import UNet
from segjax.nn.resnet import VARIANTS
from segjax.training.compile import compiler_options

SIDE = 64
NETWORKS = {
  'unet': UNet(classes=3, width=8, depth=2, padding='same', norm='batch'),
  'resnet': FCNResNet(classes=3, variant='resnet18', width=8, dropout=0.0),
}


def compile_gradient(model, variables, image):
  """`params -> (loss, new statistics), gradients` of a network in training, compiled."""

  def loss(params):
    logits, new = model.apply(
      {**variables, 'params': params},
      image,
      train=True,
      mutable=['batch_stats'],
      rngs={'dropout': jax.random.key(0)},
    )
    return (logits**2).mean(), new

  program = jax.jit(jax.value_and_grad(loss, has_aux=True), compiler_options=compiler_options())
  return program.lower(variables['params']).compile()


@pytest.mark.parametrize('name', ['unet', pytest.param('resnet', marks=pytest.mark.slow)])
def test_the_gradients_are_the_same_in_less_memory(name):
  model = NETWORKS[name]
  image = np.random.default_rng(0).normal(size=(2, SIDE, SIDE, 3)).astype(np.float32)
  again = model.clone(remat=True)
  shapes, _ = abstract(model, image.shape)
  assert jax.tree.structure(abstract(again, image.shape, train=True)[0]) == (
    jax.tree.structure(abstract(model, image.shape, train=True)[0])
  ), 'checkpoints fit both'
  variables = filled(shapes)
  kept, computed = (compile_gradient(m, variables, image) for m in (model, again))
  expected, found = (program(variables['params']) for program in (kept, computed))
  assert jax.tree.structure(found) == jax.tree.structure(expected)
  for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
    np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5 * np.abs(b).max())
  memory = [program.memory_analysis().temp_size_in_bytes for program in (kept, computed)]
  assert memory[1] < 0.75 * memory[0]


def test_mask_rcnn_does_so_in_its_backbone(monkeypatch):
  """One block in each of the four stages of the small network."""
  monkeypatch.setitem(VARIANTS, 'shallow', SHALLOW)
  image, size, instances = make_batch()

  def count(**keys):
    model = make_model({**TINY, **keys})
    shapes, _ = abstract(model, image, size, instances, KEYS, train=True)
    apply = lambda v: model.apply(v, image, size, instances, KEYS, train=True, mutable=True)
    return str(jax.make_jaxpr(apply)(shapes)).count('prevent_cse=True')

  assert (count(), count(remat=True)) == (0, 4)
