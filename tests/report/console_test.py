import io
import re

import pytest
from rich.console import Console

from segjax.report import console
from segjax.report.console import TrainProgress, metrics_table


class _Terminal(io.StringIO):
  def isatty(self):
    return True


def _printed(metrics):
  stream = io.StringIO()
  Console(file=stream, width=100).print(metrics_table(metrics))
  return [line.split() for line in stream.getvalue().splitlines() if line.strip()]


def test_metrics_table_shows_scalars_and_classes():
  lines = _printed(
    {
      'mean_iou': 0.61723,
      'images': 101,
      'per_class': {
        '[bold]sky': {'iou': 0.5, 'dice': float('nan')},
        'road': {'iou': 1.0},
      },
    }
  )
  assert ['metrics', 'value'] in lines
  assert ['mean_iou', '61.7%'] in lines
  assert ['images', '101'] in lines
  assert ['per', 'class', 'iou', 'dice'] in lines
  assert ['[bold]sky', '50.0%', '–'] in lines
  assert ['road', '100.0%', '–'] in lines


def test_metrics_table_without_metrics_is_empty():
  assert _printed({'per_class': {}}) == []


@pytest.fixture(name='clock')
def fake_clock(monkeypatch):
  now = [1000.0]
  monkeypatch.setattr(console.time, 'monotonic', lambda: now[0])
  return now


def test_a_file_gets_one_plain_line_for_each_update_with_values(clock, monkeypatch):
  monkeypatch.setenv('FORCE_COLOR', '1')
  stream = io.StringIO()
  with TrainProgress(1000, 200, stream) as progress:
    progress.message('resumes from step [200]')
    progress.update(210, {'loss': 0.5, 'images_per_second': 12.345})
    for step in range(211, 220):
      progress.update(step)
    clock[0] += 10
    progress.update(220, {'loss': 0.25, 'images_per_second': 12.345})
  assert stream.getvalue().splitlines() == [
    'resumes from step [200]',
    'step 210/1000  loss 0.5000  images/s 12.35  – left',
    'step 220/1000  loss 0.2500  images/s 12.35  0:13:00 left',
  ]


def test_a_terminal_gets_a_bar(monkeypatch):
  monkeypatch.setenv('TERM', 'xterm')
  monkeypatch.setenv('COLUMNS', '120')
  stream = _Terminal()
  with TrainProgress(1000, 200, stream) as progress:
    progress.update(210, {'loss': 0.5})
    progress.message('saved [step] 210')
    progress.update(1000, {'loss': 0.25})
  text = re.sub(r'\x1b\[[0-9;?]*[a-zA-Z]', '', stream.getvalue())
  assert '━' in text
  assert '1000/1000 loss 0.2500' in text
  assert 'saved [step] 210' in text


def test_a_dumb_terminal_gets_plain_lines(monkeypatch):
  monkeypatch.setenv('TERM', 'dumb')
  stream = _Terminal()
  with TrainProgress(10, stream=stream) as progress:
    progress.update(5, {'loss': 0.5})
  assert stream.getvalue() == 'step 5/10  loss 0.5000  – left\n'


def test_progress_goes_to_standard_error(capsys):
  with TrainProgress(10) as progress:
    progress.update(5, {'loss': 0.5})
  captured = capsys.readouterr()
  assert captured.out == ''
  assert captured.err.startswith('step 5/10  loss 0.5000')


def test_a_bar_leaves_standard_output_alone(monkeypatch, capsys):
  monkeypatch.setenv('TERM', 'xterm')
  stream = _Terminal()
  with TrainProgress(10, stream=stream):
    print('{"mean_iou": 0.5}')
  assert capsys.readouterr().out == '{"mean_iou": 0.5}\n'
  assert 'mean_iou' not in stream.getvalue()


def test_an_exception_passes_through_and_stops_the_bar(monkeypatch):
  monkeypatch.setenv('TERM', 'xterm')
  stream = _Terminal()
  with pytest.raises(KeyError), TrainProgress(10, stream=stream):
    raise KeyError
  assert stream.getvalue().endswith('\x1b[?25h')  # the cursor is shown again
