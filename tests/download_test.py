"""Downloads from a local server, and archives that are unpacked or refused."""

import hashlib
import io
import os
import tarfile
import threading
import zipfile

import pytest

from segjax import download
from segjax.download import Remote, fetch, unpack
from segjax.types import SegjaxError

CONTENT = bytes(range(256)) * 5000
SHA256 = hashlib.sha256(CONTENT).hexdigest()
MD5 = hashlib.md5(CONTENT).hexdigest()


def remote(server, **kwargs):
  server.files['/d/file.bin'] = CONTENT
  return Remote(f'{server.url}/d/file.bin', **kwargs)


def ranges(server):
  return [asked for _, asked in server.requests]


# --- a file ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
  'known',
  [
    {},
    {'digest': f'sha256:{SHA256}', 'size': len(CONTENT)},
    {'digest': f'sha256:{SHA256[:8]}'},
    {'digest': f'md5:{MD5}'},
  ],
)
def test_a_file_is_downloaded_once(server, tmp_path, known):
  reports = []
  file = remote(server, **known)
  path = fetch(file, tmp_path / 'new', report=reports.append)
  assert path == tmp_path / 'new' / 'file.bin' and path.read_bytes() == CONTENT
  assert len(reports) == 1 and file.url in reports[0] and str(path) in reports[0]
  assert [p.name for p in path.parent.iterdir()] == ['file.bin']
  # Already complete: nothing is asked of the server.
  assert fetch(file, tmp_path / 'new', report=reports.append) == path
  assert fetch(file, tmp_path / 'new', offline=True) == path
  assert len(reports) == 1 and len(server.requests) == 1


def test_a_broken_connection_resumes_where_it_ended(server, tmp_path):
  server.breaks = [1000, 500_000, None]
  path = fetch(remote(server), tmp_path)
  assert path.read_bytes() == CONTENT
  assert ranges(server) == [None, 'bytes=1000-', 'bytes=501000-']


def test_a_later_call_resumes_what_an_earlier_one_received(server, tmp_path):
  server.breaks = [1000] + [0] * 3
  with pytest.raises(
    SegjaxError, match=r'file\.bin cannot be downloaded \(.*\): try again'
  ) as info:
    fetch(remote(server), tmp_path)
  assert 'what was received is kept' in str(info.value)
  assert str(tmp_path / 'file.bin') in str(info.value)
  assert not (tmp_path / 'file.bin').exists()
  assert fetch(remote(server), tmp_path).read_bytes() == CONTENT
  assert ranges(server)[-1] == 'bytes=1000-'


def test_a_server_without_ranges_sends_all_again(server, tmp_path):
  server.ranges, server.breaks = False, [1000, None]
  assert fetch(remote(server), tmp_path).read_bytes() == CONTENT
  assert ranges(server) == [None, 'bytes=1000-']


def test_a_file_that_changed_meanwhile_is_received_from_its_start(server, tmp_path):
  server.breaks = [1000] + [0] * 3
  with pytest.raises(SegjaxError):
    fetch(remote(server), tmp_path)
  server.etag = '"two"'
  file = remote(server)
  server.files['/d/file.bin'] = CONTENT[::-1]
  assert fetch(file, tmp_path).read_bytes() == CONTENT[::-1]


def test_no_bytes_of_an_older_version_are_kept_under_the_name_of_the_new_one(
  server, tmp_path, monkeypatch
):
  """Also where the process is killed between the two."""
  server.breaks = [1000] + [0] * 3
  with pytest.raises(SegjaxError):
    fetch(remote(server), tmp_path)
  server.etag, write = '"two"', download._write_version

  def killed(tag, headers):
    write(tag, headers)
    raise KeyboardInterrupt

  monkeypatch.setattr(download, '_write_version', killed)
  with pytest.raises(KeyboardInterrupt):
    fetch(remote(server), tmp_path)
  assert not (tmp_path / 'file.bin.part').exists()


def test_the_rest_of_an_unknown_version_is_not_asked_for(server, tmp_path):
  """Without a digest and an ETag, two halves might be of two files."""
  server.etag, server.breaks = None, [1000, None]
  assert fetch(remote(server), tmp_path).read_bytes() == CONTENT
  assert ranges(server) == [None, None]
  # A weak ETag does not name the bytes.
  (tmp_path / 'file.bin').unlink()
  server.etag, server.breaks = 'W/"one"', [1000, None]
  assert fetch(remote(server), tmp_path).read_bytes() == CONTENT
  assert ranges(server)[2:] == [None, None]


@pytest.mark.parametrize('extra', [b'', b'more'])
def test_a_part_that_is_complete_or_too_long(server, tmp_path, extra):
  """As of a process that was killed before it renamed the file, or of another file."""
  (tmp_path / 'file.bin.part').write_bytes(CONTENT + extra)
  file = remote(server, digest=f'sha256:{SHA256}')
  assert fetch(file, tmp_path).read_bytes() == CONTENT
  assert len(server.requests) == (2 if extra else 1)


def test_a_wrong_checksum_leaves_nothing(server, tmp_path):
  file = remote(server, digest='sha256:00000000')
  message = f'has the SHA-256 {SHA256[:8]}, not 00000000: try again'
  with pytest.raises(SegjaxError, match=message):
    fetch(file, tmp_path)
  assert not [p for p in tmp_path.iterdir() if p.suffix != '.lock']
  with pytest.raises(SegjaxError, match='has 1,280,000 bytes, not 7: try again'):
    fetch(remote(server, size=7), tmp_path)


def test_a_file_that_was_put_there_is_checked(server, tmp_path):
  (tmp_path / 'file.bin').write_bytes(b'other')
  with pytest.raises(SegjaxError, match=r'file\.bin has 5 bytes, not 1,280,000: delete it'):
    fetch(remote(server, size=len(CONTENT)), tmp_path)
  with pytest.raises(SegjaxError, match=f'has the MD5 .*, not {MD5}: delete it'):
    fetch(remote(server, digest=f'md5:{MD5}'), tmp_path)
  assert server.requests == []


def test_statuses_of_a_server(server, tmp_path):
  server.statuses = [503, 429, 200]
  assert fetch(remote(server), tmp_path).read_bytes() == CONTENT
  with pytest.raises(SegjaxError, match=r'nothing cannot be downloaded \(HTTP status 404\)'):
    fetch(Remote(f'{server.url}/nothing'), tmp_path)
  assert len(server.requests) == 4
  server.statuses = [503] * 4
  with pytest.raises(SegjaxError, match=r'HTTP status 503'):
    fetch(Remote(f'{server.url}/busy'), tmp_path)
  assert len(server.requests) == 8


def test_no_network_is_one_sentence(tmp_path, monkeypatch):
  monkeypatch.setattr(download, '_WAIT', 0.0)
  monkeypatch.setenv('NO_PROXY', '127.0.0.1')
  # Port 9 discards, where anything listens at all.
  with pytest.raises(SegjaxError) as info:
    fetch(Remote('http://127.0.0.1:9/a.zip'), tmp_path)
  message = str(info.value)
  assert 'http://127.0.0.1:9/a.zip cannot be downloaded (' in message
  assert f'download it elsewhere and put it at {tmp_path / "a.zip"}' in message
  assert '\n' not in message and len(message) < 300


@pytest.mark.parametrize('by', ['argument', 'environment'])
def test_offline_names_the_address_and_the_place(tmp_path, monkeypatch, by):
  if by == 'environment':
    monkeypatch.setenv(download.OFFLINE, '1')
  file = Remote('http://127.0.0.1:9/a.zip', size=2_500_000_000)
  message = rf'{tmp_path}/a.zip is missing .* download {file.url} \(2.5 GB\) elsewhere'
  with pytest.raises(SegjaxError, match=message):
    fetch(file, tmp_path, offline=by == 'argument')
  assert not list(tmp_path.iterdir())


def test_a_full_disk_is_told_before(server, tmp_path):
  with pytest.raises(SegjaxError, match=r'GB free but .* needs 1000000\.0 GB: free some space'):
    fetch(remote(server, size=10**15), tmp_path)
  assert server.requests == []


def test_processes_that_ask_for_the_same_file(server, tmp_path):
  server.breaks = [1000, 1000, None]
  file, found = remote(server), []
  threads = [
    threading.Thread(target=lambda: found.append(fetch(file, tmp_path).read_bytes()))
    for _ in range(4)
  ]
  for thread in threads:
    thread.start()
  for thread in threads:
    thread.join()
  assert found == [CONTENT] * 4
  assert ranges(server) == [None, 'bytes=1000-', 'bytes=2000-']


def test_sizes_in_words():
  assert [Remote('a', size=n).spell_size() for n in (None, 0, 54_000_000, 19_336_861_798)] == [
    'unknown size',
    '0 MB',
    '54 MB',
    '19.3 GB',
  ]


# --- archives -------------------------------------------------------------------------------------


def write_zip(path, members):
  with zipfile.ZipFile(path, 'w', zipfile.ZIP_DEFLATED) as file:
    for name, content in members.items():
      file.writestr(name, content)
  return path


def write_tar(path, members, mode='w:gz'):
  """A tar of files, or of links where the content is a `tarfile.TarInfo`."""
  with tarfile.open(path, mode) as file:
    for name, content in members.items():
      if isinstance(content, tarfile.TarInfo):
        file.addfile(content)
      else:
        info = tarfile.TarInfo(name)
        info.size = len(content)
        file.addfile(info, io.BytesIO(content))
  return path


def link(name, target, kind=tarfile.SYMTYPE):
  info = tarfile.TarInfo(name)
  info.type, info.linkname = kind, target
  return info


def contents(directory):
  return {
    p.relative_to(directory).as_posix(): p.read_bytes() for p in directory.rglob('*') if p.is_file()
  }


GOOD = {'a/b.txt': b'b', 'a/c/d.txt': b'd', 'e.txt': b'e'}


@pytest.mark.parametrize(
  ('write', 'name'),
  [
    (write_zip, 'x.zip'),
    (write_tar, 'x.tgz'),
    # As Oxford-IIIT Pet's archives: not compressed, despite their name.
    (lambda path, members: write_tar(path, members, 'w'), 'x.tar.gz'),
    (lambda path, members: write_tar(path, members, 'w:bz2'), 'x.tar.bz2'),
  ],
)
def test_archives_unpack_over_what_is_there(tmp_path, write, name):
  mac = {'__MACOSX/a/._b.txt': b'', 'a/._b.txt': b'', '.DS_Store': b''}
  out = tmp_path / 'out'
  (out / 'a').mkdir(parents=True)
  (out / 'a' / 'b.txt').write_bytes(b'old')
  (out / 'a' / 'kept.txt').write_bytes(b'kept')
  unpack(write(tmp_path / name, {**GOOD, **mac}), out)
  assert contents(out) == {**GOOD, 'a/kept.txt': b'kept'}


@pytest.mark.parametrize('write', [write_zip, write_tar])
@pytest.mark.parametrize('name', ['../evil.txt', 'a/../../evil.txt', '/evil.txt', 'C:\\evil.txt'])
def test_paths_that_leave_the_directory_are_refused(tmp_path, write, name):
  archive = write(tmp_path / 'x.archive', {**GOOD, name: b'evil'})
  with pytest.raises(
    SegjaxError, match=r"x\.archive has '.*evil\.txt', which leaves the directory"
  ):
    unpack(archive, tmp_path / 'deep' / 'out')
  # Not even what came before it.
  assert contents(tmp_path) == {'x.archive': archive.read_bytes()}
  assert not list((tmp_path / 'deep' / 'out').iterdir())


@pytest.mark.parametrize(
  'members',
  [
    {'a': link('a', '..'), 'a/evil.txt': b'evil'},
    {'a': link('a', '/etc')},
    {'a': link('a', '../evil.txt', tarfile.LNKTYPE)},
    {'a': link('a', '', tarfile.FIFOTYPE)},
  ],
)
def test_links_in_tars_that_leave_the_directory_are_refused(tmp_path, members):
  archive = write_tar(tmp_path / 'x.tar', members, 'w')
  with pytest.raises(SegjaxError, match=r"x\.tar has 'a"):
    unpack(archive, tmp_path / 'out')
  assert [p.name for p in tmp_path.rglob('*') if p.name != 'out'] == ['x.tar']


def test_what_a_killed_process_left_is_deleted(tmp_path):
  archive = write_zip(tmp_path / 'x.zip', GOOD)
  left = tmp_path / 'out' / '.unpacking-x.zip'
  left.mkdir(parents=True)
  (left / 'half.txt').write_bytes(b'')
  unpack(archive, tmp_path / 'out')
  assert contents(tmp_path / 'out') == GOOD and not left.exists()


def test_links_inside_an_archive(tmp_path):
  archive = write_tar(tmp_path / 'x.tar', {**GOOD, 'a/l': link('a/l', 'b.txt')}, 'w')
  unpack(archive, tmp_path / 'out')
  assert os.readlink(tmp_path / 'out' / 'a' / 'l') == 'b.txt'
  assert (tmp_path / 'out' / 'a' / 'l').read_bytes() == b'b'


def test_links_in_zips_are_refused(tmp_path):
  info = zipfile.ZipInfo('a')
  info.external_attr = 0o120777 << 16
  with zipfile.ZipFile(tmp_path / 'x.zip', 'w') as file:
    file.writestr(info, '/etc/passwd')
  with pytest.raises(SegjaxError, match=r"x\.zip has 'a', which leaves the directory"):
    unpack(tmp_path / 'x.zip', tmp_path / 'out')


def test_what_is_not_an_archive_or_is_corrupt(tmp_path):
  page = tmp_path / 'x.zip'
  page.write_bytes(b'<html>Please log in</html>')
  with pytest.raises(SegjaxError, match=r'x\.zip is not a zip or tar archive: delete it'):
    unpack(page, tmp_path / 'out')
  for write in (write_zip, write_tar):
    archive = write(tmp_path / f'{write.__name__}.x', {'a': os.urandom(100_000)})
    content = bytearray(archive.read_bytes())
    content[50_000:50_100] = bytes(100)
    archive.write_bytes(content)
    with pytest.raises(SegjaxError, match='is truncated or corrupt'):
      unpack(archive, tmp_path / 'out')
  archive = write_tar(tmp_path / 'short.tgz', {'a': os.urandom(100_000)})
  archive.write_bytes(archive.read_bytes()[:50_000])
  with pytest.raises(SegjaxError, match='is truncated or corrupt'):
    unpack(archive, tmp_path / 'out')
  assert not list((tmp_path / 'out').iterdir())
