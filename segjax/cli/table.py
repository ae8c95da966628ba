"""Fills a paper's table: trains what is missing, evaluates it, enters it."""

import datetime
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax

from segjax import merge
from segjax.data import datasets, pipeline
from segjax.ops.windows import view
from segjax.program.build import CLASS_WEIGHTS, build, complete, parameter_count, resolve
from segjax.program.evaluate import evaluate_run
from segjax.program.load import is_trained, tell
from segjax.program.train import train
from segjax.report import curves, html
from segjax.tables import launch, page, results, runs
from segjax.tables import spec as spec_lib
from segjax.types import SegjaxError
from segjax.workdir import Workdir


def entry_facts(entry: spec_lib.Entry) -> dict[str, float | None]:
  """What follows from an entry's config, its network built as shapes only.

  Nothing of a script, nor of a merged run, whose networks are in workdirs that a page does without.
  """
  if entry.script or merge.named_runs(given := runs.given_config(entry)):
    return {}
  config = complete(given)
  data = pipeline.DataConfig(**config['data'])
  spec = datasets.describe(data)
  rules = {rule: [1.0] * spec.num_classes for rule in CLASS_WEIGHTS}
  model = build(config, spec, rules).model
  height, width = data.crop_size or data.image_size or (256, 256)
  margin = 2 * getattr(model, 'margin', 0)
  return {
    'parameters': parameter_count(
      model, (1, height + margin, width + margin, spec.channels), data.instances is not None
    ),
    'stride': getattr(model, 'stride', None),
    'receptive_field': view(model.windows).size if hasattr(model, 'windows') else None,
  }


def find_chains(
  table: spec_lib.Table, wanted: Sequence[str], seeds: Sequence[int], workdirs: Path
) -> list[list[runs.Job]]:
  """The jobs that are missing of the entries that `wanted` names, as `runs.chains` has them."""
  jobs = runs.plan(
    table,
    runs.select(table, wanted),
    seeds,
    results.read_results(table),
    lambda job: is_trained(Workdir(runs.workdir_of(job, workdirs))),
  )
  tell(f'{table.name}, to run: {", ".join(job.name for job in jobs) or "nothing"}')
  return runs.chains(table, jobs)


def run_chains(
  table: spec_lib.Table,
  chains: Iterable[Sequence[runs.Job]],
  workdirs: Path,
  overrides: Sequence[tuple[str, str]],
  facts: Mapping[str, Any],
) -> None:
  """Trains and records jobs, one after another."""
  for chain in chains:
    if chain[0].entry.script:
      launch.run_script(table, chain[0].entry.script)
      update_readme(table)
      continue
    for job in chain:
      run_job(table, job, workdirs, overrides, facts)


def run_job(
  table: spec_lib.Table,
  job: runs.Job,
  workdirs: Path,
  overrides: Sequence[tuple[str, str]],
  facts: Mapping[str, Any],
) -> None:
  """Trains a job to its end, from where it stopped, and records it."""
  entry = job.entry
  workdir = Workdir(runs.workdir_of(job, workdirs))
  if not is_trained(workdir):
    ours = runs.training_overrides(table, job, workdirs, overrides)
    train(workdir, str(entry.config), ours)
  if runs.missing(entry, job.seed, results.read_results(table)):
    record(table, entry, workdir, workdirs, overrides, facts)
  jax.clear_caches()


def record(
  table: spec_lib.Table,
  entry: spec_lib.Entry,
  workdir: Workdir,
  workdirs: Path,
  overrides: Sequence[tuple[str, str]],
  facts: Mapping[str, Any],
) -> None:
  """Evaluates a workdir that was trained as an entry, and enters it into the table's results.

  Args:
    table: of the entry.
    entry: with a config.
    workdir: of the training.
    workdirs: where the table keeps its pictures.
    overrides: for the evaluation.
    facts: what the workdir does not say, keys of `Record`.
  """
  config = runs.check_workdir(
    table,
    entry,
    workdir.path,
    complete=resolve,
    read=lambda path: complete(Workdir(str(path)).read_config()),
  )
  if not is_trained(workdir):
    raise SegjaxError(
      f'{workdir.path} has not reached step {config["train"]["steps"]} yet: let it train on first'
    )
  job = runs.Job(entry, config['train']['seed'])
  trained_on = datasets.DatasetSpec.from_json(workdir.read_dataset()['spec'])
  evaluation = [(k, v) for k, v in overrides if k.startswith(('data.', 'mesh.'))]
  if 'metrics' in (ours := resolve(runs.given_config(entry))['eval']):
    evaluation.append(('eval.metrics', repr(ours['metrics'])))
  records = []
  for which in entry.checkpoints:
    evaluated = evaluate_run(workdir, which, table.file.split, evaluation)
    if which == entry.checkpoints[0]:
      results.write_pictures(workdirs, entry.name, evaluated.pictures)
    data = [f'{spec.name} {spec.version}' for spec in (trained_on, evaluated.run.spec)]
    noted = {
      'seconds': results.training_seconds(
        curves.read_log(workdir.log), config['data']['batch_size']
      ),
      **results.merge_starts(workdir.read_starts()),
      **facts,
      'weights': results.spell_weights(
        entry, config, runs.find_start(workdir.path, config), facts.get('weights')
      ),
    }
    records.append(
      results.Record(
        row=entry.row,
        recipe=entry.recipe,
        metrics=results.keep_metrics(table, evaluated.metrics),
        seed=job.seed,
        checkpoint=which,
        step=evaluated.step,
        steps=config['train']['steps'],
        split=evaluated.split,
        data=', evaluated on '.join(dict.fromkeys(data)),
        parameters=evaluated.parameters,
        config_digest=runs.entry_digest(entry),
        date=datetime.date.today().isoformat(),
        command=runs.command(table, job),
        **noted,
      )
    )
  results.write_records(table, records)
  update_readme(table)
  unknown = [key for key in results.FACTS if key != 'note' and getattr(records[0], key) is None]
  hint = f'; the workdir does not say its {", ".join(unknown)}: give --fact' if unknown else ''
  tell(f'{entry.name}, seed {job.seed}: recorded in {table.folder / "results.jsonl"}{hint}')


def update_readme(table: spec_lib.Table) -> None:
  """Writes the page of a table into its README.md, where it has one."""
  path = table.folder / 'README.md'
  if path.exists():
    lines = page.make_lines(table, results.read_results(table), entry_facts)
    temporary = path.with_name(f'{path.name}.{os.getpid()}.tmp')
    temporary.write_text(page.render_markdown(table, lines), encoding='utf-8')
    temporary.replace(path)


def write_table_page(
  path: Path, table: spec_lib.Table, lines: Sequence[page.Line], workdirs: Path
) -> None:
  """The table as one HTML file, with pictures of the entries whose pictures are at hand."""
  summary = {'source': table.file.source, 'written': datetime.date.today().isoformat()}
  rows = {', '.join(r.pop(k) for k in ('row', 'recipe')): r for r in page.cells(table, lines)}
  entries = dict.fromkeys(r.entry for line in lines for r in line.records)
  sections = [
    html.table_section('Figures', rows),
    *(
      html.pictures_section(f'Pictures of {name}', results.read_pictures(workdirs, name))
      for name in entries
    ),
    html.text_section('All of it as Markdown', page.render_markdown(table, lines)),
  ]
  html.write_report(path, title=table.file.title, summary=summary, sections=sections)
