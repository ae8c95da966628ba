"""Scripts for sbatch; `on_slurm_test` runs them."""

import subprocess

import pytest

from segjax.launch import slurm
from segjax.launch.job import Job, Layout
from segjax.types import SegjaxError

JOB = Job('coco', 'mask_rcnn/coco_r50_fpn', 'runs/my coco', (('data.source', '/data/co co'),))
ONE_A_NODE = slurm.Options(nodes=2, program='segjax', sbatch=('--partition=gpu',))


def directives(text):
  return [line.removeprefix('#SBATCH ') for line in text.splitlines() if line.startswith('#SBATCH')]


def test_one_task_a_node_uses_all_of_its_gpus():
  text = slurm.render(JOB, ONE_A_NODE)
  assert directives(text) == [
    '--job-name=coco',
    '--output=coco-%j.log',
    '--open-mode=append',
    '--nodes=2',
    '--ntasks-per-node=1',
    '--gpus-per-node=8',
    '--time=24:00:00',
    '--signal=TERM@120',
    '--requeue',
    '--partition=gpu',
  ]
  assert slurm.layout(ONE_A_NODE) == Layout(2, 8)


def test_one_task_a_gpu():
  options = slurm.Options(nodes=2, tasks_per_node=8, cpus_per_task=6, hours=1.26, program='segjax')
  text = slurm.render(JOB, options)
  assert {'--ntasks-per-node=8', '--cpus-per-task=6', '--time=1:16:00'} <= set(directives(text))
  assert 'srun --wait=120 --cpus-per-task=6 segjax' in text, 'some versions do not inherit it'
  assert '--cpus-per-task' not in slurm.render(JOB, ONE_A_NODE)
  assert '--distributed' in text
  assert slurm.layout(options) == Layout(16, 1)


def test_a_single_process_needs_no_other():
  text = slurm.render(JOB, slurm.Options(gpus_per_node=0, setup=('module load python',)))
  assert '--distributed' not in text and '--gpus' not in text
  assert text.index('module load python') < text.index('srun ')
  assert slurm.layout(slurm.Options(gpus_per_node=0)) == Layout(1, 1)


@pytest.mark.parametrize(
  ('status', 'restarts', 'requeued'),
  [
    (0, 0, False),
    (2, 0, False),
    (1, 0, False),
    (137, 9, True),
    (137, 10, False),
    (140, 99, True),
    (143, 99, True),
    (74, 9, True),
    (75, 9, True),
    (75, 10, False),
  ],
)
def test_what_was_stopped_is_requeued_and_not_completed(tmp_path, status, restarts, requeued):
  """With `srun` and `scontrol` that write their arguments."""
  for name, code in (('srun', status), ('scontrol', 0)):
    script = tmp_path / name
    script.write_text(f'#!/bin/sh\nprintf "%s\\n" {name} "$@" >> {tmp_path}/calls\nexit {code}\n')
    script.chmod(0o755)
  result = subprocess.run(
    ['bash'],
    input=slurm.render(JOB, ONE_A_NODE),
    env={
      'PATH': f'{tmp_path}:/usr/bin:/bin',
      'SLURM_JOB_ID': '17',
      'SLURM_RESTART_COUNT': str(restarts),
    },
    capture_output=True,
    text=True,
  )
  assert (result.returncode, result.stderr) == (status, '')
  calls = (tmp_path / 'calls').read_text().splitlines()
  assert calls[:7] == [
    *('srun', '--wait=120', 'segjax', 'train', '--config=mask_rcnn/coco_r50_fpn'),
    *('--workdir=runs/my coco', '--config.data.source=/data/co co'),
  ]
  assert calls[7:] == ['--distributed', *['scontrol', 'requeue', '17'] * requeued]


def test_a_single_process_that_is_killed_is_not_started_again():
  """It is short of memory, which a restart repeats."""
  assert '| 137 |' in slurm.render(JOB, ONE_A_NODE)
  assert '137' not in slurm.render(JOB, slurm.Options())


def test_without_a_program_it_is_this_one():
  import sys

  text = slurm.render(JOB, slurm.Options())
  assert sys.executable in text and 'segjax.main' in text


@pytest.mark.parametrize(
  ('options', 'message'),
  [
    ({'tasks_per_node': 4}, 'tasks_per_node=4 does not suit gpus_per_node=8'),
    ({'hours': 0.01, 'grace': 60}, 'grace=60 seconds leave no time'),
  ],
)
def test_options_that_do_not_go_together(options, message):
  with pytest.raises(SegjaxError, match=message):
    slurm.Options(**options)
