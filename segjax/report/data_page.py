"""The page of a data set, to look at before training: what is in it, and what looks wrong."""

import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from segjax.data.statistics import ExampleStatistics, Statistics, duplicates, suspicious
from segjax.report import html
from segjax.report.values import format_share

# A class with a smaller share of the pixels is learned badly without weights.
RARE = 0.001
# Suspicious examples that are drawn for each reason and split.
DRAWN = 4
# A table of more classes is collapsed.
_MANY = 40
# Names and other things that a sentence lists.
_LISTED = 8
IN_BOTH = 'the same image in another split'


class Split(NamedTuple):
  """What was read of a split.

  Attributes:
    name: of the split.
    count: number of its examples.
    indices: in the split, of those that were read.
    statistics: of those.
  """

  name: str
  count: int
  indices: Sequence[int]
  statistics: Statistics


class Classes(NamedTuple):
  """The classes of a data set.

  Attributes:
    names: of each.
    palette: u8[C, 3], the color of each.
    objects: the indices of those whose objects are counted: none in semantic tasks, all in instance
      tasks, the things in panoptic tasks.
  """

  names: Sequence[str]
  palette: np.ndarray
  objects: Sequence[int]


class Suspect(NamedTuple):
  """An example to look at.

  Attributes:
    split: the position of its `Split`.
    index: in the split.
    caption: its reasons, name and numbers.
  """

  split: int
  index: int
  caption: str


def reasons(splits: Sequence[Split]) -> list[dict[str, list[str]]]:
  """Of each split: reason -> names of the examples, worst first; see `statistics.suspicious`."""
  digests = [{e.digest for e in split.statistics.examples} for split in splits]
  found = [suspicious(split.statistics) for split in splits]
  for i, split in enumerate(splits):
    others = set().union(*digests[:i], *digests[i + 1 :])
    if both := [e.name for e in split.statistics.examples if e.digest in others]:
      found[i][IN_BOTH] = both
  return found


def suspects(splits: Sequence[Split], found: Sequence[Mapping[str, list[str]]]) -> list[Suspect]:
  """The examples to draw: the worst `DRAWN` of each reason and split, each of them once."""
  chosen: dict[tuple[int, str], None] = {}
  for reason in dict.fromkeys(reason for names in found for reason in names):
    for i, names in enumerate(found):
      chosen |= dict.fromkeys((i, name) for name in names.get(reason, ())[:DRAWN])
  return [_suspect(splits, found, i, name) for i, name in chosen]


def _suspect(
  splits: Sequence[Split], found: Sequence[Mapping[str, list[str]]], i: int, name: str
) -> Suspect:
  examples = splits[i].statistics.examples
  position = next(k for k, example in enumerate(examples) if example.name == name)
  why = '; '.join(reason for reason, names in found[i].items() if name in names)
  alike = next((group for group in duplicates(splits[i].statistics) if name in group), [name])
  same = ', '.join(other for other in alike[:_LISTED] if other != name)
  caption = f'{why} — {splits[i].name}: {caption_of(examples[position])}'
  if same:
    caption += f', same image as {same}'
  return Suspect(i, splits[i].indices[position], caption)


def caption_of(example: ExampleStatistics) -> str:
  """The name and the numbers of an example."""
  height, width = example.size
  facts = [f'{height} × {width}']
  if example.objects:
    many = f'{example.objects} objects, the smallest' if example.objects > 1 else '1 object'
    facts.append(f'{many} of {example.smallest:,} pixels')
  if example.ignored:
    facts.append(f'{format_share(example.ignored / (height * width))} ignored')
  return f'{example.name} ({", ".join(facts)})'


def findings(
  splits: Sequence[Split], classes: Classes, most: tuple[str, int] | None = None
) -> list[str]:
  """What looks wrong of whole splits, a sentence each.

  Args:
    splits: that were read.
    classes: of the data set.
    most: the objects of an image that a network is trained on, and before them the key, with its
      value, that says so; None for any number.
  """
  found = []
  # Of instance tasks, whose pixels belong to several objects or to none, objects are compared.
  only_objects = len(classes.objects) == len(classes.names)
  for split in splits:
    statistics, name = split.statistics, split.name
    what, counts = 'pixel', statistics.pixels
    if only_objects:
      what, counts = 'object', statistics.object_counts
    if missing := _listed(classes.names, counts == 0):
      found.append(f'{name} has no {what} of {missing}')
    rare = (counts > 0) & (counts < RARE * counts.sum())
    if rare.any():
      found.append(
        f'{name}: less than {format_share(RARE)} of the {what}s are of '
        f'{_listed(classes.names, rare)}'
      )
    if most and (many := sum(example.objects > most[1] for example in statistics.examples)):
      found.append(
        f'{name}: images with more than {most[0]} objects: {many}; training keeps the largest'
      )
    if boxes := sum(example.without_mask for example in statistics.examples):
      found.append(f'{name}: objects that are boxes without a mask: {boxes:,}')
    if split.count == 1:
      found.append(f'{name} has a single image')
  return found


def _listed(class_names: Sequence[str], which: np.ndarray) -> str:
  """The names at which bool[C] is true, the first of them if they are many."""
  names = [class_names[k] for k in np.flatnonzero(which)]
  more = len(names) - _LISTED
  return ', '.join(names[:_LISTED]) + (f' and {more} more' if more > 0 else '')


def _pixels(statistics: Statistics) -> int:
  """Pixels of all images that were read."""
  return sum(height * width for height, width in (e.size for e in statistics.examples))


def classes_section(split: Split, classes: Classes, *, collapsed: bool) -> html.Section:
  """The table of classes: images, objects and pixels of each, and its share of all pixels."""
  statistics, total = split.statistics, _pixels(split.statistics)
  present = np.sum([example.pixels > 0 for example in statistics.examples], axis=0)
  with_objects = bool(classes.objects)

  def cells(images: int, objects: int | None, pixels: int) -> list[int | float | None]:
    return [images, *[objects] * with_objects, pixels, pixels / total]

  rows = []
  for k, name in enumerate(classes.names):
    objects = int(statistics.object_counts[k]) if k in classes.objects else None
    numbers = cells(int(present[k]), objects, int(statistics.pixels[k]))
    rows.append(html.CountsRow(name, numbers, classes.palette[k].tolist()))
  if statistics.ignored:
    images = sum(example.ignored > 0 for example in statistics.examples)
    rows.append(html.CountsRow('(ignored)', cells(images, None, statistics.ignored)))
  return html.counts_section(
    f'Classes of {split.name} ({read_of(split)})',
    ['images', *['objects'] * with_objects, 'pixels', 'share of pixels'],
    rows,
    collapsed=collapsed or len(rows) > _MANY,
  )


def read_of(split: Split) -> str:
  """How many examples were read: '367 images', '2,000 of 118,287 images'."""
  read = len(split.statistics.examples)
  of = '' if read == split.count else f'{read:,} of '
  return f'{of}{split.count:,} image{"s" * (split.count != 1)}'


def suspicious_section(
  splits: Sequence[Split], found: Sequence[Mapping[str, list[str]]]
) -> html.Section:
  """The table of how many examples each reason has in each split."""
  reasons = dict.fromkeys(reason for names in found for reason in names)
  columns = [text for split in splits for text in (split.name, '')]

  def cells(reason: str) -> list[int | float | None]:
    counts = [len(names.get(reason, ())) for names in found]
    pairs = zip(counts, splits, strict=True)
    return [x for n, split in pairs for x in (n, n / len(split.statistics.examples))]

  rows = [html.CountsRow(reason, cells(reason)) for reason in reasons]
  return html.counts_section('Images to check', columns, rows)


def names_section(
  splits: Sequence[Split], found: Sequence[Mapping[str, list[str]]]
) -> html.Section:
  """The names of all suspicious examples, worst first."""
  lines = []
  for split, names in zip(splits, found, strict=True):
    for reason, of_reason in names.items():
      lines += [f'{split.name}: {reason}', *(f'  {name}' for name in of_reason)]
  return html.text_section('Names of the images to check', '\n'.join(lines))


# Quantity -> its value or values in an example, and whether it is one of objects.
_QUANTITIES: dict[str, tuple[Callable[[ExampleStatistics], npt.ArrayLike], bool]] = {
  'image height': (lambda e: e.size[0], False),
  'image width': (lambda e: e.size[1], False),
  'objects per image': (lambda e: e.objects, True),
  'side of an object, √(width × height)': (lambda e: np.sqrt(e.boxes.prod(axis=1)), True),
  'classes per image': (lambda e: np.count_nonzero(e.pixels), False),
  'mean brightness': (lambda e: e.brightness, False),
}


def distributions_section(splits: Sequence[Split], classes: Classes) -> html.Section:
  """Histograms of the images' sizes, of their objects and classes, and of their brightness."""
  return html.histograms_section(
    'Distributions',
    {
      name: {
        split.name: np.concatenate([np.atleast_1d(measure(e)) for e in split.statistics.examples])
        for split in splits
      }
      for name, (measure, of_objects) in _QUANTITIES.items()
      if classes.objects or not of_objects
    },
  )


def facts(splits: Sequence[Split]) -> dict[str, str]:
  """Image sizes, mean and standard deviation, of the first split for the latter."""
  statistics = splits[0].statistics
  sizes = sorted(e.size for split in splits for e in split.statistics.examples)
  unlike = len(set(sizes))
  heights, widths = zip(*sizes, strict=True)
  show = lambda values: ', '.join(f'{value:.1f}' for value in values)
  text = f'{heights[0]} × {widths[0]}'
  if unlike > 1:
    text = f'{min(heights)} × {min(widths)} to {max(heights)} × {max(widths)}, {unlike:,} sizes'
  return {
    'image size (height × width)': text,
    f'mean of {splits[0].name}': show(statistics.mean),
    f'standard deviation of {splits[0].name}': show(statistics.std),
  }


def write(
  path: str | os.PathLike,
  *,
  title: str,
  summary: Mapping[str, Any],
  sizes: Mapping[str, int],
  sections: Sequence[html.Section],
) -> None:
  """Writes the page.

  Args:
    path: of the HTML file.
    title: of the page.
    summary: facts by name.
    sizes: number of examples of each split of the data set.
    sections: in order.
  """
  rows = [html.CountsRow(name, [count]) for name, count in sizes.items()]
  splits = html.counts_section('Splits', ['images'], rows)
  html.write_report(path, title=title, summary=summary, sections=[splits, *sections])
