"""What bounds training on 8, 64 and 512 chips: computed from measured constants, not measured."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from scaling import evaluation

CHIPS = (8, 64, 512)
# COCO's validation images.
VAL = 5_000


class Chip(NamedTuple):
  """A chip as its vendor describes it.

  Attributes:
    peak: bfloat16 operations a second.
    near: bytes a second to chips of the same group, in one direction.
    group: chips that are connected at that rate.
    far: bytes a second of a chip to other groups.
  """

  peak: float
  near: float
  group: int
  far: float


CHIP = {
  'H100': Chip(989e12, 450e9, 8, 50e9),
  'TPU v5e': Chip(197e12, 200e9, 256, 3.125e9),
}


class Work(NamedTuple):
  """A train step.

  Attributes:
    row: of experiments/speed that counts its operations, of `images` images.
    parameters: of the network.
    batch: images on a chip.
    share: of the peak that is assumed.
    input: row of experiments/speed that prepares such images, and how many.
  """

  row: str
  images: int
  parameters: int
  batch: int
  share: float
  input: tuple[str, int]


# The shares of the peak are those of the public figures of other implementations on an A100
# (312 TFLOP/s): 29 images/s of Mask R-CNN and 141 of U-Net, with our count of operations.
WORK = {
  'Mask R-CNN, R50-FPN, 800 × 1344': Work(
    'mask_rcnn_train_800', 1, 44_396_336, 2, 0.12, ('pipeline_coco', 24)
  ),
  'U-Net, 572²': Work('unet_published_train', 1, 31_030_658, 8, 0.28, ('pipeline_dense', 96)),
  'SegNet, 360 × 480': Work('segnet_train', 2, 29_449_355, 8, 0.28, ('pipeline_dense', 96)),
}


def compute_seconds(flops: float, work: Work, chip: Chip) -> float:
  """Of a step, on the images of a chip."""
  return flops / work.images * work.batch / (work.share * chip.peak)


def exchange_seconds(parameters: int, chips: int, chip: Chip) -> float:
  """Of the float32 gradients' all-reduce: in rings within groups, then of a part between them."""
  size, near = 4 * parameters, min(chips, chip.group)
  groups = chips // near
  within = 2 * size * (near - 1) / near / chip.near
  between = 2 * size / near * (groups - 1) / groups / chip.far
  return within + between


def step_table(speed: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
  rows = []
  for name, work in WORK.items():
    flops = speed[work.row]['cost']['flops']
    row, images = work.input
    rate = images / speed[row]['programs']['ours']['processor']
    for kind, chip in CHIP.items():
      seconds = compute_seconds(flops, work, chip)
      exchanged = [f'{1e3 * exchange_seconds(work.parameters, n, chip):.1f}' for n in CHIPS]
      rows.append(
        [
          f'{name}, {work.batch} a chip',
          kind,
          f'{1e3 * seconds:.1f} ms',
          f'{", ".join(exchanged)} ms',
          f'{work.batch / seconds / rate:.1f}',
        ]
      )
  chips = ', '.join(map(str, CHIPS))
  return ['work', 'chip', 'step', f'exchange, {chips} chips', 'cores a chip for input'], rows


def evaluation_seconds(values: Sequence[Mapping[str, Any]]) -> tuple[float, float]:
  """Seconds an image of one process, and the share of it that does not get less with more.

  The share is that of the largest measured number of processes p: t(p) = t(1) (s + (1 - s) / p).
  """
  one, last = values[0]['seconds'][0], values[-1]
  count = last['processes']
  share = sum(last['seconds']) / count / one
  return one / evaluation.IMAGES, (share * count - 1) / (count - 1)


def read_speed(root: Path) -> dict[str, Any]:
  """The last result of each row of experiments/speed."""
  lines = (root / 'experiments/speed/results.jsonl').read_text().splitlines()
  return {result['row']: result for result in map(json.loads, lines)}


def render(results: Mapping[str, Mapping[str, Any]], speed: Mapping[str, Any]) -> str:
  """The section of the page on chips."""
  from scaling.page import table

  each, fixed = evaluation_seconds(results['evaluation']['values'])
  hosts = [max(n // 8, 1) for n in CHIPS]
  times = [f'{VAL * each * (fixed + (1 - fixed) / n):.0f} s' for n in hosts]
  lines = [
    *TOP,
    table(*step_table(speed)),
    f'COCO evaluation of {VAL:,} images takes {1e3 * each:.1f} ms of a processor for each '
    f'(measured with 100 detections), of which {fixed:.0%} is done by every process: '
    f'{", ".join(times)} with {", ".join(map(str, hosts))} processes, one for 8 chips, besides the '
    'network.',
    '',
  ]
  return '\n'.join(lines)


TOP = (
  '## What bounds 8, 64 and 512 chips',
  '',
  '**Computed, not measured**: operations of a train step (counted by XLA) at an assumed share of',
  "the chip's peak, which is what public figures of other implementations reach on an A100 (12%",
  'for Mask R-CNN, 28% for U-Net, also taken for SegNet); the float32 gradients in rings at the',
  "vendors' rates (H100: NVLink 450 GB/s in one direction within 8, 50 GB/s for each between",
  'machines; TPU v5e: 200 GB/s within a slice of 256, 3.1 GB/s for each between slices); and',
  'images a second of one core, measured in [speed](../speed/README.md): at 800 pixels with masks',
  'for Mask R-CNN, and 256² crops with elastic deformation for the others. The exchange overlaps',
  'with the backward pass where XLA schedules it so.',
  '',
)
