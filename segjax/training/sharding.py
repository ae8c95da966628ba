"""SPMD over a named mesh: `data` partitions the batch, `space` the image height.

With `config.mesh.fsdp` the devices of `data` also share the parameters, their gradients, the state
of the optimizer and the moving average (as in ZeRO, Rajbhandari et al., arXiv 1910.02054): each
keeps a part of every array, by the rule of `fsdp_axis`, and gathers the parameters in each step.
"""

import dataclasses
import functools
import io
import json
import math
from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from segjax.tasks.base import Task, Variables
from segjax.types import Array, Batch, PositiveFloat, PositiveInt, SegjaxError

# Arrays of fewer elements stay replicated: all of a network's are a few kilobytes together, and to
# gather each would take longer than it saves.
_SMALLEST = 1024
# Of what processes exchange: bytes that go in one message, and those of its length.
_FEW_BYTES, _LENGTH = 2048, 8


@dataclasses.dataclass(frozen=True)
class MeshConfig:
  """Keys of `config.mesh`.

  Attributes:
    data: devices along the batch; -1 uses all remaining devices.
    space: devices along the image height, in semantic tasks.
    fsdp: whether the devices of `data` share the parameters, gradients, optimizer state and moving
      average instead of each keeping a copy of all; the result is the same.
    init_timeout: seconds in which all of several processes must have come.
    heartbeat: seconds after which one of several processes that does not answer counts as dead.
    hang_timeout: seconds after which a step, an evaluation or a checkpoint without progress ends
      the process; None waits for ever.
  """

  data: Literal[-1] | PositiveInt = -1
  space: PositiveInt = 1
  fsdp: bool = False
  init_timeout: PositiveInt = 300
  heartbeat: PositiveInt = 100
  hang_timeout: PositiveFloat | None = 1800.0


@dataclasses.dataclass(frozen=True)
class Part:
  """Which rows of a batch a process reads: part `index` of `count` equal, contiguous parts.

  Attributes:
    index, count: of the part.
    rank: of the process among those that read the same rows, each of which keeps a part of the
      image height; 0 where the devices of one process hold whole images.
    sharers: their number.
  """

  index: int = 0
  count: int = 1
  rank: int = 0
  sharers: int = 1


# The part of a process that is alone.
WHOLE = Part()


def make_mesh(config: MeshConfig) -> Mesh:
  """The mesh over all devices of all processes, or over the first data x space devices.

  Raises:
    SegjaxError: there are not enough devices, or they are not divisible.
  """
  # Contiguous by process, whatever order the hardware has: a process reads contiguous rows.
  devices = sorted(jax.devices(), key=lambda device: device.process_index)
  if config.data == -1 and config.space <= len(devices) and len(devices) % config.space:
    raise SegjaxError(
      f'config.mesh.space={config.space} does not divide the {len(devices)} devices: change it, or '
      'set config.mesh.data to how many times as many are used'
    )
  data = max(1, len(devices) // config.space) if config.data == -1 else config.data
  used = data * config.space
  several = jax.process_count() > 1
  if used < 1 or used > len(devices) or (several and used != len(devices)):
    raise SegjaxError(
      f'config.mesh needs {data} x {config.space} devices, but {len(devices)} are '
      'available: change config.mesh.data or config.mesh.space'
    )
  local = jax.local_device_count()
  if several and local % config.space and config.space % local:
    raise SegjaxError(
      f'config.mesh.space={config.space} must divide the {local} devices of a process or be a '
      'multiple of them: change config.mesh.space'
    )
  return Mesh(np.asarray(devices[:used]).reshape(data, config.space), ('data', 'space'))


def own_part(config: MeshConfig) -> Part:
  """The rows of a batch that this process reads, on the mesh of `make_mesh`."""
  if jax.process_count() == 1:
    return WHOLE
  sharers = max(1, config.space // jax.local_device_count())
  index, rank = divmod(jax.process_index(), sharers)
  return Part(index, jax.process_count() // sharers, rank, sharers)


def check_rows(size: int, mesh: Mesh) -> None:
  """Checks that a training batch divides over the devices along it.

  Args:
    size: `config.batch.size`.
    mesh: of devices.

  Raises:
    SegjaxError: it does not.
  """
  devices = mesh.shape['data']
  if size % devices == 0:
    return
  remedies = [f'config.batch.size to {-(-size // devices) * devices}']
  if jax.process_count() == 1:
    fewer = next(n for n in range(devices, 0, -1) if size % n == 0)
    remedies.append(f'config.mesh.data to {fewer}')
  raise SegjaxError(
    f'config.batch.size={size} does not divide over {devices} devices along the batch: set '
    f'{" or ".join(remedies)}'
  )


def describe_idle(size: int, accumulate: int, mesh: Mesh) -> str:
  """Says that the parts of an accumulated batch leave devices idle; '' if they do not.

  Args:
    size: `config.batch.size`.
    accumulate: `config.optim.accumulate`, which divides it.
    mesh: of devices.
  """
  devices, rows = mesh.shape['data'], size // accumulate
  if rows % devices == 0:
    return ''
  # One always does: the whole batch.
  better = max(n for n in range(1, accumulate) if size % n == 0 and size // n % devices == 0)
  return (
    f'config.optim.accumulate={accumulate} leaves {rows} of {size} examples in a part, which does '
    f'not divide over {devices} devices along the batch: some of them are idle; set it to {better}'
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
  part = own_part(MeshConfig(space=mesh.shape['space']))
  return {
    key: jax.tree.map(
      lambda x, key=key: _put(key, x, NamedSharding(mesh, spec[key]), part), batch[key]
    )
    for key in batch
    if key in spec
  }


def _put(key: str, value: np.ndarray, sharding: NamedSharding, part: Part) -> jax.Array:
  try:
    if part.sharers == 1:
      return jax.make_array_from_process_local_data(sharding, value)
    return _put_rows(value, sharding, part)
  except ValueError as e:
    shape = dict(sharding.mesh.shape)
    raise SegjaxError(
      f"the batch's {key} of shape {value.shape} does not divide over the mesh {shape}: set "
      'config.batch.size to a multiple of config.mesh.data, and the image height to one of '
      'config.mesh.space'
    ) from e


def _put_rows(value: np.ndarray, sharding: NamedSharding, part: Part) -> jax.Array:
  """The rows `value` of `part` as part of a global array, of which devices take what is theirs."""
  count = len(value)

  def own(index: tuple[slice, ...]) -> np.ndarray:
    start, stop, _ = index[0].indices(count * part.count)
    first = part.index * count
    return value[(slice(start - first, stop - first), *index[1:])]

  shape = (count * part.count, *value.shape[1:])
  return jax.make_array_from_callback(shape, sharding, own)


def put(tree: Any, shardings: Any) -> Any:
  """Puts NumPy arrays, equal on all processes, on the devices as `shardings` has them."""

  def put_one(x: Any, sharding: NamedSharding) -> jax.Array:
    x = np.asarray(x)
    return jax.make_array_from_callback(x.shape, sharding, lambda index: x[index])

  return jax.tree.map(put_one, tree, shardings)


def put_replicated(tree: Any, mesh: Mesh) -> Any:
  """Replicates NumPy arrays, equal on all processes, to all devices."""
  return put(tree, jax.tree.map(lambda _: replicated(mesh), tree))


def to_host(tree: Any) -> Any:
  """Gathers the arrays of `tree` as NumPy arrays on every process."""
  if jax.process_count() == 1:
    return jax.device_get(tree)
  return jax.tree.map(_gather, tree)


def own_rows(tree: Any, part: Part) -> Any:
  """This process's rows of arrays [B, …] as NumPy arrays.

  Nothing travels where a process holds them: in arrays that are partitioned as by `by_rows`.
  """
  if jax.process_count() == 1:
    return jax.device_get(tree)
  return jax.tree.map(functools.partial(_own_rows, part=part), tree)


def by_rows(mesh: Mesh) -> NamedSharding | None:
  """The sharding of predictions for `own_rows`; None where images are split."""
  return NamedSharding(mesh, PartitionSpec('data')) if mesh.shape['space'] == 1 else None


def _own_rows(x: jax.Array, part: Part) -> np.ndarray:
  rows = isinstance(x.sharding, NamedSharding) and by_rows(x.sharding.mesh)
  if rows and x.sharding.is_equivalent_to(rows, x.ndim):
    parts = {shard.index[0].start or 0: shard.data for shard in x.addressable_shards}
    return np.concatenate([np.asarray(parts[start]) for start in sorted(parts)])
  count = len(x) // part.count
  return _gather(x)[part.index * count : (part.index + 1) * count]


def gather_lists(local: Mapping[str, list[Any]]) -> dict[str, list[Any]]:
  """Concatenates lists of JSON values over all processes, on every process."""
  if jax.process_count() == 1:
    return dict(local)
  parts = [json.loads(part) for part in _gather_bytes(json.dumps(local).encode())]
  return {key: [value for part in parts for value in part[key]] for key in local}


def gather_arrays(local: Mapping[str, np.ndarray]) -> list[Mapping[str, np.ndarray]]:
  """The arrays of each process by name, bit for bit, on every process; shapes may differ."""
  if jax.process_count() == 1:
    return [local]
  file = io.BytesIO()
  np.savez(file, **local)
  parts = (np.load(io.BytesIO(part)) for part in _gather_bytes(file.getvalue()))
  return [dict(part) for part in parts]


def _gather_bytes(local: bytes) -> list[bytes]:
  """The bytes of each process, on every process."""
  content = np.frombuffer(local, np.uint8)
  # At once if they are few: each process sends its length, and as much of its bytes as is read.
  rows = _gather_padded(content[:_FEW_BYTES], content.size, _FEW_BYTES)
  lengths = [int(row[:_LENGTH].view(np.int64)[0]) for row in rows]
  if max(lengths) > _FEW_BYTES:
    # Of few sizes, since each is a program that is compiled.
    rows = _gather_padded(content, content.size, 1 << (max(lengths) - 1).bit_length())
  return [
    row[_LENGTH : _LENGTH + length].tobytes() for row, length in zip(rows, lengths, strict=True)
  ]


def _gather_padded(content: np.ndarray, length: int, size: int) -> np.ndarray:
  """u8[processes, 8 + size]: of each process `length`, its bytes and padding."""
  head = np.array([length], np.int64).view(np.uint8)
  padding = np.zeros(size - content.size, np.uint8)
  return multihost_utils.process_allgather(np.concatenate([head, content, padding]))


def _gather(x: jax.Array) -> np.ndarray:
  if x.is_fully_replicated:
    return np.asarray(x.addressable_data(0))
  return multihost_utils.process_allgather(x, tiled=True)


# --- parameters that devices share ----------------------------------------------------------------


def fsdp_axis(shape: tuple[int, ...], devices: int) -> int | None:
  """The axis along which `config.mesh.fsdp` shards an array: the largest that `devices` divides.

  Of equal ones the last, the output channels of a convolution. None, and the array is replicated,
  if no axis divides or the array has fewer than 1,024 elements.
  """
  dividing = [(size, axis) for axis, size in enumerate(shape) if size % devices == 0]
  if devices == 1 or math.prod(shape) < _SMALLEST or not dividing:
    return None
  return max(dividing)[1]


def fsdp_sharding(shape: tuple[int, ...], mesh: Mesh) -> NamedSharding:
  """The sharding of an array by `fsdp_axis` over `data`."""
  axis = fsdp_axis(shape, mesh.shape['data'])
  spec = PartitionSpec() if axis is None else PartitionSpec(*[None] * axis, 'data')
  return NamedSharding(mesh, spec)


def state_shardings(state: Any, mesh: Mesh, *, fsdp: bool) -> Any:
  """The shardings of a `TrainState`: with `fsdp` of all that has the shapes of the parameters.

  Args:
    state: arrays or shapes.
    mesh: of the run.
    fsdp: `config.mesh.fsdp`.
  """
  whole = jax.tree.map(lambda _: replicated(mesh), state)
  if not fsdp:
    return whole
  names = ('params', 'opt_state', 'ema')
  shared = {
    name: jax.tree.map(lambda x: fsdp_sharding(x.shape, mesh), getattr(state, name))
    for name in names
  }
  return dataclasses.replace(whole, **shared)


def placed(shapes: Any, shardings: Any) -> Any:
  """The shapes of arrays that are on the devices as `shardings` has them."""
  place = lambda x, sharding: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)
  return jax.tree.map(place, shapes, shardings)


def on_mesh(function: Callable[..., Any], mesh: Mesh) -> Callable[..., Any]:
  """`function`, compiled, for whose trace `mesh` is known, see `segjax.ops.by_image`."""

  @functools.wraps(function)
  def call(*args: Any) -> Any:
    with jax.set_mesh(mesh):
      return function(*args)

  return call


def gathered(task: Task, mesh: Mesh) -> Task:
  """The task for parameters that are sharded by `fsdp_sharding`.

  Its functions gather them where the network starts; gradients come back sharded.
  """

  def whole(variables: Variables) -> Variables:
    params = jax.tree.map(functools.partial(_gather_params, mesh=mesh), variables['params'])
    return {**variables, 'params': params}

  def forward(variables: Variables, batch: Batch, **options: Any) -> tuple[Any, Variables]:
    return task.forward(whole(variables), batch, **options)

  def batch_statistics(variables: Variables, batch: Batch, key: Array) -> Variables:
    return task.batch_statistics(whole(variables), batch, key)

  return dataclasses.replace(
    task,
    forward=forward,
    batch_statistics=task.batch_statistics and batch_statistics,
  )


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def _gather_params(x: Array, mesh: Mesh) -> Array:
  """The whole array on each device; its gradient is summed over the devices into their parts."""
  return jax.lax.with_sharding_constraint(x, replicated(mesh))


_gather_params.defvjp(
  lambda x, mesh: (_gather_params(x, mesh), None),
  lambda mesh, _, g: (jax.lax.with_sharding_constraint(g, fsdp_sharding(g.shape, mesh)),),
)


class Row(NamedTuple):
  """An array in the table of `fsdp_table`.

  Attributes:
    name: of the array.
    shape: of the whole array.
    axis: along which it is sharded, or None.
    own_bytes: on each device.
  """

  name: str
  shape: tuple[int, ...]
  axis: int | None
  own_bytes: int


def fsdp_table(arrays: Mapping[str, Any], devices: int) -> list[Row]:
  """Which axis of each array `config.mesh.fsdp` shards.

  Args:
    arrays: arrays or shapes by name.
    devices: along `data`.
  """
  rows = []
  for name, x in arrays.items():
    axis = fsdp_axis(x.shape, devices)
    size = math.prod(x.shape) * x.dtype.itemsize
    rows.append(Row(name, x.shape, axis, size if axis is None else size // devices))
  return rows


def describe_fsdp(arrays: Mapping[str, Any], devices: int) -> str:
  """A sentence on the parameters, `arrays`, that `devices` share."""
  rows = fsdp_table(arrays, devices)
  whole = sum(math.prod(x.shape) * x.dtype.itemsize for x in arrays.values())
  own, shared = sum(row.own_bytes for row in rows), sum(row.axis is not None for row in rows)
  return (
    f'config.mesh.fsdp: {devices} devices share {shared} of {len(rows)} arrays of parameters, '
    f'{own / 2**20:.1f} MiB of {whole / 2**20:.1f} MiB each'
  )
