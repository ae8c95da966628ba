"""SPMD over a named mesh: `data` partitions the batch, `space` the image height."""

import dataclasses
import json
from collections.abc import Mapping
from typing import Any, Literal

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from segjax.types import PositiveFloat, PositiveInt, SegjaxError


@dataclasses.dataclass(frozen=True)
class MeshConfig:
  """Keys of `config.mesh`.

  Attributes:
    data: devices along the batch; -1 uses all remaining devices.
    space: devices along the image height.
    init_timeout: seconds in which all of several processes must have come.
    heartbeat: seconds after which one of several processes that does not answer counts as dead.
    hang_timeout: seconds after which a step, an evaluation or a checkpoint without progress ends
      the process; None waits for ever.
  """

  data: Literal[-1] | PositiveInt = -1
  space: PositiveInt = 1
  init_timeout: PositiveInt = 300
  heartbeat: PositiveInt = 100
  hang_timeout: PositiveFloat | None = 1800.0


def make_mesh(config: MeshConfig) -> Mesh:
  """The mesh over all devices of all processes, or over the first data x space devices.

  Raises:
    SegjaxError: there are not enough devices, or they are not divisible.
  """
  devices = jax.devices()
  data = len(devices) // config.space if config.data == -1 else config.data
  used = data * config.space
  several = jax.process_count() > 1
  if used < 1 or used > len(devices) or (several and used != len(devices)):
    raise SegjaxError(
      f'config.mesh needs {config.data} x {config.space} devices, but {len(devices)} are '
      'available: change config.mesh.data or config.mesh.space'
    )
  if several and jax.local_device_count() % config.space:
    raise SegjaxError(
      f'config.mesh.space={config.space} must divide the {jax.local_device_count()} devices of one '
      'process: an image cannot be split across processes'
    )
  return Mesh(np.asarray(devices[:used]).reshape(data, config.space), ('data', 'space'))


def check_rows(size: int, accumulate: int, mesh: Mesh) -> None:
  """Checks that a training batch, and each part of an accumulated one, divides over the devices.

  Args:
    size: `config.batch.size`.
    accumulate: `config.optim.accumulate`, which divides it.
    mesh: of devices.

  Raises:
    SegjaxError: it does not.
  """
  devices, rows = mesh.shape['data'], size // accumulate
  if rows % devices == 0:
    return
  parts = [n for n in range(1, accumulate) if size % n == 0 and size // n % devices == 0]
  step = devices * accumulate
  remedies = [
    f'config.batch.size to {-(-size // step) * step}',
    *(f'config.optim.accumulate to {n}' for n in parts[-1:]),
  ]
  if jax.process_count() == 1:
    fewer = next(n for n in range(devices, 0, -1) if rows % n == 0)
    remedies.append(f'config.mesh.data to {fewer}')
  part = f', {rows} in each of {accumulate} parts (config.optim.accumulate),' * (accumulate > 1)
  raise SegjaxError(
    f'config.batch.size={size}{part} does not divide over {devices} devices along the batch: set '
    f'{" or ".join(remedies)}'
  )


def check_heights(shapes: Mapping[tuple[int, int], str], mesh: Mesh, *, margin: int = 0) -> None:
  """Checks that images divide over the devices along their height.

  Args:
    shapes: (height, width) of the images of batches; of each, the name of an example.
    mesh: of devices.
    margin: pixels that are added on each side.

  Raises:
    SegjaxError: one does not.
  """
  space = mesh.shape['space']
  for (height, width), name in shapes.items():
    if height % space or (height + 2 * margin) % space:
      wide = f' and its margins of {margin}' * (margin > 0)
      raise SegjaxError(
        f'the height of {name}, {height} of {height}x{width} pixels{wide}, does not divide over '
        f'config.mesh.space={space} devices: set config.data.size to a height that does, or '
        'config.mesh.space to 1'
      )


def replicated(mesh: Mesh) -> NamedSharding:
  """Full replication, for parameters, optimizer state and metrics."""
  return NamedSharding(mesh, PartitionSpec())


def put_batch(
  batch: Mapping[str, np.ndarray], mesh: Mesh, spec: Mapping[str, PartitionSpec]
) -> dict[str, jax.Array]:
  """Puts this process's part of a batch on the mesh as global arrays.

  Args:
    batch: NumPy arrays, or trees of them, by key.
    mesh: target.
    spec: partitioning of all arrays of a key. Keys without a spec are dropped.

  Raises:
    SegjaxError: the batch or the image height is not divisible by the mesh.
  """
  return {
    key: jax.tree.map(lambda x, key=key: _put(key, x, NamedSharding(mesh, spec[key])), batch[key])
    for key in batch
    if key in spec
  }


def _put(key: str, value: np.ndarray, sharding: NamedSharding) -> jax.Array:
  try:
    return jax.make_array_from_process_local_data(sharding, value)
  except ValueError as e:
    shape = dict(sharding.mesh.shape)
    raise SegjaxError(
      f"the batch's {key} of shape {value.shape} does not divide over the mesh {shape}: set "
      'config.batch.size to a multiple of config.mesh.data, and the image height to one of '
      'config.mesh.space'
    ) from e


def put_replicated(tree: Any, mesh: Mesh) -> Any:
  """Replicates NumPy arrays, equal on all processes, to all devices."""
  put = lambda x: jax.make_array_from_callback(np.shape(x), replicated(mesh), lambda i: x[i])
  return jax.tree.map(lambda x: put(np.asarray(x)), tree)


def to_host(tree: Any) -> Any:
  """Gathers the arrays of `tree` as NumPy arrays on every process."""
  if jax.process_count() == 1:
    return jax.device_get(tree)
  return jax.tree.map(_gather, tree)


def gather_lists(local: Mapping[str, list[Any]]) -> dict[str, list[Any]]:
  """Concatenates lists of JSON values over all processes, on every process."""
  if jax.process_count() == 1:
    return dict(local)
  encoded = np.frombuffer(json.dumps(local).encode(), np.uint8)
  lengths = multihost_utils.process_allgather(np.int32(encoded.size))
  padded = np.pad(encoded, (0, int(lengths.max()) - encoded.size))
  rows = multihost_utils.process_allgather(padded)
  parts = [
    json.loads(row[:length].tobytes()) for row, length in zip(rows, lengths.tolist(), strict=True)
  ]
  return {key: [value for part in parts for value in part[key]] for key in local}


def _gather(x: jax.Array) -> np.ndarray:
  if x.is_fully_replicated:
    return np.asarray(x.addressable_data(0))
  return multihost_utils.process_allgather(x, tiled=True)
