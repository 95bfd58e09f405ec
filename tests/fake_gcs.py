"""A bucket of Google Cloud Storage on this machine, with its weaknesses.

Run as a program, it serves the folders below ROOT as buckets through the part
of GCS's JSON API that gcsfs uses: every answer comes after a latency, all share
a bandwidth, and some fail: with 429, 503, a closed connection or half a body.
"""

import argparse
import asyncio
import contextlib
import json
import os
import pathlib
import random
import subprocess
import sys
import time
import urllib.request
from urllib.parse import unquote

FAULTS = ("429", "503", "reset", "truncated")


def main():
  parser = argparse.ArgumentParser()
  parser.add_argument("root", type=pathlib.Path)
  parser.add_argument("--latency", type=float, default=0.0, help="seconds")
  parser.add_argument("--bandwidth", type=float, default=0.0, help="bytes/s")
  parser.add_argument("--faults", type=float, default=0.0, help="share")
  parser.add_argument("--read-only", action="store_true")
  args = parser.parse_args()
  asyncio.run(serve(args))


async def serve(args):
  from aiohttp import web

  store = Store(args)
  app = web.Application(client_max_size=2**30)
  app.router.add_route("*", "/{path:.*}", store.handle)
  runner = web.AppRunner(app, access_log=None)
  await runner.setup()
  site = web.TCPSite(runner, "localhost", 0)
  await site.start()
  print(site._server.sockets[0].getsockname()[1], flush=True)
  await asyncio.Event().wait()


class Store:
  """Answers requests, and remembers those for data."""

  def __init__(self, args):
    self.args, self.rng = args, random.Random(0)
    self.free_at = 0.0  # When the line has sent all that was asked for.
    self.reads = []  # (object, first byte, number of bytes)
    self.faults = 0
    self.uploads = {}

  async def handle(self, request):
    from aiohttp import web

    path = unquote(request.raw_path.partition("?")[0])
    if path == "/reads":
      reads, self.reads = self.reads, []
      return web.json_response({"reads": reads, "faults": self.faults})
    if path == "/settings":
      vars(self.args).update(await request.json())
      return web.json_response({})
    await asyncio.sleep(self.args.latency)
    for prefix, answer in (
      ("/download/storage/v1/b/", self.download),
      ("/upload/storage/v1/b/", self.upload),
      ("/storage/v1/b/", self.metadata),
    ):
      if path.startswith(prefix):
        bucket, _, key = path.removeprefix(prefix).partition("/o")
        return await answer(request, bucket, key.removeprefix("/"))
    return web.Response(status=404)

  def file(self, bucket, key):
    return self.args.root / bucket / key

  async def download(self, request, bucket, key):
    from aiohttp import web

    file = self.file(bucket, key)
    if not file.is_file():
      return web.Response(status=404)
    start, stop = 0, file.stat().st_size
    if asked := request.headers.get("Range"):
      first, _, last = asked.removeprefix("bytes=").partition("-")
      start, stop = int(first), min(stop, int(last) + 1 if last else stop)
    fault = self.fault()
    if fault in ("429", "503"):
      return web.Response(status=int(fault))
    if fault == "reset":
      request.transport.abort()
      return web.Response()
    self.reads.append((f"{bucket}/{key}", start, stop - start))
    with open(file, "rb") as opened:
      data = os.pread(opened.fileno(), stop - start, start)
    await self.wait_for_line(len(data))
    response = web.StreamResponse(status=206 if asked else 200)
    response.content_length = len(data)
    await response.prepare(request)
    if fault == "truncated":
      await response.write(data[: len(data) // 2])
      request.transport.close()
      return response
    await response.write(data)
    await response.write_eof()
    return response

  def fault(self):
    if self.rng.random() >= self.args.faults:
      return None
    self.faults += 1
    return self.rng.choice(FAULTS)

  async def wait_for_line(self, size):
    if self.args.bandwidth:
      self.free_at = max(self.free_at, time.monotonic())
      self.free_at += size / self.args.bandwidth
      await asyncio.sleep(self.free_at - time.monotonic())

  async def metadata(self, request, bucket, key):
    from aiohttp import web

    if request.method == "DELETE":
      self.file(bucket, key).unlink(missing_ok=True)
      return web.Response(status=204)
    source, _, target = key.partition("/rewriteTo/b/")
    source, _, moved = source.partition("/moveTo/o/")
    if target or moved:
      to = (bucket, moved) if moved else tuple(target.split("/o/", 1))
      self.write(*to, self.file(bucket, source).read_bytes())
      if moved:
        self.file(bucket, source).unlink()
      return web.json_response({"done": True, "resource": self.info(*to)})
    if key:
      if not self.file(bucket, key).is_file():
        return web.Response(status=404)
      return web.json_response(self.info(bucket, key))
    return web.json_response(self.listing(bucket, request.query))

  def info(self, bucket, key):
    state = self.file(bucket, key).stat()
    stamp = time.strftime("%Y-%m-%dT%H:%M:%S.000Z", time.gmtime(state.st_mtime))
    return {
      "kind": "storage#object",
      "name": key,
      "bucket": bucket,
      "size": str(state.st_size),
      "generation": str(state.st_mtime_ns),
      "updated": stamp,
      "timeCreated": stamp,
    }

  def listing(self, bucket, query):
    prefix, delimiter = query.get("prefix", ""), query.get("delimiter", "")
    found, prefixes = [], set()
    root = self.args.root / bucket
    for file in sorted(root.rglob("*")):
      key = str(file.relative_to(root))
      if not file.is_file() or not key.startswith(prefix):
        continue
      head, slash, _ = key[len(prefix) :].partition("/")
      if delimiter and slash:
        prefixes.add(f"{prefix}{head}/")
      else:
        found.append(self.info(bucket, key))
    return {"items": found, "prefixes": sorted(prefixes)}

  async def upload(self, request, bucket, key):
    from aiohttp import web

    if self.args.read_only:
      return web.Response(status=403)
    body = await request.read()
    if request.query.get("uploadType") == "multipart":
      _, head, data = body.split(b"\nContent-Type: ", 2)
      name = json.loads(head.split(b"\n\n", 1)[1].split(b"\n--")[0])["name"]
      data = data.split(b"\n\n", 1)[1].removesuffix(b"\n--==0==--")
      return self.write(bucket, name, data)
    if number := request.query.get("upload_id"):
      name, data = self.uploads[number]
      data += body
      if request.headers["Content-Range"].endswith("*"):
        return web.Response(
          status=308, headers={"Range": f"bytes=0-{len(data) - 1}"}
        )
      return self.write(bucket, name, bytes(data))
    number = f"{len(self.uploads):040}"
    self.uploads[number] = request.query["name"], bytearray()
    where = request.url.with_query(upload_id=number)
    return web.Response(headers={"Location": str(where)})

  def write(self, bucket, key, data):
    from aiohttp import web

    file = self.file(bucket, key)
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(data)
    return web.json_response(self.info(bucket, key))


class FakeGcs:
  """The server from outside.

  Attributes:
    url: for STORAGE_EMULATOR_HOST, which gcsfs reads.
  """

  def __init__(self, process, port):
    self._process = process
    self.url = f"http://localhost:{port}"

  def reads(self):
    """(object, first byte, size) of all reads since the last call."""
    return [tuple(read) for read in self._get("/reads")["reads"]]

  def faults(self):
    """How many requests failed so far."""
    return self._get("/reads")["faults"]

  def set(self, **settings):
    """Changes latency, bandwidth, faults or read_only."""
    self._get("/settings", json.dumps(settings).encode())

  def _get(self, path, data=None):
    with urllib.request.urlopen(self.url + path, data) as answer:
      return json.load(answer)


# gcsfs asks Google for the kind of every bucket, and etils opens TensorFlow's
# own client if TensorFlow is installed. Both are read once, at first use.
os.environ["GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT"] = "false"
os.environ["EPATH_USE_TF"] = "false"


@contextlib.contextmanager
def fake_gcs(root, **settings):
  """Starts the server as a process of its own; sets STORAGE_EMULATOR_HOST."""
  import gcsfs

  options = [f"--{name}={value}" for name, value in settings.items()]
  command = [sys.executable, __file__, str(root), *options]
  process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
  before = os.environ.get("STORAGE_EMULATOR_HOST")
  try:
    server = FakeGcs(process, int(process.stdout.readline()))
    os.environ["STORAGE_EMULATOR_HOST"] = server.url
    gcsfs.GCSFileSystem.clear_instance_cache()
    yield server
  finally:
    process.kill()
    process.wait()
    process.stdout.close()
    os.environ.pop("STORAGE_EMULATOR_HOST", None)
    if before is not None:
      os.environ["STORAGE_EMULATOR_HOST"] = before
    gcsfs.GCSFileSystem.clear_instance_cache()


if __name__ == "__main__":
  main()
