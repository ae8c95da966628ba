"""Keys that exclude each other, or that a task cannot use."""

import pytest
from inputs import changed, input_config

from segjax.data import order
from segjax.data.config import Augment, SizeConfig
from segjax.types import SegjaxError

PANOPTIC = ('label', 'objects', 'segments')


@pytest.mark.parametrize(
  ('annotations', 'keys', 'message'),
  [
    (
      ('label',),
      {'copy_paste': 0.5},
      r'config\.augment\.copy_paste is for .* objects',
    ),
    (('label',), {'things': (1,)}, r'config\.data\.things is for tasks that read objects'),
    (('label',), {'category_ids': (1,)}, r'config\.data\.category_ids is for .* objects'),
    (('label',), {'max_objects': 5}, r'config\.batch\.max_objects is for tasks that read objects'),
    (('label',), {'max_segments': 5}, r'config\.batch\.max_segments is for .* read segments'),
    (('objects',), {'max_segments': 5}, r'config\.batch\.max_segments .* this one reads objects'),
    (('objects',), {'weight_map': {}}, r'config\.data\.weight_map is for tasks that read label'),
    (('objects',), {'label_offset': 1}, r'config\.data\.label_offset is for .* read label'),
    (PANOPTIC, {'label_offset': 1}, r'config\.data\.label_offset is for label maps'),
  ],
)
def test_keys_that_a_task_cannot_use(annotations, keys, message):
  with pytest.raises(SegjaxError, match=message):
    input_config(annotations=annotations, **keys)


@pytest.mark.parametrize('annotations', [('label',), ('objects',), PANOPTIC])
def test_geometry_is_for_every_task(annotations):
  config = input_config(
    annotations=annotations, crop_size=(8, 8), augment={'rotate': 10, 'elastic_sigma': 3}
  )
  changed(config, image_size=(9, 9), resize='fit', augment={'large_scale_jitter': (0.5, 2.0)})
  changed(config, short_side=(9, 10), shapes=((32, 32),))


@pytest.mark.parametrize('keys', [{}, {'image_size': (8, 8)}, {'resize': 'fit'}])
def test_jitter_fits_an_image_size(keys):
  with pytest.raises(SegjaxError, match=r"large_scale_jitter: set .* and resize='fit'"):
    input_config(augment={'large_scale_jitter': (0.5, 2.0)}, **keys)


def test_two_sizes_exclude_each_other():
  with pytest.raises(SegjaxError, match='image_size and short_side both resize: set one to none'):
    SizeConfig(image_size=(8, 8), short_side=(8,))


def test_two_sizes_of_training_and_of_evaluation():
  sizes = {'image_size': (8, 8), 'resize': 'fit', 'short_side': (8,), 'shapes': ((8, 16), (16, 8))}
  with pytest.raises(SegjaxError, match='both resize: set one to none, or set .*jitter'):
    input_config(**sizes)
  config = input_config(augment={'large_scale_jitter': (0.5, 2.0)}, **sizes)
  name = lambda: 'an image'
  assert order.known_shape(config, train=True) == (8, 8)
  assert order.eval_size((30, 20), config) == (12, 8)
  assert order.fit_shape((12, 8), config, name) == (16, 8)
  assert order.train_size((30, 20), config, 0, 0, 0, 1)[0] < 17


@pytest.mark.parametrize('keys', [{'short_side': ()}, {'shapes': ()}])
def test_empty_choices(keys):
  with pytest.raises(SegjaxError, match='must be none or name a size'):
    SizeConfig(**keys)


@pytest.mark.parametrize('key', ['scale', 'large_scale_jitter'])
def test_low_is_not_above_high(key):
  with pytest.raises(SegjaxError, match=rf'config\.augment\.{key}=\(1\.2, 0\.8\) must be \(low, h'):
    Augment(**{key: (1.2, 0.8)})
