"""Data sets outside the package: random-access sources and TFDS builders by their path."""

import pickle

import numpy as np
import pytest
from commands import fails, run

from segjax.data import datasets, pipeline
from segjax.data.config import BatchConfig, DataConfig, InputConfig
from segjax.data.source_reader import open_reader
from segjax.types import SegjaxError

SOURCE = """
import numpy as np
from segjax.data.sample import Objects, Sample


class Squares:
  class_names = ('background', 'square')
  things = (1,)

  def __init__(self, split, count=8):
    self.start, self.count = {'train': 0, 'val': 1000}[split], count

  def __len__(self):
    return self.count

  def __getitem__(self, index):
    x, y = np.random.default_rng(self.start + index).integers(0, 40, 2)
    label = np.zeros((64, 64), np.uint16)
    label[y : y + 20, x : x + 20] = 1
    image = np.stack([label * 200 + 20] * 3, -1).astype(np.uint8)
    objects = Objects(boxes=None, classes=[0], masks=label[None], crowd=None)
    return Sample(image, label=label, objects=objects)
"""
BUILDER = """
import numpy as np
import tensorflow_datasets as tfds
from PIL import Image
import io


def png(pixels):
  file = io.BytesIO()
  Image.fromarray(pixels).save(file, 'png')
  return file.getvalue()


class Stripes(tfds.core.GeneratorBasedBuilder):
  VERSION = tfds.core.Version('1.0.0')

  def _info(self):
    features = {
      'file_name': tfds.features.Text(),
      'image': tfds.features.Image(shape=(None, None, 3)),
      'label': tfds.features.LabeledImage(labels=['a', 'b'], shape=(None, None, 1)),
    }
    return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

  def _split_generators(self, dl_manager):
    return {'train': self._generate_examples(3), 'val': self._generate_examples(2)}

  def _generate_examples(self, count):
    for i in range(count):
      label = np.eye(8, dtype=np.uint8)
      image = np.stack([label * 255] * 3, -1)
      yield i, {'file_name': str(i), 'image': png(image), 'label': png(label)}
"""
TASKS = {'label': ('label',), 'objects': ('objects',)}


@pytest.fixture
def source(tmp_path):
  path = tmp_path / f'{tmp_path.name}.py'
  path.write_text(SOURCE)
  return f'{path}:Squares'


def batches_of(name, annotations, **batch):
  config = InputConfig(
    DataConfig(name), batch=BatchConfig(size=2, **batch), annotations=annotations
  )
  builder = datasets.load(name)
  spec = datasets.spec(builder, config)
  return pipeline.train_batches(builder, spec, config, seed=0), builder, spec, config


@pytest.mark.parametrize('kind', TASKS)
def test_batches_of_a_random_access_source(source, kind):
  batches, builder, spec, config = batches_of(source, TASKS[kind])
  (batch, names) = next(batches)
  batches.close()
  assert spec.splits == {'train': 8, 'val': 8}
  assert names[0].startswith('example ')
  if kind == 'label':
    assert spec.class_names == ('background', 'square')
    square = (batch['image'] > 127)[..., 0]
    np.testing.assert_array_equal(batch['label'] == 1, square)
  else:
    assert spec.class_names == ('square',)
    box = batch['instances'].boxes[0, 0]
    assert (box[2:] - box[:2]).tolist() == [20, 20]
  reader = open_reader(builder, 'val', config, spec)
  reader[0]
  again = pickle.loads(pickle.dumps(reader))
  np.testing.assert_array_equal(again[3].image, reader[3].image)
  assert again.sizes == [(64, 64)] * 8


def test_worker_processes_make_the_source_again(source):
  serial, parallel = (batches_of(source, ('label',), workers=n)[0] for n in (0, 1))
  np.testing.assert_array_equal(next(serial)[0]['image'], next(parallel)[0]['image'])
  serial.close()
  parallel.close()


def test_options_are_the_class_s_own_arguments(source, tmp_path, capsys):
  config = tmp_path / 'config.py'
  text = f"""
from ml_collections import ConfigDict
def get_config():
  return ConfigDict(dict(task='semantic', model=dict(name='unet.UNet', classes=2),
    losses=dict(softmax_cross_entropy={{}}), data=dict(name={source!r}, files=dict(count=3))))
"""
  config.write_text(text)
  assert run('data', 'prepare', f'--config={config}') == 0
  assert 'train 3, val 3' in capsys.readouterr().out
  config.write_text(text.replace('count=3', 'cuont=3'))
  assert 'did you mean count' in fails(capsys, 'data', 'prepare', f'--config={config}')


def test_tfds_builder_outside(tmp_path):
  path = tmp_path / 'stripes.py'
  path.write_text(BUILDER)
  builder = datasets.load(f'{path}:Stripes', tmp_path / 'data')
  config = InputConfig(DataConfig(f'{path}:Stripes', dir=str(tmp_path / 'data')))
  assert datasets.spec(builder, config).splits == {'train': 3, 'val': 2}


@pytest.mark.parametrize(
  ('old', 'new', 'message'),
  [
    ('class_names', 'names', 'has no class_names'),
    ('return Sample(', 'return tuple(', r'is a tuple: return a segjax\.data\.sample\.Sample'),
    ('.astype(np.uint8)', '', r'is uint16\[64, 64, 3\]: return uint8'),
    ('x + 20] = 1', 'x + 20] = 7', 'has the value 7 in 400 pixels: classes are 0 to 1'),
    ('label=label,', 'label=label.astype(int) - 100,', 'has the value -100: return class indices'),
    ('label=label,', 'label=label.astype(int) + 65535,', 'has the value 65536: return class'),
    ('classes=[0]', 'classes=[1]', 'has a class outside 0 to 0'),
    ('objects=objects', 'weight=label', 'has a weight, which is not read.*config.data.weight_map'),
    ('objects=objects', 'objects=None', 'has no objects, which the task reads'),
  ],
)
def test_wrong_sources_are_one_sentence(tmp_path, old, new, message):
  path = tmp_path / f'{tmp_path.name}.py'
  path.write_text(SOURCE.replace(old, new).replace('return tuple(image,', 'return (image,'))
  text = path.read_text().replace('return (image, label=label, objects=objects)', 'return (image,)')
  path.write_text(text)
  annotations = ('objects',) if 'class' in message and '0 to 0' in message else ('label',)
  annotations = ('objects',) if 'objects' in new else annotations
  with pytest.raises(SegjaxError, match=message):
    name = f'{path}:Squares'
    config = InputConfig(DataConfig(name), annotations=annotations)
    builder = datasets.load(name)
    reader = open_reader(builder, 'train', config, datasets.spec(builder, config))
    reader[0].sample(train=True)


def test_missing_classes_are_one_sentence(tmp_path):
  with pytest.raises(SegjaxError, match='cannot import'):
    datasets.load(str(tmp_path / 'none.py:Data'))
  with pytest.raises(SegjaxError, match='there is no module nowhere'):
    datasets.load('nowhere.Data')
  with pytest.raises(SegjaxError, match='has no Data'):
    datasets.load('segjax.types.Data')


def test_the_example_of_the_docs_runs(root, tmp_path):
  page = (root / 'docs/own_data.md').read_text()
  path = tmp_path / f'{tmp_path.name}.py'
  path.write_text(page.split('```python')[1].split('```')[0])
  batches, _, spec, _ = batches_of(f'{path}:Squares', ('label',))
  batch, _ = next(batches)
  batches.close()
  assert spec.class_names == ('background', 'square')
  assert (batch['label'] == 1).sum((1, 2)).tolist() == [400, 400]
