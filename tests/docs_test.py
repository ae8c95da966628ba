"""The documentation: links work, and there are no placeholders."""

import re

import pytest

PAGES = (
  *('README.md', 'CONTRIBUTING.md', 'CHANGELOG.md'),
  *('docs/*.md', 'experiments/README.md', 'experiments/*/README.md'),
)


@pytest.fixture(scope='module')
def pages(root):
  return {path: path.read_text() for pattern in PAGES for path in sorted(root.glob(pattern))}


def test_links_lead_somewhere(pages, root):
  missing = [
    f'{path.relative_to(root)}: {target}'
    for path, text in pages.items()
    for target in re.findall(r'\]\(([^)#\s]+)', text)
    if '://' not in target and not (path.parent / target).exists()
  ]
  assert not missing


def test_named_files_exist(pages, root):
  missing = [
    f'{path.relative_to(root)}: {name}'
    for path, text in pages.items()
    for name in re.findall(r'(?:configs|segjax|tests)/[\w/]+\.py', text)
    if path.name != 'CHANGELOG.md' and not (root / name).exists()
  ]
  assert not missing


def test_every_config_is_on_the_page_of_the_models(root):
  text = (root / 'docs/models.md').read_text()
  configs = sorted((root / 'configs').glob('*/*.py'))
  assert configs
  assert not [path.name for path in configs if path.name not in text]


# Marks of what was to be written; a word in capitals that is a line of its own is one too.
_LEFT = r'\b(?:[A-Z0-9]+_)+(?:COST|NOTE)\b|\bTODO\b|\bTBD\b|\{[A-Z]+\}|(?m:^[A-Z_]{4,}$)'


def test_nothing_is_left_to_fill_in(pages, root):
  left = {
    str(path.relative_to(root)): found
    for path, text in pages.items()
    if (found := re.findall(_LEFT, text))
  }
  assert not left
