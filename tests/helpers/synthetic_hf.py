"""Images with masks in the arrow and parquet files that Hugging Face's `datasets` writes."""

import json
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet
from synthetic_labelme import SIZE, draw, encode

IMAGE = pyarrow.struct([('bytes', pyarrow.binary()), ('path', pyarrow.string())])


def masks(shapes) -> tuple[np.ndarray, np.ndarray]:
  """u8[H, W] of classes (1 the square, 2 the disk) and of objects."""
  (left, top), (center, edge) = shapes[0]['points'][0], shapes[1]['points']
  y, x = np.mgrid[: SIZE[0], : SIZE[1]] + 0.5
  label = np.zeros(SIZE, np.uint8)
  label[top : top + 14, left : left + 14] = 1
  label[(x - center[0]) ** 2 + (y - center[1]) ** 2 < (edge[0] - center[0]) ** 2] = 2
  return label, label * 7


def table(count: int, seed: int = 0, *, paths: bool = True, **columns) -> pyarrow.Table:
  """Rows with the columns image, label and instances, and others."""
  rng, images, labels, instances = np.random.default_rng(seed), [], [], []
  for number in range(count):
    image, shapes = draw(rng)
    label, ids = masks(shapes)
    path = f'im{number:02}.jpg' if paths else None
    images.append({'bytes': encode(image, 'JPEG'), 'path': path})
    labels.append({'bytes': encode(label), 'path': None})
    instances.append({'bytes': encode(ids), 'path': None})
  arrays = {'image': images, 'label': labels, 'instances': instances}
  typed = {name: pyarrow.array(values, IMAGE) for name, values in arrays.items()}
  return pyarrow.table({**typed, **columns})


def write_arrow(directory: Path, rows: pyarrow.Table, shards: int = 1) -> None:
  """Writes a directory as `Dataset.save_to_disk` does."""
  directory.mkdir(parents=True, exist_ok=True)
  names = [f'data-{i:05}-of-{shards:05}.arrow' for i in range(shards)]
  ends = np.linspace(0, rows.num_rows, shards + 1).astype(int).tolist()
  for name, start, end in zip(names, ends, ends[1:], strict=False):
    part = rows.slice(start, end - start)
    with pyarrow.ipc.new_stream(str(directory / name), part.schema) as writer:
      writer.write_table(part, max_chunksize=3)
  state = {'_data_files': [{'filename': name} for name in names], '_split': None}
  (directory / 'state.json').write_text(json.dumps(state))
  (directory / 'dataset_info.json').write_text('{}')


def write_saved(directory: Path, splits) -> None:
  """Writes a directory as `DatasetDict.save_to_disk` does; `splits` is split -> rows."""
  for split, rows in splits.items():
    write_arrow(directory / split, rows)
  (directory / 'dataset_dict.json').write_text(json.dumps({'splits': list(splits)}))


def write_parquet(path: Path, rows: pyarrow.Table, group: int = 3) -> None:
  """Writes a file of a data set's repository."""
  path.parent.mkdir(parents=True, exist_ok=True)
  pyarrow.parquet.write_table(rows, path, row_group_size=group)


def write_set(directory: Path, count: int = 20) -> None:
  """Writes a data set of which a fifth is the split validation."""
  splits = {'train': table(count - count // 5), 'validation': table(count // 5, seed=1)}
  write_saved(directory, splits)
