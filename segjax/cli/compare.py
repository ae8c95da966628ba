"""`segjax compare`: writes one page that compares runs."""

import argparse
import datetime
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from segjax import config as config_lib
from segjax import provenance, storage
from segjax import run as run_lib
from segjax.cli import evaluate as evaluate_command
from segjax.cli import options
from segjax.experiment import Experiment
from segjax.report import compare_page, curves, html
from segjax.report.curves import TRAIN
from segjax.run import Evaluator, Loaded, notify, size_of
from segjax.training import checkpoint, evaluate, sharding
from segjax.training import log as log_lib
from segjax.types import SegjaxError, nearest
from segjax.workdir import Workdir

EXAMPLE = """examples:
  segjax compare runs/a runs/b --output=a_b.html
  segjax compare runs/* --from-logs

Each run is evaluated at its checkpoint. --config.KEY=VALUE can override config.data, config.batch,
config.eval, config.mesh, and of config.model the thresholds of inference, of all of them."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
  parser.add_argument('workdirs', nargs='+', metavar='WORKDIR', help='directory of a run')
  options.add_checkpoint(parser)
  parser.add_argument('--split', help='split to evaluate on; default: its own of each run')
  parser.add_argument(
    '--images',
    type=options.count,
    default=8,
    metavar='N',
    help='number of images to show, the worst first; default: 8',
  )
  parser.add_argument(
    '--from-logs',
    action='store_true',
    help='use the last evaluation in the log of each run: needs neither data nor checkpoints, and '
    'shows no images',
  )
  parser.add_argument(
    '--output', default='compare.html', metavar='FILE', help='HTML file; default: compare.html'
  )


def run(args: argparse.Namespace) -> int:
  path = compare(
    [Workdir(path) for path in args.workdirs],
    storage.as_path(args.output),
    which=args.checkpoint,
    split=args.split,
    images=args.images,
    from_logs=args.from_logs,
    overrides=args.overrides,
  )
  print(f'{len(args.workdirs)} runs; page: {path}')
  return 0


class _Trained(NamedTuple):
  """A run that was evaluated, and what draws its images."""

  loaded: Loaded
  evaluator: Evaluator
  variables: Any
  measured: evaluate.Evaluation
  split: str
  spec: Any


def compare(
  workdirs: Sequence[Workdir],
  output: Path,
  *,
  which: checkpoint.Which = 'latest',
  split: str | None = None,
  images: int = 8,
  from_logs: bool = False,
  overrides: Sequence[tuple[str, str]] = (),
) -> Path:
  """Writes the page of two or more runs.

  Args:
    workdirs: of the runs.
    output: the HTML file.
    which: the checkpoint of each run.
    split: to evaluate on; None for `config.data.eval_split` of each run.
    images: number of images to show, the worst first.
    from_logs: use the last evaluation in each log; `which` and `overrides` are not used.
    overrides: see `run.load_run`.

  Returns:
    The path of the page.

  Raises:
    SegjaxError: fewer than two runs, one of them twice, no run in a workdir, or an error of its
      evaluation.
  """
  names = _check(workdirs, output, from_logs and (which != 'latest' or bool(overrides)))
  experiments = [run_lib.read_experiment(workdir) for workdir in workdirs]
  logs = [curves.read_log(workdir.log, curves.MOST_SHOWN) for workdir in workdirs]
  trained: list[_Trained | None] = [None] * len(workdirs)
  if not from_logs:
    for i, workdir in enumerate(workdirs):
      notify(f'evaluating {workdir.path} ({i + 1} of {len(workdirs)})')
      trained[i] = _evaluate(workdir, which, split, overrides)
  runs = [
    _compared(*facts, split)
    for facts in zip(names, workdirs, experiments, logs, trained, strict=True)
  ]
  evaluated = [run for run in trained if run is not None]
  colors = _colors(evaluated)
  reason = _not_shown(evaluated) if images else ''
  shown = None
  if evaluated and images and not reason:
    shown = _images(names, evaluated, images, colors)
  html.write_report(
    output,
    title=' and '.join(names) if len(names) == 2 else f'{len(names)} runs',
    summary={
      'configs': compare_page.describe_configs(runs),
      'written': datetime.datetime.now().isoformat(' ', 'minutes'),
      'versions': provenance.versions(),
      **({'images': reason} if reason else {}),
    },
    sections=compare_page.sections(runs, colors, shown),
    command=_words(workdirs, output, which, split, images, from_logs, overrides),
  )
  return output


def _check(workdirs: Sequence[Workdir], output: Path, unused: bool) -> list[str]:
  """The names of the runs: their last directories, or their paths where two are the same."""
  if len(workdirs) < 2:
    raise SegjaxError(f'{workdirs[0].path} is a single run: name two or more workdirs to compare')
  paths = [storage.resolved(workdir.path) for workdir in workdirs]
  if twice := next((p for p in paths if paths.count(p) > 1), None):
    raise SegjaxError(f'{twice} is named twice: name each workdir once')
  if unused:
    raise SegjaxError(
      '--from-logs evaluates nothing: leave it out, or leave out --checkpoint and --config'
    )
  if output.is_dir() or not (storage.is_bucket(output) or output.parent.is_dir()):
    what = 'a directory' if output.is_dir() else 'in a directory that does not exist'
    raise SegjaxError(f'--output={output} is {what}: name a file such as compare.html')
  names = [path.name for path in paths]
  given = [str(workdir.path) for workdir in workdirs]
  return names if len(set(names)) == len(names) else given


def _evaluate(
  workdir: Workdir,
  which: checkpoint.Which,
  split: str | None,
  overrides: Sequence[tuple[str, str]],
) -> _Trained:
  loaded, run, dataset, mesh = evaluate_command.load(workdir, which, overrides)
  split = split or run.experiment.data.eval_split
  evaluator = Evaluator(run, dataset, split, mesh, 0)
  variables = sharding.put_replicated(loaded.variables, mesh)
  return _Trained(loaded, evaluator, variables, evaluator(variables), split, run.spec)


def _compared(
  name: str,
  workdir: Workdir,
  experiment: Experiment,
  log: Sequence[Mapping[str, Any]],
  trained: _Trained | None,
  split: str | None,
) -> compare_page.ComparedRun:
  config = config_lib.dotted(experiment.to_dict())
  if trained is not None:
    step, split, metrics = trained.loaded.restored.step, trained.split, trained.measured.metrics
    parameters = f'{size_of(trained.loaded.variables["params"]):,}'
  else:
    logged = dict.fromkeys(r['split'] for r in log if r.get('split') not in (None, TRAIN))
    if split is not None and log_lib.evaluation_split(split) not in logged:
      hint = nearest(split, logged)
      raise SegjaxError(
        f'--split={split}: {workdir.log} has no evaluation on it{hint or ": leave out --from-logs"}'
      )
    split = split or experiment.data.eval_split
    wanted = log_lib.evaluation_split(split)
    last = next((record for record in reversed(log) if record.get('split') == wanted), {})
    step, parameters = last.get('step', 0), ''
    metrics = {k: v for k, v in last.items() if k not in ('step', 'split', 'time')}
  facts = {
    'workdir': str(workdir.path),
    'model': experiment.model_config['name'],
    'parameters': parameters,
    'data set': f'{experiment.data.name}, split {split}',
    'step': f'{step} of {experiment.train.steps}' if metrics else '',
    'best': evaluate_command.describe_best(experiment, log),
    'images per second in training': _speed(log),
    **_origin(workdir),
    'config digest': experiment.digest,
  }
  return compare_page.ComparedRun(
    name, {fact: text for fact, text in facts.items() if text}, config, log, metrics
  )


def _speed(log: Sequence[Mapping[str, Any]]) -> str:
  """The median of the log; the first entry of a run includes compilation."""
  speeds = [
    r['images_per_second'] for r in log if r.get('split') == TRAIN and r.get('images_per_second')
  ]
  return f'{statistics.median(speeds):.1f}' if speeds else ''


def _origin(workdir: Workdir) -> dict[str, str]:
  """The hardware and the commits that a run was trained with, from each of its starts."""
  starts = workdir.read_starts()
  join = lambda values: ', '.join(dict.fromkeys(value for value in values if value))
  return {
    'trained on': join(start.get('hardware') for start in starts),
    'commit': join(
      f'{start["commit"][:12]}{" with changes" if start.get("dirty") else ""}'
      for start in starts
      if start.get('commit')
    ),
  }


def _colors(trained: Sequence[_Trained]) -> dict[str, list[int]]:
  """Of the classes of all runs; the first that has a class decides."""
  colors: dict[str, list[int]] = {}
  for run in trained:
    for name, color in zip(run.spec.class_names, run.spec.palette.tolist(), strict=True):
      colors.setdefault(name, color)
  return colors


def _not_shown(trained: Sequence[_Trained]) -> str:
  """Why the images of these runs cannot be shown side by side; empty if they can."""
  if not trained:
    return ''
  if len({run.measured.measure for run in trained}) > 1 or not trained[0].measured.measure:
    return 'not shown, because the runs do not score an image by the same measure'
  if len({run.spec.class_names for run in trained}) > 1:
    return 'not shown, because the runs have different classes'
  if not compare_page.worst_images([dict(run.measured.scores) for run in trained], 1):
    return 'not shown, because no image is in the splits of all runs'
  return ''


def _images(
  names: Sequence[str],
  trained: Sequence[_Trained],
  count: int,
  colors: Mapping[str, Sequence[int]],
) -> html.Section:
  worst = compare_page.worst_images([dict(run.measured.scores) for run in trained], count)
  wanted = {name for name, _ in worst}
  notify(f'drawing {len(worst)} images')
  drawn = [dict(run.evaluator.draw(run.variables, wanted)) for run in trained]
  images = [
    compare_page.ComparedImage(name, scores, [panels[name] for panels in drawn])
    for name, scores in worst
  ]
  return compare_page.images_section(names, images, trained[0].measured.measure, colors)


def _words(
  workdirs: Sequence[Workdir],
  output: Path,
  which: checkpoint.Which,
  split: str | None,
  images: int,
  from_logs: bool,
  overrides: Sequence[tuple[str, str]],
) -> list[str]:
  """The command line that writes the page."""
  return [
    *('segjax', 'compare', *(str(workdir.path) for workdir in workdirs)),
    *([] if which == 'latest' else [f'--checkpoint={which}']),
    *([] if split is None else [f'--split={split}']),
    *(['--from-logs'] if from_logs else [f'--images={images}']),
    *(f'--config.{key}={value}' for key, value in overrides),
    f'--output={output}',
  ]
