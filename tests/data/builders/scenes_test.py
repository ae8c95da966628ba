"""Scenes: the annotations agree with one another, and the images are worth training on."""

import cv2
import numpy as np
import pytest

from segjax.data.builders.scenes import builder as scenes
from segjax.data.builders.scenes import drawing

THINGS = {index for index, scene_class in enumerate(drawing.CLASSES) if scene_class.isthing}


def small_config(**kwargs) -> scenes.ScenesConfig:
  kwargs = {'name': 'small', 'num_train': 5, 'num_val': 3, 'size': 48} | kwargs
  return scenes.ScenesConfig(**kwargs)


@pytest.fixture(scope='module')
def rendered() -> list[drawing.Scene]:
  return [drawing.draw_scene(np.random.default_rng((7, index)), 96) for index in range(80)]


def test_annotations_agree(prepare, by_name):
  examples = by_name(prepare(scenes.Builder, config=small_config(num_train=30)), 'train')
  assert len(examples) == 30
  for example in examples.values():
    label, instance = example['label'][..., 0], example['instance'][..., 0]
    objects = example['objects']
    assert example['image'].shape == (48, 48, 3)
    assert label.shape == instance.shape == (48, 48)
    assert objects['id'] == sorted(set(np.unique(instance)) - {0})
    assert not set(np.unique(label[instance == 0])) & THINGS
    for number, class_index, bbox, area in zip(
      objects['id'], objects['label'], objects['bbox'], objects['area'], strict=True
    ):
      mask = instance == number
      assert class_index in THINGS
      np.testing.assert_array_equal(label[mask], class_index)
      assert area == mask.sum()
      x, y, width, height = cv2.boundingRect(mask.astype(np.uint8))
      expected = np.array([y, x, y + height, x + width], np.float32) / 48
      np.testing.assert_allclose(bbox, expected, rtol=1e-6)
    panoptic = example['panoptic'][..., 0]
    assert panoptic.dtype == np.uint16
    np.testing.assert_array_equal(panoptic // 256, label)
    np.testing.assert_array_equal(panoptic % 256, instance)


def test_info_names_and_flags(tmp_path):
  info = scenes.Builder(data_dir=tmp_path).info
  assert info.features['label'].names == [c.name for c in drawing.CLASSES]
  assert info.features['objects']['label'].names == info.features['label'].names
  assert info.metadata['class_names'] == info.features['label'].names
  assert info.metadata['isthing'] == [False] * 4 + [True] * 5
  assert len({tuple(color) for color in info.metadata['palette']}) == len(drawing.CLASSES)


def test_default_set_is_1000_and_200_images_of_128(tmp_path):
  builder = scenes.Builder(data_dir=tmp_path)
  config = builder.builder_config
  assert config.name == 'default'
  assert (config.num_train, config.num_val, config.size) == (1000, 200, 128)
  assert builder.info.features['image'].shape == (128, 128, 3)


def test_same_bytes_twice(prepare, tmp_path):
  first, second = (
    prepare(scenes.Builder, config=small_config(), data_dir=tmp_path / name) for name in 'ab'
  )
  files = sorted(path.name for path in first.data_path.glob('*.array_record*'))
  assert len(files) == 2
  for name in files:
    assert (first.data_path / name).read_bytes() == (second.data_path / name).read_bytes()


def test_an_image_depends_on_seed_split_and_index_alone(prepare, by_name):
  def images(split, **kwargs):
    builder = prepare(scenes.Builder, config=small_config(name=str(kwargs), **kwargs))
    return {name: example['image'] for name, example in by_name(builder, split).items()}

  few, many = images('val', num_val=2, num_train=1), images('val', num_val=4)
  assert sorted(many) == [f'scene_val_{index:06d}' for index in range(4)]
  for name, image in few.items():
    np.testing.assert_array_equal(image, many[name])
  train, other = images('train'), images('val', seed=1)
  every = [*many.values(), *train.values(), *other.values()]
  assert len({image.tobytes() for image in every}) == len(every)


def test_images_are_varied(rendered):
  """All classes, more than one kind of ground, and occlusion: the set is not trivial."""
  label = np.stack([scene.label for scene in rendered])
  share = np.bincount(label.ravel(), minlength=len(drawing.CLASSES)) / label.size
  assert len(share) == len(drawing.CLASSES)
  assert share.min() > 0.01
  assert share[: drawing.WATER + 1].min() > 0.04
  assert {kind for scene in rendered for kind in scene.classes} == THINGS
  assert max(len(scene.classes) for scene in rendered) >= 6
  sizes = [(scene.instance == k + 1).sum() for scene in rendered for k in range(len(scene.classes))]
  assert np.quantile(sizes, 0.95) > 4 * np.quantile(sizes, 0.05)
  # Things touch things: a row neighbour of another number, neither of them 0.
  touching = [
    (
      (scene.instance[:, 1:] != scene.instance[:, :-1])
      & (scene.instance[:, 1:] * scene.instance[:, :-1] > 0)
    ).any()
    for scene in rendered
  ]
  assert np.mean(touching) > 0.4


def test_every_thing_can_be_found(rendered):
  for scene in rendered:
    areas = np.bincount(scene.instance.ravel(), minlength=len(scene.classes) + 1)[1:]
    assert len(areas) == len(scene.classes)
    assert areas.min(initial=96**2) >= 20 * 96**2 // 128**2


def test_color_leans_to_the_kind_but_does_not_tell_it(rendered):
  """The nearest mean color guesses better than chance, 1 in 5, but not every thing."""
  colors, kinds = [], []
  for scene in rendered:
    for number, kind in enumerate(scene.classes, start=1):
      colors.append(scene.image[scene.instance == number].mean(axis=0))
      kinds.append(kind)
  colors, kinds = np.array(colors), np.array(kinds)
  half = len(kinds) // 2
  means = np.stack([colors[:half][kinds[:half] == kind].mean(axis=0) for kind in sorted(THINGS)])
  distance = np.linalg.norm(colors[half:, None] - means, axis=-1)
  guess = np.array(sorted(THINGS))[distance.argmin(axis=1)]
  assert 0.4 < np.mean(guess == kinds[half:]) < 0.95


def test_size_scales_the_image():
  small, large = (drawing.draw_scene(np.random.default_rng(3), size) for size in (64, 128))
  assert large.image.shape == (128, 128, 3)
  # The same layout: the larger label, taken at every second pixel, is nearly the smaller one.
  assert np.mean(large.label[::2, ::2] == small.label) > 0.8


def test_needs_no_tensorflow(needs_no_tensorflow):
  needs_no_tensorflow(scenes.Builder, config='tiny')
