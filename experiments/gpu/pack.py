"""One file with everything of a run that travels back: no checkpoints, no data."""

import os
import tarfile
from collections.abc import Iterator
from pathlib import Path

from gpu.plan import Context

# Below the output directory.
_PATTERNS = (
  '*.jsonl',
  'logs/*.log',
  'tables/experiments/*/results.jsonl',
  'tables/experiments/*/images/*',
  'runs/*/*/config.json',
  'runs/*/*/metrics.jsonl',
  'runs/*/*/starts.jsonl',
  'runs/*/*/report.html',
)


def files(out: Path) -> Iterator[Path]:
  """The files that travel."""
  for pattern in _PATTERNS:
    yield from sorted(out.glob(pattern))


def write_pack(context: Context, path: Path) -> None:
  """Writes them to a .tar.gz, in one piece: a kill leaves the old file or the new one."""
  path.parent.mkdir(parents=True, exist_ok=True)
  temporary = path.with_name(f'.{path.name}.{os.getpid()}')
  with tarfile.open(temporary, 'w:gz') as archive:
    for file in files(context.out):
      archive.add(file, file.relative_to(context.out))
  temporary.replace(path)
