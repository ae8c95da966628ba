"""A trained run on images: in batches, and large ones by blocks as the image as a whole."""

import concurrent.futures
import threading
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image
from random_run import CLASSES, load

from segjax import infer
from segjax.data.config import SizeConfig
from segjax.data.frames import Frame, Source, find_source
from segjax.data.windows import Windows
from segjax.models.segnet import SegNetBasic
from segjax.models.unet import UNet
from segjax.tasks import semantic
from segjax.types import SegjaxError


def image(height, width, seed=0):
  return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


def job(name, pixels, rate=None):
  source = Source(Path(f'{name}.png'), 'image')
  return infer.Job(source, lambda: Frame(source, name, pixels, rate))


def predict(loaded, *images, network=None, **options):
  """The result of each image."""
  jobs = [job(f'a{n}', pixels) for n, pixels in enumerate(images)]
  found = list(infer.stream(network or infer.Network(loaded), jobs, **options))
  assert [frame.name for frame, _ in found] == [f'a{n}' for n in range(len(images))]
  return [result for _, result in found]


def balance(loaded, pixels):
  """Shifts the classes' scores so that each is the highest somewhere."""
  (found,) = predict(loaded, pixels, probability=True)
  head = loaded.variables['params']['head']
  head['bias'] = head['bias'] - np.log(found.probability).mean((0, 1))


@pytest.fixture
def small_blocks(monkeypatch):
  monkeypatch.setattr(infer, '_WHOLE_PIXELS', 0)
  monkeypatch.setattr(infer, '_BLOCK', 48)


UNPADDED = UNet(classes=CLASSES, width=2, depth=2)
PADDED = UNet(classes=CLASSES, width=2, depth=2, padding='same')


# --- batches --------------------------------------------------------------------------------------


@pytest.mark.parametrize('size', [None, SizeConfig(image_size=(32, 48))])
def test_a_batch_gives_what_each_image_gives_alone(size):
  loaded = load(PADDED, size)
  images = [image(40, 56, seed) for seed in range(5)] + [image(64, 32), image(40, 56, 9)]
  balance(loaded, images[0])
  alone = predict(loaded, *images, batch_size=1, probability=True)
  network = infer.Network(loaded)
  together = predict(loaded, *images, network=network, batch_size=3, probability=True)
  for one, other, pixels in zip(alone, together, images, strict=True):
    assert one.label.shape == other.label.shape == pixels.shape[:2]
    assert other.probability.shape == (*pixels.shape[:2], CLASSES)
    np.testing.assert_allclose(one.probability, other.probability, atol=1e-5)
    np.testing.assert_array_equal(other.probability.argmax(-1), other.label)
    np.testing.assert_array_equal(other.image, pixels)
  assert len({result.label.tobytes() for result in together}) == len(images)


def test_a_shape_compiles_once_alone_and_once_in_batches():
  loaded = load(PADDED)
  network = infer.Network(loaded)
  images = [image(32, 32, seed) for seed in range(6)]  # 4, and 2 that are padded to 4
  predict(loaded, *images, network=network, batch_size=4)
  assert network.programs == 1
  predict(loaded, *images, image(32, 64), network=network, batch_size=4)
  assert network.programs == 2
  predict(loaded, images[0], network=network, batch_size=4)
  assert network.programs == 3


def test_the_default_batch_of_an_accelerator_is_the_evaluations_and_smaller_for_large_images():
  loaded = load(PADDED)
  assert infer._default_batch(loaded, 64) == 1  # a CPU
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(jax, 'default_backend', lambda: 'gpu')
    sizes = [infer._default_batch(loaded, 2**bits) for bits in (10, 21, 22, 24)]
  assert sizes == [4, 2, 1, 1]


def test_threads_get_the_results_of_their_own_images():
  loaded = load(PADDED)
  network, images = infer.Network(loaded), [image(32, 48, seed) for seed in range(8)]
  expected = [predict(loaded, pixels, probability=True)[0].probability for pixels in images]
  found = [None] * len(images)

  def work(n):
    found[n] = predict(loaded, images[n], network=network, probability=True)[0].probability

  threads = [threading.Thread(target=work, args=(n,)) for n in range(len(images))]
  for thread in threads:
    thread.start()
  for thread in threads:
    thread.join()
  np.testing.assert_array_equal(found, expected)
  assert network.programs == 1


def test_images_are_read_only_a_little_ahead():
  loaded, read, batch_size = load(PADDED), [], 1

  def jobs():
    for n in range(100):
      read.append(n)
      yield job(f'a{n}', image(32, 32))

  stream = infer.stream(infer.Network(loaded), jobs(), batch_size=batch_size)
  next(stream)
  # So many wait before the network and after it, each time with one that is asked for.
  ahead = batch_size + infer._THREADS
  assert ahead < len(read) <= 2 * (ahead + 1)
  stream.close()


def test_a_batch_that_does_not_fit_into_memory_is_divided(monkeypatch):
  loaded = load(PADDED)
  network, calls = infer.Network(loaded), []
  run = network._run

  def fail(program, batch):
    calls.append(len(batch['image']))
    if calls[-1] > 1:
      raise jax.errors.JaxRuntimeError('RESOURCE_EXHAUSTED: Out of memory allocating 9 bytes')
    return run(program, batch)

  monkeypatch.setattr(network, '_run', fail)
  found = predict(loaded, image(32, 32), image(32, 32, 1), network=network, batch_size=2)
  assert calls == [2, 1, 1]
  assert [result.label.shape for result in found] == [(32, 32)] * 2


# --- large images ---------------------------------------------------------------------------------


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
  (whole,) = predict(loaded, pixels, probability=True)
  assert np.bincount(whole.label.ravel()).min() > 0.05 * whole.label.size
  monkeypatch.setattr(infer, '_WHOLE_PIXELS', 0)
  monkeypatch.setattr(infer, '_BLOCK', 48)
  (found,) = predict(loaded, pixels, probability=True)
  assert 'a0.png: ' in capsys.readouterr().err
  assert (found.label.shape, found.label.dtype) == (size, np.uint8)
  # A tie aside, which rounding may decide otherwise in a program of another shape.
  assert np.mean(found.label != whole.label) < 1e-3
  np.testing.assert_allclose(found.probability, whole.probability, atol=1e-4)
  assert found.uncertainty is None


def test_blocks_of_a_network_that_samples(small_blocks):
  model = SegNetBasic(classes=CLASSES, width=2, dropout=0.5)
  (found,) = predict(load(model, samples=2, tile=(32, 32)), image(64, 96))
  assert (found.uncertainty.shape, found.uncertainty.dtype) == ((64, 96), np.float32)
  assert found.uncertainty.max() > 0


@pytest.mark.parametrize(
  'size',
  [SizeConfig(image_size=(64, 64)), SizeConfig(short_side=(64,), longest_side=200)],
)
def test_an_image_that_is_resized_needs_no_blocks(size, small_blocks, capsys):
  (found,) = predict(load(PADDED, size), image(64, 64))
  assert found.label.shape == (64, 64)
  assert 'by blocks' not in capsys.readouterr().err


@pytest.mark.parametrize(
  ('model', 'config', 'block', 'context'),
  [
    (PADDED, {'tile': (256, 512)}, (1024, 1024), 0),
    (PADDED, {'tile': (600, 2000), 'overlap': 50}, (1200, 2000), 52),
    (PADDED, {}, (1024, 1024), 128),
    (UNPADDED, {'tile': (255, 300)}, (1024, 1200), 20),
    # Of 44 pixels of margin, and tiles of 260 that are 256 apart, at stride 8.
    (UNet(classes=CLASSES, width=2, depth=3), {'tile': (256, 256)}, (1024, 1024), 48),
  ],
)
def test_blocks_are_whole_tiles(model, config, block, context):
  """And the context is a multiple of the stride, as tiles are."""
  stride = model.stride
  found = infer._block_size(model, semantic.EvalConfig(**config), (5000, 9000))
  assert all(side % stride == 0 for side in (*found[0], found[1]))
  assert found == (block, context)
  assert found[1] >= model.margin


def test_a_narrow_image_has_narrow_blocks():
  config = semantic.EvalConfig(tile=(64, 64))
  assert infer._block_size(PADDED, config, (100, 9000)) == ((128, 1024), 0)


# --- files ----------------------------------------------------------------------------------------


def write(path, pixels):
  Image.fromarray(pixels).save(path)
  return find_source(path)


def predict_files(loaded, sources, **options):
  jobs = infer.file_jobs(sources, 3, 10**6)
  return list(infer.stream(infer.Network(loaded), jobs, **options))


def test_files_that_fail_are_told_and_the_others_done(tmp_path):
  (tmp_path / 'b.png').write_bytes(b'no image')
  sources = [
    write(tmp_path / 'a.png', image(16, 24)),
    find_source(tmp_path / 'b.png'),
    find_source(tmp_path / 'missing.png'),
    write(tmp_path / 'c.png', image(16, 32)),
  ]
  failed = {}
  found = predict_files(load(PADDED), sources, failed=failed)
  assert [frame.name for frame, _ in found] == ['a', 'c']
  assert [result.label.shape for _, result in found] == [(16, 24), (16, 32)]
  assert {path.name: text.split(str(path))[1][:17] for path, text in failed.items()} == {
    'b.png': ' cannot be decode',
    'missing.png': ' cannot be read (',
  }
  with pytest.raises(SegjaxError, match=r'b\.png cannot be decoded'):
    predict_files(load(PADDED), sources)


def test_an_image_that_does_not_fit_into_memory_is_told(tmp_path, monkeypatch):
  def fail(network, program, batch):
    raise jax.errors.JaxRuntimeError('RESOURCE_EXHAUSTED: Out of memory allocating 9 bytes')

  monkeypatch.setattr(infer.Network, '_run', fail)
  failed = {}
  sources = [write(tmp_path / 'a.png', image(16, 24))]
  assert not predict_files(load(PADDED), sources, failed=failed)
  assert 'a.png of 24x16 pixels does not fit into memory: ' in failed[tmp_path / 'a.png']
  fail.__code__ = (lambda network, program, batch: 1 / 0).__code__
  with pytest.raises(ZeroDivisionError):
    predict_files(load(PADDED), sources, failed=failed)


def test_a_large_tiff_file_is_read_by_windows(tmp_path, small_blocks):
  tifffile = pytest.importorskip('tifffile')
  loaded, pixels = load(PADDED, tile=(16, 16)), image(101, 77)
  balance(loaded, pixels)
  tifffile.imwrite(tmp_path / 'a.tif', pixels, tile=(32, 32), photometric='rgb')
  jobs = infer.file_jobs([find_source(tmp_path / 'a.tif')], 3, 10**6, windows=True)
  ((frame, found),) = infer.stream(infer.Network(loaded), jobs, probability=True)
  assert isinstance(frame.pixels, Windows) and found.image is frame.pixels
  (expected,) = predict(loaded, pixels, probability=True)
  np.testing.assert_array_equal(found.label, expected.label)
  np.testing.assert_array_equal(found.probability, expected.probability)
  assert isinstance(found.probability, np.memmap), 'on the disk'


def test_large_images_wait_one_by_one():
  """And small ones as many as are asked for."""
  alive, most = set(), []

  def items():
    for n in range(20):
      alive.add(n)
      most.append(len(alive))
      yield n

  with concurrent.futures.ThreadPoolExecutor(2) as pool:
    for pixels, expected in ((2**26, 2), (2**24, 3), (1, 9)):
      alive.clear()
      most.clear()
      for n in infer.ordered(pool, lambda n: n, items(), 8, lambda n, pixels=pixels: pixels):
        alive.remove(n)
      # With the one that is about to wait.
      assert max(most) == expected
