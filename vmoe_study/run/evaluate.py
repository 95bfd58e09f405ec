"""Evaluates a trained model, without optimizer or training data."""

from collections.abc import Mapping, Sequence

import jax
from absl import logging
from etils import epath

from vmoe_study.config import Config
from vmoe_study.evaluation.mistakes import MAX_SHOWN
from vmoe_study.evaluation.result import Classification
from vmoe_study.files.location import expand
from vmoe_study.parallel import hosts
from vmoe_study.run.checkpoint import Checkpoint, open_checkpoint
from vmoe_study.run.data_dirs import check_confirmed
from vmoe_study.run.inputs import (
  classification_evaluators,
  fewshot_evaluators,
)
from vmoe_study.run.mistakes import read_mistakes


class Evaluation(dict[str, float]):
  """The metrics of an evaluation, by name, and the predictions behind them.

  Attributes:
    data_sets: predictions for the images of each of `config.evaluations`, by
      its name: confusion, calibration, mistakes.
  """

  def __init__(
    self,
    metrics: Mapping[str, float],
    data_sets: Mapping[str, Classification],
  ):
    """Takes the metrics, such as "test/accuracy" and the "step"."""
    super().__init__(metrics)
    self.data_sets = data_sets


def evaluate(
  checkpoint: Checkpoint | epath.PathLike,
  *,
  config: Config | None = None,
  overrides: Sequence[str] = (),
  trust_data_dirs: bool = False,
  out: epath.PathLike | None = None,
) -> Evaluation:
  """Runs all evaluations of a checkpoint's config.

  Args:
    checkpoint: an opened checkpoint, or the workdir of a run.
    config: config to use instead of the workdir's own.
    overrides: changes of fields of the workdir's config, "FIELD=VALUE".
    trust_data_dirs: whether data may be read from all folders that the
      workdir's config names.
    out: output folder; None for no files. It gets metrics.json, the page
      index.html, which also shows mistakes, and for each data set a folder of
      tables (CSV) and figures (PNG, SVG) with accuracy by class, confused
      classes and calibration. Process 0 writes the files.

  Returns:
    Metrics by name: those of `Classification.metrics` for each of
    `config.evaluations`, few-shot accuracies, and the checkpoint's "step".
    `data_sets` has the predictions that they are computed from.

  Raises:
    ValueError: the config evaluates nothing, is wrong, does not fit the
      parameters, or names folders that are not confirmed; or `out` is a file.
    CheckpointError: there is no intact checkpoint.

  >>> found = evaluate("runs/digits")
  >>> found["step"], 0 <= found["test/accuracy"] <= 1
  (23, True)
  >>> digits = found.data_sets["test"]
  >>> digits.confusion.matrix().shape, digits.num_images
  ((10, 10), 359)
  """
  if out is not None:
    out = _checked_folder(out)
  if not isinstance(checkpoint, Checkpoint):
    checkpoint = open_checkpoint(
      checkpoint,
      config=config,
      overrides=overrides,
      trust_data_dirs=trust_data_dirs,
    )
  for kind in ("evaluations.", "fewshot."):
    check_confirmed(checkpoint.unconfirmed, kind)
  if checkpoint.class_names is None:
    logging.warning(
      "%s: the checkpoint has no class names, so a match of its classes with "
      "those of the data sets is not checked",
      checkpoint.path,
    )
  evaluation = _evaluate(checkpoint)
  if out is not None:
    with hosts.raise_on_all_hosts():
      if jax.process_index() == 0:
        _write(checkpoint, evaluation, out)
  return evaluation


def _checked_folder(out: epath.PathLike) -> str:
  folder = expand("out", out)
  if epath.Path(folder).is_file():
    raise ValueError(
      f"out={folder}: is a file, and must be a folder. Give another name."
    )
  return folder


def _evaluate(checkpoint: Checkpoint) -> Evaluation:
  evaluators = classification_evaluators(
    checkpoint.model, checkpoint.class_names
  )
  fewshot = fewshot_evaluators(checkpoint.model)
  if not evaluators and not fewshot:
    raise ValueError(
      "config.evaluations={}, config.fewshot={}: one of them must not be "
      "empty. Give a config with evaluations: --config=FILE.py[:ARGUMENTS]."
    )
  variables = checkpoint.variables
  metrics: dict[str, float] = {"step": checkpoint.step}
  data_sets = {}
  for evaluator in evaluators:
    found = evaluator.predict_all(variables)
    data_sets[evaluator.name] = found
    metrics |= found.metrics()
  for transfer in fewshot:
    metrics.update(transfer.run(variables, checkpoint.step))
  return Evaluation(metrics, data_sets)


def _write(checkpoint: Checkpoint, evaluation: Evaluation, out: str) -> None:
  from vmoe_study.evaluation.files import write_evaluation

  specs = checkpoint.config.evaluations
  mistakes = {
    name: list(
      read_mistakes(specs[name].data, checkpoint.class_names, found, MAX_SHOWN)
    )
    for name, found in evaluation.data_sets.items()
  }
  title = f"Evaluation of {checkpoint.path.name}, step {checkpoint.step}"
  write_evaluation(out, title, evaluation, evaluation.data_sets, mistakes)
