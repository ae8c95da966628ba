"""Google Kubernetes Engine: a JobSet, for TPU slices and for machines with GPUs."""

import dataclasses
import math
from typing import Any, NamedTuple

import yaml

from segjax.launch import job as job_lib
from segjax.launch.job import Job, Layout
from segjax.types import NonNegativeInt, PositiveInt, SegjaxError, nearest

# A TPU slice is one machine of up to 8 chips, or machines of 4 chips.
_ONE_MACHINE, _SEVERAL = 8, 4
_PORT = 1234


class Tpu(NamedTuple):
  """A generation of TPUs on GKE.

  Attributes:
    label: of its nodes.
    topologies: of its slices.
  """

  label: str
  topologies: tuple[str, ...]


_TOPOLOGIES = ('1x1', '2x2', '2x4', '4x4', '4x8', '8x8', '8x16', '16x16')
TPUS = {
  'v5e': Tpu('tpu-v5-lite-podslice', _TOPOLOGIES),
  'v6e': Tpu('tpu-v6e-slice', _TOPOLOGIES),
}


@dataclasses.dataclass(frozen=True)
class Options:
  """Options of `segjax launch --cluster=gke`.

  Attributes:
    image: container image with segjax, see the Dockerfile.
    accelerator: v5e or v6e, or the label of a GPU, such as nvidia-h100-80gb.
    topology: chips of a TPU slice, such as 4x4.
    nodes: machines with GPUs.
    gpus_per_node: GPUs of each.
    claim: PersistentVolumeClaim that all machines mount, for workdirs that are not in a bucket.
    mount: where it is mounted.
    spot: whether to use Spot machines, which may be taken away at any time.
    queue: Kueue's local queue.
    namespace: of the JobSet; without, that of the context.
    max_restarts: how often the job may start again, after a preemption or a failure.
    grace: seconds in which a stopped run can save; where a Spot machine is taken away, at most what
      its node pool gives, 15 by default.
  """

  image: str
  accelerator: str
  topology: str | None = None
  nodes: PositiveInt = 1
  gpus_per_node: PositiveInt = 8
  claim: str | None = None
  mount: str = '/shared'
  spot: bool = False
  queue: str | None = None
  namespace: str | None = None
  max_restarts: NonNegativeInt = 100
  grace: PositiveInt = 120

  def __post_init__(self) -> None:
    tpu = TPUS.get(self.accelerator)
    if tpu is None and not self.accelerator.startswith('nvidia-'):
      hint = nearest(self.accelerator, TPUS)
      raise SegjaxError(
        f'--option accelerator={self.accelerator} is neither a TPU nor the label of a GPU, such '
        f'as nvidia-h100-80gb{hint}'
      )
    if tpu and self.topology not in tpu.topologies:
      raise SegjaxError(
        f'--option topology={self.topology} is no slice of {self.accelerator}: choose from '
        f'{", ".join(tpu.topologies)}'
      )
    if tpu and self.nodes != 1:
      raise SegjaxError(
        f'--option nodes={self.nodes} is for GPUs: the machines of a TPU slice follow from topology'
      )
    if not tpu and self.topology:
      raise SegjaxError(f'--option topology={self.topology} is for TPUs: set nodes instead')


def layout(options: Options) -> Layout:
  """The processes of a job, one a machine."""
  if options.accelerator not in TPUS:
    return Layout(options.nodes, options.gpus_per_node)
  return slice_layout(chips(options.topology))


def chips(topology: str) -> int:
  """The chips of a TPU slice such as 2x4."""
  return math.prod(map(int, topology.split('x')))


def slice_layout(count: int) -> Layout:
  """The processes on a TPU slice of so many chips."""
  devices = count if count <= _ONE_MACHINE else _SEVERAL
  return Layout(count // devices, devices)


def render(job: Job, options: Options) -> str:
  """The JobSet as YAML.

  Raises:
    SegjaxError: the workdir would be on the disk of a pod, or a JobSet cannot have the name.
  """
  _check_workdir(job, options)
  if job.name[0].isdigit():
    raise SegjaxError(f'the name {job.name} of the job starts with a digit: set --name')
  return yaml.safe_dump(make_jobset(job, options), sort_keys=False, width=100)


def _check_workdir(job: Job, options: Options) -> None:
  """Raises a SegjaxError where the workdir would not outlive a pod."""
  if '://' in job.workdir:
    return
  if options.claim is None:
    raise SegjaxError(
      f'--workdir={job.workdir} would be lost with its pod: use a bucket, such as gs://…, or '
      f'--option claim=NAME and a path under {options.mount}'
    )
  if not f'{job.workdir}/'.startswith(f'{options.mount.rstrip("/")}/'):
    raise SegjaxError(
      f'--workdir={job.workdir} is not on the volume {options.claim}: use a path under '
      f'{options.mount}'
    )


def make_jobset(job: Job, options: Options) -> dict[str, Any]:
  """The JobSet: one replicated job, with a pod for each machine."""
  return {
    'apiVersion': 'jobset.x-k8s.io/v1alpha2',
    'kind': 'JobSet',
    'metadata': _metadata(job, options),
    'spec': {
      'failurePolicy': {
        'maxRestarts': options.max_restarts,
        # What is not named here starts again, and resumes.
        'rules': [
          {
            'name': 'mistake',
            'action': 'FailJobSet',
            'onJobFailureReasons': ['PodFailurePolicy'],
          }
        ],
      },
      'replicatedJobs': [
        {'name': 'workers', 'replicas': 1, 'template': {'spec': _job(job, options)}}
      ],
    },
  }


def _metadata(job: Job, options: Options) -> dict[str, Any]:
  metadata: dict[str, Any] = {'name': job.name}
  if options.namespace:
    metadata['namespace'] = options.namespace
  if options.queue:
    metadata['labels'] = {'kueue.x-k8s.io/queue-name': options.queue}
  if options.accelerator in TPUS and layout(options).processes > 1:
    # The pods of a slice share a node pool, with those of no other job.
    topology = 'alpha.jobset.sigs.k8s.io/exclusive-topology'
    metadata['annotations'] = {topology: 'cloud.google.com/gke-nodepool'}
  return metadata


def _job(job: Job, options: Options) -> dict[str, Any]:
  processes = layout(options).processes
  mistake = {'containerName': 'segjax', 'operator': 'In', 'values': [job_lib.MISTAKE]}
  return {
    'completionMode': 'Indexed',
    'completions': processes,
    'parallelism': processes,
    'backoffLimit': 0,
    'podFailurePolicy': {'rules': [{'action': 'FailJob', 'onExitCodes': mistake}]},
    'template': {'spec': _pod(job, options)},
  }


def _pod(job: Job, options: Options) -> dict[str, Any]:
  # The shared memory of a pod, 64 MB otherwise, holds the batches of the worker processes.
  volumes = [{'name': 'memory', 'emptyDir': {'medium': 'Memory'}}]
  mounts = [{'name': 'memory', 'mountPath': '/dev/shm'}]
  if options.claim:
    volumes.append({'name': 'claim', 'persistentVolumeClaim': {'claimName': options.claim}})
    mounts.append({'name': 'claim', 'mountPath': options.mount})
  return {
    'restartPolicy': 'Never',
    'terminationGracePeriodSeconds': options.grace,
    'nodeSelector': _node_selector(options),
    'containers': [{**_container(job, options), 'volumeMounts': mounts}],
    'volumes': volumes,
  }


def _node_selector(options: Options) -> dict[str, str]:
  tpu = TPUS.get(options.accelerator)
  if tpu:
    selector = {'gke-tpu-accelerator': tpu.label, 'gke-tpu-topology': options.topology}
  else:
    selector = {'gke-accelerator': options.accelerator}
  if options.spot:
    selector['gke-spot'] = 'true'
  return {f'cloud.google.com/{key}': value for key, value in selector.items()}


def _container(job: Job, options: Options) -> dict[str, Any]:
  processes, devices = layout(options)
  tpu = options.accelerator in TPUS
  # Without, JAX would train on the CPUs of a machine whose accelerator it does not find.
  environment = [{'name': 'JAX_PLATFORMS', 'value': 'tpu' if tpu else 'cuda'}]
  # Kubernetes replaces $(NAME) in arguments.
  words = [word.replace('$(', '$$(') for word in job_lib.train_command(job)]
  if processes > 1 and tpu:
    words.append('--distributed')  # JAX finds the others
  elif processes > 1:
    index = "metadata.annotations['batch.kubernetes.io/job-completion-index']"
    environment.append({'name': 'INDEX', 'valueFrom': {'fieldRef': {'fieldPath': index}}})
    first = f'{job.name}-workers-0-0.{job.name}:{_PORT}'
    words.append(f'--distributed={first},{processes},$(INDEX)')
  return {
    'name': 'segjax',
    'image': options.image,
    'command': ['segjax'],
    'args': words,
    'env': environment,
    'resources': {'limits': {'google.com/tpu' if tpu else 'nvidia.com/gpu': devices}},
  }
