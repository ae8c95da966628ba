"""`segjax table`: prints a paper's table with our results; trains and records missing rows."""

import argparse
import dataclasses
import datetime
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax

from segjax import config as config_lib
from segjax import merge, provenance, resources, storage
from segjax import run as run_lib
from segjax.cli import options
from segjax.cli.evaluate import Evaluated, evaluate_run
from segjax.cli.train import train
from segjax.data import datasets
from segjax.experiment import CLASS_WEIGHTS, Experiment, parse
from segjax.ops.windows import receptive_field
from segjax.report import curves, html, picture, values
from segjax.run import is_trained, notify
from segjax.tables import launch, page, results, runs, scoreboard
from segjax.tables import spec as spec_lib
from segjax.tables.runs import Job
from segjax.tables.spec import Entry, Table
from segjax.types import SegjaxError
from segjax.workdir import Workdir

EXAMPLE = """examples:
  segjax table segnet_table1
  segjax table --all              # one line for each measured row of all tables
  segjax table segnet_table1 --html
  segjax table segnet_table1 --run '*.cpu' --seeds=0,1,2 --config.data.source=CamVid/
  segjax table segnet_table1 --record segnet_basic_mfb.cpu=runs/basic --fact commit=1e077fc

A table is a directory with a table.toml, or its name under ./experiments, or one that `segjax list
tables` prints. --config.KEY=VALUE applies to every row. It may only set paths and execution
options, such as data.source, data.dir, init_from.path and mesh."""

Overrides = Sequence[tuple[str, str]]


def add_arguments(parser: argparse.ArgumentParser) -> None:
  parser.add_argument('name', nargs='?', help='for example segnet_table1')
  parser.add_argument(
    '--all', action='store_true', help='print the scoreboard: the measured rows of all tables'
  )
  parser.add_argument(
    '--run',
    dest='wanted',
    nargs='*',
    metavar='ROW',
    help="train and record rows without a result: all, or ROW, ROW.RECIPE, '*.cpu'",
  )
  parser.add_argument('--seeds', help='seeds for --run, such as 0,1,2; default: 0')
  parser.add_argument('--workdirs', help='directory of the workdirs; default: runs/NAME')
  parser.add_argument(
    '--launcher', choices=['local', 'submitit'], help='where --run trains; default: local'
  )
  parser.add_argument(
    '--launcher_option',
    action='append',
    default=[],
    metavar='KEY=VALUE',
    help='submitit option, such as gpus_per_node=1 or slurm_partition=gpu; may be repeated',
  )
  parser.add_argument(
    '--record',
    action='append',
    default=[],
    metavar='ROW.RECIPE=WORKDIR',
    help='evaluate and record a run that was trained manually; may be repeated',
  )
  parser.add_argument(
    '--fact',
    action='append',
    default=[],
    metavar='KEY=VALUE',
    help='what the workdir does not say: commit, hardware, versions or seconds; weights names the '
    'file of the initial ones, note is free; may be repeated',
  )
  parser.add_argument(
    '--html', nargs='?', const='', help='write a page with examples; default: WORKDIRS/table.html'
  )
  options.add_json(parser)


def run(args: argparse.Namespace) -> int:
  if args.all:
    _check_alone(args)
    _show_scoreboard(args.json)
    return 0
  if args.name is None:
    raise SegjaxError('segjax table needs a NAME that `segjax list tables` prints, or --all')
  table = spec_lib.read_table(spec_lib.find_table(args.name))
  if args.record or args.wanted is not None:
    _check_writable(table)
  if args.wanted is None and (found := [key for key, value in _of_run(args).items() if value]):
    raise SegjaxError(f'{", ".join(found)}: nothing is trained without --run: add it')
  runs.check_overrides(args.overrides)
  facts = results.parse_facts(args.fact)
  workdirs = storage.as_path(args.workdirs or Path('runs', table.name))
  for text in args.record:
    entry, path = _parse_record(table, text)
    record(table, entry, Workdir(path), workdirs, args.overrides, facts)
  if args.wanted is not None:
    chains = find_chains(table, args.wanted, _parse_seeds(args.seeds or '0'), workdirs)
    if args.launcher == 'submitit':
      launch.submit(table, chains, workdirs, _job_arguments(args), args.launcher_option, notify)
    else:
      run_chains(table, chains, workdirs, args.overrides, facts)
  _show(table, workdirs, args)
  return 0


def _check_alone(args: argparse.Namespace) -> None:
  """Checks that --all is not given with what applies to one table."""
  given = {
    'NAME': args.name,
    '--run': args.wanted is not None,
    '--record': args.record,
    '--fact': args.fact,
    '--workdirs': args.workdirs,
    '--html': args.html is not None,
    '--config': args.overrides,
    **_of_run(args),
  }
  if found := [option for option, value in given.items() if value]:
    raise SegjaxError(f'--all prints the scoreboard of all tables: leave out {", ".join(found)}')


def _of_run(args: argparse.Namespace) -> dict[str, Any]:
  """The options that only --run has."""
  return {f'--{key}': getattr(args, key) for key in ('seeds', 'launcher', 'launcher_option')}


def _show_scoreboard(as_json: bool) -> None:
  """Prints the scoreboard of the tables in ./experiments, or of those that come with segjax."""
  own = sorted(path.parent for path in Path('experiments').glob('*/table.toml'))
  folders = own or resources.table_dirs()
  boards = _boards(folders)
  if as_json:
    print(json.dumps(scoreboard.to_json(boards)))
  else:
    print(scoreboard.render_markdown(boards, scoreboard.other_pages(folders[0].parent)), end='')


def _boards(folders: Iterable[Path]) -> list[scoreboard.Board]:
  tables = [spec_lib.read_table(folder) for folder in folders]
  return [scoreboard.make_board(table, results.read_results(table)) for table in tables]


def _check_writable(table: Table) -> None:
  if resources.is_installed(table.folder):
    raise SegjaxError(
      f'{table.folder} is part of the installed package, and results are written there: record '
      'results in a checkout of segjax, after pip install -e'
    )


def _parse_record(table: Table, text: str) -> tuple[Entry, str]:
  """The entry and the workdir of `--record`."""
  name, equals, path = text.partition('=')
  entries = runs.select(table, [name])
  if not equals or len(entries) != 1 or entries[0].script:
    raise SegjaxError(f'--record={text} must be ROW.RECIPE=WORKDIR of one entry with a config')
  return entries[0], path


def _parse_seeds(text: str) -> list[int]:
  seeds = [s for s in map(config_lib.parse_value, text.split(',')) if isinstance(s, int)]
  if len(seeds) != text.count(',') + 1:
    raise SegjaxError(f'--seeds={text} must be a list of integers such as 0,1,2')
  return seeds


def _job_arguments(args: argparse.Namespace) -> list[str]:
  """The arguments that are passed on to a cluster job."""
  facts = [f'--fact={fact}' for fact in args.fact]
  return facts + [f'--config.{key}={value}' for key, value in args.overrides]


def _show(table: Table, workdirs: Path, args: argparse.Namespace) -> None:
  lines = page.make_lines(table, results.read_results(table), entry_facts)
  if args.html is not None:
    path = storage.as_path(args.html or workdirs / 'table.html')
    if path.is_dir():
      raise SegjaxError(f'--html={path} is a directory: name a file in it, such as table.html')
    storage.make_directory(path.parent)
    write_table_page(path, table, lines, workdirs)
    notify(f'wrote {path}')
  if args.json:
    print(json.dumps(page.to_json(table, lines)))
  else:
    print(page.render_markdown(table, lines), end='')


def entry_facts(entry: Entry) -> dict[str, float | None]:
  """Values that follow from an entry's config, computed with abstract shapes.

  Empty for scripts, and for merged runs, whose networks are defined in workdirs.
  """
  if entry.script or merge.named_runs(given := runs.given_config(entry)):
    return {}
  experiment = parse(given)
  spec = datasets.describe(experiment.input)
  rules = {rule: [1.0] * spec.num_classes for rule in CLASS_WEIGHTS}
  model = run_lib.build(experiment, spec, rules).model  # checks the numbers of classes
  return {
    'parameters': run_lib.parameter_count(experiment, spec.channels),
    'stride': getattr(model, 'stride', None),
    'receptive_field': receptive_field(model.windows).size if hasattr(model, 'windows') else None,
  }


def find_chains(
  table: Table, wanted: Sequence[str], seeds: Sequence[int], workdirs: Path
) -> list[list[Job]]:
  """The missing jobs of the entries selected by `wanted`, see `runs.chains`."""
  jobs = runs.plan(
    table,
    runs.select(table, wanted),
    seeds,
    results.read_results(table),
    lambda job: is_trained(Workdir(runs.workdir_of(job, workdirs))),
  )
  notify(f'{table.name}, to run: {", ".join(job.name for job in jobs) or "nothing"}')
  return runs.chains(table, jobs)


def run_chains(
  table: Table,
  chains: Iterable[Sequence[Job]],
  workdirs: Path,
  overrides: Overrides,
  facts: Mapping[str, Any],
) -> None:
  """Trains and records jobs, one after another."""
  for chain in chains:
    if chain[0].entry.script:
      launch.run_script(table, chain[0].entry.script)
      update_pages(table)
      continue
    for job in chain:
      run_job(table, job, workdirs, overrides, facts)


def run_job(
  table: Table, job: Job, workdirs: Path, overrides: Overrides, facts: Mapping[str, Any]
) -> None:
  """Trains a job to its last step, resuming if it was stopped, and records it."""
  workdir = Workdir(runs.workdir_of(job, workdirs))
  if not is_trained(workdir):
    results.fill_in(provenance.provenance(), facts, 'this process')  # before hours of training
    combined = runs.training_overrides(table, job, workdirs, overrides)
    train(workdir, str(job.entry.config), combined)
  if runs.missing(job.entry, job.seed, results.read_results(table)):
    record(table, job.entry, workdir, workdirs, overrides, facts)
  jax.clear_caches()


def record(
  table: Table,
  entry: Entry,
  workdir: Workdir,
  workdirs: Path,
  overrides: Overrides,
  facts: Mapping[str, Any],
) -> None:
  """Evaluates a workdir that was trained with an entry's config, and records the results.

  Args:
    table: of the entry.
    entry: with a config.
    workdir: of the training run.
    workdirs: directory in which the table keeps its examples.
    overrides: for the evaluation.
    facts: metadata missing from the workdir, by field of `Record`, see `results.fill_in`.

  Raises:
    SegjaxError: the workdir has a different config, was not trained to its last step, or
      contradicts a fact.
  """
  trained = _check_trained(table, entry, workdir)
  known = results.fill_in(_training_facts(workdir, trained), facts, str(workdir.path))
  known['weights'] = _weights(entry, workdir, trained, facts.get('weights'))
  evaluation = _evaluation_overrides(entry, overrides)
  records = []
  for which in entry.checkpoints:
    first = which == entry.checkpoints[0]
    evaluated = evaluate_run(workdir, which, table.file.split, evaluation, median=first)
    new = _make_record(table, entry, workdir, which, trained, evaluated, known)
    if first:
      results.write_examples(workdirs, entry.name, evaluated.measured.examples)
      new = _with_image(table, new, evaluated)
    records.append(new)
  results.write_records(table, records)
  update_pages(table)
  unknown = [key for key in results.FACTS if key != 'note' and getattr(records[0], key) is None]
  hint = f'; the workdir has no {", ".join(unknown)}: pass --fact' if unknown else ''
  seed = trained.train.seed
  notify(f'{entry.name}, seed {seed}: recorded in {table.folder / "results.jsonl"}{hint}')


def _check_trained(table: Table, entry: Entry, workdir: Workdir) -> Experiment:
  """The experiment of a workdir, checked to match an entry and to be finished."""
  runs.check_workdir(
    table,
    entry,
    workdir.path,
    complete=lambda given: run_lib.resolve(given).to_dict(),
    read=lambda path: run_lib.read_experiment(Workdir(path)).to_dict(),
  )
  trained = run_lib.read_experiment(workdir)
  if not is_trained(workdir):
    raise SegjaxError(
      f'{workdir.path} is not trained to its end, step {trained.train.steps}: finish that first'
    )
  return trained


def _training_facts(workdir: Workdir, trained: Experiment) -> dict[str, Any]:
  """Provenance of a training run, from its workdir, by field of `Record`."""
  log = curves.read_log(workdir.log)
  return {
    'seconds': results.training_seconds(log, trained.batch.size),
    **results.merge_starts(workdir.read_starts()),
  }


def _weights(entry: Entry, workdir: Workdir, trained: Experiment, name: str | None) -> str:
  """The initial weights of the training run."""
  config = trained.to_dict()
  return results.spell_weights(entry, config, runs.find_start(workdir.path, config), name)


def _evaluation_overrides(entry: Entry, overrides: Overrides) -> list[tuple[str, str]]:
  """The `overrides` that apply to evaluation, and the entry's `eval.metrics`."""
  chosen = [(k, v) for k, v in overrides if k.startswith(('data.', 'batch.', 'mesh.'))]
  metrics = run_lib.resolve(runs.given_config(entry)).to_dict()['eval'].get('metrics')
  return chosen if metrics is None else [*chosen, ('eval.metrics', repr(tuple(metrics)))]


def _make_record(
  table: Table,
  entry: Entry,
  workdir: Workdir,
  which: str,
  trained: Experiment,
  evaluated: Evaluated,
  facts: Mapping[str, Any],
) -> results.Record:
  trained_on = datasets.DatasetSpec.from_json(workdir.read_dataset()['spec'])
  data = [f'{spec.name} {spec.version}' for spec in (trained_on, evaluated.run.spec)]
  seed = trained.train.seed
  return results.Record(
    row=entry.row,
    recipe=entry.recipe,
    metrics=results.keep_metrics(table, evaluated.metrics),
    seed=seed,
    checkpoint=which,
    step=evaluated.step,
    steps=trained.train.steps,
    split=evaluated.split,
    data=', evaluated on '.join(dict.fromkeys(data)),
    parameters=evaluated.parameters,
    config_digest=runs.entry_digest(entry),
    date=datetime.date.today().isoformat(),
    command=runs.command(table, Job(entry, seed)),
    **facts,
  )


def _with_image(table: Table, record: results.Record, evaluated: Evaluated) -> results.Record:
  """The record with the image that is shown for it, if it is the first seed of its row.

  It is the image with the median score, so that it is neither one of the best nor of the worst;
  where images have no score, the first one of the split.
  """
  same = lambda other: (other.entry, other.config_digest) == (record.entry, record.config_digest)
  others = [r for r in results.read_results(table) if same(r) and r.seed != record.seed]
  measured, spec = evaluated.measured, evaluated.run.spec
  example = evaluated.median or next(iter(measured.examples), None)
  if example is None or any(other.image for other in others):
    return record
  name, panels = example
  how = 'the first image of the split'
  if evaluated.median:
    score = values.format_metric(measured.measure, dict(measured.scores)[name])
    how = f'the median of {len(measured.scores)} images by {measured.measure} ({score})'
  # Of objects and segments, the panels have the names.
  colored = evaluated.run.experiment.task == 'semantic'
  drawn = picture.picture(panels, spec.palette if colored else None, spec.class_names)
  return dataclasses.replace(
    record, image=results.write_image(table, record, drawn), image_note=f'{name}, {how}'
  )


def update_pages(table: Table) -> None:
  """Updates the README.md of a table, and that of the directory of all tables, if they exist."""
  path = table.folder / 'README.md'
  if path.exists():
    _write_page(path, lambda: _render(table))
  path = table.folder.resolve().parent / 'README.md'
  if path.exists():
    try:
      _write_page(path, lambda: _render_scoreboard(path.parent))
    except SegjaxError as e:  # somebody edits another table
      notify(f'{path} is not updated: {e}')


def _write_page(path: Path, render: Callable[[], str]) -> None:
  """Writes what is recorded by now, also where others record and write at the same time.

  Whoever writes last sees what all have recorded.
  """
  written = None
  while written != (text := render()):
    storage.write_text(path, text)
    written = text


def _render(table: Table) -> str:
  lines = page.make_lines(table, results.read_results(table), entry_facts)
  return page.render_markdown(table, lines)


def _render_scoreboard(folder: Path) -> str:
  boards = _boards(sorted(path.parent for path in folder.glob('*/table.toml')))
  return scoreboard.render_markdown(boards, scoreboard.other_pages(folder))


def write_table_page(path: Path, table: Table, lines: Sequence[page.Line], workdirs: Path) -> None:
  """Writes the table as one HTML file, with the examples that are available in `workdirs`."""
  summary = {'source': table.file.source, 'written': datetime.date.today().isoformat()}
  sorted_lines = page.sort_lines(lines)
  entries = dict.fromkeys(r.entry for line in lines for r in line.records)
  sections = [
    _lines_section('Results', table, sorted_lines.measured),
    *(
      dataclasses.replace(_lines_section(title, table, found), collapsed=bool(table.entries))
      for title, found in (('Not run', sorted_lines.not_run), ('Quoted', sorted_lines.quoted))
    ),
    *(
      html.images_section(f'Examples of {name}', results.read_examples(workdirs, name))
      for name in entries
    ),
    html.text_section('As Markdown', page.render_markdown(table, lines)),
  ]
  html.write_report(path, title=table.file.title, summary=summary, sections=sections)


def _lines_section(title: str, table: Table, lines: Sequence[page.Line]) -> html.Section:
  """Lines as a section of the HTML page, each under its row and recipe."""
  named: dict[str, Mapping[str, str]] = {}
  for line, cells in zip(lines, page.cells(table, lines), strict=True):
    name = ', '.join(cells.pop(key) for key in ('row', 'recipe') if key in cells)
    # Two rows may have one title.
    named[f'{name} ({line.row})' if name in named else name] = cells
  return html.table_section(f'{title} ({len(named)})', named)
