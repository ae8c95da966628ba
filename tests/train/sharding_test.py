"""The mesh, and how batches get onto it."""

import jax
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from segjax.train.sharding import MeshConfig, make_mesh, put_batch, put_replicated, to_host
from segjax.types import SegjaxError


@pytest.mark.parametrize(
  ('config', 'shape'),
  [((-1, 1), (4, 1)), ((-1, 2), (2, 2)), ((2, 2), (2, 2)), ((1, 1), (1, 1)), ((2, 1), (2, 1))],
)
def test_mesh_shapes(config, shape):
  assert tuple(make_mesh(MeshConfig(*config)).shape.values()) == shape


@pytest.mark.parametrize('config', [(8, 1), (4, 2), (-1, 8)])
def test_mesh_larger_than_the_machine(config):
  with pytest.raises(SegjaxError, match='config.mesh asks for .* where there are 4'):
    make_mesh(MeshConfig(*config))


def test_put_batch_splits_batch_and_height():
  mesh = make_mesh(MeshConfig(2, 2))
  image = np.arange(2 * 4 * 3).reshape(2, 4, 3, 1)
  batch = put_batch({'image': image}, mesh, {'image': P('data', 'space')})
  assert {s.data.shape for s in batch['image'].addressable_shards} == {(1, 2, 3, 1)}
  np.testing.assert_array_equal(to_host(batch)['image'], image)


@pytest.mark.parametrize('shape', [(3, 4, 4, 1), (2, 3, 4, 1)])
def test_what_does_not_divide_names_the_keys(shape):
  with pytest.raises(SegjaxError, match='config.data.batch_size .*config.mesh.space'):
    put_batch(
      {'image': np.zeros(shape)}, make_mesh(MeshConfig(2, 2)), {'image': P('data', 'space')}
    )


def test_put_replicated():
  tree = put_replicated({'w': np.arange(3.0), 's': np.int32(2)}, make_mesh(MeshConfig()))
  assert tree['w'].sharding.is_fully_replicated
  assert len(tree['w'].sharding.device_set) == 4
  assert jax.device_get(tree['s']) == 2


@pytest.mark.parametrize('config', [(0, 1), (1, 0), (-2, 1)])
def test_mesh_of_nothing(config):
  with pytest.raises(SegjaxError, match='must be 1 or more'):
    MeshConfig(*config)
