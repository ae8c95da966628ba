"""Cell Tracking Challenge: gold and silver truth, cells that touch, and ways to be wrong."""

import cv2
import numpy as np
import pytest
from raw_files import gray, remove, rename, write
from scipy import ndimage

from segjax import types
from segjax.data import datasets, pipeline
from segjax.data.builders.cell_tracking import builder as cell_tracking
from segjax.data.config import BatchConfig, DataConfig, InputConfig, SizeConfig
from segjax.data.weight_map import border_weight_map

FRAMES = 4
# Video and truth: the labeled frames.
LABELED = {'01_GT': [1, 3], '02_GT': [0], '01_ST': [0, 1, 2, 3], '02_ST': [0, 1, 2, 3]}


def cells(rng, size=(16, 20), count=6):
  """u16: Voronoi cells, which all touch, one in three of them left out; ids above 255 too."""
  seeds = np.full(size, 255, np.uint8)
  seeds[rng.integers(0, size[0], count), rng.integers(0, size[1], count)] = 0
  _, nearest = cv2.distanceTransformWithLabels(
    seeds, cv2.DIST_L2, 5, labelType=cv2.DIST_LABEL_PIXEL
  )
  return np.where(nearest % 3 == 0, 0, 200 * nearest).astype(np.uint16)


def write_source(directory):
  """Writes two videos of 4 frames with gold and silver truth; returns images and instances."""
  rng = np.random.default_rng(0)
  images, instances = {}, {}
  for video in ('01', '02'):
    (directory / video).mkdir(parents=True)
    for frame in range(FRAMES):
      image = images[video, frame] = rng.integers(0, 256, (16, 20), np.uint8)
      cv2.imwrite(str(directory / video / f't{frame:03d}.tif'), image)
  for truth, frames in LABELED.items():
    (directory / truth / 'SEG').mkdir(parents=True)
    (directory / truth / 'TRA').mkdir()
    for frame in frames:
      instance = instances[truth, frame] = cells(rng)
      cv2.imwrite(str(directory / truth / 'SEG' / f'man_seg{frame:03d}.tif'), instance)
  return images, instances


@pytest.fixture
def source(tmp_path):
  write_source(tmp_path / 'raw/PhC-C2DH-U373')
  return tmp_path / 'raw'


# Config: directory, truth.
CONFIGS = {
  'phc_u373': ('PhC-C2DH-U373', 'GT'),
  'dic_hela': ('DIC-C2DH-HeLa', 'GT'),
  'phc_u373_silver': ('PhC-C2DH-U373', 'ST'),
  'dic_hela_silver': ('DIC-C2DH-HeLa', 'ST'),
}


@pytest.mark.parametrize('config', CONFIGS)
@pytest.mark.parametrize('inside', [False, True])
def test_reads_labeled_frames(prepare, by_name, tmp_path, config, inside):
  directory, truth = CONFIGS[config]
  images, instances = write_source(tmp_path / 'raw' / directory)
  source = tmp_path / 'raw' / directory if inside else tmp_path / 'raw'
  builder = prepare(cell_tracking.Builder, source, config=config)
  for split, video in (('train', '01'), ('val', '02')):
    examples = by_name(builder, split)
    frames = LABELED[f'{video}_{truth}']
    assert sorted(examples) == [f'{video}_t{frame:03d}' for frame in frames]
    for frame in frames:
      example = examples[f'{video}_t{frame:03d}']
      instance = instances[f'{video}_{truth}', frame]
      np.testing.assert_array_equal(example['image'][..., 0], images[video, frame])
      assert example['instance'].dtype == np.uint16
      np.testing.assert_array_equal(example['instance'][..., 0], instance)
      label = cell_tracking.separate_cells(instance)
      np.testing.assert_array_equal(example['label'][..., 0], label)


def test_configs_and_classes(tmp_path):
  assert set(cell_tracking.Builder.builder_configs) == set(CONFIGS)
  builder = cell_tracking.Builder(data_dir=tmp_path)
  assert builder.builder_config.name == 'phc_u373'
  assert builder.info.features['label'].names == ['background', 'cell']
  assert len(builder.info.metadata['palette']) == 2


def test_separate_cells_by_definition():
  rng = np.random.default_rng(1)
  for _ in range(20):
    instance = cells(rng, (9, 11), count=8)
    instance[instance == 200] = 65535
    expected = np.zeros(instance.shape, np.uint8)
    for row, column in np.argwhere(instance > 0):
      window = instance[max(row - 1, 0) : row + 2, max(column - 1, 0) : column + 2]
      expected[row, column] = set(window.ravel()) <= {0, instance[row, column]}
    result = cell_tracking.separate_cells(instance)
    assert result.dtype == np.uint8
    np.testing.assert_array_equal(result, expected)


def test_separate_cells_keeps_what_does_not_touch():
  instance = np.zeros((6, 9), np.uint16)
  instance[1:5, :3], instance[:, 4:6], instance[5, 8] = 7, 300, 1
  result = cell_tracking.separate_cells(instance)
  np.testing.assert_array_equal(result, instance > 0)
  np.testing.assert_array_equal(cell_tracking.separate_cells(np.zeros_like(instance)), 0)


def test_touching_cells_become_components_and_get_border_weights():
  instance = np.zeros((20, 24), np.uint16)
  instance[3:17, 2:12], instance[3:17, 12:22] = 5, 9
  label = cell_tracking.separate_cells(instance)
  component, count = ndimage.label(label, np.ones((3, 3)))
  assert count == 2
  for cell in (5, 9):  # each within one cell, and most of it
    inside = component[instance == cell]
    assert len(np.unique(inside[inside > 0])) == 1
    assert np.mean(inside > 0) == 0.9
  merged = border_weight_map((instance > 0).astype(np.uint8))
  separate = border_weight_map(label)
  assert merged.max() == 1
  assert separate[10, 11] > 8


def test_pipeline_reads_them(prepare, source):
  builder = prepare(cell_tracking.Builder, source)
  data = DataConfig(
    'cell_tracking', size=SizeConfig(crop_size=(8, 8)), weight_map={'w0': 10.0, 'sigma': 5.0}
  )
  config = InputConfig(data, batch=BatchConfig(size=2))
  spec = datasets.spec(builder, config)
  assert (spec.num_classes, spec.channels) == (2, 1)
  batches = pipeline.train_batches(builder, spec, config, seed=0)
  batch, names = next(batches)
  batches.close()
  assert batch['image'].shape == (2, 8, 8, 1)
  assert sorted(names) == ['01_t001', '01_t003']
  assert batch['weight'].max() > 1


BREAKS = {
  'undecodable': (
    lambda root: (root / '01/t001.tif').write_bytes(b'no image'),
    r'01/t001\.tif cannot be decoded',
  ),
  'size': (
    write('02_GT/SEG/man_seg000.tif', np.zeros((16, 19), np.uint16)),
    r'02/t000\.tif is 20x16 .*man_seg000\.tif is 19x16',
  ),
  'label mode': (
    write('02_GT/SEG/man_seg000.tif', gray(16, 20)),
    r'man_seg000\.tif has pixels of mode L, not I;16',
  ),
  'image mode': (
    write('02/t000.tif', np.zeros((16, 20), np.uint16)),
    r't000\.tif has pixels of mode I;16, not L',
  ),
  'truth': (rename('01_GT', '01_GT_old'), r'01_GT/SEG contains no man_segNNN\.tif'),
  'no label': (remove('02_GT/SEG/man_seg000.tif'), r'02_GT/SEG contains no man_segNNN\.tif'),
  'video': (rename('01', 'first'), r'raw does not hold PhC-C2DH-U373.*data\.source'),
  'image': (remove('01/t003.tif'), r'01/t003\.tif is missing'),
}


@pytest.mark.parametrize('case', BREAKS)
def test_bad_raw_files(refuses, source, case):
  break_it, message = BREAKS[case]
  break_it(source / 'PhC-C2DH-U373')
  refuses(cell_tracking.Builder, source, message)


def test_other_data_set_is_not_taken(prepare, source):
  for place in ('', 'PhC-C2DH-U373'):
    with pytest.raises(types.SegjaxError, match=r'does not hold DIC-C2DH-HeLa'):
      prepare(cell_tracking.Builder, source / place, config='dic_hela')
