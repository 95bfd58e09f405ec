"""A sweep runs what is missing, and a killed one resumes where it was."""

import json
import os
import pathlib
import re
import signal
import subprocess
import sys
import textwrap
import time

import pytest

from configs import digits
from configs.tables import TABLES as TABLES_OF_THE_STUDY
from vmoe_study.cli.main import main
from vmoe_study.config import parse
from vmoe_study.study import results, sweep, sweep_manifest, task_runner
from vmoe_study.study.sweep import make_cells
from vmoe_study.study.sweep_manifest import run_folder
from vmoe_study.study.table_file import load_table

from ..fake_gcs import fake_gcs

pytestmark = pytest.mark.process

TABLES = """
import dataclasses

@dataclasses.dataclass(frozen=True)
class Row:
  name: str
  arguments: str
  expected: tuple = ()
  source: str = ""
  note: str = ""
  start: str = ""

  @property
  def config(self):
    return "configs/digits.py:" + self.arguments

  @property
  def overrides(self):
    late = self.name == "late"
    short = {
      "num_epochs": float(late),
      "num_steps": 0 if late else 6,
      "save_every": 2,
      "report_every": 1,
      "schedule.warmup_steps": 90 if late else 0,
    }
    small = {"width": 16, "depth": 1, "mlp_dim": 32, "num_heads": 2}
    overrides = [f"train.{k}={v}" for k, v in short.items()]
    overrides += [f"model.fields.{k}={v}" for k, v in small.items()]
    overrides += ["model.moe.blocks=every 1", "fewshot={}"]
    if self.name == "diverging":
      overrides += ["train.schedule.peak=1e38", "train.optimizer.clip_norm=0.0"]
    if self.start:
      start = {"kind": "checkpoint", "path": self.start}
      overrides.append(f"initialize={start}")
    return overrides

TABLES = {
  "one": [Row("soft", "router=soft")],
  "other": [Row("soft", "router=soft,capacity=2")],
  "published": [
    Row("soft", "router=soft", expected=(("JFT", 50.9),), source="a paper")
  ],
  "late": [Row("late", "router=soft")],
  "diverging": [Row("diverging", "router=soft")],
  "long": [Row("soft," + 300 * "x", "router=soft")],
  "start": [Row("soft", "router=soft", start="WORKDIR"), Row("a", "k=1")],
  "wrong": [
    Row("bad", "router=hard"), Row("soft", "router=soft"), Row("worse", "k=2.5")
  ],
}
"""
IGNORED = ("seconds", "per_second", "wait_share")


@pytest.fixture(scope="module")
def tables(tmp_path_factory):
  file = tmp_path_factory.mktemp("tables") / "tables.py"
  file.write_text(textwrap.dedent(TABLES))
  return file


@pytest.fixture(scope="module")
def whole(tables, tmp_path_factory):
  """The root of a finished sweep of one run, where its programs are kept."""
  root = tmp_path_factory.mktemp("whole")
  with pytest.MonkeyPatch.context() as patch:
    forget_the_folder_of_programs(patch)
    assert main(["sweep", f"{tables}:one", f"--root={root}"]) == 0
  return root


def forget_the_folder_of_programs(patch):
  """A sweep, and its runs, then have one of their own."""
  patch.delenv("JAX_COMPILATION_CACHE_DIR")
  patch.delenv("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", raising=False)


def metrics(root):
  """All numbers of the one run of a sweep, without times."""
  [cell] = results.load([root])
  return {
    name: value
    for name, value in cell.runs[0].items()
    if not name.endswith(IGNORED)
  }


def start(grid, root):
  command = [sys.executable, "-m", "vmoe_study", "sweep", grid]
  return subprocess.Popen([*command, f"--root={root}"])


def test_a_killed_sweep_gives_the_numbers_of_one_that_was_not(
  tables, whole, tmp_path
):
  killed, grid = tmp_path / "killed", f"{tables}:one"
  process = start(grid, killed)
  checkpoints = killed / "soft" / "seed0" / "checkpoints"
  deadline = time.monotonic() + 300
  while not any(checkpoints.glob("[0-9]*/manifest")):
    assert process.poll() is None
    assert time.monotonic() < deadline
    time.sleep(0.01)
  os.kill(process.pid, signal.SIGKILL)
  process.wait()
  # The run that it had started stops as well, by itself.
  while main(["sweep", grid, "--root", str(killed)]):
    assert time.monotonic() < deadline
    time.sleep(1)
  assert metrics(killed) == metrics(whole)
  assert metrics(whole)["test/accuracy"] > 0

  # There is nothing left to do, and that takes no run.
  log = killed / "soft" / "seed0" / "train.log"
  before = log.read_text()
  assert main(["sweep", grid, "--root", str(killed)]) == 0
  assert log.read_text() == before


def test_seeds_share_what_is_compiled(tables, whole, monkeypatch, caplog):
  forget_the_folder_of_programs(monkeypatch)
  monkeypatch.setattr(sys.stderr, "isatty", lambda: False)
  caplog.set_level("INFO", logger="absl")

  def programs():
    return sorted(path.name for path in whole.glob(".compiled/*/*-cache"))

  before = programs()
  assert sum("train_step" in name for name in before) == 1
  words = [f"{tables}:one", f"--root={whole}", "--seeds=2"]
  assert main(["sweep", *words]) == 0
  assert programs() == before
  [started] = [text for text in caplog.messages if "starts:" in text]
  assert started.startswith("soft seed 1 starts:")


def test_why_a_run_failed_is_said(tables, tmp_path, caplog, monkeypatch):
  monkeypatch.setattr(task_runner, "MAX_FAILURES", 1)
  words = [f"{tables}:diverging", f"--root={tmp_path}", "--seeds=3"]
  assert main(["sweep", *words]) == 1
  log = tmp_path / "diverging" / "seed0" / "train.log"
  failed, given_up = caplog.messages[-2:]
  assert given_up.startswith("2 runs were not started, as the first 1 failed.")
  first, *rest = failed.splitlines()
  assert first == f"FAILED: diverging seed 0; see {log}"
  assert rest == log.read_text().strip().splitlines()[-len(rest) :]
  assert rest[0].startswith("error: step ")


def test_dry_run_prints_the_commands(tables, tmp_path, capsys):
  root = tmp_path / "root"
  words = ["sweep", f"{tables}:one", "--root", str(root), "--seeds=2"]
  assert main([*words, "--dry-run"]) == 0
  lines = capsys.readouterr().out.splitlines()
  assert len(lines) == 2
  assert "--config.seed=1" in lines[1]
  assert not root.exists()


LAUNCHER = """#!/bin/sh
printf '%s\\n' "$*" >> "$(dirname "$0")/launched.txt"
"""


def launcher(folder, text=LAUNCHER):
  """A script that appends its arguments to a file."""
  script = folder / "launch.sh"
  script.write_text(text)
  script.chmod(0o755)
  return f"--launcher={script} run --topology=v5e:4x4"


@pytest.mark.slow  # Starts a server.
def test_runs_are_launched_elsewhere(tables, tmp_path):
  """With the manifest in a bucket, where `report` finds it."""
  (tmp_path / "bucket").mkdir()
  words = [f"{tables}:one", "--seeds=2", "--root=gs://bucket/My_Grid"]
  with fake_gcs(tmp_path):
    assert main(["sweep", *words, launcher(tmp_path)]) == 0
    manifest = sweep_manifest.read("gs://bucket/My_Grid")
  assert manifest.seeds == [0, 1] and list(manifest.cells) == ["soft"]
  lines = (tmp_path / "launched.txt").read_text().splitlines()
  assert len(lines) == 2
  for seed, line in enumerate(lines):
    start = f"run --topology=v5e:4x4 --name=my-grid-0-seed{seed} -- train "
    assert line.startswith(start + "--config=configs/digits.py:router=soft")
    assert line.endswith(f" --workdir=gs://bucket/My_Grid/soft/seed{seed}")


def test_a_launcher_that_fails_ends_the_sweep(tables, tmp_path, capsys):
  words = [f"{tables}:one", "--seeds=2", f"--root={tmp_path / 'root'}"]
  failing = launcher(tmp_path, LAUNCHER + "exit 3\n")
  assert main(["sweep", *words, failing]) == 2
  assert "exit status 3. Run the sweep" in capsys.readouterr().err
  assert len((tmp_path / "launched.txt").read_text().splitlines()) == 1


def test_runs_here_need_a_local_root(tables, capsys, monkeypatch):
  monkeypatch.setattr(sweep_manifest, "exists", lambda root: False)
  monkeypatch.setattr(sweep, "final_metrics", lambda workdir: None)
  words = [f"{tables}:one", "--root=gs://bucket/grid"]
  assert main(["sweep", *words]) == 2
  assert "root=gs://bucket/grid: runs on" in capsys.readouterr().err


def test_a_field_is_changed_in_all_rows(tables, tmp_path, capsys):
  words = ["sweep", f"{tables}:one", f"--root={tmp_path}", "--dry-run"]
  assert main([*words, "--config.train.batch_size=64"]) == 0
  assert " --config.train.batch_size=64 " in capsys.readouterr().out
  assert main([*words, "--config.train.batch_sise=64"]) == 2
  assert "row soft: config.train: unknown name" in capsys.readouterr().err


def test_the_documented_table_is_one(tmp_path, capsys):
  readme = pathlib.Path(digits.__file__).with_name("README.md").read_text()
  _, text = readme.split("## Your own sweep")
  file = tmp_path / "mine.py"
  file.write_text(re.search(r"^```python\n(.+?)^```", text, re.S | re.M)[1])
  words = [f"{file}:first", "--seeds=2", f"--root={tmp_path}", "--dry-run"]
  assert main(["sweep", *words]) == 0
  lines = capsys.readouterr().out.splitlines()
  assert sum("router=soft " in line for line in lines) == 2
  assert len(lines) == 4


def known_results(folder, tables, **changes):
  """A file of results with seed 0 of the table's row."""
  [row] = load_table(f"{tables}:one").values()
  config = make_cells({"soft": row})["soft"]["config"] | changes
  cell = results.Cell("soft", config, (0,), {0: {"step": 6}})
  results.write(folder / "results.json", [cell])
  return folder / "results.json"


@pytest.mark.parametrize(
  ("changes", "missing"), [({}, [1]), ({"draws": 7}, [0, 1])]
)
def test_known_results_are_not_made_again(
  tables, tmp_path, capsys, changes, missing
):
  known = known_results(tmp_path, tables, **changes)
  words = ["sweep", f"{tables}:one", f"--root={tmp_path}", "--seeds=2"]
  assert main([*words, "--dry-run", f"--known={known}"]) == 0
  lines = capsys.readouterr().out.splitlines()
  assert [line.split("seed=")[1][0] for line in lines] == list(
    map(str, missing)
  )


def finish(workdir):
  """A run that a sweep passes over."""
  (workdir / "checkpoints" / "6").mkdir(parents=True)
  config = parse(digits.get_config().to_dict()).to_dict()
  config |= {"evaluations": {}, "fewshot": {}}
  (workdir / "config.json").write_text(json.dumps(config))
  row = {"step": 6, "num_steps": 6, "train/seconds": 1.0}
  (workdir / "metrics.jsonl").write_text(json.dumps(row) + "\n")


def test_a_root_belongs_to_its_table(tables, tmp_path, capsys):
  root = tmp_path / "root"
  for seed in range(2):
    finish(root / "soft" / f"seed{seed}")

  def sweep(table, *words):
    return main(["sweep", f"{tables}:{table}", "--root", str(root), *words])

  assert sweep("one", "--seeds=2") == 0
  assert sweep("other") == 2
  assert "another --root" in capsys.readouterr().err
  # What is known of a row, and fewer seeds, change none of its runs.
  assert sweep("published") == 0
  [cell] = results.load([root])
  assert cell.expected == {"JFT": 50.9}
  assert cell.seeds == (0, 1)


@pytest.mark.parametrize(
  ("words", "reason"),
  [
    (["FILE:none"], "FILE:none: must be FILE.py:TABLE, where TABLE is one of "),
    (["FILE"], "must be FILE.py:TABLE, where TABLE is one of one, other, "),
    (["FILE:one", "--only=sofd"], "Did you mean 'soft'? Valid names: soft."),
    (["FILE:start"], "row soft: initialize.path='WORKDIR': there is no such"),
    (["nowhere.py:one"], "there is no file nowhere.py"),
    (["FILE:one", "--jobs=1000"], "CPU cores"),
    (["FILE:one", "--seeds=0"], "seeds=0"),
    (["FILE:wrong"], "error: row bad: --config=configs/digits.py:router=hard"),
    (["FILE:wrong"], "\nrow worse: --config=configs/digits.py:k=2.5: "),
    # That the warm-up is too long shows when the steps are counted.
    (["FILE:late"], "error: row late: train.schedule.warmup_steps=90"),
    (["FILE:wrong", "--check"], "\nrow worse: --config=configs/digits.py:k"),
  ],
)
def test_what_is_wrong_is_said_before_anything_runs(
  tables, tmp_path, capsys, words, reason
):
  grid, *rest = [word.replace("FILE", str(tables)) for word in words]
  root = tmp_path / "root"
  assert main(["sweep", grid, *rest, "--root", str(root)]) == 2
  assert reason.replace("FILE:", f"{tables}:") in capsys.readouterr().err
  assert not (root / "soft").exists()


def test_missing_data_are_said_before_anything_runs(
  tmp_path, capsys, monkeypatch
):
  monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "empty"))
  table = ["sweep", "configs/tables.py:glyphs_gate", "--only=dense"]
  root = tmp_path / "root"
  assert main([*table, f"--root={root}"]) == 2
  error = capsys.readouterr().err
  assert "row glyphs,router=dense,rate=0.006,decay=0.3,select=true: " in error
  assert error.count("prepare glyphs/2000") == 2
  assert not root.exists()


def test_what_is_missing_to_start_from_can_be_left_out(tables, tmp_path):
  words = ["sweep", f"{tables}:start", "--root", str(tmp_path), "--dry-run"]
  assert main(words) == 2
  assert main([*words, "--only=a"]) == 0


def test_long_names_of_rows_make_folders(tables, tmp_path, capsys):
  root = tmp_path / "root"
  assert (
    main(["sweep", f"{tables}:long", "--root", str(root), "--dry-run"]) == 0
  )
  _, _, workdir = capsys.readouterr().out.strip().rpartition("--workdir=")
  finish(pathlib.Path(workdir))
  assert main(["sweep", f"{tables}:long", "--root", str(root)]) == 0
  [cell] = results.load([root])
  assert cell.name == "soft," + 300 * "x" and list(cell.runs) == [0]


def test_only_names_that_do_not_fit_are_shortened():
  rows = [row for rows in TABLES_OF_THE_STUDY.values() for row in rows]
  folders = {row.name: run_folder("", row.name, 0).parts for row in rows}
  shortened = {name: f for name, f in folders.items() if f[0] != name}
  assert shortened and min(map(len, shortened)) > 200
  assert len(set(folders.values())) == len(folders)
  same_head = {run_folder("", 250 * "x" + end, 0) for end in "ab"}
  assert len(same_head) == 2
