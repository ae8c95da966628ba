"""What a row of the table is: its programs, and how they are compared."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple

# A program: it runs its work to the end and returns the result.
Program = Callable[[], Any]


@dataclasses.dataclass(frozen=True)
class Options:
  """How the programs of a row are made.

  Attributes:
    toy: at a size that a test can run; the result is no measurement.
    peers: make the peers' programs too.
    compiled: also with `torch.compile`.
    dtype: 'float32', or 'bfloat16' for mixed precision on both sides.
  """

  toy: bool = False
  peers: bool = True
  compiled: bool = False
  dtype: Literal['float32', 'bfloat16'] = 'float32'

  def pick(self, size: Any, toy: Any) -> Any:
    """`size`, or `toy` at toy size."""
    return toy if self.toy else size


class Cost(NamedTuple):
  """What a run of a compiled program does, as XLA counts it; the body of a loop counts once.

  Attributes:
    flops: floating-point operations of the program as written; None where the backend does not
      count, as a GPU's in JAX 0.11.
    bytes: read and written by the optimized program, caches ignored; None likewise, if it says
      nothing.
    temporary: bytes of memory for intermediate results.
  """

  flops: float | None
  bytes: float | None
  temporary: float


@dataclasses.dataclass
class Work:
  """The programs of a row, with the same work.

  Attributes:
    ours: our program.
    peers: name -> program; empty if `Options.peers` is off, or if there is no peer to compare with.
    same: `(ours, {name: peer's}) -> sentence` gets the results of the first runs of each program
      (`Row.first`), raises `AssertionError` if they did not do the same work, and says what was
      compared.
    cost: of our program, where XLA can count it.
    notes: facts of the run for the table, by name.
  """

  ours: Program
  peers: Mapping[str, Program] = dataclasses.field(default_factory=dict)
  same: Callable[[list, Mapping[str, list]], str] | None = None
  cost: Cost | None = None
  notes: Mapping[str, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Row:
  """A row of the table.

  Attributes:
    work: what is measured, as the table says it.
    make: makes its programs.
    target: the bound of `value`; None if there is none.
    value: 'ratio', ours over the fastest peer, at most the target; 'times', that peer over ours, at
      least the target; or 'own', ours alone, at most the target.
    reads: what is read of a run: 'wall' or 'processor' seconds (of all threads and of child
      processes), or the 'result' that the program returns.
    unit: of what is read.
    rounds: the most rounds, for work that takes minutes.
    first: runs of each program before the rounds, whose results `Work.same` compares.
    limit: seconds after which the row fails.
  """

  work: str
  make: Callable[[Options], Work]
  target: float | None = None
  value: Literal['ratio', 'times', 'own'] = 'ratio'
  reads: Literal['wall', 'processor', 'result'] = 'wall'
  unit: str = 's'
  rounds: int | None = None
  first: int = 2
  limit: float = 1800.0
