"""`segjax info`."""

import re

import numpy as np
from commands import fails, info, output, run

from segjax.training import sharding


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


def test_the_table_of_shards(semantic_run, capsys, monkeypatch):
  """Each array is shared by the devices or whole on each; all bytes are accounted for."""
  monkeypatch.setattr(sharding, '_SMALLEST', 1)
  args = ['info', f'--workdir={semantic_run}', '--devices=2']
  facts = output(capsys, *args)
  assert {row['axis'] is None for row in facts['fsdp']} == {True, False}
  for row in facts['fsdp']:
    parts = 1 if row['axis'] is None else 2
    assert row['own_bytes'] * parts == 4 * np.prod(row['shape'])
    assert row['axis'] is None or row['shape'][row['axis']] % 2 == 0
  assert sum(np.prod(row['shape']) for row in facts['fsdp']) == facts['parameter_count']
  assert run(*args) == 0
  printed = capsys.readouterr().out
  assert all(row['name'] in printed for row in facts['fsdp'])
  assert '--devices=0 must be 1 or greater' in fails(capsys, *args[:-1], '--devices=0')
