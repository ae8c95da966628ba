"""The commands on a panoptic task: the shipped config of the scenes, shrunk."""

import json

import cv2
import numpy as np
import pytest
from PIL import Image
from processes import run_as_two

from segjax import main as program
from segjax.data import panoptic

SMALL = [
  '--config.data.name=scenes/tiny',
  '--config.data.shapes=((64,64),)',
  '--config.data.batch_size=4',
  '--config.data.eval_split=val[:6]',
  '--config.data.eval_batch_size=4',
  '--config.model.width=4',
  '--config.model.features=8',
  '--config.model.semantic_features=8',
  '--config.model.hidden=16',
  '--config.model.mask_convs=1',
  '--config.model.score_threshold=0.0',
  '--config.model.train_proposals=(40,20)',
  '--config.model.test_proposals=(40,20)',
  '--config.model.detections=5',
  '--config.eval.score_threshold=0.1',
  '--config.eval.metrics=("pq",)',
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
def config(root):
  return f'--config={root / "configs/panoptic_fpn/scenes_tiny.py"}'


@pytest.fixture(scope='module')
def trained(tmp_path_factory, config):
  workdir = tmp_path_factory.mktemp('runs') / 'trained'
  assert run('train', config, f'--workdir={workdir}', *SMALL, '--config.train.steps=2') == 0
  return workdir


def test_every_part_of_the_loss_is_told_and_pq_is_measured(trained):
  records = [json.loads(line) for line in (trained / 'metrics.jsonl').read_text().splitlines()]
  parts = ('rpn_class', 'rpn_box', 'box_class', 'box_regression', 'mask', 'semantic')
  steps = [r for r in records if r['split'] == 'train']
  assert [r['step'] for r in steps] == [1, 2]
  for record in steps:
    assert record['loss'] == pytest.approx(sum(record[f'loss_{part}'] for part in parts), rel=1e-5)
  [evaluated] = [r for r in records if r['split'].startswith('val')]
  assert {'pq', 'pq_things', 'pq_stuff', 'sq', 'rq'} <= set(evaluated)
  assert 'scene_val_' in (trained / 'report.html').read_text()


def test_evaluate_and_tune_agree(trained, capsys):
  """What the search calls best gives that PQ when it is set."""
  assert run('evaluate', f'--workdir={trained}', '--json') == 0
  plain = json.loads(capsys.readouterr().out)
  assert 'water' in plain['per_class']
  assert run('evaluate', f'--workdir={trained}', '--json', '--tune') == 0
  found = json.loads(capsys.readouterr().out)
  assert found['own']['pq'] == pytest.approx(plain['pq'], abs=1e-12)
  assert found['best']['pq'] >= found['own']['pq']
  assert found['tried'][0] == found['own']
  chosen = [f'--config.eval.{k}={v}' for k, v in found['best'].items() if k != found['measure']]
  assert run('evaluate', f'--workdir={trained}', '--json', *chosen) == 0
  assert json.loads(capsys.readouterr().out)['pq'] == pytest.approx(found['best']['pq'], abs=1e-12)


def test_predictions_are_in_the_panoptic_format(trained, tmp_path):
  images, output = tmp_path / 'images', tmp_path / 'out'
  images.mkdir()
  rng = np.random.default_rng(0)
  sizes = {'000000000007': (50, 62), '000000000030': (64, 40)}
  for name, size in sizes.items():
    cv2.imwrite(str(images / f'{name}.jpg'), rng.integers(0, 256, (*size, 3), np.uint8))
  assert run('predict', f'--workdir={trained}', f'--images={images}', f'--output={output}') == 0
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
    overlay = np.asarray(Image.open(output / f'{name}_overlay.png'))
    assert overlay.shape[0] * size[1] == overlay.shape[1] * size[0], 'enlarged by a whole factor'


@pytest.mark.parametrize(
  ('override', 'told'),
  [
    (
      'model.classes=9',
      'config.model.classes=9 but the data set scenes/tiny has 5 classes of thin',
    ),
    ('model.stuff=5', 'config.model.stuff=5 but the data set scenes/tiny has 4 classes of stuff'),
    ('data.segments=none', "config.data.segments=None does not fit config.task='panoptic': set"),
    ('model.masks=false', 'config.model.masks: a panoptic network needs masks'),
    ('losses.dice.scale=1', 'config.losses: segjax.losses.panoptic has no dice'),
    ('data.panoptic_key=ids', 'config.data.panoptic_key=ids: scenes/tiny has no such feature'),
    ('eval.things=(1,)', 'config.eval.things is not a key'),
  ],
)
def test_a_wrong_config_is_one_sentence(tmp_path, config, capsys, override, told):
  args = ['train', config, f'--workdir={tmp_path / "run"}', *SMALL, '--config.train.steps=2']
  assert run(*args, f'--config.{override}') == 2
  assert told in capsys.readouterr().err


def test_only_panoptic_tasks_have_thresholds(tmp_path, root, capsys):
  """Segments and thresholds asked of other tasks."""
  other = f'--config={root / "configs/mask_rcnn/scenes_tiny.py"}'
  workdir = f'--workdir={tmp_path / "run"}'
  assert run('train', other, workdir, '--config.data.segments=9') == 2
  assert "config.data.segments=9 does not fit config.task='instance'" in capsys.readouterr().err


@pytest.mark.slow
def test_two_processes_train_and_evaluate_as_one(trained, tmp_path, config, folders):
  """Pictures and counts of the one's images reach the other."""
  args = ['train', config, *SMALL, '--config.train.steps=2', f'--workdir={tmp_path / "two"}']
  run_as_two(args, folders)
  one, two = (
    [json.loads(line) for line in (workdir / 'metrics.jsonl').read_text().splitlines()]
    for workdir in (trained, tmp_path / 'two')
  )
  assert [r['split'] for r in one] == [r['split'] for r in two]
  for a, b in zip(one, two, strict=True):
    for key in ('loss', 'loss_semantic', 'pq', 'pq_stuff'):
      if (value := a.get(key)) is not None:
        assert b[key] == pytest.approx(value, rel=1e-3, abs=1e-3), key
