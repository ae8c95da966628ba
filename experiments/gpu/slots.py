"""The slots, in the order of what a reader of the tables wants to know first."""

import functools
import sys
from collections.abc import Iterable
from pathlib import Path

import lines
from gpu.plan import HERE, ROOT, Context, Slot, Step
from gpu.training import VGG16, place_table, train

# JAX takes three quarters of the memory at its start, and torch needs some in the same process.
_SHARED = {'XLA_PYTHON_CLIENT_PREALLOCATE': 'false'}
_ALL = {'XLA_PYTHON_CLIENT_MEM_FRACTION': '0.95'}
# GPUs multiply float32 in TF32 by default, whose rounding is larger than what the rows tolerate.
_EXACT = {'JAX_DEFAULT_MATMUL_PRECISION': 'highest', 'NVIDIA_TF32_OVERRIDE': '0'}

# Rows of experiments/speed in bfloat16, and whether torch.compile takes them.
_NETWORKS = {
  'unet_train': True,
  'segnet_train': True,
  'mask_rcnn_train_640': False,
  'unet_infer': True,
  'segnet_infer': True,
  'mask_rcnn_infer_640': False,
  'resnet_fpn': True,
  'fcn_train': True,
  'fcn_infer': True,
  'unet_published_train': True,
  'unet_published_infer': True,
  'segnet_basic_train': True,
  'segnet_basic_infer': True,
  'mask_rcnn_infer_800': False,
  'mask_rcnn_train_800': False,
  'panoptic_fpn_infer_640': False,
}
_OPERATIONS = (
  'form_roi_align_7',
  'form_roi_align_14',
  'roi_align_7_grad',
  'roi_align_14_grad',
  'panoptic_merge_100',
  'form_merging',
  'pq',
  'form_pairs',
  'nms_8000',
  'form_nms',
  'pool_unpool',
  'form_max_pool',
  'panoptic_merge_10',
  'roi_align_7',
  'roi_align_14',
  'nms_2000',
)


def _segnet(context: Context) -> list[Step]:
  return [
    train(context, 'segnet_table1', 'segnet_basic_mfb.paper', 'camvid'),
    train(context, 'segnet_table3', 'segnet_40k.segnet', 'camvid', weights=True),
  ]


def _unet(context: Context) -> list[Step]:
  return [train(context, 'unet_table1', 'unet.paper', 'isbi2012')]


def _mask_rcnn(context: Context) -> list[Step]:
  return [train(context, 'penn_fudan', 'resnet50_fpn.scratch', 'PennFudanPed')]


def _fcn(context: Context) -> list[Step]:
  entry = 'fcn_learned_40k.fcn_features'
  return [train(context, 'segnet_table3', entry, 'camvid', weights=True)]


def _speed_row(context: Context, row: str, dtype: str, flags: Iterable[str], env: dict) -> Step:
  """A row of experiments/speed; at toy size nothing is recorded."""
  toy = ['--toy', '--rounds=1'] if context.toy else ['--rounds=5']
  script = ROOT / 'experiments/speed/run.py'
  command = [sys.executable, str(script), f'--rows={row}', f'--dtype={dtype}', *toy, *flags]
  there = lambda: any(
    line['row'] == row and line['dtype'] == dtype for line in lines.read(context.speed)
  )
  name = f'speed_{row}_{dtype}'
  return Step(name, (*command, f'--out={context.speed}'), there, {**_SHARED, **env})


def _speed(context: Context) -> list[Step]:
  rows = list(_NETWORKS.items())[: 1 if context.toy else None]
  return [
    _speed_row(context, row, 'bfloat16', ['--compile'] if compiled else [], {})
    for row, compiled in rows
  ]


def _operations(context: Context) -> list[Step]:
  rows = ('roi_align_7_grad', 'panoptic_merge_10') if context.toy else _OPERATIONS
  return [_speed_row(context, row, 'float32', [], _EXACT) for row in rows]


def _resume_step(
  context: Context,
  config: str,
  flags: list[str],
  required: tuple[Path, ...],
  *,
  deterministic: bool,
) -> Step:
  words = [f'--config={config}', f'--work={context.runs / "resume"}', f'--out={context.measured}']
  words += ['--deterministic'] if deterministic else []
  there = lambda: any(
    line['kind'] == 'resume' and (line['config'], line['deterministic']) == (config, deterministic)
    for line in lines.read(context.measured)
  )
  prepared = f'--config.data.dir={context.out / "prepared"}'
  return Step(
    f'resume_{config.replace("/", "_")}{"_deterministic" if deterministic else ""}',
    (sys.executable, str(HERE / 'resume.py'), *words, prepared, *flags),
    there,
    _SHARED,
    required=required,
  )


def _resume(context: Context) -> list[Step]:
  source = context.data / 'camvid'
  camvid = [f'--config.data.source={source}', '--steps=80'], (source,)
  configs = {
    'unet/scenes': ([], ()),
    'mask_rcnn/scenes_tiny': ([], ()),
    'segnet/basic_camvid': camvid,
  }
  if context.toy:
    tiny = ['data.name=scenes/tiny', 'data.size.image_size=(32,32)', 'optim.warmup_steps=0']
    tiny = [f'--config.{key}' for key in (*tiny, 'model.width=2')]
    configs = {'unet/scenes': ([*tiny, '--steps=8'], ())}
  return [
    _resume_step(context, config, flags, required, deterministic=deterministic)
    for deterministic in (True, False)[: 1 if context.toy else None]
    for config, (flags, required) in configs.items()
  ]


def _batches_step(context: Context, network: str, dtype: str) -> Step:
  there = lambda: any(
    line['kind'] == 'limit' and (line['network'], line['dtype']) == (network, dtype)
    for line in lines.read(context.measured)
  )
  toy = ['--toy', '--largest=4', '--steps=1'] if context.toy else []
  words = [f'--network={network}', f'--dtype={dtype}', f'--out={context.measured}', *toy]
  command = (sys.executable, str(HERE / 'batches.py'), *words)
  return Step(f'batches_{network}_{dtype}', command, there, _ALL)


def _batches(context: Context) -> list[Step]:
  if context.toy:
    return [_batches_step(context, 'segnet_basic', 'bfloat16')]
  networks = ('segnet', 'mask_rcnn', 'unet', 'segnet_basic', 'fcn')
  steps = [_batches_step(context, n, d) for d in ('bfloat16', 'float32') for n in networks]
  return [_table6(context), *steps]


def _table6(context: Context) -> Step:
  """SegNet's Table 6, time and memory, whose script records beside itself."""
  folder = place_table(context, 'segnet_table6')
  results = folder / 'results.jsonl'
  command = (sys.executable, str(folder / 'measure.py'))
  return Step('segnet_table6', command, lambda: len(lines.read(results)) == 3, _ALL)


# In the order in which they run. The estimates of trainings are XLA's count of the operations of
# their steps at 60 TFLOP/s in TF32, and add nothing for starting, compiling and evaluating.
SLOTS = {
  'segnet': Slot(
    'a',
    'SegNet-Basic (Table 1, 10,000 steps), then SegNet (Table 3, 40,000), CamVid at 360 × 480',
    ('camvid', VGG16),
    '10 min (3.5 TFLOP a step), then 31 min (2.7)',
    _segnet,
  ),
  'unet': Slot(
    'b',
    "the paper's U-Net on ISBI 2012, 20,000 steps",
    ('isbi2012',),
    '4 min (0.6 TFLOP a step)',
    _unet,
  ),
  'mask_rcnn': Slot(
    'c',
    'Mask R-CNN R50-FPN on Penn-Fudan, short side 800, 1,500 steps',
    ('PennFudanPed',),
    '2 min (4.3 TFLOP a step) and what is no product: NMS, sampling, RoIAlign',
    _mask_rcnn,
  ),
  'speed': Slot(
    'd', 'the speed page in bfloat16, beside torch.compile', (), '1 to 2 min a row', _speed
  ),
  'operations': Slot(
    'e',
    "RoIAlign's two forms, merging, PQ, NMS, pooling in float32",
    (),
    'half a minute a row',
    _operations,
  ),
  'fcn': Slot(
    'f',
    "FCN-8s on CamVid from VGG16's convolutions, 40,000 steps",
    ('camvid', VGG16),
    '40 min (3.6 TFLOP a step)',
    _fcn,
  ),
  'resume': Slot(
    'g',
    'kill and resume, bit for bit, with and without deterministic operations',
    ('camvid',),
    '2 min a row',
    _resume,
  ),
  'batches': Slot(
    'h',
    "SegNet's Table 6; memory and images/s for batches up to the card's limit",
    (),
    '2 to 4 min a network',
    _batches,
  ),
}
LETTERS = {slot.letter: name for name, slot in SLOTS.items()}


@functools.cache
def names(text: str) -> tuple[str, ...]:
  """The slots that `--slots` names by letter or name, in this module's order.

  Raises:
    ValueError: an unknown one.
  """
  asked = [LETTERS.get(word, word) for word in text.split(',')]
  for word in asked:
    if word not in SLOTS:
      known = ', '.join(f'{slot.letter} ({name})' for name, slot in SLOTS.items())
      raise ValueError(f'--slots: unknown slot {word}: the slots are {known}')
  return tuple(name for name in SLOTS if name in asked)
