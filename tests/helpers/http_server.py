"""A local HTTP server of files that breaks in the ways of real ones."""

import contextlib
import http.server
import re
import threading
from collections.abc import Callable, Iterator
from typing import TypeVar

T = TypeVar('T')


class Server:
  """The files of a server and what was asked of it.

  Attributes:
    url: of the root.
    files: content by path, such as '/a/b.zip'.
    ranges: whether a part of a file can be asked for.
    etag: of all files, or None.
    breaks: after how many bytes each of the next answers ends; None for at the end.
    statuses: of the next answers.
    requests: (path, Range header) of each request.
  """

  def __init__(self, url: str):
    self.url = url
    self.files: dict[str, bytes] = {}
    self.ranges = True
    self.etag: str | None = '"one"'
    self.breaks: list[int | None] = []
    self.statuses: list[int] = []
    self.requests: list[tuple[str, str | None]] = []


def _handler(server: Server) -> type[http.server.BaseHTTPRequestHandler]:
  class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:  # noqa: N802 (the name that http.server calls)
      asked = self.headers.get('Range')
      server.requests.append((self.path, asked))
      content = server.files.get(self.path)
      if server.statuses and (status := server.statuses.pop(0)) != 200:
        self.send_error(status)
      elif content is None:
        self.send_error(404)
      else:
        self._send(content, asked)

    def _send(self, content: bytes, asked: str | None) -> None:
      start, same = 0, self.headers.get('If-Range') in (None, server.etag)
      if asked and server.ranges and same:
        start = int(re.fullmatch(r'bytes=(\d+)-', asked).group(1))
        if start >= len(content):
          self.send_response(416)
          self.send_header('Content-Range', f'bytes */{len(content)}')
          self.send_header('Content-Length', '0')
          self.end_headers()
          return
        self.send_response(206)
        self.send_header('Content-Range', f'bytes {start}-{len(content) - 1}/{len(content)}')
      else:
        self.send_response(200)
      self.send_header('Content-Length', str(len(content) - start))
      if server.etag:
        self.send_header('ETag', server.etag)
      self.end_headers()
      end = server.breaks.pop(0) if server.breaks else None
      self.wfile.write(content[start:] if end is None else content[start : start + end])

    def log_message(self, *_) -> None:
      pass

  return Handler


@contextlib.contextmanager
def running(
  kind: type[http.server.HTTPServer],
  make: Callable[[str], T],
  handler: Callable[[T], type[http.server.BaseHTTPRequestHandler]],
) -> Iterator[T]:
  """What a server of this machine serves, while it runs in the block.

  Args:
    kind: of the server.
    make: what it serves, from its address.
    handler: of its requests, from what it serves.
  """
  with kind(('127.0.0.1', 0), http.server.BaseHTTPRequestHandler) as started:
    served = make(f'http://127.0.0.1:{started.server_port}')
    started.RequestHandlerClass = handler(served)
    thread = threading.Thread(target=started.serve_forever, kwargs={'poll_interval': 0.01})
    thread.start()
    try:
      yield served
    finally:
      started.shutdown()
      thread.join()


def serve() -> contextlib.AbstractContextManager[Server]:
  """A server that runs in the block."""
  # A server of threads would outlive the test by a connection that a client keeps open.
  return running(http.server.HTTPServer, Server, _handler)
