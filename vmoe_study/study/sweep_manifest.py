"""The manifest of a sweep: the runs that its root folder should contain.

`sweep.json` in the root lists the seeds and, by name, the cells. A cell is a
row of a table: the words of its command line, its completed config without the
seed, the published results and their source.
"""

import hashlib
import json
from collections.abc import Mapping
from typing import Any, NamedTuple

from etils import epath

from vmoe_study.files.atomic import write_atomically
from vmoe_study.files.json_text import MALFORMED
from vmoe_study.run.saved_config import upgrade

SWEEP_FILE = "sweep.json"
MAX_NAME_LENGTH = 200  # Of a folder; file systems allow 255 bytes.


class SweepManifest(NamedTuple):
  """The contents of `sweep.json`.

  Attributes:
    seeds: seeds of the runs of each cell, ascending.
    cells: "words", "config", "expected" and "source" of each cell, by name.
  """

  seeds: list[int]
  cells: Mapping[str, Mapping[str, Any]]


def exists(root: epath.PathLike) -> bool:
  """Whether a folder is the root of a sweep."""
  return (epath.Path(root) / SWEEP_FILE).exists()


def read(root: epath.PathLike) -> SweepManifest:
  """The manifest in the root of a sweep.

  Raises:
    ValueError: it is damaged.
  """
  path = epath.Path(root) / SWEEP_FILE
  try:
    content = json.loads(path.read_bytes())
    cells = {name: _cell(cell) for name, cell in content["cells"].items()}
    return SweepManifest([int(seed) for seed in content["seeds"]], cells)
  except MALFORMED as error:
    raise ValueError(
      f"{path} is damaged: {error!r}. Remove it and run `sweep` again, which "
      "writes a new one and keeps finished runs."
    ) from error


def _cell(cell: Mapping[str, Any]) -> dict[str, Any]:
  names = ("words", "config", "expected", "source")
  found = {name: cell[name] for name in names}
  return found | {"config": upgrade(found["config"])}


def write(root: epath.PathLike, manifest: SweepManifest) -> None:
  """Writes the manifest, which `report` compares with the finished runs."""
  text = json.dumps(manifest._asdict(), indent=1) + "\n"
  write_atomically(epath.Path(root) / SWEEP_FILE, text)


def run_folder(root: epath.PathLike, name: str, seed: int) -> epath.Path:
  """The workdir of one run of a sweep.

  A name that is too long for a folder is cut, and a hash of the whole is added.

  >>> str(run_folder("root", "soft", 0))
  'root/soft/seed0'
  """
  if len(name) > MAX_NAME_LENGTH:
    digest = hashlib.sha256(name.encode()).hexdigest()[:8]
    name = f"{name[: MAX_NAME_LENGTH - 9]}-{digest}"
  return epath.Path(root) / name / f"seed{seed}"
