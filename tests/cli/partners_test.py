"""Two processes, of which one is gone: how the other one ends, and what is left."""

import json
import re
import signal
import socket
import sys

import cv2
import numpy as np
import pytest
from commands import output, read_log, run, train_args
from processes import spawn, start_two

pytestmark = pytest.mark.slow

LONG = ['--config.train.eval_every=4000', '--config.train.checkpoint_every=4000']


def wait_for_step(process, step):
  for line in process.stderr:
    if re.match(rf'step {step}/', line):
      return
  raise AssertionError(f'ended before step {step}')


def last_line(process, code):
  """The sentence with which a process ended, which has no C++ stack before it."""
  err = process.communicate(timeout=240)[1]
  assert process.returncode == code, err
  assert 'Check failure stack trace' not in err and 'Traceback' not in err, err
  return err.strip().splitlines()[-1]


@pytest.mark.parametrize('gone', [0, 1])
def test_a_killed_process_is_named(gone, tmp_path, cache):
  args = train_args(tmp_path / 'run', *LONG, '--config.mesh.heartbeat=10', steps=4000)
  processes = start_two(args, cache)
  wait_for_step(processes[0], 2)
  processes[gone].send_signal(signal.SIGKILL)
  sentence = last_line(processes[1 - gone], 75)
  assert sentence.startswith(f'segjax: process {gone} on {socket.gethostname()}')
  assert sentence.endswith(
    'run the same command again in all processes, which resumes from the last checkpoint'
  )
  processes[gone].communicate()


@pytest.mark.parametrize(('index', 'missing'), [(0, 'process 1 of 2'), (1, 'process 0 at 127')])
def test_a_process_that_never_came_is_named(index, missing, tmp_path, cache):
  with socket.socket() as s:
    s.bind(('127.0.0.1', 0))
    port = s.getsockname()[1]
  args = train_args(tmp_path / 'run', '--config.mesh.init_timeout=3')
  process = spawn([*args, f'--distributed=127.0.0.1:{port},2,{index}'], cache)
  sentence = last_line(process, 69)
  assert sentence.startswith(f'segjax: {missing}')
  assert 'did not come within 3 s (config.mesh.init_timeout)' in sentence


def test_an_error_of_one_process_is_told_to_the_other(tmp_path, cache):
  """Which ends with its exit code, so that a cluster does not start the mistake again.

  The checkpoint of the step before is there: it was saved before the evaluation.
  """
  script = tmp_path / 'fails.py'
  script.write_text(
    'import sys\n'
    'from segjax import main, run\n'
    'from segjax.types import SegjaxError\n'
    'def fail(*args, **kwargs):\n'
    "  raise SegjaxError('the evaluation fails here')\n"
    "if sys.argv[-1].endswith(',1'):\n"
    '  run.Evaluator.__call__ = fail\n'
    'sys.exit(main.main(sys.argv[1:]))\n'
  )
  args = train_args(tmp_path / 'run', steps=4)
  processes = start_two(args, cache, program=[sys.executable, script])
  assert last_line(processes[1], 2) == 'segjax: the evaluation fails here'
  sentence = last_line(processes[0], 2)
  assert sentence.startswith(
    f'segjax: process 1 on {socket.gethostname()} ended with status 2 (the evaluation fails here): '
    'fix that, then run the same command again'
  )
  assert [path.name for path in (tmp_path / 'run' / 'checkpoints').iterdir()] == ['2']
  assert run(*args) == 0
  evaluated = [(r['step'], r['split']) for r in read_log(tmp_path / 'run')]
  assert evaluated == [
    (1, 'train'),
    (2, 'train'),
    (2, 'val'),
    (3, 'train'),
    (4, 'train'),
    (4, 'val'),
  ]


def test_an_interrupt_of_one_process_saves_on_both(tmp_path, cache):
  processes = start_two(train_args(tmp_path / 'run', *LONG, steps=4000), cache)
  wait_for_step(processes[0], 2)
  processes[1].send_signal(signal.SIGINT)
  stopped = [last_line(processes[i], code) for i, code in ((0, 143), (1, 130))]
  steps = {
    re.search(r'stopped by SIG\w+ after step (\d+); the state is saved', s)[1] for s in stopped
  }
  assert len(steps) == 1
  assert [path.name for path in (tmp_path / 'run' / 'checkpoints').iterdir()] == list(steps)


def test_two_processes_predict_as_one(instance_run, tmp_path, cache):
  """Of three images one process has two; the first one writes the files for all."""
  two, one, images = tmp_path / 'two', tmp_path / 'one', tmp_path / 'images'
  images.mkdir()
  rng = np.random.default_rng(0)
  for name in ('b', 'a', 'c'):
    cv2.imwrite(str(images / f'{name}.png'), rng.integers(0, 256, (48, 64, 3), np.uint8))
  args = ['predict', f'--workdir={instance_run}', f'--images={images}', '--save=json']
  for process in start_two([*args, f'--output={two}'], cache):
    err = process.communicate(timeout=240)[1]
    assert process.returncode == 0, err
  assert run(*args, f'--output={one}') == 0
  names = sorted(path.name for path in one.iterdir())
  assert names == sorted(path.name for path in two.iterdir())
  for name in names:
    assert json.loads((one / name).read_text()) == json.loads((two / name).read_text()), name


def test_two_processes_evaluate_as_one(semantic_run, capfd, cache):
  """With a batch that does not divide over the devices."""
  args = ['evaluate', f'--workdir={semantic_run}', '--config.batch.eval_size=3']
  for process in start_two([*args, '--json'], cache):
    err = process.communicate(timeout=240)[1]
    assert process.returncode == 0, err
  two = json.loads(capfd.readouterr().out.strip().splitlines()[-1])
  one = output(capfd, 'evaluate', f'--workdir={semantic_run}')
  assert two['per_class'] == one['per_class'] and two['mean_iou'] == one['mean_iou']
  assert two['loss'] == pytest.approx(one['loss'], rel=1e-5)
