"""Mutation testing: changes the code in one place, and checks whether its tests fail.

`make mutate` runs it and writes experiments/mutation/README.md, in about half an hour.

A sample of mutants, which depends on the seed and the sources alone, is spread over the files in
proportion to their lines, at least one in each. A mutant is applied to a copy of the checkout, in
which the mirroring tests run (tests/ops/nms_test.py for segjax/ops/nms.py). A mutant is killed if
they fail, or take more than 4 times as long as without it plus 20 s. Results are appended to
experiments/mutation/results.jsonl; mutants that are in it are not run again. Equivalent mutants are
listed, with the reason, in experiments/mutation/equivalent.toml.

  python tests/mutation.py                 run missing mutants
  python tests/mutation.py --survivors     run survivors again, after tests were added
  python tests/mutation.py --list          only list the mutants
  python tests/mutation.py --page          only print the page
"""

import argparse
import ast
import collections
import concurrent.futures
import dataclasses
import datetime
import hashlib
import json
import os
import queue
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

ROOT = Path(__file__).parent.parent
PAGE = ROOT / 'experiments/mutation'
SOURCES = (
  'segjax/ops/*.py',
  'segjax/losses/*.py',
  'segjax/metrics/*.py',
  'segjax/training/optim.py',
  'segjax/training/step.py',
  'segjax/data/geometry.py',
  'segjax/data/augment.py',
)
COPIED = ('segjax', 'tests', 'configs', 'experiments', 'docs', 'pyproject.toml')

KILLED, SURVIVED, ERROR = 'killed', 'survived', 'error'


# --- mutants --------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Mutant:
  """One change of one file.

  Attributes:
    file: path from the root of the checkout.
    line: of the change, from 1.
    kind: a name of the table below.
    before: what is changed, as it is written, on one line.
    after: what it becomes.
    span: first and last byte in the file that are replaced.
    text: what replaces them.
    id: stays the same when lines are added elsewhere.
  """

  file: str
  line: int
  kind: str
  before: str
  after: str
  span: tuple[int, int]
  text: bytes
  id: str

  def apply(self, source: bytes) -> bytes:
    return source[: self.span[0]] + self.text + source[self.span[1] :]

  def __str__(self) -> str:
    return f'{self.id} {self.file}:{self.line} [{self.kind}] {self.before} -> {self.after}'


COMPARISONS = {
  ast.Lt: ('<', '<='),
  ast.LtE: ('<=', '<'),
  ast.Gt: ('>', '>='),
  ast.GtE: ('>=', '>'),
  ast.Eq: ('==', '!='),
  ast.NotEq: ('!=', '=='),
}
OPERATORS = {
  ast.Add: ('+', '-'),
  ast.Sub: ('-', '+'),
  ast.Mult: ('*', '//'),
  ast.FloorDiv: ('//', '*'),
  ast.Div: ('/', '*'),
  ast.BitAnd: ('&', '|'),
  ast.BitOr: ('|', '&'),
}
_PAIRS = (
  ('min', 'max'),
  ('minimum', 'maximum'),
  ('any', 'all'),
  ('floor', 'ceil'),
  ('argmin', 'argmax'),
)
FUNCTIONS = {a: b for pair in _PAIRS for a, b in (pair, pair[::-1])}
# Keywords that only affect checks or speed.
SAFE_KEYWORDS = {'strict', 'maxsize'}

# A replacement within a file: its kind, the node that shows it, and (first byte, last byte, text).
Edit = tuple[str, ast.AST, int, int, bytes]


class Source:
  """A file, its syntax tree, and where each node is in its bytes."""

  def __init__(self, data: bytes):
    self.data = data
    self.tree = ast.parse(data)
    self._lines = [0]
    for line in data.splitlines(keepends=True):
      self._lines.append(self._lines[-1] + len(line))

  def start(self, node: ast.AST) -> int:
    return self._lines[node.lineno - 1] + node.col_offset

  def end(self, node: ast.AST) -> int:
    return self._lines[node.end_lineno - 1] + node.end_col_offset

  def text(self, node: ast.AST) -> bytes:
    return self.data[self.start(node) : self.end(node)]

  def between(self, left: ast.AST, right: ast.AST, symbol: str) -> tuple[int, int]:
    """Where an operator is between its operands."""
    first = self.data.index(symbol.encode(), self.end(left), self.start(right))
    return first, first + len(symbol)


def mutants(file: str, data: bytes) -> list[Mutant]:
  """All mutants of a file, in its order."""
  source, found, seen = Source(data), [], collections.Counter()
  for scope, node, siblings in _nodes(source.tree):
    for kind, shown, first, last, text in _edits(source, node, siblings):
      start, end = source.start(shown), source.end(shown)
      before = _one_line(data[start:end])
      after = _one_line(data[start:first] + text + data[last:end]) or '(nothing)'
      try:
        ast.parse(data[:first] + text + data[last:])
      except SyntaxError:
        continue
      if before == after:
        continue
      what = (file, scope, kind, before, after)
      seen[what] += 1
      digest = hashlib.sha256(repr((*what, seen[what])).encode()).hexdigest()[:12]
      line = 1 + data[:first].count(b'\n')
      found.append(Mutant(file, line, kind, before, after, (first, last), text, digest))
  return found


def _one_line(code: bytes) -> str:
  code = re.sub(r'\s+', ' ', code.decode()).strip()
  return re.sub(r'([(\[{]) | (?=[)\]}])', r'\1', code)


def _nodes(tree: ast.Module) -> Iterator[tuple[str, ast.AST, list[ast.AST]]]:
  """The nodes that may change, each with the function that it is in and its statement's siblings.

  Docstrings, annotations, type aliases, messages of errors, imports and decorators of classes stay.
  """

  def visit(node: ast.AST, scope: str, siblings: list[ast.AST]):
    if isinstance(node, ast.Raise | ast.Import | ast.ImportFrom | ast.JoinedStr):
      return
    if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
      return
    if isinstance(node, ast.Assign) and not scope:
      name = ast.unparse(node.targets[0])
      if name == '__all__' or re.match('[A-Z][a-z]', name):
        return
    yield scope, node, siblings
    inner = scope
    if isinstance(node, ast.FunctionDef | ast.ClassDef):
      inner = f'{scope}.{node.name}'.lstrip('.')
    for name, value in ast.iter_fields(node):
      if name in ('annotation', 'returns') or (
        isinstance(node, ast.ClassDef) and name in ('decorator_list', 'bases')
      ):
        continue
      children = value if isinstance(value, list) else [value]
      for child in children:
        if isinstance(child, ast.AST):
          yield from visit(child, inner, children)

  return visit(tree, '', [])


def _edits(source: Source, node: ast.AST, siblings: list[ast.AST]) -> Iterator[Edit]:
  text = source.text
  if isinstance(node, ast.Compare):
    operands = (node.left, *node.comparators)
    for operator, left, right in zip(node.ops, operands, operands[1:], strict=False):
      if type(operator) in COMPARISONS:
        old, new = COMPARISONS[type(operator)]
        yield 'comparison', node, *source.between(left, right, old), new.encode()
  if isinstance(node, ast.BinOp) and type(node.op) in OPERATORS:
    old, new = OPERATORS[type(node.op)]
    yield 'operator', node, *source.between(node.left, node.right, old), new.encode()
  if isinstance(node, ast.AugAssign) and type(node.op) in OPERATORS:
    old, new = (f'{symbol}=' for symbol in OPERATORS[type(node.op)])
    yield 'operator', node, *source.between(node.target, node.value, old), new.encode()
  if isinstance(node, ast.Constant) and type(node.value) in (int, float):
    value = type(node.value)({0: 1, 1: 0}.get(node.value, node.value + 1))
    yield 'constant', node, source.start(node), source.end(node), repr(value).encode()
  if isinstance(node, ast.BoolOp):
    old, new = ('and', 'or') if isinstance(node.op, ast.And) else ('or', 'and')
    for left, right in zip(node.values, node.values[1:], strict=False):
      first, last = source.between(left, right, old)
      yield 'and/or', node, first, last, new.encode()
  tests = [node.test] if isinstance(node, ast.If | ast.IfExp | ast.While) else []
  for test in tests + (node.ifs if isinstance(node, ast.comprehension) else []):
    negated = b'(not (%s))' % text(test)
    if isinstance(test, ast.UnaryOp) and isinstance(test.op, ast.Not):
      negated = b'(%s)' % text(test.operand)
    yield 'condition', test, source.start(test), source.end(test), negated
  if isinstance(node, ast.Call):
    yield from _call_edits(source, node)
  if isinstance(node, ast.Return) and isinstance(node.value, ast.Tuple):
    yield from _swap(source, 'tuple', node, *node.value.elts[:2])
  if isinstance(node, ast.stmt) and _deletable(node, siblings):
    yield 'deletion', node, source.start(node), source.end(node), b'pass'


def _call_edits(source: Source, node: ast.Call) -> Iterator[Edit]:
  function = node.func
  name = getattr(function, 'attr', None) or getattr(function, 'id', None)
  if name in FUNCTIONS:
    last = source.end(function)
    yield 'function', node, last - len(name), last, FUNCTIONS[name].encode()
  if name == 'stop_gradient':
    text = b'(%s)' % source.text(node.args[0])
    yield 'gradient', node, source.start(node), source.end(node), text
  if name == 'where' and len(node.args) == 3:
    yield from _swap(source, 'where', node, *node.args[1:])
  for keyword in node.keywords:
    if keyword.arg and keyword.arg not in SAFE_KEYWORDS:
      first, last = source.start(keyword), source.end(keyword)
      if after := re.match(rb'\s*,\s*', source.data[last:]):
        last += after.end()
      else:
        first = len(re.sub(rb'\s*,\s*$', b'', source.data[:first]))
      yield 'keyword', node, first, last, b''


def _swap(source: Source, kind: str, node: ast.AST, *pair: ast.AST) -> Iterator[Edit]:
  if len(pair) == 2:
    a, b = pair
    middle = source.data[source.end(a) : source.start(b)]
    swapped = source.text(b) + middle + source.text(a)
    yield kind, node, source.start(a), source.end(b), swapped


def _deletable(node: ast.stmt, siblings: list[ast.AST]) -> bool:
  """Whether the rest can run without a statement: no name is then left without a value."""
  if isinstance(node, ast.Expr | ast.AugAssign | ast.Continue | ast.Break):
    return True
  if isinstance(node, ast.If):
    return not node.orelse and not any(isinstance(x, ast.FunctionDef) for x in ast.walk(node))
  if isinstance(node, ast.Assign):
    target = node.targets[0]
    earlier = siblings[: siblings.index(node)]
    names = {x.id for s in earlier for x in ast.walk(s) if isinstance(x, ast.Name)}
    return isinstance(target, ast.Subscript) or getattr(target, 'id', None) in names
  return False


def test_files(file: str) -> list[str]:
  """The tests that mirror a file: segjax/ops/nms.py -> tests/ops/nms_test.py, nms_*_test.py."""
  path = Path(file)
  folder = ROOT / 'tests' / Path(*path.parent.parts[1:])
  found = [*folder.glob(f'{path.stem}_test.py'), *folder.glob(f'{path.stem}_*_test.py')]
  return [str(x.relative_to(ROOT)) for x in sorted(found)]


def all_mutants() -> dict[str, list[Mutant]]:
  """Of each file that has any."""
  files = sorted(str(p.relative_to(ROOT)) for pattern in SOURCES for p in ROOT.glob(pattern))
  pools = {file: mutants(file, (ROOT / file).read_bytes()) for file in files}
  return {file: pool for file, pool in pools.items() if pool}


def sample(count: int, seed: int) -> list[Mutant]:
  """`count` mutants of all files, evenly among their kinds; each file has its own seed."""
  pools = all_mutants()
  lines = {file: (ROOT / file).read_bytes().count(b'\n') for file in pools}
  shares = {file: max(1, count * lines[file] // sum(lines.values())) for file in pools}
  while (missing := count - sum(shares.values())) != 0:
    # To the file that is furthest from its share, or from the one that is furthest above it.
    over = lambda file: shares[file] / lines[file]
    if missing > 0:
      shares[min(pools, key=over)] += 1
    elif more := [file for file in pools if shares[file] > 1]:
      shares[max(more, key=over)] -= 1
    else:
      break
  chosen = []
  for file, pool in pools.items():
    rng = random.Random(f'{seed}:{file}')
    kinds = collections.defaultdict(list)
    for mutant in rng.sample(pool, len(pool)):
      kinds[mutant.kind].append(mutant)
    order, left = [], rng.sample(sorted(kinds), len(kinds))
    while left:
      order += [kinds[kind].pop() for kind in left]
      left = [kind for kind in left if kinds[kind]]
    chosen += sorted(order[: shares[file]], key=lambda m: m.line)
  return chosen


# --- running them ---------------------------------------------------------------------------------


class Copy:
  """A copy of the checkout in which one file at a time is changed."""

  def __init__(self, directory: Path, cache: Path):
    self.directory = directory
    for name in COPIED:
      path = ROOT / name
      if path.is_dir():
        ignore = shutil.ignore_patterns('__pycache__')
        shutil.copytree(path, directory / name, ignore=ignore)
      else:
        shutil.copy(path, directory / name)
    self._environment = {
      'SEGJAX_TEST_CACHE': str(cache),
      **os.environ,
      'PYTHONPATH': str(directory),
      'PYTHONDONTWRITEBYTECODE': '1',  # its time stamps have a resolution of one second
    }
    command = [sys.executable, '-c', 'import segjax; print(segjax.__file__)']
    imported = subprocess.check_output(command, cwd=directory, env=self._environment, text=True)
    assert Path(imported.strip()) == directory / 'segjax/__init__.py', imported

  def run(self, tests: Sequence[str], timeout: float | None = None) -> tuple[int | None, str]:
    """Runs tests until one fails; exit code (None: timed out) and output."""
    command = [sys.executable, '-m', 'pytest', '-x', '-q', '-p', 'no:cacheprovider', *tests]
    process = subprocess.Popen(
      command,
      cwd=self.directory,
      env=self._environment,
      stdout=subprocess.PIPE,
      stderr=subprocess.STDOUT,
      text=True,
      start_new_session=True,
    )
    try:
      output, _ = process.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
      os.killpg(process.pid, signal.SIGKILL)
      return None, process.communicate()[0]
    return process.returncode, output

  def try_mutant(self, mutant: Mutant, tests: Sequence[str], timeout: float) -> dict:
    path = self.directory / mutant.file
    original = path.read_bytes()
    path.write_bytes(mutant.apply(original))
    start = time.monotonic()
    try:
      code, output = self.run(tests, timeout)
    finally:
      path.write_bytes(original)
    status = {None: KILLED, 0: SURVIVED, 1: KILLED}.get(code, ERROR)
    failed = re.search(r'^(?:FAILED|ERROR) (\S+)', output, re.MULTILINE)
    return {
      'status': status,
      'exit_code': code,
      'by': 'time-out' if code is None else failed[1] if failed else None,
      'seconds': round(time.monotonic() - start, 1),
    }


def run(todo: Sequence[Mutant], jobs: int, seed: int, path: Path) -> None:
  """Runs mutants and appends a record of each."""
  from segjax import provenance

  facts = provenance.provenance()
  facts = {k: facts[k] for k in ('commit', 'dirty', 'hardware', 'versions')}
  path.parent.mkdir(parents=True, exist_ok=True)
  with tempfile.TemporaryDirectory(prefix='mutation') as temporary:
    base = Path(temporary)
    copies: queue.Queue[Copy] = queue.Queue()
    for i in range(jobs):
      copies.put(Copy(base / str(i), base / 'cache'))

    def run_file(file: str) -> str | None:
      copy, tests = copies.get(), test_files(file)
      try:
        start = time.monotonic()
        code, output = copy.run(tests)
        seconds = time.monotonic() - start
        if code:
          return f'{output}\n{file}: its tests fail without a mutant: {" ".join(tests)}'
        _report(seconds, 'passed', f'{file} without a mutant')
        for mutant in (m for m in todo if m.file == file):
          result = copy.try_mutant(mutant, tests, 4 * seconds + 20)
          record = {
            **{k: getattr(mutant, k) for k in ('id', 'file', 'line', 'kind', 'before', 'after')},
            **result,
            'tests': tests,
            'unmutated_seconds': round(seconds, 1),
            'seed': seed,
            'date': datetime.datetime.now(datetime.UTC).date().isoformat(),
            **facts,
          }
          with path.open('a') as results:
            results.write(json.dumps(record) + '\n')
          _report(result['seconds'], result['status'], mutant)
      finally:
        copies.put(copy)
      return None

    with concurrent.futures.ThreadPoolExecutor(jobs) as pool:
      problems = pool.map(run_file, dict.fromkeys(mutant.file for mutant in todo))
      if text := '\n'.join(filter(None, problems)):
        raise SystemExit(text)


def _report(seconds: float, status: str, what: object) -> None:
  print(f'{seconds:6.1f} s  {status:8} {what}', file=sys.stderr, flush=True)


# --- the page -------------------------------------------------------------------------------------


def read_records(path: Path) -> list[dict]:
  return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def page(records: Sequence[dict], reasons: Mapping[str, str]) -> str:
  """Markdown: what was killed in the first run and is now, and what survives.

  Mutants of code that has changed since are left out.
  """
  current = {mutant.id: mutant for pool in all_mutants().values() for mutant in pool}
  records = [{**r, 'line': current[r['id']].line} for r in records if r['id'] in current]
  first, last = {}, {}
  for record in records:
    first.setdefault(record['id'], record)
    last[record['id']] = record
  count = lambda results, status: sum(r['status'] == status for r in results)
  share = lambda results: f'{count(results, KILLED)} of {len(results)}'
  survivors = [r for r in last.values() if r['status'] != KILLED]
  left = [r for r in survivors if r['id'] not in reasons]
  total = len(last)
  lines = [
    '# Mutation testing',
    '',
    '<!-- Written by: python tests/mutation.py --page > experiments/mutation/README.md -->',
    '',
    'Small changes of the code that its mirroring tests detect; see `tests/mutation.py` for the '
    'changes. Run with `make mutate`.',
    '',
    f'**{share(last.values())} mutants are killed ({100 * count(last.values(), KILLED) / total:.1f}'
    f'%)**, {share(first.values())} in the first run. '
    f'{len(survivors) - len(left)} of the {len(survivors)} survivors are equivalent to the '
    'original, for the reasons below.',
    '',
    '| file | killed in the first run | killed now | equivalent |',
    '| --- | --- | --- | --- |',
  ]
  for file in sorted({r['file'] for r in last.values()}):
    at_first, now = ([r for r in rs.values() if r['file'] == file] for rs in (first, last))
    same = sum(r['status'] != KILLED and r['id'] in reasons for r in now)
    lines.append(f'| `{file}` | {share(at_first)} | {share(now)} | {same or ""} |')
  lines += ['', '## Survivors', '']
  for r in sorted(survivors, key=lambda r: (r['file'], r['line'])):
    status = '' if r['status'] == SURVIVED else f' ({r["status"]}, exit code {r["exit_code"]})'
    why = f' Equivalent: {reasons[r["id"]]}' if r['id'] in reasons else ''
    before, after = (_shorten(r[k]) for k in ('before', 'after'))
    lines.append(f'- `{r["file"]}:{r["line"]}`{status} ``{before}`` → ``{after}``.{why}')
  if not survivors:
    lines.append('None.')
  facts = sorted({(r['date'], r['hardware'], r['versions'], r['seed']) for r in records})
  commits = sorted({r['commit'][:7] + ('+' if r['dirty'] else '') for r in records if r['commit']})
  lines += ['', '## Provenance', '']
  for date, hardware, versions, seed in facts:
    lines.append(f'- {date}; {hardware}; {versions}; seed {seed}')
  lines.append(f'- commits {", ".join(commits)} (+: with uncommitted changes)')
  return '\n'.join(lines)


def _shorten(code: str, length: int = 160) -> str:
  return code if len(code) <= length else f'{code[: length - 1]}…'


def main() -> None:
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument('--count', type=int, default=72, help='mutants in all')
  parser.add_argument('--seed', type=int, default=0)
  parser.add_argument('--jobs', type=int, default=1, help='mutants at a time')
  parser.add_argument('--only', default='', help='only files with this in their path')
  mode = parser.add_mutually_exclusive_group()
  mode.add_argument('--list', action='store_true', help='only list the mutants')
  mode.add_argument('--survivors', action='store_true', help='run again what survived')
  mode.add_argument('--page', action='store_true', help='only print the page')
  args = parser.parse_args()

  path = PAGE / 'results.jsonl'
  records = read_records(path)
  if args.page:
    equivalent = PAGE / 'equivalent.toml'
    reasons = tomllib.loads(equivalent.read_text()) if equivalent.exists() else {}
    print(page(records, reasons))
    return
  status = {record['id']: record['status'] for record in records}
  # Survivors of a larger sample, or of earlier sources, are among all mutants.
  count = sys.maxsize if args.survivors else args.count
  chosen = [m for m in sample(count, args.seed) if args.only in m.file]
  if args.list:
    print(*chosen, sep='\n')
  elif args.survivors:
    run([m for m in chosen if status.get(m.id, KILLED) != KILLED], args.jobs, args.seed, path)
  else:
    run([m for m in chosen if m.id not in status], args.jobs, args.seed, path)


if __name__ == '__main__':
  main()
