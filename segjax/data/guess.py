"""Which format files of users' own are in, for `segjax new`."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, NamedTuple

Task = Literal['semantic', 'instance', 'panoptic']


class Guess(NamedTuple):
  """A format that files are in.

  Attributes:
    name: `config.data.name`.
    source: `config.data.source`.
    files: `config.data.files`, with every key that matters.
    found: what was found, a line each.
    problems: what looks wrong, a line each.
  """

  name: str
  source: Path
  files: dict[str, Any]
  found: list[str]
  problems: list[str]


# From the task, the directory of images or of a whole export, and the directory or file of the
# annotations; None where files are in another format.
Guesser = Callable[[Task, Path | None, Path | None], Guess | None]
