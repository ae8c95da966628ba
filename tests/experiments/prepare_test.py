"""experiments/prepare: what a row says of its measurement, and the page."""

import pathlib
import sys

import pytest

ROOT = pathlib.Path(__file__).parent.parent.parent


@pytest.fixture
def script(monkeypatch, tmp_path):
  monkeypatch.syspath_prepend(ROOT / 'experiments')
  from prepare import run

  monkeypatch.setattr(run, 'RESULTS', tmp_path / 'results.jsonl')
  return run


@pytest.mark.parametrize(
  ('commit', 'dirty', 'shown'),
  [(None, None, 'unknown'), ('1e077fc8c756', False, '1e077fc'), ('1e077fc8c756', True, '1e077fc+')],
)
def test_a_row_names_its_command_and_its_code(script, monkeypatch, commit, dirty, shown):
  """Also where Git cannot tell."""
  monkeypatch.setattr(script.provenance, 'code_version', lambda checkout: (commit, dirty))
  monkeypatch.setattr(sys, 'argv', ['run.py', '--flips=3'])
  script.record('flips', lambda: {'flips': 3, 'harmless': 3})
  [row] = script.lines.read(script.RESULTS)
  assert (row['kind'], row['flips'], row['commit'], row['dirty']) == ('flips', 3, commit, dirty)
  assert row['command'] == 'python experiments/prepare/run.py --flips=3'
  assert row.keys() >= {'time', 'hardware', 'versions', 'load'}
  assert f'| 3 | 3 | 0 | 0 | 0 | {shown} |' in script.page([row])


def test_the_page_is_the_rendered_one(script):
  """Of rows that do not say as much, too."""
  folder = ROOT / 'experiments/prepare'
  text = script.page(script.lines.read(folder / 'results.jsonl'))
  assert (folder / 'README.md').read_text() == text
