import pytest

from segjax.launch import job as job_lib
from segjax.launch.job import Job
from segjax.types import SegjaxError


@pytest.mark.parametrize(
  ('text', 'name'),
  [
    ('coco', 'coco'),
    ('Mask R-CNN_2', 'mask-r-cnn-2'),
    ('-a.b-', 'a-b'),
    ('x' * 39 + '-yz', 'x' * 39),
  ],
)
def test_names_are_dns_labels(text, name):
  assert job_lib.make_name(text) == name


def test_no_name_is_left():
  with pytest.raises(SegjaxError, match='no letter or digit.*set --name'):
    job_lib.make_name('…')


def test_the_command_of_one_process():
  job = Job('coco', 'unet/scenes', 'runs/a b', (('data.source', 'x'), ('train.steps', '7')))
  assert job_lib.train_command(job) == [
    *('train', '--config=unet/scenes', '--workdir=runs/a b'),
    *('--config.data.source=x', '--config.train.steps=7'),
  ]


def test_minutes_are_rounded_up():
  assert [job_lib.minutes(hours) for hours in (0.001, 0.5, 0.51, 24)] == [1, 30, 31, 1440]
