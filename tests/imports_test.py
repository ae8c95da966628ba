"""Layering: a part of segjax may only import the parts below it, without cycles."""

import ast
import pathlib

import pytest

# Part -> the parts of segjax that it may import; `run`, `cli` and `api` see all of them.
ALLOWED = {
  'types': set(),
  'resources': {'types', 'storage'},
  'lookup': {'types', 'storage'},
  'config': {'types', 'resources'},
  'upgrade': {'types', 'config'},
  'storage': {'types'},
  'lock': {'types', 'storage'},
  'workdir': {'config', 'types', 'upgrade', 'storage', 'lock'},
  'merge': {'types'},
  'provenance': set(),
  'ops': {'types'},
  'nn': {'types', 'ops'},
  'models': {'types', 'ops', 'nn'},
  'download': {'types', 'lock', 'storage'},
  'convert': {'types', 'nn', 'models', 'download', 'storage'},
  'losses': {'types', 'ops'},
  'metrics': {'types', 'ops'},
  'tasks': {'types', 'ops', 'losses', 'metrics', 'lookup'},
  'training': {'types', 'tasks.base', 'storage'},
  'data': {'types', 'download', 'lock', 'storage', 'lookup'},
  'report': {'types', 'data.statistics', 'storage'},
  'result': {'types', 'data', 'report'},
  'draw': {'types', 'data', 'metrics', 'report'},
  'launch': {'types'},
  'tables': {'types', 'config', 'resources', 'workdir', 'storage', 'lock'},
  'recipes': {'types'},
  'config_file': {'recipes'},
  'experiment': {
    'types',
    'config',
    'lookup',
    'upgrade',
    'convert.load',
    'data.augment',
    'data.config',
    'data.datasets',
    'data.weight_map',
    'losses.dense',
    'report.values',
    'tasks.base',
    'training.loop',
    'training.optim',
    'training.sharding',
  },
}
ALLOWED['run'] = set(ALLOWED)
ALLOWED['infer'] = {'types', 'data', 'metrics', 'ops', 'result', 'run', 'training.compile'}
ALLOWED['predictor'] = {'types', 'data', 'result', 'run', 'infer', 'storage'}
ALLOWED['export'] = {
  'types',
  'convert',
  'data',
  'infer',
  'ops',
  'predictor',
  'result',
  'run',
  'storage',
  'training.compile',
  'workdir',
}
ALLOWED['trained'] = {'types', 'predictor', 'run', 'storage', 'training.checkpoint', 'workdir'}
ALLOWED['cli'] = set(ALLOWED)
ALLOWED['api'] = set(ALLOWED)
ALLOWED['main'] = {'types', 'cli', 'run'}
# The same inside data/: from a config to batches, and separately from files to data sets.
INSIDE_DATA = {
  'config': {'images'},
  'sample': {'masks'},
  'images': set(),
  'windows': set(),
  'frames': {'images', 'windows'},
  'weight_map': set(),
  'masks': set(),
  'formats': {'images', 'masks'},
  'builders': {'formats', 'images', 'guess', 'records'},
  'fingerprint': set(),
  'tfds_patches': set(),
  'records': {'fingerprint', 'images', 'tfds_patches'},
  'corrupt': set(),
  'outside': {'config'},
  'downloads': set(),
  'bucket': set(),
  'datasets': {
    'bucket',
    'config',
    'formats',
    'fingerprint',
    'outside',
    'downloads',
    'records',
    'tfds_patches',
  },
  'geometry': {'config', 'sample', 'masks'},
  'read': {'config', 'sample', 'masks', 'formats', 'images', 'datasets', 'corrupt'},
  'source_reader': {'config', 'sample', 'datasets', 'outside', 'geometry', 'read'},
  'guess': set(),
  'statistics': {'sample', 'read'},
  'unusual': {'config', 'sample', 'read', 'statistics', 'windows'},
  'augment': {'config', 'sample', 'masks', 'geometry'},
  'order': {'config', 'sample', 'geometry'},
  'batch': {'config', 'sample', 'masks'},
}
INSIDE_DATA['pipeline'] = set(INSIDE_DATA) - {'builders', 'formats'}
FLAX = {'nn', 'models'}
NEVER = {'tensorflow', 'torch', 'torchvision'}


def imported(path, *, at_once=False):
  """Dotted names of all imports of a file; with `at_once` without imports inside functions."""
  tree = ast.parse(path.read_text())
  for node in _at_once(tree) if at_once else ast.walk(tree):
    if isinstance(node, ast.Import):
      yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
      assert node.level == 0, f'{path}: imports are absolute'
      yield from (f'{node.module}.{alias.name}' for alias in node.names)


def _at_once(node):
  for child in ast.iter_child_nodes(node):
    if isinstance(child, ast.If) and getattr(child.test, 'id', '') == 'TYPE_CHECKING':
      continue
    if not isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
      yield child
      yield from _at_once(child)


def files(root):
  return [p for p in (root / 'segjax').rglob('*.py') if p.name != '__main__.py']


def part_of(path, root):
  return path.relative_to(root / 'segjax').parts[0].removesuffix('.py')


def below(name, allowed):
  return any(name == a or name.startswith(f'{a}.') for a in allowed)


def test_imports_run_one_way(root):
  wrong = []
  for path in files(root):
    part = part_of(path, root)
    if part == '__init__':
      continue
    for name in imported(path):
      package, _, rest = name.partition('.')
      ours = package == 'segjax' and rest not in ('', '__version__')
      if ours and rest.split('.')[0] != part and not below(rest, ALLOWED[part]):
        wrong.append(f'{path.relative_to(root)} imports {name}')
      if package == 'flax' and part not in FLAX:
        wrong.append(f'{path.relative_to(root)} imports flax')
      if package in NEVER:
        wrong.append(f'{path.relative_to(root)} imports {package}')
  assert not wrong


def test_imports_run_one_way_inside_data(root):
  data, wrong = root / 'segjax' / 'data', []
  parts = {p.name.removesuffix('.py') for p in data.iterdir() if p.name[0] != '_'}
  assert parts == set(INSIDE_DATA)
  for path in data.rglob('*.py'):
    part = path.relative_to(data).parts[0].removesuffix('.py')
    for name in imported(path):
      rest = name.removeprefix('segjax.data.')
      if rest != name and rest.split('.')[0] != part and not below(rest, INSIDE_DATA.get(part, ())):
        wrong.append(f'{path.relative_to(root)} imports {name}')
  assert not wrong


def test_every_part_is_listed(root):
  assert {part_of(p, root) for p in files(root)} - {'__init__'} == set(ALLOWED)


def graph(root):
  """Module -> the modules of segjax that it imports while it is itself being imported."""
  paths = {}
  for path in files(root):
    module = '.'.join(path.relative_to(root).with_suffix('').parts)
    paths[module.removesuffix('.__init__')] = path

  def modules(name):
    """The module that an imported name is, or is in."""
    return next((m for m in (name, name.rpartition('.')[0]) if m in paths), None)

  return {
    module: {m for name in imported(path, at_once=True) if (m := modules(name))} - {module}
    for module, path in paths.items()
  }


def circle(imports):
  """The modules of an import cycle, the first one repeated at the end; empty without a cycle."""
  done, on_the_way = set(), []

  def visit(module):
    if module in on_the_way:
      return [*on_the_way[on_the_way.index(module) :], module]
    if module in done:
      return []
    on_the_way.append(module)
    found = next((c for m in sorted(imports.get(module, ())) if (c := visit(m))), [])
    on_the_way.pop()
    done.add(module)
    return found

  return next((c for module in sorted(imports) if (c := visit(module))), [])


def test_no_module_imports_itself_by_way_of_others(root):
  imports = graph(root)
  assert len(imports) > 80 and 'segjax.types' in imports['segjax.config']
  assert circle(imports) == []


def test_a_circle_is_found():
  assert circle({'a': {'b', 'c'}, 'b': set(), 'c': {'d'}, 'd': {'b', 'a'}}) == ['a', 'c', 'd', 'a']
  assert circle({'a': {'b', 'c'}, 'b': {'c'}, 'c': set()}) == []


@pytest.mark.parametrize('directory', ['configs'])
def test_configs_import_nothing_but_what_a_config_is_made_of(root, directory):
  for path in pathlib.Path(root / directory).rglob('*.py'):
    parts = {'ml_collections', 'segjax.config.base_config', 'segjax.config.choose'}
    assert set(imported(path)) <= parts, path
