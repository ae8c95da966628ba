"""Several processes: how they start together, and how they end when one of them is gone.

JAX's coordination service connects them. What is added is how a process ends when another one did
not come, has failed, died or hangs: with a sentence that names it and its host, and with an exit
code that says which of these it was, in place of a C++ stack. For that each process meets the
others regularly at a barrier of the service, whose error names who is missing.
"""

import contextlib
import ctypes
import functools
import json
import os
import re
import socket
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NoReturn

import jax
from jax._src import distributed as jax_distributed

from segjax.training.sharding import MeshConfig
from segjax.types import LostProcessError, MissingProcessError, SegjaxError

# Barriers, and keys of the service's store: the host of each process, and the first failure.
_ALIVE, _END = 'segjax/alive', 'segjax/end'
_HOSTS, _FAILED = 'segjax/hosts', 'segjax/failed'
# Times that the processes meet within `config.mesh.heartbeat`.
_MEETINGS = 20
# JAX's own heartbeat is this many times slower: where it is missed, JAX names nobody.
_SLOWER = 3
# Seconds that a process has to say itself what another one has just said, which all may meet.
_GRACE = 2.0
# Seconds that the first process, which holds the service, stays after an error: others may ask.
_LINGER = 3.0
# Milliseconds without end.
_FOREVER = 2**31 - 1
# What a barrier's error says of the processes that did not come: their numbers, one a line.
_MISSING = re.compile(r'timed out task names:\s*((?:\S*\d+\s*\n)+)')
# One task on each node, in `SLURM_STEP_TASKS_PER_NODE`.
_ONE_TASK = re.compile(r'1(\(x\d+\))?')
_AGAIN = 'run the same command again in all processes, which resumes from the last checkpoint'


# --- the start ------------------------------------------------------------------------------------


def start(how: str, config: MeshConfig) -> None:
  """Starts JAX in several processes, and waits until all have come.

  Args:
    how: 'auto', or 'HOST:PORT,COUNT,INDEX': the coordinator's address, the number of processes and
      the index of this one.
    config: its timeouts.

  Raises:
    SegjaxError: `how` has another form, or there is no cluster that JAX detects.
    MissingProcessError: a process did not come in time.
  """
  arguments = {'local_device_ids': devices_of_node()} if how == 'auto' else parse(how)
  since = time.monotonic()
  with _reporting(config), _captured() as printed:
    try:
      jax.distributed.initialize(
        **arguments,
        initialization_timeout=config.init_timeout,
        heartbeat_timeout_seconds=_SLOWER * config.heartbeat,
      )
    except ValueError as e:
      raise SegjaxError(
        f'--distributed: JAX detects no cluster ({e}): give --distributed=HOST:PORT,COUNT,INDEX'
      ) from e
    except RuntimeError as e:
      _forget()
      raise _start_error(str(e), printed(), time.monotonic() - since, config) from e
  try:
    _Partners.current = _Partners(jax_distributed.global_state, config)
  except RuntimeError as e:
    absent = missing(str(e)) or [0]
    raise MissingProcessError(
      f'{_name(absent)} ended as soon as it had come: see what is printed there'
    ) from e


def parse(how: str) -> dict[str, Any]:
  """The arguments of `jax.distributed.initialize` in 'HOST:PORT,COUNT,INDEX'.

  Raises:
    SegjaxError: it has another form.
  """
  try:
    address, count, index = how.split(',')
    count, index = int(count), int(index)
    if not (re.fullmatch(r'.+:\d+', address) and 0 <= index < count):
      raise ValueError
  except ValueError:
    raise SegjaxError(
      f'--distributed={how} must be HOST:PORT,COUNT,INDEX with an INDEX from 0 to COUNT - 1, such '
      'as 10.0.0.1:1234,4,0'
    ) from None
  return {'coordinator_address': address, 'num_processes': count, 'process_id': index}


def devices_of_node() -> list[int] | None:
  """The GPUs of the only Slurm task on a node; None where JAX's choice is right.

  JAX gives each task of Slurm one GPU, by its number on the node.
  """
  alone = _ONE_TASK.fullmatch(os.environ.get('SLURM_STEP_TASKS_PER_NODE', ''))
  count = os.environ.get('SLURM_GPUS_ON_NODE', '')
  return list(range(int(count))) if alone and count.isdecimal() else None


def missing(text: str) -> list[int]:
  """The processes that a barrier's error names."""
  found = _MISSING.search(text)
  return [int(re.findall(r'\d+', line)[-1]) for line in found[1].split()] if found else []


def _start_error(error: str, printed: str, seconds: float, config: MeshConfig) -> SegjaxError:
  """What a failure to connect means, which C++ has printed on the first process alone."""
  state = jax_distributed.global_state
  address, index, count = state.coordinator_address, state.process_id, state.num_processes
  if address is None:
    return SegjaxError(
      '--distributed: JAX was in use before the processes were connected: a config file must not '
      'compute with it'
    )
  waited = f'within {config.init_timeout} s (config.mesh.init_timeout)'
  if absent := missing(printed):
    return MissingProcessError(
      f'{_name(absent)} of {count} did not come {waited}: see what is printed there, and run the '
      'same command again in all processes'
    )
  if index and not _answers(address):
    return MissingProcessError(
      f'process 0 at {address} did not come {waited}: start it there, and check the address and '
      'the firewall'
    )
  if seconds < config.init_timeout:
    return SegjaxError(
      f'process {index} of {count} cannot connect at {address} ({error.splitlines()[0]}): check '
      'that no other one has this index or this port'
    )
  return MissingProcessError(
    f'not all of {count} processes came {waited}: the output of process 0 at {address} names them'
  )


def _forget() -> None:
  """Leaves JAX as if it had not been started; what failed to connect cannot be shut down."""
  state = jax_distributed.global_state
  state.client = state.service = state.preemption_sync_manager = None


def _answers(address: str) -> bool:
  """Whether something listens at an address."""
  host, _, port = address.rpartition(':')
  with contextlib.suppress(OSError), socket.create_connection((host.strip('[]'), int(port)), 5):
    return True
  return False


@contextlib.contextmanager
def _captured() -> Iterator[Callable[[], str]]:
  """Captures what C++ prints on standard error; shows it, unless there is an error."""
  sys.stderr.flush()
  with tempfile.TemporaryFile() as file:
    stderr = os.dup(2)
    os.dup2(file.fileno(), 2)

    def printed() -> str:
      sys.stderr.flush()
      file.seek(0)
      return file.read().decode(errors='replace')

    try:
      yield printed
      os.write(stderr, printed().encode())
    finally:
      os.dup2(stderr, 2)
      os.close(stderr)


@contextlib.contextmanager
def _reporting(config: MeshConfig) -> Iterator[None]:
  """JAX's client, made inside the block, reports an error of the service, and does not abort.

  jaxlib has an argument for it, which JAX does not use. Up to 0.12 it cannot translate the error,
  so that the call of a Python function fails: with a RuntimeError in `connect`, and later with
  `std::terminate`, which takes a function as well.
  """
  module = jax_distributed._jax
  client, service = module.get_distributed_runtime_client, module.get_distributed_runtime_service
  module.get_distributed_runtime_client = functools.partial(
    client, missed_heartbeat_callback=lambda status: _service_lost()
  )
  module.get_distributed_runtime_service = functools.partial(
    service, cluster_register_timeout=config.init_timeout
  )
  with contextlib.suppress(OSError, AttributeError):  # another C++ library
    ctypes.CDLL('libstdc++.so.6')._ZSt13set_terminatePFvvE(_service_lost_in_c)
  try:
    yield
  finally:
    module.get_distributed_runtime_client = client
    module.get_distributed_runtime_service = service


# --- the end --------------------------------------------------------------------------------------


class _Partners:
  """Watches over the other processes, in two threads.

  Attributes:
    current: of this process, while there are others.
    failure: what another process has said before it ended; '' before.
    code: with which this process ends if another one has.
  """

  current: '_Partners | None' = None

  def __init__(self, state: Any, config: MeshConfig):
    self._client, self._index = state.client, state.process_id
    self._address, self._heartbeat = state.coordinator_address, config.heartbeat
    self._closed, self._ending = threading.Event(), threading.Lock()
    self.failure, self.code = '', LostProcessError.exit_code
    self._client.key_value_set(f'{_HOSTS}/{self._index}', socket.gethostname())
    self._client.wait_at_barrier(_HOSTS, 1000 * config.init_timeout)
    hosts = self._client.key_value_dir_get(f'{_HOSTS}/')
    self._hosts = {int(key.rpartition('/')[2]): host for key, host in hosts}
    for watch in (self._meet, self._listen):
      threading.Thread(target=watch, name='segjax_partners', daemon=True).start()

  def _meet(self) -> None:
    while not self._closed.wait(self._heartbeat / _MEETINGS):
      try:
        self._client.wait_at_barrier(_ALIVE, 1000 * self._heartbeat)
      except RuntimeError as e:
        if self._closed.wait(_GRACE):
          return
        if absent := missing(str(e)):
          self.end(
            f'{_name(absent, self._hosts)} did not answer for {self._heartbeat} s '
            '(config.mesh.heartbeat)'
          )
        self.service_lost()

  def _listen(self) -> None:
    try:
      said = json.loads(self._client.blocking_key_value_get(_FAILED, _FOREVER))
    except RuntimeError:
      return  # the run has ended, or `_meet` says why
    if said['index'] != self._index:
      name = _name([said['index']], self._hosts)
      self.failure = f'{name} ended with status {said["code"]} ({said["sentence"]})'
      if said['repeats']:  # all end with one code, of which a cluster makes what it makes of it
        self.code = said['code']
      if not self._closed.wait(_GRACE):
        self.end(self.failure)

  def service_lost(self) -> NoReturn:
    """Ends this process, as the coordination service has reported an error or is gone."""
    gone = self._index > 0 and not _answers(self._address)
    said = 'does not answer any more' if gone else 'has reported an error, see above,'
    self.end(self.failure or f'{_name([0], self._hosts)}, which coordinates all, {said}')

  def end(self, sentence: str) -> NoReturn:
    """Ends this process with what has happened to another one; the first call counts."""
    with self._ending:
      fix = 'fix that, then ' if self.code != LostProcessError.exit_code else ''
      _exit(self.code, f'{sentence}: {fix}{_AGAIN}')

  def tell(self, code: int, sentence: str, *, repeats: bool) -> None:
    """Tells the others that this process fails, which from here on ends with its own code.

    Args:
      code: its exit code.
      sentence: of the error.
      repeats: whether the error comes again where the run is started again.
    """
    self._closed.set()
    said = {'index': self._index, 'code': code, 'sentence': sentence, 'repeats': repeats}
    with contextlib.suppress(RuntimeError):  # another one was faster
      self._client.key_value_set(_FAILED, json.dumps(said))
    if self._index == 0:
      time.sleep(_LINGER)

  def wait(self) -> None:
    """Waits up to the time in which another process is found dead, and this one is ended."""
    time.sleep((1 + 2 / _MEETINGS) * self._heartbeat + 2 * _GRACE)

  def close(self) -> None:
    """Waits until all processes are done, and leaves them."""
    with contextlib.suppress(RuntimeError):  # here all is done
      self._client.wait_at_barrier(_END, _FOREVER)
    self._closed.set()
    with contextlib.suppress(RuntimeError):
      jax.distributed.shutdown()


def run(command: Callable[[], tuple[int, str]]) -> int:
  """Runs a command that calls `start`, and tells the other processes if it fails.

  Where it fails, this process ends here: JAX would wait for the others.

  Args:
    command: returns its exit code, and the sentence of an error, which is printed; '' if it ended
      normally, or saved and stopped, which all processes do together.

  Returns:
    The exit code.
  """
  device_failed = False
  try:
    code, sentence = command()
  except Exception as error:
    if _Partners.current is None:
      raise
    runtime = isinstance(error, jax.errors.JaxRuntimeError)
    device_failed = runtime and 'RESOURCE_EXHAUSTED' not in str(error)
    if device_failed:  # or the network; it may have failed because of another process
      _Partners.current.wait()
    traceback.print_exc()
    code, sentence = 1, f'{type(error).__name__}: {error}'.splitlines()[0]
  if _Partners.current is None:  # `start` has failed
    if jax.distributed.is_initialized():
      _exit(code)
    return code
  if sentence:
    repeats = code in (1, SegjaxError.exit_code) and not device_failed
    _Partners.current.tell(code, sentence, repeats=repeats)
    _exit(code)
  _Partners.current.close()
  _Partners.current = None
  return code


def _name(indices: Sequence[int], hosts: Mapping[int, str] | None = None) -> str:
  """Such as 'process 1 on node7' or 'processes 1, 2'."""
  named = [f'{i} on {hosts[i]}' if hosts and i in hosts else str(i) for i in indices]
  return f'process{"es" * (len(named) > 1)} {", ".join(named)}'


def _service_lost() -> None:
  if _Partners.current is not None:
    _Partners.current.service_lost()


@ctypes.CFUNCTYPE(None)
def _service_lost_in_c() -> None:
  _service_lost()
  traceback.print_stack()
  _exit(1, 'a library in C++ has failed')


def _exit(code: int, sentence: str = '') -> NoReturn:
  """Ends the process at once, without JAX's wait for the others."""
  if sentence:
    print(f'segjax: {sentence}', file=sys.stderr, flush=True)
  sys.stdout.flush()
  sys.stderr.flush()
  os._exit(code)
