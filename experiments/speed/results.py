"""Which of the lines of `results.jsonl` are shown."""

from collections.abc import Sequence

from runner import Result


def latest(results: Sequence[Result]) -> dict[tuple[str, str], dict[str, Result]]:
  """The last line of each row, by (hardware, dtype) and row."""
  found: dict[tuple[str, str], dict[str, Result]] = {}
  for result in results:
    found.setdefault((result['hardware'], result['dtype']), {})[result['row']] = result
  return found
