"""Shell completion: what bash offers behind a command line."""

import shutil
import subprocess

import pytest
from commands import run

from segjax.cli import completion


@pytest.fixture(scope='module')
def scripts(tmp_path_factory):
  """The scripts of all shells, as `segjax --print-completion` prints them."""
  folder = tmp_path_factory.mktemp('completion')
  with pytest.MonkeyPatch.context() as patch:
    for shell in completion.SHELLS:
      with (folder / shell).open('w') as file, pytest.raises(SystemExit) as e:
        patch.setattr('sys.stdout', file)
        run('--print-completion', shell)
      assert e.value.code == 0
  return folder


# Bash makes a word of each `=`.
@pytest.mark.parametrize(
  ('line', 'wanted'),
  [
    ('segjax ta', ['table']),
    ('segjax list c', ['configs']),
    ('segjax train --work', ['--workdir']),
    ('segjax train --config unet/sc', ['unet/scenes']),
    ('segjax train --config = unet/sc', ['unet/scenes']),
    ('segjax train --workdir = w --config = fcn/camvid', ['fcn/camvid', 'fcn/camvid_cpu']),
    ('segjax new --task =', ['semantic', 'instance', 'panoptic']),
    ('segjax convert --source = torchvision/vgg16_', ['vgg16_features', 'vgg16_bn']),
    ('segjax table unet_', ['unet_table1', 'unet_table2']),
    ('segjax predict --output = fi', ['file.txt']),
    ('segjax info --workdir = fi', []),
  ],
)
def test_bash(scripts, tmp_path, line, wanted):
  (tmp_path / 'file.txt').write_text('')
  command = f"""
    compopt() {{ :; }}
    source {scripts / 'bash'}
    COMP_WORDS=({line}) COMP_LINE='{line}'
    COMP_CWORD=$((${{#COMP_WORDS[@]}} - 1)) COMP_POINT=${{#COMP_LINE}}
    _segjax
    printf '%s\\n' "${{COMPREPLY[@]}}"
  """
  result = subprocess.run(
    ['bash', '-c', command], cwd=tmp_path, capture_output=True, text=True, check=True
  )
  assert [word.removeprefix('torchvision/') for word in result.stdout.split()] == wanted
  assert result.stderr == ''


def test_bash_completes_segjax_by_that_function(scripts):
  assert ' -F _segjax segjax' in (scripts / 'bash').read_text()


def test_zsh_takes_values_behind_an_equals_sign(scripts):
  text = (scripts / 'zsh').read_text()
  assert '"--workdir=[directory of the run]:workdir:_files -/"' in text
  assert '"--debug[show the traceback of an error]"' in text, 'a flag takes no value'
  if zsh := shutil.which('zsh'):
    subprocess.run([zsh, '-n', str(scripts / 'zsh')], check=True)
