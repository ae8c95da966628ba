"""Oxford-IIIT Pet: cats and dogs of 37 breeds, with a trimap of each.

3,680 train and 3,669 test images. Raw files, as upstream's archives images.tar.gz and
annotations.tar.gz unpack:
  images/NAME.jpg
  annotations/trimaps/NAME.png              1 = pet, 2 = background, 3 = border
  annotations/xmls/NAME.xml                 the box of the head; only of most train images
  annotations/trainval.txt, test.txt        a line for each image: NAME CLASS SPECIES BREED

Name, version and features are those of tensorflow-datasets, whose builder needs TensorFlow: what
either of them prepares is read by the same config. Images are stored byte for byte, but for the few
files that are not JPEG despite their name or have neither gray nor RGB pixels: they are stored as
JPEG of quality 95, as by tensorflow-datasets, with other rounding.

Cite Parkhi, Vedaldi, Zisserman, Jawahar, "Cats and dogs", CVPR 2012. CC BY-SA 4.0.
"""

import functools
import io
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

import tensorflow_datasets as tfds
from PIL import Image

from segjax.data import images, records
from segjax.data.builders import raw
from segjax.types import SegjaxError

CONTENT = 'images/ and annotations/'
_BREEDS = (
  'Abyssinian, american_bulldog, american_pit_bull_terrier, basset_hound, beagle, Bengal, Birman, '
  'Bombay, boxer, British_Shorthair, chihuahua, Egyptian_Mau, english_cocker_spaniel, '
  'english_setter, german_shorthaired, great_pyrenees, havanese, japanese_chin, keeshond, '
  'leonberger, Maine_Coon, miniature_pinscher, newfoundland, Persian, pomeranian, pug, Ragdoll, '
  'Russian_Blue, saint_bernard, samoyed, scottish_terrier, shiba_inu, Siamese, Sphynx, '
  'staffordshire_bull_terrier, wheaten_terrier, yorkshire_terrier'
)
BREEDS = tuple(_BREEDS.split(', '))
SPECIES = ('Cat', 'Dog')

_LISTS = {'train': 'trainval.txt', 'test': 'test.txt'}
_NO_BOX = tfds.features.BBox(0.0, 0.0, 0.0, 0.0)


class Builder(raw.Builder):
  """Prepares Oxford-IIIT Pet."""

  VERSION = tfds.core.Version('4.0.0')
  RELEASE_NOTES = {'4.0.0': 'The features of version 4.0.0 in tensorflow-datasets.'}

  def _info(self) -> tfds.core.DatasetInfo:
    return tfds.core.DatasetInfo(
      builder=self,
      description='Cats and dogs of 37 breeds, with a trimap of each.',
      features=tfds.features.FeaturesDict(
        {
          'image': tfds.features.Image(encoding_format='jpeg'),
          'label': tfds.features.ClassLabel(names=BREEDS),
          'species': tfds.features.ClassLabel(names=SPECIES),
          'file_name': tfds.features.Text(),
          'segmentation_mask': tfds.features.Image(shape=(None, None, 1), use_colormap=True),
          'head_bbox': tfds.features.BBoxFeature(),
        }
      ),
      supervised_keys=('image', 'label'),
      homepage='https://www.robots.ox.ac.uk/~vgg/data/pets/',
    )

  def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Any]:
    source = raw.source_directory(dl_manager, CONTENT)
    lists = {split: _read_list(source / 'annotations' / name) for split, name in _LISTS.items()}
    make = functools.partial(_make, source)
    return {
      split: records.Split([(f'{row[0]}.jpg', row) for row in rows], make)
      for split, rows in lists.items()
    }


def _make(source: Path, row: tuple[str, int, int]) -> dict[str, Any]:
  name, breed, species = row
  path = source / 'images' / f'{name}.jpg'
  trimap_path = source / 'annotations' / 'trimaps' / f'{name}.png'
  encoded = raw.read_bytes(path, CONTENT)
  image = images.decode_image(encoded, 3, str(path))
  trimap = images.decode_label(raw.read_bytes(trimap_path, CONTENT), str(trimap_path))
  raw.check_same_size(image, path, trimap, trimap_path)
  return {
    'image': _as_jpeg(encoded),
    'label': breed,
    'species': species,
    'file_name': f'{name}.jpg',
    'segmentation_mask': trimap_path,
    'head_bbox': _read_box(source / 'annotations' / 'xmls' / f'{name}.xml'),
  }


def _read_list(path: Path) -> list[tuple[str, int, int]]:
  """Name, index of the breed and index of the species of the images that a file lists."""
  names = raw.read_list(path, CONTENT)
  lines = [line.split() for line in path.read_text().splitlines() if line.strip()]
  try:
    found = [
      (name, int(row[1]) - 1, int(row[2]) - 1) for name, row in zip(names, lines, strict=True)
    ]
  except (IndexError, ValueError) as e:
    raise SegjaxError(f'{path} has a line without two numbers: download the file again') from e
  for name, breed, species in found:
    if breed not in range(len(BREEDS)) or species not in range(len(SPECIES)):
      raise SegjaxError(
        f'{path} has class {breed + 1} and species {species + 1} for {name}, which are out of '
        f'range: classes are 1 to {len(BREEDS)}, species 1 and 2'
      )
  return found


def _as_jpeg(encoded: bytes) -> bytes:
  with Image.open(io.BytesIO(encoded)) as image:
    if image.format == 'JPEG' and image.mode in ('L', 'RGB'):
      return encoded
    buffer = io.BytesIO()
    image.convert('RGB').save(buffer, 'JPEG', quality=95)
    return buffer.getvalue()


def _read_box(path: Path) -> tfds.features.BBox:
  """The box of the head, relative to the image; zeros where there is no file."""
  if not path.exists():
    return _NO_BOX
  try:
    root = ElementTree.fromstring(path.read_bytes())
    width, height = (float(root.find(f'size/{key}').text) for key in ('width', 'height'))
    x0, y0, x1, y1 = (
      float(root.find(f'object/bndbox/{key}').text) for key in ('xmin', 'ymin', 'xmax', 'ymax')
    )
  except (ElementTree.ParseError, AttributeError, TypeError, ValueError) as e:
    raise SegjaxError(f'{path} does not describe a box: download the file again') from e
  return tfds.features.BBox(y0 / height, x0 / width, y1 / height, x1 / width)
