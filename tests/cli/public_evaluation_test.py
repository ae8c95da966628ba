"""What `segjax predict` writes, evaluated by the public algorithms from the files alone."""

import contextlib
import io
import json

import numpy as np
import pytest
from commands import run
from PIL import Image
from public_panoptic import Labeled, public_averages, public_counts
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

import segjax
from segjax.data import pipeline
from segjax.data.formats import coco, panoptic
from segjax.metrics.coco import STATS, coco_metrics
from segjax.run import load_dataset, load_run
from segjax.training import compile
from segjax.workdir import Workdir

COUNT = 6


def predict(workdir, images, output, *args):
  places = [f'--workdir={workdir}', f'--images={images}', f'--output={output}']
  assert run('predict', *places, *args) == 0


def write_split(workdir, folder):
  """The images of val[:6] as files with numbers as names, and the examples by number."""
  folder.mkdir()
  builder, _ = load_dataset(load_run(Workdir(workdir)).run.experiment)
  examples = dict(enumerate(builder.as_data_source(f'val[:{COUNT}]'), 1))
  for number, example in examples.items():
    Image.fromarray(example['image']).save(folder / f'{number}.png')
  return examples


def test_label_maps_give_the_mean_iou(semantic_run, tmp_path):
  # At the images' own size: at another one the labels are resized too.
  own_size = {'data.size.image_size': None}
  examples = write_split(semantic_run, tmp_path / 'in')
  predict(semantic_run, tmp_path / 'in', tmp_path / 'out', '--config.data.size.image_size=none')
  matrix = np.zeros((9, 9), int)
  for number, example in examples.items():
    found = np.asarray(Image.open(tmp_path / f'out/{number}.png'))
    true = example['label'].reshape(found.shape)
    inside = true < 9
    np.add.at(matrix, (true[inside], found[inside]), 1)
  union = matrix.sum(0) + matrix.sum(1) - matrix.diagonal()
  ours = segjax.evaluate(semantic_run, f'val[:{COUNT}]', **own_size)
  assert ours['mean_iou'] == pytest.approx((matrix.diagonal() / union)[union > 0].mean(), abs=1e-9)
  assert 0 < ours['mean_iou'] < 1


def public_stats(truth, results, kind):
  with contextlib.redirect_stdout(io.StringIO()):
    evaluation = COCOeval(truth, truth.loadRes(str(results)), kind)
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
  return evaluation.stats.tolist()


def moved(result, image_id, rng):
  """Some of the objects of a result, a little elsewhere, as the objects that are there."""
  for k in np.flatnonzero(rng.random(len(result.scores)) < 0.8):
    mask = np.roll(result.mask(k), rng.integers(-2, 3, 2) * len(result.image) // 64, (0, 1))
    if mask.any():
      thing = coco.mask_object(
        mask, id=1, label=int(result.classes[k]), category_id=result.category_id(result.classes[k])
      )
      yield {**thing, 'bbox': thing['bbox'].tolist(), 'image_id': image_id}


def annotation(entry, things):
  """An image's objects as the metric reads them."""
  size = [entry['height'], entry['width']]
  objects = [
    {
      'id': thing['id'],
      'category': thing['label'],
      **{key: thing[key] for key in ('bbox', 'area', 'iscrowd')},
      'rle': {'size': size, 'counts': thing['segmentation']},
    }
    for thing in things
  ]
  return {'image_id': entry['id'], 'height': size[0], 'width': size[1], 'objects': objects}


def test_boxes_and_masks_give_ap_and_ar_by_size(instance_run, tmp_path):
  """Of images with objects of all sizes: small, medium and large."""
  rng, images = np.random.default_rng(0), tmp_path / 'in'
  images.mkdir()
  for number, side in enumerate((64, 64, 200, 200, 640, 640), 1):
    Image.fromarray(rng.integers(0, 256, (side, side, 3), np.uint8)).save(images / f'{number}.png')
  # Seen at one size, so that a network of small objects finds large ones.
  predict(instance_run, images, tmp_path / 'out', '--config.data.size.image_size=(64,64)')
  listed = json.loads((tmp_path / 'out/images.json').read_text())
  resized = [('data.size.image_size', '(64,64)')]
  predictor = segjax.load(instance_run, overrides=resized)
  results = predictor.stream(images / entry['file_name'] for entry in listed['images'])
  things = {
    entry['id']: list(moved(result, entry['id'], rng))
    for entry, result in zip(listed['images'], results, strict=True)
  }

  loaded = load_run(Workdir(instance_run), 'latest', resized)
  forward = compile.jit(
    lambda variables, batch: loaded.run.task.predict(
      loaded.run.task.forward(variables, batch, train=False)[0], batch
    )
  )
  metric, parts = coco_metrics(predictor.class_names), []
  for entry in listed['images']:
    pixels = np.asarray(Image.open(images / entry['file_name']))
    batch, _ = pipeline.prepare_image(pixels, loaded.run.experiment.input)
    scale = (batch['size'][0] / batch['native'][0]).tolist()
    found = {k: np.asarray(v) for k, v in forward(loaded.variables, batch).items()}
    seen = {**annotation(entry, things[entry['id']]), 'scale': scale}
    parts.append(metric.from_batch(found, {'valid': np.array([True]), 'annotations': [seen]}))
  ours = metric.compute(metric.merge(*parts))

  every = [thing for entry in things.values() for thing in entry]
  sizes = {entry['id']: [entry['height'], entry['width']] for entry in listed['images']}
  truth = COCO()
  truth.dataset = {
    **listed,
    'annotations': [
      {
        **thing,
        'id': number,
        'segmentation': {'size': sizes[thing['image_id']], 'counts': thing['segmentation']},
      }
      for number, thing in enumerate(every, 1)
    ],
  }
  with contextlib.redirect_stdout(io.StringIO()):
    truth.createIndex()
  for name, kind in (('box', 'bbox'), ('mask', 'segm')):
    public = public_stats(truth, tmp_path / f'out/results_{kind}.json', kind)
    expected = [ours[f'{name}_{stat}'] for stat in STATS]
    np.testing.assert_allclose(public, expected, atol=1e-6)
    assert len(set(np.round(expected, 3))) > 6 and min(expected) > 0, 'all sizes, not all perfect'


def test_segments_give_pq(panoptic_run, tmp_path):
  examples = write_split(panoptic_run, tmp_path / 'in')
  predict(panoptic_run, tmp_path / 'in', tmp_path / 'out')
  listed = json.loads((tmp_path / 'out/images.json').read_text())
  results = json.loads((tmp_path / 'out/results.json').read_text())['annotations']
  index = {category['id']: k for k, category in enumerate(listed['categories'])}
  stats = {}
  for entry in results:
    rgb = np.asarray(Image.open(tmp_path / 'out/results' / entry['file_name']))
    segments = {s['id']: (index[s['category_id']], False) for s in entry['segments_info']}
    found = Labeled(panoptic.rgb_to_ids(rgb), segments)
    example = examples[entry['image_id']]
    true = panoptic.read_example(example, 'x', segments_key=None)
    classes = {k: (int(c), False) for k, c in enumerate(true.classes, 1)}
    public_counts(Labeled(true.ids, classes), found, stats)
  isthing = [bool(category['isthing']) for category in listed['categories']]
  ours = segjax.evaluate(panoptic_run, f'val[:{COUNT}]')
  for group, values in public_averages(stats, isthing).items():
    names = [f'{name}{group}' for name in ('pq', 'sq', 'rq')]
    np.testing.assert_allclose([ours[name] for name in names], values, atol=1e-6)
  assert ours['pq'] > 0.05
