"""Writes README.md from the results."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import lines
from scaling import bounds, evaluation, layouts, memory

TOP = """# Scaling over devices and processes

Everything here runs on the CPU: devices are parts of one process, or of several on one machine,
which exchange by Gloo. So it shows that the numbers stay, and what each device holds and each
process does; it says nothing about the speed of an accelerator or a network.

```
python experiments/scaling/run.py --list
python experiments/scaling/run.py --rows='layouts_*'
python experiments/scaling/run.py --page
```

The raw results, with commit and versions, are in [results.jsonl](results.jsonl). A row without a
result says "not run".
"""

LAYOUTS = f"""## Layouts

Each network is trained for {layouts.STEPS} steps with a moving average and then evaluated, with few
channels, in each layout: processes × devices of each. Largest differences from one device: relative
ones of the losses and of the arrays of the checkpoint (parameters, optimizer
state, statistics, average; relative to the largest element of their kind), and absolute ones of the
metrics. The merged network is evaluated only. `space` is for semantic tasks; the others refuse it
by name.
"""

FSDP = """## Bytes of a device with `config.mesh.fsdp`

MiB of a device in a train step of a shipped config with 4 images, from the memory analysis of the
compiled program: what stays between steps (parameters, optimizer state, average), and what a step
needs in addition, which includes activations, gradients and gathered parameters.
"""

SPACE = """## Bytes of a device with `config.mesh.space`

The same for one image whose height is split.
"""

EVALUATION = """## COCO evaluation by several processes

Processor seconds of each process for {images} images with 100 detections each, boxes and masks:
pasting, encoding, comparing and averaging. The network is left out. All metrics are compared with
those of one process. The averages are shared by class. The rest is what each process does for all
images: the exchange of names and F1 after each batch, and of the numbers that are averaged.
"""


def read(path: Path) -> dict[str, dict[str, Any]]:
  """The last result of each row."""
  return {result['row']: result for result in lines.read(path)}


def render(results: Mapping[str, Mapping[str, Any]], speed: Mapping[str, Any]) -> str:
  """README.md.

  Args:
    results: by row.
    speed: those of experiments/speed, by row.
  """
  parts = [
    TOP,
    LAYOUTS,
    table(*layout_table(results)),
    FSDP,
    table(*memory_table(results, 'fsdp')),
    SPACE,
    table(*memory_table(results, 'space')),
    EVALUATION.format(images=evaluation.IMAGES),
    table(*evaluation_table(results)),
    bounds.render(results, speed),
    provenance(results),
  ]
  return '\n'.join(parts)


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
  lines = [head, ['---'] * len(head), *rows]
  return '\n'.join(f'| {" | ".join(line)} |' for line in lines) + '\n'


def layout_table(results: Mapping[str, Mapping[str, Any]]) -> tuple[list[str], list[list[str]]]:
  rows = []
  for row, network in zip(layouts.ROWS, layouts.NETWORKS, strict=True):
    if row not in results:
      rows.append([network, 'not run', '', '', ''])
      continue
    for value in results[row]['values'][1:]:
      found = [f'{value[key]:.1e}' if value[key] else '0' for key in ('loss', 'arrays', 'metrics')]
      rows.append([network, value['layout'], *found])
  return ['network', 'layout', 'loss', 'arrays', 'metrics'], rows


def memory_table(
  results: Mapping[str, Mapping[str, Any]], kind: str
) -> tuple[list[str], list[list[str]]]:
  rows = []
  for name, (config, _, shape, _) in memory.NETWORKS.items():
    if not name.startswith(kind):
      continue
    what = f'{config}, {shape[0]} x {shape[1]}'
    if f'memory_{name}' not in results:
      rows.append([what, 'not run', '', ''])
      continue
    rows += [[what, *cells(value)] for value in results[f'memory_{name}']['values']]
  return ['config', 'layout', 'state', 'temporary'], rows


def cells(value: Mapping[str, Any]) -> Iterator[str]:
  devices = value['data'] * value['space']
  kind = 'split' if value['space'] > 1 else 'shared' if value['fsdp'] else 'replicated'
  yield '1 device' if devices == 1 else f'{devices} devices, {kind}'
  for key in ('state', 'temporary'):
    yield f'{value[key] / 2**20:,.1f}'


def evaluation_table(results: Mapping[str, Mapping[str, Any]]) -> tuple[list[str], list[list[str]]]:
  head = ['processes', 'seconds of each', 'of one process', 'metrics']
  if 'evaluation' not in results:
    return head, [['not run', '', '', '']]
  values = results['evaluation']['values']
  one, expected = values[0]['seconds'][0], values[0]['metrics'][0]
  rows = []
  for value in values:
    seconds = value['seconds']
    share = sum(seconds) / len(seconds) / one
    same = all(metrics == expected for metrics in value['metrics'])
    spelled = ', '.join(f'{s:.2f}' for s in seconds)
    rows.append([str(value['processes']), spelled, f'{share:.2f}', 'equal' if same else 'DIFFER'])
  return head, rows


def provenance(results: Mapping[str, Mapping[str, Any]]) -> str:
  def spell(result: Mapping[str, Any]) -> str:
    dirty = ' (+: with uncommitted changes)' if result['dirty'] else ''
    date = result['time'][:10]
    return (
      f'{date}, commit {result["commit"][:7]}{dirty}, {result["hardware"]}, {result["versions"]}'
    )

  found = sorted({spell(result) for result in results.values()})
  return 'Measured: ' + '; '.join(found or ['nothing']) + '.\n'
