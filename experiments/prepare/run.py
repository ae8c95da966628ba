"""Prepares a data set of COCO's size and kills it while it does: rate, memory, what is lost.

python experiments/prepare/run.py --rate            one row for 1, 2, … workers
python experiments/prepare/run.py --kills=30        SIGKILL at random moments
python experiments/prepare/run.py --flips=300       a flipped byte in the prepared files
python experiments/prepare/run.py --page            writes README.md from results.jsonl

Times are processor time, which other work on the machine changes little.
"""

import argparse
import collections
import json
import os
import random
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np

HERE = Path(__file__).resolve().parent
if not __package__:  # run as a script; segjax is that of this checkout
  sys.path[:1] = [str(HERE.parent), str(HERE.parent.parent)]

import lines  # noqa: E402
from segjax import provenance  # noqa: E402
from segjax.tables import results  # noqa: E402

RESULTS = HERE / 'results.jsonl'
# COCO 2017: images and objects of train and val.
COCO = {'train': (118_287, 860_001), 'val': (5_000, 36_781)}
SIZE, CLASSES = 64, 80
# Seconds between two looks at the memory of the processes.
_LOOK = 0.5


# --- synthetic data -------------------------------------------------------------------------------


def make(source: Path, part: float) -> None:
  """Writes images and annotations as COCO has them, small, and a part of their number."""
  (source / 'annotations').mkdir(parents=True)
  for split, (images, objects) in COCO.items():
    images, objects = int(images * part), int(objects * part)
    (source / split).mkdir()
    rng = np.random.default_rng(images)
    for number in range(images):
      noise = rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)
      pixels = cv2.resize(noise, (SIZE, SIZE), interpolation=cv2.INTER_CUBIC)
      cv2.imwrite(str(source / split / f'{number:012}.jpg'), pixels)
    content = {
      'images': [
        {'id': i, 'file_name': f'{i:012}.jpg', 'height': SIZE, 'width': SIZE} for i in range(images)
      ],
      'categories': [{'id': i, 'name': f'class {i}'} for i in range(CLASSES)],
      'annotations': [_object(rng, number, images) for number in range(objects)],
    }
    (source / 'annotations' / f'instances_{split}.json').write_text(json.dumps(content))


def _object(rng: np.random.Generator, number: int, images: int) -> dict[str, Any]:
  """A polygon of ten corners around a random center."""
  radius, angles = rng.uniform(4, 12), np.linspace(0, 2 * np.pi, 10, endpoint=False)
  x, y = rng.uniform(radius, SIZE - radius, 2)
  corners = np.stack([x + radius * np.cos(angles), y + radius * np.sin(angles)], 1).round(2)
  return {
    'id': number,
    'image_id': int(rng.integers(images)),
    'category_id': int(rng.integers(CLASSES)),
    'segmentation': [corners.ravel().tolist()],
    'bbox': [x - radius, y - radius, 2 * radius, 2 * radius],
    'area': 3 * radius**2,
    'iscrowd': 0,
  }


# --- measurements ---------------------------------------------------------------------------------


def start(source: Path, target: Path, workers: int) -> subprocess.Popen[str]:
  """`segjax data prepare`, in a process group of its own."""
  return subprocess.Popen(
    [
      *(sys.executable, '-m', 'segjax.main', 'data', 'prepare', 'coco_instances/custom'),
      *(f'--source={source}', f'--data_dir={target}', f'--workers={workers}'),
    ],
    stdout=subprocess.PIPE,
    stderr=subprocess.STDOUT,
    text=True,
    start_new_session=True,
  )


def rate(source: Path, target: Path, workers: int) -> dict[str, Any]:
  """Prepares the data set; seconds, and the peak memory of the processes in MB."""
  before, began = os.times(), time.monotonic()
  process, peaks = start(source, target, workers), collections.Counter()
  while process.poll() is None:
    for pid, peak in _peaks(process.pid):
      peaks[pid] = max(peaks[pid], peak)
    time.sleep(_LOOK)
  after = os.times()
  told = process.stdout.read()
  assert process.returncode == 0, told
  main = peaks.pop(process.pid)
  return {
    'workers': workers,
    'examples': sum(int(part.split()[1]) for part in told.partition(': ')[2].split(',')[:2]),
    'wall': time.monotonic() - began,
    'processor': after[2] + after[3] - before[2] - before[3],
    'main_mb': main,
    'worker_mb': max(peaks.values(), default=0),
    'prepared_mb': sum(p.stat().st_size for p in target.rglob('*') if p.is_file()) / 1e6,
  }


def _peaks(group: int) -> Iterator[tuple[int, float]]:
  """The peak resident memory of each process of a group that makes or writes examples, in MB."""
  for path in Path('/proc').glob('[0-9]*'):
    try:
      fields = (path / 'stat').read_text().rpartition(')')[2].split()
      status = (path / 'status').read_text()
    except OSError:
      continue
    if int(fields[2]) == group and 'VmHWM' in status:
      yield int(path.name), int(status.partition('VmHWM:')[2].split()[0]) / 1e3


def kills(source: Path, target: Path, workers: int, number: int, seed: int = 0) -> dict[str, Any]:
  """SIGKILLs the main process `number` times at random moments, then lets it end."""
  whole = target / 'whole'
  seconds = rate(source, whole, workers)['wall']
  rng, outcomes = random.Random(seed), collections.Counter()
  while outcomes['killed'] < number:
    place = target / 'killed'
    process = start(source, place, workers)
    try:
      process.wait(timeout=rng.uniform(0, seconds))
    except subprocess.TimeoutExpired:
      os.kill(process.pid, signal.SIGKILL)
      process.wait()
      outcomes['killed'] += 1
      if digest(place) not in (None, digest(whole)):
        outcomes['wrong'] += 1
      continue
    outcomes['ended first'] += 1
    outcomes['wrong'] += digest(place) != digest(whole) or process.returncode != 0
    shutil.rmtree(place)
  process = start(source, target / 'killed', workers)
  told = process.communicate()[0]
  assert process.returncode == 0, told
  return {
    'workers': workers,
    'kills': outcomes['killed'],
    'ended': outcomes['ended first'],
    'wrong': outcomes['wrong'] + (digest(target / 'killed') != digest(whole)),
    'left': sorted(p.name for p in (target / 'killed').glob('*/custom*/*') if p.name != '1.0.0'),
  }


def digest(data_dir: Path) -> str | None:
  """That of the prepared data set; None where it is not prepared."""
  [found] = [*data_dir.glob('*/*/1.0.0/records.json'), None][:1]
  return found and json.loads(found.read_text())['digest']


def flips(source: Path, target: Path, number: int, seed: int = 0) -> dict[str, Any]:
  """Flips a bit of a prepared file and reads every example, `number` times."""
  from segjax.data import datasets, read
  from segjax.data.config import DataConfig, InputConfig
  from segjax.types import SegjaxError

  builder = datasets.load('coco_instances/custom', target, source)
  config = InputConfig(DataConfig('coco_instances/custom'), annotations=('objects',))
  spec = datasets.spec(builder, config)
  [path] = builder.data_path.glob('*-val.array_record*')
  content, rng, outcomes = path.read_bytes(), random.Random(seed), collections.Counter()

  def examples() -> list[bytes]:
    reader = read.Reader(builder, 'val', config, spec)
    return [reader._record(index) for index in range(len(reader))]

  expected = examples()
  for _ in range(number):
    damaged, place = bytearray(content), rng.randrange(len(content))
    damaged[place] ^= 1 << rng.randrange(8)
    path.write_bytes(damaged)
    try:
      outcomes['harmless' if examples() == expected else 'silently wrong'] += 1
    except SegjaxError:
      outcomes['one sentence'] += 1
    except Exception as e:
      outcomes[f'traceback: {type(e).__name__}'] += 1
  path.write_bytes(content)
  return {'flips': number, **outcomes}


# --- page -----------------------------------------------------------------------------------------


def page(rows: list[dict[str, Any]]) -> str:
  """The README."""
  lines = [
    '<!-- Written by: python experiments/prepare/run.py --page -->',
    '# Preparing data',
    '',
    '`segjax data prepare coco_instances/custom` on synthetic data with the numbers of COCO 2017:',
    f'images of {SIZE} x {SIZE} pixels, objects with polygons of ten corners, {CLASSES} classes.',
    '',
    '```',
    'python experiments/prepare/run.py --rate --kills=30 --flips=300',
    'python experiments/prepare/run.py --page',
    '```',
    '',
  ]
  lines += _table(
    [row for row in rows if row['kind'] == 'rate'],
    {
      'workers': lambda r: r['workers'],
      'examples': lambda r: f'{r["examples"]:,}',
      'processor time': lambda r: f'{r["processor"]:.0f} s',
      'examples a second of it': lambda r: f'{r["examples"] / r["processor"]:,.0f}',
      'wall time (load)': lambda r: f'{r["wall"]:.0f} s ({r["load"]:.1f})',
      'peak memory, main process': lambda r: f'{r["main_mb"]:,.0f} MB',
      'a worker': lambda r: f'{r["worker_mb"]:,.0f} MB' if r['workers'] > 1 else '',
      'prepared': lambda r: f'{r["prepared_mb"]:,.0f} MB',
      'commit': _commit,
    },
  )
  lines += ['The main process holds the annotation files; a worker holds a shard of them.', '']
  lines += _table(
    [row for row in rows if row['kind'] == 'kills'],
    {
      'SIGKILLs while preparing': lambda r: r['kills'],
      'ended before one': lambda r: r['ended'],
      'workers': lambda r: r['workers'],
      'half prepared or wrong': lambda r: r['wrong'],
      'files left beside the data': lambda r: ', '.join(r['left']) or 'none',
      'commit': _commit,
    },
  )
  lines += _table(
    [row for row in rows if row['kind'] == 'flips'],
    {
      'bits flipped, one at a time': lambda r: r['flips'],
      'harmless': lambda r: r.get('harmless', 0),
      'one sentence': lambda r: r.get('one sentence', 0),
      'tracebacks': lambda r: sum(n for k, n in r.items() if k.startswith('traceback')),
      'silently wrong': lambda r: r.get('silently wrong', 0),
      'commit': _commit,
    },
  )
  return '\n'.join(lines).rstrip() + '\n'


def _commit(row: dict[str, Any]) -> str:
  return results.short_commit(row['commit']) + '+' * bool(row.get('dirty'))


def _table(rows: list[dict[str, Any]], columns: dict[str, Any]) -> list[str]:
  if not rows:
    return []
  cells = [[str(show(row)) for show in columns.values()] for row in rows]
  lines = [list(columns), ['---'] * len(columns), *cells]
  return [*(f'| {" | ".join(line)} |' for line in lines), '']


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.partition('\n')[0])
  parser.add_argument('--rate', action='store_true')
  parser.add_argument('--kills', type=int, default=0)
  parser.add_argument('--flips', type=int, default=0)
  parser.add_argument('--workers', default='1,2')
  parser.add_argument('--part', type=float, default=1.0, help='of COCO, for --rate')
  parser.add_argument('--page', action='store_true')
  args = parser.parse_args()
  workers = [int(word) for word in args.workers.split(',')]
  with tempfile.TemporaryDirectory() as directory:
    root = Path(directory)
    if args.rate:
      make(root / 'coco', args.part)
      for count in workers:
        record('rate', lambda n=count: rate(root / 'coco', root / f'rate{n}', n))
    if args.kills or args.flips:
      make(root / 'small', 0.02)
    if args.kills:
      record('kills', lambda: kills(root / 'small', root / 'kills', workers[-1], args.kills))
    if args.flips:
      record('flips', lambda: flips(root / 'small', root / 'flips', args.flips))
  if args.page:
    (HERE / 'README.md').write_text(page(lines.read(RESULTS)))


def record(kind: str, measure: Callable[[], dict[str, Any]]) -> None:
  """Measures a row and adds it to the results, with its command, code and hardware."""
  # Before many minutes of measuring, in which the code may change.
  facts = provenance.provenance()
  row = {
    'kind': kind,
    **facts,
    'command': f'python experiments/prepare/run.py {shlex.join(sys.argv[1:])}',
  }
  row |= {**measure(), 'load': os.getloadavg()[0]}
  print(json.dumps(row), flush=True)
  lines.append(RESULTS, row)


if __name__ == '__main__':
  main()
