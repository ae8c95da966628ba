"""A local server with the part of Google Cloud Storage's JSON API that its clients here use.

It keeps objects in memory: for gcsfs, TensorStore and google-cloud-storage, each of which speaks to
another address by an environment variable.
"""

import base64
import contextlib
import hashlib
import http.server
import itertools
import json
import re
import sys
import threading
from typing import Any
from urllib import parse

import http_server

_OBJECT = re.compile(r'(?:/download)?/storage/v1/b/([^/]+)/o/([^/]+)$')
_LIST = re.compile(r'/storage/v1/b/([^/]+)/o$')
_BUCKET = re.compile(r'/storage/v1/b/([^/]+)$')
_UPLOAD = re.compile(r'(?:/resumable)?/upload/storage/v1/b/([^/]+)/o$')
_REWRITE = re.compile(r'/storage/v1/b/([^/]+)/o/([^/]+)/rewriteTo/b/([^/]+)/o/([^/]+)$')
_MOVE = re.compile(r'/storage/v1/b/([^/]+)/o/([^/]+)/moveTo/o/([^/]+)$')


class Server:
  """The objects of all buckets.

  Attributes:
    url: of the server.
    objects: (bucket, name) -> (generation, content).
    requests: 'METHOD path' of each.
  """

  def __init__(self, url: str):
    self.url = url
    self.objects: dict[tuple[str, str], tuple[int, bytes]] = {}
    self.requests: list[str] = []
    self.lock = threading.Lock()
    self.sessions: dict[str, tuple[str, str, dict[str, str], bytearray]] = {}
    self._generations = itertools.count(1)

  @property
  def environment(self) -> dict[str, str]:
    """The variables that lead clients here."""
    return {
      'STORAGE_EMULATOR_HOST': self.url,
      'TENSORSTORE_GCS_HTTP_URL': self.url,
      'GOOGLE_AUTH_TOKEN_FOR_TESTING': 'token',
      'FSSPEC_GCS_TOKEN': 'anon',
      'FSSPEC_GCS_PROJECT': 'project',
      'GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT': 'false',
      'NO_PROXY': '127.0.0.1',
      'no_proxy': '127.0.0.1',
    }

  def files(self, bucket: str) -> dict[str, bytes]:
    """The objects of a bucket by name."""
    return {name: content for (b, name), (_, content) in self.objects.items() if b == bucket}

  def put(self, bucket: str, name: str, content: bytes, query: dict[str, str]) -> dict | None:
    """Writes an object and returns what describes it; None if a precondition fails."""
    with self.lock:
      there = self.objects.get((bucket, name), (0, b''))[0]
      if 'ifGenerationMatch' in query and int(query['ifGenerationMatch']) != there:
        return None
      self.objects[bucket, name] = next(self._generations), content
    return self.describe(bucket, name)

  def describe(self, bucket: str, name: str) -> dict[str, Any]:
    generation, content = self.objects[bucket, name]
    time = '2026-01-01T00:00:00.000Z'
    path = f'b/{bucket}/o/{parse.quote(name, safe="")}'
    return {
      'kind': 'storage#object',
      'id': f'{bucket}/{name}/{generation}',
      'name': name,
      'bucket': bucket,
      'generation': str(generation),
      'metageneration': '1',
      'contentType': 'application/octet-stream',
      'size': str(len(content)),
      'md5Hash': base64.b64encode(hashlib.md5(content).digest()).decode(),
      'timeCreated': time,
      'updated': time,
      'mediaLink': f'{self.url}/download/storage/v1/{path}?alt=media',
    }

  def list(self, bucket: str, query: dict[str, str]) -> dict[str, Any]:
    prefix, delimiter = query.get('prefix', ''), query.get('delimiter', '')
    items, prefixes = [], set()
    for b, name in sorted(self.objects):
      if b != bucket or not name.startswith(prefix):
        continue
      rest = name[len(prefix) :]
      if delimiter and delimiter in rest:
        prefixes.add(prefix + rest.partition(delimiter)[0] + delimiter)
      elif query.get('startOffset', '') <= name < query.get('endOffset', '\U0010ffff'):
        items.append(self.describe(bucket, name))
    return {'kind': 'storage#objects', 'items': items, 'prefixes': sorted(prefixes)}


class _Handler(http.server.BaseHTTPRequestHandler):
  store: Server

  protocol_version = 'HTTP/1.1'

  def _handle(self) -> None:
    parts = parse.urlsplit(self.path)
    path, query = parts.path, dict(parse.parse_qsl(parts.query))
    self.store.requests.append(f'{self.command} {path}')
    body = self._body()
    found = None
    for pattern, method, answer in (
      (_OBJECT, 'GET', self._get),
      (_OBJECT, 'DELETE', self._delete),
      (_LIST, 'GET', lambda query, body, bucket: self._json(self.store.list(bucket, query))),
      (_BUCKET, 'GET', lambda query, body, bucket: self._json({'name': bucket, 'id': bucket})),
      (_UPLOAD, 'POST', self._upload),
      (_UPLOAD, 'PUT', self._resume),
      (_UPLOAD, 'DELETE', lambda query, body, bucket: self._answer(204)),
      (_REWRITE, 'POST', self._rewrite),
      (_MOVE, 'POST', self._move),
    ):
      if method == self.command and (found := pattern.match(path)):
        answer(query, body, *map(parse.unquote, found.groups()))
        return
    self._answer(404, b'not found')

  do_GET = do_POST = do_PUT = do_DELETE = _handle  # noqa: N815 (the names that it calls)

  def _body(self) -> bytes:
    if self.headers.get('Transfer-Encoding') != 'chunked':
      return self.rfile.read(int(self.headers.get('Content-Length') or 0))
    body = b''
    while size := int(self.rfile.readline(), 16):
      body += self.rfile.read(size)
      self.rfile.readline()
    self.rfile.readline()
    return body

  def _get(self, query: dict[str, str], body: bytes, bucket: str, name: str) -> None:
    if (bucket, name) not in self.store.objects:
      self._answer(404, b'No such object')
      return
    if query.get('alt') != 'media':
      self._json(self.store.describe(bucket, name))
      return
    generation, content = self.store.objects[bucket, name]
    if query.get('ifGenerationNotMatch') == str(generation):
      self._answer(304)
      return
    headers = {
      'X-Goog-Generation': str(generation),
      'X-Goog-Hash': 'md5=' + self.store.describe(bucket, name)['md5Hash'],
    }
    if asked := self.headers.get('Range'):
      first, last = re.fullmatch(r'bytes=(\d*)-(\d*)', asked).groups()
      size = len(content)
      start = int(first) if first else max(0, size - int(last))
      end = min(int(last) + 1, size) if first and last else size
      if start >= size:
        self._answer(416, b'', {'Content-Range': f'bytes */{size}'})
        return
      headers['Content-Range'] = f'bytes {start}-{end - 1}/{size}'
      self._answer(206, content[start:end], headers)
    else:
      self._answer(200, content, headers)

  def _delete(self, query: dict[str, str], body: bytes, bucket: str, name: str) -> None:
    there = self.store.objects.get((bucket, name))
    if there is None:
      self._answer(404, b'No such object')
    elif query.get('ifGenerationMatch', str(there[0])) != str(there[0]):
      self._answer(412)
    else:
      self.store.objects.pop((bucket, name), None)
      self._answer(204)

  def _upload(self, query: dict[str, str], body: bytes, bucket: str) -> None:
    if 'upload_id' in query:
      self._resume(query, body, bucket)
      return
    name, content, kind = query.get('name'), body, query['uploadType']
    if kind == 'multipart':
      described, content = _parts(body, self.headers['Content-Type'])
      name = name or json.loads(described)['name']
    elif kind == 'resumable':
      name = name or json.loads(body)['name']
      session = f's{len(self.store.sessions)}'
      self.store.sessions[session] = (bucket, name, query, bytearray())
      place = f'{self.store.url}/upload/storage/v1/b/{bucket}/o?upload_id={session}'
      self._answer(200, b'', {'Location': place})
      return
    self._written(self.store.put(bucket, name, content, query))

  def _resume(self, query: dict[str, str], body: bytes, bucket: str) -> None:
    bucket, name, first, content = self.store.sessions[query['upload_id']]
    content += body
    total = self.headers.get('Content-Range', '/*').rpartition('/')[2]
    if total != '*' and len(content) >= int(total):
      self._written(self.store.put(bucket, name, bytes(content), first))
    else:
      self._answer(308, b'', {'Range': f'bytes=0-{len(content) - 1}'} if content else {})

  def _rewrite(self, query: dict[str, str], body: bytes, *names: str) -> None:
    if names[:2] not in self.store.objects:
      self._answer(404, b'No such object')
      return
    written = self.store.put(names[2], names[3], self.store.objects[names[:2]][1], query)
    self._json({'done': True, 'resource': written})

  def _move(self, query: dict[str, str], body: bytes, bucket: str, old: str, new: str) -> None:
    if (bucket, old) not in self.store.objects:
      self._answer(404, b'No such object')
      return
    self._written(self.store.put(bucket, new, self.store.objects.pop((bucket, old))[1], query))

  def _written(self, described: dict[str, Any] | None) -> None:
    if described is None:
      self._answer(412, b'{"error": {"message": "conditionNotMet"}}')
    else:
      self._json(described)

  def _json(self, content: Any) -> None:
    self._answer(200, json.dumps(content).encode(), {'Content-Type': 'application/json'})

  def _answer(
    self, status: int, content: bytes = b'', headers: dict[str, str] | None = None
  ) -> None:
    self.send_response(status)
    for key, value in (headers or {}).items():
      self.send_header(key, value)
    self.send_header('Content-Length', str(len(content)))
    self.end_headers()
    if status not in (204, 304):
      self.wfile.write(content)

  def log_message(self, *_: Any) -> None:
    pass


def _parts(body: bytes, content_type: str) -> list[bytes]:
  """The contents of a multipart message."""
  boundary = re.search(r'boundary=["\']?([^"\';]+)', content_type)[1].encode()
  found = []
  for part in body.split(b'--' + boundary)[1:-1]:
    newline = b'\r\n' if part.startswith(b'\r\n') else b'\n'
    found.append(part.partition(2 * newline)[2].removesuffix(newline))
  return found


class _Threaded(http.server.ThreadingHTTPServer):
  daemon_threads = True
  block_on_close = False  # clients keep their connections open

  def handle_error(self, request: Any, address: Any) -> None:
    if not isinstance(sys.exception(), ConnectionError):  # a client that asked for too much
      super().handle_error(request, address)


def serve() -> contextlib.AbstractContextManager[Server]:
  """A server that runs in the block."""
  handler = lambda store: type('Handler', (_Handler,), {'store': store})
  return http_server.running(_Threaded, Server, handler)
