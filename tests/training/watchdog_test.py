"""The watchdog: what it ends, and what it lets live."""

import subprocess
import sys
import threading

import pytest

from segjax.training.watchdog import Watchdog

# Looks of a watchdog are this many seconds apart.
LOOK = 0.02


@pytest.fixture
def watchdog():
  """One that remembers its sentence, and an event that is set then."""
  ended, sentences = threading.Event(), []

  def end(sentence):
    sentences.append(sentence)
    ended.set()

  with Watchdog(20 * LOOK, end) as watchdog:
    yield watchdog, ended, sentences


def test_what_makes_no_progress_is_named(watchdog):
  dog, ended, sentences = watchdog
  dog.at('step 12')
  assert ended.wait(60)
  assert sentences == [
    'step 12 has made no progress for 0.4 s (config.mesh.hang_timeout): the stacks above say where '
    'it waits; run the same command again to resume'
  ]


class Looks:
  """In place of the event that ends a watchdog: 100 looks, without time between them."""

  def __init__(self, progress, every):
    self.progress, self.every, self.count = progress, every, 0

  def wait(self, seconds):
    if self.count % self.every == 0:
      self.progress()
    self.count += 1
    return self.count > 100


@pytest.mark.parametrize(('every', 'ends'), [(1, 0), (20, 0), (21, 1)])
@pytest.mark.parametrize('word', ['at', 'beat'])
def test_progress_keeps_it_quiet(word, every, ends):
  """That of each timeout, which 20 looks are."""
  sentences = []
  dog = Watchdog(1.0, sentences.append)
  progress = {'at': lambda: dog.at('step 1'), 'beat': dog.beat}
  dog._closed = Looks(progress[word], every)
  dog._watch()
  assert len(sentences) == ends


def test_it_ends_with_its_block():
  ended = threading.Event()
  with Watchdog(6000, lambda _: ended.set()) as dog:
    assert dog._thread.is_alive()
  dog._thread.join(60)
  assert not dog._thread.is_alive() and not ended.is_set()


def test_without_a_timeout_there_is_no_thread():
  with Watchdog(None) as dog:
    dog.at('step 1')
    assert not [t for t in threading.enumerate() if t.name == 'segjax_watchdog']


def test_the_process_ends_with_stacks_a_sentence_and_its_code():
  program = (
    'import time\n'
    'from segjax.training.watchdog import Watchdog\n'
    'def stuck_here():\n'
    '  time.sleep(60)\n'
    'with Watchdog(0.2) as dog:\n'
    "  dog.at('step 3')\n"
    '  stuck_here()\n'
  )
  ended = subprocess.run([sys.executable, '-c', program], capture_output=True, text=True)
  assert ended.returncode == 76
  assert 'in stuck_here' in ended.stderr
  assert ended.stderr.splitlines()[-1].startswith('segjax: step 3 has made no progress for 0.2 s')
