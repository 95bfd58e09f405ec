"""Results of runs as tables, from metrics files made by hand."""

import dataclasses
import json
import math
import pathlib
import subprocess
import sys

import numpy as np
import pytest
from etils import epath

from configs import common
from configs.tables import TABLES
from vmoe_study.cli.main import main
from vmoe_study.config import parse
from vmoe_study.run.config_file import load_config
from vmoe_study.run.saved_config import describe_changes, is_changeable
from vmoe_study.study import report, results, sweep_manifest
from vmoe_study.study import tables as study
from vmoe_study.study.contrasts import contrasts, paired_values
from vmoe_study.study.sweep_manifest import SweepManifest

pytestmark = pytest.mark.slow

ROOT = pathlib.Path(__file__).parents[2]
ROUTERS = (
  "softmax_token_choice",
  "softmax_expert_choice",
  "sinkhorn_expert_choice",
  "soft",
  "dense",
)
METRIC = "test/accuracy"


def config(router, group=1):
  """A config with every default, without training on it."""
  args = common.Arguments(router=router, group=group)
  data = {"name": "digits", "split": "train", "ops": "value_range(-1, 1)"}
  data["num_classes"] = 10
  sizes = {"width": 8, "depth": 2, "mlp_dim": 8, "num_heads": 2}
  fields = {"num_classes": 10, "patch_size": 2, **sizes}
  moe = common.moe(args, num_experts=4, blocks="every 2")
  made = common.config_dict(
    name=router,
    model={"fields": fields, "moe": moe},
    data=data,
    train={"batch_size": 64, "num_steps": 10},
  ).to_dict()
  del made["seed"]
  return made


def accuracy(router, seed):
  """Any numbers, but all different."""
  return (
    0.5
    + 0.05 * ROUTERS.index(router)
    + 0.01 * np.sin(7 * seed + ROUTERS.index(router))
  )


def write_run(folder, router, seed, steps=10):
  (folder / "checkpoints" / str(steps)).mkdir(parents=True)
  values = config(router) | {"seed": seed}
  (folder / "config.json").write_text(json.dumps(values))
  rows = [
    {"step": 0, "parameters": 100, "num_steps": 10, "flops_per_image": 2e9},
    {"step": 5, "train/seconds": 2.0, "train/routing/b_1/max_load": 9.0},
    {
      "step": steps,
      "train/seconds": 3.0,
      "train/routing/b_1/max_load": 2.0,
      "train/routing/b_3/max_load": 4.0,
    },
    {"step": steps, METRIC: accuracy(router, seed)},
  ]
  text = "".join(json.dumps(row) + "\n" for row in rows)
  (folder / "metrics.jsonl").write_text(text)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
  """Five routers, three seeds, of which one run has not finished."""
  root = tmp_path_factory.mktemp("sweep")
  cells = {
    router: {
      "words": [],
      "config": config(router),
      "expected": {},
      "source": "",
    }
    for router in ROUTERS
  }
  cells["soft"] |= {"expected": {"JFT": 50.9}, "source": "a paper"}
  sweep_manifest.write(root, SweepManifest([0, 1, 2], cells))
  for router in ROUTERS:
    for seed in range(3):
      steps = 5 if (router, seed) == ("dense", 2) else 10
      write_run(root / router / f"seed{seed}", router, seed, steps)
  return epath.Path(root)


@pytest.fixture(scope="module")
def cells(root):
  return results.load([root])


def test_a_sweep_has_a_cell_per_row_and_knows_what_is_missing(cells):
  assert [cell.name for cell in cells] == list(ROUTERS)
  soft, dense = cells[3], cells[4]
  assert soft.values(METRIC) == [accuracy("soft", seed) for seed in range(3)]
  assert sorted(dense.runs) == [0, 1]
  assert dense.seeds == (0, 1, 2)
  table = study.accuracy_table(cells)
  assert table.header[:2] == ["router", "runs"]  # Nothing else differs.
  assert table.rows[0][:2] == ["softmax_token_choice", "3"]
  assert table.rows[4][:2] == ["dense", "2 of 3"]


def test_seconds_add_up_and_give_the_speed(cells):
  assert cells[0].values("seconds") == [5.0] * 3
  assert cells[0].values("images_per_second") == [10 * 64 / 5.0] * 3


def test_routing_metrics_are_the_last_ones_averaged_over_layers(cells):
  assert study.routing_metric(cells[0], "max_load") == [3.0] * 3


def test_the_table_has_means_and_intervals(cells):
  table = study.accuracy_table(cells)
  values = 100 * np.array([accuracy("soft", seed) for seed in range(3)])
  width = 4.302653 * values.std(ddof=1) / np.sqrt(3)  # t, 2 degrees of freedom
  column = table.header.index(METRIC)
  assert table.as_text()[3][column] == f"{values.mean():.2f} ± {width:.2f}"
  assert table.header[-2:] == ["published: JFT", "source"]
  assert table.rows[3][-2:] == ["50.9", "a paper"]
  assert table.rows[0][-2:] == ["", ""]


def test_a_file_of_results_is_valid_json_and_keeps_what_is_not_a_number(
  cells, tmp_path
):
  run = {"step": 10, METRIC: math.nan}
  cell = dataclasses.replace(cells[0], runs={0: run})
  results.write(tmp_path / "results.json", [cell])
  assert "NaN" not in (tmp_path / "results.json").read_text()
  [found] = results.load([tmp_path])
  assert math.isnan(found.runs[0][METRIC]) and found.runs[0]["step"] == 10


def test_a_cell_without_runs_is_missing(cells):
  dense = results.Cell("dense", cells[4].config, (0,), {})
  table = study.accuracy_table([cells[0], dense])
  assert table.rows[1][1:3] == [study.MISSING, study.MISSING]
  assert study.cost_table([cells[0], dense]).rows[1][1] == study.MISSING


def test_a_contrast_with_one_side_only_is_left_out(cells):
  texts = [row[1] for row in study.contrast_table(cells).rows]
  assert not [text for text in texts if "with batch priority" in text]
  assert "Soft MoE at cost 1 against dense" in texts


def test_only_seeds_that_both_sides_have_are_paired(cells):
  [contrast] = [
    c for c in contrasts(cells) if c.text == "Soft MoE at cost 1 against dense"
  ]
  first, second = paired_values(cells, contrast, METRIC)
  assert first == [accuracy("soft", seed) for seed in range(2)]
  assert second == [accuracy("dense", seed) for seed in range(2)]


def test_report_regenerates_its_own_output_byte_for_byte(root, tmp_path):
  first, second = tmp_path / "first", tmp_path / "second"
  assert main(["report", str(root), "--out", str(first)]) == 0
  assert main(["report", str(first), "--out", str(second)]) == 0
  names = sorted(path.name for path in first.iterdir())
  kinds = {name.rpartition(".")[2] for name in names}
  assert kinds == {"json", "md", "csv", "tex", "png", "svg"}
  for name in names:
    assert (first / name).read_bytes() == (second / name).read_bytes(), name


def test_a_table_of_runs_needs_no_heavy_import(root):
  code = (
    "import sys; from vmoe_study.cli.main import main;"
    f"main(['report', {str(root)!r}]);"
    "heavy = {'jax', 'tensorflow', 'matplotlib', 'scipy.stats', 'grain'};"
    "assert not heavy & {*sys.modules}, heavy & {*sys.modules}"
  )
  subprocess.run([sys.executable, "-c", code], check=True)


def test_runs_that_differ_by_seed_alone_make_one_cell(root):
  paths = [root / "soft" / f"seed{s}" for s in (1, 0)]
  cells = results.load([*paths, root / "dense" / "seed2"])
  assert [cell.seeds for cell in cells] == [(0, 1), (2,)]
  assert "missing" in report.runs_table(cells)


def names(paths):
  """What a report of these runs calls them."""
  lines = report.runs_table(results.load(paths)).splitlines()[2:]
  return [line.split()[1] for line in lines]


def test_runs_are_told_apart_by_the_ends_of_their_paths(root, tmp_path):
  soft, dense = root / "soft", root / "dense"
  assert names([soft / "seed0", soft / "seed1"]) == ["seed0", "seed1"]
  both = ["soft/seed0", "dense/seed0"]
  assert names([soft / "seed0", dense / "seed0"]) == both
  assert names([soft / "seed0", dense / "seed0", soft / "seed1"]) == [
    "soft/seed0",
    "seed1",
    "dense/seed0",
  ]


def test_the_same_run_once_more_is_a_row_of_its_own(root, tmp_path):
  again = tmp_path / "again"
  write_run(again, "soft", 0, steps=5)
  cells = results.load([root / "soft" / "seed0", again])
  assert [cell.seeds for cell in cells] == [(0,), (0,)]
  assert names([root / "soft" / "seed0", again]) == ["seed0", "again"]
  assert report.runs_table(cells).count("missing") == 1


def test_the_actual_capacity_is_a_cost():
  """A column of runs that have it; those of earlier versions do not."""
  made, sizes = config("softmax_expert_choice"), {"parameters": 100}
  for more, shown in (
    ({"capacity_factor": 1.28}, ["1.28", "100"]),
    ({}, ["100"]),
  ):
    cell = results.Cell("cell", made, (0,), {0: sizes | more})
    table = study.cost_table([cell])
    assert table.rows[0][-len(shown) :] == shown
    assert ("actual capacity" in table.header) == bool(more)


def test_a_folder_without_a_run_is_an_error(root, tmp_path):
  with pytest.raises(
    ValueError, match=r"nowhere: there is no such folder\. Give the workdir"
  ):
    results.load([tmp_path / "nowhere"])
  with pytest.raises(ValueError, match=r"not the workdir of a run.*Give the"):
    results.load([tmp_path])
  with pytest.raises(
    ValueError, match=r"contains runs: .*soft/seed0, .*seed1, "
  ):
    results.load([root / "soft"])
  file = tmp_path / "x.json"
  file.write_text("[]")
  with pytest.raises(ValueError, match="not a file of results"):
    results.load([file])


def test_a_report_of_one_run_has_no_empty_tables(root, tmp_path):
  run = root / "soft" / "seed0"
  assert main(["report", str(run), f"--out={tmp_path}"]) == 0
  text = (tmp_path / "report.md").read_text()
  assert "## Accuracy" in text and "## Paired comparisons" not in text
  assert not (tmp_path / "comparisons.csv").exists()
  assert "One seed." in text and "±" not in text and "interval" not in text
  assert "±" not in (tmp_path / "accuracy.csv").read_text()
  rules = [line for line in text.splitlines() if line.startswith("|:-")]
  assert len(rules) == 2


@pytest.mark.parametrize(
  ("folder", "table", "count"),
  [
    ("gate", "", 6),
    ("grid", "glyphs_grid", 8),
    ("controls", "", 6),
    ("zoo", "", 6),
  ],
)
def test_the_committed_results_make_the_committed_tables(
  tmp_path, folder, table, count
):
  committed = ROOT / "notebooks" / "study" / folder
  planned = [f"--planned=configs/tables.py:{table}"] if table else []
  arguments = ["report", str(committed), f"--out={tmp_path}", *planned]
  assert main(arguments) == 0
  tables = [*tmp_path.glob("*.csv"), *tmp_path.glob("*.tex")]
  assert len(tables) == count
  for path in [*tables, tmp_path / "report.md", tmp_path / "results.json"]:
    assert path.read_bytes() == (committed / path.name).read_bytes(), path.name


@pytest.mark.parametrize("name", ["gate", "grid", "controls", "zoo"])
def test_the_committed_results_are_of_the_tables_configs(name):
  committed = ROOT / "notebooks" / "study" / name
  cells = results.load([committed])
  rows = {row.name: row for row in TABLES[f"glyphs_{name}"]}
  assert [cell.name for cell in cells] == list(rows)
  for cell in cells:
    row = rows[cell.name]
    assert cell.expected == row.expected
    assert cell.source == "; ".join(filter(None, [row.source, row.note]))
    config = load_config(row.config, ["seed=0", *row.overrides])
    completed = parse({**cell.config, "seed": 0}).to_dict()
    changes = describe_changes(completed, config.to_dict())
    assert all(map(is_changeable, changes))
