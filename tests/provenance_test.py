"""The provenance of a result."""

import re
import subprocess

from segjax import provenance


def test_where_git_cannot_tell_the_environment_names_the_commit(monkeypatch):
  monkeypatch.setenv('SEGJAX_COMMIT', '1e077fc')
  monkeypatch.setattr(provenance, 'code_version', lambda checkout: (None, None))
  assert provenance.provenance()['commit'] == '1e077fc'
  monkeypatch.setattr(provenance, 'code_version', lambda checkout: ('7ac4161', False))
  assert provenance.provenance()['commit'] == '7ac4161'


def test_code_version(tmp_path):
  git = lambda *args: subprocess.run(
    ['git', '-C', tmp_path, *args], check=True, capture_output=True
  )
  assert provenance.code_version(tmp_path) == (None, None)
  git('init')
  (tmp_path / 'segjax').mkdir()
  (tmp_path / 'segjax/a.py').write_text('1')
  git('add', '.')
  git('-c', 'user.name=a', '-c', 'user.email=a@b', 'commit', '-m', 'a')
  commit, dirty = provenance.code_version(tmp_path)
  assert re.fullmatch('[0-9a-f]{40}', commit)
  assert dirty is False
  (tmp_path / 'experiments/speed').mkdir(parents=True)
  for name in ('README.md', 'experiments/speed/README.md', 'experiments/speed/results.jsonl'):
    (tmp_path / name).write_text('not code')
  assert provenance.code_version(tmp_path) == (commit, False)
  for name in ('segjax/b.py', 'experiments/speed/ops.py', 'experiments/speed/table.toml'):
    (tmp_path / name).write_text('2')
    assert provenance.code_version(tmp_path) == (commit, True)
    (tmp_path / name).unlink()
    assert provenance.code_version(tmp_path) == (commit, False)
  assert provenance.code_version(tmp_path / 'segjax') == (None, None), 'inside another checkout'
