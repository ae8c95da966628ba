"""Damage to files: checkpoints and prepared records."""

import itertools
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np

from faults import place as place_lib
from faults.place import Place, Recipe
from faults.row import Options, Outcome


def _flip(path: Path, position: int) -> None:
  content = bytearray(path.read_bytes())
  content[position] ^= 0xFF
  path.write_bytes(content)


def _flip_any(path: Path, rng: np.random.Generator) -> None:
  _flip(path, int(rng.integers(path.stat().st_size)))


def _truncate(path: Path, rng: np.random.Generator) -> None:
  path.write_bytes(path.read_bytes()[: int(rng.integers(path.stat().st_size))])


# How a file is damaged.
DAMAGES: dict[str, Callable[[Path, np.random.Generator], None]] = {
  'a flipped byte': _flip_any,
  'the first byte flipped': lambda path, rng: _flip(path, 0),
  'truncated': _truncate,
  'emptied': lambda path, rng: path.write_bytes(b''),
  'deleted': lambda path, rng: path.unlink(),
}


def checkpoint_files(recipe: Recipe):
  """Each file of the newest checkpoint, damaged in each way; then `segjax info` reads the run."""

  def run(place: Place, options: Options) -> Outcome:
    rng, outcome, whole = options.rng(), Outcome(), place.undisturbed(recipe)
    checkpoints = whole / 'checkpoints'
    *_, before, newest = sorted(checkpoints.iterdir(), key=lambda path: int(path.name))
    intact = _digest(whole, newest.name), _digest(whole, before.name)
    files = sorted(path.relative_to(whole) for path in newest.rglob('*') if path.is_file())
    for file, (way, damage) in itertools.product(files * options.tries, DAMAGES.items()):
      damaged = place.copy(whole)
      if not (damaged / file).stat().st_size and way != 'deleted':
        continue  # an empty file has nothing to damage
      damage(damaged / file, rng)
      ended, out = place_lib.here('info', f'--workdir={damaged}', '--json')
      outcome.tries += 1
      if ended.code:
        outcome.lost[f'the run ({ended.describe()}: {file.name} {way})'] += 1
        continue
      answer = json.loads(out)['parameters_sha256'], 'corrupt' in ended.text
      kinds = {
        (intact[0], False): 'the state is intact',
        (intact[1], True): 'reported, and the checkpoint before used',
      }
      if answer in kinds:
        outcome.happened[kinds[answer]] += 1
      else:
        outcome.lost[f'the checkpoint before, or its report ({file.name} {way})'] += 1
    outcome.notes['files'] = len(files)
    return outcome

  return run


def _digest(workdir: Path, step: str) -> str:
  ended, out = place_lib.here('info', f'--workdir={workdir}', f'--checkpoint={step}', '--json')
  if ended.code:
    raise RuntimeError(f'segjax info failed: {ended.text}')
  return json.loads(out)['parameters_sha256']


def all_checkpoints(recipe: Recipe):
  """All files of all checkpoints of a run damaged in the same way; then it is trained on."""

  def run(place: Place, options: Options) -> Outcome:
    rng, outcome, whole = options.rng(), Outcome(), place.undisturbed(recipe)
    for way, damage in DAMAGES.items():
      damaged = place.copy(whole)
      for path in sorted((damaged / 'checkpoints').rglob('*')):
        if path.is_file() and path.stat().st_size:
          damage(path, rng)
      before = _listing(damaged / 'checkpoints')
      ended = place.train(recipe, damaged).end()
      outcome.tries += 1
      refused = ended.sentence() and str(damaged / 'checkpoints') in ended.sentence()
      outcome.happened['refused, in one sentence' if refused else ended.describe()] += 1
      if not refused:
        outcome.lost[f'the sentence ({way})'] += 1
      if _listing(damaged / 'checkpoints') != before:
        outcome.lost[f'files of the checkpoints ({way})'] += 1
    return outcome

  return run


def _listing(directory: Path) -> dict[str, int]:
  return {str(path): path.stat().st_size for path in directory.rglob('*') if path.is_file()}


def record(recipe: Recipe):
  """A flipped byte in a prepared record; then the run is evaluated on all records."""

  def run(place: Place, options: Options) -> Outcome:
    rng, outcome, whole = options.rng(), Outcome(), place.undisturbed(recipe)
    evaluate = lambda data: place_lib.here(
      'evaluate', f'--workdir={place.copy(whole)}', f'--config.data.dir={data}', '--json'
    )
    wanted = _metrics(evaluate(place.data())[1])
    for _ in range(options.tries):
      data = place.copy(place.data())
      files = [path for path in sorted(data.rglob('*array_record*')) if 'val' in path.name]
      sizes = np.array([path.stat().st_size for path in files])
      chosen = files[rng.choice(len(files), p=sizes / sizes.sum())]
      _flip_any(chosen, rng)
      ended, out = evaluate(data)
      outcome.tries += 1
      if ended.code == 0:
        same = _metrics(out) == wanted
        outcome.happened['harmless: the same metrics' if same else 'other metrics'] += 1
        if not same and not ended.text.strip():
          outcome.lost['a record, without a word'] += 1
        continue
      sentence = ended.sentence()
      named = sentence and ('array_record' in sentence or str(data) in sentence)
      outcome.happened['refused, the sentence names it' if named else ended.describe()] += 1
      if not named:
        outcome.lost['the sentence'] += 1
    return outcome

  return run


def _metrics(out: str) -> dict[str, object]:
  return {key: value for key, value in json.loads(out).items() if key not in ('time', 'seconds')}
