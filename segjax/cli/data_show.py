"""`segjax data show`: the page of a data set, as it is stored and as a network is trained on it."""

import argparse
import contextlib
import dataclasses
import datetime
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import tensorflow_datasets as tfds

from segjax import config as config_lib
from segjax import provenance, storage
from segjax import run as run_lib
from segjax.data import datasets, order, outside, pipeline, source_reader, statistics
from segjax.data.config import DataConfig, InputConfig
from segjax.draw import draw_example, draw_row
from segjax.experiment import Experiment, task_module
from segjax.report import data_page, html
from segjax.run import Dataset, notify
from segjax.types import SegjaxError

TASKS = ('semantic', 'instance', 'panoptic')
# Evenly spaced examples of each split that are read, and examples that are drawn, by default.
LIMIT, EXAMPLES = 2000, 12
# Splits that are shown of a data set that is named without a config, in this order, at most two.
_SPLITS = ('train', 'val', 'test')
_TRAINED_ON = 'trained on'


class Part(NamedTuple):
  """A split to show, of a data set and its spec."""

  dataset: Dataset
  split: str


class Subject(NamedTuple):
  """What a page is about.

  Attributes:
    title: of the page.
    input: what is read.
    parts: the training split first.
    experiment: of a config; None for a data set by its name.
  """

  title: str
  input: InputConfig
  parts: Sequence[Part]
  experiment: Experiment | None


def show(args: argparse.Namespace, experiment: Experiment | None) -> Path:
  """Writes the page of a data set.

  Args:
    args: of the command, see `segjax.cli.data`.
    experiment: of its `--config`.

  Returns:
    The path of the page.

  Raises:
    SegjaxError: what is wrong with the arguments, the config or an example.
  """
  title = args.name or Path(args.config.partition(':')[0]).stem
  path = storage.as_path(args.output or re.sub(r'[^\w.-]+', '-', title) + '.html')
  if not (storage.is_bucket(path) or path.parent.is_dir()):
    raise SegjaxError(f'--output={path}: {path.parent} is not a directory: create it')
  subject = _named(args) if experiment is None else _configured(title, experiment)
  if args.split:
    subject = subject._replace(parts=[Part(subject.parts[0].dataset, args.split)])
  write_page(path, subject, examples=args.examples, limit=args.limit or None)
  return path


def write_page(path: Path, subject: Subject, *, examples: int, limit: int | None) -> None:
  """Writes the page of a subject.

  Args:
    path: of the HTML file.
    subject: see `Subject`.
    examples: number of examples that are drawn, besides suspicious ones.
    limit: maximum number of examples of a split that are read.
  """
  readers = [
    source_reader.open_reader(builder, split, subject.input, spec)
    for (builder, spec), split in subject.parts
  ]
  for sentence in dict.fromkeys(text for reader in readers for text in reader.left_out):
    notify(sentence)
  splits = [_read(part, reader, limit) for part, reader in zip(subject.parts, readers, strict=True)]
  found = data_page.reasons(splits)
  spec = subject.parts[0].dataset[1]
  classes = data_page.Classes(spec.class_names, spec.palette, _with_objects(subject))
  # Objects and segments have their names drawn on them.
  colors = (
    {} if classes.objects else dict(zip(classes.names, classes.palette.tolist(), strict=True))
  )
  most = None
  if classes.objects and subject.experiment:
    most = subject.input.most_objects_key, subject.input.most_objects
  notify('drawing examples')
  images = [
    (suspect.caption, draw_example(spec, readers[suspect.split][suspect.index]))
    for suspect in data_page.suspects(splits, found)
  ]
  sections = [
    html.list_section('What to check', data_page.findings(splits, classes, most)),
    data_page.suspicious_section(splits, found),
    *(data_page.classes_section(split, classes, collapsed=i > 0) for i, split in enumerate(splits)),
    data_page.distributions_section(splits, classes),
    html.images_section('Images to check, drawn', images, colors, lossy=True),
    *_example_sections(subject, readers, examples, colors),
    data_page.names_section(splits, found),
    *_config_section(subject.experiment),
  ]
  data_page.write(
    path,
    title=subject.title,
    summary=_summary(subject, splits),
    sizes=spec.splits,
    sections=sections,
  )


# --- what is shown --------------------------------------------------------------------------------


def _configured(title: str, experiment: Experiment) -> Subject:
  """The data sets that a config trains and evaluates on."""
  data = experiment.data
  trained = run_lib.load_dataset(experiment)
  evaluated = trained
  if data.eval_name is not None:
    evaluated = run_lib.load_eval_dataset(experiment, trained[1].class_names)
  parts = [Part(trained, data.train_split)]
  if (data.eval_name, data.eval_split) != (None, data.train_split):
    parts.append(Part(evaluated, data.eval_split))
  return Subject(title, experiment.input, parts, experiment)


def _named(args: argparse.Namespace) -> Subject:
  """A data set by its name, as the features say that it can be read."""
  annotations = task_module(args.task).ANNOTATIONS if args.task else ('label',)
  builder = datasets.load(
    args.name, args.data_dir, args.source, report=notify, annotations=annotations
  )
  features = builder.info.features
  if args.task is None and isinstance(builder, outside.SourceBuilder):
    raise SegjaxError(f'{args.name} does not say its task: add --task, such as --task=semantic')
  task = args.task or _task_of(args.name, features)
  keys = {
    key: None for key in ('name_key', 'segments_key') if getattr(DataConfig, key) not in features
  }
  data = DataConfig(args.name, args.data_dir, args.source, **keys)
  # Objects without a mask are shown as their boxes.
  config = InputConfig(data, annotations=task_module(task).ANNOTATIONS, masks=False)
  dataset = builder, datasets.spec(builder, config)
  known = list(builder.info.splits)
  chosen = [split for split in _SPLITS if split in known] or known
  return Subject(args.name, config, [Part(dataset, split) for split in chosen[:2]], None)


def _task_of(name: str, features: Mapping[str, Any]) -> str:
  """The first task that a data set with such features is for."""
  is_label_map = 'label' in features and isinstance(features['label'], tfds.features.Image)
  if 'segments' in features:
    return 'panoptic'
  if is_label_map:
    return 'semantic'
  if 'objects' in features:
    return 'instance'
  raise SegjaxError(
    f'{name} has the features {", ".join(features)}, and no label, objects or segments: show it by '
    'a --config that names those of its annotations'
  )


def _with_objects(subject: Subject) -> tuple[int, ...]:
  """The classes whose objects are counted."""
  spec, annotations = subject.parts[0].dataset[1], subject.input.annotations
  if 'segments' in annotations:
    return spec.things
  return tuple(range(spec.num_classes)) if 'objects' in annotations else ()


# --- what is read ---------------------------------------------------------------------------------


def _read(part: Part, reader: Any, limit: int | None) -> data_page.Split:
  indices = statistics.spread(len(reader), limit)
  notify(f'reading {len(indices):,} of {len(reader):,} images of {part.split}')
  return data_page.Split(part.split, len(reader), indices, statistics.collect(reader, limit))


def _example_sections(
  subject: Subject,
  readers: Sequence[Any],
  count: int,
  colors: Mapping[str, Sequence[int]],
) -> Iterator[html.Section]:
  """The examples of each split: those first trained on with a config, else evenly spaced ones."""
  for i, (part, reader) in enumerate(zip(subject.parts, readers, strict=True)):
    spec, title = part.dataset[1], f'Examples of {part.split}'
    seen: Mapping[int, list[np.ndarray]] = {}
    trains = i == 0 and part.split == subject.input.data.train_split
    if trains and subject.experiment is not None:
      seen = _trained_on(part.dataset, subject.experiment, count)
      title = f'{title}, as stored and as the first batches have them'
    rows = []
    for index in seen or statistics.spread(len(reader), count):
      example = reader[index]
      drawn = draw_example(spec, example)
      again = seen.get(index, [])
      drawn |= {f'{_TRAINED_ON} {k}' if k > 1 else _TRAINED_ON: x for k, x in enumerate(again, 1)}
      rows.append((example.name, drawn))
    yield html.images_section(title, rows[:count], colors, lossy=True, collapsed=i > 0)


def _trained_on(
  dataset: Dataset, experiment: Experiment, count: int
) -> dict[int, list[np.ndarray]]:
  """The first `count` examples that a network is trained on: index -> each time it was seen."""
  builder, spec = dataset
  config, seed = experiment.input, experiment.train.seed
  config = dataclasses.replace(config, batch=dataclasses.replace(config.batch, workers=0))
  margin = getattr(experiment.model, 'margin', 0)
  reader = source_reader.open_reader(builder, config.data.train_split, config, spec)
  plan = order.TrainOrder(len(reader), lambda: reader.sizes, config, seed, reader.name)
  batches = pipeline.train_batches(builder, spec, config, seed=seed, margin=margin)
  seen: dict[int, list[np.ndarray]] = {}
  total = 0
  with contextlib.closing(batches):
    for step, (batch, _) in enumerate(batches):
      for row, (_, index) in enumerate(plan.batch(step)[1]):
        if total == count:
          return seen
        seen.setdefault(index, []).append(draw_row(spec, batch, row, margin))
        total += 1
  return seen


def _summary(subject: Subject, splits: Sequence[data_page.Split]) -> dict[str, str]:
  """The summary at the top of a page."""
  builder, spec = subject.parts[0].dataset
  last = subject.input.annotations[-1]
  return {
    'data set': f'{spec.name} {spec.version}',
    'task': next(task for task in TASKS if task_module(task).ANNOTATIONS[-1] == last),
    'classes': f'{spec.num_classes:,}',
    'channels': f'{spec.channels}',
    **data_page.facts(splits),
    'read from': str(builder.data_path),
    'written': datetime.datetime.now().isoformat(' ', 'minutes'),
    'versions': provenance.versions(),
  }


def _config_section(experiment: Experiment | None) -> list[html.Section]:
  if experiment is None:
    return []
  return [html.text_section('Config', config_lib.to_json(experiment.to_dict()))]
