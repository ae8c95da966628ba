"""`results.jsonl`: a line a measured row."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

Result = dict[str, Any]


def append(path: Path, result: Result) -> None:
  """Adds a line."""
  with path.open('a') as file:
    file.write(json.dumps(result, sort_keys=True) + '\n')


def read(path: Path) -> list[Result]:
  """All lines, the oldest first; none if there is no file."""
  if not path.exists():
    return []
  return [json.loads(line) for line in path.read_text().splitlines() if line]


def latest(results: Sequence[Result]) -> dict[tuple[str, str], dict[str, Result]]:
  """The last line of each row, by (hardware, dtype) and row."""
  found: dict[tuple[str, str], dict[str, Result]] = {}
  for result in results:
    found.setdefault((result['hardware'], result['dtype']), {})[result['row']] = result
  return found
