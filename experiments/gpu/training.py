"""Steps that train an entry of a paper's table, with `segjax table --run`.

The tables are copies in the output directory, so that their records are written there and the
checkout stays as it is: `collect.py` adds them to the tables of a checkout.
"""

import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from gpu import toy
from gpu.plan import HERE, ROOT, Context, Step
from segjax.tables import results, runs, spec

VGG16 = 'vgg16_features.safetensors'
# Seconds that restoring, compiling and evaluating take at most, if a training is stopped.
RESERVE = 90.0


def place_table(context: Context, name: str) -> Path:
  """The directory of a table in the output directory: a copy, without results and page."""
  source, folder = ROOT / 'experiments' / name, context.tables / 'experiments' / name
  folder.mkdir(parents=True, exist_ok=True)
  configs = context.tables / 'configs'
  if not configs.is_symlink():
    configs.symlink_to(ROOT / 'configs', target_is_directory=True)
  for path in (source / 'table.toml', *source.glob('*.py')):
    shutil.copyfile(path, folder / path.name)
  if context.toy:
    toy.shrink_table(folder / 'table.toml', name)
  return folder


def workdir_of(context: Context, table: str, entry: str) -> Path:
  """Where seed 0 of an entry is trained."""
  return context.runs / table / f'{entry}.seed0'


def train(
  context: Context,
  table: str,
  entry: str,
  dataset: str,
  *,
  weights: bool = False,
  overrides: Mapping[str, str] | None = None,
) -> Step:
  """Trains, evaluates and records an entry.

  Args:
    context: of the run.
    table: its name.
    entry: ROW.RECIPE.
    dataset: its directory below the data directory.
    weights: whether it starts from VGG16's.
    overrides: more that changes no result.
  """
  folder = place_table(context, table)
  source = context.data / dataset
  reading = {'data.source': source, 'data.dir': context.out / 'prepared', **(overrides or {})}
  running = {**reading, 'batch.workers': context.workers}
  facts = {}
  if weights:
    running['init_from.path'] = context.data / VGG16
    facts['weights'] = context.weights
  workdir = workdir_of(context, table, entry)
  return Step(
    f'{table}.{entry}',
    (
      *(sys.executable, '-m', 'segjax.main', 'table', str(folder), '--run', entry, '--json'),
      f'--workdirs={workdir.parent}',
      *(f'--fact={key}={value}' for key, value in facts.items() if value is not None),
      *_flags(running),
    ),
    lambda: is_recorded(folder, entry),
    rescue=(
      *(sys.executable, str(HERE / 'partial.py'), f'--table={folder}', f'--entry={entry}'),
      *(f'--workdir={workdir}', f'--out={context.partial}', *_flags(reading)),
    ),
    reserve=RESERVE,
    required=(source, *([context.data / VGG16] if weights else [])),
  )


def _flags(overrides: Mapping[str, object]) -> Sequence[str]:
  return [f'--config.{key}={value}' for key, value in overrides.items()]


def is_recorded(folder: Path, name: str) -> bool:
  """Whether the table in a directory has all results of an entry for seed 0."""
  table = spec.read_table(folder)
  return not runs.missing(table.entries[name], 0, results.read_results(table))
