"""On the four devices of the tests."""

import jax
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from segjax.ops.by_image import map_images
from segjax.training import sharding


@pytest.mark.parametrize(
  ('batch', 'known', 'gathers'), [(8, True, False), (8, False, True), (6, True, False)]
)
def test_each_device_has_its_own_images(batch, known, gathers):
  mesh = sharding.make_mesh(sharding.MeshConfig(4))
  x = np.random.default_rng(0).normal(size=(batch, 5, 3)).astype(np.float32)
  # The factor is traced, as thresholds are.
  run = jax.jit(lambda x, factor: map_images(lambda image: {'all': factor * image.sort(0)}, x))
  compiled = lambda *arguments: run.lower(*arguments).compile()
  if known:
    run_here, compiled = (sharding.on_mesh(f, mesh) for f in (run, compiled))
  else:
    run_here = run
  place = NamedSharding(mesh, P('data') if batch % 4 == 0 else P())
  arguments = jax.device_put(x, place), np.float32(2)
  np.testing.assert_array_equal(run_here(*arguments)['all'], 2 * np.sort(x, 1))
  assert ('all-gather' in compiled(*arguments).as_text()) == gathers
