"""Files of results: a JSON object a line, the oldest first."""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any


def append(path: Path, line: Mapping[str, Any]) -> None:
  """Adds a line, and the directory of the file if there is none."""
  path.parent.mkdir(parents=True, exist_ok=True)
  with path.open('a', encoding='utf-8') as file:
    file.write(_spell(line))


def write(path: Path, lines: Iterable[Mapping[str, Any]]) -> None:
  """Replaces the lines of a file, whole or not at all."""
  temporary = path.with_name(f'.{path.name}.part')
  temporary.write_text(''.join(map(_spell, lines)), encoding='utf-8')
  temporary.replace(path)


def _spell(line: Mapping[str, Any]) -> str:
  return json.dumps(line, ensure_ascii=False, sort_keys=True) + '\n'


def read(path: Path) -> list[dict[str, Any]]:
  """All whole lines; none if there is no file. A kill may truncate the last one."""
  if not path.exists():
    return []
  found = []
  for text in path.read_text(encoding='utf-8').splitlines(keepends=True):
    if text.strip() and text.endswith('\n'):
      found.append(json.loads(text))
  return found
