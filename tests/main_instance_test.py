"""The commands on an instance task: the shipped config of the scenes, shrunk."""

import contextlib
import io
import json
import shutil

import cv2
import numpy as np
import pytest
from PIL import Image
from processes import run_as_two
from pycocotools import mask as mask_lib
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from segjax import main as program
from segjax.data.formats import coco

SMALL = [
  '--config.data.name=scenes/tiny',
  '--config.data.shapes=((64,64),)',
  '--config.data.batch_size=4',
  '--config.data.eval_split=val[:6]',
  '--config.model.width=4',
  '--config.model.features=8',
  '--config.model.hidden=16',
  '--config.model.mask_convs=1',
  '--config.model.score_threshold=0.0',
  '--config.model.train_proposals=(40,20)',
  '--config.model.test_proposals=(40,20)',
  '--config.model.detections=5',
  '--config.eval.draw_threshold=0.0',
  '--config.train.log_every=1',
  '--config.train.eval_every=2',
  '--config.train.checkpoint_every=1',
  '--config.train.pictures=2',
]


@pytest.fixture(scope='module', autouse=True)
def folders(tmp_path_factory):
  cache = tmp_path_factory.mktemp('cache')
  with pytest.MonkeyPatch.context() as patch:
    patch.setenv('XDG_CACHE_HOME', str(cache))
    patch.delenv('SEGJAX_DATA_DIR', raising=False)
    yield cache


def run(*args):
  return program.main([str(a) for a in args])


@pytest.fixture(scope='module')
def trained(tmp_path_factory, root):
  workdir = tmp_path_factory.mktemp('runs') / 'trained'
  config = f'--config={root / "configs/mask_rcnn/scenes_tiny.py"}'
  assert run('train', config, f'--workdir={workdir}', *SMALL, '--config.train.steps=2') == 0
  return workdir


def test_every_part_of_the_loss_is_told(trained):
  records = [json.loads(line) for line in (trained / 'metrics.jsonl').read_text().splitlines()]
  parts = ('rpn_class', 'rpn_box', 'box_class', 'box_regression', 'mask')
  steps = [r for r in records if r['split'] == 'train']
  assert [r['step'] for r in steps] == [1, 2]
  for record in steps:
    assert record['loss'] == pytest.approx(sum(record[f'loss_{part}'] for part in parts), rel=1e-5)
  [evaluated] = [r for r in records if r['split'].startswith('val')]
  assert 'mask_ap50' in evaluated
  assert 'loss' not in evaluated
  report = (trained / 'report.html').read_text()
  assert 'mask_ap' in report
  assert 'scene_val_' in report


def test_goes_on_with_the_same_batches_and_draws(trained, tmp_path, root, capsys):
  """From the checkpoint of the first step to the parameters that the run itself came to."""
  config = f'--config={root / "configs/mask_rcnn/scenes_tiny.py"}'
  again = tmp_path / 'again'
  shutil.copytree(trained, again)
  shutil.rmtree(again / 'checkpoints' / '2')
  args = ['train', config, f'--workdir={again}', *SMALL, '--config.train.steps=2']
  assert run(*args) == 0
  assert 'going on at step 1 of 2' in capsys.readouterr().err
  digests = []
  for workdir in (trained, again):
    assert run('info', f'--workdir={workdir}', '--json') == 0
    digests.append(json.loads(capsys.readouterr().out)['parameters_sha256'])
  assert digests[0] == digests[1]


def test_evaluate_json(trained, capsys):
  assert run('evaluate', f'--workdir={trained}', '--json') == 0
  metrics = json.loads(capsys.readouterr().out)
  assert 0 <= metrics['mask_ap'] <= 1
  assert set(metrics['per_class']) == {'ball', 'box', 'tree', 'ring', 'star'}


def test_predictions_are_in_the_format_of_coco(trained, tmp_path):
  images, output = tmp_path / 'images', tmp_path / 'out'
  images.mkdir()
  rng = np.random.default_rng(0)
  sizes = {'000000000007': (50, 70), '000000000030': (90, 40)}
  for name, size in sizes.items():
    cv2.imwrite(str(images / f'{name}.jpg'), rng.integers(0, 256, (*size, 3), np.uint8))
  assert run('predict', f'--workdir={trained}', f'--images={images}', f'--output={output}') == 0
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
    assert {o['class'] for o in entry['objects']} <= {'ball', 'box', 'tree', 'ring', 'star'}
    overlay = np.asarray(Image.open(output / f'{name}_overlay.png'))
    assert overlay.shape[0] * size[1] == overlay.shape[1] * size[0], 'enlarged by a whole factor'


@pytest.mark.slow
def test_several_views(trained, capsys):
  views = ['--config.eval.test_time_augmentation=flip', '--config.eval.scales=(1.0,1.5)']
  assert run('evaluate', f'--workdir={trained}', '--json', *views) == 0
  assert 'mask_ap' in json.loads(capsys.readouterr().out)


@pytest.mark.parametrize(
  ('override', 'told'),
  [
    ('model.classes=9', 'config.model.classes=9 but the data set scenes/tiny has 5 classes'),
    ('losses.mask.beta=1', 'config.losses.mask.beta is not a key'),
    ('losses.dice.scale=1', 'config.losses: segjax.losses.detection has no dice'),
    ('data.crop_size=(32,32)', 'config.data.crop_size is for dense tasks'),
    ('task=semantic', "config.data.instances=16 does not fit config.task='semantic'"),
    ('mesh.space=2', 'config.mesh.space=2: the task instance does not split an image'),
    ('eval.metrics=("confusion",)', 'config.eval.metrics: there is no confusion'),
    ('data.objects_key=things', 'config.data.objects_key=things: scenes/tiny has no such feature'),
    (
      'train.recompute_batch_norm=true',
      'config.train.recompute_batch_norm: the task instance does not offer',
    ),
  ],
)
def test_a_wrong_config_is_one_sentence(tmp_path, root, capsys, override, told):
  config = f'--config={root / "configs/mask_rcnn/scenes_tiny.py"}'
  args = ['train', config, f'--workdir={tmp_path / "run"}', *SMALL, '--config.train.steps=2']
  assert run(*args, f'--config.{override}') == 2
  assert told in capsys.readouterr().err


@pytest.mark.slow
def test_two_processes_train_and_evaluate_as_one(trained, tmp_path, root, folders):
  """Annotations of the one's images reach the other's metrics."""
  config = f'--config={root / "configs/mask_rcnn/scenes_tiny.py"}'
  args = ['train', config, *SMALL, '--config.train.steps=2', f'--workdir={tmp_path / "two"}']
  run_as_two(args, folders)
  one, two = (
    [json.loads(line) for line in (workdir / 'metrics.jsonl').read_text().splitlines()]
    for workdir in (trained, tmp_path / 'two')
  )
  assert [r['split'] for r in one] == [r['split'] for r in two]
  for a, b in zip(one, two, strict=True):
    for key in ('loss', 'mask_ap', 'box_ap50', 'box_ar100'):
      if (value := a.get(key)) is not None:
        assert b[key] == pytest.approx(value, rel=1e-3, abs=1e-3), key
