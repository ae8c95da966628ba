"""`segjax list`: prints what a config can name, and what comes with segjax."""

import argparse
import ast
import importlib
import importlib.util
import inspect
import json
import pkgutil
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from segjax import resources

EXAMPLE = """examples:
  segjax list configs             # names for --config
  segjax list models              # config.model.name
  segjax list data                # config.data.name; TFDS data sets with masks also work
  segjax list sources             # config.init_from.source, and segjax convert --source
  segjax list losses              # keys of config.losses
  segjax list metrics             # names for config.eval.metrics
  segjax list tables              # names for segjax table"""

TASKS = ('semantic', 'instance', 'panoptic')
# Name -> what `config.eval.metrics` of that name reports.
METRICS = {
  'confusion': 'pixel and class accuracy, mean and frequency-weighted IoU, Dice; each class',
  'boundary': 'boundary F1 of the classes that are present in the ground truth',
  'boundary_either': 'boundary F1 of the classes that are in the ground truth or the prediction',
  'boundary_either_one_to_one': 'boundary F1 of the classes in either, contours matched one to one',
  'surface': 'HD95 and ASSD: distances between the surfaces of classes, in pixels; each class',
  'isbi': 'pixel error, Rand error, V_Rand and V_Info of ISBI 2012',
  'coco': 'AP and AR of boxes and masks, as COCO evaluates them; each class',
  'coco_box': 'AP and AR of boxes, as COCO evaluates them; each class',
  'pq': 'PQ, SQ and RQ of things, stuff and all classes; each class',
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
  parser.add_argument('kind', choices=tuple(KINDS), help='what to list')
  parser.add_argument('--json', action='store_true', help='print one JSON object and nothing else')


def run(args: argparse.Namespace) -> int:
  lines = KINDS[args.kind]()
  print(json.dumps(lines, ensure_ascii=False) if args.json else render(lines))
  return 0


def render(lines: Mapping[str, str]) -> str:
  """Two columns: names, and what they are."""
  width = max(map(len, lines), default=0)
  return '\n'.join(f'{name:{width}}  {line}'.rstrip() for name, line in lines.items())


def configs() -> dict[str, str]:
  """The configs that come with segjax -> the first line of their docstring."""
  root = resources.directory('configs')
  return {name: _summary(root / f'{name}.py') for name in resources.list_configs()}


def models() -> dict[str, str]:
  """The networks for `config.model.name` -> what they are, and the paper."""
  lines = {}
  for name in _modules('segjax.models'):
    module = importlib.import_module(f'segjax.models.{name}')
    paper = re.search(r'arXiv \d{4}\.\d{5}|arXiv \d{4}\.\d{4}', module.__doc__)
    for network in _networks(module):
      line = _first_paragraph(network.__doc__).partition(': f[')[0].removesuffix('.')
      cited = f', {paper[0]}' if paper and 'arXiv' not in line else ''
      lines[f'{name}.{network.__name__}'] = line + cited
  return lines


def _networks(module: Any) -> Iterator[type]:
  """The networks of a module; its layers do not take an `image`."""
  for member in vars(module).values():
    own = inspect.isclass(member) and member.__module__ == module.__name__
    if own and 'image' in inspect.signature(member.__call__).parameters:
      yield member


def data() -> dict[str, str]:
  """The data sets and formats for `config.data.name` -> what they are."""
  lines = {}
  for name in _modules('segjax.data.builders'):
    if importlib.util.find_spec(f'segjax.data.builders.{name}').submodule_search_locations is None:
      continue  # shared code
    module = importlib.import_module(f'segjax.data.builders.{name}.builder')
    lines[name] = _first_paragraph(module.__doc__)
    first, *others = module.Builder.BUILDER_CONFIGS or [None]
    lines.update({f'{name}/{config.name}': config.description for config in others})
    if others:
      lines[name] += f' By default: {first.description}'
  return lines


def sources() -> dict[str, str]:
  """Pretrained weights of other frameworks -> their arrays, download and input."""
  from segjax.convert import addresses, load

  return {
    name: f'{len(source.rows)} arrays, {"downloaded" if addresses.find(name) else "from a file"}; '
    f'input: {source.input.partition(", config.model")[0]}'
    for name, source in load.SOURCES.items()
  }


def losses() -> dict[str, str]:
  """The functions for `config.losses` -> what they are, and the tasks that have them."""
  lines, tasks = {}, {}
  for name, path, inputs in loss_modules():
    module = importlib.import_module(path)
    for loss, function in inspect.getmembers(module, inspect.isfunction):
      if next(iter(inspect.signature(function).parameters), None) == inputs[0]:
        lines[loss] = _first_paragraph(function.__doc__).removesuffix('.')
        tasks.setdefault(loss, []).append(name)
  return {loss: f'{line} ({", ".join(tasks[loss])})' for loss, line in lines.items()}


def loss_modules() -> Iterator[tuple[str, str, tuple[str, ...]]]:
  """Each task with a module of its losses and what these get: its own, and those of networks."""
  modules = [importlib.import_module(f'segjax.models.{name}') for name in _modules('segjax.models')]
  networks = [network for module in modules for network in _networks(module)]
  own = sorted({n.losses_module for n in networks if hasattr(n, 'losses_module')})
  for name, task in _tasks().items():
    yield name, task.LOSSES, task.LOSS_INPUTS
    yield from ((name, path, ('outputs',)) for path in own)


def metrics() -> dict[str, str]:
  """The names for `config.eval.metrics` -> what they report, and the tasks that have them."""
  known = {name: task.METRICS for name, task in _tasks().items()}
  tasks = {metric: [name for name in TASKS if metric in known[name]] for metric in METRICS}
  return {metric: f'{METRICS[metric]} ({", ".join(names)})' for metric, names in tasks.items()}


def tables() -> dict[str, str]:
  """The papers' tables -> their titles, and how many rows have results of their current config."""
  from segjax.tables import results, runs, spec

  lines = {}
  for folder in resources.table_dirs():
    table = spec.read_table(folder)
    measured = {
      record.entry
      for record in results.read_results(table)
      if (entry := table.entries.get(record.entry)) and not runs.is_earlier(record, entry)
    }
    count = f'{len(measured)} of {len(table.entries)} rows measured' if table.entries else 'quoted'
    lines[table.name] = f'{table.file.title} ({count})'
  return lines


KINDS: dict[str, Callable[[], dict[str, str]]] = {
  'configs': configs,
  'models': models,
  'data': data,
  'sources': sources,
  'losses': losses,
  'metrics': metrics,
  'tables': tables,
}


def _tasks() -> dict[str, Any]:
  return {name: importlib.import_module(f'segjax.tasks.{name}') for name in TASKS}


def _modules(package: str) -> list[str]:
  paths = importlib.import_module(package).__path__
  return sorted(module.name for module in pkgutil.iter_modules(paths))


def _summary(path: Path) -> str:
  """The first paragraph of a file's docstring, without running the file."""
  return _first_paragraph(ast.get_docstring(ast.parse(path.read_text(encoding='utf-8'))))


def _first_paragraph(docstring: str | None) -> str:
  return ' '.join(inspect.cleandoc(docstring or '').partition('\n\n')[0].split())
