"""The site is built without a warning, and links to the files outside docs/."""

import html.parser
import os
import subprocess
import sys

import pytest

pytest.importorskip('material', reason="pip install 'segjax[docs]'")
pytestmark = pytest.mark.slow


@pytest.fixture(scope='module')
def site(root, tmp_path_factory):
  directory = tmp_path_factory.mktemp('site')
  command = [sys.executable, '-m', 'mkdocs', 'build', '--strict', '--site-dir', str(directory)]
  environment = {**os.environ, 'NO_MKDOCS_2_WARNING': '1'}
  done = subprocess.run(
    command, cwd=root, env=environment, capture_output=True, text=True, check=False
  )
  assert done.returncode == 0, done.stderr
  return directory


class Links(html.parser.HTMLParser):
  """The targets of the links and images of a page."""

  def __init__(self, page):
    super().__init__()
    self.found = []
    self.feed(page.read_text())

  def handle_starttag(self, tag, attrs):
    self.found += [value for key, value in attrs if key in ('href', 'src') and value]


def test_every_page_is_there(site, root):
  pages = {path.relative_to(root / 'docs') for path in (root / 'docs').rglob('*.md')}
  pages |= {path.relative_to(root) for path in root.glob('experiments/**/README.md')}
  assert len(pages) > 30
  names = {'README': 'index'}
  built = {path.with_name(f'{names.get(path.stem, path.stem)}.html') for path in pages}
  assert not [str(path) for path in built if not (site / path).is_file()]


def test_links_lead_somewhere(site):
  broken = []
  for page in site.rglob('*.html'):
    if page.name == '404.html':  # its links are absolute
      continue
    for target in Links(page).found:
      if '://' in target or target.startswith(('data:', 'mailto:')):
        continue
      path = target.partition('#')[0].partition('?')[0]
      if path and not (page.parent / path).exists():
        broken.append(f'{page.relative_to(site)}: {target}')
  assert not broken
