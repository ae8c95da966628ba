"""Writes README.md from the results."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from runner import Result
from speed import growth
from speed.results import latest
from speed.row import Row

TOP = """# Speed

segjax beside the peers that a user would take: torch and torchvision, pycocotools and
faster-coco-eval, the public code of PQ. Each row runs in a process of its own, where the programs
take turns (ours, peer, ours, peer, …); torch runs in both memory layouts. **Ratio** is ours over
the peer that is fastest by its median: the median over the rounds, with the least and the greatest
round. Where it says "times", it is the peer over ours. Equal work is asserted in the run; what was
compared is in the last column. Times are medians.

```
pip install 'segjax[speed]'
python experiments/speed/run.py --list
python experiments/speed/run.py --rows='unet_*' --rounds=7
python experiments/speed/run.py --growth
python experiments/speed/run.py --page
```

**Bound** compares the time with what this machine reaches in a product (2048², on a GPU 8192²) and
in a copy, measured in the same process: the operations of our program (XLA's count of the program
as written) or its bytes (of the optimized program), whichever takes longer at that rate, as a
fraction of the measured time. The body of a loop counts once. It is empty where XLA does not count
operations, as on the GPU below.

Targets are of CPUs. A peer is **host-bound** where the processor that starts its kernels on a GPU
is busy all the time: the sizes are too small for the GPU, and the ratio is not of its work.

The raw results, with command, commit, versions, load, processor time, page faults and every round,
are in [results.jsonl](results.jsonl). Ideas that were tried, with predicted and measured gain, are
in [ideas.md](ideas.md).
"""

# Of the wall time: the processor does nothing else.
_BUSY = 0.95
_COLUMNS = ('work', 'ours', 'fastest peer', 'ratio', 'target', '', 'bound', 'equal work')


def render(
  results: Sequence[Result], grown: Sequence[Result], kinds: Mapping[str, Mapping[str, Row]]
) -> str:
  """The page as Markdown.

  Args:
    results: lines of `results.jsonl`.
    grown: lines of `growth.jsonl`.
    kinds: see `rows.KINDS`; rows without a result are named below those that have one.
  """
  lines = ['<!-- Written by: python experiments/speed/run.py --page -->', TOP]
  for (hardware, dtype), found in latest(results).items():
    lines += [f'## {hardware}, {dtype}', '', _provenance(found.values()), '']
    for kind, rows in kinds.items():
      if any(name in found for name in rows):
        lines += [f'### {kind}', '', *_table(rows, found), '']
  return '\n'.join([*lines, growth.section(grown)]).rstrip() + '\n'


def describe(name: str, row: Row, result: Result) -> str:
  """A line on a result, for the terminal."""
  cells = dict(zip(_COLUMNS, _cells(row, result), strict=True))
  named = (f'{key} {cell}' for key, cell in cells.items() if key not in ('', 'work') and cell)
  return f'{name}: ' + ', '.join(named) + (f' ({cells[""]})' if cells[''] else '')


def is_of_cpu(result: Result) -> bool:
  """By the name of its hardware, see `segjax.provenance.hardware`."""
  return result['hardware'].endswith(' cores)')


def verdict(row: Row, result: Result) -> str:
  """Whether the target is met, or by how much it is missed; '' without target or value."""
  value = result['value']
  if row.target is None or value is None:
    return ''
  more = row.value == 'times'
  if not (value >= row.target if more else value <= row.target):
    if not row.target:
      return f'missed by {value:g}'
    return f'missed by {abs(value / row.target - 1):.0%}'
  worst = result['least'] if more else result['greatest']
  every = worst >= row.target if more else worst <= row.target
  return 'met' if every else 'met, not in each round'


def bound(result: Result) -> str:
  """What bounds our program, and which fraction of the measured peak it reaches."""
  cost, peak = result['cost'], result['peak']
  if not cost or not peak or not cost['flops']:  # not counted
    return ''
  seconds = result['programs']['ours']['wall']
  shares = {
    'arithmetic': cost['flops'] / peak['flops'] / seconds,
    'memory': cost['bytes'] / peak['bytes'] / seconds,
  }
  name = max(shares, key=lambda name: shares[name])
  return f'{name}, {shares[name]:.0%}'


def _table(rows: Mapping[str, Row], found: Mapping[str, Result]) -> Iterator[str]:
  yield f'| {" | ".join(_COLUMNS)} |'
  yield '|---' * len(_COLUMNS) + '|'
  for name, row in rows.items():
    if name in found:
      yield f'| {" | ".join(_cells(row, found[name]))} |'
  if missing := [row.work for name, row in rows.items() if name not in found]:
    yield from ('', f'Not run: {"; ".join(missing)}.')


def _cells(row: Row, result: Result) -> list[str]:
  peer, programs = result['peer'], result['programs']
  other = f'{_amount(row, programs[peer])} {peer}' if peer else ''
  on_cpu = is_of_cpu(result)
  if peer and not on_cpu and programs[peer]['processor'] > _BUSY * programs[peer]['wall']:
    other += ', host-bound'
  if result['missing']:
    other = f'not installed: {result["missing"]}'
  notes = [f'{key} {value}' for key, value in result['notes'].items()]
  return [
    row.work,
    _amount(row, programs['ours']),
    other,
    _ratio(row, result),
    _target(row) if on_cpu else '',
    verdict(row, result) if on_cpu else '',
    bound(result),
    '; '.join([result['same'] or '', *notes]).strip('; '),
  ]


def _ratio(row: Row, result: Result) -> str:
  if result['value'] is None or row.value == 'own':
    return ''
  unit = ' times' if row.value == 'times' else ''
  return f'**{result["value"]:.2f}**{unit} ({result["least"]:.2f}–{result["greatest"]:.2f})'


def _target(row: Row) -> str:
  if row.target is None:
    return ''
  sign = '≥' if row.value == 'times' else '≤'
  return f'{sign} {row.target:g}' + (f' {row.unit}'.rstrip() if row.value == 'own' else '')


def _amount(row: Row, program: Mapping[str, Any]) -> str:
  value = program[row.reads]
  if row.unit != 's':
    return f'{value:,.0f} {row.unit}'.rstrip()
  return f'{value:.2f} s' if value >= 10 else f'{1e3 * value:,.{0 if value >= 0.1 else 2}f} ms'


def _provenance(found: Any) -> str:
  found = sorted(found, key=lambda result: result['date'])
  versions = found[-1]['versions']
  commits = sorted({f'{(r["commit"] or "unknown")[:7]}{"+" * bool(r["dirty"])}' for r in found})
  changes = ' (+: with uncommitted changes)' if any(r['dirty'] for r in found) else ''
  loads = [result['load'] for result in found]
  return (
    f'{", ".join(f"{name} {version}" for name, version in versions.items())}. '
    f'Commit{"s" * (len(commits) > 1)} {", ".join(commits)}{changes}, {found[-1]["date"]}. '
    f'Load average when the rows started: {min(loads):.1f} to {max(loads):.1f}.'
  )
