"""`segjax new`, on small files in COCO's format: what it writes, says and refuses."""

import contextlib
import functools
import json
import shutil

import jax
import numpy as np
import pytest
from commands import fails, run
from PIL import Image

from segjax import config as config_lib
from segjax import run as run_lib
from segjax.cli import new
from segjax.data import guess
from segjax.data.builders.coco_instances.guess import guess as guess_coco
from segjax.recipes import Machine
from segjax.workdir import Workdir

SIZE = (40, 48)
CLASSES = ('cell', 'dot')


@pytest.fixture(autouse=True)
def only_coco(monkeypatch):
  monkeypatch.setattr(
    guess, '_guessers', lambda *, outside, given: [functools.partial(guess_coco, outside=outside)]
  )


def write_split(root, split, images, entries, names=CLASSES):
  """A split of PNG files, and an annotation (image index, category, x, y, width, height) each."""
  (root / split).mkdir(parents=True, exist_ok=True)
  (root / 'annotations').mkdir(exist_ok=True)
  for i, pixels in enumerate(images):
    Image.fromarray(pixels).save(root / split / f'{split}{i}.png')
  listed = [
    {'id': i, 'file_name': f'{split}{i}.png', 'height': p.shape[0], 'width': p.shape[1]}
    for i, p in enumerate(images)
  ]
  annotations = [
    {
      'id': n,
      'image_id': i,
      'category_id': category,
      'bbox': [x, y, w, h],
      'area': w * h,
      'iscrowd': 0,
      'segmentation': [[x, y, x + w, y, x + w, y + h, x, y + h]],
    }
    for n, (i, category, x, y, w, h) in enumerate(entries, 1)
  ]
  categories = [{'id': k, 'name': name} for k, name in enumerate(names)]
  content = {'images': listed, 'annotations': annotations, 'categories': categories}
  (root / 'annotations' / f'instances_{split}.json').write_text(json.dumps(content))


def noise(seed, size=SIZE):
  return np.random.default_rng(seed).integers(60, 200, (*size, 3), np.uint8)


def boxes(count, seed=0):
  """Two objects of 12 pixels for each image, and a small one of the other class in the first."""
  x, y = np.random.default_rng(seed).integers(2, 20, (2, count)).tolist()
  first = [(i, 0, x[i], y[i], 12, 14) for i in range(count)]
  second = [(i, 0, x[i] + 14, y[i] + 2, 10, 12) for i in range(count)]
  return [*first, *second, (0, 1, 30, 30, 6, 6)]


@pytest.fixture(scope='module')
def files(tmp_path_factory):
  """12 training images and 4 others; read-only."""
  root = tmp_path_factory.mktemp('files')
  write_split(root, 'train', [noise(i) for i in range(12)], boxes(12))
  write_split(root, 'val', [noise(50 + i) for i in range(4)], boxes(4, 1))
  return root


@pytest.fixture(scope='module')
def data_dir(tmp_path_factory):
  return tmp_path_factory.mktemp('prepared')


def args_of(files, output, data_dir, *args, task='semantic'):
  places = f'--images={files}', f'--output={output}', f'--data_dir={data_dir}'
  return 'new', f'--task={task}', *places, *args


def make(*args, **kwargs):
  return run(*args_of(*args, **kwargs))


@pytest.mark.parametrize('task', ['semantic', 'instance'])
def test_the_config_trains(files, tmp_path, capsys, task):
  """It reads back as a run whose first batch has what it says; without preparing data again."""
  output, data_dir = tmp_path / f'{task}.py', tmp_path / 'prepared'
  assert make(files, output, data_dir, task=task) == 0
  captured = capsys.readouterr()
  assert f'segjax train --config={output} --workdir=runs/{task}' in captured.out
  assert '16 images (train 12, val 4), RGB, 40 x 48 (height x width)' in captured.out
  assert 'preparing' in captured.err

  assembled, builder = run_lib.assemble(Workdir(tmp_path), config_lib.read_file(output))
  assert 'preparing' not in capsys.readouterr().err
  config = assembled.experiment
  pixels = np.concatenate([noise(i).reshape(-1, 3) for i in range(12)])
  np.testing.assert_allclose(config.data.mean, pixels.mean(0), atol=0.01)
  np.testing.assert_allclose(config.data.std, pixels.std(0), atol=0.01)
  names = ('background', *CLASSES) if task == 'semantic' else CLASSES
  assert assembled.spec.class_names == config.data.files['classes'] == names
  with contextlib.closing(run_lib.train_batches(assembled, builder)) as batches:
    batch, _ = next(batches)
  if task == 'semantic':
    assert batch['image'].shape == (4, *SIZE, 3)
  else:
    assert batch['image'].shape == (8, 64, 64, 3)
    assert batch['instances'].boxes.shape == (8, config.batch.max_objects, 4)
    assert config.batch.max_objects == 8


def test_the_file_is_for_people(files, tmp_path, data_dir, monkeypatch):
  monkeypatch.chdir(tmp_path)
  assert make(files, 'cells.py', data_dir, task='instance') == 0
  lines = (tmp_path / 'cells.py').read_text().splitlines()
  assert lines[0] == f'"""Mask R-CNN on {files}: instance segmentation, 2 classes.'
  assert "CLASSES = ('cell', 'dot')" in lines
  assert "    'classes': len(CLASSES)," in lines
  assert '    # N. The fullest image has 3 objects.' in lines
  assert max(map(len, lines[1:])) <= 100
  assert '  segjax train --config=cells.py --workdir=runs/cells' in lines


def test_numbered_classes_want_names(tmp_path):
  write_split(tmp_path, 'train', [noise(i) for i in range(3)], boxes(3), names=('class_1', 'b'))
  assert make(tmp_path, tmp_path / 'a.py', tmp_path / 'prepared') == 0
  comment = '# Names of the class indices, in their order. The files do not say what they are: name'
  assert comment in (tmp_path / 'a.py').read_text()


def test_what_looks_wrong(tmp_path, capsys):
  """Each of these is said with the names of the images."""
  black, twin = np.zeros((*SIZE, 3), np.uint8), noise(1)
  images = [noise(0), twin, black, noise(3), noise(4, (30, 40)), twin]
  entries = [*boxes(2), (3, 0, 1, 1, 2, 2), (4, 0, 5, 5, 9, 9), (5, 0, 5, 5, 9, 9)]
  write_split(tmp_path, 'train', images, entries, names=(*CLASSES, 'rare'))
  write_split(tmp_path, 'val', [twin, noise(9)], boxes(2, 1), names=(*CLASSES, 'rare'))
  assert make(tmp_path, tmp_path / 'a.py', tmp_path / 'prepared', task='instance') == 0
  out = capsys.readouterr().out
  for sentence in (
    'train: 1 of 3 classes never occur (rare)',
    'train: 1 of 6 images: no annotation (train2.png)',
    'train: 1 of 6 images: objects below 16 pixels (train3.png)',
    'train: 1 of 6 images: nearly black (train2.png)',
    'train: 2 of 6 images: duplicate images (',
    '1 images of val are also in train (val0.png)',
    'there are few training images, 6',
    'images have 2 different sizes',
  ):
    assert f'  - {sentence}' in out


def test_images_of_few_bits(tmp_path, capsys):
  write_split(tmp_path, 'train', [noise(0)] * 3, boxes(3))
  write_split(tmp_path, 'val', [noise(1)], boxes(1, 1))
  for path in tmp_path.glob('*/*.png'):  # as of a camera of 12 bits
    Image.fromarray(np.full(SIZE, 4000, np.uint16)).save(path)
  make(tmp_path, tmp_path / 'a.py', tmp_path / 'prepared', task='instance')
  assert 'images have 16 bits and no value above 4000' in capsys.readouterr().out


def test_the_limit_of_pixels_counts_while_files_are_looked_at(files, tmp_path, data_dir, capsys):
  pixels = SIZE[0] * SIZE[1]
  output, key = tmp_path / 'a.py', '--config.data.max_pixels'
  assert make(files, output, tmp_path / 'prepared', f'{key}={pixels - 1}') == 2
  assert f'set config.data.max_pixels={pixels} to read it' in capsys.readouterr().err
  assert make(files, output, data_dir, f'{key}={pixels}') == 0
  assert config_lib.read_file(output)['data']['max_pixels'] == pixels


def test_images_elsewhere_on_request(files, tmp_path, capsys):
  """As tools that keep files once lay them out: links to a cache."""
  root, output, prepared = tmp_path / 'raw', tmp_path / 'a.py', tmp_path / 'prepared'
  shutil.copytree(files, root)
  for path in sorted(root.glob('*/*.png')):
    path.rename(tmp_path / path.name)
    path.symlink_to(tmp_path / path.name)
  assert make(root, output, prepared) == 2
  assert 'set config.data.files.outside=True' in capsys.readouterr().err
  assert make(root, output, prepared, '--config.data.files.outside=True') == 0
  assert config_lib.read_file(output)['data']['files']['outside'] is True
  assert make(root, output, prepared, '--config.data.files.outside=3', '--force') == 2
  assert 'config.data.files.outside=3 has the wrong type' in capsys.readouterr().err


def test_a_rare_class(files, tmp_path, data_dir, capsys):
  """`dot` has 36 pixels of one of 12 images, which is 0.16%; below 0.1% it is rare."""
  assert make(files, tmp_path / 'a.py', data_dir) == 0
  assert 'less than 0.1%' not in capsys.readouterr().out
  images = [noise(i) for i in range(12)]
  few = [entry if entry[1] == 0 else (0, 1, 30, 30, 4, 4) for entry in boxes(12)]
  write_split(tmp_path, 'train', images, few)
  assert make(tmp_path, tmp_path / 'b.py', tmp_path / 'prepared') == 0
  out = capsys.readouterr().out
  assert 'train' in out and '1 class has less than 0.1% of the pixels (dot 0.0' in out
  text = (tmp_path / 'b.py').read_text()
  assert '# Of very few pixels: dot.' in text and 'median_frequency' in text


def test_keys_are_set(files, tmp_path, data_dir):
  """Those that say how files are read before they are, the others in what is written."""
  output = tmp_path / 'a.py'
  keys = ['batch.size=2', 'train.steps=7', 'optim.warmup_steps=0', 'model.width=4']
  keys += ['data.files.classes=("background","dot","cell")', 'data.eval_split=train']
  assert make(files, output, data_dir, *(f'--config.{key}' for key in keys)) == 0
  config = config_lib.read_file(output)
  assert (config['batch']['size'], config['train']['steps'], config['model']['width']) == (2, 7, 4)
  assert config['data']['files']['classes'] == ('background', 'dot', 'cell')
  assert config['data']['eval_split'] == 'train'
  assert output.read_text().count("'dot'") == 1  # a constant, and no second list
  assert 'There are no more' not in output.read_text()  # the reason of another batch size


def test_nothing_is_overwritten(files, tmp_path, data_dir, capsys):
  output = tmp_path / 'a.py'
  output.write_text('mine')
  args = [
    'new',
    '--task=semantic',
    f'--images={files}',
    f'--output={output}',
    '--data_dir',
    data_dir,
  ]
  assert f'{output} exists: name another --output' in fails(capsys, *args)
  assert output.read_text() == 'mine'
  assert run(*args, '--force') == 0
  assert output.read_text() != 'mine'


def test_nothing_is_written_where_a_key_is_wrong(files, tmp_path, data_dir, capsys):
  output = tmp_path / 'a.py'
  capsys.readouterr()
  assert make(files, output, data_dir, '--config.batch.siz=3') == 2
  assert 'config.batch.siz is not a key: did you mean size?' in capsys.readouterr().err
  assert list(tmp_path.iterdir()) == []


def only_boxes_of(names, count=3):
  return lambda root: write_split(root, 'train', [noise(i) for i in range(count)], names)


@pytest.mark.parametrize(
  ('task', 'break_it', 'message'),
  [
    ('instance', only_boxes_of([]), 'no training image has an object'),
    ('semantic', only_boxes_of([]), 'every labeled pixel of the training images is background'),
  ],
)
def test_data_without_anything_to_learn(tmp_path, capsys, task, break_it, message):
  break_it(tmp_path)
  output = tmp_path / 'a.py'
  assert make(tmp_path, output, tmp_path / 'prepared', task=task) == 2
  assert message in capsys.readouterr().err
  assert not output.exists()


@pytest.mark.parametrize(
  ('args', 'message'),
  [
    (['--output=a.txt'], '--output=a.txt must be a Python file'),
    (['--output=no/such/a.py'], '--output=no/such/a.py: name a file in a directory that exists'),
    (['--images=no/such'], '--images=no/such does not exist'),
  ],
)
def test_mistakes_are_one_sentence(tmp_path, monkeypatch, capsys, args, message):
  monkeypatch.chdir(tmp_path)
  assert message in fails(capsys, 'new', '--task=semantic', '--images=.', *args)
  assert list(tmp_path.iterdir()) == []


def test_one_image_is_trained_and_evaluated_on(tmp_path, capsys):
  write_split(tmp_path, 'train', [noise(0)], boxes(1))
  output, prepared = tmp_path / 'a.py', tmp_path / 'prepared'
  assert make(tmp_path, output, prepared) == 2
  assert "with config.data.files.splits={'train': 1.0}" in capsys.readouterr().err
  assert not output.exists()
  assert make(tmp_path, output, prepared, "--config.data.files.splits={'train': 1.0}") == 0
  assert 'the evaluation is on the training images' in capsys.readouterr().out
  config = config_lib.read_file(output)
  assert config['data']['eval_split'] == config['data']['train_split'] == 'train'
  assert config['batch']['size'] == jax.local_device_count()  # each device takes one


@pytest.mark.parametrize(
  ('splits', 'train', 'val'),
  [
    ({'train': 8, 'val': 2}, 'train', 'val'),
    ({'test': 1, 'train': 8, 'valid': 2}, 'train', 'valid'),
    ({'train2017': 8, 'test': 3}, 'train2017', 'test'),
    ({'train': 20}, 'train[:-4]', 'train[-4:]'),
    ({'train': 2}, 'train[:-1]', 'train[-1:]'),
    ({'train': 1}, 'train', 'train'),
    ({'fold1': 4, 'fold2': 4}, 'fold1[:-1]', 'fold1[-1:]'),
  ],
)
def test_splits(splits, train, val):
  assert new.choose_splits(splits, new.DataConfig('x')) == (train, val)


def test_the_memory_of_this_machine():
  machine = new.this_machine()
  assert machine.accelerator == (jax.local_devices()[0].platform != 'cpu')
  assert 2**28 < machine.memory < 2**50


def test_a_machine_with_an_accelerator_gets_a_larger_network(files, tmp_path, data_dir):
  found = guess.guess('semantic', files, None)
  look = new.look_at(found, 'semantic', str(data_dir))
  texts = [
    new.write_config(look, tmp_path / 'a.py', machine=Machine(accelerator, 2**34))
    for accelerator in (False, True)
  ]
  assert "'width': 16," in texts[0] and "'width': 32," in texts[1]


def test_published_weights(files, tmp_path, data_dir, capsys):
  output = tmp_path / 'a.py'
  weights = '--weights=torchvision/fcn_resnet50'
  assert make(files, output, data_dir, weights, '--gpu_memory=24') == 0
  assert 'FCN on a ResNet, ' in capsys.readouterr().out
  config = config_lib.read_file(output)
  assert config['init_from'] == {'source': 'torchvision/fcn_resnet50', 'reset': 'heads'}
  assert config['data']['mean'] == (123.675, 116.28, 103.53)
  assert config['model'] == {
    'name': 'fcn.FCNResNet',
    'classes': 3,
    'variant': 'resnet50',
    'norm': 'frozen',
  }
  assert config['train']['steps'] == 1_000  # of a GPU
  message = fails(capsys, *args_of(files, output, data_dir, weights, '--force', task='instance'))
  assert f'{weights} has no network for the task instance' in message
  for wrong, said in {
    'nvidia/mit-b0': 'nvidia/mit-b0 is unknown: did you mean transformers/mit_b0?',
    str(output): f'{output} is on this disk: name its network as segjax new --help lists it, ',
  }.items():
    with pytest.raises(SystemExit):
      make(files, output, data_dir, f'--weights={wrong}', '--force')
    assert said in capsys.readouterr().err
  message = fails(capsys, *args_of(files, output, data_dir, '--gpu_memory=0', '--force'))
  assert '--gpu_memory=0 must be the GiB of a GPU' in message
  for other, said in {
    'name=fcn.FCN': 'is for fcn.FCNResNet, not for config.model.name=fcn.FCN',
    'variant=resnet18': 'is for config.model.variant=resnet50, not resnet18',
  }.items():
    other = f'--config.model.{other}'
    assert run(*args_of(files, output, data_dir, weights, other, '--force')) == 2
    assert said in capsys.readouterr().err


def test_gray_images_are_read_as_rgb_for_published_weights(tmp_path):
  found = guess.Guess('folder', tmp_path, {'channels': 1}, [], [])
  assert new.with_weights(found).files == {'channels': 3}


def test_another_network(files, tmp_path, data_dir, capsys):
  output = tmp_path / 'a.py'
  assert make(files, output, data_dir, '--config.model.name=fcn.FCN') == 0
  assert 'fcn.FCN, ' in capsys.readouterr().out
  assert config_lib.read_file(output)['model'] == {'name': 'fcn.FCN', 'classes': 3}
  whole = "--config.model={'name': 'segnet.SegNetBasic', 'classes': 3}"
  assert make(files, output, data_dir, whole, '--force') == 0
  assert 'segnet.SegNetBasic on' in output.read_text()
