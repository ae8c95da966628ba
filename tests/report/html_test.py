import base64
import errno
import html.parser
import io
import os
import pathlib
import re

import numpy as np
import pytest
from PIL import Image

from segjax.report import html as report
from segjax.types import SegjaxError

METRICS = {
  'mean_iou': 0.6172,
  'pixel_error': float('nan'),
  'images': 101,
  'per_class': {
    '<b>x</b>': {'iou': 0.25, 'accuracy': 0.5, 'count': 1},
    'road & car': {'iou': float('nan'), 'dice': 1.0},
  },
}
COLORS = {'<b>x</b>': (1, 2, 3), 'road & car': np.array([4, 5, 6], np.uint8)}
LOG = [
  {'step': 10, 'split': 'train', 'time': 'x', 'loss': 2.0, 'learning_rate': 0.1},
  {'step': 20, 'split': 'train', 'time': 'x', 'loss': 1.0, 'learning_rate': 0.1},
  {'step': 20, 'split': 'val', 'time': 'x', 'loss': 1.5, 'mean_iou': 0.6172},
]
VOID = {'meta', 'img', 'br', 'wbr'}


class _Page(html.parser.HTMLParser):
  """Text, attributes and nesting of a page."""

  def __init__(self, source):
    super().__init__()
    self.tags, self.open, self.words = [], [], []
    self.feed(source)
    assert not self.open

  def handle_starttag(self, tag, attributes):
    self.tags.append((tag, dict(attributes)))
    if tag not in VOID:
      self.open.append(tag)

  def handle_startendtag(self, tag, attributes):
    self.tags.append((tag, dict(attributes)))

  def handle_endtag(self, tag):
    assert self.open.pop() == tag

  def handle_data(self, data):
    if data.strip():
      self.words.append(' '.join(data.split()))

  def named(self, tag):
    return [attributes for name, attributes in self.tags if name == tag]


@pytest.fixture(name='source')
def full_report(tmp_path):
  panel = np.zeros((6, 8, 3), np.uint8)
  report.write_report(
    tmp_path / 'report.html',
    title='unet/<camvid>',
    summary={'model': 'U-Net', 'parameters': 31030658, 'best': '61.7% at "20"'},
    sections=[
      report.metrics_section('Metrics', METRICS),
      report.table_section('Classes', METRICS['per_class'], COLORS),
      report.curves_section('Curves', LOG),
      report.images_section('Examples', [('a" <b>.png', {'image': panel})], COLORS),
      report.text_section('Config', 'name: <unet>\nlr: 0.1'),
    ],
  )
  assert [path.name for path in tmp_path.iterdir()] == ['report.html']
  return (tmp_path / 'report.html').read_text(encoding='utf-8')


def test_report_shows_everything(source):
  words = _Page(source).words
  for expected in (
    *('unet/<camvid>', 'U-Net', '31,030,658', '61.7% at "20"'),
    *('mean_iou', '61.7%', 'pixel_error', '–', 'images', '101'),
    *('<b>x</b>', 'road & car', 'iou', '25.0%', 'accuracy', '0.5000', 'dice', '1.0000'),
    *('loss', 'learning_rate', 'train 1.0000', 'val 1.500', 'val 61.7%'),
    *('image', 'a" <b>.png', 'name: <unet> lr: 0.1'),
    *('Metrics', 'Classes', 'Curves', 'Examples', 'Config'),
  ):
    assert expected in words, expected


def test_report_escapes_what_it_is_given(source):
  assert not re.search(r'<b>x|<camvid>|<unet>|"a" ', source)
  [image] = _Page(source).named('img')
  assert image['alt'] == 'image of a" <b>.png'


def test_report_fetches_nothing(source):
  page = _Page(source)
  for tag, attributes in page.tags:
    assert tag not in ('script', 'link', 'iframe', 'object')
    for name, value in attributes.items():
      if name in ('src', 'href', 'xlink:href', 'srcset', 'poster', 'data'):
        assert value.startswith(('data:', '#')), (tag, name, value)
      assert not name.startswith('on')
  assert not re.search(r'url\((?!#)|@import', source)


def test_ids_are_unique_and_references_resolve(source):
  page = _Page(source)
  ids = [attributes['id'] for _, attributes in page.tags if 'id' in attributes]
  references = re.findall(r'(?:href="|url\()#([^")]+)', source)
  assert references
  assert len(ids) == len(set(ids))
  assert set(references) <= set(ids)


def test_table_draws_shares_as_bars_and_colors_as_swatches():
  body = report.table_section('Classes', METRICS['per_class'], COLORS).body
  # Not the count, although it is 1, and not the values that are NaN or absent.
  assert re.findall(r'width: ([\d.]+)%', body) == ['25.0', '50.0', '100.0']
  assert re.findall(r'rgb\(([\d, ]+)\)', body) == ['1, 2, 3', '4, 5, 6']
  assert body.count('<td>') == 2 * 4


def test_table_without_colors_has_no_swatches():
  assert 'swatch' not in report.table_section('Classes', METRICS['per_class']).body


def test_curves_keep_one_color_a_split():
  body = report.curves_section('Curves', LOG).body
  assert re.findall(r'color: var\(--series-(\d)\)"></i>\s+(\w+)', body) == [
    ('0', 'train'),
    ('1', 'val'),
    ('1', 'val'),
    ('0', 'train'),
  ]
  assert body.count('<svg') == 3


def _images(body):
  return [
    np.asarray(Image.open(io.BytesIO(base64.b64decode(code))))
    for code in re.findall(r'src="data:image/png;base64,([^"]+)"', body)
  ]


def test_images_are_png_in_full_and_large_ones_smaller():
  rng = np.random.default_rng(0)
  small = rng.integers(0, 256, (6, 8, 3), np.uint8)
  large = rng.integers(0, 256, (300, 1024, 3), np.uint8)
  body = report.images_section('', [('a', {'truth': small, 'other': large})]).body
  shown = _images(body)
  np.testing.assert_array_equal(shown[0], small)
  assert shown[1].shape == (150, 512, 3)
  assert body.count('class="small"') == 1


def test_lossy_images_are_jpeg_unless_they_are_shown_enlarged():
  rng = np.random.default_rng(0)
  small = rng.integers(0, 256, (6, 8, 3), np.uint8)
  large = np.repeat(np.repeat(rng.integers(0, 256, (5, 6, 3), np.uint8), 60, 0), 60, 1)
  body = report.images_section('', [('a', {'x': small, 'y': large})], lossy=True).body
  assert re.findall('data:image/(png|jpeg)', body) == ['png', 'jpeg']
  code = re.findall(r'src="data:image/jpeg;base64,([^"]+)"', body)[0]
  shown = np.asarray(Image.open(io.BytesIO(base64.b64decode(code))))
  assert np.abs(shown.astype(int) - large).mean() < 2
  assert 'jpeg' not in report.images_section('', [('a', {'y': large})]).body


def test_counts_show_fractions_in_percent_and_as_bars():
  rows = [
    report.CountsRow('<b>', [1234, 0.5, None], (1, 2, 3)),
    report.CountsRow('<b>', [0, 0.0004, 'text']),
    report.CountsRow('over', [1, 1.5, None]),
  ]
  section = report.counts_section('Classes', ['n', '<share>', 'x'], rows)
  words = _Page(section.body).words
  assert words == [
    *('n', '<share>', 'x'),
    *('<b>', '1,234', '50.0%', '–'),
    *('<b>', '0', '0.04%', 'text'),
    *('over', '1', '150.0%', '–'),
  ]
  assert re.findall(r'width: ([\d.]+)%', section.body) == ['50.0', '0.0', '100.0']
  assert re.findall(r'rgb\(([\d, ]+)\)', section.body) == ['1, 2, 3']


def test_lists_and_histograms():
  body = report.list_section('', ['a < b', 'c']).body
  assert _Page(body).words == ['a < b', 'c']
  values = {'width': {'train': [1, 2], '<val>': [2]}, 'none': {'train': []}}
  body = report.histograms_section('', values).body
  assert body.count('<svg') == 1
  assert '&lt;val&gt;' in body and '<val>' not in body


def test_sections_without_content_are_left_out(tmp_path):
  path = tmp_path / 'report.html'
  empty = [
    report.metrics_section('Metrics', {'per_class': {}}),
    report.table_section('Classes', {}, COLORS),
    report.curves_section('Curves', []),
    report.images_section('Examples', [], COLORS),
    report.text_section('Config', ''),
    report.counts_section('Counts', ['n'], []),
    report.list_section('List', []),
    report.histograms_section('Histograms', {'x': {'train': []}}),
  ]
  report.write_report(path, title='new', summary={}, sections=empty)
  page = _Page(path.read_text(encoding='utf-8'))
  assert [tag for tag, _ in page.tags if tag in ('section', 'details', 'dl')] == []


def test_collapsed_sections_are_details(source):
  page = _Page(source)
  assert len(page.named('details')) == 1 and len(page.named('section')) == 4
  assert not report.text_section('Command', 'segjax', collapsed=False).collapsed


def test_a_truncated_write_leaves_the_old_page(tmp_path, monkeypatch):
  path = tmp_path / 'report.html'
  path.write_text('old')

  def cut_short(self, target):
    raise OSError(errno.ENOSPC, 'No space left on device')

  monkeypatch.setattr(pathlib.Path, 'replace', cut_short)
  message = r'report.html cannot be written, because the disk is full \(.* kB needed, .* free\)'
  with pytest.raises(SegjaxError, match=message):
    report.write_report(path, title='new', summary={}, sections=[])
  assert path.read_bytes() == b'old'
  assert list(tmp_path.iterdir()) == [path]


def test_a_file_name_that_is_not_unicode_can_be_a_caption(tmp_path):
  path = tmp_path / 'report.html'
  images = report.images_section('', [(os.fsdecode(b'\xff.png'), {})])
  report.write_report(path, title='', summary={}, sections=[images])
  assert '?.png' in path.read_text(encoding='utf-8')


def test_a_command_breaks_between_its_words_only(tmp_path):
  path, command = tmp_path / 'report.html', ['segjax', 'evaluate', '--workdir=my <runs>/a']
  report.write_report(path, title='', summary={'a': 'b'}, sections=[], command=command)
  source = path.read_text(encoding='utf-8')
  page = _Page(source)
  assert [word for word in page.words if word in ('segjax', 'evaluate')] == command[:2]
  assert "'--workdir=my <runs>/a'" in page.words, 'quoted for a shell, escaped for HTML'
  assert source.count('</span> ') == 3, 'a copy of the text has spaces'
  assert re.search(r'\.command span \{ display: inline-block;', source)


def test_comparison_marks_the_best_and_colors_runs_as_in_curves():
  cells = [report.Cell('50.0%', 0.5), report.Cell('75.0%', 0.75, best=True)]
  rows = [report.Comparison('<b>mean_iou', cells, (1, 2, 3))]
  section = report.comparison_section('', ['a', 'b'], rows)
  assert _Page(section.body).words == ['a', 'b', '<b>mean_', 'iou', '50.0%', '75.0%']
  assert re.findall(r'class="best">([^<]+)', section.body) == ['75.0%']
  bars = re.findall(r'width: ([\d.]+)%;\s+background: var\(--series-(\d)\)', section.body)
  assert bars == [('50.0', '0'), ('75.0', '1')]


def _confusion(section):
  """The cells of a confusion matrix by row, and their classes."""
  rows = re.findall(r'<tr>(.*?)</tr>', section.body, re.DOTALL)[1:]
  cell = r'<td(?:[^>]*class="(\w+)"[^>]*)?>([^<]*)</td>'
  return [re.findall(cell, row) for row in rows]


def test_confusion_is_in_percent_of_the_true_class():
  confusion = np.array([[3, 1, 0], [0, 0, 0], [999, 0, 1]])
  section = report.confusion_section('', confusion, ['a', '<b>', 'c'], np.eye(3, dtype=np.uint8))
  assert _confusion(section) == [
    [('hit', '75'), ('miss', '25'), ('', '')],
    [('', '')] * 3,
    [('miss', '100'), ('', ''), ('hit', '0')],
  ]
  assert 'title="a, predicted &lt;b&gt;: 25.0%, 1 pixels"' in section.body


def test_of_many_classes_the_most_confused_are_shown():
  count = 40
  confusion = np.diag(np.full(count, 100))
  confusion[30, 31] = confusion[2, 30] = 5
  names = [f'c{i}' for i in range(count)]
  section = report.confusion_section('', confusion, names, np.zeros((count, 3), np.uint8))
  assert len(_confusion(section)) == 24
  assert {'c2', 'c30', 'c31'} <= set(_Page(section.body).words)
  assert '16 classes with fewer wrong pixels are left out' in ' '.join(_Page(section.body).words)


def test_nothing_counted_is_no_confusion_matrix():
  assert not report.confusion_section('', np.zeros((2, 2), int), ['a', 'b'], np.eye(2, 3)).body
