"""A trained run on images: large ones by blocks, as the image as a whole; files that fail."""

import types

import jax
import networks
import numpy as np
import pytest
from PIL import Image

from segjax import infer
from segjax.data.config import DataConfig, InputConfig, SizeConfig
from segjax.data.frames import Frame, Source, find_source
from segjax.models.segnet import SegNetBasic
from segjax.models.unet import UNet
from segjax.tasks import semantic

CLASSES = 3


def load(model, size=None, **config):
  """A run of a semantic network with random variables."""
  config = semantic.EvalConfig(**config)
  data = DataConfig(name='x', size=size or SizeConfig(), mean=(120.0,), std=(60.0,))
  task = semantic.make_task(model, config, class_names=['a'] * CLASSES, losses={})
  side = 64 + 2 * getattr(model, 'margin', 0)
  shapes, _ = networks.abstract(model, (1, side, side, 3))
  experiment = types.SimpleNamespace(data=data, eval=config, input=InputConfig(data))
  spec = types.SimpleNamespace(channels=3)
  run = types.SimpleNamespace(experiment=experiment, task=task, spec=spec, model=model)
  return types.SimpleNamespace(run=run, variables=networks.filled(shapes))


def image(height, width):
  return np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)


def predict(loaded, pixels, rate=None):
  apply = infer._make_apply(loaded, ('probability', 'uncertainty'))
  return infer._predict(loaded, Frame(Source('a.png', 'image'), 'a', pixels, rate), apply)


def balance(loaded, pixels):
  """Shifts the classes' scores so that each is the highest somewhere."""
  scores = np.log(predict(loaded, pixels).values['probability'])
  head = loaded.variables['params']['head']
  head['bias'] = head['bias'] - scores.mean((0, 1))


@pytest.fixture
def small_blocks(monkeypatch):
  monkeypatch.setattr(infer, '_WHOLE_PIXELS', 0)
  monkeypatch.setattr(infer, '_BLOCK', 48)


UNPADDED = UNet(classes=CLASSES, width=2, depth=2)
PADDED = UNet(classes=CLASSES, width=2, depth=2, padding='same')


@pytest.mark.parametrize(
  ('model', 'config', 'size'),
  [
    (UNPADDED, {'tile': (20, 24)}, (101, 77)),
    (UNPADDED, {}, (96, 128)),  # the margin covers what a pixel depends on
    (UNPADDED, {'tile': (32, 32), 'test_time_augmentation': 'flip'}, (101, 77)),
    (PADDED, {'tile': (16, 16)}, (101, 77)),
    (PADDED, {'tile': (16, 16), 'overlap': 32}, (96, 128)),  # as the unpadded network's margin
  ],
)
def test_blocks_give_the_label_of_the_whole_image(model, config, size, monkeypatch, capsys):
  loaded, pixels = load(model, **config), image(*size)
  balance(loaded, pixels)
  whole = predict(loaded, pixels).label
  assert np.bincount(whole.ravel()).min() > 0.05 * whole.size
  monkeypatch.setattr(infer, '_WHOLE_PIXELS', 0)
  monkeypatch.setattr(infer, '_BLOCK', 48)
  found = predict(loaded, pixels)
  assert 'a.png: ' in capsys.readouterr().err
  assert (found.label.shape, found.label.dtype) == (size, np.uint16)
  # A tie aside, which rounding may decide otherwise in a program of another shape.
  assert np.mean(found.label != whole) < 1e-3
  assert found.uncertainty is None


def test_blocks_of_a_network_that_samples(small_blocks):
  model = SegNetBasic(classes=CLASSES, width=2, dropout=0.5)
  found = predict(load(model, samples=2, tile=(32, 32)), image(64, 96))
  assert (found.uncertainty.shape, found.uncertainty.dtype) == ((64, 96), np.float32)
  assert found.uncertainty.max() > 0


@pytest.mark.parametrize(
  'size',
  [SizeConfig(image_size=(64, 64)), SizeConfig(short_side=(64,), longest_side=200)],
)
def test_an_image_that_is_resized_needs_no_blocks(size, small_blocks):
  found = predict(load(PADDED, size), image(64, 64))
  assert 'probability' in found.values
  assert found.label.shape == (64, 64)


@pytest.mark.parametrize(
  ('model', 'config', 'block', 'context'),
  [
    (PADDED, {'tile': (256, 512)}, (1024, 1024), 0),
    (PADDED, {'tile': (600, 2000), 'overlap': 50}, (1200, 2000), 52),
    (PADDED, {}, (1024, 1024), 128),
    (UNPADDED, {'tile': (256, 256)}, (1040, 1040), 32),
  ],
)
def test_blocks_are_whole_tiles(model, config, block, context):
  """And the context is a multiple of the stride, as tiles are."""
  stride = model.stride
  found = infer._block_size(model, semantic.EvalConfig(**config), (5000, 9000))
  assert all(side % stride == 0 for side in (*found[0], found[1]))
  if model is PADDED:
    assert found == (block, context)
  assert found[1] >= model.margin


def test_a_narrow_image_has_narrow_blocks():
  config = semantic.EvalConfig(tile=(64, 64))
  assert infer._block_size(PADDED, config, (100, 9000)) == ((128, 1024), 0)


def write(path, pixels):
  Image.fromarray(pixels).save(path)
  return find_source(path)


def test_files_that_fail_are_told_and_the_others_done(tmp_path):
  (tmp_path / 'b.png').write_bytes(b'no image')
  sources = [
    write(tmp_path / 'a.png', image(16, 24)),
    find_source(tmp_path / 'b.png'),
    find_source(tmp_path / 'missing.png'),
    write(tmp_path / 'c.png', image(16, 32)),
  ]
  failed = {}
  found = list(infer.predict_files(load(PADDED), sources, ('probability',), failed))
  assert [f.frame.name for f in found] == ['a', 'c']
  assert [f.label.shape for f in found] == [(16, 24), (16, 32)]
  assert {path.name: text.split(str(path))[1][:17] for path, text in failed.items()} == {
    'b.png': ' cannot be decode',
    'missing.png': ' cannot be read (',
  }


def test_an_image_that_does_not_fit_into_memory_is_told(tmp_path, monkeypatch):
  def fail(loaded, frame, apply):
    raise jax.errors.JaxRuntimeError('RESOURCE_EXHAUSTED: Out of memory allocating 9 bytes')

  monkeypatch.setattr(infer, '_predict', fail)
  failed = {}
  sources = [write(tmp_path / 'a.png', image(16, 24))]
  assert not list(infer.predict_files(load(PADDED), sources, ('probability',), failed))
  assert 'a.png of 24x16 pixels does not fit into memory: ' in failed[tmp_path / 'a.png']
  fail.__code__ = (lambda loaded, frame, apply: 1 / 0).__code__
  with pytest.raises(ZeroDivisionError):
    list(infer.predict_files(load(PADDED), sources, ('probability',), failed))
