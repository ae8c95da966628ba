"""How much memory Orbax keeps of checkpoints like those of segjax, without segjax.

python experiments/faults/orbax_alone.py 168
"""

import argparse
import json
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import orbax.checkpoint as ocp

# The part of the saves that is left out at the start: allocators, caches and pools fill up.
_WARM_UP = 1 / 3


def main(args: Sequence[str] | None = None) -> None:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('arrays', type=int, help='of a checkpoint, of 50 floats each')
  parser.add_argument('--saves', type=int, default=1000, help='checkpoints (default: 1000)')
  given = parser.parse_args(args)
  found = memory_of_saves(given.arrays, given.saves)
  print(json.dumps({'arrays': given.arrays, 'saves': given.saves, 'bytes a save': round(found)}))


def memory_of_saves(arrays: int, saves: int) -> float:
  """The bytes of resident memory that a save adds: the slope of a line through all saves.

  Args:
    arrays: of a checkpoint.
    saves: 10 or more; the newest three stay on the disk.
  """
  state = {f'array{i}': np.zeros(50, np.float32) for i in range(arrays)}
  meta = ocp.args.JsonSave({'sha256': dict.fromkeys(state, 64 * '0')})
  folder = tempfile.mkdtemp(prefix='segjax-orbax-')
  options = ocp.CheckpointManagerOptions(max_to_keep=3, enable_async_checkpointing=True)
  used = []
  try:
    with ocp.CheckpointManager(Path(folder) / 'soak' / 'checkpoints', options=options) as manager:
      for step in range(saves):
        saved = ocp.args.Composite(state=ocp.args.StandardSave(state), meta=meta)
        manager.save(step, args=saved)
        manager.wait_until_finished()
        used.append(_resident())
  finally:
    shutil.rmtree(folder)
  kept = np.array(used[int(_WARM_UP * saves) :], float)
  return float(np.polyfit(np.arange(len(kept)), kept, 1)[0])


def _resident() -> int:
  """Bytes of resident memory."""
  lines = Path('/proc/self/status').read_text().splitlines()
  return 1024 * next(int(line.split()[1]) for line in lines if line.startswith('VmRSS'))


if __name__ == '__main__':
  main()
