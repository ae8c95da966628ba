"""What a row of the table is: a fault, how it is made, and what came of it."""

import collections
import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np

from faults.place import Place


@dataclasses.dataclass
class Outcome:
  """What came of the tries of a row.

  Attributes:
    tries: how often the fault was made.
    happened: how often the program answered it in which way.
    lost: what was lost, how often: empty if nothing was.
    notes: figures by name.
  """

  tries: int = 0
  happened: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)
  lost: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)
  notes: dict[str, Any] = dataclasses.field(default_factory=dict)

  def to_json(self) -> dict[str, Any]:
    """Plain JSON values."""
    return {**vars(self), 'happened': dict(self.happened), 'lost': dict(self.lost)}


@dataclasses.dataclass(frozen=True)
class Options:
  """How a row is run.

  Attributes:
    tries: how often the fault is made.
    seed: of the moments and places.
    minutes: of processor time, for the rows that run for a time.
  """

  tries: int
  seed: int = 0
  minutes: float = 60.0

  def rng(self) -> np.random.Generator:
    """A generator of the moments and places."""
    return np.random.default_rng(self.seed)


@dataclasses.dataclass(frozen=True)
class Row:
  """A fault.

  Attributes:
    fault: what is done, for the table.
    run: makes the fault.
    tries: how often, unless the command line says otherwise.
    needs: returns what is missing to make the fault here, or None.
  """

  fault: str
  run: Callable[[Place, Options], Outcome]
  tries: int = 1
  needs: Callable[[], str | None] = lambda: None
