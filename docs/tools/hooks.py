"""Pages of the site that are files outside docs/: CONTRIBUTING.md and the results in experiments/.

They stay where a reader of the repository looks for them. Links to them from docs/, such as
`../experiments/unet/README.md`, work on GitHub as they are, and are rewritten here for the site.
"""

import posixpath
import re
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from mkdocs.structure.files import File

ROOT = Path(__file__).parent.parent.parent
# Files outside docs/ that the site has at the same path below its root: pages, and what they link.
PAGES = (
  'CONTRIBUTING.md',
  'CHANGELOG.md',
  'experiments/README.md',
  'experiments/*/README.md',
  'experiments/*/ideas.md',
)
SOURCES = (
  'Dockerfile',
  'configs/*/*.py',
  'experiments/*/*.py',
  'experiments/gpu/wheels.txt',
  'experiments/*/*.jsonl',
  'experiments/*/*.svg',
  'experiments/*/images/*.jpg',
)
# The entry of the navigation that stands for the pages of experiments/.
_EXPERIMENTS = '...experiments'
_LINK = re.compile(r'(\]\()([^)#\s]+)((?:#[^)\s]*)?\))')


def outside(patterns: Sequence[str]) -> list[str]:
  """Paths of the files that match, relative to the repository."""
  found = (path for pattern in patterns for path in sorted(ROOT.glob(pattern)))
  return [path.relative_to(ROOT).as_posix() for path in found]


def on_config(config):
  """Puts the pages of experiments/ into the navigation."""
  results = [{_title(ROOT / path): path} for path in outside(PAGES) if '/' in path]
  config.nav = _expanded(config.nav, results)
  return config


def _expanded(entries, results):
  """A navigation in which the pages of experiments/ stand for `_EXPERIMENTS`."""
  if isinstance(entries, str):
    return entries
  if isinstance(entries, dict):
    return {name: _expanded(part, results) for name, part in entries.items()}
  return results if entries == [_EXPERIMENTS] else [_expanded(e, results) for e in entries]


def _title(path: Path) -> str:
  lines = path.read_text(encoding='utf-8').splitlines()
  return next(line.removeprefix('# ') for line in lines if line.startswith('# '))


def on_files(files, config):
  """Adds the files that are outside docs/."""
  for path in outside((*PAGES, *SOURCES)):
    files.append(File.generated(config, path, abs_src_path=str(ROOT / path)))
  return files


def on_page_markdown(markdown, page, config, files):
  """Rewrites links from the layout of the repository to that of the site."""
  del config, files
  return _LINK.sub(lambda m: m[1] + site_link(m[2], page.file.src_uri) + m[3], markdown)


def site_link(target: str, page: str) -> str:
  """A relative link of a page, as the site needs it.

  Args:
    target: as written, relative to the file in the repository.
    page: path of the page in the site; pages of docs/ have lost their directory there.
  """
  if '://' in target:
    return target
  here = PurePosixPath(page if page in outside(PAGES) else f'docs/{page}')
  path = posixpath.normpath(posixpath.join(here.parent.as_posix(), target))
  if path == 'README.md':
    path = 'docs/index.md'
  return posixpath.relpath(path.removeprefix('docs/'), posixpath.dirname(page) or '.')
