"""`segjax predict`: the files of each task, and their names."""

import contextlib
import io
import json
from pathlib import Path

import cv2
import numpy as np
import pytest
from commands import fails, run
from PIL import Image
from pycocotools import mask as mask_lib
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from segjax.cli import predict
from segjax.data.formats import coco, panoptic
from segjax.types import SegjaxError

CLASSES = {'ball', 'box', 'tree', 'ring', 'star'}


def write_images(folder, sizes):
  """Noise, u8[H, W, 3] or u8[H, W], by file name."""
  folder.mkdir(exist_ok=True)
  rng = np.random.default_rng(0)
  for name, size in sizes.items():
    cv2.imwrite(str(folder / name), rng.integers(0, 256, size, np.uint8))
  return folder


def predict_command(workdir, images, output, *args):
  return ['predict', f'--workdir={workdir}', f'--images={images}', f'--output={output}', *args]


def test_label_maps_of_any_size_and_format(semantic_run, tmp_path):
  sizes = {'a.png': (40, 70, 3), 'b.jpg': (32, 32, 3), 'c.tif': (9, 33, 3), 'gray.png': (20, 30)}
  images, output = write_images(tmp_path / 'images', sizes), tmp_path / 'out'
  (images / 'notes.txt').write_text('not an image')
  assert run(*predict_command(semantic_run, images, output)) == 0
  names = {f'{Path(name).stem}{end}.png' for name in sizes for end in ('', '_overlay')}
  assert {p.name for p in output.iterdir()} == names
  label = np.asarray(Image.open(output / 'a.png'))
  assert label.shape == (40, 70)
  assert label.dtype == np.uint8 and label.max() < 9
  assert np.asarray(Image.open(output / 'a_overlay.png')).shape == (40, 70, 3)


def test_uncertainty_of_a_network_that_samples(tmp_path, root, capsys):
  """Bayesian SegNet: the shipped config, shrunk."""
  keys = {
    'model.width': 2,
    'model.classes': 9,
    'train.steps': 2,
    'train.images': 1,
    'data.name': 'scenes/tiny',
    'data.size.image_size': '(32,32)',
    'batch.size': 4,
    'eval.samples': 2,
  }
  workdir = tmp_path / 'run'
  path = root / 'configs/segnet/bayesian_camvid.py'
  args = [f'--config.{key}={value}' for key, value in keys.items()]
  assert run('train', f'--config={path}', f'--workdir={workdir}', *args) == 0
  assert 'uncertainty' in (workdir / 'report.html').read_text()
  images = write_images(tmp_path / 'images', {'a.png': (20, 30, 3)})
  capsys.readouterr()
  assert run(*predict_command(workdir, images, tmp_path / 'out')) == 0
  assert 'uncertainty up to 0.' in capsys.readouterr().err
  assert cv2.imread(str(tmp_path / 'out/a_uncertainty.png')).shape == (20, 30, 3)


def test_objects_in_the_format_of_coco(instance_run, tmp_path):
  sizes = {'000000000007': (50, 70), '000000000030': (90, 40)}
  images = write_images(tmp_path / 'images', {f'{n}.jpg': (*s, 3) for n, s in sizes.items()})
  output = tmp_path / 'out'
  assert run(*predict_command(instance_run, images, output)) == 0
  with contextlib.redirect_stdout(io.StringIO()):
    truth = COCO(str(output / 'images.json'))
    found = truth.loadRes(str(output / 'results.json'))
    evaluation = COCOeval(truth, found, 'segm')
    evaluation.evaluate()
  assert sorted(truth.imgs) == [7, 30]
  assert len(found.anns) > 0
  for annotation in found.anns.values():
    image = truth.imgs[annotation['image_id']]
    mask = coco.decode_mask(annotation['segmentation']['counts'], (image['height'], image['width']))
    assert mask.sum() == mask_lib.area(annotation['segmentation'])
  for name, size in sizes.items():
    entry = json.loads((output / f'{name}.json').read_text())
    assert (entry['file_name'], entry['height'], entry['width']) == (f'{name}.jpg', *size)
    ours = [a for a in found.anns.values() if a['image_id'] == entry['id']]
    assert len(entry['objects']) == len(ours)
    assert {o['class'] for o in entry['objects']} <= CLASSES
    check_overlay(output / f'{name}_overlay.png', size)


def test_segments_in_the_panoptic_format(panoptic_run, tmp_path):
  sizes = {'000000000007': (50, 62), '000000000030': (64, 40)}
  images = write_images(tmp_path / 'images', {f'{n}.jpg': (*s, 3) for n, s in sizes.items()})
  output = tmp_path / 'out'
  assert run(*predict_command(panoptic_run, images, output)) == 0
  results = json.loads((output / 'results.json').read_text())['annotations']
  listed = json.loads((output / 'images.json').read_text())
  assert [image['id'] for image in listed['images']] == [7, 30]
  assert [category['isthing'] for category in listed['categories']] == [0] * 4 + [1] * 5
  known = {category['id'] for category in listed['categories']}
  for (name, size), entry in zip(sizes.items(), results, strict=True):
    assert entry['image_id'] == int(name)
    rgb = np.asarray(Image.open(output / 'results' / entry['file_name']))
    segments = entry['segments_info']
    assert segments
    # Raises where a pixel's id is not in the list, or one of the list has no pixel.
    panoptic.segment_map(panoptic.rgb_to_ids(rgb), [s['id'] for s in segments], name, size)
    assert {s['category_id'] for s in segments} <= known
    check_overlay(output / f'{name}_overlay.png', size)


def check_overlay(path, size):
  overlay = np.asarray(Image.open(path))
  assert overlay.shape[0] * size[1] == overlay.shape[1] * size[0], 'enlarged by an integer factor'


def test_never_overwrites_or_mixes_up(semantic_run, tmp_path, capsys):
  write_images(tmp_path, {'a.png': (8, 8, 3), 'a.jpg': (8, 8, 3)})
  sub = write_images(tmp_path / 'sub', {'a.png': (8, 8, 3)})
  before = (sub / 'a.png').read_bytes()
  assert 'conflicts with' in fails(capsys, *predict_command(semantic_run, sub, sub))
  assert (sub / 'a.png').read_bytes() == before
  for pattern in ('a.*', '**/a.png'):
    args = predict_command(semantic_run, tmp_path / pattern, tmp_path / 'out')
    assert 'conflicts with' in fails(capsys, *args)


def test_no_images_or_one_that_cannot_be_decoded(semantic_run, tmp_path, capsys):
  args = predict_command(semantic_run, tmp_path, tmp_path / 'out')
  assert 'no images match' in fails(capsys, *args)
  assert not (tmp_path / 'out').exists()
  (tmp_path / 'broken.png').write_bytes(b'not a png')
  assert 'broken.png' in fails(capsys, *args)


@pytest.mark.parametrize(
  ('names', 'numbers'),
  [
    (['000000000139.jpg', '000000000285.jpg'], [139, 285]),
    (['a.png', '7.png'], [1, 2]),
    (['7.png', '07.png'], [1, 2]),
    (['²3.png'], [1]),
  ],
)
def test_images_are_numbered_as_coco_does(names, numbers):
  paths = [Path(name) for name in names]
  assert list(predict.image_numbers(paths).values()) == numbers


@pytest.mark.parametrize(
  ('names', 'ids'),
  [
    (['000000000139.jpg', '000000000285.jpg'], [139, 285]),
    (['ulm_000000_000019_leftImg8bit.png', 'b.png'], ['ulm_000000_000019', 'b']),
    (['7.png', '07.png'], ['7', '07']),
    (['a.png', 'a_leftImg8bit.png'], ['a', 'a_leftImg8bit']),
  ],
)
def test_images_of_segments_have_the_ids_of_the_public_evaluations(names, ids):
  assert list(predict.panoptic_image_ids([Path(name) for name in names]).values()) == ids


def test_outputs_of_each_image():
  targets = predict.name_outputs([Path('in/a.jpg')], Path('out'), ('.json', '_overlay.png'))
  assert targets == {Path('in/a.jpg'): [Path('out/a.json'), Path('out/a_overlay.png')]}


@pytest.mark.parametrize(
  ('paths', 'message'),
  [
    (['in/a.jpg', 'in/a.png'], 'conflicts with in/a.jpg'),
    (['in/a_overlay.jpg', 'in/a.jpg', 'out/a_overlay.png'], 'conflicts with'),
    (['in/results.jpg'], 'results.json'),
  ],
)
def test_no_file_is_written_twice(paths, message):
  with pytest.raises(SegjaxError, match=message):
    predict.name_outputs(
      [Path(p) for p in paths], Path('out'), ('.json', '_overlay.png'), ('results.json',)
    )
