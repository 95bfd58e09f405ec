"""A Google Cloud Storage in memory: what gcsfs asks for, over HTTP."""

import contextlib
import http.server
import json
import re
import threading
from urllib.parse import parse_qs, unquote, urlsplit


class _Handler(http.server.BaseHTTPRequestHandler):
  """Objects in `server.objects` by "BUCKET/NAME"."""

  protocol_version = "HTTP/1.1"

  def do_GET(self):
    url, query = self._url()
    if match := re.fullmatch(r"/storage/v1/b/([^/]+)/o/?", url):
      return self._list(match[1], query)
    if (name := self._name(url)) not in self.server.objects:
      return self._send(404)
    content = self.server.objects[name]
    if query.get("alt") == "media":
      return self._send(200, content)
    return self._send(200, _describe(name, content))

  def do_POST(self):
    url, query = self._url()
    bucket = re.fullmatch(r"/upload/storage/v1/b/([^/]+)/o", url)[1]
    body = self.rfile.read(int(self.headers["Content-Length"]))
    boundary = re.search('boundary="?([^";]+)', self.headers["Content-Type"])
    parts = body.split(f"--{boundary[1]}".encode())[1:3]
    head, content = (part.split(b"\n\n", 1)[1] for part in parts)
    name = f"{bucket}/{json.loads(head)['name']}"
    with self.server.lock:  # A precondition and its write are one step.
      if query.get("ifGenerationMatch") == "0" and name in self.server.objects:
        return self._send(412)
      self.server.objects[name] = content.removesuffix(b"\n")
    return self._send(200, _describe(name, content))

  def do_DELETE(self):
    url, _ = self._url()
    found = self.server.objects.pop(self._name(url), None)
    return self._send(404 if found is None else 204)

  def log_message(self, *_):
    pass

  def _url(self):
    parts = urlsplit(self.path)
    query = {key: value[0] for key, value in parse_qs(parts.query).items()}
    return parts.path, query

  def _name(self, url):
    match = re.fullmatch(r"(?:/download)?/storage/v1/b/([^/]+)/o/(.+)", url)
    return f"{match[1]}/{unquote(match[2])}" if match else None

  def _list(self, bucket, query):
    prefix = f"{bucket}/{query.get('prefix', '')}"
    items = [
      _describe(name, content)
      for name, content in sorted(self.server.objects.items())
      if name.startswith(prefix)
    ]
    self._send(200, {"kind": "storage#objects", "items": items})

  def _send(self, status, content=b""):
    if isinstance(content, dict):
      content = json.dumps(content).encode()
    self.send_response(status)
    self.send_header("Content-Type", "application/json")
    self.send_header("Content-Length", str(len(content)))
    self.end_headers()
    self.wfile.write(content)


def _describe(name, content):
  bucket, path = name.split("/", 1)
  return {
    "kind": "storage#object",
    "bucket": bucket,
    "name": path,
    "size": str(len(content)),
    "generation": "1",
    "updated": "2026-01-01T00:00:00Z",
    "timeCreated": "2026-01-01T00:00:00Z",
  }


class _Server(http.server.ThreadingHTTPServer):
  connections = 0

  def process_request(self, *request):
    self.connections += 1
    super().process_request(*request)


@contextlib.contextmanager
def serve():
  """A server; its `url` is an `endpoint_url` of gcsfs."""
  server = _Server(("localhost", 0), _Handler)
  server.objects, server.lock = {}, threading.Lock()
  server.url = f"http://localhost:{server.server_port}"
  thread = threading.Thread(target=server.serve_forever)
  thread.start()
  try:
    yield server
  finally:
    server.shutdown()
    thread.join()
    server.server_close()
