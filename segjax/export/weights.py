"""Writes the weights of a trained run with its config: a run to share, and to start others from."""

from pathlib import Path

from segjax import storage
from segjax.convert import load, own
from segjax.export.write import complete_directory
from segjax.run import Loaded
from segjax.workdir import Workdir


def export_weights(loaded: Loaded, workdir: Workdir, output: Path) -> None:
  """Writes a directory that commands read as the workdir, but for the training.

  `model.safetensors` has the variables of the evaluation by name, such as `params/conv1_1/kernel`:
  of a run with a moving average, the average. The optimizer's state, the log and the other
  checkpoints are left out.

  Args:
    loaded: the run.
    workdir: that it was loaded from.
    output: directory, which must not exist.

  Raises:
    SegjaxError: `output` exists.
  """
  with complete_directory(output) as directory:
    copy = Workdir(directory)
    copy.write_config(loaded.run.experiment.to_dict())
    copy.write_dataset(workdir.read_dataset())
    if workdir.starts.exists():  # versions and hardware of the training
      storage.copy_file(workdir.starts, copy.starts)
    notes = {'step': str(loaded.restored.step)}
    own.write(copy.weights, load.flat_paths(dict(loaded.variables)), notes)
