import numpy as np

from segjax.data.statistics import ExampleStatistics, Statistics
from segjax.report import data_page
from segjax.report.data_page import Classes, Split

PALETTE = np.array([[1, 2, 3], [4, 5, 6], [7, 8, 9]], np.uint8)
SEMANTIC = Classes(('sky', '<cat>', 'sea'), PALETTE, ())
INSTANCE = Classes(SEMANTIC.names, PALETTE, (0, 1, 2))
PANOPTIC = Classes(SEMANTIC.names, PALETTE, (1,))


def example(name, pixels=(50, 50, 0), **changed):
  known = {
    'size': (10, 10),
    'objects': 0,
    'smallest': 0,
    'pixels': np.array(pixels),
    'ignored': 0,
    'digest': name,
    'brightness': 100.0,
    'outside': 0,
  }
  return ExampleStatistics(name=name, **{**known, **changed})


def split(*examples, name='train', count=None, objects=(0, 0, 0)):
  statistics = Statistics(list(examples), np.array([1.0]), np.array([2.0]), np.array(objects))
  count = len(examples) if count is None else count
  return Split(name, count, range(0, count, count // len(examples)), statistics)


def test_images_in_two_splits_are_found():
  train = split(example('a'), example('b', digest='x'))
  val = split(example('c', digest='x'), name='val')
  found = data_page.reasons([train, val])
  assert found == [{data_page.IN_BOTH: ['b']}, {data_page.IN_BOTH: ['c']}]
  assert data_page.reasons([train, split(example('c'), name='val')]) == [{}, {}]


def test_suspects_are_drawn_once_with_all_their_reasons_and_their_index_in_the_split():
  dark = example('dark', brightness=1.0, pixels=(10, 0, 0), ignored=90)
  same = [example('twin 0', digest='t'), example('twin 1', digest='t')]
  train = split(example('fine'), dark, *same, count=8)
  found = data_page.reasons([train])
  suspects = data_page.suspects([train], found)
  assert [suspect.index for suspect in suspects] == [2, 4, 6]
  caption = suspects[0].caption
  assert 'nearly black' in caption and 'more than 50% of the pixels ignored' in caption
  assert caption.endswith('train: dark (10 × 10, 90.0% ignored)')
  assert suspects[1].caption.endswith('twin 0 (10 × 10), same image as twin 1')


def test_a_reason_has_its_worst_examples_drawn():
  examples = [example(f'e{i}', objects=3, smallest=15 - i) for i in range(10)]
  train = split(*examples)
  suspects = data_page.suspects([train], data_page.reasons([train]))
  assert [suspect.index for suspect in suspects] == [9, 8, 7, 6]
  assert 'e9 (10 × 10, 3 objects, the smallest of 6 pixels)' in suspects[0].caption


def test_findings_compare_pixels():
  train = split(example('a', size=(100, 100), pixels=(9991, 9, 0)), example('b'))
  [unseen, rare] = data_page.findings(
    [split(example('a', pixels=(99_950, 50, 0)), example('b', (100, 0, 0)))], SEMANTIC
  )
  assert unseen == 'train has no pixel of sea'
  assert rare == 'train: less than 0.1% of the pixels are of <cat>'
  assert data_page.findings([train], SEMANTIC) == [unseen]


def test_findings_compare_objects_in_instance_tasks():
  train = split(example('a', (1, 9000, 5), objects=7), example('b'), objects=(5, 0, 2))
  assert data_page.findings([train], INSTANCE) == ['train has no object of <cat>']
  assert data_page.findings([train], INSTANCE, most=('config.batch.max_objects=6', 6))[1] == (
    'train: images with more than config.batch.max_objects=6 objects: 1; training keeps the largest'
  )


def test_many_classes_are_not_all_listed():
  many = Classes([f'c{k}' for k in range(20)], np.zeros((20, 3), np.uint8), ())
  train = split(*(example(name, np.zeros(20, int)) for name in 'ab'), objects=[0] * 20)
  assert data_page.findings([train], many) == [
    'train has no pixel of c0, c1, c2, c3, c4, c5, c6, c7 and 12 more'
  ]


def test_a_single_image_is_a_finding():
  assert data_page.findings([split(example('a', (50, 40, 10)))], SEMANTIC) == [
    'train has a single image'
  ]


def cells(section):
  text = section.body.replace('</td>', '|').replace('</th>', '|').replace('</tr>', '\n')
  rows = ' '.join(text.striptags().split())
  return [cell.strip() for cell in rows.split('|')]


def test_the_class_table_counts_images_pixels_and_objects():
  train = split(example('a', (50, 25, 0), ignored=25), example('b', (100, 0, 0)), objects=(0, 3, 0))
  section = data_page.classes_section(train, PANOPTIC, collapsed=False)
  assert section.title == 'Classes of train (2 images)' and not section.collapsed
  assert cells(section)[:-1] == [
    *('', 'images', 'objects', 'pixels', 'share of pixels'),
    *('sky', '2', '–', '150', '75.0%'),
    *('<cat>', '1', '3', '25', '12.5%'),
    *('sea', '0', '–', '0', '0.0%'),
    *('(ignored)', '1', '–', '25', '12.5%'),
  ]
  assert '<cat>' not in section.body
  plain = data_page.classes_section(train, SEMANTIC, collapsed=False)
  assert 'objects' not in cells(plain)


def test_a_sample_of_a_split_says_so():
  assert data_page.read_of(split(example('a'), example('b'), count=1000)) == '2 of 1,000 images'
  assert data_page.read_of(split(example('a'))) == '1 image'


def test_the_table_of_reasons_counts_each_split():
  train = split(example('a', brightness=0.0), example('b'))
  val = split(example('c'), name='val')
  splits = [train, val]
  section = data_page.suspicious_section(splits, data_page.reasons(splits))
  assert cells(section)[:-1] == [
    *('', 'train', '', 'val', ''),
    *('nearly black', '1', '50.0%', '0', '0.0%'),
  ]
  names = data_page.names_section(splits, data_page.reasons(splits))
  assert names.body.striptags() == 'train: nearly black a'


def test_distributions_are_of_all_examples_and_of_objects_where_there_are_any():
  boxes = np.array([[4.0, 9.0], [1.0, 1.0]])
  train = split(example('a', objects=2, boxes=boxes), example('b', size=(20, 10)))
  assert data_page.distributions_section([train], INSTANCE).body.count('<svg') == 6
  assert data_page.distributions_section([train], SEMANTIC).body.count('<svg') == 4


def test_facts_say_the_range_of_sizes():
  assert data_page.facts([split(example('a'))])['image size (height × width)'] == '10 × 10'
  sizes = split(example('a', size=(5, 30)), example('b', size=(20, 10)), example('c', size=(5, 30)))
  found = data_page.facts([sizes])
  assert found['image size (height × width)'] == '5 × 10 to 20 × 30, 2 sizes'
  assert found['mean of train'] == '1.0' and found['standard deviation of train'] == '2.0'
