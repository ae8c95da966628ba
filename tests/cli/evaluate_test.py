"""`segjax evaluate`: metrics, threshold tuning, and overrides for trained networks."""

import re
import shutil

import numpy as np
import pytest
from commands import fails, output, read_log, run

from segjax.cli.evaluate import evaluate_run
from segjax.experiment import measures, task_module
from segjax.metrics import coco
from segjax.report import picture
from segjax.report.values import format_metric
from segjax.workdir import Workdir


def evaluate(workdir, capsys, *args):
  return output(capsys, 'evaluate', f'--workdir={workdir}', *args)


def test_json_is_what_training_measured(semantic_run, capsys):
  metrics = evaluate(semantic_run, capsys)
  assert (metrics['step'], metrics['split']) == (4, 'val')
  assert 0 <= metrics['mean_iou'] <= 1
  assert 0 <= metrics['pixel_accuracy'] <= 1
  assert metrics['mean_iou'] == pytest.approx(read_log(semantic_run)[-1]['mean_iou'])


def test_a_report_in_the_working_directory_has_its_name(
  semantic_run, tmp_path, monkeypatch, capsys
):
  workdir = shutil.copytree(semantic_run, tmp_path / 'mine')
  monkeypatch.chdir(workdir)
  evaluate('.', capsys)
  assert '<title>mine' in (workdir / 'report.html').read_text(encoding='utf-8')


def test_every_image_counts_once(semantic_run, capsys):
  """For any batch size: 8 images in batches of 8, of 3 with padding, of 3 on 4 devices."""
  eight, three, four = (
    evaluate(semantic_run, capsys, f'--config.mesh.data={data}', f'--config.batch.eval_size={size}')
    for data, size in ((1, 8), (1, 3), (4, 3))
  )
  assert eight['per_class'] == three['per_class'] == four['per_class']
  # The counts above are exact. XLA adds up the losses of few pixels, here 8,192, one after the
  # other in float32: with jax 0.10.1 the means differ by 2e-5.
  assert eight['loss'] == pytest.approx(three['loss'], rel=1e-4)
  assert eight['loss'] == pytest.approx(four['loss'], rel=1e-4)


@pytest.mark.parametrize('split', ['val', 'val[:1]', 'val[:4]'])
def test_the_median_image_is_drawn(semantic_run, split):
  found = evaluate_run(Workdir(str(semantic_run)), 'latest', split, median=True)
  name, panels = found.median
  scores = dict(found.measured.scores)
  ordered = sorted(scores.values())
  assert scores[name] == ordered[(len(ordered) - 1) // 2]
  examples = dict(found.measured.examples)
  if name in examples:
    assert all((examples[name][title] == panel).all() for title, panel in panels.items())
  assert {'image', 'truth', 'prediction'} <= set(panels)
  assert evaluate_run(Workdir(str(semantic_run)), 'latest', split).median is None


def test_the_median_image_of_objects_is_drawn(instance_run):
  found = evaluate_run(Workdir(str(instance_run)), 'latest', median=True)
  name, panels = found.median
  assert found.measured.measure == 'f1' and name in dict(found.measured.scores)
  assert len({panels[title].shape for title in picture.PANELS}) == 1
  assert len(picture.picture(panels)) <= picture.LIMIT


def test_for_people_metrics_are_in_percent(semantic_run, capsys):
  args = [f'--workdir={semantic_run}', '--split=train', '--checkpoint=2']
  measured = output(capsys, 'evaluate', *args)['mean_iou']
  assert run('evaluate', *args) == 0
  out = capsys.readouterr().out
  assert f'mean_iou {format_metric("mean_iou", measured)}' in ' '.join(out.split())
  assert '%' in format_metric('mean_iou', measured)
  assert f'train at step 2; report: {semantic_run / "report.html"}' in out


@pytest.mark.parametrize('split', ['val', 'val[:1]'])
def test_what_the_score_does_not_measure(semantic_run, capsys, split):
  """Classes without a true pixel, which the averages leave out, are named beside the score."""
  args = [f'--workdir={semantic_run}', f'--split={split}']
  found = output(capsys, 'evaluate', *args)
  unseen = [name for name, row in found['per_class'].items() if row['accuracy'] is None]
  assert found['unseen_classes'] == unseen and found['ignored_pixels'] == 0
  assert bool(unseen) == (split == 'val[:1]')
  assert run('evaluate', *args) == 0
  sentence = f'in {split}, {len(unseen)} of 9 classes never occur'
  assert (sentence in capsys.readouterr().out) == bool(unseen)
  assert (sentence in (semantic_run / 'report.html').read_text()) == bool(unseen)


def test_objects_by_class(instance_run, capsys, monkeypatch):
  """The average over the classes; each ball is found as it is, and no object of another class."""

  def found(annotation):
    balls = [thing for thing in annotation['objects'] if thing['category'] == 0]
    return {
      'annotation': annotation,
      'boxes': np.array([thing['bbox'] for thing in balls], np.float64).reshape(-1, 4),
      'classes': np.zeros(len(balls), np.int32),
      'scores': np.ones(len(balls), np.float32),
      'masks': [thing['rle']['counts'] for thing in balls],
    }

  def results(predictions, batch, paste):
    return [found(batch['annotations'][i]) for i in np.flatnonzero(batch['valid'])]

  monkeypatch.setattr(coco, 'image_results', results)
  metrics = evaluate(instance_run, capsys)
  for name in ('box_ap', 'mask_ap'):
    by_class = {key: row[name] for key, row in metrics['per_class'].items()}
    assert by_class == {'ball': 1, 'box': 0, 'tree': 0, 'ring': 0, 'star': 0}
    assert metrics[name] == pytest.approx(1 / 5)


@pytest.mark.slow
def test_thresholds_of_inference_can_be_set(instance_run, capsys, monkeypatch):
  """So many objects of an image are measured."""
  counts, image_results = [], coco.image_results

  def counted(*args):
    found = image_results(*args)
    counts.extend(len(result['scores']) for result in found)
    return found

  monkeypatch.setattr(coco, 'image_results', counted)
  evaluate(instance_run, capsys, '--split=val[:2]')
  evaluate(instance_run, capsys, '--split=val[:2]', '--config.model.box_head.max_detections=1')
  assert counts == [5, 5, 1, 1]


@pytest.mark.slow
@pytest.mark.nightly
def test_evaluate_and_tune_agree(panoptic_run, capsys):
  """The metric of a setting in the search equals that of its evaluation."""
  plain = evaluate(panoptic_run, capsys)
  assert 'water' in plain['per_class'] and plain['pq'] > 0
  found = evaluate(panoptic_run, capsys, '--tune')
  assert found['own']['pq'] == pytest.approx(plain['pq'], abs=1e-12)
  assert found['tried'][0] == found['own']
  worst = min(found['tried'], key=lambda entry: entry['pq'])
  assert found['best']['pq'] > worst['pq']
  for entry in (found['best'], worst):
    chosen = [f'--config.eval.{k}={v}' for k, v in entry.items() if k != found['measure']]
    assert evaluate(panoptic_run, capsys, *chosen)['pq'] == pytest.approx(entry['pq'], abs=1e-12)


@pytest.mark.slow
def test_tune_for_people_shows_how_to_set_the_best(panoptic_run, capsys):
  assert run('evaluate', f'--workdir={panoptic_run}', '--tune') == 0
  out = capsys.readouterr().out
  assert 'settings tried: best pq=' in out
  assert 'set it with --config.eval.' in out


def test_a_task_without_thresholds_has_none_to_tune(semantic_run, capsys):
  message = fails(capsys, 'evaluate', f'--workdir={semantic_run}', '--tune')
  assert '--tune: the task semantic has no thresholds to tune' in message


@pytest.mark.parametrize(
  ('args', 'message'),
  [
    (['--config.model.width=3'], 'config.model.width belongs to the training'),
    (['--split=tset'], 'has no split'),
    (['--checkpoint=3'], 'no checkpoint of step 3: it has 2, 4'),
  ],
)
def test_mistakes_are_one_sentence(semantic_run, capsys, args, message):
  assert message in fails(capsys, 'evaluate', f'--workdir={semantic_run}', *args)


@pytest.mark.parametrize('task', ['semantic', 'instance', 'panoptic'])
def test_the_numbers_of_each_metric_are_known_before(request, task):
  workdir = Workdir(str(request.getfixturevalue(f'{task}_run')))
  known = task_module(task).MEASURES
  assert set(known) == set(task_module(task).METRICS)
  # Not isbi, for two classes: see `train_test`.
  overrides = [('eval.metrics', str(tuple(name for name in known if name != 'isbi')))]
  found = evaluate_run(workdir, 'latest', 'val[:2]', overrides)
  numbers = {key for key, value in found.metrics.items() if isinstance(value, float)}
  assert numbers == set(measures(found.run.experiment))


def test_the_report_says_how_to_repeat_it(semantic_run, tmp_path, capsys):
  workdir = tmp_path / 'run'
  shutil.copytree(semantic_run, workdir)
  evaluate(workdir, capsys, '--checkpoint=best', '--config.eval.test_time_augmentation=flip')
  words = re.sub(r'<[^>]*>|\s+', ' ', (workdir / 'report.html').read_text())
  options = '--split=val --checkpoint=best --config.eval.test_time_augmentation=flip'
  assert f'segjax evaluate --workdir={workdir} {options}' in re.sub(' +', ' ', words)


def test_the_report_has_the_worst_images_and_the_confusion_matrix(semantic_run, capsys):
  args = ['--config.train.images=3']
  evaluate(semantic_run, capsys, *args)
  source = (semantic_run / 'report.html').read_text()
  assert source.index('Confusion matrix') < source.index('Worst images') < source.index('Examples')
  worst = source[source.index('Worst images') : source.index('Examples')]
  scores = [float(s) for s in re.findall(r': mean_iou ([\d.]+)%</figcaption>', worst)]
  assert len(scores) == 3 and scores == sorted(scores)
  # Of a split of so few images, the examples would be the same.
  evaluate(semantic_run, capsys, '--split=val[:2]', *args)
  source = (semantic_run / 'report.html').read_text()
  assert 'Worst images' in source and 'Examples' not in source
