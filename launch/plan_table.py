"""Updates the table of estimates in README.md.

Every row is a run of `plan`, which takes minutes. Rows are kept in
plan_table.json with the version of the compiler, and the table shows all of
them:

  python launch/plan_table.py --backbone=B/16 --topology=v5e:4x4
"""

import argparse
import json
import pathlib
import re
import time

from absl import logging

FOLDER = pathlib.Path(__file__).parent
RESULTS, README = FOLDER / "plan_table.json", FOLDER / "README.md"
BLOCK = re.compile(r"(<!-- plan-table -->\n).*?(<!-- /plan-table -->)", re.S)
ROUTERS = (
  "softmax_token_choice",
  "sinkhorn_token_choice",
  "softmax_expert_choice",
  "sinkhorn_expert_choice",
  "sparsity_constrained_expert_choice",
  "soft",
  "dense",
)
# Number of chips over which experts are sharded; fields with which a model
# fits.
SLICES = {"v5e:4x4": 16, "v5e:16x16": 32, "v5p:4x4x8": 32}
BACKBONES = {
  "B/32": [],
  "B/16": [],
  "L/16": ["mesh.fsdp=true"],
  "H/14": ["mesh.fsdp=true"],
}
HEADER = ["router", "experts", "backbone", "slice", "GiB", "of", "compute, ms"]
HEADER += ["HBM, ms", "communication, ms", "of it exposed", "step, ms"]
HEADER += ["images/s", "CPU min", "compiler"]


def main() -> None:
  """Runs the rows selected by the options, and writes the table."""
  parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
  parser.add_argument("--router", choices=ROUTERS)
  parser.add_argument("--backbone", choices=BACKBONES, required=True)
  parser.add_argument("--topology", choices=SLICES, required=True)
  parser.add_argument("--experts", type=int, default=32)
  chosen = parser.parse_args()
  logging.set_verbosity(logging.INFO)
  for router in [chosen.router] if chosen.router else ROUTERS:
    selected = chosen.backbone, chosen.topology, router, chosen.experts
    estimate = run(*selected)
    rows = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    rows[" ".join(map(str, selected))] = estimate
    RESULTS.write_text(json.dumps(rows, indent=1, sort_keys=True) + "\n")
    table = rf"\g<1>{render(rows)}\g<2>"
    README.write_text(BLOCK.sub(table, README.read_text()))


def run(backbone: str, topology: str, router: str, experts: int) -> dict:
  """One estimate as a dictionary, at batch size 4,096, and what it took."""
  from vmoe_study import load_config, plan_run

  expert = 1 if router == "dense" else SLICES[topology]
  arguments = f"router={router},backbone={backbone},fewshot=none"
  if router != "dense":
    arguments += f",experts={experts}"
  overrides = [f"mesh.expert={expert}", *BACKBONES[backbone]]
  config = load_config(f"configs/pretrain.py:{arguments}", overrides)
  start = time.process_time()
  estimate = plan_run(config, topology, num_examples=305_000_000)
  cpu_seconds = time.process_time() - start
  selected = {"router": router, "backbone": backbone, "experts": experts}
  return {**estimate.to_dict(), **selected, "cpu_seconds": cpu_seconds}


def render(rows: dict) -> str:
  """The table in Markdown, from the rows by name."""
  lines = ["| " + " | ".join(HEADER) + " |"]
  lines += ["| --- | ---: | --- | --- |" + " ---: |" * 9 + " --- |"]
  lines += [
    "| " + " | ".join(cells(rows[name])) + " |" for name in sorted(rows)
  ]
  return "\n".join(lines) + "\n"


def cells(row: dict) -> list[str]:
  """The cells of one row; empty where XLA found no room for the step."""
  memory, seconds = row["hbm_bytes"], row["step_seconds"]
  experts = "-" if row["router"] == "dense" else str(row["experts"])
  first = [f"`{row['router']}`", experts, row["backbone"], row["topology"]]
  first += [f"{memory[name] / 2**30:.2f}" for name in ("total", "capacity")]
  last = [f"{row['cpu_seconds'] / 60:.1f}", row["compiler"]]
  if seconds is None:
    return [*first, *[""] * 6, *last]
  wire = seconds["interconnect"] + seconds["network"]
  times = [seconds["compute"], seconds["hbm"], wire]
  times += [seconds["exposed"], seconds["step"]]
  shown = [f"{1e3 * time:.3g}" for time in times]
  return [*first, *shown, f"{row['images_per_second']:,.0f}", *last]


if __name__ == "__main__":
  main()
