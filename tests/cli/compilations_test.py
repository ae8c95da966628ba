"""After its warm-up nothing compiles: not a step, an evaluation, a checkpoint or a prediction."""

import functools

import numpy as np
import pytest

import segjax
from segjax import run as run_lib
from segjax.training.compile import compilations
from segjax.workdir import Workdir


def test_training_and_its_evaluations(semantic_run, compiled):
  entries = compiled(semantic_run)
  names = [(step, split) for step, split, _ in entries]
  assert names == [(1, 'train'), (2, 'train'), (2, 'val'), (3, 'train'), (4, 'train'), (4, 'val')]
  one, two, evaluated, *later = (programs for *_, programs in entries)
  assert one == two < evaluated, 'the evaluation step is another program'
  assert later == [evaluated] * 3


def test_training_on_objects(instance_run, compiled):
  (_, _, one), (_, _, two), _ = compiled(instance_run)
  assert one == two


@pytest.mark.parametrize('name', ['semantic_run', 'instance_run'])
def test_evaluation_and_prediction(name, request):
  workdir = request.getfixturevalue(name)
  loaded = run_lib.load_run(Workdir(workdir))
  run, split = loaded.run, loaded.run.experiment.data.eval_split
  dataset = run_lib.load_dataset(run.experiment)
  mesh = run_lib.make_mesh(run)
  evaluator = run_lib.Evaluator(run, dataset, split, mesh, images=2)
  predictor = segjax.load(workdir)
  image = np.random.default_rng(0).integers(0, 256, (40, 56, run.spec.channels), np.uint8)
  for work in (functools.partial(evaluator, loaded.variables), lambda: predictor(image)):
    before = compilations().programs
    work()
    after = compilations().programs
    assert after > before
    work()
    assert compilations().programs == after
