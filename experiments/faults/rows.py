"""The rows of the table, by name."""

from collections.abc import Mapping

from faults import disk, files, kills, processes, soak
from faults.place import INSTANCE, SEMANTIC
from faults.row import Row

# A network whose checkpoints take a while to be written, saved at each step.
_LARGE = SEMANTIC.but(
  steps=90, model__width=12, model__depth=4, train__checkpoint_every=1, train__eval_every=45
)
_SHORT = SEMANTIC.but(steps=60, train__eval_every=20)
# Of a run that other processes have to find running.
_SLOW = SEMANTIC.but(steps=800)
# Of runs without an end, as measured by the time that they take.
_ENDLESS = {'steps': 10_000_000, 'train__eval_every': 400, 'train__checkpoint_every': 200}

KINDS: Mapping[str, Mapping[str, Row]] = {
  'Kills and signals': {
    'sigkill_semantic': Row(
      'SIGKILL at random moments of training, semantic', kills.training(SEMANTIC), 30
    ),
    'sigkill_instance': Row(
      'SIGKILL at random moments of training, instance', kills.training(INSTANCE), 30
    ),
    'sigkill_checkpoint': Row(
      'SIGKILL while a checkpoint is being written', kills.checkpoint_writing(_LARGE), 30
    ),
    'sigkill_prepare': Row(
      'SIGKILL at random moments of preparing a data set', kills.preparing('scenes'), 30
    ),
    'sigterm_twice': Row(
      'SIGTERM, and again while the state is being saved', kills.sigterm_twice(SEMANTIC), 10
    ),
  },
  'Files': {
    'checkpoint_files': Row(
      'each file of the newest checkpoint: a byte flipped, truncated, emptied, deleted',
      files.checkpoint_files(_SHORT),
    ),
    'checkpoints_all': Row('all files of all checkpoints damaged', files.all_checkpoints(_SHORT)),
    'record': Row('a flipped byte in a prepared record', files.record(_SHORT), 60),
  },
  'Disks': {
    'disk_full_checkpoint': Row(
      'the disk fills up: no room for a checkpoint', disk.full(SEMANTIC), 3, disk.mounts
    ),
    'disk_full_log': Row(
      'the disk fills up: no room for a line of the log',
      disk.full(SEMANTIC.but(train__checkpoint_every=100), leave=0),
      3,
      disk.mounts,
    ),
    'read_only': Row('a read-only workdir', disk.read_only(_SHORT)),
  },
  'Processes': {
    'two_runs': Row('two runs in one workdir at once', processes.two_runs(_SLOW), 4),
    'worker': Row('SIGKILL to a process that prepares batches', processes.worker(SEMANTIC), 5),
    'nan_semantic': Row('a loss that is NaN at step k, semantic', processes.nan(_SHORT), 3),
    'nan_instance': Row('a loss that is NaN at step k, instance', processes.nan(INSTANCE), 1),
    'clock': Row('a clock that jumps by up to a day, every 0.2 s', processes.clock(SEMANTIC), 3),
  },
  'Soak': {
    'soak_semantic': Row('a long training, semantic', soak.soak(SEMANTIC.but(**_ENDLESS))),
    'soak_instance': Row('a long training, instance', soak.soak(INSTANCE.but(**_ENDLESS))),
    'soak_orbax': Row('as many arrays saved by Orbax alone', soak.saves_alone(168, 388)),
  },
}
ROWS: Mapping[str, Row] = {name: row for rows in KINDS.values() for name, row in rows.items()}
