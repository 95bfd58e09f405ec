"""Rewrites a prepared data set in a form that suits object stores.

The examples are shuffled once, as in training, and stored in ArrayRecord files
of about 256 MB, so that every block of neighbouring examples is well mixed.
File k has positions [k M, (k + 1) M) of the shuffled order: an interrupted
rewrite continues with the first missing file. The metadata are written last.
"""

import json
import math
import posixpath
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from etils import epath

from vmoe_study.console.progress import track
from vmoe_study.data import builders
from vmoe_study.data.order import BlockOrder, FullOrder
from vmoe_study.data.read_ahead import ReadAhead
from vmoe_study.data.records import Records
from vmoe_study.data.tfds_source import open_records
from vmoe_study.files.atomic import open_atomically, write_atomically
from vmoe_study.files.location import locate

FILE_BYTES = 2**28  # 64 blocks.
OPTIONS = "group_size:1,uncompressed"  # Images are already compressed.
POSITIONS_AHEAD = 256
COPIED_BYTES = 2**24
METADATA = "dataset_info.json"
Log = Callable[..., None]


def rewrite(
  name: str, data_dir: str | None, to: str, log: Log, seed: int = 0
) -> str:
  """Writes all splits of a prepared data set into another TFDS folder.

  Args:
    name: a TFDS name.
    data_dir: the TFDS folder of the data set; None for TFDS's default.
    to: the other TFDS folder, a path or a URL of any kind that fsspec knows.
    log: called with progress messages, like `logging.info`.
    seed: seed of the shuffle.

  Returns:
    The folder of the new data set.

  Raises:
    MissingDataError: the data set is not prepared.
    RecordError: a record is damaged.
    ValueError: both folders are the same.
    OSError: a file cannot be read or written.
  """
  builder = builders.open_prepared(name, data_dir)
  info, source = builder.info, epath.Path(builder.data_path)
  folder = posixpath.join(to, info.full_name)
  if posixpath.normpath(folder) == posixpath.normpath(str(source)):
    raise ValueError(
      f"--to={to}: is the folder that the data set is in. Choose another one."
    )
  metadata = json.loads((source / METADATA).read_text())
  metadata["fileFormat"] = "array_record"
  for split in metadata["splits"]:
    records = open_records(builder, name, split["name"])
    num_files = max(1, round(int(split["numBytes"]) / FILE_BYTES))
    split["filepathTemplate"] = "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}"
    split["shardLengths"] = [
      str(len(part)) for part in _parts(len(records), num_files)
    ]
    stem = posixpath.join(folder, f"{info.name}-{split['name']}.array_record")
    _write_split(records, stem, num_files, seed, log)
  for file in source.iterdir():
    if file.suffix in (".json", ".txt") and file.name != METADATA:
      write_atomically(posixpath.join(folder, file.name), file.read_bytes())
  write_atomically(posixpath.join(folder, METADATA), json.dumps(metadata))
  return folder


def _parts(size: int, count: int) -> list[range]:
  """Splits `size` positions into `count` parts, equal but for the last."""
  length = math.ceil(size / count)
  return [range(k, min(k + length, size)) for k in range(0, size, length)]


def _write_split(
  records: Records, stem: str, num_files: int, seed: int, log: Log
) -> None:
  order = (
    BlockOrder(records.blocks(), seed, lanes=1)
    if records.is_remote
    else FullOrder(len(records), seed)
  )
  parts = _parts(len(records), num_files)
  for number, positions in enumerate(parts):
    url = f"{stem}-{number:05}-of-{len(parts):05}"
    filesystem, path = locate(url)
    if filesystem.exists(path):
      log("%s: is there already", url)
      continue
    start = time.perf_counter()
    what = f"file {number + 1} of {len(parts)}"
    ordered = _in_order(records, order, positions)
    tracked = track(ordered, what, len(positions), "records")
    size = _write_file(tracked, url)
    rate = size / (time.perf_counter() - start) / 1e6
    log("%s: file %d of %d, %.0f MB/s", url, number + 1, len(parts), rate)


def _in_order(
  records: Records, order: BlockOrder | FullOrder, positions: range
) -> Iterator[bytes]:
  ahead = ReadAhead(records)
  for first in range(0, len(positions), POSITIONS_AHEAD):
    near = positions[first : first + 2 * POSITIONS_AHEAD]
    windows = dict.fromkeys(order.window(position)[0] for position in near)
    ahead.expect(run for window in windows for run in window.runs)
    for position in near[:POSITIONS_AHEAD]:
      yield ahead[order[position]]


def _write_file(records: Iterator[bytes], url: str) -> int:
  """Writes a file atomically; returns its size."""
  from array_record.python.array_record_module import ArrayRecordWriter

  with tempfile.TemporaryDirectory() as folder:
    local = Path(folder) / "records"
    writer = ArrayRecordWriter(str(local), OPTIONS)
    for record in records:
      writer.write(record)
    writer.close()
    with open(local, "rb") as file, open_atomically(url) as target:
      while part := file.read(COPIED_BYTES):
        target.write(part)
    return local.stat().st_size
