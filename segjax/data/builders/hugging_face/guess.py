"""Whether users' files are a Hugging Face data set on disk."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from segjax.data import guess as types
from segjax.data.builders import files, guessing
from segjax.data.builders.folder import guess as folder
from segjax.data.builders.folder.layout import Layout
from segjax.data.builders.folder.pairing import Pair
from segjax.data.builders.folder.patterns import File
from segjax.data.builders.hugging_face import tables
from segjax.types import SegjaxError

# Names of columns, in the order of preference.
_IMAGES = ('image', 'images', 'img', 'picture', 'pixel_values')
_LABELS = (
  *('label', 'labels', 'mask', 'masks', 'annotation', 'annotations', 'segmentation'),
  *('segmentation_mask', 'semantic', 'semantic_map', 'label_map', 'ground_truth', 'gt'),
)
_INSTANCES = ('instances', 'instance', 'instance_map', 'instance_mask')


def guess(
  task: types.Task,
  images: Path | None,
  labels: Path | None,
  *,
  given: types.Given = types.NOTHING_GIVEN,
) -> types.Guess | None:
  """See `segjax.data.guess.Guesser`: the directory of arrow or parquet files.

  Args:
    task, images, labels: as there.
    given: what the user says of the values of masks.

  Raises:
    SegjaxError: it is such a directory, and pyarrow or a column of masks is missing.
  """
  source = images or labels
  if source is None or not source.is_dir() or labels not in (None, source):
    return None
  files = tables.find_tables(source)
  if not files:
    return None
  found = {split: tables.Table(paths) for split, paths in files.items()}
  columns = _columns(task, found.get('train') or next(iter(found.values())))
  masks = [column for key, column in columns.items() if key != 'images']
  empty = [s for s, table in found.items() if any(map(table.is_empty, masks))]
  if len(empty) < len(found):  # else the first row is an error
    found = {split: table for split, table in found.items() if split not in empty}
  pairs = [pair for split, table in found.items() for pair in _pairs(source, split, table, columns)]
  layout = Layout(source, columns['images'], columns.get('labels'), columns.get('instances'))
  reading = folder.read_masks(task, layout, pairs, given)
  options = {
    **columns,
    **reading.files,
    'channels': folder.find_channels(pairs),
    **({} if 'labels' in columns else {'labels': None}),
  }
  if splits := _splits(list(found), whole=len(found) == len(files)):
    options['splits'] = splits
  lines = [f'{split}: {guessing.count(len(table), "row")}' for split, table in found.items()]
  lines.append(f'columns {" and ".join(columns.values())}: {reading.found}')
  narrow = guessing.narrow([pair.image for pair in pairs])
  left = [f'no row of {s} has a mask: left out of the splits' for s in empty if s not in found]
  problems = [*left, *folder.wrong_sizes(pairs), *narrow, *reading.problems]
  return types.Guess('hugging_face', source, options, lines, problems)


def _columns(task: types.Task, table: tables.Table) -> dict[str, str]:
  """The columns of images, and of the masks that a task reads."""
  images = [field.name for field in table.schema if _is_image(field.type)]
  image = _first(_IMAGES, images) or (images or [None])[0]
  masks = [
    field.name
    for field in table.schema
    if field.name != image and (_is_image(field.type) or _is_mask(table, field))
  ]
  label, instances = _first(_LABELS, masks), _first(_INSTANCES, masks)
  if image is None or not masks:
    raise SegjaxError(
      f'{table.path} has the columns {", ".join(table.schema.names)}, none of which is of masks: '
      'choose a data set that has an image and a mask in each row'
    )
  label = label or next((name for name in masks if name != instances), None)
  if task == 'semantic':
    return {'images': image, 'labels': label} if label else {'images': image, 'instances': masks[0]}
  if instances is None:
    return {'images': image, 'instances': masks[0]}
  found = {'images': image, 'labels': label, 'instances': instances}
  return {key: column for key, column in found.items() if column}


def _is_image(type_: Any) -> bool:
  """Whether cells are image files; not objects, whose cells have boxes and categories."""
  names = ('bytes', 'path')
  return tables.arrow().types.is_struct(type_) and any(type_.get_field_index(n) >= 0 for n in names)


def _is_mask(table: tables.Table, field: Any) -> bool:
  """Whether cells are rows of pixels; not boxes, which are lists of four numbers."""
  if not _is_rows(field.type):
    return False
  first = table.read(0, (field.name,))[field.name]
  return any(len(row) != 4 for row in first or ())


def _is_rows(type_: Any) -> bool:
  """Whether cells are lists of lists of whole numbers."""
  types_ = tables.arrow().types
  for _ in range(2):
    if not any(f(type_) for f in (types_.is_list, types_.is_large_list, types_.is_fixed_size_list)):
      return False
    type_ = type_.value_type
  return types_.is_integer(type_) or types_.is_boolean(type_)


def _first(names: Sequence[str], columns: Sequence[str]) -> str | None:
  return next((name for name in names if name in columns), None)


def _pairs(source: Path, split: str, table: tables.Table, columns: Mapping[str, str]) -> list[Pair]:
  listed = tuple(columns.values())
  cell: Callable[[int, str], Any] = lambda row, key: tables.Cell(
    table, row, columns[key], listed, source
  )
  masks = lambda row, key: [File(cell(row, key), str(row))] if key in columns else []
  return [
    Pair(f'{split}/{row}', cell(row, 'images'), masks(row, 'labels'), masks(row, 'instances'))
    for row in range(len(table))
  ]


def _splits(names: Sequence[str], *, whole: bool) -> dict[str, Any] | None:
  """None where the data set's own splits are train and val, and `names` are the whole of them."""
  if not whole:
    return {files.SPLIT_NAMES.get(name.lower(), name): name for name in names}
  known = {files.SPLIT_NAMES.get(name.lower()): name for name in names}
  if len(names) == 1 or 'train' not in known:
    return dict(files.FRACTIONS)
  if 'val' in known:
    return None
  return {'train': known['train'], 'val': known['test']} if 'test' in known else None
