"""Users' own data in every format: new, train, evaluate and predict, by commands alone."""

import json
import shutil

import numpy as np
import pytest
from commands import SMALL, output, read_log, run
from own_data import COUNT, FORMATS
from own_folders import save, write_folder
from PIL import Image
from raw_files import gray, rename, truncate, write

from segjax import config as config_lib

# The keys of the small networks that do not name a data set, and what depends on the data: with the
# same for all formats, those of a task run the same compiled programs.
_OBJECTS = [
  'data.size.shapes=((64,64),)',
  'data.size.short_side=(48,)',
  'model.rpn.anchor_sizes=(4.0,8.0,16.0,32.0,64.0)',
  'model.rpn.aspect_ratios=(1.0,)',
  'batch.max_objects=4',
  'batch.eval_size=4',
]
# Constants of the program, which `segjax new` measures.
_PIXELS = ['data.mean=(127.5,)', 'data.std=(127.5,)']
_SAME = {
  'semantic': [*_PIXELS, 'data.size.image_size=(32,32)'],
  'instance': [*_PIXELS, *_OBJECTS],
  'panoptic': [*_PIXELS, *_OBJECTS],
}
_OF_SCENES = ('data.name', 'data.eval_split', 'data.mean', 'data.std', 'train.', 'data.size')
_EVERY = ['train.steps=2', 'train.eval_every=2', 'train.checkpoint_every=2', 'train.images=1']


def shrink(task: str) -> list[str]:
  """The overrides that make a config of `segjax new` small."""
  prefixes = tuple(f'--config.{key}' for key in _OF_SCENES)
  kept = [key for key in SMALL[task] if not key.startswith(prefixes)]
  return kept + [f'--config.{key}' for key in (*_SAME[task], *_EVERY)]


# The commands after training read no files of the format: they run for one format of each task.
COMPLETE = ('class indices', 'COCO of Roboflow', 'labels and instances')
METRICS = {'semantic': 'mean_iou', 'instance': 'mask_ap', 'panoptic': 'pq'}


def formats():
  """Networks with objects take longer to compile than the rest of the test takes."""
  for name, kind in FORMATS.items():
    marks = [pytest.mark.slow] * (kind.task != 'semantic')
    # Of the formats of objects, those that most people have, and one of segments.
    often = (*COMPLETE, 'YOLO, objects')
    yield pytest.param(
      name, marks=marks + [pytest.mark.nightly] * (bool(marks) and name not in often)
    )


@pytest.mark.parametrize('name', list(formats()))
def test_from_files_to_predictions(tmp_path, name, capsys):
  kind = FORMATS[name]
  root, config, workdir = tmp_path / 'data', tmp_path / 'my_config.py', tmp_path / 'run'
  kind.write(root)
  named = {'images': kind.images, 'labels': kind.labels}
  places = [f'--{key}={root / place}' for key, place in named.items() if place is not None]
  assert run('new', f'--task={kind.task}', *places, f'--output={config}') == 0
  assert f'segjax train --config={config}' in capsys.readouterr().out

  assert run('train', f'--config={config}', f'--workdir={workdir}', *shrink(kind.task)) == 0
  written = json.loads((workdir / 'config.json').read_text())
  assert (written['task'], written['data']['name']) == (kind.task, kind.name)
  described = json.loads((workdir / 'dataset.json').read_text())['spec']
  assert tuple(described['class_names']) == kind.classes
  assert sum(described['splits'].values()) == COUNT
  log = read_log(workdir)
  assert [r['step'] for r in log if r['split'] == 'train'][-1] == 2
  # A split without annotations would have no value.
  assert [r for r in log if r['split'] == 'val'][-1][METRICS[kind.task]] is not None
  if name not in COMPLETE:
    return
  assert output(capsys, 'evaluate', f'--workdir={workdir}')[METRICS[kind.task]] is not None
  images, predictions = tmp_path / 'new_images', tmp_path / 'predictions'
  for i in range(2):
    save(images / f'{i}.png', np.full((48, 48, 3), 100 * i, np.uint8))
  assert (
    run('predict', f'--workdir={workdir}', f'--images={images}', f'--output={predictions}') == 0
  )
  assert {path.name for path in predictions.glob('*_overlay.png')} == {
    '0_overlay.png',
    '1_overlay.png',
  }


def test_a_folder_of_masks_is_learned(tmp_path, capsys):
  """The question asked most: images/*.jpg and masks/*.png, two classes."""
  rng = np.random.default_rng(0)
  for i in range(24):
    x, y = rng.integers(2, 34, 2)
    mask = np.zeros((64, 64), np.uint8)
    mask[y : y + 28, x : x + 28] = 1
    image = np.where(mask[..., None] > 0, [220, 40, 40], [30, 30, 60])
    image = (image + rng.integers(0, 20, (64, 64, 3))).astype(np.uint8)
    save(tmp_path / f'images/im{i:02}.jpg', image, quality=95)
    save(tmp_path / f'masks/im{i:02}.png', mask * np.uint8(255))
  config, workdir = tmp_path / 'mine.py', tmp_path / 'run'
  places = [f'--images={tmp_path}/images', f'--labels={tmp_path}/masks']
  assert run('new', '--task=semantic', *places, f'--output={config}') == 0
  small = ['--config.model.width=8', '--config.model.depth=2', '--config.train.steps=60']
  assert run('train', f'--config={config}', f'--workdir={workdir}', *small) == 0
  assert output(capsys, 'evaluate', f'--workdir={workdir}')['mean_iou'] > 0.9
  # What the network puts out are class indices, whatever values the masks have.
  assert (
    run('predict', f'--workdir={workdir}', f'--images={tmp_path}/images', f'--output={tmp_path}/o')
    == 0
  )
  assert set(np.unique(np.asarray(Image.open(tmp_path / 'o/im00.png')))) == {0, 1}


def test_one_image_is_trained_on(tmp_path, capsys):
  config, workdir = tmp_path / 'mine.py', tmp_path / 'run'
  write_folder(tmp_path, 1)
  places = [f'--images={tmp_path}/images', f'--labels={tmp_path}/masks']
  assert run('new', '--task=semantic', *places, f'--output={config}') == 0
  assert 'there is one split' in capsys.readouterr().out
  args = ['train', f'--config={config}', f'--workdir={workdir}', *shrink('semantic')]
  assert run(*args, '--config.batch.size=4') == 0
  assert 'config.batch.size=4 is larger than the split train (examples: 1)' in (
    capsys.readouterr().err
  )


def test_classes_from_1_above_void(tmp_path, capsys):
  """`do_reduce_labels` of transformers, `reduce_zero_label` of MMSegmentation."""
  write_folder(tmp_path)
  places = [f'--images={tmp_path}/images', f'--labels={tmp_path}/masks']
  made = f'--output={tmp_path}/mine.py', f'--data_dir={tmp_path}/prepared'
  for first in ([], ['--config.data.files.first=1', '--force']):
    void = '--config.data.files.void=(0,)'
    assert run('new', '--task=semantic', *places, *made, void, *first) == 0
    shown = capsys.readouterr().out
    assert '2 classes in the training images:\n  class_1: ' in shown and '0.00%' not in shown
    files = config_lib.read_file(tmp_path / 'mine.py')['data']['files']
    assert (files['first'], files['void']) == (1, (0,))


def test_a_single_class_is_nothing_to_learn(tmp_path, capsys):
  write_folder(tmp_path, convert=lambda label: np.full_like(label, 3))
  places = [f'--images={tmp_path}/images', f'--labels={tmp_path}/masks']
  assert run('new', '--task=semantic', *places, f'--output={tmp_path}/mine.py') == 2
  message = 'every labeled pixel of the training images is class_3'
  assert message in capsys.readouterr().err and not (tmp_path / 'mine.py').exists()


@pytest.mark.parametrize(
  ('break_it', 'message'),
  [
    (write('masks/im1.png', gray(30, 32)), 'masks/im1.png is 32x30 pixels but its image'),
    (truncate('images/im2.png', 900), 'images/im2.png cannot be decoded'),
    (truncate('masks/im2.png', 40), 'masks/im2.png cannot be decoded'),
    (lambda root: (root / 'images/im0.png').write_bytes(b''), 'images/im0.png cannot be decoded'),
    (rename('masks/im0.png', 'masks/other.png'), None),
    (lambda root: [save(p, gray(32, 32)) for p in (root / 'masks').iterdir()], 'nothing is'),
    (lambda root: shutil.copy(root / 'images/im0.png', root / 'images/im0.bmp'), 'the same name'),
  ],
)
def test_bad_files_end_new_with_one_sentence(tmp_path, capsys, break_it, message):
  root, config = tmp_path / 'data', tmp_path / 'mine.py'
  write_folder(root, 6)
  break_it(root)
  places = [f'--images={root}/images', f'--labels={root}/masks', f'--data_dir={tmp_path}/prepared']
  code = run('new', '--task=semantic', *places, f'--output={config}')
  captured = capsys.readouterr()
  if message is None:
    assert code == 0 and 'such files are left out' in captured.out
  else:
    assert code == 2 and message in captured.err.splitlines()[-1]
    assert not config.exists()
    assert not list((tmp_path / 'prepared').rglob('*.array_record*'))
