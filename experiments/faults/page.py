"""Writes README.md from the results."""

from collections.abc import Mapping, Sequence
from typing import Any

from faults.row import Row

Result = Mapping[str, Any]

TOP = """# Faults

<!-- Written by: python experiments/faults/run.py --page -->

What really broken runs lose. Each row breaks `segjax` in processes of its own, by the fault that it
names, as often as it says, at random moments or places of a seed. **Lost** is what a run that was
broken lacks beside one that nothing disturbed: a state that is equal bit for bit (parameters,
statistics, optimizer, moving average), every entry of the log once and with the same values, a
sentence in place of a traceback, files that are cleaned up. Steps that are done again after a kill
are work, and are counted beside it.

```
python experiments/faults/run.py --list
python experiments/faults/run.py
python experiments/faults/run.py --rows='sigkill_*' --tries=30 --seed=0
python experiments/faults/run.py --rows='soak_*' --minutes=60
```

The networks are small (`place.py`): a U-Net with dropout, elastic deformation and a moving average,
and a Mask R-CNN. A full or read-only disk is a mount, which takes root; the clock is Python's.
The raw results are in [results.jsonl](results.jsonl).
"""

# Below the table of a kind.
NOTES = {
  'Soak': """Memory, files, threads and compilations count as growing if the slope of a line through
their samples is more than three times its error, memory from 2% an hour of processor time.
`soak_semantic` was judged before this held for counts: its threads went up and down, and the last
sample had one more than the first.

A checkpoint every 200 steps is far more often than a training needs, so that what each of them
keeps is seen. `soak_orbax` saves as many arrays without segjax, as `orbax_alone.py` in this folder
does: of the 438 bytes a step 346 are what Orbax 0.12.8 and TensorStore 0.1.86 keep, of the 1,021
of the instance run 807. What keeps the rest, 26 and 21 MB an hour, was not found. Most of what
these two keep is TensorStore's answer to a question that Orbax asks for each array of each
checkpoint. This prints it:

```python
import collections, resource
import tensorstore as ts

spec = ts.KvStore.Spec({'driver': 'file', 'path': '/tmp/a/'})
calls = lambda: collections.deque((spec.to_json() for _ in range(100_000)), maxlen=0)
used = lambda: 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
calls()
before = used()
calls()
print((used() - before) / 100_000, 'bytes a call')
```"""
}


def render(results: Sequence[Result], kinds: Mapping[str, Mapping[str, Row]]) -> str:
  """The page as Markdown; rows without a result are "not run".

  Args:
    results: lines of `results.jsonl`, the oldest first.
    kinds: see `rows.KINDS`.
  """
  found = {result['row']: result for result in results}
  lines = [TOP]
  for kind, rows in kinds.items():
    lines += [
      f'## {kind}',
      '',
      '| fault | tries | what happened | lost | | row |',
      '|---' * 6 + '|',
    ]
    lines += [_line(name, row, found.get(name)) for name, row in rows.items()]
    lines += ['', *([NOTES[kind], ''] if kind in NOTES else [])]
  lines += ['## Provenance', '']
  lines += [_provenance(found[name]) for rows in kinds.values() for name in rows if name in found]
  return '\n'.join([*lines, '', '+: with uncommitted changes.']) + '\n'


def describe(result: Result) -> str:
  """A line on a result, for the terminal."""
  if 'error' in result:
    return f'{result["row"]}: failed: {result["error"]}'
  cells = [f'{result["tries"]} tries', _counts(result['happened']), f'lost: {lost(result)}']
  return f'{result["row"]}: {"; ".join([*cells, _notes(result)]).strip("; ")}'


def lost(result: Result) -> str:
  """What was lost, in words."""
  return _counts(result['lost']) or 'nothing'


def _line(name: str, row: Row, result: Result | None) -> str:
  if result is None:
    return f'| {row.fault} | not run | | | | `{name}` |'
  missing = f'**{lost(result)}**' if result['lost'] else 'nothing'
  cells = [row.fault, str(result['tries']), _counts(result['happened']), missing, _notes(result)]
  return f'| {" | ".join([*cells, f"`{name}`"])} |'


def _counts(counts: Mapping[str, int]) -> str:
  return '; '.join(f'{count} × {what}' for what, count in sorted(counts.items()))


def _notes(result: Result) -> str:
  return '; '.join(f'{name} {value}' for name, value in result['notes'].items())


def _provenance(result: Result) -> str:
  commit = (result['commit'] or 'unknown')[:7] + '+' * bool(result['dirty'])
  return (
    f'- `{result["row"]}`: `{result["command"]}`, commit {commit}, {result["date"]}, '
    f'{result["hardware"]}, {result["versions"]}, {result["seconds"] / 60:.0f} min'
  )
