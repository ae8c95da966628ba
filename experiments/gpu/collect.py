"""Adds what a run with a GPU brought back to the tables and pages of this checkout.

  python experiments/gpu/collect.py PACK.tar.gz [--commit=HASH] [--note='shared GPU']

Records go to the results of their tables, each in place of an older one of the same entry and seed,
and their images beside them; rows of experiments/speed to its results, and the rest to
experiments/gpu/results.jsonl, which keeps of each training that was stopped the furthest result,
until the training has a record. The pages are written anew. PACK may be the output directory
itself.
"""

import argparse
import dataclasses
import shutil
import sys
import tarfile
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

if not __package__:  # run as a script
  sys.path[:1] = [
    str(Path(__file__).resolve().parents[1]),
    str(Path(__file__).resolve().parents[2]),
  ]

from speed import growth  # noqa: E402
from speed import page as speed_page  # noqa: E402
from speed.rows import KINDS  # noqa: E402

import lines  # noqa: E402
from gpu import page  # noqa: E402
from gpu.plan import ROOT  # noqa: E402
from gpu.slots import SLOTS  # noqa: E402
from gpu.training import is_recorded  # noqa: E402
from segjax.cli.table import update_pages  # noqa: E402
from segjax.tables import results, spec  # noqa: E402


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('pack', type=Path)
  parser.add_argument('--commit', help='of the code that ran, where it is not known')
  parser.add_argument('--note', help='of the results without one, such as "shared GPU"')
  args = parser.parse_args()
  with tempfile.TemporaryDirectory() as directory:
    out = args.pack
    if not out.is_dir():
      out = Path(directory)
      with tarfile.open(args.pack) as archive:
        archive.extractall(out, filter='data')
    collect(out, ROOT / 'experiments', args.commit, args.note)


def collect(out: Path, experiments: Path, commit: str | None, note: str | None) -> None:
  """Adds the results below `out` to those below `experiments`."""
  starts = lines.read(out / 'starts.jsonl')
  if not starts or any(start['toy'] for start in starts):
    raise SystemExit(f'{out} has no results of a run at full size')
  named = {start['commit'] for start in starts}
  if commit is None and len(named) == 1:  # of several, what has no commit may have run with any
    [commit] = named
  for folder in sorted((out / 'tables/experiments').glob('*')):
    if (folder / 'results.jsonl').exists():
      added = add_records(folder, experiments / folder.name, commit, note)
      print(f'{folder.name}: {", ".join(added)}')
  noted = {'note': note} if note else {}
  fill = lambda line: {**noted, **line, 'commit': line['commit'] or commit}
  measured = [*lines.read(out / 'measured.jsonl'), *_partial(out)]
  for name, found in (('speed', lines.read(out / 'speed.jsonl')), ('gpu', measured)):
    path = experiments / name / 'results.jsonl'
    known = lines.read(path)
    bare = [_bare(line) for line in known]
    new = [line for line in map(fill, found) if _bare(line) not in bare]  # packs may overlap
    for line in new:
      lines.append(path, line)
    print(f'{name}: {len(new)} lines')
  path = experiments / 'gpu/results.jsonl'
  known = lines.read(path)
  if (current := _current(known, experiments)) != known:
    lines.write(path, current)
  write_pages(experiments)


def _bare(line: Mapping[str, Any]) -> dict[str, Any]:
  """A result without its note."""
  return {key: value for key, value in line.items() if key != 'note'}


def _current(found: Sequence[Mapping[str, Any]], experiments: Path) -> list[Mapping[str, Any]]:
  """The results without those of stopped trainings that have come further, or to their end."""
  partial = [line for line in found if line['kind'] == 'partial']
  furthest: dict[tuple[str, str], int] = {}
  for line in partial:
    key = line['table'], line['entry']
    furthest[key] = max(line['step'], furthest.get(key, 0))
  done = {key for key in furthest if is_recorded(experiments / key[0], key[1])}
  passed = [
    line
    for line in partial
    if (key := (line['table'], line['entry'])) in done or line['step'] < furthest[key]
  ]
  return [line for line in found if line not in passed]


def _partial(out: Path) -> list[dict[str, Any]]:
  """Of each training that was stopped the last result."""
  found = {(line['table'], line['entry']): line for line in lines.read(out / 'partial.jsonl')}
  return [{'kind': 'partial', **line} for line in found.values()]


def add_records(folder: Path, target: Path, commit: str | None, note: str | None) -> list[str]:
  """Adds the records in `folder` to the table `target`; returns the entries."""
  table = spec.read_table(target)
  found = results.read_results(dataclasses.replace(table, folder=folder))
  records = [dataclasses.replace(r, commit=r.commit or commit, note=r.note or note) for r in found]
  results.write_records(table, records)
  for name in filter(None, (record.image for record in records)):
    (target / name).parent.mkdir(exist_ok=True)
    shutil.copyfile(folder / name, target / name)
  update_pages(table)
  return [record.entry for record in records]


def write_pages(experiments: Path) -> None:
  """The pages of the speed and of this directory."""
  text = page.render(lines.read(experiments / 'gpu/results.jsonl'), SLOTS)
  (experiments / 'gpu/README.md').write_text(text, encoding='utf-8')
  speed = experiments / 'speed'
  grown = lines.read(speed / 'growth.jsonl')
  measured = lines.read(speed / 'results.jsonl')
  (speed / 'README.md').write_text(speed_page.render(measured, grown, KINDS), encoding='utf-8')
  growth.draw(grown, speed / 'growth.svg')


if __name__ == '__main__':
  main()
