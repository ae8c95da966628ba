"""The notebooks run from the first to the last cell, with tiny networks."""

import commands
import pytest

from segjax.config import parse_value

nbclient = pytest.importorskip('nbclient', reason="pip install 'segjax[docs]'")
nbformat = pytest.importorskip('nbformat')

TASKS = ('semantic', 'instance', 'panoptic')


def read(root, task):
  return nbformat.read(root / f'docs/notebooks/{task}.ipynb', as_version=4)


def parameters(task, directory):
  """The cell that replaces the one tagged `parameters`: the small network of the tests."""
  keys = (text.removeprefix('--config.').split('=', 1) for text in commands.SMALL[task])
  overrides = {key: parse_value(value) for key, value in keys} | {'train.steps': 2}
  return f'workdir = streets = {str(directory / "run")!r}\noverrides = {overrides!r}'


@pytest.mark.parametrize('task', TASKS)
def test_the_first_code_cell_is_that_of_the_parameters(root, task):
  code = [cell for cell in read(root, task).cells if cell.cell_type == 'code']
  assert [cell.metadata.get('tags', []) for cell in code[:2]] == [['parameters'], []]


@pytest.mark.slow
@pytest.mark.parametrize('task', TASKS)
# Of the kernel's event loop, and no fault of the notebook.
@pytest.mark.filterwarnings('ignore::DeprecationWarning', 'ignore::ResourceWarning')
def test_notebook_runs(root, tmp_path, monkeypatch, task):
  monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'cache'))
  monkeypatch.setenv('PYTHONPATH', str(root))
  monkeypatch.delenv('SEGJAX_DATA_DIR', raising=False)
  notebook = read(root, task)
  cell = next(c for c in notebook.cells if 'parameters' in c.metadata.get('tags', []))
  cell.source = parameters(task, tmp_path)
  client = nbclient.NotebookClient(
    notebook, timeout=280, resources={'metadata': {'path': tmp_path}}
  )
  client.execute()
  pictures = [
    output
    for cell in notebook.cells
    for output in cell.get('outputs', [])
    if 'image/png' in output.get('data', {})
  ]
  assert len(pictures) == (2 if task == 'semantic' else 1)
