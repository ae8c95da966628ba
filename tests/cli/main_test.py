"""Help, errors and exit codes of all commands."""

import errno
import json
import subprocess
import sys

import pytest
from commands import CONFIGS, fails, run

from segjax import main as program
from segjax.launch import job
from segjax.types import SegjaxError


@pytest.mark.parametrize(
  ('command', 'wanted'),
  [
    ('', 'segjax train --config='),
    ('train', '--config.KEY=VALUE'),
    ('evaluate', 'segjax evaluate'),
    ('predict', 'segjax predict'),
    ('data', 'segjax data prepare'),
    ('info', 'segjax info'),
    ('list', 'segjax list configs'),
    ('table', 'segjax table segnet_table1'),
    ('convert', 'segjax convert --source=torchvision/vgg16'),
  ],
)
def test_help_has_examples(capsys, command, wanted):
  with pytest.raises(SystemExit) as e:
    run(*command.split(), '--help')
  assert e.value.code == 0
  assert wanted in capsys.readouterr().out


def test_alone_it_prints_the_commands(capsys):
  with pytest.raises(SystemExit) as e:
    run()
  assert e.value.code == 0
  out = capsys.readouterr().out
  assert all(f'\n    {name} ' in out for name in program.COMMANDS)


@pytest.mark.parametrize('arguments', [[], ['--help'], ['--version'], ['tarin']])
def test_without_a_command_only_the_standard_library_is_imported(arguments):
  """So that it answers at once: JAX alone takes a second."""
  code = (
    'import sys\nbefore = set(sys.modules)\nfrom segjax import main\n'
    f'try:\n  main.main({arguments})\n'
    'finally:\n  print("\\n", *sorted(set(sys.modules) - before))'
  )
  result = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True)
  imported = result.stdout.splitlines()[-1].split()
  assert [name for name in imported if name.startswith('segjax')] == ['segjax', 'segjax.main']
  assert {name.partition('.')[0] for name in imported} <= {'segjax', *sys.stdlib_module_names}
  assert len(imported) < 60


def test_a_training_starts_without_what_only_reports_and_other_frameworks_need():
  code = (
    'import gc, sys\nfrom segjax import main\nmain.make_parser(["train"])\n'
    'assert gc.isenabled()\nprint(*sys.modules)'
  )
  result = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True)
  imported = {name.partition('.')[0] for name in result.stdout.split()}
  assert {'jax', 'grain'} <= imported
  assert not imported & {'matplotlib', 'scipy', 'tensorboardX', 'tensorflow', 'torch'}


@pytest.mark.parametrize('name', program.COMMANDS)
def test_every_command_is_listed_with_its_line(name, capsys):
  with pytest.raises(SystemExit):
    run('--help')
  out = ' '.join(capsys.readouterr().out.split())
  assert f'{name} {program.COMMANDS[name].help}' in out


def test_overrides_are_for_commands_with_a_config(capsys):
  args = program.parse_arguments(
    ['train', '--workdir=w', '--config.a.b=1=2', '--config=f.py', '--config.c', 'd']
  )
  assert (args.config, args.overrides) == ('f.py', [('a.b', '1=2'), ('c', 'd')])
  with pytest.raises(SystemExit):
    run('info', '--workdir=w', '--config.data.dir=x')
  assert 'segjax info does not accept --config.data.dir' in capsys.readouterr().err


def test_debug_shows_the_traceback(tmp_path):
  with pytest.raises(SegjaxError):
    run('info', f'--workdir={tmp_path}', '--debug')


def test_files_that_are_corrupt_or_in_the_way(tmp_path, capsys):
  (tmp_path / 'file').write_text('')
  for workdir in (tmp_path / 'file', tmp_path / 'file' / 'x'):
    args = ['train', CONFIGS['semantic'], f'--workdir={workdir}']
    assert 'check the path, its permissions and the disk' in fails(capsys, *args)
  for content in ('{', '[]'):
    workdir = tmp_path / 'corrupt'
    workdir.mkdir(exist_ok=True)
    (workdir / 'config.json').write_text(content)
    assert 'config.json is corrupt' in fails(capsys, 'info', f'--workdir={workdir}')


@pytest.mark.parametrize(
  ('error', 'code', 'message'),
  [
    (
      ConnectionResetError(104, 'Reset by peer'),
      74,
      'the network: Reset by peer: run the same com',
    ),
    (TimeoutError(), 74, 'the network: TimeoutError: run the same command again'),
    (OSError(errno.ESTALE, 'Stale', 'a/b'), 74, 'segjax: a/b: Stale: run the same command again'),
    (OSError(errno.EIO, 'Failed', 'a/b'), 74, 'segjax: a/b: Failed: run the same command again'),
    (IsADirectoryError(errno.EISDIR, 'Is one', 'a/b'), 2, 'segjax: a/b: Is one: check the path'),
  ],
)
def test_what_a_restart_may_mend_has_a_code_of_its_own(monkeypatch, capsys, error, code, message):
  """Clusters start it again, and not a mistake."""

  def failing(_args):
    raise error

  monkeypatch.setattr('segjax.cli.info.run', failing)
  assert run('info', '--workdir=w') == code
  assert message in capsys.readouterr().err
  assert (code in job.LOST, code == job.MISTAKE) == (code == 74, code == 2)


def test_missing_files(tmp_path, capsys):
  assert 'no config file' in fails(capsys, 'train', '--config=no.py', f'--workdir={tmp_path}')
  for command in ('train', 'evaluate', 'info'):
    assert 'is not the workdir of a run' in fails(capsys, command, f'--workdir={tmp_path}')


def test_distributed_names_what_it_takes(tmp_path, capsys):
  message = fails(capsys, 'train', f'--workdir={tmp_path}', '--distributed=here')
  assert '--distributed=here must be HOST:PORT,COUNT,INDEX' in message


def test_json_is_all_there_is_on_standard_output(semantic_run, tmp_path):
  """Even while C code and TFDS print during the preparation of a data set."""
  args = ['evaluate', f'--workdir={semantic_run}', '--json', f'--config.data.dir={tmp_path}']
  result = subprocess.run(
    [sys.executable, '-m', 'segjax.main', *args], capture_output=True, text=True, check=True
  )
  assert json.loads(result.stdout)['step'] == 4
