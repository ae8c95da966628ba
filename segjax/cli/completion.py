"""The completion of commands, flags, files and names for shells, by shtab."""

import argparse
import re
from collections.abc import Iterator

import shtab

from segjax import resources
from segjax.convert.load import SOURCES

SHELLS = ('bash', 'zsh')

# Arguments, or those of one command, whose values are files, directories or names.
_FILES = ('images', 'labels', 'output', 'data.source', 'weights', 'html')
_DIRECTORIES = ('workdir', 'workdirs', 'data_dir')
_NAMES = {'config': 'configs', 'convert.source': 'sources', 'table.name': 'tables'}

# A shell function that completes names of a kind, and files.
_FUNCTIONS = {
  'bash': """_segjax_{kind}() {{
  compgen -W "{names}" -- "$1"
  compgen -f -- "$1"
}}""",
  'zsh': """_segjax_{kind}() {{
  _alternative '{kind}:{kind}:({names})' 'files:file:_files'
}}""",
}
# Bash makes three words of --workdir=runs/scenes, of which shtab expects the first and the last.
_BASH_WITHOUT_EQUALS = """_segjax() {
  local words=() i
  for ((i = 0; i <= COMP_CWORD; i++)); do
    if [[ ${COMP_WORDS[i]} != = ]]; then
      words+=("${COMP_WORDS[i]}")
    elif ((i == COMP_CWORD)); then
      words+=("")
    fi
  done
  local COMP_WORDS=("${words[@]}") COMP_CWORD=$((${#words[@]} - 1))
  _shtab_segjax
}"""


def script(parser: argparse.ArgumentParser, shell: str) -> str:
  """The completion script of `parser` for a shell, one of `SHELLS`."""
  kinds = dict.fromkeys(_FILES, shtab.FILE) | dict.fromkeys(_DIRECTORIES, shtab.DIRECTORY)
  kinds |= {key: dict.fromkeys(SHELLS, f'_segjax_{kind}') for key, kind in _NAMES.items()}
  for command, action in _actions(parser):
    kind = kinds.get(f'{command}.{action.dest}', kinds.get(action.dest))
    if kind is not None:
      action.complete = kind
  names = {
    'configs': resources.list_configs(),
    'sources': SOURCES,
    'tables': [folder.name for folder in resources.table_dirs()],
  }
  functions = [
    _FUNCTIONS[shell].format(kind=kind, names=' '.join(known)) for kind, known in names.items()
  ]
  text = shtab.complete(parser, shell, preamble={shell: '\n'.join(functions)})
  if shell == 'bash':
    called = text.replace(' -F _shtab_segjax ', ' -F _segjax ')
    return f'{called}\n{_BASH_WITHOUT_EQUALS}'
  return re.sub(r'^(  "--[\w-]+)(\[.*\]:)', r'\1=\2', text, flags=re.MULTILINE)  # --flag=value


def _actions(
  parser: argparse.ArgumentParser, command: str = ''
) -> Iterator[tuple[str, argparse.Action]]:
  """The arguments of all commands, with the command's name."""
  for action in parser._actions:  # as shtab does: argparse has no public list
    yield command, action
    if isinstance(action, argparse._SubParsersAction):
      for name, sub in action.choices.items():
        yield from _actions(sub, name)
