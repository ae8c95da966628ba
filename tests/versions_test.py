"""The bounds of pyproject.toml are versions that `tests/versions.py` has run."""

import importlib.util
import tomllib

import pytest
from packaging.version import Version


@pytest.fixture(scope='module')
def versions(root):
  spec = importlib.util.spec_from_file_location('versions', root / 'tests/versions.py')
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module


@pytest.fixture
def run(versions):
  """The newest result of an environment by its name."""

  def find(name):
    if name not in (results := versions.latest()):
      pytest.skip(f'{name} was not run: make test-versions')
    return results[name]

  return find


@pytest.fixture
def bounds(versions):
  """The versions after an operator in pyproject.toml, by package."""

  def find(operator):
    found = {n: versions.bound(r, operator) for n, r in versions.requirements().items()}
    return {name: version and Version(version) for name, version in found.items()}

  return find


def test_no_test_failed(versions):
  results = versions.latest()
  assert results and all(r['passed'] for r in results.values())
  assert not [f'{n}: {test}' for n, r in results.items() for test in r['failed']]


def test_every_package_has_a_lower_bound(bounds):
  assert not [name for name, version in bounds('>=').items() if version is None]


def test_lower_bounds_were_run(bounds, run):
  versions = run('lowest')['versions']
  lowest = bounds('>=')
  assert {name: Version(versions[name]) for name in lowest} == lowest


def test_upper_bounds_exclude_what_comes_after_what_was_run(bounds, run):
  upper = {name: version for name, version in bounds('<').items() if version}
  assert {'jax', 'orbax-checkpoint'} <= set(upper)
  versions = run('newest')['versions']
  for name, version in upper.items():
    newest = Version(versions[name])
    following = {(newest.major + 1, 0), (newest.major, newest.minor + 1)}
    assert (version.major, version.minor) in following, name


def test_the_classifiers_are_the_versions_of_python_that_are_run(versions, root):
  project = tomllib.loads((root / 'pyproject.toml').read_text())['project']
  start = 'Programming Language :: Python :: 3.'
  classified = {c.removeprefix(start) for c in project['classifiers'] if c.startswith(start)}
  assert {f'3.{minor}' for minor in classified} == {
    environment.python for environment in versions.ENVIRONMENTS.values()
  }


def test_the_page_is_of_the_results(versions, root):
  page = (root / 'experiments/versions/README.md').read_text()
  assert page == versions.page(versions.latest()) + '\n'


def test_the_lowest_constraints_are_the_lower_bounds(versions):
  lines = versions.constraints('lowest').splitlines()
  assert len(lines) == len(versions.requirements())
  assert 'flatbuffers' in {line.partition('==')[0] for line in lines}
  assert versions.constraints('newest') == ''


def test_counts_of_a_report(versions):
  report = """<testsuites><testsuite>
    <testcase classname="a" name="one"/>
    <testcase classname="a" name="two"><failure/></testcase>
    <testcase classname="a" name="three"><skipped/></testcase>
    <testcase classname="b" name="four"><error/></testcase>
  </testsuite></testsuites>"""
  assert versions.counts(report) == {'passed': 1, 'skipped': 1, 'failed': ['a::two', 'b::four']}
