"""What a process says of the others; `tests/cli/partners_test.py` really takes them away."""

import json
import threading
import types

import jax
import pytest

from segjax.training import distributed
from segjax.training.sharding import MeshConfig
from segjax.types import HangingError, LostProcessError, SegjaxError

BARRIER = """DEADLINE_EXCEEDED: Barrier timed out. Id: segjax/alive::3.
# of tasks that reached the barrier: 2/12.
The first task at the barrier: 0. Some timed out task names:
{}
RPC: /xla.coordination.CoordinationService/Barrier"""


@pytest.mark.parametrize(
  ('names', 'indices'),
  [('1\n', [1]), ('11\n2\n', [11, 2]), ('/job:jax_worker/replica:0/task:10\n', [10])],
)
def test_a_barrier_names_who_is_missing(names, indices):
  assert distributed.missing(BARRIER.format(names)) == indices


def test_another_error_names_nobody():
  assert distributed.missing('UNAVAILABLE: Socket closed') == []


def test_how_to_start():
  assert distributed.parse('10.0.0.1:1234,4,3') == {
    'coordinator_address': '10.0.0.1:1234',
    'num_processes': 4,
    'process_id': 3,
  }


@pytest.mark.parametrize('how', ['here', 'h:1,2', 'h:1,2,2', 'h:1,2,-1', 'h,2,0', 'h:1,a,0'])
def test_how_to_start_has_one_form(how):
  with pytest.raises(SegjaxError, match=f'--distributed={how} must be HOST:PORT,COUNT,INDEX'):
    distributed.start(how, MeshConfig())


@pytest.mark.parametrize(
  ('tasks', 'gpus', 'devices'),
  [
    ('1', '8', list(range(8))),
    ('1(x4)', '4', list(range(4))),
    ('8', '8', None),
    ('8(x2)', '8', None),
    ('1(x2),2', '8', None),
    ('1', '', None),
  ],
)
def test_the_only_task_on_a_node_has_all_its_gpus(monkeypatch, tasks, gpus, devices):
  monkeypatch.setenv('SLURM_STEP_TASKS_PER_NODE', tasks)
  monkeypatch.setenv('SLURM_GPUS_ON_NODE', gpus)
  assert distributed.devices_of_node() == devices


def test_without_slurm_jax_chooses(monkeypatch):
  monkeypatch.delenv('SLURM_STEP_TASKS_PER_NODE', raising=False)
  assert distributed.devices_of_node() is None


def test_what_jax_says_before_it_connects_is_one_sentence(monkeypatch):
  jax.devices()
  with pytest.raises(SegjaxError, match='JAX was in use before the processes were connected'):
    distributed.start('h:1,2,0', MeshConfig())

  def initialize(**arguments):
    raise ValueError('coordinator_address should be defined.')

  monkeypatch.setattr(distributed.jax.distributed, 'initialize', initialize)
  with pytest.raises(SegjaxError, match='JAX detects no cluster .* give --distributed=HOST:PORT'):
    distributed.start('auto', MeshConfig())


def test_a_command_alone_has_its_own_exit_code():
  assert distributed.run(lambda: (2, 'wrong')) == 2
  with pytest.raises(KeyError):
    distributed.run(lambda: {}['x'])


class Client:
  """JAX's client in process 0 of two, where process 1 fails first, with an exit code."""

  def __init__(self, code, repeats):
    self.failed, self.code, self.repeats = threading.Event(), code, repeats

  def key_value_set(self, key, value):
    if key == distributed._FAILED:
      self.failed.set()
      raise RuntimeError('ALREADY_EXISTS')

  def key_value_dir_get(self, prefix):
    return [(f'{prefix}{i}', 'here') for i in (0, 1)]

  def wait_at_barrier(self, name, milliseconds):
    pass

  def blocking_key_value_get(self, key, milliseconds):
    self.failed.wait()
    said = {'index': 1, 'code': self.code, 'sentence': 'theirs', 'repeats': self.repeats}
    return json.dumps(said)


@pytest.mark.parametrize(
  ('code', 'repeats', 'fails', 'expected'),
  [
    (1, True, True, []),
    (1, True, False, [1]),
    (1, False, False, [LostProcessError.exit_code]),
    (SegjaxError.exit_code, True, False, [SegjaxError.exit_code]),
    (HangingError.exit_code, False, False, [LostProcessError.exit_code]),
  ],
)
def test_a_process_that_fails_itself_is_not_ended_by_another(
  code, repeats, fails, expected, monkeypatch
):
  """So that it has its own exit code.

  One that does not fail has that of an error that comes again, else that of a lost process.
  """
  ended, codes, client = threading.Event(), [], Client(code, repeats)
  monkeypatch.setattr(distributed, '_GRACE', 0.1)
  monkeypatch.setattr(distributed, '_LINGER', 1.0)
  monkeypatch.setattr(distributed, '_exit', lambda code, _: (codes.append(code), ended.set()))
  state = types.SimpleNamespace(client=client, process_id=0, coordinator_address='h:1')
  partners = distributed._Partners(state, MeshConfig())
  if fails:
    partners.tell(2, 'ours', repeats=True)  # while the thread that listens could end the process
  else:
    client.failed.set()
    assert ended.wait(60)
  partners._closed.set()
  assert codes == expected
