"""What `segjax new` finds out about images and masks in directories."""

import json

import numpy as np
import pytest
from own_folders import CLASSES, COLORS, save, scene, write_folder, write_images
from PIL import Image

from segjax.data import datasets
from segjax.data.builders import guessing
from segjax.data.builders.folder import masks
from segjax.data.builders.folder.builder import Options
from segjax.data.builders.folder.guess import guess
from segjax.data.builders.folder.patterns import File
from segjax.data.formats.common import voc_palette
from segjax.data.guess import Given
from segjax.types import SegjaxError

ANNOTATIONS = {
  'semantic': ('label',),
  'instance': ('objects',),
  'panoptic': ('label', 'objects', 'segments'),
}
THREE = ('background', 'class_1', 'class_2')


def files_of(root, task='semantic', images='images', labels='masks'):
  """The keys of a guess, which prepares."""
  found = guess(task, root / images, labels and root / labels)
  assert found.name == 'folder'
  prepared = datasets.load(
    'folder',
    root.parent / 'prepared',
    found.source,
    files=found.files,
    annotations=ANNOTATIONS[task],
  )
  assert sum(s.num_examples for s in prepared.info.splits.values()) == 6
  return found.files, found


def convert_two(values):
  return lambda label: np.array(values, np.uint8)[(label > 0).astype(int)]


@pytest.mark.parametrize(
  ('convert', 'expected'),
  [
    (lambda label: label, {'classes': THREE}),
    (lambda label: label + np.uint8(1), {'classes': ('class_1', 'class_2', 'class_3'), 'first': 1}),
    (convert_two((0, 255)), {'classes': ('background', 'object'), 'values': (0, 255)}),
    (convert_two((0, 1)), {'classes': ('background', 'object')}),
    (lambda label: label * np.uint8(90), {'values': (0, 90, 180)}),
    (lambda label: label.astype(np.uint16) * 700, {'values': (0, 700, 1400)}),
    (lambda label: np.repeat(label[..., None], 3, -1), {'classes': THREE}),
    (
      lambda label: COLORS[label],
      {
        'classes': ('background', 'color_003cc8', 'color_c83c00'),
        'colors': ((0, 0, 0), (0, 60, 200), (200, 60, 0)),
        'encoding': 'color',
      },
    ),
  ],
)
def test_masks_of_classes(tmp_path, convert, expected):
  write_folder(tmp_path / 'source', convert=convert)
  files, found = files_of(tmp_path / 'source')
  assert expected.items() <= files.items()
  assert files['splits'] == {'train': 0.8, 'val': 0.2}
  assert found.problems == []
  assert set(files) <= set(Options.__dataclass_fields__)


def test_void(tmp_path):
  source = tmp_path / 'source'
  scenes = write_folder(source)
  for i, one in enumerate(scenes):
    one.label[0] = 255
    save(source / f'masks/im{i}.png', one.label)
  files, found = files_of(source)
  assert (files['classes'], files['void']) == (THREE, (255,))
  assert found.problems == ['the value 255 (3.1% of the pixels) is taken as void, which is ignored']


def test_a_negative_value_is_void(tmp_path):
  source = tmp_path / 'source'
  for i, one in enumerate(write_images(source, 6)):
    label = one.label.astype(np.int32)
    label[0], label[1] = -1, 255
    save(source / f'masks/im{i}.tif', label)
  files, found = files_of(source)
  assert (files['classes'], files['void']) == (THREE, (-1, 255))
  assert found.problems[0] == (
    'the value -1 (3.1% of the pixels) is taken as void, which is ignored'
  )


def write_values(source, values, palette=None):
  """Masks that have all of these values; returns the guess."""
  for i, one in enumerate(write_images(source, 3)):
    image = Image.fromarray(np.resize(np.array(values, np.uint8), one.label.shape))
    if palette is not None:
      image.putpalette(palette.tobytes())
    (source / 'masks').mkdir(exist_ok=True)
    image.save(source / f'masks/im{i}.png')
  return guess('semantic', source / 'images', source / 'masks')


@pytest.mark.parametrize(
  ('values', 'names', 'palette', 'is_void'),
  [
    ((0, 15, 255), '', None, True),
    ((0, 8, 12, 255), '', None, True),
    ((0, 17, 43, 255), '', None, True),
    ((0, 128, 255), '', None, False),
    ((0, 85, 170, 255), '', None, False),
    ((0, 128, 255), '', voc_palette(256), True),
    ((0, 128, 255), '', voc_palette(256)[::-1], False),
    ((0, 128, 255), 'background\ncrop', None, True),
    ((0, 128, 255), 'crop\nweed', None, False),
    ((0, 15, 255), 'soil\ncrop\nweed', None, False),
    ((0, 15, 255), 'crop\nweed', None, True),
  ],
)
def test_void_above_other_values(tmp_path, values, names, palette, is_void):
  if names:
    (tmp_path / 'classes.txt').write_text(names)
  found = write_values(tmp_path, values, palette)
  assert found.files.get('void', ()) == (255,) * is_void
  assert found.files['values'] == (values[:-1] if is_void else values)
  [problem] = found.problems
  assert problem.startswith(f'the value 255 {"(" if is_void else "is taken as a class: "}')
  assert is_void or 'config.data.files.void=(255,),' in problem


def test_palette_files_have_colors(tmp_path):
  source = tmp_path / 'source'
  for i, one in enumerate(write_images(source, 6)):
    image = Image.fromarray(one.label)
    image.putpalette(COLORS.tobytes())
    (source / 'masks').mkdir(exist_ok=True)
    image.save(source / f'masks/im{i}.png')
  files, _ = files_of(source)
  assert files['classes'] == THREE
  assert files['colors'] == tuple(map(tuple, COLORS.tolist()))
  assert 'encoding' not in files


def save_palette(path, label, colors, order):
  """A palette file in which the color of class i has the index order[i]."""
  palette = np.zeros_like(colors)
  palette[list(order)] = colors
  image = Image.fromarray(np.array(order, np.uint8)[label])
  image.putpalette(palette.tobytes())
  path.parent.mkdir(exist_ok=True)
  image.save(path)


@pytest.mark.parametrize('colors', [COLORS, np.uint8([[0] * 3, [128] * 3, [255] * 3])])
@pytest.mark.parametrize('others', ['palettes', 'RGB'])
def test_a_palette_for_each_file_is_read_as_colors(tmp_path, colors, others):
  source = tmp_path / 'source'
  scenes = write_images(source, 6)
  for i, one in enumerate(scenes):
    order = (1, 0, 2) if others == 'RGB' or i % 2 else (0, 1, 2)
    save_palette(source / f'masks/im{i}.png', one.label, colors, order)
  expected = set(map(tuple, colors.tolist()))
  if others == 'RGB':
    save(source / 'masks/im1.png', COLORS[scenes[1].label])
    expected |= set(map(tuple, COLORS.tolist()))
  files, found = files_of(source)
  assert files['encoding'] == 'color' and found.problems == []
  assert set(files['colors']) == expected
  label = masks.read_label([File(source / 'masks/im3.png', 'im3')], Options(**files), (32, 32))
  np.testing.assert_array_equal(np.array(files['colors'])[label], colors[scenes[3].label])


def test_palettes_that_differ_where_no_mask_looks_are_one(tmp_path):
  """The first file lacks the colors of classes that it does not show."""
  source = tmp_path / 'source'
  for i, one in enumerate(write_images(source, 6)):
    count = 2 + (i > 0)
    save_palette(source / f'masks/im{i}.png', one.label % count, COLORS[:count], range(count))
  files, _ = files_of(source)
  assert 'encoding' not in files
  assert files['colors'] == tuple(map(tuple, COLORS.tolist()))


def test_smoothed_masks_have_a_threshold(tmp_path):
  source = tmp_path / 'source'
  for i, one in enumerate(write_images(source, 6)):
    save(source / f'masks/im{i}.jpg', (one.label > 0) * np.uint8(255))
  files, found = files_of(source)
  assert (files['encoding'], files['threshold']) == ('binary', 127)
  assert 'compressed or smoothed' in found.problems[0]


def test_gray_images(tmp_path):
  source = tmp_path / 'source'
  for i, one in enumerate(write_folder(source)):
    save(source / f'images/im{i}.png', one.image[..., 0])
  assert files_of(source)[0]['channels'] == 1


@pytest.mark.parametrize(
  ('file', 'text', 'classes'),
  [
    ('classes.txt', 'grass\ncat\ndog\n', ('grass', 'cat', 'dog')),
    ('labels.txt', 'cat\ndog\n', ('background', 'cat', 'dog')),
    ('labels.txt', 'one\ntwo\nthree\nfour\n', ('one', 'two', 'three', 'four')),
  ],
)
def test_names_of_a_file(tmp_path, file, text, classes):
  write_folder(tmp_path / 'source')
  (tmp_path / 'source' / file).write_text(text)
  files, found = files_of(tmp_path / 'source')
  assert files['classes'] == classes
  assert found.problems == ['no mask has the value 3'] * (len(classes) == 4)


@pytest.mark.parametrize('place', ['', 'masks/'])
@pytest.mark.parametrize(
  ('add', 'names', 'classes'),
  [
    (0, {0: 'grass', 1: 'cat', 2: 'dog'}, ('grass', 'cat', 'dog')),
    (1, {0: 'no', 1: 'grass', 2: 'cat', 3: 'dog', 4: 'cow'}, ('grass', 'cat', 'dog', 'cow')),
    (1, {0: 'grass', 1: 'cat', 2: 'dog'}, ('grass', 'cat', 'dog')),  # labels are reduced by 1
    (0, {0: 'grass', 1: 'cat', 2: 'dog', 255: 'none'}, ('grass', 'cat', 'dog')),
    (0, {0: 'grass', 1: 'cat'}, ('background', 'grass', 'cat')),
    (0, {0: 'grass', 10**12: 'cat'}, THREE),
    (0, ['grass', 'cat', 'dog'], THREE),
  ],
)
def test_names_of_numbers(tmp_path, place, add, names, classes):
  source = tmp_path / 'source'
  write_folder(source, convert=lambda label: label + np.uint8(add))
  (source / f'{place}id2label.json').write_text(json.dumps(names))
  files, _ = files_of(source)
  assert files['classes'] == classes and files.get('first', 0) == add


@pytest.mark.parametrize(
  ('said', 'first', 'classes'),
  [
    (Given(void=(0,)), 1, ('class_1', 'class_2')),
    (Given(1, (0,)), 1, ('class_1', 'class_2')),
    (Given(first=1), 1, ('class_1', 'class_2')),
    (Given(first=2), 2, ('class_2',)),
    (Given(void=(2, 9)), 0, ('background', 'object')),
  ],
)
def test_values_that_are_no_classes_as_the_user_says(tmp_path, said, first, classes):
  source = tmp_path / 'source'
  write_folder(source)
  files = guess('semantic', source / 'images', source / 'masks', given=said).files
  assert (files.get('first', 0), files['classes']) == (first, classes)
  assert files.get('void', ()) == said.void


def test_colors_that_are_no_classes_as_the_user_says(tmp_path):
  source = tmp_path / 'source'
  write_folder(source, convert=lambda label: COLORS[label])
  said = Given(void=((0, 0, 0),))
  files = guess('semantic', source / 'images', source / 'masks', given=said).files
  assert files['colors'] == ((0, 60, 200), (200, 60, 0)) and files['void'] == said.void
  with pytest.raises(SegjaxError, match='every pixel of the masks in .* has no class by config'):
    guess(
      'semantic',
      source / 'images',
      source / 'masks',
      given=Given(void=tuple(map(tuple, COLORS.tolist()))),
    )


@pytest.mark.parametrize(
  ('file', 'text'),
  [
    ('class_dict.csv', 'name,r,g,b\ngrass, 0, 0, 0\ncat,200,60,0\ndog,0,60,200\n'),
    (
      'labelmap.txt',
      '# label:color_rgb:parts:actions\ngrass:0,0,0::\ncat:200,60,0::\ndog:0,60,200::',
    ),
  ],
)
def test_names_of_colors(tmp_path, file, text):
  write_folder(tmp_path / 'source', convert=lambda label: COLORS[label])
  (tmp_path / 'source' / file).write_text(text)
  files, _ = files_of(tmp_path / 'source')
  assert files['classes'] == ('grass', 'cat', 'dog')
  assert files['colors'] == tuple(map(tuple, COLORS.tolist()))


@pytest.mark.parametrize(
  ('image', 'mask', 'patterns'),
  [
    ('images/im{}', 'masks/im{}', ('images', 'masks')),
    ('images/im{}', 'masks/im{}_mask', ('images', 'masks/{name}_mask')),
    ('images/im{}', 'masks/im{}_ours', ('images', 'masks/{name}_ours')),
    ('images/im{}_img', 'masks/im{}_seg', ('images/{name}_img', 'masks/{name}_seg')),
    ('images/im{}_0000', 'masks/im{}', ('images/{name}_0000', 'masks')),
    ('images/image{}', 'masks/mask{}', ('images/image{name}', 'masks/mask{name}')),
    ('images/deep/im{}', 'masks/deep/im{}', ('images', 'masks')),
  ],
)
def test_names_of_masks(tmp_path, image, mask, patterns):
  source = tmp_path / 'source'
  for i, one in enumerate(write_images(source, 6, f'{image}.png')):
    save(source / f'{mask.format(i)}.png', one.label)
  files, _ = files_of(source)
  assert (files['images'], files['labels']) == patterns


@pytest.mark.parametrize(
  ('image', 'mask', 'patterns'),
  [
    ('images/im{}', 'masks/im{}', ('images', 'masks')),
    ('JPEGImages/im{}', 'SegmentationClass/im{}', ('JPEGImages', 'SegmentationClass')),
    ('img_dir/im{}', 'ann_dir/im{}', ('img_dir', 'ann_dir')),
    ('imagesTr/im{}_0000', 'labelsTr/im{}', ('imagesTr/{name}_0000', 'labelsTr')),
    ('im{}', 'im{}_mask', ('{name}', '{name}_mask')),
    ('im{}_img', 'im{}_masks', ('{name}_img', '{name}_masks')),
  ],
)
def test_everything_in_one_directory(tmp_path, image, mask, patterns):
  source = tmp_path / 'source'
  for i, one in enumerate(write_images(source, 6, f'{image}.png')):
    save(source / f'{mask.format(i)}.png', one.label)
  files, _ = files_of(source, images='.', labels=None)
  assert (files['images'], files['labels']) == patterns


def test_photos_and_masks_of_one_name_in_one_directory(tmp_path):
  source = tmp_path / 'source'
  scenes = write_images(source, 3, 'im{}.JPG') + write_images(source, 3, 'im{}.jpg', start=3)
  for i, one in enumerate(scenes):
    save(source / f'im{i}{[".png", ".PNG"][i % 2]}', one.label)
  files, _ = files_of(source, images='.', labels=None)
  assert (files['images'], files['labels']) == ('{name}.jpg', '{name}.png')


@pytest.mark.parametrize(
  ('image', 'mask', 'patterns'),
  [
    ('images/{}', 'masks/{}', ('images', 'masks')),
    ('{}/images', '{}/masks', ('{split}/images/{name}', '{split}/masks/{name}')),
    ('{}', '{}annot', ('{split}/{name}', '{split}annot/{name}')),
  ],
)
def test_splits_in_the_names_of_directories(tmp_path, image, mask, patterns):
  source = tmp_path / 'source'
  for start, count, split in ((0, 4, 'train'), (4, 2, 'valid')):
    name = f'{image.format(split)}/im{{}}.png'
    for i, one in enumerate(write_images(source, count, name, start), start):
      save(source / mask.format(split) / f'im{i}.png', one.label)
  files, _ = files_of(source, images='.', labels=None)
  assert (files['images'], files['labels']) == patterns
  assert files['splits'] == {'train': 'train', 'val': 'valid'}


def test_splits_of_lists(tmp_path):
  source = tmp_path / 'source'
  write_folder(source)
  (source / 'train.txt').write_text('\n'.join(f'im{i}' for i in range(4)))
  (source / 'val.txt').write_text('im4.png\nim5.png')
  lists = {'train': 'train.txt', 'val': 'val.txt'}
  assert files_of(source)[0]['splits'] == lists
  (source / 'test.txt').write_text('im6\nim7')  # whose masks are kept back
  files, found = files_of(source)
  assert files['splits'] == lists
  assert found.problems == ['no image of test.txt is annotated: not used']
  (source / 'test.txt').write_text('im5')
  (source / 'val.txt').write_text('im4')
  assert files_of(source)[0]['splits'] == {**lists, 'test': 'test.txt'}


@pytest.mark.parametrize(
  ('lists', 'reason'),
  [
    ({'train': 'im0\nim1', 'val': 'im2\nim7'}, '{}/val.txt lists im7 for val, of which there is'),
    ({'train': 'images/im0.png masks/im0.png', 'val': 'im1'}, '{}/train.txt lists images/im0.png '),
    ({'train': 'im0\nim1', 'val': 'im1'}, 'config.data.files.splits has im1 in train and in val'),
    ({'val': 'im1'}, 'one of train and one of another split are needed'),
  ],
)
def test_lists_that_are_no_splits_are_told(tmp_path, lists, reason):
  write_folder(tmp_path)
  for split, text in lists.items():
    (tmp_path / f'{split}.txt').write_text(text)
  found = guess('semantic', tmp_path / 'images', tmp_path / 'masks')
  assert found.files['splits'] == {'train': 0.8, 'val': 0.2}
  names = ', '.join(f'{split}.txt' for split in lists)
  [problem] = found.problems
  assert problem.startswith(f'no splits by the lists {names}, as {reason.format(tmp_path)}')
  assert problem.endswith('images are divided at random, until config.data.files.splits says how')
  (tmp_path / 'splits').mkdir()
  for split, name in (('train', 'im0'), ('val', 'im1\nim2\nim3\nim4\nim5')):
    (tmp_path / f'splits/{split}.txt').write_text(name)
  found = guess('semantic', tmp_path / 'images', tmp_path / 'masks')
  assert found.problems == [] and found.files['splits']['train'] == 'splits/train.txt'


def test_images_in_no_split_are_told(tmp_path):
  write_folder(tmp_path)
  (tmp_path / 'train.txt').write_text('im0\nim2')
  (tmp_path / 'val.txt').write_text('im3\nim5')
  found = guess('semantic', tmp_path / 'images', tmp_path / 'masks')
  assert found.problems == ['2 images in no split, such as im1: not used']


@pytest.mark.parametrize(
  ('mask', 'pattern'),
  [('masks/{c}/im{i}', 'masks/{class}/{name}'), ('masks/im{i}_{c}', 'masks/{name}_{class}')],
)
def test_a_file_for_each_class(tmp_path, mask, pattern):
  source = tmp_path / 'source'
  for i, one in enumerate(write_images(source, 6)):
    for index, kind in enumerate(CLASSES[1:], 1):
      save(source / f'{mask.format(c=kind, i=i)}.png', (one.label == index) * np.uint8(255))
  files, _ = files_of(source)
  assert (files['labels'], files['classes']) == (pattern, CLASSES)


# --- objects --------------------------------------------------------------------------------------


def test_numbers_of_objects(tmp_path):
  source = tmp_path / 'source'
  for i, one in enumerate(write_images(source, 6)):
    save(source / f'masks/im{i}_mask.png', np.where(one.ids <= i % 4, one.ids, 0) + (one.ids == 1))
  files, found = files_of(source, 'instance')
  assert files['classes'] == ('object',)
  assert (files['labels'], files['instances']) == (None, 'masks/{name}_mask')
  assert found.problems == []


def test_numbers_of_objects_are_no_classes(tmp_path):
  source = tmp_path / 'source'
  for i, one in enumerate(write_images(source, 6)):
    ids = np.where(one.ids <= i % 4, one.ids, 0)
    ids[-1, : i % 4] = np.arange(i % 4) + 1
    save(source / f'masks/im{i}.png', ids)
  files, found = files_of(source)
  assert (files['encoding'], files['classes']) == ('binary', ('background', 'object'))
  assert 'look like numbers of objects' in found.problems[0]
  (source / 'classes.txt').write_text('soil\ncell')
  assert files_of(source)[0]['classes'] == ('soil', 'cell')


@pytest.mark.parametrize('names', ['soil\ncrop\nweed\nstone', 'crop\nweed\nstone'])
def test_values_that_a_file_names_are_no_numbers_of_objects(tmp_path, names):
  for i in range(len(write_images(tmp_path, 4))):
    save(tmp_path / f'masks/im{i}.png', np.resize(np.arange(i + 1, dtype=np.uint8), (32, 32)))
  (tmp_path / 'classes.txt').write_text(names)
  found = guess('semantic', tmp_path / 'images', tmp_path / 'masks')
  classes = tuple(names.split())
  assert found.files['classes'] == (('background', *classes) if len(classes) == 3 else classes)
  assert 'encoding' not in found.files and found.problems == []


def smoothed(pixels):
  """As of a large mask that was rotated with interpolation."""
  large = np.repeat(np.repeat(pixels, 8, 0), 8, 1)
  return np.asarray(Image.fromarray(large).rotate(20, Image.BILINEAR))


RGB_IDS = np.uint8([(0, 0, 0), (200, 60, 0), (0, 60, 200), (90, 250, 30)])


@pytest.mark.parametrize('name', ['masks/im{}', 'masks/cat/im{}'])
@pytest.mark.parametrize(
  ('suffix', 'convert'),
  [
    ('.jpg', lambda one: one.ids * np.uint8(40)),
    ('.png', lambda one: smoothed((one.ids > 0) * np.uint8(255))),
    ('.png', lambda one: smoothed(one.ids * np.uint8(40))),
    ('.png', lambda one: smoothed(RGB_IDS[one.ids])),
  ],
  ids=['JPEG', 'binary', 'numbers', 'colors'],
)
def test_smoothed_masks_have_no_numbers_of_objects(tmp_path, name, suffix, convert):
  for i, one in enumerate(write_images(tmp_path, 6)):
    save(tmp_path / f'{name.format(i)}{suffix}', convert(one))
  with pytest.raises(SegjaxError, match='masks are compressed or smoothed, .*: save them as PNG'):
    guess('instance', tmp_path / 'images', tmp_path / 'masks')


@pytest.mark.parametrize(
  ('suffix', 'convert', 'what'),
  [
    ('.jpg', lambda one: one.label * np.uint8(90), 'values'),
    ('.png', lambda one: smoothed(one.label * np.uint8(90)), 'values'),
    ('.png', lambda one: smoothed(COLORS[one.label]), 'colors'),
  ],
  ids=['JPEG', 'values', 'colors'],
)
def test_smoothed_masks_of_several_classes_are_refused(tmp_path, suffix, convert, what):
  for i, one in enumerate(write_images(tmp_path, 6)):
    save(tmp_path / f'masks/im{i}{suffix}', convert(one))
  message = f'masks are compressed or smoothed, so that they have [0-9]+ different {what} rather'
  with pytest.raises(SegjaxError, match=message):
    guess('semantic', tmp_path / 'images', tmp_path / 'masks')


def test_many_classes_are_not_smoothed_edges(tmp_path):
  for i, one in enumerate(write_images(tmp_path, 6)):
    rare = np.resize(np.arange(0, 250, 5, dtype=np.uint8), (32, 32)) * (one.label > 0)
    save(tmp_path / f'masks/im{i}.png', np.repeat(np.repeat(rare[::2, ::2], 2, 0), 2, 1))
  assert len(guess('semantic', tmp_path / 'images', tmp_path / 'masks').files['classes']) > 20


# Lines of one pixel, and a crowd of objects of four.
LINES = np.arange(64)[:, None] * (np.arange(64) % 4 > 0)
CROWD = np.kron(np.arange(256).reshape(16, 16), np.pad(np.ones((2, 2), int), (0, 2)))


@pytest.mark.parametrize(('count', 'ids'), [(6, LINES), (1, CROWD)])
def test_thin_and_small_objects_have_numbers(tmp_path, count, ids):
  for i in range(6):
    one = scene(i, (64, 64))
    save(tmp_path / f'images/im{i}.png', one.image)
    save(tmp_path / f'masks/im{i}.png', ids.astype(np.uint8) if i < count else one.ids)
  assert guess('instance', tmp_path / 'images', tmp_path / 'masks').files['classes'] == ('object',)


def test_numbers_of_objects_with_a_palette_for_each_file(tmp_path):
  colors = np.uint8([(0, 0, 0), (9, 0, 0), (0, 9, 0), (0, 0, 9)])
  scenes = write_images(tmp_path, 6)
  for i, one in enumerate(scenes):  # but for no object, whose number is always 0
    save_palette(tmp_path / f'masks/im{i}.png', one.ids, colors, [0, *np.roll([1, 2, 3], i)])
  found = guess('instance', tmp_path / 'images', tmp_path / 'masks')
  assert found.files['instances'] == 'masks' and found.problems == []
  save_palette(tmp_path / 'masks/im3.png', scenes[3].ids, colors, [3, 1, 2, 0])
  with pytest.raises(SegjaxError, match='masks have palettes of their own, in which 0, '):
    guess('instance', tmp_path / 'images', tmp_path / 'masks')


def test_one_value_for_all_objects_is_a_problem(tmp_path):
  source = tmp_path / 'source'
  write_folder(source, convert=convert_two((0, 255)))
  _, found = files_of(source, 'instance')
  assert 'masks have one value (255) besides 0' in found.problems[0]


def test_class_and_number_in_a_value(tmp_path):
  source = tmp_path / 'source'
  for i, one in enumerate(write_images(source, 6)):
    ids = np.where(one.ids > 0, one.label.astype(np.uint16) * 1000 + one.ids, 3000)
    save(source / f'masks/im{i}.png', ids.astype(np.uint16))
  files, _ = files_of(source, 'panoptic')
  assert files['classes'] == ('class_1', 'class_2', 'class_3')
  assert (files['divisor'], files['values'], files['stuff']) == (1000, (1, 2, 3), ('class_3',))


@pytest.mark.parametrize(
  ('task', 'labels', 'places'),
  [
    ('panoptic', 'labels', ('labels', 'instances')),
    ('panoptic', None, ('labels', 'instances')),
    ('instance', None, ('labels', 'instances')),
  ],
)
def test_classes_and_objects(tmp_path, task, labels, places):
  source = tmp_path / 'source'
  for i, one in enumerate(write_images(source, 6)):
    save(source / f'labels/im{i}.png', one.label)
    save(source / f'instances/im{i}.png', one.ids)
  files, found = files_of(source, task, images='images' if labels else '.', labels=labels)
  assert (files['labels'], files['instances']) == places
  assert found.problems == []
  if task == 'panoptic':
    assert (files['classes'], files['stuff']) == (THREE, ('background',))
  else:  # the background is no class of objects
    assert (files['classes'], files['values'], files['void']) == (THREE[1:], (1, 2), (0,))


def test_colors_of_classes_and_objects(tmp_path):
  source = tmp_path / 'source'
  for i, one in enumerate(write_images(source, 6)):
    save(source / f'labels/im{i}.png', COLORS[one.label])
    save(source / f'instances/im{i}.png', one.ids)
  files, _ = files_of(source, 'instance', images='.', labels=None)
  assert files['classes'] == ('color_003cc8', 'color_c83c00')
  assert (files['colors'], files['void']) == (((0, 60, 200), (200, 60, 0)), ((0, 0, 0),))


def test_a_directory_for_each_image(tmp_path):
  source = tmp_path / 'source'
  for i, one in enumerate(write_images(source, 6, 'im{0}/images/im{0}.png')):
    for id in (1, 2, 3):
      save(source / f'im{i}/masks/{id}.png', (one.ids == id) * np.uint8(255))
  for task, classes in (('instance', ('object',)), ('semantic', ('background', 'object'))):
    files, _ = files_of(source, task, images='.', labels=None)
    assert files['images'] == '{name}/images/{name}'
    assert files['instances'] == '{name}/masks/{object}'
    assert files['classes'] == classes


@pytest.mark.parametrize(
  ('convert', 'expected'),
  [
    (lambda one: one.ids, {'classes': ('background', 'object')}),
    (lambda one: (one.ids > 0).astype(np.uint8), {'classes': ('background', 'object')}),
    (
      lambda one: one.label.astype(np.uint16) * 1000 + one.ids,
      {'classes': ('background', 'class_1', 'class_2'), 'values': (0, 1, 2)},
    ),
    (  # 0 is no class beside stuff
      lambda one: np.where(one.label == 1, 1000, 2000 * (one.label > 1) + one.ids),
      {'classes': ('class_1', 'class_2'), 'values': (1, 2), 'stuff': ('class_1',)},
    ),
  ],
)
def test_objects_on_a_background_for_a_semantic_task(tmp_path, convert, expected):
  for i, one in enumerate(write_images(tmp_path / 'source', 6)):
    save(tmp_path / f'source/instances/im{i}.png', convert(one).astype(np.uint16))
  files, found = files_of(tmp_path / 'source', images='.', labels=None)
  assert expected.items() <= files.items() and found.problems == []


# --- what looks wrong -----------------------------------------------------------------------------


def test_images_of_12_bits_are_almost_black(tmp_path):
  source = tmp_path / 'source'
  for i, one in enumerate(write_folder(source)):
    save(source / f'images/im{i}.png', one.image[..., 0].astype(np.uint16) * 16)
  _, found = files_of(source)
  assert 'have 16 bits and no value above' in found.problems[0]


def test_names_that_do_not_match(tmp_path):
  write_images(tmp_path, 6)
  for i in range(6):
    save(tmp_path / f'masks/x{i * 7}y.png', np.zeros((32, 32), np.uint8))
  with pytest.raises(SegjaxError, match=r'such as im0\.png, have no .* where x0y\.png is: '):
    guess('semantic', tmp_path / 'images', tmp_path / 'masks')


@pytest.mark.parametrize('count', [2, 3])
@pytest.mark.parametrize('named', [True, False])
def test_channels_in_files_of_their_own(tmp_path, count, named):
  for i in range(3):
    for channel in range(count):
      save(tmp_path / f'imagesTr/im{i}_{channel:04}.png', scene(i).image[..., channel])
    save(tmp_path / f'labelsTr/im{i}.png', scene(i).label)
  places = (tmp_path / 'imagesTr', tmp_path / 'labelsTr') if named else (tmp_path, None)
  with pytest.raises(
    SegjaxError, match='im0_0000 and im0_0001 are channels of one image, .*: merge'
  ):
    guess('semantic', *places)


def test_numbers_of_frames_are_no_channels(tmp_path):
  for kind in ('images', 'masks'):
    for i in range(3):
      save(tmp_path / f'{kind}/im_000{i}.png', scene(i).label)
  save(tmp_path / 'masks/im.png', scene(0).label)
  assert guess('semantic', tmp_path, None).files['images'] == 'images'


def test_no_images(tmp_path):
  with pytest.raises(SegjaxError, match=r'has no images \(\.bmp, .*: correct --images'):
    guess('semantic', tmp_path, None)


def test_one_file_for_each_class_is_one_object(tmp_path):
  for i, one in enumerate(write_images(tmp_path, 6)):
    for name, value in (('cat', 1), ('dog', 2)):
      save(tmp_path / f'masks/{name}/im{i}.png', (one.label == value) * np.uint8(255))
  [problem] = guess('instance', tmp_path / 'images', tmp_path / 'masks').problems
  assert problem.startswith('masks have one value besides 0, so one object of each class')


def test_files_without_a_partner_are_left_out(tmp_path):
  source = tmp_path / 'source'
  write_folder(source, 7)
  (source / 'masks/im3.png').unlink()
  files, found = files_of(source)
  assert files['unpaired'] == 'skip'
  [problem] = found.problems
  assert 'im3.png has no mask in' in problem and problem.endswith('such files are left out')


def test_each_kind_of_file_without_a_partner_is_told(tmp_path):
  where = {'images': range(6), 'labels': range(2, 9), 'instances': range(1, 7)}
  for place, numbers in where.items():
    for i in numbers:
      save(tmp_path / f'{place}/{i}.png', scene(i)[['images', 'labels', 'instances'].index(place)])
  found = guess('panoptic', tmp_path, None)
  left = ': such files are left out'
  assert found.problems == [
    f'{tmp_path}/images/0.png and 1 more have no mask in {tmp_path}/labels{left}',
    f'{tmp_path}/labels/6.png and 2 more have no image{left}',
    f'{tmp_path}/images/0.png has no mask in {tmp_path}/instances{left}',
    f'{tmp_path}/instances/6.png has no image{left}',
  ]
  assert found.files['unpaired'] == 'skip' and found.found[0].startswith('4 images in ')


def test_masks_of_another_size(tmp_path):
  write_folder(tmp_path)
  save(tmp_path / 'masks/im2.png', scene(2, (40, 32)).label)
  found = guess('semantic', tmp_path / 'images', tmp_path / 'masks')
  assert found.problems == [
    f'1 images have masks of another size, such as {tmp_path}/images/im2.png'
  ]


@pytest.mark.parametrize(
  ('pixels', 'message'),
  [
    (lambda rng: rng.integers(0, 255, (32, 32, 3)).astype(np.uint8), r'\d+ different colors'),
    (lambda rng: rng.integers(0, 9999, (64, 64)).astype(np.uint16), r'\d+ different values'),
  ],
)
def test_masks_that_are_of_no_classes(tmp_path, pixels, message):
  write_folder(tmp_path)
  save(tmp_path / 'masks/im0.png', pixels(np.random.default_rng(0)))
  with pytest.raises(SegjaxError, match=message):
    guess('semantic', tmp_path / 'images', tmp_path / 'masks')


def test_other_files_are_of_other_formats(tmp_path):
  write_images(tmp_path, 3)
  (tmp_path / 'labels').mkdir()
  (tmp_path / 'labels/im0.txt').write_text('0 .1 .1 .2 .2')
  (tmp_path / 'all.json').write_text('{}')
  assert guess('semantic', tmp_path / 'images', tmp_path / 'labels') is None
  assert guess('semantic', tmp_path / 'images', tmp_path / 'all.json') is None
  assert guess('semantic', tmp_path, None) is None
  assert guess('semantic', None, tmp_path) is None
  assert guess('semantic', tmp_path / 'none', None) is None


def test_splits_that_are_not(tmp_path):
  assert guessing.directory_splits(['train/a', 'other/b']) is None
  assert guessing.directory_splits(['train/a', 'b']) is None
  assert guessing.directory_splits(['train/a']) is None
  assert guessing.directory_splits(['train/a', 'Test/b']) == {'train': 'train', 'test': 'Test'}
  find = lambda *names: guessing.find_splits(tmp_path, names)
  splits = {'train': 'train', 'val': 'val'}
  unused = ['2 images in no split, such as extra/c: not used']
  assert find('train/a', 'val/b', 'extra/c', 'd') == (splits, unused)
  for names in (
    ('bonn/train/a', 'bonn/val/b', 'ulm/train/a'),
    ('train/a', 'other/val/b', 'c'),
  ):
    found, [problem] = find(*names)
    assert found == {'train': 0.8, 'val': 0.2}
    assert problem.startswith('no splits by the directories train, val, as the first directories')
  assert find('train/a', 'train/b/c') == ({'train': 0.5, 'val': 0.5}, [])
