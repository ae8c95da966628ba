"""The Python API on trained runs: `segjax.load`, `segjax.train`, `segjax.evaluate`."""

import concurrent.futures
import json
import shutil
import subprocess
import sys

import commands
import ml_collections
import numpy as np
import pytest

import segjax
from segjax import api
from segjax import config as config_lib
from segjax.types import SegjaxError


def images(count, height=64, width=64):
  return np.random.default_rng(0).integers(0, 256, (count, height, width, 3), np.uint8)


def test_the_package_imports_neither_jax_nor_numpy():
  code = 'import segjax, sys; dir(segjax); assert not {"jax", "numpy"} & sys.modules.keys()'
  subprocess.run([sys.executable, '-c', code], check=True)


def test_its_names_are_functions_whatever_was_imported_before():
  assert set(segjax.__all__) <= set(dir(segjax))
  for name in ('load', 'train', 'evaluate', 'Predictor', 'Result'):
    assert callable(getattr(segjax, name)), name
  with pytest.raises(AttributeError, match="no attribute 'lod'"):
    segjax.lod  # noqa: B018 -- the lookup is what fails


@pytest.mark.parametrize('task', ['semantic', 'instance', 'panoptic'])
def test_a_run_predicts_arrays(task, request):
  predictor = segjax.load(request.getfixturevalue(f'{task}_run'))
  assert (predictor.task, len(predictor.class_names)) == (task, 5 if task == 'instance' else 9)
  pixels = images(3)
  one, several = predictor(pixels[0]), predictor(pixels, batch_size=2)
  assert len(several) == 3 and isinstance(one, segjax.Result)
  for result, image in zip([one, *several], [pixels[0], *pixels], strict=True):
    np.testing.assert_array_equal(result.image, image)
    check_fields(task, result)
    assert result.draw().dtype == np.uint8
  alone = [predictor(image) for image in pixels]
  for field in ('label', 'boxes', 'scores', 'segments'):
    for a, b in zip(several, alone, strict=True):
      if getattr(a, field) is not None:
        np.testing.assert_allclose(getattr(a, field), getattr(b, field), atol=1e-3)


def check_fields(task, result):
  """Those of other tasks are None."""
  has = lambda *names: all(getattr(result, name) is not None for name in names)
  lacks = lambda *names: all(getattr(result, name) is None for name in names)
  dense, objects, parts = ('label',), ('boxes', 'classes', 'scores', 'masks'), ('segments',)
  if task == 'semantic':
    assert has(*dense) and lacks(*objects, *parts)
    assert (result.label.shape, result.label.dtype) == (result.size, np.uint8)
  elif task == 'instance':
    assert has(*objects) and lacks(*dense, *parts)
    count = len(result.scores)
    assert result.boxes.shape == (count, 4) and result.masks.shape == (count, *result.size)
    assert (np.diff(result.scores) <= 0).all() and result.masks.dtype == bool
    types = [result.boxes.dtype, result.classes.dtype, result.scores.dtype]
    assert types == [np.float32, np.int32, np.float32]
    assert (result.boxes >= 0).all() and (result.boxes <= max(result.size)).all()
  else:
    assert has(*parts) and lacks(*dense, *objects)
    assert (result.segments.shape, result.segments.dtype) == (result.size, np.int32)
    ids, counts = np.unique(result.segments[result.segments > 0], return_counts=True)
    areas = {info['id']: info['area'] for info in result.segments_info}
    assert areas == dict(zip(ids.tolist(), counts.tolist(), strict=True))
    assert all(('score' in info) == info['isthing'] for info in result.segments_info)
    names = {info['name'] for info in result.segments_info}
    assert names <= set(result.class_names)


def test_threads_share_a_predictor(semantic_run):
  predictor, pixels = segjax.load(semantic_run), images(8)
  expected = [result.label for result in predictor(pixels)]
  with concurrent.futures.ThreadPoolExecutor(4) as pool:
    found = [result.label for result in pool.map(predictor, pixels)]
  np.testing.assert_array_equal(found, expected)


def test_overrides_are_flat_or_nested_or_the_pairs_of_a_command(semantic_run):
  pixels = images(1)[0]
  without, nested, flat, pairs = (
    segjax.load(semantic_run, overrides=overrides)(pixels, probability=True).probability
    for overrides in (
      {},
      {'eval': {'test_time_augmentation': 'flip'}},
      {'eval.test_time_augmentation': 'flip'},
      [('eval.test_time_augmentation', 'flip')],
    )
  )
  np.testing.assert_array_equal(nested, flat)
  np.testing.assert_array_equal(nested, pairs)
  assert np.abs(nested - without).max() > 1e-4
  with pytest.raises(SegjaxError, match='config.model.width belongs to the training'):
    segjax.load(semantic_run, overrides={'model.width': 3})


def test_overrides_that_are_not_of_a_config_file_become_it(tmp_path):
  pairs = api._pairs({'data': {'dir': tmp_path, 'mean': (np.float32(0.5),)}, 'optim.ema': None})
  assert config_lib.override({}, pairs) == {
    'data': {'dir': str(tmp_path), 'mean': (0.5,)},
    'optim': {'ema': None},
  }


def test_evaluate_is_what_the_command_prints(semantic_run, capsys):
  printed = commands.output(capsys, 'evaluate', f'--workdir={semantic_run}', '--split=val[:5]')
  found = segjax.evaluate(semantic_run, 'val[:5]')
  assert found['mean_iou'] == printed['mean_iou']
  assert found['per_class'].keys() == printed['per_class'].keys()
  with pytest.raises(SegjaxError, match='nowhere'):
    segjax.evaluate(semantic_run, 'nowhere')


def small(**more):
  """The small semantic config, and keys by group as keyword arguments."""
  pairs = [word.removeprefix('--config.').split('=', 1) for word in commands.SMALL['semantic']]
  path = commands.CONFIGS['semantic'].removeprefix('--config=')
  return config_lib.override(config_lib.read_file(path), pairs)


@pytest.mark.parametrize('kind', ['path', pytest.param('dict', marks=pytest.mark.slow)])
def test_train_from_a_path_or_a_config_and_resume(kind, tmp_path):
  workdir = tmp_path / 'run'
  if kind == 'path':
    path = tmp_path / 'mine.py'
    path.write_text(
      f'import ml_collections\n\n\ndef get_config():\n'
      f'  return ml_collections.ConfigDict({small()!r})\n'
    )
    config = path
  else:
    config = ml_collections.ConfigDict(small())
  done = segjax.train(config, workdir, train={'steps': 2})
  assert (done.step, done.workdir, done.report.is_file()) == (2, workdir, True)
  assert 0 <= done.metrics['mean_iou'] <= 1
  assert done.load()(images(1)[0]).label.shape == (64, 64)
  assert segjax.train(None, workdir, **{'train.steps': 2}).step == 2, 'it is done'
  with pytest.raises(SegjaxError, match='created with a different config'):
    segjax.train(config, workdir, train={'steps': 3})
  with pytest.raises(SegjaxError, match='step'):
    segjax.train(config, tmp_path / 'other', train={'stepz': 3})


def test_what_cannot_be_loaded(semantic_run, tmp_path):
  with pytest.raises(SegjaxError, match=r'is neither the workdir of a run .* nor an export'):
    segjax.load(tmp_path)
  with pytest.raises(SegjaxError, match='is neither'):
    segjax.load(tmp_path / 'missing')
  with pytest.raises(SegjaxError, match='has no checkpoint of step 77: it has'):
    segjax.load(semantic_run, checkpoint=77)
  with pytest.raises(SegjaxError, match='has no checkpoint of step bets'):
    segjax.load(semantic_run, checkpoint='bets')


def test_a_run_without_a_checkpoint(semantic_run, tmp_path):
  for name in ('config.json', 'dataset.json'):
    shutil.copy(semantic_run / name, tmp_path)
  with pytest.raises(SegjaxError, match='has no checkpoint yet'):
    segjax.load(tmp_path)


def test_a_run_of_a_newer_version(semantic_run, tmp_path, capsys):
  workdir = tmp_path / 'run'
  shutil.copytree(semantic_run, workdir)
  with (workdir / 'starts.jsonl').open('a') as file:
    file.write(json.dumps({'step': 4, 'versions': 'segjax 12.1.0, jax 0.10'}) + '\n')
  sentence = 'was trained by segjax 12.1, newer than this 0.1.0: upgrade segjax'
  with pytest.raises(SegjaxError, match=sentence):
    segjax.load(workdir)
  assert sentence in commands.fails(capsys, 'evaluate', f'--workdir={workdir}')


def test_a_run_of_an_earlier_version_does_not_know_its_training_images(semantic_run, tmp_path):
  workdir = tmp_path / 'run'
  shutil.copytree(semantic_run, workdir)
  content = json.loads((workdir / 'dataset.json').read_text())
  ranges = content.pop('images')
  assert ranges['side'] == [64, 64] and ranges['resized'] and len(ranges['mean']) == 3
  (workdir / 'dataset.json').write_text(json.dumps(content))
  black = np.zeros((64, 64, 3), np.uint8)
  assert segjax.load(workdir)(black).unlike_training == ''
  with pytest.warns(UserWarning, match='the mean of channel 1 is 0'):
    segjax.load(semantic_run)(black)
