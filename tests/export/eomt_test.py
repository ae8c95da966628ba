"""Exports of a network that predicts masks, for each task, against the run itself."""

import types

import cv2
import numpy as np
import pytest
from networks import abstract, filled
from same_results import check_same

from segjax import run as run_lib
from segjax.data.datasets import DatasetSpec
from segjax.experiment import parse
from segjax.export import export_run, load_exported
from segjax.nn import vit
from segjax.predictor import Predictor

pytest.importorskip('onnx', reason="ONNX is not installed: pip install 'segjax[export]'")
pytest.importorskip('onnxruntime', reason='onnxruntime is not installed')
pytest.importorskip('flatbuffers', reason='flatbuffers is not installed')

NAMES, THINGS = ('sky', 'ball', 'hill', 'box', 'tree'), (1, 3, 4)
THINGS_OF = {'semantic': None, 'instance': tuple(range(5)), 'panoptic': THINGS}
# Of other sizes than that of the network's input, and of its size.
SIZES = [(50, 61), (64, 64), (33, 40)]


@pytest.fixture(scope='module', autouse=True)
def small():
  with pytest.MonkeyPatch.context() as patch:
    patch.setitem(vit.SIZES, 'tiny', vit.VitSize(12, 2, 3))
    yield


def make_run(task, share=None, **model):
  """A run as `load_run` has it, of a network with random weights."""
  inference = {'objects': 12, 'score_threshold': 0.0, 'overlap_threshold': 0.0}
  given = {
    'task': task,
    'model': {
      'name': 'eomt.EoMT',
      'classes': 5,
      'size': 'tiny',
      'queries': 8,
      'query_blocks': 1,
      'grid': (4, 4),
      'annealing': ((5, 9),),
      'inference': inference,
      **model,
    },
    'losses': {'query_class': {}, 'query_mask': {}},
    'data': {'name': 'scenes', 'size': {} if task == 'semantic' else {'shapes': ((64, 64),)}},
  }
  experiment = parse(given)
  colors = np.arange(15, dtype=np.uint8).reshape(5, 3)
  spec = DatasetSpec('scenes', '1.0.0', NAMES, colors, 3, {'train': 4}, THINGS_OF[task])
  variables = {'params': filled(abstract(experiment.model, (1, 64, 64, 3))[0]['params'])}
  if share is not None:
    variables['masked'] = {'share': np.full(1, share, np.float32)}
  restored = types.SimpleNamespace(step=9, params_sha256='0' * 64)
  return run_lib.Loaded(run_lib.build(experiment, spec, {}), restored, variables)


def photograph(size):
  small = np.random.default_rng(0).integers(0, 256, (7, 9, 3), np.uint8)
  return cv2.resize(small, size[::-1], interpolation=cv2.INTER_CUBIC)


@pytest.mark.parametrize(
  ('task', 'kind'),
  [
    ('semantic', 'onnx'),
    ('instance', 'onnx'),
    ('panoptic', 'onnx'),
    # XLA compiles them again for each size.
    *(pytest.param(task, 'stablehlo', marks=pytest.mark.slow) for task in THINGS_OF),
  ],
)
def test_an_export_predicts_as_the_run(tmp_path, task, kind):
  """For any number of images of any size."""
  loaded = make_run(task)
  options = {'probability': True} if task == 'semantic' else {}
  [plan] = export_run(loaded, tmp_path / 'out', kind, **options)
  assert plan.native is None and plan.batch is None
  predictor, other = Predictor(loaded), load_exported(tmp_path / 'out')
  for size in SIZES if kind == 'onnx' else SIZES[:2]:
    image = photograph(size)
    check_same(other(image, **options), predictor(image, **options))


@pytest.mark.parametrize('task', ['semantic', 'panoptic'])
def test_a_network_whose_attention_is_still_masked(tmp_path, task):
  """It is exported as it is evaluated: what is drawn for each query is a constant."""
  loaded, plain = make_run(task, share=0.5), make_run(task)
  options = {'probability': True} if task == 'semantic' else {}
  export_run(loaded, tmp_path / 'out', 'onnx', **options)
  image = photograph((64, 64))
  expected = Predictor(loaded)(image, **options)
  check_same(load_exported(tmp_path / 'out')(image, **options), expected)
  without = Predictor(plain)(image, **options)
  differs = lambda a, b: a is not None and (a != b).any()
  assert differs(expected.probability, without.probability) or differs(
    expected.segments, without.segments
  )
