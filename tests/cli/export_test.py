"""`segjax export`: each task in each format, against the run itself; what it refuses."""

import importlib.util
import json
import shutil
import subprocess
import sys
from pathlib import Path

import commands
import cv2
import numpy as np
import pytest
from commands import fails, run
from same_results import check_same

import segjax
from segjax import export
from segjax.export import manifest
from segjax.types import SegjaxError

pytestmark = [
  pytest.mark.skipif(
    importlib.util.find_spec(name) is None,
    reason=f"{name} is not installed: pip install 'segjax[export]' onnxruntime",
  )
  for name in ('flatbuffers', 'onnx', 'onnxruntime')
]

NIGHTLY = [pytest.mark.slow, pytest.mark.nightly]

# Of other sizes than those of the training, and of its size.
SIZES = [(50, 61), (64, 64), (33, 40)]


def photograph(size, seed=0):
  """u8[H, W, 3] with edges and gradients."""
  small = np.random.default_rng(seed).integers(0, 256, (7, 9, 3), np.uint8)
  return cv2.resize(small, size[::-1], interpolation=cv2.INTER_CUBIC)


def export_command(workdir, output, kind, *args):
  return ['export', f'--workdir={workdir}', f'--output={output}', f'--format={kind}', *args]


@pytest.fixture(scope='session')
def exported(tmp_path_factory, request):
  """`(task, format) -> (workdir, directory of the export)`, for images of any size; read-only."""
  known = {}

  def get(task, kind):
    workdir = request.getfixturevalue(f'{task}_run')
    if (task, kind) not in known:
      output = tmp_path_factory.mktemp('export') / f'{task}_{kind}'
      options = ['--probability'] * (task == 'semantic')
      assert run(*export_command(workdir, output, kind, *options)) == 0
      known[task, kind] = output
    return workdir, known[task, kind]

  return get


@pytest.mark.filterwarnings('ignore:.*unlike the training images')
@pytest.mark.parametrize(
  ('task', 'kind'),
  [
    ('semantic', 'stablehlo'),
    ('semantic', 'onnx'),
    ('instance', 'onnx'),
    ('panoptic', 'onnx'),
    # XLA compiles them again for each size.
    pytest.param('instance', 'stablehlo', marks=NIGHTLY),
    pytest.param('panoptic', 'stablehlo', marks=NIGHTLY),
  ],
)
def test_an_export_predicts_as_the_run(exported, task, kind):
  workdir, directory = exported(task, kind)
  predictor, other = segjax.load(workdir), segjax.load(directory)
  assert (other.task, other.class_names) == (predictor.task, predictor.class_names)
  assert other.step == predictor.step and np.array_equal(other.palette, predictor.palette)
  options = {'probability': True} if task == 'semantic' else {}
  images = [photograph(size) for size in (SIZES if kind == 'onnx' else SIZES[:2])]
  for expected, found in zip(predictor(images, **options), other(images, **options), strict=True):
    assert np.array_equal(found.image, expected.image) and found.name == expected.name
    check_same(found, expected)
    assert task != 'instance' or expected.masks.any(), 'else there is nothing to compare'


def test_an_image_that_is_larger_than_its_shape_is_refused(exported):
  """And not cut, by no way to run it."""
  import onnxruntime

  _, directory = exported('instance', 'onnx')
  content = json.loads((directory / 'manifest.json').read_text())
  assert [p['largest'] for p in content['programs']] == [[64, 64]]
  with pytest.raises(SegjaxError, match=r'images of any size, up to 64x64\): .* --size=65x64'):
    segjax.load(directory)(photograph((65, 64)))
  session = onnxruntime.InferenceSession(directory / 'program0.onnx')
  session.run(None, {'image': photograph((64, 64))[None]})
  for size in ((65, 64), (64, 65), (65, 65)):
    with pytest.raises(Exception, match='shape'):
      session.run(None, {'image': photograph(size)[None]})


@pytest.fixture(scope='module', params=['c4', 'merged'])
def variant(request, tmp_path_factory, semantic_run, instance_run):
  """The workdir of a Mask R-CNN on one feature map, or of two networks that are merged."""
  workdir = tmp_path_factory.mktemp('runs') / request.param
  if request.param == 'merged':
    parts = {'semantic': semantic_run, 'instance': instance_run}
    keys = ['data.name=scenes/tiny', 'data.eval_split=val[:4]', 'batch.eval_size=4']
    keys += ['train.steps=0', 'init_from.checkpoint=latest']
    keys += [f'model.{part}={path}' for part, path in parts.items()]
    command = ['train', commands.CONFIGS['merged'], f'--workdir={workdir}']
    assert run(*command, '--config.train.images=0', *(f'--config.{key}' for key in keys)) == 0
  else:
    maps = f'--config.model.feature_maps={request.param}'
    assert commands.train(workdir, maps, '--config.train.images=0', task='instance', steps=1) == 0
  return workdir


@pytest.mark.slow
@pytest.mark.nightly
@pytest.mark.filterwarnings('ignore:.*unlike the training images')
def test_variants_are_exported(variant, tmp_path):
  assert run(*export_command(variant, tmp_path / 'out', 'onnx')) == 0
  predictor, other = segjax.load(variant), segjax.load(tmp_path / 'out')
  for size in SIZES[:2]:
    check_same(other(photograph(size)), predictor(photograph(size)))


@pytest.mark.parametrize('kind', ['stablehlo', 'onnx'])
def test_a_batch_is_as_its_images(exported, kind):
  other = export.load_exported(exported('instance', kind)[1])
  images = np.stack([photograph((50, 61), seed) for seed in range(3)])
  together = other.run(images)
  assert together['boxes'].shape == (3, 5, 4) and together['masks'].shape == (3, 5, 28, 28)
  for i, image in enumerate(images):
    for key, value in other.run(image[None]).items():
      np.testing.assert_allclose(together[key][i], value[0], atol=1e-4)


@pytest.mark.filterwarnings('ignore:.*unlike the training images')
def test_sizes_and_a_batch_that_are_given(semantic_run, tmp_path):
  output = tmp_path / 'out'
  sizes = ['--size=40x50', '--size=30x70', '--batch=2']
  assert run(*export_command(semantic_run, output, 'stablehlo', *sizes)) == 0
  content = json.loads((output / 'manifest.json').read_text())
  assert [p['size'] for p in content['programs']] == [[40, 50], [30, 70]]
  other, predictor = segjax.load(output), segjax.load(semantic_run)
  for size in [(40, 50), (30, 70)]:
    image = photograph(size)
    expected = predictor(image).label
    assert len(np.unique(expected)) > 1
    assert (other(image).label == expected).mean() >= 0.999
  with pytest.raises(SegjaxError, match=r'40x51 .*export the run again with --size=40x51'):
    other(photograph((40, 51)))
  with pytest.raises(SegjaxError, match='takes 2 images at a time, not 3'):
    other.run(np.zeros((3, 40, 50, 3), np.uint8))
  with pytest.raises(SegjaxError, match='no probabilities: .* --probability'):
    other(photograph((40, 50)), probability=True)


def test_the_manifest_says_what_a_program_takes_and_gives(exported):
  workdir, directory = exported('instance', 'onnx')
  content = json.loads((directory / 'manifest.json').read_text())
  assert (content['task'], content['format'], content['segjax']) == (
    'instance',
    'onnx',
    segjax.__version__,
  )
  assert content['input']['dtype'] == 'uint8' and content['input']['channels'] == 3
  assert set(content['outputs']) == {'boxes', 'classes', 'masks', 'scores', 'valid'}
  assert [c['name'] for c in content['classes']] == list(segjax.load(workdir).class_names)
  files = {path.name for path in directory.iterdir()} - {'manifest.json'}
  assert files == set(content['sha256']) == {'program0.onnx', 'paste_masks.py'}


def predict_command(workdir, images, output, *args):
  return ['predict', f'--workdir={workdir}', f'--images={images}', f'--output={output}', *args]


@pytest.mark.parametrize('task', ['semantic', 'instance'])
def test_the_command_predicts_with_an_export(exported, tmp_path, task):
  images = tmp_path / 'in'
  images.mkdir()
  for n, size in enumerate(SIZES):
    cv2.imwrite(str(images / f'{n}.png'), photograph(size, n))
  (images / 'broken.png').write_bytes(b'no image')
  for name, workdir in zip(('run', 'export'), exported(task, 'onnx'), strict=True):
    assert run(*predict_command(workdir, images, tmp_path / name)) == 2, 'one is left out'
  names = {path.name for path in (tmp_path / 'run').iterdir()}
  assert names == {path.name for path in (tmp_path / 'export').iterdir()} and len(names) > 5
  for n in range(len(SIZES)):
    overlays = [cv2.imread(str(tmp_path / name / f'{n}_overlay.png')) for name in ('run', 'export')]
    assert (overlays[0] == overlays[1]).mean() >= 0.999
  if task == 'instance':
    found = [
      json.loads((tmp_path / d / 'results_bbox.json').read_text()) for d in ('run', 'export')
    ]
    for a, b in zip(*found, strict=True):
      assert (a['image_id'], a['category_id']) == (b['image_id'], b['category_id'])
      np.testing.assert_allclose(a['bbox'], b['bbox'], atol=1e-2)


def test_what_the_command_cannot_do_with_an_export(exported, tmp_path, capsys):
  _, directory = exported('instance', 'onnx')
  cv2.imwrite(str(tmp_path / 'a.png'), photograph((50, 61)))
  command = predict_command(directory, tmp_path / 'a.png', tmp_path / 'out')
  sentence = fails(capsys, *command, '--config.eval.draw_threshold=0.3')
  assert 'is an export, whose config is fixed: leave out config.eval.draw_threshold' in sentence
  sentence = fails(capsys, *command, '--checkpoint=best')
  assert 'is an export, which has one checkpoint: leave out checkpoint=best' in sentence
  assert 'does not predict it' in fails(capsys, *command, '--save=label')
  with pytest.raises(SegjaxError, match='leave out checkpoint=best'):
    segjax.load(directory, checkpoint='best')
  assert not (tmp_path / 'out').exists()


# What a program of a user's own needs: NumPy, onnxruntime and the files of the export.
_WITHOUT_JAX = """
import sys
sys.modules.update(dict.fromkeys(('jax', 'flax', 'segjax', 'tensorflow')))
directory, image, output = sys.argv[1:]
sys.path.insert(0, directory)
import numpy as np, onnxruntime, paste_masks
session = onnxruntime.InferenceSession(f'{directory}/program0.onnx')
image = np.load(image)
names = [o.name for o in session.get_outputs()]
found = {k: v[0] for k, v in zip(names, session.run(names, {'image': image[None]}))}
valid = found['valid']
masks = paste_masks.paste_masks(found['masks'][valid], found['boxes'][valid], image.shape[:2])
np.savez(output, masks=masks, scores=found['scores'][valid])
"""


@pytest.mark.filterwarnings('ignore:.*unlike the training images')
def test_an_onnx_file_needs_no_jax(exported, tmp_path):
  workdir, directory = exported('instance', 'onnx')
  image, output = tmp_path / 'image.npy', tmp_path / 'out.npz'
  np.save(image, photograph((50, 61)))
  command = [sys.executable, '-c', _WITHOUT_JAX, str(directory), str(image), str(output)]
  subprocess.run(command, check=True, env={'PYTHONDONTWRITEBYTECODE': '1'}, timeout=120)
  expected, found = segjax.load(workdir)(photograph((50, 61))), np.load(output)
  np.testing.assert_allclose(found['scores'], expected.scores, atol=1e-4)
  assert (found['masks'] == expected.masks).mean() >= 0.999


# --- what is refused ------------------------------------------------------------------------------


def test_what_cannot_be_exported_is_one_sentence(semantic_run, instance_run, tmp_path, capsys):
  output = tmp_path / 'out'
  error = lambda *args: fails(capsys, *args)
  wrong = error(*export_command(semantic_run, output, 'onxx'))
  assert '--format=onxx is unknown: did you mean onnx?' in wrong
  assert 'no config.json' in error(*export_command(tmp_path, output, 'onnx'))
  untrained = tmp_path / 'untrained'
  untrained.mkdir()
  for name in ('config.json', 'dataset.json'):
    shutil.copy(semantic_run / name, untrained)
  assert 'has no checkpoint yet' in error(*export_command(untrained, output, 'onnx'))
  needs = error(*export_command(instance_run, output, 'onnx', '--config.data.size.shapes=none'))
  assert 'give --size=HEIGHTxWIDTH' in needs
  wrong = error(*export_command(instance_run, output, 'onnx', '--probability'))
  assert '--probability: a network of the task instance has none' in wrong
  if importlib.util.find_spec('tensorflow') is None:
    wrong = error(*export_command(semantic_run, output, 'savedmodel'))
    assert "tensorflow, which is not installed: run pip install 'tensorflow'" in wrong
  assert not output.exists() and {p.name for p in tmp_path.iterdir()} == {'untrained'}
  output.mkdir()
  assert 'exists: choose another' in error(*export_command(semantic_run, output, 'onnx'))


def test_a_network_that_needs_known_sizes_says_so(semantic_run, tmp_path, capsys):
  tiles = ['--config.eval.tile=(16,16)', '--config.data.size.image_size=none']
  command = export_command(semantic_run, tmp_path / 'out', 'stablehlo', *tiles)
  assert fails(capsys, *command).endswith('give --size=HEIGHTxWIDTH and --batch=N')
  assert not list(tmp_path.iterdir())
  assert run(*command, '--size=40x40', '--batch=1') == 0


def copied(directory, tmp_path) -> Path:
  return Path(shutil.copytree(directory, tmp_path / 'copy'))


def damage(path):
  content = bytearray(path.read_bytes())
  content[len(content) // 2] ^= 1
  path.write_bytes(content)


def edit(path, **keys):
  path.write_text(json.dumps(json.loads(path.read_text()) | keys))


@pytest.mark.parametrize(
  ('change', 'sentence'),
  [
    (lambda d: damage(d / 'program0.onnx'), 'program0.onnx is corrupt .*export the run again'),
    (lambda d: (d / 'program0.onnx').unlink(), 'program0.onnx is missing'),
    (lambda d: (d / 'manifest.json').write_text('{'), 'manifest.json is corrupt'),
    (lambda d: edit(d / 'manifest.json', manifest_version=99), 'written by a newer version'),
    (lambda d: edit(d / 'manifest.json', format='tflite'), 'unknown format tflite'),
  ],
)
def test_a_damaged_export_is_not_run(exported, tmp_path, change, sentence):
  directory = copied(exported('semantic', 'onnx')[1], tmp_path)
  change(directory)
  with pytest.raises(SegjaxError, match=sentence):
    segjax.load(directory)


def test_a_directory_without_a_manifest(tmp_path):
  with pytest.raises(SegjaxError, match='is not an export'):
    export.load_exported(tmp_path)


def test_a_format_whose_library_is_missing(semantic_run, tmp_path, monkeypatch, capsys):
  monkeypatch.setitem(sys.modules, 'onnx', None)
  sentence = fails(capsys, *export_command(semantic_run, tmp_path / 'out', 'onnx'))
  assert "needs onnx, which is not installed: run pip install 'segjax[export]'" in sentence


def test_digests_are_of_the_bytes(tmp_path):
  path = tmp_path / 'a'
  path.write_bytes(b'abc')
  assert manifest.sha256(path).startswith('ba7816bf') and len(manifest.sha256(path)) == 64
