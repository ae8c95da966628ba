"""The mesh, how batches and parameters get onto it, and what processes exchange."""

import json
import types

import jax
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from segjax.training import sharding
from segjax.training.sharding import (
  MeshConfig,
  Part,
  check_heights,
  check_rows,
  describe_idle,
  fsdp_axis,
  make_mesh,
  own_part,
  put_batch,
  put_replicated,
  to_host,
)
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


def test_a_height_that_leaves_devices_over_names_the_key():
  with pytest.raises(SegjaxError, match='config.mesh.space=3 does not divide the 4 devices'):
    make_mesh(MeshConfig(-1, 3))
  assert tuple(make_mesh(MeshConfig(1, 3)).shape.values()) == (1, 3)


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


def test_rows_that_do_not_divide_name_what_helps():
  with pytest.raises(SegjaxError) as error:
    check_rows(6, make_mesh(MeshConfig()))
  assert str(error.value) == (
    'config.batch.size=6 does not divide over 4 devices along the batch: set config.batch.size to '
    '8 or config.mesh.data to 3'
  )
  check_rows(6, make_mesh(MeshConfig(data=3)))


@pytest.mark.parametrize(
  ('size', 'accumulate', 'rows', 'better'), [(20, 20, 1, 5), (8, 4, 2, 2), (12, 2, 6, 1)]
)
def test_parts_that_leave_devices_idle(size, accumulate, rows, better):
  assert describe_idle(size, accumulate, make_mesh(MeshConfig())) == (
    f'config.optim.accumulate={accumulate} leaves {rows} of {size} examples in a part, which does '
    f'not divide over 4 devices along the batch: some of them are idle; set it to {better}'
  )


@pytest.mark.parametrize(('size', 'accumulate'), [(4, 1), (8, 2), (20, 5)])
def test_parts_that_divide(size, accumulate):
  assert describe_idle(size, accumulate, make_mesh(MeshConfig())) == ''


def test_heights_that_do_not_divide_name_an_image():
  mesh = make_mesh(MeshConfig(space=4))
  check_heights({(32, 33): 'a', (64, 1): 'b'}, mesh, margin=2)
  with pytest.raises(SegjaxError, match='the height of b, 30 of 30x64 pixels, does not divide'):
    check_heights({(32, 64): 'a', (30, 64): 'b'}, mesh)
  with pytest.raises(SegjaxError, match='pixels and its margins of 1, does not'):
    check_heights({(32, 64): 'a'}, mesh, margin=1)


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


@pytest.mark.parametrize(
  ('local', 'space', 'process', 'part'),
  [
    (4, 1, 2, Part(2, 4)),
    (4, 4, 3, Part(3, 4)),
    (2, 4, 0, Part(0, 2, rank=0, sharers=2)),
    (2, 4, 3, Part(1, 2, rank=1, sharers=2)),
    (1, 4, 3, Part(0, 1, rank=3, sharers=4)),
  ],
)
def test_processes_that_share_an_image_read_the_same_rows(monkeypatch, local, space, process, part):
  monkeypatch.setattr(jax, 'process_count', lambda: 4)
  monkeypatch.setattr(jax, 'process_index', lambda: process)
  monkeypatch.setattr(jax, 'local_device_count', lambda: local)
  assert own_part(MeshConfig(space=space)) == part


def test_alone_a_process_reads_all_rows():
  assert own_part(MeshConfig(space=4)) == Part(0, 1)


def fake_devices(monkeypatch, processes, local):
  """Devices that name their process; `make_mesh` asks for nothing else."""
  devices = [types.SimpleNamespace(process_index=p, id=i) for i, p in enumerate(processes)]
  monkeypatch.setattr(jax, 'devices', lambda: devices)
  monkeypatch.setattr(jax, 'process_count', lambda: max(processes) + 1)
  monkeypatch.setattr(jax, 'local_device_count', lambda: local)
  monkeypatch.setattr(sharding, 'Mesh', lambda devices, names: devices)


def test_devices_that_are_interleaved_across_processes(monkeypatch):
  """Rows of a batch are contiguous by process, whatever order the hardware has."""
  fake_devices(monkeypatch, [0, 1, 0, 1], 2)
  mesh = make_mesh(MeshConfig(space=2))
  assert [[device.id for device in row] for row in mesh] == [[0, 2], [1, 3]]


def test_an_image_is_split_within_processes_or_across_whole_ones(monkeypatch):
  fake_devices(monkeypatch, [0, 0, 0, 1, 1, 1], 3)
  assert make_mesh(MeshConfig(space=6)).shape == (1, 6)
  assert make_mesh(MeshConfig(space=3)).shape == (2, 3)
  with pytest.raises(SegjaxError, match='space=2 must divide the 3 devices of a process or be a m'):
    make_mesh(MeshConfig(space=2))


@pytest.mark.parametrize('rank', [0, 1])
def test_rows_that_processes_share_are_put_where_they_belong(rank):
  """As if this process had read the second half of the batch, of which it holds all devices."""
  mesh = make_mesh(MeshConfig(1, 4))
  image = np.arange(2 * 8 * 3).reshape(2, 8, 3)
  place = jax.sharding.NamedSharding(mesh, P('data', 'space'))
  put = sharding._put_rows(image, place, Part(0, 1, rank=rank, sharers=2))
  assert {s.data.shape for s in put.addressable_shards} == {(2, 2, 3)}
  np.testing.assert_array_equal(put, image)


@pytest.mark.parametrize('length', [0, 2_048, 5_000])
def test_lists_of_all_processes_come_in_their_order(monkeypatch, length):
  """In one message if they are short, else in a second one of the longest."""
  parts = [{'x': [{'a': 1}, None]}, {'x': ['a longer text', [2.5, 'é'], 'l' * length]}]
  monkeypatch.setattr(sharding.jax, 'process_count', lambda: 2)
  encoded = [np.frombuffer(json.dumps(part).encode(), np.uint8) for part in parts]
  size = max(map(len, encoded))

  def rows(bytes_of_each, room):
    head = lambda e: np.array([len(e)], np.int64).view(np.uint8)
    pad = lambda e: np.pad(e[:room], (0, room - len(e[:room])))
    return np.stack([np.concatenate([head(e), pad(e)]) for e in bytes_of_each])

  rooms = [2048] if size <= 2048 else [2048, 1 << (size - 1).bit_length()]
  for part, own in zip(parts, encoded, strict=True):
    left = list(rooms)

    def allgather(value, own=own, left=left):
      """As if each process had called it with its own value."""
      room = left.pop(0)
      np.testing.assert_array_equal(value, rows([own], room)[0])
      return rows(encoded, room)

    monkeypatch.setattr(sharding.multihost_utils, 'process_allgather', allgather)
    assert sharding.gather_lists(part) == {'x': [*parts[0]['x'], *parts[1]['x']]}
    assert not left


def test_arrays_of_all_processes_travel_bit_for_bit(monkeypatch):
  """Also those that JAX would make 32 bits of, of other lengths, and empty ones."""
  own = {'f': np.array([1 / 3, np.nan, 1e300]), 'i': np.array([2**40]), 'e': np.zeros((0, 4))}
  other = {'f': np.array([2 / 3]), 'i': np.array([], np.int64), 'e': np.ones((1, 4))}
  sent = []
  monkeypatch.setattr(sharding.jax, 'process_count', lambda: 2)
  monkeypatch.setattr(sharding, '_gather_bytes', lambda x: sent.append(x) or [x])
  sharding.gather_arrays(other)
  monkeypatch.setattr(sharding, '_gather_bytes', lambda x: [x, sent[0]])
  found = sharding.gather_arrays(own)
  for got, expected in zip(found, (own, other), strict=True):
    assert got.keys() == expected.keys()
    for name, array in expected.items():
      np.testing.assert_array_equal(got[name], array)
      assert got[name].dtype == array.dtype


# --- parameters that devices share ----------------------------------------------------------------


@pytest.mark.parametrize(
  ('shape', 'devices', 'axis'),
  [
    ((3, 3, 64, 128), 4, 3),
    ((3, 3, 128, 64), 4, 2),
    ((3, 3, 64, 64), 4, 3),  # of equal ones the last
    ((1, 1, 256, 21), 4, 2),
    ((4096,), 8, 0),
    ((1020,), 4, None),  # small
    ((7, 7, 33, 35), 2, None),  # no axis divides
    ((7, 7, 33, 35), 7, 3),
    ((3, 3, 64, 128), 1, None),
    ((), 4, None),
  ],
)
def test_the_axis_that_devices_share(shape, devices, axis):
  assert fsdp_axis(shape, devices) == axis


def test_the_table_and_its_sum():
  arrays = {'kernel': np.zeros((32, 64), np.float32), 'bias': np.zeros(64, np.float32)}
  assert sharding.fsdp_table(arrays, 4) == [
    ('kernel', (32, 64), 1, 2048),
    ('bias', (64,), None, 256),
  ]
  text = sharding.describe_fsdp({'k': np.zeros((1024, 1024), np.float32), **arrays}, 4)
  assert text == (
    'config.mesh.fsdp: 4 devices share 2 of 3 arrays of parameters, 1.0 MiB of 4.0 MiB each'
  )
