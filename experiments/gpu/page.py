"""Writes README.md: how to run, and what was measured beside the tables and the speed page."""

from collections.abc import Mapping, Sequence
from typing import Any

from gpu.plan import ROOT, Slot
from segjax.tables import page, results, spec

_TOP = """# An hour with a GPU

One command for each ten minutes on a machine with one GPU and no network. It trains what the tables
lack and measures what a CPU cannot, the most interesting first. Afterwards, in a checkout,
`python experiments/gpu/collect.py gpu.tar.gz` adds the results to the tables and pages.

Every step is a process of its own and leaves its result in `--out` at once. Run the same command
again, and what is there is not run again; a training goes on from its last checkpoint. When the
minutes are over, the running training saves its state, and what it has learned so far is evaluated
(up to 45 seconds late); on SIGTERM it only saves. Nothing is written into the checkout.
"""

_SETUP = """## Before

The machine needs Python 3.11 or newer, JAX for its GPU, and for slots d and e torch and
torchvision. With Python 3.12, what else segjax needs and such a machine may lack is in
[wheels.txt](wheels.txt), 11 MB. With a network, here:

```
p=$(for n in _2_28 _2_27 _2_24 _2_17 2014 1; do echo --platform manylinux${n}_x86_64; done)
pip download --no-deps --only-binary=:all: --python-version 3.12 --implementation cp $p \\
  -d wheels -r experiments/gpu/wheels.txt
pip wheel --no-deps -w wheels promise==2.3     # has no published wheel
```

There:

```
pip install --no-index --no-deps --target site wheels/*.whl
export PYTHONPATH=$PWD/site:$PWD
python experiments/gpu/run.py --toy --minutes=5 --out=toy     # does everything work?
```

`--commit=$(git rev-parse HEAD)` names the code where the checkout is copied without Git's
directory, `--weights='VGG16 (ImageNet, then HED)'` the weights in the records.

| in `--data` | size of ours | slots |
|---|---|---|
| `camvid/` (701 images as JPEG, quality 95, and labels) | 58.6 MiB | a, f, g |
| `isbi2012/` (30 images and labels) | 6.2 MiB | b |
| `PennFudanPed/` (170 images as JPEG, quality 95, and masks) | 12.7 MiB | c |
| `vgg16_features.safetensors` (VGG16's convolutions, float16) | 28.1 MiB | a, f |

Together with the wheels 116 MiB, and the checkout 8 more: where only so much can be sent at once,
send wheels, the small data sets and a part of CamVid first, then the rest. What a slot lacks is
left out, and the log says so. Data sets are prepared there: CamVid's raw files are smaller than the
prepared ones (60.0 MiB). `--pack` holds the records, curves, reports and logs, but no checkpoints:
trainings go on only where `--out` stays.
"""

_AT_ONCE = """Several runs at once fill a large card, each with an `--out` of its own and
`XLA_PYTHON_CLIENT_PREALLOCATE=false`; their times are then not those of one run alone, so slots d,
e and h run by themselves. Compile Mask R-CNN's steps first, and start the others then: beside them
XLA waits for memory ([below](#the-second-session)).
"""

# Read off the logs of that session; the results themselves are below and in the tables.
_SESSION = """### The first session

Fourteen minutes on an H200 (2026-11-27, commit bc8f87f), with slots a, b, c and g, partly at once;
b was paused where a fell behind:

- SegNet-Basic was done, at 219 images/s on average, and at 294 after the others had ended (slot a).
- The paper's U-Net was stopped at step 11,296 of 20,000: 109 steps/s before slot a began, and 4 to
  33 beside it (slot b).
- Mask R-CNN was stopped at step 230 of 1,500. Its train step was compiled for three shapes in 101,
  137 and 81 s while the others filled the memory that XLA asks for to choose algorithms; then it
  trained at up to 58 images/s (slot c).
- The U-Net on scenes resumed bit for bit. Mask R-CNN on tiny scenes logged the same values in all
  steps of its second run, and in the last three of its resumed run; the time was over before their
  parameters were compared (slot g).
- Speed (slot d) began 30 s before the end, and has no result.

### The second session

Fourteen minutes on an H200 (2026-11-28, commit 9290e67), with slots b and c at once, then
SegNet's Table 6 and the first row of slot d alone:

- The paper's U-Net was done: 20,000 steps of one image in five minutes, at 57 to 154 steps/s
  (median 149) while Mask R-CNN was compiled and trained beside it (slot b).
- Mask R-CNN was stopped at step 621 of 1,500. Its train step was compiled for four shapes in 92,
  72, 96 and 42 s. To choose algorithms for convolutions, XLA tried up to 65 GiB of memory at once.
  What it cannot get it waits for, ten seconds each time: it did so 13 times for the first three
  shapes, and not for the fourth, when the U-Net had ended. It trained at up to 68 images/s.
- SegNet's Table 6 took 93 s, after a first try that was stopped at 64 s; what that had compiled was
  in the cache.
- U-Net's train step in bfloat16 took 106 s with `torch.compile`; SegNet's had no result after 46 s
  (slot d).
"""

_COMMAND = (
  'python experiments/gpu/run.py --slots={} --minutes=9 --data=data --out=gpu --pack=gpu.tar.gz'
)
_NONE = 'Not run yet.\n'


def render(results: Sequence[Mapping[str, Any]], slots: Mapping[str, Slot]) -> str:
  """The page as Markdown.

  Args:
    results: lines of `results.jsonl`.
    slots: by name, in their order.
  """
  of = lambda *kinds: [line for line in results if line['kind'] in kinds]
  parts = [
    '<!-- Written by: python experiments/gpu/run.py --page -->',
    _TOP,
    _slots(slots),
    _AT_ONCE,
    _SETUP,
    '## Measured\n',
    'Trainings that were finished are in their [tables](../../docs/tables.md), rows of speed on\n'
    'the [speed page](../speed/README.md).\n',
    _SESSION,
    '### Trainings that were stopped\n',
    _partial(of('partial')),
    '### Kill and resume (slot g)\n',
    _resumed(of('resume')),
    '### Memory and images a second (slot h)\n',
    _batches(of('batch'), of('limit')),
  ]
  return '\n'.join(parts).rstrip() + '\n'


def _slots(slots: Mapping[str, Slot]) -> str:
  rows = [
    [slot.letter, name, slot.title, ', '.join(f'`{n}`' for n in slot.needs), slot.estimate]
    for name, slot in slots.items()
  ]
  commands = ''.join(f'{_COMMAND.format(slot.letter)}\n' for slot in slots.values())
  said = (
    "The times are estimates: of trainings by XLA's count of the operations of their steps at 60\n"
    'TFLOP/s, without start, compilation and evaluation (about two minutes); the others are\n'
    'guesses. What was measured is [below](#measured). `--slots=b,c` runs several slots, `--list`\n'
    'prints all.\n'
  )
  table = _table(['slot', 'name', 'what', 'data', 'estimate'], rows)
  return f'```\n{commands}```\n\n{table}\n{said}'


def _partial(lines: Sequence[Mapping[str, Any]]) -> str:
  rows = [
    [
      line['table'],
      f'`{line["entry"]}`',
      f'{line["checkpoint"]}, step {line["step"]:,} of {line["steps"]:,}',
      _metrics(line),
      _where(line),
    ]
    for line in lines
  ]
  return _table(['table', 'entry', 'checkpoint', 'metrics', 'on'], rows) if rows else _NONE


def _metrics(line: Mapping[str, Any]) -> str:
  """The results in the columns of the line's table."""
  found = []
  for name, column in spec.read_table(ROOT / 'experiments' / line['table']).columns.items():
    value = results.look_up(line['metrics'], column.key) if column.key else None
    if value is not None:
      result = page.Result(value * column.scale, None, 1)
      found.append(f'{page.heading(name, column)} {page.result_cell(result, column)}')
  return ', '.join(found)


def _resumed(lines: Sequence[Mapping[str, Any]]) -> str:
  spell = lambda same: 'the same, bit for bit' if same else 'others'
  rows = [
    [
      f'`{line["config"]}`, {line["steps"]} steps',
      'deterministic' if line['deterministic'] else 'default',
      spell(line['same_again']),
      f'{spell(line["same_resumed"])}, killed at {line["killed_at"]}',
      _where(line),
    ]
    for line in lines
  ]
  heading = ['training', 'operations', 'parameters of a second run', 'of a resumed run', 'on']
  return _table(heading, rows) if rows else _NONE


def _batches(found: Sequence[Mapping[str, Any]], limits: Sequence[Mapping[str, Any]]) -> str:
  rows = [
    [
      f'{line["network"]}, {line["dtype"]}',
      f'{line["batch"]}',
      f'{line["images_per_second"]:.1f}',
      f'{1e3 * line["seconds"]:.1f} ms',
      f'{line["flops"] / line["seconds"] / 1e12:.1f}' if line['flops'] else '',
      _gigabytes(line['temporary_bytes']),
      _gigabytes(line['peak_bytes']),
      _where(line),
    ]
    for line in found
  ]
  if not rows:
    return _NONE
  heading = ['train step', 'batch', 'images/s', 'time', 'TFLOP/s', 'intermediate', 'peak', 'on']
  ends = [
    f'- {line["network"]}, {line["dtype"]}: {line["fits"]} images fit'
    + (f', {line["does_not_fit"]} do not' if line['does_not_fit'] else ', more was not tried')
    for line in limits
  ]
  return '\n'.join([_table(heading, rows), *ends, ''])


def _gigabytes(count: int | None) -> str:
  return '' if count is None else f'{count / 1e9:.2f} GB'


def _where(line: Mapping[str, Any]) -> str:
  dirty = ' with uncommitted changes' if line.get('dirty') else ''
  note = f', {line["note"]}' if line.get('note') else ''
  return f'{line["hardware"]}, commit {results.short_commit(line["commit"])}{dirty}{note}'


def _table(heading: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
  lines = [heading, ['---'] * len(heading), *rows]
  return ''.join(f'| {" | ".join(row)} |\n' for row in lines)
