"""The commands on a panoptic task: the shipped config of the scenes, shrunk."""

import json

import cv2
import numpy as np
import pytest
from PIL import Image
from processes import run_as_two

from segjax import main as program
from segjax.data.formats import panoptic

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
  """Long enough to find the sky, so that there is something to count."""
  workdir = tmp_path_factory.mktemp('runs') / 'trained'
  longer = ('steps', 'eval_every', 'checkpoint_every')
  optim = ['--config.optim.learning_rate=0.01', '--config.optim.warmup_steps=0']
  args = [*SMALL, *(f'--config.train.{key}=40' for key in longer), *optim]
  assert run('train', config, f'--workdir={workdir}', *args) == 0
  return workdir


def read_log(workdir):
  return [json.loads(line) for line in (workdir / 'metrics.jsonl').read_text().splitlines()]


def counts(metrics):
  return {
    name: [values[key] for key in ('tp', 'fp', 'fn')]
    for name, values in metrics['per_class'].items()
  }


def test_every_part_of_the_loss_is_told_and_pq_is_measured(trained):
  records = read_log(trained)
  parts = ('rpn_class', 'rpn_box', 'box_class', 'box_regression', 'mask', 'semantic')
  steps = [r for r in records if r['split'] == 'train']
  assert [r['step'] for r in steps] == list(range(1, 41))
  for record in steps:
    assert record['loss'] == pytest.approx(sum(record[f'loss_{part}'] for part in parts), rel=1e-5)
  [evaluated] = [r for r in records if r['split'].startswith('val')]
  assert {'pq', 'pq_things', 'pq_stuff', 'sq', 'rq'} <= set(evaluated)
  tp, _, fn = np.sum(list(counts(evaluated).values()), axis=0)
  assert tp > 0 and fn > 0
  assert 'scene_val_' in (trained / 'report.html').read_text()


@pytest.mark.slow
def test_evaluate_and_tune_agree(trained, capsys):
  """What the search says of a setting is what its evaluation gives."""
  assert run('evaluate', f'--workdir={trained}', '--json') == 0
  plain = json.loads(capsys.readouterr().out)
  assert 'water' in plain['per_class'] and plain['pq'] > 0
  assert run('evaluate', f'--workdir={trained}', '--json', '--tune') == 0
  found = json.loads(capsys.readouterr().out)
  assert found['own']['pq'] == pytest.approx(plain['pq'], abs=1e-12)
  assert found['tried'][0] == found['own']
  worst = min(found['tried'], key=lambda entry: entry['pq'])
  assert found['best']['pq'] > worst['pq']
  for entry in (found['best'], worst):
    chosen = [f'--config.eval.{k}={v}' for k, v in entry.items() if k != found['measure']]
    assert run('evaluate', f'--workdir={trained}', '--json', *chosen) == 0
    assert json.loads(capsys.readouterr().out)['pq'] == pytest.approx(entry['pq'], abs=1e-12)


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


def test_only_panoptic_tasks_have_segments(tmp_path, root, capsys):
  other = f'--config={root / "configs/mask_rcnn/scenes_tiny.py"}'
  workdir = f'--workdir={tmp_path / "run"}'
  assert run('train', other, workdir, '--config.data.segments=9') == 2
  assert "config.data.segments=9 does not fit config.task='instance'" in capsys.readouterr().err


@pytest.mark.slow
def test_two_processes_train_and_evaluate_as_one(trained, tmp_path, config, folders):
  """Pictures and counts of the one's images reach the other."""
  start = f'--config.init_from.path={trained}'
  # Small steps, so that rounding moves no segment across a threshold.
  args = ['train', config, *SMALL, '--config.train.steps=2', '--config.optim.learning_rate=1e-6']
  assert run(*args, start, f'--workdir={tmp_path / "one"}') == 0
  run_as_two([*args, start, f'--workdir={tmp_path / "two"}'], folders)
  one, two = (read_log(tmp_path / name) for name in ('one', 'two'))
  assert [r['split'] for r in one] == [r['split'] for r in two]
  for a, b in zip(one, two, strict=True):
    for key in ('loss', 'loss_semantic'):
      if (value := a.get(key)) is not None:
        assert b[key] == pytest.approx(value, rel=1e-3, abs=1e-3), key
  [a], [b] = ([r for r in records if 'per_class' in r] for records in (one, two))
  assert counts(a) == counts(b)
  assert b['pq'] == pytest.approx(a['pq'], rel=1e-3) and a['pq'] > 0
