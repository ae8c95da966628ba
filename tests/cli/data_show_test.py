"""`segjax data show`: what is on the page, and how a browser shows it."""

import base64
import html.parser
import io
import json
import os
import re
import shutil
import subprocess

import numpy as np
import pytest
from commands import CONFIGS, SMALL, fails, run
from PIL import Image

BROWSER = next(filter(None, map(shutil.which, ('chromium', 'chromium-browser', 'chrome'))), None)
# An image of each kind that is suspicious, and names that would do harm in a page.
SOURCE = """
import numpy as np
from segjax.data.sample import Objects, Sample

EVIL = '"><script>document.title="taken over"</script><img src=x onerror=alert(1)>'


class Evil:
  class_names = ('background', f'cat {EVIL}', 'dog')
  palette = [(255, 0, 255), (0, 200, 0), (250, 200, 0)]
  things = (1, 2)

  def __init__(self, split, color=128):
    self.split, self.color = split, color

  def __len__(self):
    return {'train': 6, 'val': 2}[self.split]

  def name(self, index):
    return f'{self.split}_{index} {EVIL}'

  def __getitem__(self, index):
    rng = np.random.default_rng([index, self.split == 'val'])
    image = rng.integers(60, self.color + 60, (32, 40, 3), np.uint8)
    label = np.zeros((32, 40), np.uint16)
    label[:16] = 1
    if index == 2:
      image[...] = 1
    if index in (3, 4) or self.split == 'val' and index == 1:
      image[...] = 77
    if index == 5:
      label[:30] = 65535
    masks = np.zeros((2, 32, 40), np.uint8)
    masks[0, :16], masks[1, 20:22, 3:5] = 1, 1
    objects = Objects(None, [0, 1], masks, None)
    return Sample(image, label=label, objects=objects)
"""


class Page(html.parser.HTMLParser):
  """Words of a page by its sections, and its tags."""

  def __init__(self, source):
    super().__init__()
    self.sections, self.tags, self._heading = {'': []}, [], None
    self.feed(source)

  def handle_starttag(self, tag, attributes):
    self.tags.append((tag, dict(attributes)))
    if tag in ('h2', 'summary'):
      self._heading = tag

  def handle_data(self, data):
    text = ' '.join(data.split())
    if not text:
      return
    if self._heading:
      self.sections[text], self._heading = [], None
    else:
      self.sections[list(self.sections)[-1]].append(text)


def read(path):
  return Page(path.read_text(encoding='utf-8'))


@pytest.fixture(scope='module')
def evil(tmp_path_factory):
  """The path of the source, as `config.data.name`."""
  path = tmp_path_factory.mktemp('source') / 'evil.py'
  path.write_text(SOURCE)
  return f'{path}:Evil'


@pytest.fixture(scope='module', name='evil_page')
def write_evil_page(evil, tmp_path_factory):
  path = tmp_path_factory.mktemp('page') / 'page.html'
  assert run('data', 'show', evil, '--task=semantic', f'--output={path}', '--examples=3') == 0
  return path


def test_a_data_set_by_its_name(tmp_path, monkeypatch, capsys):
  monkeypatch.chdir(tmp_path)
  assert run('data', 'show', 'scenes/tiny', '--examples=3') == 0
  assert capsys.readouterr().out == 'page: scenes-tiny.html\n'
  page = read(tmp_path / 'scenes-tiny.html')
  assert page.sections['Splits'] == ['images', 'train', '16', 'val', '8']
  classes = page.sections['Classes of train (16 images)']
  assert classes[:3] == ['images', 'pixels', 'share of pixels']
  assert classes[classes.index('sky') + 1] == '16'
  total = sum(float(word[:-1]) for word in classes if word.endswith('%'))
  assert abs(total - 100) < 1
  examples = page.sections['Examples of train']
  assert examples.count('annotation') == examples.count('image') == 3
  assert 'trained on' not in examples


@pytest.mark.parametrize('task', ['instance', 'panoptic'])
def test_the_other_tasks_of_a_name(tmp_path, task):
  path = tmp_path / 'page.html'
  assert (
    run('data', 'show', 'scenes/tiny', f'--task={task}', f'--output={path}', '--examples=2') == 0
  )
  page = read(path)
  classes = page.sections['Classes of train (16 images)']
  assert classes[:4] == ['images', 'objects', 'pixels', 'share of pixels']
  assert ('sky' in classes) == (task == 'panoptic')
  assert 'objects per image' in page.sections['Distributions']


@pytest.mark.parametrize('task', ['semantic', 'instance', 'panoptic'])
def test_a_config_shows_what_the_network_is_trained_on(tmp_path, task):
  path = tmp_path / 'page.html'
  keys = ['--config.augment.flip_horizontal=1.0', '--config.batch.shuffle=False']
  args = ['data', 'show', CONFIGS[task], *SMALL[task], *keys, '--examples=3']
  assert run(*args, f'--output={path}') == 0
  page = read(path)
  title = 'Examples of train, as stored and as the first batches have them'
  assert page.sections[title].count('trained on') == 3
  assert '"flip_horizontal": 1.0' in page.sections['Config'][0]
  source = path.read_text()
  body = source[source.index(title) : source.index('Examples of val')]
  images = [
    np.asarray(Image.open(io.BytesIO(base64.b64decode(code))).convert('RGB'))
    for code in re.findall(r'src="data:image/\w+;base64,([^"]+)"', body)
  ]
  _, stored, trained = images[:3]
  if task == 'semantic':  # at 32 x 32 pixels, stored are 64 x 64
    stored = stored.reshape(32, 2, 32, 2, 3).mean((1, 3))
  mirrored = np.abs(trained[:, ::-1] - stored.astype(float)).mean()
  assert mirrored < 0.6 * np.abs(trained - stored.astype(float)).mean()


def test_suspicious_images_come_first(evil_page):
  page = read(evil_page)
  assert 'What to check' in page.sections and 'Images to check' in page.sections
  checked = ' '.join(page.sections['Images to check'])
  for expected in (
    'nearly black 1 16.7% 0 0.0%',
    'duplicate images 2 33.3% 0 0.0%',
    'the same image in another split 2 33.3% 1 50.0%',
    'more than 50% of the pixels ignored 1 16.7% 0 0.0%',
  ):
    assert expected in checked
  drawn = page.sections['Images to check, drawn']
  assert drawn.count('annotation') == 5
  order = list(page.sections)
  assert order.index('Images to check, drawn') < order.index('Examples of train')


def test_text_of_the_data_is_escaped(evil_page):
  page = read(evil_page)
  assert not {'script', 'iframe', 'link'} & {tag for tag, _ in page.tags}
  for _, attributes in page.tags:
    assert not [name for name in attributes if name.startswith('on')]
    assert attributes.get('src', 'data:').startswith('data:')
  words = [word for words in page.sections.values() for word in words]
  assert any('<script>document.title="taken over"' in word for word in words)


@pytest.mark.filterwarnings('default:.*boxes without a mask')
def test_boxes_without_masks_are_drawn(tmp_path):
  (tmp_path / 'train').mkdir()
  Image.new('RGB', (40, 30), (77, 77, 77)).save(tmp_path / 'train/a.png')
  (tmp_path / 'train/_annotations.coco.json').write_text(
    json.dumps(
      {
        'images': [{'id': 1, 'file_name': 'a.png', 'height': 30, 'width': 40}],
        'categories': [{'id': 1, 'name': 'cat'}],
        'annotations': [{'id': 1, 'image_id': 1, 'category_id': 1, 'bbox': [5, 5, 20, 10]}],
      }
    )
  )
  path = tmp_path / 'page.html'
  args = [f'--source={tmp_path}', f'--data_dir={tmp_path / "data"}', f'--output={path}']
  assert run('data', 'show', 'coco_instances/custom', '--task=instance', *args) == 0
  classes = read(path).sections['Classes of train (1 image)']
  assert classes[classes.index('cat') :] == ['cat', '1', '1', '200', '16.7%']


def test_a_limit_reads_evenly_spaced_examples(tmp_path, capsys):
  path = tmp_path / 'page.html'
  assert run('data', 'show', 'scenes/tiny', '--limit=4', '--examples=0', f'--output={path}') == 0
  assert 'reading 4 of 16 images of train' in capsys.readouterr().err
  assert 'Classes of train (4 of 16 images)' in read(path).sections


def test_one_split(tmp_path):
  path = tmp_path / 'page.html'
  args = ['data', 'show', 'scenes/tiny', '--split=val[:5]', '--examples=1', f'--output={path}']
  assert run(*args) == 0
  headings = list(read(path).sections)
  assert 'Classes of val[:5] (5 images)' in headings and 'Examples of val[:5]' in headings
  assert not [heading for heading in headings if 'train' in heading]


def test_bad_arguments_are_one_sentence(tmp_path, capsys, evil):
  config = CONFIGS['semantic']
  for args, told in (
    (['show'], 'name a data set or a --config, such as: segjax data show scenes'),
    (['show', 'scenes', config], 'name a data set or a --config'),
    (['show', config, '--task=semantic'], 'leave it out'),
    (['prepare', 'scenes', '--split=train'], '--split is for segjax data show'),
    (['show', 'scenes', '--config.data.name=x'], 'is for a --config'),
    (['show', 'scenes/tiny', '--split=test'], 'test'),
    (['show', 'scenes/tiny', f'--output={tmp_path}/none/x.html'], 'none is not a directory'),
    (['show', evil], 'add --task'),
  ):
    assert told in fails(capsys, 'data', *args), args
  assert list(tmp_path.iterdir()) == []


@pytest.fixture(scope='module', name='profile')
def make_profile(tmp_path_factory):
  """The directory of the browser's state."""
  return tmp_path_factory.mktemp('profile')


def browse(profile, page, *args):
  """Runs the browser on a page; its output."""
  root = ['--no-sandbox'] if os.geteuid() == 0 else []
  command = [BROWSER, '--headless=new', '--disable-gpu', '--disable-dev-shm-usage', *root]
  # A busy machine decodes images late: the page is drawn when all of it is there.
  whole = ['--virtual-time-budget=10000', '--run-all-compositor-stages-before-draw']
  command += [f'--user-data-dir={profile}', '--hide-scrollbars', *whole, *args, page.as_uri()]
  done = subprocess.run(command, capture_output=True, text=True, timeout=120)
  assert done.returncode == 0, done.stderr
  return done.stdout


needs_browser = pytest.mark.skipif(BROWSER is None, reason='there is no Chromium to show the page')


@needs_browser
def test_a_browser_runs_no_code_of_a_name(profile, evil_page):
  dom = browse(profile, evil_page, '--dump-dom')
  found = Page(dom)
  assert 'script' not in {tag for tag, _ in found.tags}
  assert re.search('<title>([^<]*)</title>', dom)[1].endswith('evil.py:Evil')
  assert found.sections == read(evil_page).sections


@needs_browser
@pytest.mark.parametrize(('width', 'height'), [(1200, 4000), (400, 9000)])
def test_a_browser_shows_the_page(tmp_path, profile, evil_page, width, height):
  picture = tmp_path / 'page.png'
  half = '--force-device-scale-factor=0.5'  # a quarter of the pixels, in less time
  browse(profile, evil_page, f'--screenshot={picture}', f'--window-size={width},{height}', half)
  shown = np.asarray(Image.open(picture).convert('RGB')).astype(int)
  assert shown.shape == (height // 2, width // 2, 3)
  is_near = lambda color: np.abs(shown - color).max(-1) < 12
  # The examples' images of one color, and their annotations: half of it, half of the class's.
  assert is_near((77, 77, 77)).sum() > 1000
  assert is_near(((77 + 255) / 2, 77 / 2, (77 + 255) / 2)).sum() > 500
  # Bars of histograms and the swatches of classes.
  assert is_near((37, 99, 235)).sum() > 100
  assert is_near((250, 200, 0)).sum() > 10
