"""`bench solver` on a small problem: its rows, and what they say is true."""

import json

import pytest

from vmoe_study.cli.main import main

SMALL = [
  *["--tokens=64", "--experts=8", "--groups=2", "--capacities=1", "--rounds=2"],
  *["--iterations", "5", "20"],
]


SPARSE = "sparse transport at capacity 1, logits of standard deviation 1"
SINKHORN = "entropic transport (Sinkhorn), logits of standard deviation 4"


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
  folder = tmp_path_factory.mktemp("bench")
  out, figure = folder / "solver.json", folder / "solver.png"
  command = ["bench", "solver", *SMALL, f"--out={out}", f"--figure={figure}"]
  assert main(command) == 0
  assert figure.read_bytes().startswith(b"\x89PNG")
  return json.loads(out.read_text())["rows"]


def _by_solver(rows, problem, key):
  return {
    (row["solver"], row["iterations"]): row[key]
    for row in rows
    if row["problem"] == problem
  }


def test_a_row_for_every_solver_and_number_of_iterations(rows):
  assert len(rows) == (2 + 3) * 2
  for row in rows:
    assert row.keys() == {
      *("problem", "solver", "iterations", "marginal_error", "gap", "ms")
    }
    assert row["ms"] > 0
    assert row["gap"] >= 0


@pytest.mark.parametrize("key", ["gap", "marginal_error"])
def test_the_faster_solver_is_the_better_one(rows, key):
  found = _by_solver(rows, SPARSE, key)
  assert found["entropic_start", 20] < 0.8 * found["adam", 20]
  assert found["adam", 20] < found["adam", 5]


@pytest.mark.parametrize("key", ["gap", "marginal_error"])
def test_the_forms_of_sinkhorn_are_equally_accurate(rows, key):
  found = _by_solver(rows, SINKHORN, key)
  for form in ("scaling form", "form by range"):
    for count in (5, 20):
      expected = pytest.approx(found["log form", count], abs=2e-6, rel=0.05)
      assert found[form, count] == expected
  assert found["log form", 20] < found["log form", 5]
