"""The commands, as a person uses and misuses them."""

import json
import re
import shutil
import signal
import subprocess
import sys
import time

import cv2
import numpy as np
import pytest
from processes import run_as_two, spawn

from segjax import main as program
from segjax.data import datasets
from segjax.program.load import restore
from segjax.types import IGNORE_LABEL, SegjaxError
from segjax.workdir import Workdir

# The shipped demo config, shrunk.
SMALL = [
  '--config.data.name=scenes/tiny',
  '--config.data.image_size=(32,32)',
  '--config.data.batch_size=4',
  '--config.model.width=2',
  '--config.model.depth=2',
  '--config.train.log_every=1',
  '--config.train.pictures=2',
  '--config.optim.warmup_steps=1',
]


@pytest.fixture(scope='session', autouse=True)
def folders(tmp_path_factory):
  """Prepared data and compiled programs of this test run, apart from the user's own."""
  cache = tmp_path_factory.mktemp('cache')
  with pytest.MonkeyPatch.context() as patch:
    patch.setenv('XDG_CACHE_HOME', str(cache))
    patch.delenv('SEGJAX_DATA_DIR', raising=False)
    yield cache


@pytest.fixture
def config(root):
  return f'--config={root / "configs/unet/scenes.py"}'


def run(*args):
  """The exit status of `segjax args`."""
  return program.main([str(a) for a in args])


def train(workdir, config, *args, steps=4):
  every = [f'--config.train.{k}_every=2' for k in ('eval', 'checkpoint')]
  return run(
    'train', config, f'--workdir={workdir}', *SMALL, *every, f'--config.train.steps={steps}', *args
  )


def info(workdir, capsys):
  capsys.readouterr()
  assert run('info', f'--workdir={workdir}', '--json') == 0
  return json.loads(capsys.readouterr().out)


@pytest.fixture(scope='module')
def trained(tmp_path_factory, root):
  workdir = tmp_path_factory.mktemp('runs') / 'trained'
  assert train(workdir, f'--config={root / "configs/unet/scenes.py"}') == 0
  return workdir


def test_a_task_without_thresholds_has_none_to_tune(trained, capsys):
  assert run('evaluate', f'--workdir={trained}', '--tune') == 2
  assert '--tune: the task semantic has no thresholds to choose' in capsys.readouterr().err


def test_train_leaves_everything_in_the_workdir(trained):
  assert {p.name for p in trained.iterdir()} >= {
    'config.json',
    'dataset.json',
    'metrics.jsonl',
    'report.html',
    'checkpoints',
    'tensorboard',
  }
  records = [json.loads(line) for line in (trained / 'metrics.jsonl').read_text().splitlines()]
  assert [r['step'] for r in records if r['split'] == 'train'] == [1, 2, 3, 4]
  assert [r['step'] for r in records if r['split'] == 'val'] == [2, 4]
  report = (trained / 'report.html').read_text()
  assert 'mean_iou' in report
  assert 'scene_val_' in report
  frozen = json.loads((trained / 'config.json').read_text())
  assert frozen['optim']['momentum'] == 0.9, 'defaults are frozen too'


def test_batch_norm_of_the_training_set_survives_a_stop(tmp_path, config):
  """Going on from step 2 ends as if there had been no stop, though evaluating changes the state."""
  statistics = {}
  extra = {'running': [], 'recomputed': ['--config.train.recompute_batch_norm=true']}
  for name, args in extra.items():
    assert train(tmp_path / name, config, '--config.model.norm=batch', *args) == 0
    statistics[name] = batch_stats(tmp_path / name)
  assert statistics['running'].keys() == statistics['recomputed'].keys() != set()
  assert not same(statistics['running'], statistics['recomputed'])
  shutil.rmtree(tmp_path / 'recomputed/checkpoints/4')
  assert run('train', f'--workdir={tmp_path}/recomputed') == 0
  assert same(batch_stats(tmp_path / 'recomputed'), statistics['recomputed'])


def batch_stats(workdir):
  """The statistics of batch normalisation in the newest checkpoint."""
  arrays = restore(Workdir(workdir), 'latest').state
  return {name: array for name, array in arrays.items() if 'batch_stats' in name}


def same(a, b):
  return all(np.array_equal(a[name], b[name]) for name in a)


def test_evaluate_json_is_one_object_and_nothing_else(trained, capsys):
  capsys.readouterr()
  assert run('evaluate', f'--workdir={trained}', '--json') == 0
  metrics = json.loads(capsys.readouterr().out)
  assert metrics['step'] == 4
  assert metrics['split'] == 'val'
  assert 0 <= metrics['mean_iou'] <= 1
  assert 0 <= metrics['pixel_accuracy'] <= 1
  last = json.loads((trained / 'metrics.jsonl').read_text().splitlines()[-1])
  assert metrics['mean_iou'] == pytest.approx(last['mean_iou'])


def test_evaluate_counts_every_image_once(trained, capsys):
  """Whatever the batch size: 8 pictures in batches of 8, and of 3 with one padded."""
  results = []
  for size in (8, 3):
    capsys.readouterr()
    mesh = '--config.mesh.data=1'
    assert (
      run(
        'evaluate', f'--workdir={trained}', '--json', mesh, f'--config.data.eval_batch_size={size}'
      )
      == 0
    )
    results.append(json.loads(capsys.readouterr().out))
  assert results[0]['per_class'] == results[1]['per_class']
  assert results[0]['loss'] == pytest.approx(results[1]['loss'], rel=1e-5)


def test_evaluate_for_people_names_the_report(trained, capsys):
  assert run('evaluate', f'--workdir={trained}', '--split=train', '--checkpoint=2') == 0
  out = capsys.readouterr().out
  assert 'mean_iou' in out
  assert f'train at step 2; report: {trained / "report.html"}' in out


def test_info(trained, capsys):
  facts = info(trained, capsys)
  assert facts['step'] == 4
  assert re.fullmatch('[0-9a-f]{64}', facts['parameters_sha256'])
  assert facts['parameter_count'] > 0
  assert facts['best_metric'] == 'mean_iou'
  assert run('info', f'--workdir={trained}') == 0
  assert facts['parameters_sha256'] in capsys.readouterr().out


def test_predict_any_size_and_format(trained, tmp_path):
  images, output = tmp_path / 'images', tmp_path / 'out'
  images.mkdir()
  rng = np.random.default_rng(0)
  for name, size in (('a.png', (40, 70)), ('b.jpg', (32, 32)), ('c.tif', (9, 33))):
    cv2.imwrite(str(images / name), rng.integers(0, 255, (*size, 3), np.uint8))
  cv2.imwrite(str(images / 'grey.png'), rng.integers(0, 255, (20, 30), np.uint8))
  (images / 'notes.txt').write_text('not an image')
  assert run('predict', f'--workdir={trained}', f'--images={images}', f'--output={output}') == 0
  assert sorted(p.name for p in output.iterdir()) == sorted(
    f'{s}{e}.png' for s in ('a', 'b', 'c', 'grey') for e in ('', '_overlay')
  )
  from PIL import Image

  label = np.asarray(Image.open(output / 'a.png'))
  assert label.shape == (40, 70)
  assert label.max() < 9
  assert label.max() != IGNORE_LABEL
  assert np.asarray(Image.open(output / 'a_overlay.png')).shape == (40, 70, 3)


def test_predict_of_samples_draws_their_uncertainty(tmp_path, root, capsys):
  """Bayesian SegNet: the shipped config, shrunk."""
  args = ['--config.model.width=2', '--config.model.classes=9', '--config.train.steps=2']
  args += [
    '--config.data.name=scenes/tiny',
    '--config.data.batch_size=4',
    '--config.eval.samples=2',
  ]
  args += ['--config.data.image_size=(32,32)', '--config.train.pictures=1']
  workdir = tmp_path / 'run'
  path = root / 'configs/segnet/bayesian_camvid.py'
  assert run('train', f'--config={path}', f'--workdir={workdir}', *args) == 0
  assert 'uncertainty' in (workdir / 'report.html').read_text()
  cv2.imwrite(str(tmp_path / 'a.png'), np.random.default_rng(0).integers(0, 255, (20, 30, 3)))
  image, output = f'--images={tmp_path}/a.png', f'--output={tmp_path}/out'
  assert run('predict', f'--workdir={workdir}', image, output) == 0
  assert 'uncertainty up to 0.' in capsys.readouterr().err
  assert cv2.imread(str(tmp_path / 'out/a_uncertainty.png')).shape == (20, 30, 3)


def test_evaluates_on_another_data_set(tmp_path, config, capsys, monkeypatch):
  """FCN trains on SBD and is evaluated on VOC."""
  loaded, load = [], datasets.load

  def spy(name, data_dir, source, **kwargs):
    loaded.append((name, source))
    return load(name, data_dir, **kwargs)

  monkeypatch.setattr(datasets, 'load', spy)
  other = ['--config.data.eval_name=scenes/tiny', f'--config.data.eval_source={tmp_path}']
  assert train(tmp_path / 'run', config, *other, '--config.data.source=raw', steps=2) == 0
  assert run('evaluate', f'--workdir={tmp_path}/run') == 0
  assert loaded == [('scenes/tiny', 'raw'), *[('scenes/tiny', str(tmp_path))] * 2]

  classes = '--config.data.class_names=' + str(tuple('abcdefghi'))
  where = [f'--workdir={tmp_path}/run', '--config.data.eval_name=scenes/tiny', classes]
  assert 'set config.data.eval_name to a data set with the same' in fails(
    capsys, 'evaluate', *where
  )


def test_resume_continues_and_finished_runs_stay(trained, tmp_path, config, capsys):
  workdir = tmp_path / 'run'
  assert train(workdir, config, '--config.train.nonfinite=skip') == 0
  first = info(workdir, capsys)
  assert train(workdir, config, '--config.train.nonfinite=skip') == 0
  assert info(workdir, capsys) == first
  # Without --config the workdir's own is taken.
  assert run('train', f'--workdir={workdir}') == 0
  # The same parameters as another run of the same config: training is deterministic.
  assert first['parameters_sha256'] == info(trained, capsys)['parameters_sha256']


def test_two_processes_on_one_workdir(trained, config, capsys):
  with Workdir(str(trained)).lock():
    assert train(trained, config) == 2
  assert 'another process is training in' in capsys.readouterr().err


def test_damaged_newest_checkpoint_is_told(trained, tmp_path, config, capsys):
  import shutil

  workdir = tmp_path / 'run'
  shutil.copytree(trained, workdir)
  (workdir / 'checkpoints/4/meta/metadata').write_text('{')
  assert train(workdir, config) == 0
  err = capsys.readouterr().err
  assert 'damaged' in err
  assert 'going on at step 2' in err
  assert info(workdir, capsys)['parameters_sha256'] == info(trained, capsys)['parameters_sha256']


def fails(capsys, *args):
  """The sentence that a failing command prints."""
  capsys.readouterr()
  assert run(*args) == 2
  captured = capsys.readouterr()
  assert captured.out == ''
  assert 'Traceback' not in captured.err
  last = captured.err.strip().splitlines()[-1]
  assert last.startswith('segjax: ')
  return last


@pytest.mark.parametrize(
  ('override', 'told'),
  [
    ('optim.learnig_rate=1', 'config.optim.learnig_rate is not a key: did you mean learning_'),
    ('optm.learning_rate=1', 'config.optm is not a key: did you mean optim'),
    ('model.widht=3', 'config.model.widht is not a key: did you mean width'),
    ('model.name=unet.Unet', 'did you mean UNet'),
    ('task=semantics', 'there is no module semantics: did you mean semantic'),
    ('data.augment.flip_h=1', 'config.data.augment.flip_h is not a key: did you mean flip_'),
    ('losses.dise={}', 'config.losses: segjax.losses.dense has no dise: did you mean dice'),
    ('losses.dice.smoth=1', 'config.losses.dice.smoth is not a key: did you mean smooth'),
    ('eval.metric=1', 'config.eval.metric is not a key: did you mean metrics'),
    ('train.steps=many', "config.train.steps='many' has the wrong type: it takes int"),
    ('optim.learning_rate=fast', 'config.optim.learning_rate'),
    ('data.batch_size=0', 'config.data.batch_size=0'),
    ('data.batch_size=3', 'does not divide over the mesh'),
    ('data.name=scene', 'did you mean scenes'),
    ('data.train_split=training', 'has no split'),
    ('data.eval_split=vall', "has no split 'vall': did you mean val"),
    ('model.classes=3', 'config.model.classes=3 but the data set scenes'),
    ('mesh.data=64', 'config.mesh asks for'),
    ('eval.metrics=("iou",)', 'config.eval.metrics: there is no iou'),
    ('losses.dice=1', 'config.losses.dice=1 has the wrong type'),
    ('optim.accumulate=3', 'config.optim.accumulate=3 does not divide config.data.batch_size=4'),
    ('optim.accumulate=0', 'config.optim.accumulate=0'),
    ('mesh.space=0', 'config.mesh.space=0'),
    ('train.eval_every=0', 'config.train.eval_every=0 must be 1 or more'),
    ('train.steps=-1', 'config.train.steps=-1'),
    ('data.weight_map.class_weights=(1,)', 'config.data.weight_map.class_weights'),
    ('data.weight_map=1', 'config.data.weight_map=1 has the wrong type'),
    ('model=3', 'config.model is a group of keys'),
    ('data.name=a/b/c', 'a/b/c'),
    ('data.name=my-data', 'my-data'),
    ('data.name_key=nix', 'has no such feature'),
  ],
)
def test_a_wrong_config_is_one_sentence(tmp_path, config, capsys, override, told):
  workdir = tmp_path / 'run'
  sentence = fails(capsys, 'train', config, f'--workdir={workdir}', *SMALL, f'--config.{override}')
  assert told in sentence
  assert not (workdir / 'checkpoints').exists() or not list((workdir / 'checkpoints').iterdir())


def test_what_never_trained_does_not_bind(tmp_path, config, capsys):
  workdir = tmp_path / 'run'
  told = fails(
    capsys, 'train', config, f'--workdir={workdir}', *SMALL, '--config.data.batch_size=3'
  )
  assert 'config.data.batch_size' in told
  assert train(workdir, config) == 0


def test_misspelt_best_metric(tmp_path, config, capsys):
  capsys.readouterr()
  assert train(tmp_path / 'run', config, '--config.train.best_metric=mean_io') == 2
  told = capsys.readouterr().err
  assert 'config.train.best_metric=mean_io is no metric: did you mean mean_iou?' in told


def test_unpadded_network_with_border_weights_and_isbi_metrics(tmp_path, config, capsys):
  """The path of the ISBI configs: margin, weight map, metrics on the host, eight symmetries."""
  workdir = tmp_path / 'run'
  status = train(
    workdir,
    config,
    '--config.model.padding=valid',
    '--config.data.crop_size=(20,20)',
    "--config.data.weight_map={'foreground': 2, 'background_only': True}",
    '--config.eval.metrics=("confusion","isbi")',
    '--config.eval.test_time_augmentation=dihedral',
    '--config.train.best_metric=rand_error',
    '--config.train.best_mode=min',
    '--config.data.augment.elastic_sigma=3',
    '--config.data.augment.rotate=180',
    '--config.optim.accumulate=2',
    '--config.mesh.data=1',
    steps=2,
  )
  assert status == 0
  last = json.loads((workdir / 'metrics.jsonl').read_text().splitlines()[-1])
  assert 0 <= last['rand_error'] <= 1
  assert info(workdir, capsys)['best_metric'] == 'rand_error'


def test_median_frequency_weights_stay_with_the_run(tmp_path, config):
  workdir = tmp_path / 'run'
  rule = '--config.losses.softmax_cross_entropy.class_weights=median_frequency'
  assert train(workdir, config, rule, steps=2) == 0
  weights = json.loads((workdir / 'dataset.json').read_text())['class_weights']
  assert len(weights['median_frequency']) == 9
  assert np.median([w for w in weights['median_frequency'] if w]) == pytest.approx(1, rel=0.5)
  assert run('evaluate', f'--workdir={workdir}', '--json') == 0


def test_predict_never_overwrites_or_mixes_up(trained, tmp_path, capsys):
  for name in ('a.png', 'a.jpg', 'sub/a.png'):
    (tmp_path / name).parent.mkdir(exist_ok=True)
    cv2.imwrite(str(tmp_path / name), np.zeros((8, 8, 3), np.uint8))
  before = (tmp_path / 'sub/a.png').read_bytes()
  told = fails(
    capsys,
    'predict',
    f'--workdir={trained}',
    f'--images={tmp_path}/sub',
    f'--output={tmp_path}/sub',
  )
  assert 'would overwrite' in told
  assert (tmp_path / 'sub/a.png').read_bytes() == before
  for pattern in ('a.*', '**/a.png'):
    told = fails(
      capsys,
      'predict',
      f'--workdir={trained}',
      f'--images={tmp_path}/{pattern}',
      f'--output={tmp_path}/out',
    )
    assert 'mixed up' in told


def test_files_that_are_damaged_or_in_the_way(trained, tmp_path, config, capsys):
  (tmp_path / 'file').write_text('')
  for workdir in (tmp_path / 'file', tmp_path / 'file' / 'x'):
    assert 'file' in fails(capsys, 'train', config, f'--workdir={workdir}', *SMALL)
  for content in ('{', '[]'):
    workdir = tmp_path / 'damaged'
    workdir.mkdir(exist_ok=True)
    (workdir / 'config.json').write_text(content)
    assert 'config.json is damaged' in fails(capsys, 'info', f'--workdir={workdir}')


def test_init_from_another_run(trained, tmp_path, config, capsys):
  """Same names, same weights: with a rate of 0 the new run ends with those it started from."""
  told = fails(
    capsys,
    'train',
    config,
    f'--workdir={tmp_path / "a"}',
    *SMALL,
    '--config.model.width=3',
    f'--config.init_from.path={trained}',
  )
  assert 'where this network has' in told
  status = train(
    tmp_path / 'b',
    config,
    f'--config.init_from.path={trained}',
    '--config.optim.learning_rate=0',
    '--config.init_from.checkpoint=latest',
    steps=1,
  )
  assert status == 0
  assert 'arrays from' in capsys.readouterr().err
  shas = [info(w, capsys)['parameters_sha256'] for w in (trained, tmp_path / 'b')]
  assert shas[0] == shas[1]


def test_convert_names_what_is_wrong(tmp_path, capsys):
  broken = tmp_path / 'vgg.safetensors'
  broken.write_bytes(b'cut short')
  output = f'--output={tmp_path / "out.safetensors"}'
  told = fails(capsys, 'convert', '--source=torchvision/vgg16', f'--weights={broken}', output)
  assert 'vgg.safetensors' in told
  assert not (tmp_path / 'out.safetensors').exists()
  told = fails(capsys, 'convert', '--source=torchvision/vgg61', f'--weights={broken}', output)
  assert 'did you mean torchvision/vgg16' in told


def test_overrides_of_a_trained_network(trained, capsys):
  told = fails(capsys, 'evaluate', f'--workdir={trained}', '--config.model.width=3')
  assert 'config.model.width belongs to the training' in told
  with pytest.raises(SystemExit):
    run('info', f'--workdir={trained}', '--config.data.dir=x')


def test_json_is_all_there_is_on_standard_output(trained, tmp_path):
  """Also of what C code and TFDS print while the data set is prepared anew."""
  args = ['evaluate', f'--workdir={trained}', '--json', f'--config.data.dir={tmp_path}']
  result = subprocess.run(
    [sys.executable, '-m', 'segjax.main', *args], capture_output=True, text=True, check=True
  )
  assert json.loads(result.stdout)['step'] == 4


def test_missing_things(trained, tmp_path, config, capsys):
  empty = tmp_path / 'empty'
  empty.mkdir()
  output = f'--output={tmp_path / "out"}'
  assert 'no config file' in fails(capsys, 'train', '--config=no.py', f'--workdir={tmp_path}')
  assert 'is no workdir' in fails(capsys, 'evaluate', f'--workdir={tmp_path}')
  assert 'is no workdir' in fails(capsys, 'info', f'--workdir={tmp_path}')
  assert 'is no workdir' in fails(capsys, 'train', f'--workdir={tmp_path}')
  told = fails(capsys, 'predict', f'--workdir={trained}', f'--images={empty}', output)
  assert 'holds no image' in told
  assert not (tmp_path / 'out').exists()
  assert 'has no split' in fails(capsys, 'evaluate', f'--workdir={trained}', '--split=tset')
  told = fails(capsys, 'evaluate', f'--workdir={trained}', '--checkpoint=3')
  assert 'no checkpoint of step 3: it has 2, 4' in told
  told = fails(capsys, 'data', 'prepare', 'camvid', f'--source={empty}', f'--data_dir={empty}')
  assert str(empty) in told
  told = fails(capsys, 'data', 'prepare', 'isbi2012', f'--data_dir={tmp_path / "d"}')
  assert 'source' in told


def test_undecodable_image(trained, tmp_path, capsys):
  (tmp_path / 'broken.png').write_bytes(b'not a png')
  told = fails(
    capsys, 'predict', f'--workdir={trained}', f'--images={tmp_path}', f'--output={tmp_path}/o'
  )
  assert 'broken.png' in told


def test_workdir_of_another_config(trained, config, capsys):
  before = (trained / 'config.json').read_text()
  told = fails(
    capsys,
    'train',
    config,
    f'--workdir={trained}',
    *SMALL,
    '--config.optim.learning_rate=0.5',
  )
  assert 'optim.learning_rate was 0.003 and is 0.5' in told
  assert (trained / 'config.json').read_text() == before


def test_debug_shows_the_traceback(tmp_path):
  with pytest.raises(SegjaxError):
    run('info', f'--workdir={tmp_path}', '--debug')


def test_nonfinite_loss_stops_and_names_the_examples(tmp_path, config, capsys):
  told = []
  for args in ([], ['--config.train.nonfinite=skip', '--config.train.max_skipped=2']):
    workdir = tmp_path / f'run{len(args)}'
    capsys.readouterr()
    status = train(
      workdir,
      config,
      '--config.optim.learning_rate=1e30',
      '--config.model.norm=none',
      '--config.optim.name=sgd',
      '--config.optim.warmup_steps=0',
      *args,
      steps=9,
    )
    assert status == 2
    told.append(capsys.readouterr().err.strip().splitlines()[-1])
  assert 'not finite' in told[0]
  assert 'last finite metrics: step=1' in told[0]
  assert len(re.findall(r'scene_train_\d{6}', told[0])) == 4
  assert '(3 updates left out)' in told[1]


def test_help_has_examples(capsys):
  for args, wanted in (
    (['--help'], 'segjax train --config='),
    (['train', '--help'], '--config.KEY=VALUE'),
    (['evaluate', '--help'], 'segjax evaluate'),
    (['predict', '--help'], 'segjax predict'),
    (['data', '--help'], 'segjax data prepare'),
    (['info', '--help'], 'segjax info'),
    (['table', '--help'], 'segjax table segnet_table1'),
    (['convert', '--help'], 'segjax convert --source=torchvision/vgg16'),
  ):
    with pytest.raises(SystemExit) as e:
      run(*args)
    assert e.value.code == 0
    assert wanted in capsys.readouterr().out


def wait_for_step(process, step):
  for line in process.stderr:
    if re.match(rf'step {step}/', line):
      return
  raise AssertionError(f'ended before step {step}')


LONG = [
  *SMALL,
  '--config.train.steps=60',
  '--config.train.checkpoint_every=5',
  '--config.train.eval_every=20',
  '--config.model.dropout=0.3',
  '--config.optim.ema=0.9',
  '--config.data.augment.elastic_sigma=2',
]


@pytest.mark.slow
def test_killed_at_any_moment_ends_with_the_same_parameters(tmp_path, config, folders, capsys):
  """Three SIGKILLs, a SIGTERM, then to the end: bit for bit what an undisturbed run gives."""
  undisturbed, killed = ['train', config, *LONG], tmp_path / 'killed'
  process = spawn([*undisturbed, f'--workdir={tmp_path / "whole"}'], folders)
  assert process.communicate()[1] and process.returncode == 0
  rng = np.random.default_rng(0)
  for start in (7, 19, 31):
    process = spawn([*undisturbed, f'--workdir={killed}'], folders)
    wait_for_step(process, start + 1)
    time.sleep(float(rng.uniform(0, 0.2)))
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL
  process = spawn([*undisturbed, f'--workdir={killed}'], folders)
  wait_for_step(process, 45)
  process.terminate()
  assert 'SIGTERM after step' in process.communicate()[1]
  assert process.returncode == 128 + signal.SIGTERM
  assert info(killed, capsys)['step'] >= 45
  process = spawn([*undisturbed, f'--workdir={killed}'], folders)
  assert 'going on at step' in process.communicate()[1]
  whole, resumed = info(tmp_path / 'whole', capsys), info(killed, capsys)
  assert resumed['step'] == whole['step'] == 60
  assert resumed['parameters_sha256'] == whole['parameters_sha256']
  losses = []
  for workdir in (tmp_path / 'whole', killed):
    records = [json.loads(line) for line in (workdir / 'metrics.jsonl').read_text().splitlines()]
    losses.append([(r['step'], r['split'], r['loss']) for r in records])
  assert losses[0] == losses[1], 'the log has every step once'


@pytest.mark.slow
def test_two_processes_train_as_one(tmp_path, config, folders, capsys):
  """Two hosts of two devices each give the parameters of one host with four."""
  args = ['train', config, *SMALL, '--config.train.steps=4', '--config.train.eval_every=2']
  run_as_two([*args, f'--workdir={tmp_path / "two"}'], folders)
  process = spawn([*args, f'--workdir={tmp_path / "one"}'], folders)
  assert process.communicate()[1] and process.returncode == 0
  finals = []
  for name in ('one', 'two'):
    records = [
      json.loads(line) for line in (tmp_path / name / 'metrics.jsonl').read_text().splitlines()
    ]
    finals.append([(r['loss'], r.get('mean_iou')) for r in records])
  np.testing.assert_allclose(
    np.array(finals[0], float), np.array(finals[1], float), rtol=1e-3, equal_nan=True
  )
