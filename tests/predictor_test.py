"""What a `Predictor` takes for an image, and what it refuses in a sentence."""

import numpy as np
import pytest
from PIL import Image
from random_run import load

from segjax.data.unusual import ImageRanges
from segjax.models.unet import UNet
from segjax.predictor import Predictor, as_pixels
from segjax.types import SegjaxError

MODEL = UNet(classes=3, width=2, depth=2, padding='same')
RGB = np.random.default_rng(0).integers(0, 256, (20, 30, 3), np.uint8)
GRAY = Image.fromarray(RGB).convert('L')


@pytest.fixture(scope='module')
def predictor():
  return Predictor(load(MODEL))


def test_it_knows_its_task_and_classes(predictor):
  assert (predictor.task, predictor.class_names, predictor.step) == ('semantic', ('a',) * 3, 7)
  assert predictor.palette.shape == (3, 3)
  assert repr(predictor) == 'Predictor(semantic, 3 classes, step 7)'


def test_one_image_of_any_kind(predictor, tmp_path):
  path = tmp_path / 'photo.png'
  Image.fromarray(RGB).save(path)
  kinds = {'1': RGB, 'photo': path, '1 too': Image.open(path), 'text': str(path)}
  found = {kind: predictor(image) for kind, image in kinds.items()}
  for result in found.values():
    np.testing.assert_array_equal(result.image, RGB)
    np.testing.assert_array_equal(result.label, found['1'].label)
  assert [r.name for r in found.values()] == ['1', 'photo', '1', 'photo']


def test_several_images_of_any_kind(predictor, tmp_path):
  path = tmp_path / 'photo.png'
  Image.fromarray(RGB).save(path)
  mixed = [RGB, path, Image.fromarray(RGB[:10])]
  for images in (mixed, iter(mixed)):
    found = predictor(images)
    assert [(r.name, r.size) for r in found] == [
      ('1', (20, 30)),
      ('photo', (20, 30)),
      ('3', (10, 30)),
    ]
  stack = predictor(np.stack([RGB, RGB[::-1]]))
  np.testing.assert_array_equal([r.image for r in stack], [RGB, RGB[::-1]])
  assert len(predictor([RGB])) == 1


def test_a_list_that_is_too_large_for_memory_is_streamed(predictor):
  def endless():
    while True:
      yield RGB

  stream = predictor.stream(endless())
  assert [next(stream).name for _ in range(3)] == ['1', '2', '3']
  stream.close()


def test_the_pages_of_a_tiff_are_a_list(predictor, tmp_path):
  first, second = Image.fromarray(RGB), Image.fromarray(RGB[:10])
  first.save(tmp_path / 'stack.tif', save_all=True, append_images=[second])
  assert [r.name for r in predictor(tmp_path / 'stack.tif')] == ['stack_page1', 'stack_page2']


def test_an_array_that_is_reused_does_not_change_what_is_predicted(predictor):
  buffer = RGB.copy()

  def frames():
    for value in (0, 255):
      buffer[...] = value
      yield buffer

  assert [r.image.max() for r in predictor(frames())] == [0, 255]


def test_probabilities_on_request(predictor):
  assert predictor(RGB).probability is None
  found = predictor(RGB, probability=True)
  assert (found.probability.shape, found.probability.dtype) == ((20, 30, 3), np.float32)
  np.testing.assert_array_equal(found.probability.argmax(-1), found.label)


@pytest.mark.parametrize(
  ('image', 'channels', 'expected'),
  [
    (RGB, 3, RGB),
    (RGB[..., 0], 3, RGB[..., :1].repeat(3, 2)),
    (RGB[..., :1], 3, RGB[..., :1].repeat(3, 2)),
    (RGB[..., 0], 1, RGB[..., :1]),
    (RGB, 1, np.asarray(Image.fromarray(RGB).convert('L'))[..., None]),
    (
      Image.fromarray(RGB).convert('L'),
      1,
      np.asarray(Image.fromarray(RGB).convert('L'))[..., None],
    ),
  ],
)
def test_channels_are_those_of_the_network(image, channels, expected):
  np.testing.assert_array_equal(as_pixels(image, channels, 'x'), expected)


def test_a_pillow_image_is_upright(predictor, tmp_path):
  exif = Image.Exif()
  exif[0x0112] = 6
  Image.fromarray(np.ascontiguousarray(np.rot90(RGB))).save(tmp_path / 'a.png', exif=exif)
  with Image.open(tmp_path / 'a.png') as image:
    np.testing.assert_array_equal(predictor(image).image, RGB)


NAN = np.where(RGB > 250, np.nan, RGB)
BAD = {
  'dtype': (RGB / 255, r'image 1 has pixels of float64: convert it to uint8'),
  'signed': (RGB.astype(np.int8), 'image 1 has pixels of int8'),
  'NaN': (NAN, 'image 1 has NaN'),
  'channels': (RGB[..., :2], r'\[20, 30, 2\], with 2 channels: give 1 or 3'),
  'alpha': (
    RGB[..., [0, 1, 2, 2]],
    r'4 channels: leave out the alpha channel, by image\[..., :3\]',
  ),
  'first': (RGB.transpose(2, 0, 1), r'move the channels last, by image.transpose\(1, 2, 0\)'),
  'rank 1': (RGB[0, 0], r'the shape \[3\]: give \[height, width\]'),
  'rank 5': ([RGB[None, None]], r'the shape \[1, 1, 20, 30, 3\]'),
  'no pixels': (RGB[:0], r'the shape \[0, 30, 3\], without a pixel'),
  'second': ([RGB, RGB / 2], 'image 2 has pixels of float64'),
  'empty list': ([], 'there are no images to predict'),
  'empty array': (np.zeros((0, 20, 30, 3), np.uint8), 'there are no images to predict'),
  'number': (3, 'int is not an image'),
  'numbers': ([[1, 2]], 'image 1 is a list'),
  'none': (None, 'NoneType is not an image'),
  'URL': ('https://a.org/b.jpg', 'https://a.org/b.jpg is a URL: download the file'),
  'missing': ('nowhere.jpg', 'nowhere.jpg cannot be read'),
  'suffix': ('notes.pdf', 'notes.pdf is not an image file by its suffix'),
  'directory': ('.', r'\. is a directory: give its files'),
}


@pytest.mark.parametrize('case', BAD)
def test_what_is_no_image(predictor, case):
  images, message = BAD[case]
  with pytest.raises(SegjaxError, match=message) as caught:
    predictor(images)
  assert '\n' not in str(caught.value)


@pytest.mark.parametrize('size', [0, -1, 2.0, '4', True])
def test_a_batch_size_is_a_number_of_images(predictor, size):
  with pytest.raises(SegjaxError, match='must be an integer of 1 or more'):
    predictor(RGB, batch_size=size)


def test_only_a_semantic_network_has_probabilities_of_pixels():
  loaded = load(MODEL)
  loaded.run.experiment.task = 'instance'
  with pytest.raises(SegjaxError, match='probability=True'):
    Predictor(loaded)(RGB, probability=True)


@pytest.mark.parametrize('common', [(20, 30), (32, 32), None])
def test_an_image_is_padded_as_in_the_evaluation(common):
  """Not where all images had its size: else to multiples of 32."""
  images = ImageRanges((10.0, 40.0), ((0, 255),) * 3, ((0, 255),) * 3, False, common)
  loaded = load(MODEL, images=images)
  shape = (20, 30) if common == (20, 30) else (32, 32)
  batch = {'image': np.full((1, *shape, 3), 120, np.uint8), 'size': np.array([[20, 30]])}
  batch['image'][0, :20, :30] = RGB
  outputs, _ = loaded.run.task.forward(loaded.variables, batch, train=False)
  expected = loaded.run.task.predict(outputs, batch)['probability'][0, :20, :30]
  found = Predictor(loaded)(RGB, probability=True).probability
  np.testing.assert_allclose(found, expected, atol=1e-5)


def test_images_that_are_unlike_those_of_the_training_are_told_once():
  images = ImageRanges((200.0, 300.0), ((0, 255),) * 3, ((0, 255),) * 3, False)
  predictor = Predictor(load(MODEL, images=images))
  with pytest.warns(
    UserWarning, match='2 of 2 images are unlike .* such as 1: it is 30x20'
  ) as told:
    found = predictor([RGB, RGB])
  assert len(told) == 1 and told[0].filename == __file__
  assert 'it is 30x20 pixels' in found[1].unlike_training
