"""Memory that a step takes beyond weights, optimizer state and inputs, on both sides."""

import ctypes
import functools
import gc

from speed import dense, detection
from speed.row import Options, Program, Row, Work


def step_memory(run: Program) -> float:
  """MiB that the peak of resident memory in a run lies above what stays between runs.

  The program has to have run before.
  """
  gc.collect()
  trim()
  baseline = status('VmRSS')
  with open('/proc/self/clear_refs', 'w') as file:
    file.write('5')  # resets the peak
  run()
  return (status('VmHWM') - baseline) / 1024


def trim() -> None:
  """Gives memory that is free inside glibc's heaps back, where the C library is glibc."""
  give_back = getattr(ctypes.CDLL(None), 'malloc_trim', None)
  if give_back is not None:
    give_back(0)


def status(field: str) -> int:
  """KiB in a field of this process's status."""
  with open('/proc/self/status') as file:
    return next(int(line.split()[1]) for line in file if line.startswith(f'{field}:'))


def _memory(row: Row, options: Options) -> Work:
  work = row.make(options)

  def measuring(run: Program) -> Program:
    run()
    return lambda: step_memory(run)

  peers = {name: measuring(run) for name, run in work.peers.items()}
  return Work(measuring(work.ours), peers)


def _row(row: Row) -> Row:
  return Row(
    f'{row.work}: memory',
    functools.partial(_memory, row),
    reads='result',
    unit='MiB',
    rounds=3,
  )


_STEPS = {
  'unet_train': dense.ROWS['unet_train'],
  'segnet_train': dense.ROWS['segnet_train'],
  'mask_rcnn_infer_800': detection.ROWS['mask_rcnn_infer_800'],
  'mask_rcnn_train_640': detection.ROWS['mask_rcnn_train_640'],
}
ROWS = {f'memory_{name}': _row(row) for name, row in _STEPS.items()}
