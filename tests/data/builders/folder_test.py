"""Images and masks in directories: encodings, layouts, objects and what is wrong with files."""

import shutil

import numpy as np
import pytest
from own_folders import CLASSES, COLORS, save, scene, write_folder, write_images
from PIL import Image
from raw_files import gray, remove, rename, rgb, truncate, write

from segjax.data import datasets
from segjax.data.builders import files
from segjax.data.builders.folder import pairing, patterns
from segjax.data.builders.folder.builder import Builder, Options
from segjax.data.config import DataConfig, InputConfig
from segjax.data.formats import coco
from segjax.types import IGNORE_LABEL, SegjaxError

SEMANTIC, INSTANCE = ('label',), ('objects',)
PANOPTIC = ('label', 'objects', 'segments')
SIZE = (32, 32)


def options(**kwargs):
  return Options(**{'classes': CLASSES, **kwargs})


def contents(source, annotations=SEMANTIC, **kwargs):
  """Name -> what is annotated on the image, of all splits."""
  found = Builder.find(source, options(**kwargs), annotations)
  return {item.name: item.read(SIZE) for items in found.values() for item in items}


def check_labels(source, scenes, names='im{}', **kwargs):
  found = contents(source, **kwargs)
  assert len(found) == len(scenes)
  for i, expected in enumerate(scenes):
    label = found[names.format(i)].label
    assert label.dtype == np.uint16
    np.testing.assert_array_equal(label, expected.label)


# --- masks of classes -----------------------------------------------------------------------------


def palette(label):
  image = Image.fromarray(label)
  image.putpalette(COLORS.tobytes())
  return np.asarray(image), image


@pytest.mark.parametrize(
  ('convert', 'kwargs'),
  [
    (lambda label: label, {}),
    (lambda label: label + np.uint8(5), {'first': 5}),
    (lambda label: label.astype(np.uint16) * 300 + 7, {'values': (7, 307, 607)}),
    (lambda label: np.repeat(label[..., None], 3, -1), {}),
    (lambda label: COLORS[label], {'encoding': 'color', 'colors': COLORS.tolist()}),
    (
      lambda label: np.dstack([COLORS[label], np.full(SIZE, 9, np.uint8)]),
      {'encoding': 'color', 'colors': COLORS.tolist()},
    ),
  ],
  ids=['index', 'first', '16 bits', 'gray RGB', 'colors', 'RGBA'],
)
def test_encodings(tmp_path, convert, kwargs):
  if 'colors' in kwargs:
    kwargs['colors'] = tuple(map(tuple, kwargs['colors']))
  check_labels(tmp_path, write_folder(tmp_path, convert=convert), **kwargs)


@pytest.mark.parametrize('encoding', ['index', 'color'])
def test_a_palette_is_read_as_indices_or_as_colors(tmp_path, encoding):
  scenes = write_folder(tmp_path)
  for i, found in enumerate(scenes):
    image = Image.fromarray(found.label)
    image.putpalette(COLORS.tobytes())
    # A transparent color keeps its own.
    image.save(tmp_path / f'masks/im{i}.png', transparency=0)
  colors = tuple(map(tuple, COLORS.tolist()))
  check_labels(tmp_path, scenes, encoding=encoding, colors=colors)


@pytest.mark.parametrize(
  ('kwargs', 'suffix', 'convert'),
  [
    ({'values': (0, 255)}, '.png', lambda marked: marked * np.uint8(255)),
    ({}, '.png', lambda marked: marked),  # 1 bit
    ({'encoding': 'binary', 'threshold': 127}, '.jpg', lambda marked: marked * np.uint8(255)),
  ],
)
def test_binary_masks(tmp_path, kwargs, suffix, convert):
  for i, found in enumerate(write_images(tmp_path, 5)):
    save(tmp_path / f'masks/im{i}{suffix}', convert(found.label > 0))
  found = contents(tmp_path, classes=('background', 'animal'), **kwargs)
  for i in range(5):
    np.testing.assert_array_equal(found[f'im{i}'].label, scene(i).label > 0)


def test_more_classes_than_8_bits_have(tmp_path, prepare):
  label = np.arange(32 * 32, dtype=np.uint16).reshape(SIZE) % 600
  for i in range(2):
    save(tmp_path / f'images/{i}.png', scene(i).image)
    save(tmp_path / f'masks/{i}.png', label)
  builder = load(
    tmp_path,
    classes=tuple(f'c{i}' for i in range(599)),
    void=(599,),
    splits={'train': 0.5, 'val': 0.5},
  )
  stored = builder.as_data_source('train')[0]['label'][..., 0]
  np.testing.assert_array_equal(stored, np.where(label == 599, IGNORE_LABEL, label))


def test_void_values_and_colors(tmp_path):
  write_folder(tmp_path, convert=lambda label: np.where(label == 2, 255, label).astype(np.uint8))
  found = contents(tmp_path, void=(255,))
  assert (found['im0'].label == IGNORE_LABEL).sum() == (scene(0).label == 2).sum() > 0
  shutil.rmtree(tmp_path / 'masks')
  for i in range(6):
    signed = scene(i).label.astype(np.int32)
    save(tmp_path / f'masks/im{i}.tif', np.where(signed == 2, np.int32(-1), signed))
  found = contents(tmp_path, void=(-1,))
  np.testing.assert_array_equal(found['im0'].label == IGNORE_LABEL, scene(0).label == 2)
  assert set(np.unique(found['im0'].label)) == {0, 1, IGNORE_LABEL}
  with pytest.raises(SegjaxError, match='has the value -1 in'):
    contents(tmp_path)
  shutil.rmtree(tmp_path / 'masks')
  write_folder(tmp_path, convert=lambda label: COLORS[label])
  two = {'classes': CLASSES[:2], 'colors': tuple(map(tuple, COLORS[:2].tolist()))}
  found = contents(tmp_path, encoding='color', void=((0, 60, 200),), **two)
  assert (found['im0'].label == IGNORE_LABEL).sum() == (scene(0).label == 2).sum()


@pytest.mark.parametrize(
  ('name', 'pattern'),
  [
    ('masks/{c}/im{i}.png', 'masks/{class}/{name}.png'),
    ('masks/im{i}_{c}.png', 'masks/{name}_{class}'),
    ('masks/im{i}/{c}.png', 'masks/{name}/{class}'),
  ],
)
def test_a_file_for_each_class(tmp_path, name, pattern):
  scenes = write_images(tmp_path, 5)
  for i, found in enumerate(scenes):
    for index, kind in enumerate(CLASSES[1:], 1):
      save(tmp_path / name.format(c=kind, i=i), (found.label == index) * np.uint8(255))
  check_labels(tmp_path, scenes, labels=pattern)
  found = contents(tmp_path, labels=pattern, classes=CLASSES[1:])
  assert (found['im0'].label == IGNORE_LABEL).sum() == (scene(0).label == 0).sum()
  with pytest.raises(SegjaxError, match=r'dog.* is of class dog, which .*classes does not list'):
    contents(tmp_path, labels=pattern, classes=CLASSES[:2])


# --- layouts and pairing --------------------------------------------------------------------------


@pytest.mark.parametrize('suffix', ['', '_mask', '-label', '_GT'])
def test_suffixes_of_masks(tmp_path, suffix):
  check_labels(tmp_path, write_folder(tmp_path, suffix=suffix))


@pytest.mark.parametrize(
  ('images', 'labels', 'patterns_'),
  [
    ('a/b/im{}.png', 'c/a/b/im{}.png', ('.', 'c')),
    ('im{}_img.png', 'im{}_masks.png', ('{name}_img', '{name}_masks')),
    ('x/im{}.png', 'x/im{}_own.png', ('x', 'x/{name}_own')),
    (
      'imagesTr/im{}_0000.png',
      'labelsTr/im{}.png',
      ('images{split}/{name}_0000', 'labels{split}/'),
    ),
  ],
)
def test_layouts(tmp_path, images, labels, patterns_):
  scenes = write_images(tmp_path, 5, images)
  for i, found in enumerate(scenes):
    save(tmp_path / labels.format(i), found.label)
  names = {'images{split}/{name}_0000': 'Tr/im{}', '.': 'a/b/im{}'}.get(patterns_[0], 'im{}')
  images, labels = patterns_
  check_labels(
    tmp_path,
    scenes,
    names,
    images=images,
    labels=labels + '{name}' if labels.endswith('/') else labels,
  )


def test_hidden_and_other_files_are_no_images(tmp_path):
  scenes = write_folder(tmp_path)
  for name in ('images/._im0.png', 'images/Thumbs.db', 'masks/.DS_Store', 'images/notes.txt'):
    (tmp_path / name).write_text('x')
  check_labels(tmp_path, scenes)


@pytest.mark.parametrize('layout', ['images/{split}/im{i}', '{split}/images/im{i}'])
def test_splits_by_directory(tmp_path, layout):
  for split, count in (('train', 3), ('valid', 2)):
    for i in range(count):
      name = layout.format(split=split, i=i)
      save(tmp_path / f'{name}.png', scene(i).image)
      save(tmp_path / f'{name.replace("images", "masks")}.png', scene(i).label)
  patterns_ = {}
  if layout.startswith('{'):
    patterns_ = {'images': '{split}/images/{name}', 'labels': '{split}/masks/{name}'}
  splits = {'train': 'train', 'val': 'valid'}
  found = Builder.find(tmp_path, options(splits=splits, **patterns_), SEMANTIC)
  assert [item.name for item in found['train']] == ['train/im0', 'train/im1', 'train/im2']
  assert [item.name for item in found['val']] == ['valid/im0', 'valid/im1']


def test_splits_by_list(tmp_path):
  write_folder(tmp_path)
  (tmp_path / 'train.txt').write_text('im3.png\nim0\n\n')
  (tmp_path / 'val.txt').write_text('im1\n')
  splits = {'train': 'train.txt', 'val': 'val.txt'}
  found = Builder.find(tmp_path, options(splits=splits), SEMANTIC)
  names = {split: [item.name for item in items] for split, items in found.items()}
  assert names == {'train': ['im3', 'im0'], 'val': ['im1']}
  (tmp_path / 'val.txt').write_text('im0\n')
  with pytest.raises(SegjaxError, match='has im0 in train and in val'):
    Builder.find(tmp_path, options(splits=splits), SEMANTIC)
  (tmp_path / 'val.txt').write_text('\n')
  with pytest.raises(SegjaxError, match=r'val\.txt names no image'):
    Builder.find(tmp_path, options(splits=splits), SEMANTIC)
  (tmp_path / 'val.txt').write_text('../secret.png\n')
  with pytest.raises(SegjaxError, match='lists ../secret.png for val'):
    Builder.find(tmp_path, options(splits=splits), SEMANTIC)


def test_natural_order():
  assert sorted(['im10', 'im2', 'a²', '7'], key=pairing.natural) == ['7', 'a²', 'im2', 'im10']


def test_parts_of_patterns():
  assert patterns.base('masks') == 'masks'
  assert patterns.base('masks/{class}/{name}.png') == 'masks'
  assert patterns.base('{name}_mask') == '.'
  assert patterns.base('/a/{name}') == '/a'
  assert patterns.base('/{name}') == '/'


@pytest.mark.parametrize('suffix', ['.PNG', '.png'])
def test_case_does_not_count_in_suffixes(tmp_path, suffix):
  save(tmp_path / f'a/x_m{suffix}', gray(2, 2))
  save(tmp_path / f'a/y_M{suffix}', gray(2, 2))  # but in names
  for pattern in ('a/{name}_m.png', 'a/{name}_m.PNG'):
    assert [file.name for file in patterns.find(tmp_path, pattern)] == ['x']


@pytest.mark.parametrize(
  ('kwargs', 'message'),
  [
    ({'labels': 'masks/{nam}'}, r'labels=masks/\{nam\} has \{nam\}: did you mean name'),
    ({'labels': 'masks/{class}'}, r'needs \{name\}'),
    ({'images': '{object}/{name}'}, r'has \{object\}'),
    ({'labels': None}, 'labels or .*instances must say'),
    ({'labels': 'images'}, r"labels=images has the images too: .* '\{name\}_mask'"),
    ({'labels': '.'}, 'has the images too'),
    ({'values': (0, 1)}, 'values must be one for each of the 3'),
    ({'values': (0, 1, 2), 'first': 1}, r'without .*\.first'),
    ({'values': (0, 1, 1)}, 'has 1 for two classes'),
    ({'void': (2,)}, r'has 2 for the class (\w+) and for void: take \1 out of .*classes, or 2 out'),
    ({'void': (0,)}, r'out of .*classes and set config.data.files.first=1, or 0 out of .*void'),
    ({'encoding': 'binary'}, 'is for 2 classes, and there are 3'),
    ({'encoding': 'color'}, r'needs .*\.colors'),
    ({'encoding': 'color', 'colors': ((0, 0, 0),) * 3}, r'has \(0, 0, 0\) for two'),
  ],
)
def test_wrong_options(kwargs, message):
  with pytest.raises(SegjaxError, match=message):
    options(**kwargs)


# --- objects --------------------------------------------------------------------------------------


def check_objects(source, scenes, expected_classes=(0, 0, 0), **kwargs):
  found = contents(source, INSTANCE, **kwargs)
  for i, expected in enumerate(scenes):
    objects = found[f'im{i}'].objects
    assert [entry.label for entry in objects] == list(expected_classes)
    for id, entry in enumerate(objects, 1):
      mask = coco.decode_mask(entry.counts, SIZE)
      np.testing.assert_array_equal(mask, expected.ids == id)


def write_ids(root, convert, name='masks/im{}.png'):
  scenes = write_images(root, 5)
  for i, found in enumerate(scenes):
    save(root / name.format(i), convert(found))
  return scenes


ANIMAL = {'classes': ('animal',), 'labels': None, 'instances': 'masks'}


@pytest.mark.parametrize(
  'convert',
  [
    lambda found: found.ids,
    lambda found: found.ids.astype(np.uint16) * 500,
    lambda found: np.array([(0, 0, 0), (9, 0, 0), (0, 9, 0), (0, 0, 9)], np.uint8)[found.ids],
  ],
)
def test_an_id_for_each_object(tmp_path, convert):
  check_objects(tmp_path, write_ids(tmp_path, convert), **ANIMAL)


def test_ids_of_no_object(tmp_path):
  scenes = write_ids(tmp_path, lambda found: np.where(found.ids == 0, 255, found.ids))
  kwargs = {'void_ids': (255,), **ANIMAL, 'classes': ('background', 'animal')}
  for annotations in (SEMANTIC, INSTANCE, PANOPTIC):
    found = contents(tmp_path, annotations, **kwargs)
    for i, expected in enumerate(scenes):
      label = files.label_of(found[f'im{i}'], SIZE, options(**kwargs))
      np.testing.assert_array_equal(label, np.where(expected.ids == 0, IGNORE_LABEL, 1))
  builder = load(tmp_path, INSTANCE, **kwargs)
  assert all(e['objects']['label'] == [1] * 3 for e in builder.as_data_source('train'))


def test_the_class_of_an_object_is_in_its_id(tmp_path):
  ids = lambda found: found.label.astype(np.uint16) * 1000 + found.ids
  scenes = write_ids(tmp_path, lambda found: np.where(found.ids, ids(found), 0).astype(np.uint16))
  told = {'labels': None, 'instances': 'masks', 'divisor': 1000}
  check_objects(tmp_path, scenes, (1, 1, 2), **told)
  check_labels(tmp_path, scenes, **told)
  with pytest.raises(SegjaxError, match=r'id 2003, whose class value 2 is of no class'):
    contents(tmp_path, INSTANCE, classes=CLASSES[:2], **told)
  # Stuff is no object, but keeps its class.
  check_labels(tmp_path, scenes, stuff=('cat',), **told)
  assert [o.label for o in contents(tmp_path, INSTANCE, stuff=('cat',), **told)['im0'].objects] == [
    2
  ]


def test_the_class_of_an_object_is_its_directory(tmp_path):
  scenes = write_images(tmp_path, 5)
  for i, found in enumerate(scenes):
    for index, kind in enumerate(CLASSES):
      if index:
        save(tmp_path / f'masks/{kind}/im{i}.png', np.where(found.label == index, found.ids, 0))
  kwargs = {'labels': None, 'instances': 'masks/{class}/{name}'}
  check_objects(tmp_path, scenes, (1, 1, 2), **kwargs)


def test_the_class_of_an_object_is_that_of_its_pixels(tmp_path):
  scenes = write_ids(tmp_path, lambda found: found.ids, 'objects/im{}.png')
  for i, found in enumerate(scenes):
    save(tmp_path / f'masks/im{i}.png', found.label)
  check_objects(tmp_path, scenes, (1, 1, 2), instances='objects')
  save(tmp_path / 'masks/im0.png', gray(*SIZE))
  with pytest.raises(SegjaxError, match=r'object 1 of .*objects/im0\.png is on pixels without'):
    contents(tmp_path, INSTANCE, instances='objects')


def test_a_file_for_each_object(tmp_path):
  scenes = write_images(tmp_path, 5, 'im{0}/images/im{0}.png')
  for i, found in enumerate(scenes):
    for id in (1, 2, 3):
      save(tmp_path / f'im{i}/masks/{id}0.png', (found.ids == id) * np.uint8(255))
  kwargs = {
    'images': '{name}/images/{name}',
    'instances': '{name}/masks/{object}',
    'labels': None,
    'classes': ('animal',),
  }
  check_objects(tmp_path, scenes, **kwargs)
  save(tmp_path / 'im0/masks/10.png', gray(*SIZE))
  with pytest.raises(SegjaxError, match=r'10\.png is an object without a pixel'):
    contents(tmp_path, INSTANCE, **kwargs)


@pytest.mark.parametrize(
  ('kwargs', 'message'),
  [
    ({}, 'instances is missing'),
    ({'labels': None, 'instances': 'masks'}, 'does not say the class of an object'),
    ({'classes': ('background',), 'instances': 'objects'}, 'has no class of objects'),
  ],
)
def test_what_tasks_of_objects_need(tmp_path, kwargs, message):
  with pytest.raises(SegjaxError, match=message):
    contents(tmp_path, INSTANCE, **kwargs)


# --- prepared data --------------------------------------------------------------------------------


def load(source, annotations=SEMANTIC, report=None, **kwargs):
  return datasets.load(
    'folder',
    source.parent / 'prepared',
    source,
    report,
    files={'classes': CLASSES, **kwargs},
    annotations=annotations,
  )


def test_folds_of_a_cross_validation(tmp_path, prepare):
  """As in docs/own_data.md: each image is held out once, and trained on in all other folds."""
  write_folder(tmp_path / 'source', 10)
  folds = [f'fold{i}' for i in range(5)]
  builder = load(tmp_path / 'source', splits=dict.fromkeys(folds, 0.2))
  names = lambda split: [str(example['file_name']) for example in builder.as_data_source(split)]
  held_out = [names(fold) for fold in folds]
  assert sorted(sum(held_out, [])) == sorted(names('+'.join(folds))) and len(held_out[0]) == 2
  for fold, held in zip(folds, held_out, strict=True):
    trained = names('+'.join(other for other in folds if other != fold))
    assert len(trained) == 8 and not set(trained) & set(held)


def test_prepared_for_each_task(tmp_path):
  source = tmp_path / 'source'
  for i, found in enumerate(write_ids(source, lambda found: found.ids, 'objects/im{}.png')):
    save(source / f'masks/im{i}.png', found.label)
  kwargs = {'instances': 'objects', 'stuff': ('background',)}
  builders = {task: load(source, task, **kwargs) for task in (SEMANTIC, INSTANCE, PANOPTIC)}
  assert len({str(builder.data_path) for builder in builders.values()}) == 3
  for builder in builders.values():
    assert {k: s.num_examples for k, s in builder.info.splits.items()} == {'train': 4, 'val': 1}
  [val] = builders[PANOPTIC].as_data_source('val')
  assert list(val['segments']['label']) == [0, 1, 1, 2]
  [val] = builders[INSTANCE].as_data_source('val')
  assert list(val['objects']['label']) == [1, 1, 2]
  config = InputConfig(DataConfig('folder'), annotations=SEMANTIC)
  assert datasets.spec(builders[SEMANTIC], config).class_names == CLASSES


def test_an_orientation_flag_turns_the_image(tmp_path):
  wide = scene(0, (32, 40))
  for i in range(2):
    save(
      tmp_path / f'images/{i}.jpg',
      wide.image,
      exif=b'Exif\0\0MM\0*\0\0\0\x08\0\1\1\x12\0\3\0\0\0\1\0\x06\0\0\0\0\0\0',
    )
    save(tmp_path / f'masks/{i}.png', np.rot90(wide.label, -1))
  builder = load(tmp_path, splits={'train': 0.5, 'val': 0.5})
  assert builder.as_data_source('train')[0]['label'].shape == (40, 32, 1)
  save(tmp_path / 'masks/0.png', wide.label)
  with pytest.raises(SegjaxError, match=r'0\.png.* 40x32 .*EXIF'):
    load(tmp_path, splits={'train': 0.5, 'val': 0.5})


@pytest.mark.parametrize(
  ('break_it', 'kwargs', 'message'),
  [
    (remove('masks/im1.png'), {}, r"im1\.png has no mask in .*masks: add .*unpaired='skip'"),
    (remove('images/im1.png'), {}, r'masks/im1\.png has no image: add'),
    (rename('masks', 'other'), {}, r'masks is not a directory: correct .*labels'),
    (rename('images', 'other'), {}, r'images is not a directory: correct .*images'),
    (rename('masks/im0.png', 'masks/im1_mask.png'), {}, r'im1\.png and .*im1_mask\.png have'),
    (write('masks/im1.png', gray(30, 32)), {}, r'im1\.png is 32x30 pixels but its image is 32x32'),
    (write('masks/im1.png', gray(*SIZE, 7)), {}, r'im1\.png has the value 7 in 1024 pixels, of no'),
    (write('masks/im1.png', gray(*SIZE, 255)), {}, r'value 255 in 1024 pixels.*add it to .*void'),
    (
      write('masks/im1.png', rgb(32, 32) + np.uint8([1, 2, 3])),
      {},
      "has colors .*encoding='color'",
    ),
    (lambda source: None, {'classes': CLASSES[:2]}, r'has the value 2 in \d+ pixels, of no class'),
    (truncate('images/im1.png', 500), {}, r'images/im1\.png'),
    (truncate('masks/im1.png', 40), {}, r'masks/im1\.png'),
    (lambda s: (s / 'images/im1.png').write_bytes(b''), {}, r'images/im1\.png'),
    (lambda s: (s / 'masks/im1.png').write_text('no image'), {}, r'masks/im1\.png'),
    (
      lambda s: (s / 'images/im1.jpg').write_bytes(b''),
      {},
      r'im1\.jpg and .*im1\.png have the same name',
    ),
    (lambda source: None, {'splits': {'train': 'train'}}, 'the split train has no image'),
    (lambda source: None, {'labels': 'masks/{name}_x'}, 'no image has a mask of its name'),
  ],
)
def test_bad_files_are_one_sentence_and_leave_nothing(tmp_path, break_it, kwargs, message):
  source = tmp_path / 'source'
  write_folder(source)
  break_it(source)
  with pytest.raises(SegjaxError, match=message) as caught:
    load(source, **kwargs)
  assert '\n' not in str(caught.value)
  assert not list((tmp_path / 'prepared').rglob('*.array_record*'))


def test_a_color_without_a_class(tmp_path):
  write_folder(tmp_path, convert=lambda label: COLORS[label])
  two = {'classes': CLASSES[:2], 'colors': tuple(map(tuple, COLORS[:2].tolist()))}
  with pytest.raises(SegjaxError, match=r'im0.png has the color \(0, 60, 200\) in \d+ pixels, of'):
    contents(tmp_path, encoding='color', **two)


def test_masks_of_a_lossy_format(tmp_path):
  for i, found in enumerate(write_images(tmp_path, 5)):
    save(tmp_path / f'masks/im{i}.jpg', found.label * np.uint8(100))
  with pytest.raises(SegjaxError, match=r'and \d+ others, of no class.* save masks as PNG'):
    contents(tmp_path, values=(0, 100, 200))


def test_what_has_no_partner_is_left_out_on_request(tmp_path):
  write_folder(tmp_path)
  remove('masks/im1.png')(tmp_path)
  remove('images/im2.png')(tmp_path)
  assert set(contents(tmp_path, unpaired='skip')) == {'im0', 'im3', 'im4', 'im5'}


def test_one_image_can_be_a_split_alone(tmp_path):
  source = tmp_path / 'source'
  write_folder(source, 1)
  with pytest.raises(SegjaxError, match=r"leaves no image of 1 for val: add .*eval_split='train'"):
    load(source)
  assert load(source, splits={'train': 1}).info.splits['train'].num_examples == 1


@pytest.mark.parametrize(('annotations', 'kwargs'), [(SEMANTIC, {}), (INSTANCE, ANIMAL)])
def test_masks_without_anything_but_background(tmp_path, annotations, kwargs):
  source = tmp_path / 'source'
  write_folder(source, convert=lambda label: label * np.uint8(0))
  with pytest.raises(SegjaxError, match='nothing is annotated on the 5 images of the split train'):
    load(source, annotations, **kwargs)
  assert not list((tmp_path / 'prepared').rglob('*.array_record*'))


def test_labels_of_a_test_split_may_be_kept_back(tmp_path):
  source, reports = tmp_path / 'source', []
  write_folder(source)
  names = sorted(path.stem for path in (source / 'images').iterdir())
  for name in names[:2]:
    path = next((source / 'masks').glob(f'{name}.*'))
    save(path, scene(0).label * np.uint8(0))
  for split, chosen in (('test', names[:2]), ('train', names[2:])):
    (source / f'{split}.txt').write_text('\n'.join(chosen))
  load(source, splits={'train': 'train.txt', 'test': 'test.txt'}, report=reports.append)
  assert any('nothing is annotated on the 2 images of the split test' in r for r in reports)


def test_a_changed_folder_is_prepared_again(tmp_path):
  source = tmp_path / 'source'
  write_folder(source)
  assert load(source).info.splits['train'].num_examples == 5
  save(source / 'images/new.png', scene(9).image)
  save(source / 'masks/new.png', scene(9).label)
  assert sum(s.num_examples for s in load(source).info.splits.values()) == 7
