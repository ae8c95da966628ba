"""Every sentence of docs/faq.md is one that the code can say."""

import ast
import re

import pytest

# A template with fewer letters of its own, or with less than this part of those of the sentence,
# would match any sentence.
LEAST, PART = 10, 0.25


def template(node):
  """A regular expression for the string that a literal makes, and how much of it is literal."""
  if isinstance(node, ast.Constant) and isinstance(node.value, str):
    return re.escape(node.value), len(node.value)
  if isinstance(node, ast.JoinedStr):
    parts = [template(v) if isinstance(v, ast.Constant) else ('.*?', 0) for v in node.values]
    return ''.join(p for p, _ in parts), sum(n for _, n in parts)
  return '', 0


def templates(root):
  """`(regular expression, literal letters)` of all strings that may be the sentence of an error."""
  for path in sorted((root / 'segjax').rglob('*.py')):
    for node in ast.walk(ast.parse(path.read_text())):
      pattern, literal = template(node)
      if literal >= LEAST:
        yield re.compile(pattern, re.DOTALL), literal


@pytest.fixture(scope='module')
def known(root):
  return list(templates(root))


def is_said(sentence, known):
  return any(
    literal >= PART * len(sentence) and pattern.fullmatch(sentence) for pattern, literal in known
  )


def sentences(root):
  return re.findall(r'^### `(.+)`$', (root / 'docs/faq.md').read_text(), re.MULTILINE)


def test_every_sentence_is_in_the_code(root, known):
  found = sentences(root)
  assert len(found) > 20
  unknown = [s for s in found if not is_said(s, known)]
  assert not unknown


@pytest.mark.parametrize(
  'sentence',
  [
    'config.optim.x is not a kee: did you mean key?',
    'config.optim.warmup_steps=100 must be below config.train.steps=10: set it to 0',
    'config.model.classes=9 but camvid has 11 classes: set config.model.classes=11',
    'runs/a has no checkpoint: train until the first one',
  ],
)
def test_another_sentence_is_not(known, sentence):
  assert not is_said(sentence, known)
