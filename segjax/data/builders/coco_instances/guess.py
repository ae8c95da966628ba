"""Whether users' files are in COCO instance format."""

from pathlib import Path

from segjax.data import guess as types
from segjax.data.builders import coco_guess
from segjax.data.builders.coco_instances.builder import Builder, read_file

# What the format can be prepared for.
_TASKS = ('semantic', 'instance', 'panoptic')


def guess(
  task: types.Task, images: Path | None, labels: Path | None, *, outside: bool = False
) -> types.Guess | None:
  """See `segjax.data.guess.Guesser`; `outside` is that of the options."""
  if task not in _TASKS:
    return None
  read = lambda path: read_file(path, own=True)
  return coco_guess.make_guess(Builder.kind, read, task, images, labels, outside=outside)
