"""What a slot of GPU time is: commands that run one after another in a budget of time."""

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent


@dataclasses.dataclass(frozen=True)
class Context:
  """Where a run of this page reads and writes, absolute paths.

  Attributes:
    out: everything that is written, and what an interrupted run goes on from.
    data: `camvid/`, `isbi2012/`, `PennFudanPed/` and `vgg16_features.safetensors`.
    weights: what the record says about that file; None for its name.
    commit: of the code, for a checkout without Git's directory.
    workers: processes that prepare training batches.
    toy: networks and made-up data of a size that a test can run.
  """

  out: Path
  data: Path
  weights: str | None = None
  commit: str | None = None
  workers: int = 8
  toy: bool = False

  @property
  def tables(self) -> Path:
    """The parent of the tables' `experiments/`, whose records the run writes."""
    return self.out / 'tables'

  @property
  def runs(self) -> Path:
    """The workdirs, with checkpoints; they do not travel."""
    return self.out / 'runs'

  @property
  def speed(self) -> Path:
    """Lines for experiments/speed/results.jsonl."""
    return self.out / 'speed.jsonl'

  @property
  def measured(self) -> Path:
    """Lines for experiments/gpu/results.jsonl."""
    return self.out / 'measured.jsonl'

  @property
  def partial(self) -> Path:
    """Results of trainings that the time did not suffice for."""
    return self.out / 'partial.jsonl'


class Step(NamedTuple):
  """A command of a slot, in a process of its own.

  Attributes:
    name: of its log.
    command: the words.
    done: whether its result is there already.
    env: variables of the environment.
    rescue: a command for a result of what is there when the time is over; empty for none.
    reserve: seconds of the budget that are kept for it.
    required: files or directories that it reads.
  """

  name: str
  command: tuple[str, ...]
  done: Callable[[], bool]
  env: Mapping[str, str] = {}
  rescue: tuple[str, ...] = ()
  reserve: float = 0.0
  required: tuple[Path, ...] = ()


class Slot(NamedTuple):
  """Steps that belong together.

  Attributes:
    letter: for `--slots`.
    title: what it shows.
    needs: what it reads of the data directory.
    estimate: of its time.
    steps: makes its steps, the most important first.
  """

  letter: str
  title: str
  needs: tuple[str, ...]
  estimate: str
  steps: Callable[[Context], list[Step]]
