"""The completion of commands, flags, files and configs for shells, by shtab."""

import argparse
from collections.abc import Iterator

import shtab

from segjax import resources

# Values of these arguments are files or directories; `config` also completes names of configs.
_FILES = ('images', 'labels', 'output', 'source', 'weights', 'html')
_DIRECTORIES = ('workdir', 'workdirs', 'data_dir')


def script(parser: argparse.ArgumentParser, shell: str) -> str:
  """The completion script of `parser` for a shell: 'bash', 'zsh' or 'tcsh'."""
  kinds = dict.fromkeys(_FILES, shtab.FILE) | dict.fromkeys(_DIRECTORIES, shtab.DIRECTORY)
  names = ' '.join(resources.list_configs())
  kinds['config'] = {'bash': '_segjax_configs', 'zsh': '_segjax_configs', 'tcsh': f'({names})'}
  for action in _actions(parser):
    if action.dest in kinds and action.choices is None and action.nargs != 0:
      action.complete = kinds[action.dest]
  preamble = {
    'bash': f'_segjax_configs() {{\n  compgen -W "{names}" -- "$1"\n  compgen -f -- "$1"\n}}',
    'zsh': f"_segjax_configs() {{\n  _alternative 'configs:config:({names})' 'files:file:_files'\n}}",
  }
  return shtab.complete(parser, shell, preamble=preamble)


def _actions(parser: argparse.ArgumentParser) -> Iterator[argparse.Action]:
  for action in parser._actions:  # as shtab does: argparse has no public list
    yield action
    if isinstance(action, argparse._SubParsersAction):
      for sub in action.choices.values():
        yield from _actions(sub)
