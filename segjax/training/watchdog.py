"""Ends a process that hangs, with what it was doing: a partner or a disk may never answer."""

import faulthandler
import functools
import os
import sys
import threading
import time
from collections.abc import Callable
from typing import Self

from segjax.types import HangingError

# Parts of the timeout between two looks.
_LOOKS = 20


class Watchdog:
  """Ends the process when nothing starts for `timeout` seconds. A context manager.

  It counts the time in which its own thread ran, so that a stopped process (Ctrl-Z, a suspended
  machine) and a clock that jumps do not count.

  Args:
    timeout: seconds; None for a watchdog that does nothing.
    end: called with a sentence, once: see `end_hanging`.
    last: whether this one of several processes ends after the others, which are to say before where
      they hang.
  """

  def __init__(
    self, timeout: float | None, end: Callable[[str], None] | None = None, *, last: bool = False
  ):
    wait = 2 * timeout / _LOOKS if last and timeout else 0.0  # the others may look as much later
    self._timeout, self._end = timeout, end or functools.partial(end_hanging, wait)
    self._what, self._looks = 'the start', 0
    self._closed = threading.Event()
    self._thread = threading.Thread(target=self._watch, name='segjax_watchdog', daemon=True)

  def at(self, what: str) -> None:
    """Says what starts now, such as 'step 12'."""
    self._what, self._looks = what, 0

  def beat(self) -> None:
    """Says that what was last said makes progress."""
    self._looks = 0

  def __enter__(self) -> Self:
    if self._timeout is not None:
      self._thread.start()
    return self

  def __exit__(self, *exc: object) -> None:
    self._closed.set()

  def _watch(self) -> None:
    while not self._closed.wait(self._timeout / _LOOKS):
      self._looks += 1
      if self._looks > _LOOKS:
        self._end(
          f'{self._what} has made no progress for {self._timeout:g} s '
          '(config.mesh.hang_timeout): the stacks above say where it waits; run the same command '
          'again to resume'
        )
        return


def end_hanging(wait: float, sentence: str) -> None:
  """Prints the Python stacks of all threads and a sentence, and ends the process.

  Args:
    wait: seconds in which other processes say where they hang.
    sentence: what hangs.
  """
  faulthandler.dump_traceback(sys.__stderr__, all_threads=True)
  print(f'segjax: {sentence}', file=sys.__stderr__, flush=True)
  time.sleep(wait)
  os._exit(HangingError.exit_code)
