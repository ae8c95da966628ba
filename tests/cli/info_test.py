"""`segjax info`."""

import re

from commands import info, run


def test_facts(semantic_run, capsys):
  facts = info(semantic_run, capsys)
  assert (facts['step'], facts['steps'], facts['checkpoints']) == (4, 4, [2, 4])
  assert re.fullmatch('[0-9a-f]{64}', facts['parameters_sha256'])
  assert re.fullmatch('[0-9a-f]{12}', facts['config_digest'])
  assert facts['parameter_count'] > 0
  assert facts['best_metric'] == 'mean_iou'
  assert facts['best_step'] in (2, 4) and 0 <= facts['best_value'] <= 1
  assert run('info', f'--workdir={semantic_run}') == 0
  assert facts['parameters_sha256'] in capsys.readouterr().out
