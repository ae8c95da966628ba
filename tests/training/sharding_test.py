"""The mesh, and how batches get onto it."""

import json

import jax
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from segjax.training import sharding
from segjax.training.sharding import MeshConfig, make_mesh, put_batch, put_replicated, to_host
from segjax.types import SegjaxError


@pytest.mark.parametrize(
  ('config', 'shape'),
  [((-1, 1), (4, 1)), ((-1, 2), (2, 2)), ((2, 2), (2, 2)), ((1, 1), (1, 1)), ((2, 1), (2, 1))],
)
def test_mesh_shapes(config, shape):
  assert tuple(make_mesh(MeshConfig(*config)).shape.values()) == shape


@pytest.mark.parametrize('config', [(8, 1), (4, 2), (-1, 8)])
def test_mesh_larger_than_the_machine(config):
  with pytest.raises(SegjaxError, match='config.mesh needs .* but 4 are'):
    make_mesh(MeshConfig(*config))


def test_put_batch_splits_batch_and_height():
  mesh = make_mesh(MeshConfig(2, 2))
  image = np.arange(2 * 4 * 3).reshape(2, 4, 3, 1)
  batch = put_batch({'image': image}, mesh, {'image': P('data', 'space')})
  assert {s.data.shape for s in batch['image'].addressable_shards} == {(1, 2, 3, 1)}
  np.testing.assert_array_equal(to_host(batch)['image'], image)


@pytest.mark.parametrize('shape', [(3, 4, 4, 1), (2, 3, 4, 1)])
def test_what_does_not_divide_names_the_keys(shape):
  with pytest.raises(SegjaxError, match='config.batch.size .*config.mesh.space'):
    put_batch(
      {'image': np.zeros(shape)}, make_mesh(MeshConfig(2, 2)), {'image': P('data', 'space')}
    )


def test_put_replicated():
  tree = put_replicated({'w': np.arange(3.0), 's': np.int32(2)}, make_mesh(MeshConfig()))
  assert tree['w'].sharding.is_fully_replicated
  assert len(tree['w'].sharding.device_set) == 4
  assert jax.device_get(tree['s']) == 2


def test_put_batch_takes_trees_and_leaves_other_keys_behind():
  mesh = make_mesh(MeshConfig(data=2))
  local = {'objects': (np.arange(4), np.zeros((4, 3))), 'names': ['a', 'b', 'c', 'd']}
  batch = put_batch(local, mesh, {'objects': P('data'), 'image': P('data')})
  assert batch.keys() == {'objects'}
  first, second = batch['objects']
  assert first.sharding.spec == second.sharding.spec == P('data')
  np.testing.assert_array_equal(first, np.arange(4))


def test_lists_of_all_processes_come_in_their_order(monkeypatch):
  parts = [{'x': [{'a': 1}, None]}, {'x': ['a longer text', [2.5, 'é']]}]
  encoded = [np.frombuffer(json.dumps(part).encode(), np.uint8) for part in parts]
  longest = max(map(len, encoded))

  def allgather(value):
    """As if each process had called it with its own value."""
    if value.ndim == 0:
      return np.array([len(e) for e in encoded], np.int32)
    assert value.shape == (longest,)
    return np.stack([np.pad(e, (0, longest - len(e))) for e in encoded])

  monkeypatch.setattr(sharding.jax, 'process_count', lambda: 2)
  monkeypatch.setattr(sharding.multihost_utils, 'process_allgather', allgather)
  for part in parts:
    assert sharding.gather_lists(part) == {'x': [*parts[0]['x'], *parts[1]['x']]}
