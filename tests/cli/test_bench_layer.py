"""`bench layer` on a tiny layer: its rows, its figure, its arithmetic."""

import json

import pytest
from matplotlib.image import imread

from vmoe_study.cli.main import main
from vmoe_study.nn.router import SparseRouter
from vmoe_study.performance.layer_figure import draw

PROMISED = {
  "router",
  "form",
  "group_images",
  "capacity",
  "pass",
  "ms",
  "ratio_experts_only",
  "ratio_dense",
  "peak_bytes",
  "flops",
}
TINY = [
  *["--images=2", "--tokens=8", "--width=8", "--mlp-dim=16", "--num-experts=4"],
  *["--groups=2", "--capacities=1", "--rounds=3"],
  *["--routers", "softmax_token_choice", "soft"],
]


@pytest.fixture(scope="module")
def record(tmp_path_factory):
  folder = tmp_path_factory.mktemp("bench")
  out, figure = folder / "layer.json", folder / "layer.png"
  command = ["bench", "layer", *TINY, f"--out={out}", f"--figure={figure}"]
  assert main(command) == 0
  assert figure.read_bytes().startswith(b"\x89PNG")
  return json.loads(out.read_text())


def test_a_row_for_every_router_form_and_pass(record):
  rows = record["rows"]
  assert all(row.keys() >= PROMISED for row in rows)
  assert {(r["router"], r["form"], r["pass"]) for r in rows} == {
    (router, form, which)
    for router, form in (
      ("softmax_token_choice", "index"),
      ("softmax_token_choice", "dense"),
      ("soft", "dense"),
    )
    for which in ("forward", "forward_backward")
  }


def test_the_index_form_computes_less_than_the_dense_form(record):
  flops = {
    (r["form"], r["pass"], r["router"]): r["flops"] for r in record["rows"]
  }
  for which in ("forward", "forward_backward"):
    index = flops["index", which, "softmax_token_choice"]
    assert index < flops["dense", which, "softmax_token_choice"]


def test_every_part_of_the_breakdown_is_there(record):
  for row in record["rows"]:
    parts = row["breakdown_ms"]
    assert parts.keys() == {
      *("router", "solver", "choice", "dispatch", "experts", "combine")
    }
    assert min(parts.values()) >= 0


@pytest.mark.parametrize(
  "router, form, capacities",
  [("base", "index", [1]), ("dropless_token_choice", "grouped", [1, 2])],
)
def test_training_is_timed_as_it_is(
  router, form, capacities, tmp_path, monkeypatch
):
  """Balanced assignment, which evaluation is without; noise; grouped rows."""
  choices = []
  route = SparseRouter.route

  def record(self, logits, deterministic=True):
    choices.append((deterministic, logits.noise is not None))
    return route(self, logits, deterministic)

  monkeypatch.setattr(SparseRouter, "route", record)
  out = tmp_path / "layer.json"
  command = ["bench", "layer", *TINY[:-2], router, f"--out={out}"]
  factors = ["--capacities", *map(str, capacities)]
  assert main([*command, "--forms=index", *factors]) == 0
  rows = json.loads(out.read_text())["rows"]
  assert {(r["form"], r["capacity"], r["pass"]) for r in rows} == {
    (form, capacity, which)
    for capacity in capacities
    for which in ("forward", "forward_backward")
  }
  # At each capacity: the training pass, and the plan of the breakdown.
  is_noisy = router == "dropless_token_choice"
  in_training = [noisy for deterministic, noisy in choices if not deterministic]
  assert in_training == [is_noisy, False] * len(capacities)
  assert (True, False) in choices


def test_an_unknown_dtype_is_refused(capsys):
  with pytest.raises(SystemExit):
    main(["bench", "layer", *TINY, "--dtype=float12"])
  assert "choose from 'float32', 'bfloat16'" in capsys.readouterr().err


def test_the_figure_is_as_wide_as_a_page(record, tmp_path):
  rows = [
    row | {"group_images": group, "capacity": capacity}
    for row in record["rows"]
    for group in (1, 8)
    for capacity in (1, 2)
  ]
  draw(rows, str(tmp_path / "layer.png"))
  height, width, _ = imread(tmp_path / "layer.png").shape
  assert width <= 1200 and height > width / 3  # Two by two panels.
