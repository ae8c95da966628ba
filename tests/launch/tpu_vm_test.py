import shlex

import pytest

from segjax.launch import tpu_vm
from segjax.launch.job import Job, Layout
from segjax.types import SegjaxError

JOB = Job('coco', 'mask_rcnn/coco_r50_fpn', 'gs://bucket/coco', (('data.source', "it's"),))
SLICE = tpu_vm.Options(
  tpu='slice', zone='us-east5-b', type='v6e-16', directory='seg jax', program='.venv/bin/segjax'
)


def test_one_line_for_all_machines():
  line = tpu_vm.render(JOB, SLICE)
  assert line.count('\n') == 1
  *ssh, worker, command = shlex.split(line)
  assert ssh == ['gcloud', 'compute', 'tpus', 'tpu-vm', 'ssh', 'slice', '--zone=us-east5-b']
  assert worker == '--worker=all'
  assert shlex.split(command.removeprefix('--command=')) == [
    *('cd', 'seg jax', '&&', 'JAX_PLATFORMS=tpu', '.venv/bin/segjax', 'train'),
    *('--config=mask_rcnn/coco_r50_fpn', '--workdir=gs://bucket/coco'),
    *("--config.data.source=it's", '--distributed'),
  ]


@pytest.mark.parametrize(
  ('kind', 'layout'), [('v5litepod-16', (4, 4)), ('v5litepod-8', (1, 8)), ('v6e-1', (1, 1))]
)
def test_machines_of_a_type(kind, layout):
  options = tpu_vm.Options(tpu='slice', zone='z', type=kind)
  assert tpu_vm.layout(options) == Layout(*layout)
  assert ('--distributed' in tpu_vm.render(JOB, options)) == (layout[0] > 1)


@pytest.mark.parametrize('kind', ['v4-8', 'v6e', 'v6e-12', 'v5litepod-08'])
def test_unknown_types(kind):
  with pytest.raises(SegjaxError, match=f'type={kind} is unknown: it must be v5litepod-N or v6e-N'):
    tpu_vm.Options(tpu='slice', zone='z', type=kind)


def test_machines_share_the_workdir():
  local = JOB._replace(workdir='runs/coco')
  with pytest.raises(SegjaxError, match='on the disk of each machine of slice: use a bucket'):
    tpu_vm.render(local, SLICE)
  tpu_vm.render(JOB, SLICE)
  tpu_vm.render(local, tpu_vm.Options(tpu='slice', zone='z', type='v6e-8'))
