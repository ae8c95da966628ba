"""The names and numbers of what is written."""

from pathlib import Path

import pytest

from segjax import predict
from segjax.types import SegjaxError


@pytest.mark.parametrize(
  ('names', 'numbers'),
  [
    (['000000000139.jpg', '000000000285.jpg'], [139, 285]),
    (['a.png', '7.png'], [1, 2]),
    (['7.png', '07.png'], [1, 2]),
    (['²3.png'], [1]),
  ],
)
def test_images_are_numbered_as_coco_does(names, numbers):
  paths = [Path(name) for name in names]
  assert list(predict.image_numbers(paths).values()) == numbers


@pytest.mark.parametrize(
  ('names', 'ids'),
  [
    (['000000000139.jpg', '000000000285.jpg'], [139, 285]),
    (['ulm_000000_000019_leftImg8bit.png', 'b.png'], ['ulm_000000_000019', 'b']),
    (['7.png', '07.png'], ['7', '07']),
    (['a.png', 'a_leftImg8bit.png'], ['a', 'a_leftImg8bit']),
  ],
)
def test_images_of_segments_have_the_ids_of_the_public_evaluations(names, ids):
  assert list(predict.panoptic_image_ids([Path(name) for name in names]).values()) == ids


def test_outputs_of_each_image():
  targets = predict.name_outputs([Path('in/a.jpg')], Path('out'), ('.json', '_overlay.png'))
  assert targets == {Path('in/a.jpg'): [Path('out/a.json'), Path('out/a_overlay.png')]}


@pytest.mark.parametrize(
  ('paths', 'told'),
  [
    (['in/a.jpg', 'in/a.png'], 'mixed up with that of in/a.jpg'),
    (['in/a_overlay.jpg', 'in/a.jpg', 'out/a_overlay.png'], 'would overwrite'),
    (['in/results.jpg'], 'results.json'),
  ],
)
def test_no_file_is_written_twice(paths, told):
  with pytest.raises(SegjaxError, match=told):
    predict.name_outputs(
      [Path(p) for p in paths], Path('out'), ('.json', '_overlay.png'), ('results.json',)
    )
