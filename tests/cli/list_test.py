"""`segjax list`: names that a config can use, each with a line of what it is."""

import json
import os
import subprocess
import sys

import pytest
from commands import run

from segjax import config, merge, resources
from segjax.cli import list as listing
from segjax.convert.load import SOURCES
from segjax.data import datasets
from segjax.experiment import parse
from segjax.lookup import locate
from segjax.tables import runs


@pytest.fixture(scope='module')
def configs():
  """All configs that come with segjax."""
  return [config.read_file(name) for name in resources.list_configs()]


@pytest.mark.parametrize('kind', listing.KINDS)
def test_each_name_has_one_line(kind, capsys):
  assert run('list', kind) == 0
  plain = capsys.readouterr().out.splitlines()
  assert run('list', kind, '--json') == 0
  lines = json.loads(capsys.readouterr().out)
  assert len(plain) == len(lines) > 5
  column = max(map(len, lines)) + 2
  assert [(row[:column].strip(), row[column:]) for row in plain] == list(lines.items())
  assert all(len(line) > 10 for line in lines.values())


@pytest.mark.parametrize('both', [False, True], ids=['output', 'output and errors'])
def test_nobody_reads_the_output(both):
  """`segjax list data | head` ends as other programs do, by SIGPIPE, and without a traceback."""
  read, write = os.pipe()
  os.close(read)
  errors = write if both else subprocess.PIPE
  command = [sys.executable, '-m', 'segjax.main', 'list', 'configs']
  with subprocess.Popen(command, stdout=write, stderr=errors) as process:
    os.close(write)
    said = b'' if both else process.stderr.read()
    assert (process.wait(), said) == (141, b'')


def test_no_output_at_all():
  command = [sys.executable, '-m', 'segjax.main', 'list', 'configs']
  closed = subprocess.run(['bash', '-c', '"$@" >&-', 'bash', *command], capture_output=True)
  assert (closed.returncode, closed.stderr) == (0, b'')


def test_the_models_of_all_configs_are_listed(configs):
  models = listing.models()
  assert {given['model']['name'] for given in configs} <= set(models)
  for name in models:
    assert locate(name, 'config.model.name', 'segjax.models')
  assert models['unet.UNet'] == 'U-Net (Fig. 1), arXiv 1505.04597'
  assert not {'unet.DoubleConv', 'fcn.Upsample', 'panoptic_fpn.SemanticBranch'} & set(models)


def test_the_losses_and_metrics_of_all_configs_are_listed(configs):
  losses, metrics = listing.losses(), listing.metrics()
  for experiment in (parse(given) for given in configs if not merge.named_runs(given)):
    content = experiment.to_dict()
    task = content['task']
    assert all(task in losses[name].rpartition('(')[2] for name in content['losses'])
    assert all(task in metrics[name].rpartition('(')[2] for name in content['eval']['metrics'])
  assert 'median_frequency_weights' not in losses, 'not a loss'


def test_metrics_are_those_of_the_tasks():
  tasks = listing._tasks().values()
  assert set(listing.METRICS) == {name for task in tasks for name in task.METRICS}


def test_data_sets_with_their_variants():
  data = listing.data()
  assert [name for name in data if '/' not in name] == datasets.own_names()
  assert data['scenes'].endswith('By default: 1,000 + 200 images of 128 x 128.')
  assert data['scenes/tiny'] == '16 + 8 images of 64 x 64.'


def test_sources_say_what_they_take():
  lines = listing.sources()
  assert list(lines) == list(SOURCES)
  assert lines['torchvision/vgg16'].startswith(
    '30 arrays, downloaded; input: RGB, config.data.mean=(123.675,116.28,103.53), '
  )
  assert 'from a file' in lines['caffe/segnet']


def test_tables_count_their_results():
  lines = listing.tables()
  assert list(lines) == [folder.name for folder in resources.table_dirs()]
  assert lines['segnet_table6'].endswith('(6 of 6 rows measured)')
  assert lines['panoptic_table1'].endswith('(quoted)')


def test_results_of_earlier_configs_are_not_counted(monkeypatch):
  monkeypatch.setattr(runs, 'is_earlier', lambda record, entry: True)
  assert listing.tables()['segnet_table6'].endswith('(0 of 6 rows measured)')


def test_an_unknown_kind_names_the_known_ones(capsys):
  with pytest.raises(SystemExit) as e:
    run('list', 'modles')
  assert e.value.code == 2
  assert "'configs', 'models', 'data'" in capsys.readouterr().err
