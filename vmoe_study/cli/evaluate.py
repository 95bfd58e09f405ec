"""Evaluates a checkpoint: no optimizer, no training data, any devices.

The checkpoint's config says what is measured, and any field of it can be
changed, as the capacity of the experts or where the data is. What must stay is
the shape of the parameters.
"""

import argparse
import json
from collections.abc import Sequence
from typing import Any

import jax
from absl import logging
from etils import epath

from vmoe_study.checkpoint.load import load_config, load_params
from vmoe_study.cli import config_flags
from vmoe_study.config import complete, fit_to_devices, parse
from vmoe_study.nn.cost import routing
from vmoe_study.parallel import distributed
from vmoe_study.run import workdir as workdir_lib
from vmoe_study.run.experiment import Model, make_evaluators
from vmoe_study.study.render import markdown_table


def add_arguments(parser: argparse.ArgumentParser) -> None:
  """Declares the command's options."""
  parser.add_argument(
    "--workdir", required=True, metavar="DIR", help="of the training run"
  )
  parser.add_argument(
    "--step", type=int, help="which checkpoint; by default the newest intact"
  )
  parser.add_argument(
    "--config",
    metavar="FILE.py[:ARGUMENTS]",
    help="in place of the checkpoint's config; change any field of either "
    "with --config.FIELD=VALUE",
  )
  parser.add_argument(
    "--out", metavar="FILE", help="also write the metrics there, as JSON"
  )
  distributed.add_arguments(parser)


def run(args: argparse.Namespace) -> int:
  """Runs the command."""
  distributed.initialize(args)
  model, params, step = open_checkpoint(
    args.workdir, args.step, args.config, args.overrides
  )
  if sizes := routing(model.evaluation_module, model.image_shape):
    logging.info("%s", sizes.describe())
  metrics = {"step": step} | measure(model, params)
  if jax.process_index() == 0:
    print(metrics_table(metrics))
    if args.out:
      _write(epath.Path(args.out), metrics)
  return 0


def _write(path: epath.Path, metrics: dict[str, float]) -> None:
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_text(json.dumps(metrics, indent=2) + "\n")


def open_checkpoint(
  workdir: epath.PathLike,
  step: int | None = None,
  config: str | None = None,
  overrides: Sequence[str] = (),
) -> tuple[Model, Any, int]:
  """A trained model on all devices, however many it was trained on.

  Args:
    workdir: of a run, or made by `import-vmoe`.
    step: which checkpoint; None for the newest intact one.
    config: "FILE.py:ARGUMENTS", in place of the checkpoint's config.
    overrides: "--config.FIELD=VALUE".

  Returns:
    Model, parameters, step.

  Raises:
    ValueError: the config is wrong, or does not fit the parameters.
    CheckpointError: there is no intact checkpoint.
  """
  directory = workdir_lib.checkpoints(workdir)
  record, step = load_config(directory, step)
  if config:
    values = config_flags.load_file(config, overrides)
  else:
    values = _recorded(workdir, record["config"], overrides)
  typed = fit_to_devices(parse(values), jax.device_count())
  model = Model(typed, tuple(record["image_shape"]))
  params, _, step = load_params(directory, step, model.params_template())
  return model, params, step


def _recorded(
  workdir: epath.PathLike, record: dict[str, Any], overrides: Sequence[str]
) -> dict[str, Any]:
  if "data" not in record:
    raise ValueError(
      f"{workdir} was imported without a config: it says what the model is, "
      "not what to measure. Give --config=FILE.py[:ARGUMENTS], of a run with "
      "this model."
    )
  return config_flags.override(complete(record), overrides)


def measure(model: Model, params: Any) -> dict[str, float]:
  """Everything that the model's config evaluates, by name.

  Raises:
    ValueError: that is nothing.
  """
  evaluators = make_evaluators(model)
  if not evaluators:
    raise ValueError(
      "The config has neither `evaluations` nor `fewshot`: nothing to measure. "
      "Give --config=FILE.py[:ARGUMENTS] with some."
    )
  return {
    name: value
    for evaluator in evaluators
    for name, value in evaluator.run(params)
  }


def metrics_table(metrics: dict[str, float]) -> str:
  """A Markdown table with a row per metric."""
  rows = [[name, f"{value:.6g}"] for name, value in metrics.items()]
  return markdown_table(["metric", "value"], rows)
