"""JobSets. The schema of their Jobs is Kubernetes' own; that of JobSet is written down here."""

import dataclasses

import pytest
import yaml

from segjax.launch import gke
from segjax.launch.job import Job, Layout
from segjax.types import SegjaxError

JOB = Job('coco', 'mask_rcnn/coco_r50_fpn', 'gs://bucket/coco', (('data.source', '$(x)'),))
V5E = gke.Options(image='registry/segjax:1', accelerator='v5e', topology='4x8', spot=True)
V6E = gke.Options(
  image='registry/segjax:1', accelerator='v6e', topology='2x4', queue='team', namespace='vision'
)
GPUS = gke.Options(
  image='registry/segjax:1', accelerator='nvidia-h100-80gb', nodes=4, claim='disk', grace=90
)
# Fields of jobset.x-k8s.io/v1alpha2 that a JobSet may have: the JSON names of api/jobset/v1alpha2.
FIELDS = {
  'failurePolicy': {'maxRestarts', 'restartStrategy', 'rules'},
  'rule': {'name', 'action', 'onJobFailureReasons', 'targetReplicatedJobs'},
  'replicatedJob': {'name', 'groupName', 'template', 'replicas', 'dependsOn'},
}


def read(options, job=JOB):
  """The JobSet, as kubectl reads it."""
  return yaml.safe_load(gke.render(job, options))


def pod(options, job=JOB):
  [replicated] = read(options, job)['spec']['replicatedJobs']
  return replicated['template']['spec']['template']['spec']


@pytest.mark.parametrize('options', [V5E, V6E, GPUS])
def test_the_fields_are_those_of_a_jobset(options):
  jobset = read(options)
  assert set(jobset) == {'apiVersion', 'kind', 'metadata', 'spec'}
  assert (jobset['apiVersion'], jobset['kind']) == ('jobset.x-k8s.io/v1alpha2', 'JobSet')
  assert set(jobset['spec']) == {'failurePolicy', 'replicatedJobs'}
  policy, [replicated] = jobset['spec'].values()
  assert set(policy) <= FIELDS['failurePolicy'] and type(policy['maxRestarts']) is int
  [rule] = policy['rules']
  assert set(rule) <= FIELDS['rule'] and rule['action'] == 'FailJobSet'
  # What the Job controller says of a Job whose pod failure policy says FailJob.
  assert rule['onJobFailureReasons'] == ['PodFailurePolicy']
  assert set(replicated) <= FIELDS['replicatedJob'] and type(replicated['replicas']) is int


@pytest.mark.parametrize('options', [V5E, V6E, GPUS])
def test_its_jobs_are_valid(options):
  validate = pytest.importorskip('kubernetes_validate').validate
  [replicated] = read(options)['spec']['replicatedJobs']
  job = {'apiVersion': 'batch/v1', 'kind': 'Job', **replicated['template']}
  job['metadata'] = {'name': 'coco-workers-0'}
  validate(job, '1.30', strict=True)
  spec = job['spec']
  assert spec['completions'] == spec['parallelism'] == gke.layout(options).processes
  assert spec['template']['spec']['restartPolicy'] == 'Never', 'podFailurePolicy needs it'
  with pytest.raises(Exception, match='(?i)additional|not allowed|unexpected'):
    validate({**job, 'spec': {**spec, 'parallel': 2}}, '1.30', strict=True)


@pytest.mark.parametrize('options', [V5E, V6E, GPUS])
def test_its_jobset_is_valid_in_the_models_of_kubeflow(options):
  """Their fields are generated from the same types as the custom resource definition."""
  models = pytest.importorskip('kubeflow_trainer_api.models')
  spec = read(options)['spec']
  parsed = models.JobsetV1alpha2JobSetSpec.from_dict(spec)
  assert parsed.to_dict() == spec


@pytest.mark.parametrize(
  ('topology', 'layout'),
  [
    ('1x1', (1, 1)),
    ('2x2', (1, 4)),
    ('2x4', (1, 8)),
    ('4x4', (4, 4)),
    ('16x16', (64, 4)),
  ],
)
def test_machines_of_a_slice(topology, layout):
  options = gke.Options(image='i', accelerator='v6e', topology=topology)
  assert gke.layout(options) == Layout(*layout)


def test_a_tpu_slice_of_several_machines():
  spec = pod(V5E)
  assert spec['nodeSelector'] == {
    'cloud.google.com/gke-tpu-accelerator': 'tpu-v5-lite-podslice',
    'cloud.google.com/gke-tpu-topology': '4x8',
    'cloud.google.com/gke-spot': 'true',
  }
  [container] = spec['containers']
  assert container['resources'] == {'limits': {'google.com/tpu': 4}}
  assert container['args'][-1] == '--distributed', 'JAX finds the others'
  [(key, value)] = read(V5E)['metadata']['annotations'].items()
  assert (key.rpartition('/')[2], value) == ('exclusive-topology', 'cloud.google.com/gke-nodepool')


def test_a_tpu_slice_of_one_machine():
  metadata, [container] = read(V6E)['metadata'], pod(V6E)['containers']
  assert container['resources'] == {'limits': {'google.com/tpu': 8}}
  assert not [word for word in container['args'] if 'distributed' in word]
  assert container['env'] == [{'name': 'JAX_PLATFORMS', 'value': 'tpu'}]
  assert metadata['namespace'] == 'vision' and 'annotations' not in metadata
  assert metadata['labels'] == {'kueue.x-k8s.io/queue-name': 'team'}


def test_machines_with_gpus_name_the_first():
  job = JOB._replace(workdir='/shared/runs/coco')
  spec = pod(GPUS, job)
  [container] = spec['containers']
  assert spec['nodeSelector'] == {'cloud.google.com/gke-accelerator': 'nvidia-h100-80gb'}
  assert spec['terminationGracePeriodSeconds'] == 90
  assert container['resources'] == {'limits': {'nvidia.com/gpu': 8}}
  assert container['args'][-1] == '--distributed=coco-workers-0-0.coco:1234,4,$(INDEX)'
  index = container['env'][-1]
  assert index['name'] == 'INDEX'
  assert 'job-completion-index' in index['valueFrom']['fieldRef']['fieldPath']
  assert {'name': 'claim', 'persistentVolumeClaim': {'claimName': 'disk'}} in spec['volumes']
  assert {'name': 'claim', 'mountPath': '/shared'} in container['volumeMounts']


def test_kubernetes_replaces_nothing_in_overrides():
  [container] = pod(V6E)['containers']
  assert '--config.data.source=$$(x)' in container['args']


def test_a_mistake_is_not_repeated():
  [replicated] = read(V5E)['spec']['replicatedJobs']
  [rule] = replicated['template']['spec']['podFailurePolicy']['rules']
  assert rule['action'] == 'FailJob'
  assert rule['onExitCodes'] == {'containerName': 'segjax', 'operator': 'In', 'values': [2]}
  assert pod(V5E)['containers'][0]['name'] == 'segjax'


@pytest.mark.parametrize(
  ('options', 'message'),
  [
    ({'accelerator': 'v5'}, 'accelerator=v5 is neither .* did you mean v5e'),
    ({'accelerator': 'v5e'}, 'topology=None is no slice of v5e: choose from 1x1, 2x2'),
    ({'accelerator': 'v6e', 'topology': '3x3'}, 'topology=3x3 is no slice of v6e'),
    ({'accelerator': 'v6e', 'topology': '2x2', 'nodes': 2}, 'nodes=2 is for GPUs'),
    ({'accelerator': 'nvidia-l4', 'topology': '2x2'}, 'topology=2x2 is for TPUs'),
  ],
)
def test_options_that_do_not_go_together(options, message):
  with pytest.raises(SegjaxError, match=message):
    gke.Options(image='i', **options)


@pytest.mark.parametrize(
  ('workdir', 'options', 'message'),
  [
    ('runs/coco', V5E, 'would be lost with its pod: use a bucket'),
    ('/scratch/coco', GPUS, 'is not on the volume disk: use a path under /shared'),
    ('/sharedness/coco', GPUS, 'is not on the volume disk'),
  ],
)
def test_workdirs_outlive_a_pod(workdir, options, message):
  with pytest.raises(SegjaxError, match=message):
    gke.render(JOB._replace(workdir=workdir), options)
  gke.render(JOB, options)
  for mount in ('/shared', '/shared/'):
    gke.render(JOB._replace(workdir='/shared/runs'), dataclasses.replace(GPUS, mount=mount))


def test_a_jobset_has_the_name_of_a_service():
  with pytest.raises(SegjaxError, match='the name 2026-run of the job starts with a digit: set'):
    gke.render(JOB._replace(name='2026-run'), V5E)
