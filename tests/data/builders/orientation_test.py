"""Photos with an orientation flag: annotations are those of what a viewer shows, or an error."""

import json

import numpy as np
import pytest
from PIL import Image, ImageDraw

from segjax.data import datasets, images, pipeline
from segjax.data.builders import coco_files
from segjax.data.config import DataConfig, InputConfig
from segjax.data.read import Example
from segjax.types import SegjaxError

STORED = {
  3: Image.Transpose.ROTATE_180,
  6: Image.Transpose.ROTATE_90,
  8: Image.Transpose.ROTATE_270,
}
WIDTH, HEIGHT, BOX = 48, 32, (5, 4, 20, 15)


def write_photo(path, flag):
  """A red box, as a viewer shows it, whose pixels are stored otherwise."""
  x, y, width, height = BOX
  shown = Image.new('RGB', (WIDTH, HEIGHT), (20, 20, 60))
  ImageDraw.Draw(shown).rectangle([x, y, x + width - 1, y + height - 1], fill=(230, 40, 40))
  exif = Image.Exif()
  exif[0x0112] = flag
  shown.transpose(STORED[flag]).save(path, quality=95, subsampling=0, exif=exif)


def write_coco(source, size=(WIDTH, HEIGHT)):
  """A data set of three such photos, annotated as a viewer shows them."""
  (source / 'train').mkdir(parents=True)
  (source / 'annotations').mkdir()
  x, y, width, height = BOX
  polygon = [x, y, x + width, y, x + width, y + height, x, y + height]
  listed, objects = [], []
  for i, flag in enumerate(STORED, 1):
    write_photo(source / 'train' / f'{i}.jpg', flag)
    listed.append({'id': i, 'file_name': f'{i}.jpg', 'width': size[0], 'height': size[1]})
    entry = {'id': i, 'image_id': i, 'category_id': 1, 'bbox': list(BOX), 'iscrowd': 0}
    objects.append({**entry, 'area': width * height, 'segmentation': [polygon]})
  content = {'images': listed, 'annotations': objects, 'categories': [{'id': 1, 'name': 'box'}]}
  (source / 'annotations' / 'instances_train.json').write_text(json.dumps(content))


def test_masks_of_turned_photos_are_on_their_pixels(tmp_path):
  write_coco(tmp_path / 'raw')
  name, annotations = 'coco_instances/custom', ('objects',)
  builder = datasets.load(name, tmp_path / 'data', tmp_path / 'raw', annotations=annotations)
  data = DataConfig(name=name, mean=(0.0,), std=(1.0,))
  config = InputConfig(data, annotations=annotations)
  spec = datasets.spec(builder, config)
  batches = pipeline.train_batches(builder, spec, config, seed=0)
  batch, _ = next(batches)
  batches.close()
  assert batch['size'].tolist() == [[HEIGHT, WIDTH]] * len(batch['size'])
  masks = np.unpackbits(batch['instances'].masks, axis=-1)[:, 0] > 0
  for image, mask in zip(batch['image'], masks, strict=True):
    assert mask.sum() == BOX[2] * BOX[3]
    inside, outside = image[mask], image[:HEIGHT, :WIDTH][~mask[:HEIGHT, :WIDTH]]
    np.testing.assert_allclose(inside.mean(0), (230, 40, 40), atol=12)
    np.testing.assert_allclose(outside.mean(0), (20, 20, 60), atol=12)


@pytest.mark.parametrize('flag', [6, 8])
def test_a_file_that_lists_the_unrotated_size_is_told(tmp_path, flag):
  path = tmp_path / 'a.jpg'
  write_photo(path, flag)
  assert images.read_size(path.read_bytes(), 'a') == (HEIGHT, WIDTH)
  image = coco_files.CocoImage(7, 'a.jpg', height=WIDTH, width=HEIGHT)
  message = (
    r'a\.jpg is 48x32 pixels as its EXIF orientation flag turns it but image 7 of .*x\.json is '
    r'32x48, as without the flag: turn the annotation too, or remove the flag'
  )
  with pytest.raises(SegjaxError, match=message):
    coco_files.read_image(path, image, tmp_path / 'x.json')
  coco_files.read_image(path, image._replace(height=HEIGHT, width=WIDTH), tmp_path / 'x.json')


def test_a_label_of_the_unrotated_image_in_prepared_data_is_told(tmp_path):
  """Such as a data set of TFDS, which this package did not prepare."""
  path = tmp_path / 'a.jpg'
  write_photo(path, 6)
  reader = type('Reader', (), {})()
  reader.config = InputConfig(DataConfig(name='x'))
  reader.spec = type('Spec', (), {'channels': 3})()
  example = Example(reader, 0, 'a', {'image': path.read_bytes()})
  turned = str(example._size_error('label', (WIDTH, HEIGHT)))
  assert turned.startswith('the image of a is 48x32 pixels as its EXIF orientation flag turns it')
  other = str(example._size_error('label', (5, 5)))
  assert other.startswith('a: the image is 32x48 and its label 5x5 pixels (height x width)')
