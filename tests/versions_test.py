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


def test_every_run_was_done_and_no_test_failed(versions):
  assert {name: r['failed'] for name, r in versions.latest().items()} == dict.fromkeys(
    versions.ENVIRONMENTS, []
  )


def test_lower_bounds_were_run(versions):
  bounds = {n: versions.bound(r, '>=') for n, r in versions.requirements().items()}
  assert not [name for name, version in bounds.items() if version is None]
  run = versions.latest()['lowest']['versions']
  assert {n: Version(run[n]) for n in bounds} == {n: Version(v) for n, v in bounds.items()}


def test_upper_bounds_exclude_nothing_that_was_run(versions):
  bounds = {n: versions.bound(r, '<') for n, r in versions.requirements().items()}
  bounds = {name: Version(version) for name, version in bounds.items() if version}
  assert {'jax', 'orbax-checkpoint'} <= set(bounds)
  run = versions.latest()['newest']['versions']
  for name, version in bounds.items():
    newest = Version(run[name])
    # The next release series after the one that was run.
    series = (
      (newest.major, newest.minor + 1)
      if version.major == newest.major
      else (
        newest.major + 1,
        0,
      )
    )
    assert (version.major, version.minor) == series, name


def test_the_classifiers_are_the_versions_of_python_that_were_run(versions, root):
  project = tomllib.loads((root / 'pyproject.toml').read_text())['project']
  start = 'Programming Language :: Python :: 3.'
  classified = {c.removeprefix(start) for c in project['classifiers'] if c.startswith(start)}
  runs = versions.latest().values()
  assert classified == {run['python'].split('.')[1] for run in runs}


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
