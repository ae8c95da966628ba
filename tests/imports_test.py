"""Imports run one way: a part of segjax may import only the parts below it."""

import ast
import pathlib

import pytest

# Part -> the parts of segjax that it may import. In `program` all of them meet; `main` sees it.
ALLOWED = {
  'types': set(),
  'config': {'types'},
  'workdir': {'config', 'types'},
  'merge': {'types'},
  'ops': {'types'},
  'nn': {'types', 'ops'},
  'models': {'types', 'ops', 'nn'},
  'convert': {'types', 'nn', 'models'},
  'losses': {'types', 'ops'},
  'metrics': {'types', 'ops'},
  'tasks': {'types', 'ops', 'losses', 'metrics'},
  'train': {'types', 'tasks.base'},
  'data': {'types'},
  'report': {'types'},
  'predict': {'types', 'data', 'metrics', 'report', 'tasks.base', 'train.compile'},
  'tables': {'types', 'config', 'workdir'},
}
ALLOWED['program'] = set(ALLOWED)
FLAX = {'nn', 'models'}
NEVER = {'tensorflow', 'torch', 'torchvision'}


def imported(path):
  """Dotted names of all that a file imports, wherever in it."""
  for node in ast.walk(ast.parse(path.read_text())):
    if isinstance(node, ast.Import):
      yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
      assert node.level == 0, f'{path}: imports are absolute'
      yield from (f'{node.module}.{alias.name}' for alias in node.names)


def files(root):
  return [p for p in (root / 'segjax').rglob('*.py') if p.name != '__main__.py']


def part_of(path, root):
  return path.relative_to(root / 'segjax').parts[0].removesuffix('.py')


def test_imports_run_one_way(root):
  wrong = []
  for path in files(root):
    part = part_of(path, root)
    if part in ('main', '__init__'):
      continue
    for name in imported(path):
      package, _, rest = name.partition('.')
      if package == 'segjax' and rest:  # the package alone is its version
        inside = rest.split('.')[0] == part
        if not inside and not any(rest == a or rest.startswith(f'{a}.') for a in ALLOWED[part]):
          wrong.append(f'{path.relative_to(root)} imports {name}')
      if package == 'flax' and part not in FLAX:
        wrong.append(f'{path.relative_to(root)} imports flax')
      if package in NEVER:
        wrong.append(f'{path.relative_to(root)} imports {package}')
  assert not wrong


def test_every_part_is_listed(root):
  parts = {part_of(p, root) for p in files(root)} - {'main', '__init__'}
  assert parts == set(ALLOWED)


@pytest.mark.parametrize('folder', ['configs'])
def test_configs_import_nothing_but_ml_collections(root, folder):
  for path in pathlib.Path(root / folder).rglob('*.py'):
    assert set(imported(path)) == {'ml_collections'}, path
