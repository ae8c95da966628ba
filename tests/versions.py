"""Runs the default tests with the versions of Python and of packages that pyproject.toml allows.

`make test-versions` runs all of `ENVIRONMENTS` and writes experiments/versions/README.md. The first
run of an environment creates it in build/versions, which takes a minute; the tests take as long as
`make test` in each.

  python tests/versions.py [--only=lowest,newest] [--make]
  python tests/versions.py --only=newest --record=no -- -n 0 tests/ops
  python tests/versions.py --page

What follows `--` goes to pytest in place of `-n 2 --dist worksteal`. A Python is found on the PATH
or among pyenv's. Each whole run appends a line to experiments/versions/results.jsonl; a test
compares the bounds of pyproject.toml with the versions that are in the newest lines.
"""

import argparse
import datetime
import importlib.metadata
import json
import os
import re
import resource
import shutil
import subprocess
import sys
import time
import tomllib
import xml.etree.ElementTree
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / 'experiments/versions'
BUILD = ROOT / 'build/versions'
# What pytest gets beside `-m 'not slow'`, as in the Makefile.
PARALLEL = ('-n', '2', '--dist', 'worksteal')
# Packages whose bounds are tested: those of the library, and of the extras that are installed.
EXTRAS = ('export', 'hf')


class Environment(NamedTuple):
  """What a run installs.

  Attributes:
    python: version of Python.
    packages: 'constraints' (constraints.txt), 'newest' or 'lowest', of those that pyproject.toml
      allows. The lowest are those of its own requirements; what these need in turn is the newest
      that fits.
  """

  python: str
  packages: str


ENVIRONMENTS = {
  'python3.12': Environment('3.12', 'constraints'),
  'python3.13': Environment('3.13', 'constraints'),
  'newest': Environment('3.13', 'newest'),
  'lowest': Environment('3.11', 'lowest'),
}


# --- requirements ---------------------------------------------------------------------------------


def requirements() -> dict[str, Requirement]:
  """The requirements of pyproject.toml by name: the library's, and those of `EXTRAS`."""
  project = tomllib.loads((ROOT / 'pyproject.toml').read_text())['project']
  extras = project['optional-dependencies']
  lines = [*project['dependencies'], *(line for name in EXTRAS for line in extras[name])]
  parsed = map(Requirement, lines)
  return {str(canonicalize_name(r.name)): r for r in parsed}


def bound(requirement: Requirement, operator: str) -> str | None:
  """The version after `>=` or `<` in a requirement; None if it has no such bound."""
  return next((s.version for s in requirement.specifier if s.operator == operator), None)


def constraints(packages: str) -> str:
  """Lines for `pip install --constraint`, of an `Environment.packages`."""
  if packages == 'constraints':
    return (ROOT / 'constraints.txt').read_text()
  if packages == 'newest':
    return ''
  lowest = {name: bound(requirement, '>=') for name, requirement in requirements().items()}
  return ''.join(f'{name}=={version}\n' for name, version in lowest.items() if version)


# --- environments ---------------------------------------------------------------------------------


def find_python(version: str) -> str:
  """A Python of a version such as '3.12'.

  Raises:
    SystemExit: none is installed.
  """
  pyenv = Path(os.environ.get('PYENV_ROOT') or Path.home() / '.pyenv')
  found = sorted(pyenv.glob(f'versions/{version}.*/bin/python'))
  for path in [shutil.which(f'python{version}'), *found]:
    # pyenv's own entry on the PATH fails for a version that is not its current one.
    if path and not subprocess.run([path, '-c', ''], capture_output=True, check=False).returncode:
      return str(path)
  raise SystemExit(f'no Python {version}: install it, or leave out its runs with --only')


def make(name: str) -> Path:
  """Makes an environment, unless it is there and was made of the same lines; returns its Python."""
  environment, directory = ENVIRONMENTS[name], BUILD / name
  python, made = directory / 'bin/python', directory / 'made.txt'
  wanted = constraints(environment.packages)
  told = f'{wanted}\n{(ROOT / "pyproject.toml").read_text()}'
  if made.exists() and made.read_text() == told:
    return python
  print(f'{name}: installing in {directory.relative_to(ROOT)}', file=sys.stderr, flush=True)
  shutil.rmtree(directory, ignore_errors=True)
  subprocess.run([find_python(environment.python), '-m', 'venv', directory], check=True)
  listed = directory / 'constraints.txt'
  listed.write_text(wanted)
  pip = [python, '-m', 'pip', '--quiet', '--disable-pip-version-check']
  # The oldest wheels need no compiler; an sdist of that age may not build.
  install = ['install', '--prefer-binary', f'--constraint={listed}']
  subprocess.run([*pip, *install, '-e', f'{ROOT}[dev,{",".join(EXTRAS)}]'], check=True)
  subprocess.run([*pip, 'check'], check=True)
  made.write_text(told)
  return python


# --- runs -----------------------------------------------------------------------------------------


def run(name: str, options: Sequence[str]) -> dict[str, Any]:
  """Runs the default tests in an environment; the line of `results.jsonl`."""
  python, report = make(name), BUILD / f'{name}.xml'
  report.unlink(missing_ok=True)
  command = [python, '-m', 'pytest', '-q', '-m', 'not slow', f'--junitxml={report}', *options]
  environment = {**os.environ, 'PYTHONPATH': str(ROOT)}
  before, start = _processor(), time.perf_counter()
  code = subprocess.run(command, cwd=ROOT, env=environment, check=False).returncode
  seconds, processor = time.perf_counter() - start, _processor() - before
  if not report.exists():
    raise SystemExit(f'{name}: pytest ended with exit code {code}')
  return {
    'environment': name,
    **json.loads(subprocess.check_output([python, __file__, '--facts'], text=True)),
    **counts(report.read_text()),
    'seconds': round(seconds),
    'processor_seconds': round(processor),
    'command': f'python tests/versions.py --only={name}',
    'date': datetime.datetime.now(datetime.UTC).date().isoformat(),
  }


def _processor() -> float:
  used = resource.getrusage(resource.RUSAGE_CHILDREN)
  return used.ru_utime + used.ru_stime


def counts(report: str) -> dict[str, Any]:
  """`passed`, `skipped` and the names of the `failed` tests, of a JUnit report."""
  cases = list(xml.etree.ElementTree.fromstring(report).iter('testcase'))
  has = lambda case, *tags: any(case.find(tag) is not None for tag in tags)
  failed = [f'{c.get("classname")}::{c.get("name")}' for c in cases if has(c, 'failure', 'error')]
  skipped = sum(has(case, 'skipped') for case in cases)
  return {'passed': len(cases) - len(failed) - skipped, 'skipped': skipped, 'failed': failed}


def facts() -> dict[str, Any]:
  """Of this process: Python, packages, hardware and commit."""
  from segjax import provenance

  found = provenance.provenance()
  names = [*requirements(), 'jaxlib']
  return {
    'python': '.'.join(map(str, sys.version_info[:3])),
    'versions': {name: importlib.metadata.version(name) for name in sorted(names)},
    **{key: found[key] for key in ('commit', 'dirty', 'hardware')},
  }


# --- the page -------------------------------------------------------------------------------------


def latest(path: Path | None = None) -> dict[str, dict[str, Any]]:
  """The newest line of `results.jsonl` of each environment."""
  path = path or PAGE / 'results.jsonl'
  lines = map(json.loads, path.read_text().splitlines()) if path.exists() else ()
  found = {line['environment']: line for line in lines}
  return {name: found[name] for name in ENVIRONMENTS if name in found}


def page(results: Mapping[str, Mapping[str, Any]]) -> str:
  """Markdown: a table of the runs, and one of the versions in each."""
  lines = [
    '# Versions',
    '',
    '<!-- Written by: python tests/versions.py --page > experiments/versions/README.md -->',
    '',
    'The default tests (`make test`) with other versions of Python and of packages than those of '
    '`constraints.txt` on Python 3.11: `make test-versions`. A test compares the bounds in '
    '`pyproject.toml` with the versions of `lowest` and `newest`.',
    '',
    '| run | Python | packages | passed | skipped | failed | processor time | command |',
    '| --- | --- | --- | --- | --- | --- | --- | --- |',
  ]
  for name, (python, packages) in ENVIRONMENTS.items():
    if (r := results.get(name)) is None:
      lines.append(f'| {name} | {python} | {packages} | not run | | | | |')
      continue
    lines.append(
      f'| {name} | {r["python"]} | {packages} | {r["passed"]} | {r["skipped"]} | '
      f'{len(r["failed"])} | {r["processor_seconds"] / 60:.0f} min | `{r["command"]}` |'
    )
  failures = [f'- {name}: `{test}`' for name, r in results.items() for test in r['failed']]
  if failures:
    lines += ['', '## Failed', '', *failures]
  return '\n'.join([*lines, *(_packages(results) if results else [])])


def _packages(results: Mapping[str, Mapping[str, Any]]) -> list[str]:
  """The versions of the packages of each run, and its provenance."""
  lines = ['', '## Packages', '', f'| package | {" | ".join(results)} |']
  lines.append('| --- ' * (len(results) + 1) + '|')
  for package in sorted({package for r in results.values() for package in r['versions']}):
    versions = ' | '.join(r['versions'].get(package, '') for r in results.values())
    lines.append(f'| {package} | {versions} |')
  lines += ['', '## Provenance', '']
  for name, r in results.items():
    commit = (r['commit'] or 'unknown')[:7] + ('+' if r['dirty'] else '')
    lines.append(f'- {name}: commit {commit}, {r["date"]}, {r["hardware"]}')
  return [*lines, '', '+: with uncommitted changes.']


def main() -> None:
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument('--only', default=','.join(ENVIRONMENTS), help='comma-separated names')
  parser.add_argument('--make', action='store_true', help='only make the environments')
  parser.add_argument('--record', choices=('yes', 'no'), default='yes', help='in results.jsonl')
  parser.add_argument('--page', action='store_true', help='only print the page')
  parser.add_argument('--facts', action='store_true', help=argparse.SUPPRESS)
  parser.add_argument('pytest', nargs='*', help='options of pytest, after --')
  args = parser.parse_args()
  if args.facts:
    print(json.dumps(facts()))
    return
  if args.page:
    print(page(latest()))
    return
  names = re.split(r',\s*', args.only)
  if unknown := [name for name in names if name not in ENVIRONMENTS]:
    parser.error(f'--only={unknown[0]}: one of {", ".join(ENVIRONMENTS)}')
  if args.make:
    for name in names:
      make(name)
    return
  failed = 0
  for name in names:
    result = run(name, args.pytest or PARALLEL)
    failed += len(result['failed'])
    print(f'{name}: {result["passed"]} passed, {len(result["failed"])} failed', file=sys.stderr)
    if args.record == 'yes':
      PAGE.mkdir(exist_ok=True)
      with (PAGE / 'results.jsonl').open('a') as file:
        file.write(json.dumps(result, sort_keys=True) + '\n')
      (PAGE / 'README.md').write_text(page(latest()) + '\n')
  sys.exit(failed > 0)


if __name__ == '__main__':
  main()
