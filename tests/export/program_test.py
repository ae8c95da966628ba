"""Which programs an export has."""

import types

import pytest
from inputs import input_config

from segjax.export import program
from segjax.export.program import Plan


def plans(sizes=(), batch=None, common=None, **size):
  """Of a semantic run the images of whose evaluation have one size."""
  config = input_config(**size)
  experiment = types.SimpleNamespace(input=config, data=config.data)
  loaded = types.SimpleNamespace(
    run=types.SimpleNamespace(experiment=experiment), common_size=common
  )
  return program.make_plans(loaded, sizes, batch), config.data.size


@pytest.mark.parametrize(
  ('common', 'size', 'expected'),
  [
    (None, {}, [Plan(None, None, 2)]),
    ((64, 96), {}, [Plan(None, None, 2)]),
    ((90, 120), {}, [Plan(None, None, 2), Plan((90, 120), (90, 120), 2)]),
    ((90, 120), {'image_size': (64, 64)}, [Plan(None, (64, 64), 2)]),
    ((90, 120), {'shapes': ((96, 128),)}, [Plan(None, (96, 128), 2)]),
  ],
)
def test_the_size_of_all_images_has_a_program_that_does_not_pad(common, size, expected):
  found, config = plans(batch=2, common=common, **size)
  assert found == expected
  assert program.choose_plan(found, (90, 120), config) == len(expected) - 1
  assert program.choose_plan(found, (60, 60), config) == 0


def test_programs_of_given_sizes_pad_as_an_evaluation():
  found, _ = plans([(90, 120), (60, 60)], common=(90, 120))
  assert [plan.canvas for plan in found] == [(90, 120), (64, 64)]
