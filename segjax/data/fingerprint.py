"""What prepared data was prepared from, so that a change of the raw files is noticed."""

import hashlib
import itertools
import json
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from segjax import storage

# Next to the prepared files.
FILE = 'source.json'
# Of more files than this, the first ones in alphabetical order count.
MOST_FILES = 300_000


def fingerprint(paths: Iterable[Path], without: Path | None = None) -> str:
  """A digest of the paths, sizes and modification times of files.

  Args:
    paths: files, and directories whose files count. A hidden file does not.
    without: a directory whose files do not count, such as that of prepared data.
  """
  sha, skipped = hashlib.sha256(), without and without.resolve()
  for root in paths:
    found = _walk(root.resolve(), '', skipped, {root.resolve()})
    for path, status in itertools.islice(found, MOST_FILES):
      sha.update(
        f'{path}\0{status.st_size}\0{status.st_mtime_ns}\n'.encode(errors='surrogateescape')
      )
  return sha.hexdigest()[:16]


def _walk(
  path: Path, name: str, skipped: Path | None, linked: set[Path]
) -> Iterator[tuple[str, os.stat_result]]:
  """The files at or below a path, in an order that depends on their names alone.

  Of several links to a directory the first one counts, so that none leads round in circles.
  """
  if path == skipped:
    return
  if not path.is_dir():
    if path.exists():
      yield name, path.stat()
    return
  with os.scandir(path) as found:
    entries = sorted((e for e in found if not e.name.startswith('.')), key=lambda e: e.name)
  for entry in entries:
    inner = f'{name}/{entry.name}'
    if entry.is_dir():
      if entry.is_symlink():
        if (real := Path(entry.path).resolve()) in linked:
          continue
        linked.add(real)
      yield from _walk(Path(entry.path), inner, skipped, linked)
    elif entry.is_file():
      yield inner, entry.stat()


def write(directory: Path, source: Path, digest: str, asked: Any = None) -> None:
  """Notes in `directory`, atomically, what it was prepared from and how.

  Args:
    directory: of the prepared data.
    source: the directory of the raw files, and `digest` their fingerprint.
    asked: of what JSON knows, what the config asked for.
  """
  told = {'source': str(source.absolute()), 'digest': digest, 'asked': asked}
  storage.write_text(directory / FILE, json.dumps(told))


def read(directory: Path) -> dict[str, Any] | None:
  """What `write` wrote: `source`, `digest` and `asked`; None where nothing is known."""
  try:
    found = json.loads((directory / FILE).read_text())
    known = {key: found[key] for key in ('source', 'digest')}
    return {**known, 'asked': found.get('asked')}
  except (OSError, ValueError, KeyError, TypeError):
    return None
