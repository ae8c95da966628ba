"""`segjax train`: correct and incorrect use."""

import concurrent.futures
import itertools
import json
import re
import shutil
import threading

import cv2
import numpy as np
import pytest
from commands import CONFIGS, SMALL, arrays, fails, info, read_log, run, train, train_args
from own_folders import write_folder

from segjax import config, experiment, lookup
from segjax import run as run_lib
from segjax.cli import train as train_cli
from segjax.data import datasets
from segjax.data.builders.scenes import builder as scenes
from segjax.losses import dense
from segjax.metrics import rand
from segjax.training import checkpoint
from segjax.types import SegjaxError
from segjax.workdir import Workdir

LOSSES = {
  'instance_run': ('rpn_class', 'rpn_box', 'box_class', 'box_regression', 'mask'),
  'panoptic_run': ('rpn_class', 'rpn_box', 'box_class', 'box_regression', 'mask', 'semantic'),
}


def test_everything_is_in_the_workdir(semantic_run):
  assert {p.name for p in semantic_run.iterdir()} >= {
    'config.json',
    'dataset.json',
    'metrics.jsonl',
    'report.html',
    'checkpoints',
    'tensorboard',
  }
  records = read_log(semantic_run)
  assert [r['step'] for r in records if r['split'] == 'train'] == [1, 2, 3, 4]
  assert [r['step'] for r in records if r['split'] == 'val'] == [2, 4]
  report = (semantic_run / 'report.html').read_text()
  assert 'mean_iou' in report
  assert 'scene_val_' in report
  frozen = json.loads((semantic_run / 'config.json').read_text())
  assert frozen['optim']['momentum'] == 0.9, 'defaults are frozen too'


@pytest.mark.parametrize('name', LOSSES)
def test_every_part_of_the_loss_is_logged(name, request):
  workdir = request.getfixturevalue(name)
  steps = [r for r in read_log(workdir) if r['split'] == 'train']
  assert [r['step'] for r in steps] == list(range(1, len(steps) + 1))
  for record in steps:
    total = sum(record[f'loss_{part}'] for part in LOSSES[name])
    assert record['loss'] == pytest.approx(total, rel=1e-5)
  assert 'scene_val_' in (workdir / 'report.html').read_text()


def test_objects_are_evaluated(instance_run):
  [evaluated] = [r for r in read_log(instance_run) if r['split'].startswith('val')]
  assert 'mask_ap50' in evaluated
  assert 'loss' not in evaluated
  assert 'mask_ap' in (instance_run / 'report.html').read_text()


def test_segments_are_evaluated(panoptic_run):
  [evaluated] = [r for r in read_log(panoptic_run) if r['split'].startswith('val')]
  assert {'pq', 'pq_things', 'pq_stuff', 'sq', 'rq'} <= set(evaluated)
  counts = [[values[key] for key in ('tp', 'fn')] for values in evaluated['per_class'].values()]
  assert (np.sum(counts, axis=0) > 0).all()


# --- resuming -------------------------------------------------------------------------------------


def test_a_finished_run_stays_and_training_is_deterministic(semantic_run, tmp_path, capsys):
  workdir = tmp_path / 'run'
  assert train(workdir, '--config.train.nonfinite=skip', steps=4) == 0
  first = info(workdir, capsys)
  assert train(workdir, '--config.train.nonfinite=skip', steps=4) == 0
  assert info(workdir, capsys) == first
  # Without --config, that of the workdir is used.
  assert run('train', f'--workdir={workdir}') == 0
  assert first['parameters_sha256'] == info(semantic_run, capsys)['parameters_sha256']


def test_a_corrupt_newest_checkpoint_is_reported(semantic_run, tmp_path, capsys):
  workdir = tmp_path / 'run'
  shutil.copytree(semantic_run, workdir)
  (workdir / 'checkpoints/4/meta/metadata').write_text('{')
  capsys.readouterr()
  assert train(workdir, steps=4) == 0
  err = capsys.readouterr().err
  assert 'corrupt' in err
  assert 'resuming from step 2 of 4' in err
  finals = [info(w, capsys)['parameters_sha256'] for w in (workdir, semantic_run)]
  assert finals[0] == finals[1]


@pytest.mark.parametrize(('name', 'task', 'steps'), [('instance_run', 'instance', 2)])
def test_a_resumed_run_sees_the_same_batches(name, task, steps, request, tmp_path, capsys):
  """Resuming from the first checkpoint leads to the same parameters."""
  trained, again = request.getfixturevalue(name), tmp_path / 'again'
  shutil.copytree(trained, again)
  shutil.rmtree(again / 'checkpoints' / '2')
  capsys.readouterr()
  assert train(again, task=task, steps=steps) == 0
  assert 'resuming from step 1 of 2' in capsys.readouterr().err
  finals = [info(w, capsys)['parameters_sha256'] for w in (trained, again)]
  assert finals[0] == finals[1]


def test_a_semantic_run_of_an_earlier_version_resumes(semantic_run, tmp_path, capsys):
  old = tmp_path / 'old'
  shutil.copytree(semantic_run, old)
  shutil.rmtree(old / 'checkpoints' / '4')
  rewrite_config(old, old_semantic_config)
  assert run('train', f'--workdir={old}') == 0
  err = capsys.readouterr().err
  assert 'was written by an older version of segjax' in err
  assert 'resuming from step 2 of 4' in err
  assert json.loads((old / 'config.json').read_text())['batch']['size'] == 4
  finals = [info(w, capsys)['parameters_sha256'] for w in (semantic_run, old)]
  assert finals[0] == finals[1]


def test_a_resumed_run_notices_other_data_with_the_same_counts(
  semantic_run, tmp_path, capsys, monkeypatch
):
  tiny = scenes.Builder.builder_configs['tiny']
  for name, seed in (('same', tiny.seed), ('other', tiny.seed + 1)):
    workdir = tmp_path / name
    shutil.copytree(semantic_run, workdir)
    with monkeypatch.context() as patch:
      patch.setattr(tiny, 'seed', seed)
      assert run('train', f'--workdir={workdir}', f'--config.data.dir={tmp_path / name}_data') == 0
    told = f'was prepared again since {workdir} was first trained, and its examples are not'
    assert (told in capsys.readouterr().err) == (name == 'other')
  first, second = (
    json.loads((tmp_path / name / 'dataset.json').read_text()) for name in ('same', 'other')
  )
  assert first == second and len(first['records']) == 16, 'what it was first trained on'


def rewrite_config(workdir, change):
  path = workdir / 'config.json'
  path.write_text(json.dumps(change(json.loads(path.read_text()))))


def old_semantic_config(config):
  """A complete config frozen by commit 3c258fa."""
  batch, augment, data = (config.pop(key) for key in ('batch', 'augment', 'data'))
  size = data.pop('size')
  for group, key in ((size, 'interpolation'), (augment, 'transforms')):
    del group[key]
  added = {'jitter': augment.pop('large_scale_jitter'), 'copy_paste': augment.pop('copy_paste')}
  keys = {'size': 'batch_size', 'eval_size': 'eval_batch_size'}
  for key in ('size', 'eval_size', 'shuffle', 'workers'):
    added[keys.get(key, key)] = batch[key]
  added |= {'instances': None, 'segments': None}
  return {**config, 'data': {**data, **size, **added, 'augment': augment}}


def test_an_instance_run_of_an_earlier_version_does_not_resume(root, tmp_path, capsys):
  old = tmp_path / 'old'
  (old / 'checkpoints' / '2').mkdir(parents=True)
  config = json.loads((root / 'tests/old_configs.json').read_text())['mask_rcnn/coco_r50_c4']
  (old / 'config.json').write_text(json.dumps(config))
  message = fails(capsys, 'train', f'--workdir={old}')
  assert 'was trained by an earlier version of segjax' in message
  assert f'--config.init_from.path={old}' in message


def test_batch_norm_of_the_training_set_survives_a_stop(tmp_path):
  """Resuming from step 2 is exact, even though evaluation changes the state."""
  statistics = {}
  extra = {'running': [], 'recomputed': ['--config.train.recompute_batch_norm=true']}
  for name, args in extra.items():
    assert train(tmp_path / name, '--config.model.norm=batch', *args, steps=4) == 0
    statistics[name] = batch_stats(tmp_path / name)
  assert statistics['running'].keys() == statistics['recomputed'].keys() != set()
  assert not same(statistics['running'], statistics['recomputed'])
  shutil.rmtree(tmp_path / 'recomputed/checkpoints/4')
  assert run('train', f'--workdir={tmp_path}/recomputed') == 0
  assert same(batch_stats(tmp_path / 'recomputed'), statistics['recomputed'])


def batch_stats(workdir):
  """The statistics of batch normalization in the newest checkpoint."""
  return {name: array for name, array in arrays(workdir).items() if 'batch_stats' in name}


def same(a, b):
  return all(np.array_equal(a[name], b[name]) for name in a)


def test_two_processes_on_one_workdir(semantic_run, capsys):
  with Workdir(str(semantic_run)).lock():
    message = fails(capsys, *train_args(semantic_run, steps=4))
  assert 'another process is training in' in message


def test_workdir_of_a_different_config(semantic_run, capsys):
  before = (semantic_run / 'config.json').read_text()
  message = fails(capsys, *train_args(semantic_run, '--config.optim.learning_rate=0.5', steps=4))
  assert 'optim.learning_rate was 0.003 and is 0.5' in message
  assert (semantic_run / 'config.json').read_text() == before


def test_what_never_trained_does_not_bind(tmp_path, capsys):
  message = fails(capsys, *train_args(tmp_path / 'run', '--config.batch.size=3'))
  assert 'config.batch.size' in message
  assert train(tmp_path / 'run', steps=1) == 0


# --- wrong configs --------------------------------------------------------------------------------


@pytest.mark.parametrize(
  ('task', 'override', 'message'),
  [
    ('semantic', 'optim.learnig_rate=1', 'config.optim.learnig_rate is not a key: did you mean l'),
    ('semantic', 'optm.learning_rate=1', 'config.optm is not a key: did you mean optim'),
    ('semantic', 'model.widht=3', 'config.model.widht is not a key: did you mean width'),
    ('semantic', 'model.name=unet.Unet', 'did you mean UNet'),
    ('semantic', 'task=semantics', 'did you mean semantic'),
    ('semantic', 'augment.flip_h=1', 'config.augment.flip_h is not a key: did you mean flip_'),
    ('semantic', 'losses.dise={}', 'dise: did you mean dice'),
    ('semantic', 'losses.dice.smoth=1', 'config.losses.dice.smoth is not a key: did you mean smo'),
    ('semantic', 'eval.metric=1', 'config.eval.metric is not a key: did you mean metrics'),
    ('semantic', 'train.steps=many', "config.train.steps='many' has the wrong type: it takes int"),
    ('semantic', 'optim.learning_rate=fast', 'config.optim.learning_rate'),
    ('semantic', 'data.batch_size=4', 'config.data.batch_size is now config.batch.size'),
    ('semantic', 'batch.size=0', 'config.batch.size=0 must be 1 or greater'),
    ('semantic', 'batch.size=3', 'config.batch.size=3 does not divide over 4 devices'),
    ('semantic', 'data.name=scene', 'did you mean scenes'),
    ('semantic', 'data.train_split=training', 'has no split'),
    ('semantic', 'data.eval_split=vall', "has no split 'vall': did you mean val"),
    ('semantic', 'model.classes=3', 'config.model.classes=3 but the data set scenes'),
    ('semantic', 'mesh.data=64', 'config.mesh needs'),
    ('semantic', 'eval.metrics=("iou",)', 'config.eval.metrics'),
    ('semantic', 'losses.dice=1', 'config.losses.dice=1 has the wrong type'),
    ('semantic', 'optim.accumulate=3', 'config.optim.accumulate=3 does not divide config.batch.si'),
    ('semantic', 'optim.accumulate=0', 'config.optim.accumulate=0'),
    ('semantic', 'mesh.space=0', 'config.mesh.space=0'),
    ('semantic', 'mesh.space=3', 'config.mesh.space=3 does not divide the 4 devices'),
    ('semantic', 'train.eval_every=0', 'config.train.eval_every=0 must be 1 or greater'),
    ('semantic', 'train.steps=-1', 'config.train.steps=-1'),
    ('semantic', 'train.seed=99999999999999999999', 'config.train.seed=99999999999999999999 must'),
    ('semantic', 'optim.learning_rate=-1', 'config.optim.learning_rate=-1'),
    ('semantic', 'model.dropout=1.5', 'config.model.dropout=1.5 must be'),
    ('semantic', 'data.weight_map.class_weights=(1,)', 'config.data.weight_map.class_weights'),
    ('semantic', 'data.weight_map=1', 'config.data.weight_map=1 has the wrong type'),
    ('semantic', 'model=3', 'config.model is a group of keys'),
    ('semantic', 'data.name=a/b/c', 'a/b/c'),
    ('semantic', 'data.name=my-data', 'my-data'),
    ('semantic', 'data.name_key=nix', 'config.data.name_key=nix'),
    ('semantic', 'batch.max_segments=9', 'config.batch.max_segments is for tasks that read segmen'),
    ('semantic', 'data.std=(1,2)', 'must be 1 number, or 1 for each of the 3 channels of scenes'),
    ('instance', 'train.best_metric=loss', 'config.train.best_metric=loss is an unknown metric'),
    ('instance', 'train.best_metric=mean_iou', 'train.best_metric=mean_iou is an unknown metric'),
    (
      'semantic',
      'optim.boundaries=(5,)',
      'config.optim.boundaries=(5,) with config.optim.schedule',
    ),
    ('instance', 'model.classes=9', 'config.model.classes=9 but the data set scenes/tiny has 5 cl'),
    ('instance', 'losses.mask.beta=1', 'config.losses.mask.beta is not a key'),
    ('instance', 'losses.dice.scale=1', 'config.losses'),
    ('instance', 'model.score_threshold=1', 'is now config.model.box_head.score_threshold'),
    ('instance', 'model.box_head.samples=0', 'config.model.box_head.samples=0 must be'),
    ('instance', 'mesh.space=2', 'config.mesh.space=2: the task instance does not split an image'),
    ('instance', 'eval.metrics=("confusion",)', 'config.eval.metrics'),
    ('instance', 'data.objects_key=things', 'config.data.objects_key=things'),
    ('instance', 'batch.max_segments=9', 'config.batch.max_segments is for tasks that read segmen'),
    (
      'instance',
      'train.recompute_batch_norm=true',
      'config.train.recompute_batch_norm is not supported by MaskRCNN',
    ),
    ('panoptic', 'model.classes=9', 'config.model.classes=9 but the data set scenes/tiny has 5'),
    ('panoptic', 'model.stuff=5', 'config.model.stuff=5 but the data set scenes/tiny has 4 classe'),
    ('panoptic', 'model.masks=false', 'config.model.masks'),
    ('panoptic', 'losses.dice.scale=1', 'config.losses'),
    ('panoptic', 'data.panoptic_key=ids', 'config.data.panoptic_key=ids'),
    ('panoptic', 'eval.things=(1,)', 'config.eval.things is not a key'),
  ],
)
def test_a_wrong_config_is_one_sentence(tmp_path, capsys, task, override, message):
  workdir = tmp_path / 'run'
  assert message in fails(capsys, *train_args(workdir, f'--config.{override}', task=task))
  assert not (workdir / 'checkpoints').exists() or not list((workdir / 'checkpoints').iterdir())


def test_misspelt_best_metric(tmp_path, capsys):
  """It is refused before anything is trained, so that the same command can be corrected."""
  workdir = tmp_path / 'run'
  message = fails(capsys, *train_args(workdir, '--config.train.best_metric=mean_io'))
  assert 'config.train.best_metric=mean_io is an unknown metric: did you mean mean_iou?' in message
  assert not (workdir / 'checkpoints').exists()


def test_patience_ends_a_run_that_is_then_trained(tmp_path, capsys):
  workdir = tmp_path / 'run'
  args = ['--config.train.eval_every=1', '--config.train.images=0', '--config.train.patience=1']
  assert train(workdir, *args, steps=60) == 0
  scores = [r['mean_iou'] for r in read_log(workdir) if r['split'] == 'val']
  end = len(scores)
  assert end < 60 and scores[-1] <= scores[-2] == max(scores), 'the first that is not better'
  assert (
    f'done: ended early at step {end} of 60, without a better mean_iou since step {end - 1} '
    '(config.train.patience=1)'
  ) in capsys.readouterr().err
  assert run_lib.is_trained(Workdir(workdir)) and info(workdir, capsys)['step'] == end
  later = workdir / 'checkpoints' / str(end) / checkpoint._LATER_METRICS
  later.rename(tmp_path / 'metrics')
  assert not run_lib.is_trained(Workdir(workdir)), 'its last evaluation was cut off'
  (tmp_path / 'metrics').rename(later)
  assert train(workdir, *args, steps=60) == 0, 'there is nothing to do'
  assert info(workdir, capsys)['step'] == end


OWN = """
import jax
import jax.numpy as jnp
import numpy as np

from segjax.metrics.base import Metric
from segjax.types import SumCount


def whole(logits, label, weight=None, *, factor: float = 1.0):
  # The probabilities of a pixel, which are 1 together.
  return SumCount(factor * jax.nn.softmax(logits).sum(), jnp.float32(label.size))


def background(class_names):
  def from_batch(predictions, batch):
    seen = np.asarray(predictions['label'])[np.asarray(batch['valid'])]
    return {'first': (seen == 0).sum(), 'all': np.int64(seen.size)}

  return Metric(
    name='background',
    from_batch=from_batch,
    compute=lambda state: {'background_share': float(state['first'] / state['all'])},
    device=False,
    reads=('label', 'valid'),
  )
"""


def test_a_loss_and_a_metric_of_ones_own(tmp_path, capsys, monkeypatch):
  """From a file in the working directory, which is on no path."""
  monkeypatch.chdir(tmp_path)
  (tmp_path / 'segjax_test_own.py').write_text(OWN)
  workdir = tmp_path / 'run'
  status = train(
    workdir,
    "--config.losses.small={'name': 'segjax_test_own.py:whole', 'factor': 3.0, 'scale': 0.5}",
    '--config.eval.metrics=("confusion","segjax_test_own.py:background")',
    '--config.train.best_metric=background_share',
  )
  assert status == 0
  last = read_log(workdir)[-1]
  assert 0 <= last['background_share'] <= 1
  assert last['loss_small'] == pytest.approx(1.5, rel=1e-4)
  parts = last['loss_small'] + last['loss_softmax_cross_entropy']
  assert last['loss'] == pytest.approx(parts, rel=1e-5)
  message = fails(capsys, 'evaluate', f'--workdir={workdir}', '--config.eval.metrics=("a.py:b",)')
  assert 'config.eval.metrics: cannot import a.py (FileNotFoundError' in message
  # Without the file: a prediction needs neither the loss nor the metric, an evaluation does.
  (tmp_path / 'segjax_test_own.py').unlink()
  monkeypatch.setattr(lookup, '_import_file', lookup._import_file.__wrapped__)
  assert info(workdir, capsys)['best_metric'] == 'background_share'
  cv2.imwrite('a.png', np.zeros((32, 32, 3), np.uint8))
  assert run('predict', f'--workdir={workdir}', '--images=a.png', '--output=out') == 0
  assert 'cannot import segjax_test_own.py' in fails(capsys, 'evaluate', f'--workdir={workdir}')


def test_the_examples_of_the_docs_train(tmp_path, root, capsys, monkeypatch):
  """A data set, a config, a loss and a metric of one's own, as the pages have them."""
  monkeypatch.chdir(tmp_path)
  blocks = {
    page: re.findall(r'```python\n(.*?)```', (root / f'docs/{page}.md').read_text(), re.DOTALL)
    for page in ('own_data', 'extend')
  }
  data, config_file = blocks['own_data'][:2]
  for name, text in (('squares', data), ('my_config', config_file), ('mine', blocks['extend'][0])):
    (tmp_path / f'{name}.py').write_text(text)
  status = run(
    *('train', '--config=my_config.py', '--workdir=run', '--config.train.steps=2'),
    *('--config.batch.size=4', '--config.model.width=2'),
    '--config.losses.brier.name=mine.py:brier',
    '--config.eval.metrics=("confusion", "mine.py:first_class")',
  )
  assert status == 0
  last = read_log(tmp_path / 'run')[-1]
  assert 0 <= last['share of background'] <= 1 and 0 < last['loss_brier'] <= 2
  assert info(tmp_path / 'run', capsys)['best_metric'] == 'mean_iou'


def test_the_watchdog_sees_each_batch_that_statistics_are_recomputed_from(tmp_path, monkeypatch):
  beats, during = [], []
  recompute = train_cli.evaluate.recompute_statistics

  def counted(*args, **kwargs):
    before = len(beats)
    found = recompute(*args, **kwargs)
    during.append(len(beats) - before)
    return found

  monkeypatch.setattr(train_cli.Watchdog, 'beat', lambda self: beats.append(1))
  monkeypatch.setattr(train_cli.evaluate, 'recompute_statistics', counted)
  keys = ('model.norm=batch', 'train.recompute_batch_norm=true', 'data.train_split=train[:12]')
  assert train(tmp_path / 'run', *(f'--config.{key}' for key in keys)) == 0
  assert during == [3]  # batches of 4


def test_nonfinite_loss_stops_and_names_the_examples(tmp_path, capsys):
  messages = []
  for args in ([], ['--config.train.nonfinite=skip', '--config.train.max_skipped=2']):
    diverging = train_args(
      tmp_path / f'run{len(args)}',
      '--config.optim.learning_rate=1e30',
      '--config.model.norm=none',
      '--config.optim.name=sgd',
      '--config.optim.warmup_steps=0',
      '--config.train.eval_every=9',
      *args,
      steps=9,
    )
    messages.append(fails(capsys, *diverging))
  assert 'not finite' in messages[0]
  assert 'last finite metrics: step=1' in messages[0]
  assert len(re.findall(r'scene_train_\d{6}', messages[0])) == 4
  assert '(3 updates ' in messages[1]


# --- config options -------------------------------------------------------------------------------


def test_unpadded_network_with_border_weights_and_isbi_metrics(tmp_path, capsys):
  """As in the ISBI configs: margin, weight map, host metrics, eight symmetries."""
  workdir = tmp_path / 'run'
  write_folder(tmp_path / 'own', convert=lambda label: label.clip(max=1))
  files = {'classes': ('membrane', 'cell')}
  status = train(
    workdir,
    '--config.data.name=folder',
    f'--config.data.source={tmp_path / "own"}',
    f'--config.data.files={files}',
    f'--config.data.dir={tmp_path / "data"}',
    '--config.model.classes=2',
    '--config.model.padding=valid',
    '--config.data.size.crop_size=(20,20)',
    "--config.data.weight_map={'foreground': 2, 'background_only': True}",
    '--config.eval.metrics=("confusion","isbi")',
    '--config.eval.test_time_augmentation=dihedral',
    '--config.train.best_metric=rand_error',
    '--config.train.best_mode=min',
    '--config.augment.elastic_sigma=3',
    '--config.augment.rotate=180',
    '--config.optim.accumulate=2',
    '--config.mesh.data=1',
  )
  assert status == 0
  last = read_log(workdir)[-1]
  assert 0 <= last['rand_error'] <= 1
  assert {key for key in last if key.endswith(('_error', '_threshold')) or key[:2] == 'v_'} == set(
    rand.MEASURES
  )
  assert info(workdir, capsys)['best_metric'] == 'rand_error'


def test_median_frequency_weights_stay_with_the_run(tmp_path):
  workdir = tmp_path / 'run'
  rule = '--config.losses.softmax_cross_entropy.class_weights=median_frequency'
  assert train(workdir, rule, steps=1) == 0
  weights = json.loads((workdir / 'dataset.json').read_text())['class_weights']
  builder = datasets.load('scenes/tiny')
  labels = [example['label'] for example in builder.as_data_source('train')]
  found = np.stack([np.bincount(label.ravel(), minlength=9) for label in labels])
  pixels, of_images = found.sum(0), ((found > 0) * found.sum(1, keepdims=True)).sum(0)
  assert weights['median_frequency'] == pytest.approx(
    dense.median_frequency_weights(pixels, of_images).tolist()
  )
  assert len(set(weights['median_frequency'])) > 2
  assert run('evaluate', f'--workdir={workdir}', '--json') == 0


def test_evaluates_on_another_data_set(tmp_path, capsys, monkeypatch):
  """FCN trains on SBD and is evaluated on VOC."""
  loaded, load = [], datasets.load

  def spy(name, data_dir, source, **kwargs):
    loaded.append((name, source))
    return load(name, data_dir, **kwargs)

  monkeypatch.setattr(datasets, 'load', spy)
  other = ['--config.data.eval_name=scenes/tiny', f'--config.data.eval_source={tmp_path}']
  assert train(tmp_path / 'run', *other, '--config.data.source=raw') == 0
  assert run('evaluate', f'--workdir={tmp_path}/run') == 0
  assert loaded == [('scenes/tiny', 'raw'), *[('scenes/tiny', str(tmp_path))] * 2]

  classes = '--config.data.class_names=' + str(tuple('abcdefghi'))
  where = [f'--workdir={tmp_path}/run', '--config.data.eval_name=scenes/tiny', classes]
  assert 'set config.data.eval_name to a data set with the same' in fails(
    capsys, 'evaluate', *where
  )


def test_init_from_another_run(semantic_run, tmp_path, capsys):
  """With a learning rate of 0 the weights stay those of the other run."""
  start = f'--config.init_from.path={semantic_run}'
  message = fails(capsys, *train_args(tmp_path / 'a', '--config.model.width=3', start))
  assert 'where this network has' in message
  missing = (
    '--config.init_from.path=resnet50.pth',
    '--config.init_from.source=torchvision/resnet50',
  )
  message = fails(capsys, *train_args(tmp_path / 'a', *missing))
  assert 'resnet50.pth does not exist: correct it, or set config.init_from.path=none' in message
  frozen = ['--config.optim.learning_rate=0', '--config.init_from.checkpoint=latest']
  assert train(tmp_path / 'b', start, *frozen, steps=1) == 0
  assert 'arrays from' in capsys.readouterr().err
  finals = [info(w, capsys)['parameters_sha256'] for w in (semantic_run, tmp_path / 'b')]
  assert finals[0] == finals[1]

  reset = '--config.init_from.reset=heads'
  assert train(tmp_path / 'c', start, *frozen, reset, steps=1) == 0
  assert 'head are re-initialized' in capsys.readouterr().err
  assert info(tmp_path / 'c', capsys)['parameters_sha256'] != finals[0]


def test_the_small_networks_are_the_shipped_configs():
  assert set(SMALL) <= set(CONFIGS)
  for task, words in SMALL.items():
    shipped = config.read_file(CONFIGS[task].removeprefix('--config='))
    pairs = [word.removeprefix('--config.').split('=', 1) for word in words]
    parts = [
      (found.task, found.model_config['name'], list(found.losses))
      for found in map(experiment.parse, (shipped, config.override(shipped, pairs)))
    ]
    assert pairs and parts[0] == parts[1]


def test_classes_that_never_occur_are_named_at_the_start(tmp_path, capsys):
  """Of the split to train on and of the one to evaluate on."""
  path = CONFIGS['semantic'].removeprefix('--config=')
  keys = {'name': 'scenes/tiny', 'train_split': 'train[:1]', 'eval_split': 'val[:1]'}
  given = config.override(config.read_file(path), [(f'data.{k}', v) for k, v in keys.items()])
  assembled, builder = run_lib.assemble(Workdir(tmp_path), given)
  capsys.readouterr()
  train_cli._notify_missing(assembled, *[(builder, assembled.spec)] * 2)
  lines = capsys.readouterr().err.splitlines()
  assert [line.split(',')[0] for line in lines] == ['in train[:1]', 'in val[:1]']
  assert all('of 9 classes never occur (' in line for line in lines)


@pytest.mark.parametrize(
  ('overrides', 'told'),
  [
    ((), ()),
    ((('init_from', 'none'),), ("norm='frozen'", 'frozen_stages=2')),
    ((('init_from', 'none'), ('model.backbone.norm', 'group')), ('frozen_stages=2',)),
    ((('init_from', 'none'), ('train.steps', '0'), ('optim.warmup_steps', '0')), ()),
  ],
)
def test_frozen_layers_without_weights_are_named(root, capsys, overrides, told):
  given = config.read_file(f'{root}/configs/mask_rcnn/coco_r50_fpn.py')
  train_cli._notify_frozen(experiment.parse(config.override(given, overrides)))
  expected = ' and '.join(f'config.model.backbone.{key}' for key in told)
  assert capsys.readouterr().err.partition(' without weights to start from')[0] == expected


def test_what_runs_beside_the_steps_starts_after_the_first_and_its_error_ends_the_training():
  started = threading.Event()

  def fail():
    started.set()
    raise SegjaxError('a broken example')

  with concurrent.futures.ThreadPoolExecutor(1) as threads:
    batches = train_cli._beside(itertools.count(), threads, fail)
    assert next(batches) == 0 and not started.is_set()
    with pytest.raises(SegjaxError, match='a broken example'):
      for _ in batches:
        started.wait(10)


def test_classes_that_never_occur_are_named_before_a_single_step(tmp_path, capsys):
  args = train_args(tmp_path / 'run', '--config.data.eval_split=val[:1]', steps=1)
  assert run(*args) == 0
  assert 'of 9 classes never occur (' in capsys.readouterr().err
