"""`manifest.json` of an export: what its programs take and give, and the digests of its files."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from segjax.export import program
from segjax.export.program import OUTPUTS, Plan
from segjax.run import Loaded
from segjax.types import SegjaxError

NAME = 'manifest.json'
# Of the manifest; raised by changes that readers of an older one would misread.
VERSION = 1
# The copy of `segjax.ops.paste_masks` that is part of an export.
PASTE = 'paste_masks.py'


def describe(loaded: Loaded, plans: Sequence[Plan], outputs: Sequence[str]) -> dict[str, Any]:
  """What an export says of itself, but for its format, versions and files.

  Args:
    loaded: the run.
    plans: the programs.
    outputs: of each program, in order.
  """
  run, spec = loaded.run, loaded.run.spec
  data, kind = run.experiment.data, run.experiment.input.annotations[-1]
  gray = spec.channels == 1
  return {
    'manifest_version': VERSION,
    'task': run.experiment.task,
    'classes': [
      {'name': name, 'color': color}
      for name, color in zip(spec.class_names, spec.palette.tolist(), strict=True)
    ],
    'input': {
      'name': 'image',
      'dtype': 'uint8',
      'layout': 'batch, height, width, channels',
      'channels': spec.channels,
      'color': 'gray' if gray else 'RGB',
      'range': [0, 255],
    },
    'inside': {
      'size': {
        key: getattr(data.size, key)
        for key in ('image_size', 'resize', 'short_side', 'longest_side', 'interpolation', 'shapes')
      },
      'mean': data.mean,
      'std': data.std,
    },
    'outputs': {
      name: dict(zip(('dtype', 'shape', 'meaning'), OUTPUTS[kind][name], strict=True))
      for name in outputs
    },
    'paste': getattr(run.experiment.eval, 'paste', None),
    'draw_threshold': getattr(run.experiment.eval, 'draw_threshold', 0.0),
    'spec': spec.to_json(),
    'images': loaded.images and loaded.images.to_json(),
    'max_pixels': data.max_pixels,
    'step': loaded.restored.step,
    'parameters_sha256': loaded.restored.params_sha256,
    'config_digest': run.experiment.digest,
    'programs': [
      {
        'size': plan.native,
        'largest': program.largest(plan, data.size),
        'network_size': plan.canvas,
        'batch': plan.batch,
      }
      for plan in plans
    ],
  }


def write(directory: Path, content: Mapping[str, Any]) -> None:
  """Writes the manifest of a directory with the digests of all its other files."""
  files = sorted(path for path in directory.rglob('*') if path.is_file())
  digests = {path.relative_to(directory).as_posix(): sha256(path) for path in files}
  text = json.dumps({**content, 'sha256': digests}, indent=2)
  (directory / NAME).write_text(text + '\n', encoding='utf-8')


def read(directory: Path) -> dict[str, Any]:
  """The manifest of an export whose files are as they were written.

  Raises:
    SegjaxError: there is none, it was written by a newer version, or a file is missing or corrupt.
  """
  path = directory / NAME
  if not path.is_file():
    raise SegjaxError(f'{directory} is not an export (no {NAME}): write one by segjax export')
  again = 'export the run again'
  try:
    content = json.loads(path.read_text(encoding='utf-8'))
    version, digests = content['manifest_version'], dict(content['sha256'])
  except (ValueError, KeyError, TypeError) as e:
    raise SegjaxError(f'{path} is corrupt ({e}): {again}') from e
  if version > VERSION:
    raise SegjaxError(
      f'{path} was written by a newer version of segjax ({content.get("segjax")}): update segjax, '
      f'or {again} with this one'
    )
  for name, digest in digests.items():
    file = directory / name
    if not file.is_file():
      raise SegjaxError(f'{file} is missing: copy the complete directory, or {again}')
    if sha256(file) != digest:
      raise SegjaxError(f'{file} is corrupt (SHA-256 differs): copy it again, or {again}')
  return content


def plans(content: Mapping[str, Any]) -> list[Plan]:
  """The programs of an export."""
  pair = lambda value: None if value is None else tuple(value)
  return [Plan(pair(p['size']), pair(p['network_size']), p['batch']) for p in content['programs']]


def sha256(path: Path) -> str:
  """The digest of a file in hexadecimal digits."""
  with path.open('rb') as file:
    return hashlib.file_digest(file, 'sha256').hexdigest()
