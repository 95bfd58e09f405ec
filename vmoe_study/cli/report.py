"""Tabulates runs: accuracy, few-shot accuracy, time and size."""

import argparse
import json
from collections.abc import Sequence

from etils import epath

from vmoe_study import workdir as workdir_lib
from vmoe_study.cli.table import markdown_table
from vmoe_study.train.metrics import read_metrics


def add_arguments(parser: argparse.ArgumentParser) -> None:
  """Declares the command's options."""
  parser.add_argument("workdirs", nargs="+", metavar="DIR", help="of a run")


def run(args: argparse.Namespace) -> int:
  """Runs the command."""
  print(table(args.workdirs))
  return 0


def table(workdirs: Sequence[epath.PathLike]) -> str:
  """A Markdown table with a row per run; what a run lacks stays empty.

  Accuracies are percentages; seconds are those of training alone.
  """
  runs = [_summary(workdir) for workdir in workdirs]
  measured = {name for run in runs for name in run if "/" in name}
  columns = ["run", "router", "steps", *sorted(measured)]
  columns += ["seconds", "parameters"]
  rows = [[run.get(name, "") for name in columns] for run in runs]
  return markdown_table(columns, rows)


def _summary(workdir: epath.PathLike) -> dict[str, str]:
  path = epath.Path(workdir)
  config_file = path / workdir_lib.CONFIG_FILE
  if not config_file.exists():
    raise ValueError(f"{workdir} is not the workdir of a run: no config.json.")
  config = json.loads(config_file.read_text())
  router = config["model"].get("moe", {}).get("router", "dense")
  summary = {"run": path.name, "router": router}
  latest, seconds = {}, 0.0
  for row in read_metrics(workdir):
    latest |= row
    seconds += row.get("train/seconds", 0.0)
  for name, value in latest.items():
    if name.endswith(("/accuracy", "/10shot")):
      summary[name] = f"{100 * value:.2f}"
  if latest:
    summary["steps"] = str(latest["step"])
    summary["seconds"] = f"{seconds:.0f}"
    summary["parameters"] = f"{latest['parameters']:,.0f}"
  return summary
