"""Whether users' files are Cityscapes."""

from pathlib import Path

from segjax.data import guess as types
from segjax.data.builders import guessing

_NAMES = {
  'semantic': 'cityscapes',
  'instance': 'cityscapes_instances',
  'panoptic': 'cityscapes_panoptic',
}


def guess(task: types.Task, images: Path | None, labels: Path | None) -> types.Guess | None:
  """See `segjax.data.guess.Guesser`: the root, or `leftImg8bit` and `gtFine` in it."""
  places = [place for place in (images, labels) if place is not None]
  source = guessing.common_directory(*places) if places else Path()
  if source.name == 'leftImg8bit':
    source = source.parent
  if not all((source / name / 'val').is_dir() for name in ('leftImg8bit', 'gtFine')):
    return None
  found = [
    f'{split}: {guessing.count(len(list(directory.glob("*/*_leftImg8bit.png"))), "image")}'
    for split in ('train', 'val', 'test')
    if (directory := source / 'leftImg8bit' / split).is_dir()
  ]
  return types.Guess(_NAMES[task], source, {}, ['Cityscapes', *found], [])
