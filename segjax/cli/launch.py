"""`segjax launch`: writes the job that trains a config on a cluster, and submits it."""

import argparse
import inspect
import re
import shutil
import subprocess
from collections.abc import Callable, Iterable
from pathlib import PurePosixPath
from types import ModuleType
from typing import Any, NamedTuple

from segjax import config as config_lib
from segjax import run as run_lib
from segjax.cli import options
from segjax.experiment import Experiment
from segjax.launch import gke, slurm, tpu_vm
from segjax.launch import job as job_lib
from segjax.training import mirror
from segjax.types import SegjaxError


class Cluster(NamedTuple):
  """Where a job runs.

  Attributes:
    module: has `Options`, `layout(options)` and `render(job, options)`.
    program: that has to be installed to submit.
    submit: the command that reads a rendered job and submits it.
  """

  module: ModuleType
  program: str
  submit: tuple[str, ...]


CLUSTERS = {
  'slurm': Cluster(slurm, 'sbatch', ('sbatch',)),
  'gke': Cluster(gke, 'kubectl', ('kubectl', 'create', '--filename=-')),
  'tpu-vm': Cluster(tpu_vm, 'gcloud', ('bash',)),
}


def _describe(cls: type) -> str:
  """The options of a cluster as a list, from their docstring."""
  defaults = config_lib.arguments(cls)
  lines = re.findall(r'^  (\w+: .*(?:\n    .*)*)', inspect.getdoc(cls) or '', re.MULTILINE)
  shown = []
  for line in lines:
    name, _, text = ' '.join(line.split()).partition(': ')
    default = defaults[name]
    needed = default is inspect.Parameter.empty
    end = ' (needed)' if needed else f' ({default})' if default not in (None, ()) else ''
    shown.append(f'  {name:16}{text.rstrip(".")}{end}')
  return '\n'.join(shown)


EXAMPLE = """examples:
  segjax launch --cluster=slurm --config=mask_rcnn/coco_r50_fpn --workdir=runs/coco \\
    --config.data.source=/shared/coco --config.init_from.path=/shared/resnet50.pth \\
    --option nodes=2 --option sbatch=--partition=gpu --dry-run
  segjax launch --cluster=gke --config=mask_rcnn/coco_r50_fpn --workdir=gs://bucket/coco \\
    --config.data.dir=gs://bucket/data --config.init_from.path=none \\
    --option image=REGISTRY/segjax --option accelerator=v6e --option topology=4x4 --dry-run
  segjax launch --cluster=tpu-vm --config=mask_rcnn/coco_r50_fpn --workdir=gs://bucket/coco \\
    --config.data.dir=gs://bucket/data --config.init_from.path=none \\
    --option tpu=NAME --option zone=us-east5-b --option type=v6e-16 --dry-run

""" + '\n\n'.join(
  f'options of {name}, with their defaults:\n{_describe(cluster.module.Options)}'
  for name, cluster in CLUSTERS.items()
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
  parser.add_argument('--cluster', required=True, choices=tuple(CLUSTERS), help='where to train')
  parser.add_argument('--config', required=True, help='path or name of a config')
  options.add_workdir(parser, help='directory of the run, as the machines of the job see it')
  parser.add_argument('--name', help='name of the job; default: that of the workdir')
  parser.add_argument(
    '--option',
    action='append',
    default=[],
    metavar='KEY=VALUE',
    help='an option of the cluster, see below; may be repeated',
  )
  parser.add_argument('--dry-run', action='store_true', help='print the job, and submit nothing')


def run(args: argparse.Namespace) -> int:
  cluster = CLUSTERS[args.cluster]
  chosen = parse_options(cluster.module.Options, args.option)
  name = job_lib.make_name(args.name or PurePosixPath(args.workdir).name)
  job = job_lib.Job(name, args.config, args.workdir, tuple(args.overrides))
  given = config_lib.override(config_lib.read_file(args.config), args.overrides)
  layout = cluster.module.layout(chosen)
  check_layout(run_lib.resolve(given), layout)
  mirror.is_needed(args.workdir, layout.processes)  # raises what each process would
  text = cluster.module.render(job, chosen)
  if args.dry_run:
    print(text, end='')
  else:
    submit(cluster, text)
  return 0


def parse_options(cls: type, pairs: Iterable[str]) -> Any:
  """The dataclass of a cluster's options from 'KEY=VALUE'; tuples take several of one key.

  Raises:
    SegjaxError: an unknown or missing key, or a value of the wrong type or out of range.
  """
  defaults, hints = config_lib.arguments(cls), config_lib.type_hints(cls)
  given: dict[str, Any] = {}
  for pair in pairs:
    key, equals, value = pair.partition('=')
    if not equals:
      raise SegjaxError(f'--option {pair} must be KEY=VALUE')
    if isinstance(defaults.get(key), tuple):
      given[key] = (*given.get(key, ()), value)
    elif hints.get(key) is str or hints.get(key) == str | None and value.lower() != 'none':
      given[key] = value
    else:
      given[key] = config_lib.parse_value(value)
  return cls(**config_lib.complete(cls, given, 'option'))


def check_layout(experiment: Experiment, layout: job_lib.Layout) -> None:
  """Checks that batches divide over the devices of a job, before anybody waits for them.

  Raises:
    SegjaxError: they do not.
  """
  space, data = experiment.mesh.space, experiment.mesh.data
  devices = layout.processes * layout.devices
  if data == -1:
    data = devices // space
  if data * space != devices:
    raise SegjaxError(
      f'config.mesh={data} x {space} does not use the {devices} devices of the job: set '
      'config.mesh.data=-1, and config.mesh.space to a divisor of them'
    )
  if space % layout.devices and layout.devices % space:
    raise SegjaxError(
      f'config.mesh.space={space} must divide the {layout.devices} devices of a process or be a '
      'multiple of them: change it'
    )
  parts = data * experiment.optim.accumulate
  if experiment.batch.size % parts:
    raise SegjaxError(
      f'config.batch.size={experiment.batch.size} does not divide over {data} devices and '
      f'config.optim.accumulate={experiment.optim.accumulate}: set it to a multiple of {parts}'
    )


def submit(cluster: Cluster, text: str, run: Callable[..., Any] = subprocess.run) -> None:
  """Submits a rendered job.

  Raises:
    SegjaxError: the program is not installed, or it failed.
  """
  if shutil.which(cluster.program) is None:
    raise SegjaxError(
      f'{cluster.program} is not installed: run this command where it is, or add --dry-run and '
      'submit what it prints'
    )
  status = run(cluster.submit, input=text, text=True, check=False).returncode
  if status:
    raise SegjaxError(f'{cluster.program} failed with exit code {status}: see above')
