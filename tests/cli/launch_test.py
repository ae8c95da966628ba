"""`segjax launch`: what it prints, checks and submits."""

import itertools
import re
import subprocess
import types

import pytest
import yaml
from commands import fails, run

from segjax import main as program
from segjax.cli import launch
from segjax.types import SegjaxError

SLURM = ['launch', '--cluster=slurm', '--config=unet/scenes', '--workdir=runs/Scenes_1']
CPU = ['--option', 'gpus_per_node=0']
GKE = ['--option', 'image=registry/segjax', '--option', 'accelerator=v6e']


def test_help_lists_the_options_of_each_cluster(capsys):
  with pytest.raises(SystemExit):
    run('launch', '--help')
  out = capsys.readouterr().out
  for cluster in launch.CLUSTERS.values():
    for name in cluster.module.Options.__dataclass_fields__:
      assert f'\n  {name} ' in out
  assert 'number of machines (1)' in out
  assert 'container image with segjax, see the Dockerfile (needed)' in out


@pytest.mark.parametrize('name', launch.CLUSTERS)
def test_the_examples_of_the_help_render(name, capsys):
  """Each line of it is a command that works."""
  text = launch.EXAMPLE.partition('\n\n')[0].replace('\\\n', ' ')
  [line] = [line for line in text.splitlines() if f'--cluster={name}' in line]
  assert run(*line.split()[1:]) == 0
  assert 'mask_rcnn/coco_r50_fpn' in capsys.readouterr().out


def test_the_page_shows_what_its_commands_print(root, capsys):
  blocks = re.findall(r'^```\n(.*?)^```$', (root / 'docs/clusters.md').read_text(), re.M | re.S)
  shown = 0
  for command, printed in itertools.pairwise(blocks):
    if not command.startswith('segjax launch'):
      continue
    for line in command.replace('\\\n', ' ').splitlines():
      assert run(*line.split()[1:]) == 0
    out = capsys.readouterr().out
    if '--cluster=gke' not in command:
      assert out == printed
      shown += 1
  assert shown == 2


def test_prints_a_job_and_submits_nothing(capsys, monkeypatch):
  monkeypatch.setattr(subprocess, 'run', lambda *args, **kwargs: 1 / 0)
  assert run(*SLURM, *CPU, '--dry-run', '--config.train.steps=700') == 0
  out, err = capsys.readouterr()
  assert out.startswith('#!/bin/bash\n#SBATCH --job-name=scenes-1\n')
  assert '--config.train.steps=700' in out and err == ''


def test_prints_yaml(capsys):
  args = ['launch', '--cluster=gke', '--config=unet/scenes', '--workdir=gs://bucket/run']
  assert run(*args, *GKE, '--option', 'topology=1x1', '--name=my-run', '--dry-run') == 0
  jobset = yaml.safe_load(capsys.readouterr().out)
  assert jobset['metadata'] == {'name': 'my-run'}


@pytest.mark.parametrize(
  ('args', 'message'),
  [
    ([*SLURM, '--option', 'node=2'], 'option.node is not a key: did you mean nodes'),
    ([*SLURM, '--option', 'nodes=0'], 'option.nodes=0 must be 1 or greater'),
    ([*SLURM, '--option', 'nodes'], '--option nodes must be KEY=VALUE'),
    ([*SLURM, '--config.train.step=7'], 'did you mean steps'),
    ([*SLURM, '--config.batch.size=12'], 'config.batch.size=12 does not divide over 8 devices'),
    ([*SLURM, '--config.mesh.data=4'], 'does not use the 8 devices of the job'),
    ([*SLURM, *CPU, '--name=…'], 'no letter or digit'),
    ([*SLURM, *CPU, '--option', "program=it's"], "program=it's: No closing quotation"),
    (
      [*SLURM, *CPU, '--option', 'nodes=2', '--workdir=s3://bucket/run'],
      's3://bucket/run takes no checkpoints of several processes: set --workdir to a directory',
    ),
    ([*SLURM[:1], '--cluster=gke', *SLURM[2:], '--option', 'image=i'], 'option.accelerator is'),
  ],
)
def test_mistakes_are_one_sentence(capsys, args, message):
  assert message in fails(capsys, *args, '--dry-run')


def test_one_process_may_train_in_any_bucket(capsys):
  assert run(*SLURM, *CPU, '--workdir=s3://bucket/run', '--dry-run') == 0
  assert '--workdir=s3://bucket/run' in capsys.readouterr().out


def test_text_of_an_option_may_look_like_a_number():
  pairs = ['image=1', 'accelerator=nvidia-l4', 'claim=2', 'queue=none', 'nodes=3']
  chosen = launch.parse_options(launch.gke.Options, pairs)
  assert (chosen.image, chosen.claim, chosen.queue, chosen.nodes) == ('1', '2', None, 3)


@pytest.mark.parametrize('name', launch.CLUSTERS)
def test_submits_what_it_renders(name, monkeypatch, tmp_path):
  cluster, calls = launch.CLUSTERS[name], []
  (tmp_path / cluster.program).write_text('')
  (tmp_path / cluster.program).chmod(0o755)
  monkeypatch.setenv('PATH', str(tmp_path))

  def called(command, *, input, text, check):
    calls.append((command, input))
    return types.SimpleNamespace(returncode=len(calls) - 1)

  launch.submit(cluster, 'the job', called)
  assert calls == [(cluster.submit, 'the job')]
  with pytest.raises(SegjaxError, match=f'{cluster.program} failed with exit code 1'):
    launch.submit(cluster, 'the job', called)


def test_without_the_program_it_says_what_to_do(capsys, monkeypatch, tmp_path):
  monkeypatch.setenv('PATH', str(tmp_path))
  assert 'sbatch is not installed: run this command where it is' in fails(capsys, *SLURM, *CPU)


def test_it_is_a_command_with_overrides():
  assert program.COMMANDS['launch'].overrides
