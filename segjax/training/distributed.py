"""Several processes: how they start together, and how they end when one of them is gone.

JAX's coordination service starts them and watches over them. What is added here is what it says:
a sentence with the process and its host, an exit code, and word to the others when one fails.
"""

import contextlib
import json
import os
import re
import socket
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from typing import Any, NoReturn

import jax
from jax._src import distributed as jax_distributed

from segjax.training.sharding import MeshConfig
from segjax.types import LostProcessError, MissingProcessError, SegjaxError

_HOSTS, _FAILED = 'segjax/hosts', 'segjax/failed'
# Seconds that a process has to say itself what another one has just said of itself.
_GRACE = 5.0
# Seconds that the first process stays after an error, so that the others hear of it.
_LINGER = 2.0
# Of a wait for the whole run, in milliseconds.
_FOREVER = 2**31 - 1


def start(how: str, config: MeshConfig) -> None:
  """Starts JAX in several processes, and waits until all have come.

  Args:
    how: 'auto', or 'HOST:PORT,COUNT,INDEX': the coordinator's address, the number of processes and
      the index of this one.
    config: its timeouts.

  Raises:
    SegjaxError: `how` has another form, or JAX detects no cluster.
    MissingProcessError: a process did not come in time.
  """
  arguments = _arguments(how)
