"""Evaluates a trained model: no optimizer, no training data, any devices."""

from collections.abc import Sequence

from absl import logging
from etils import epath

from vmoe_study.config import Config
from vmoe_study.run.checkpoint import Checkpoint, open_checkpoint
from vmoe_study.run.data_dirs import check_confirmed
from vmoe_study.run.inputs import make_evaluators


def evaluate(
  checkpoint: Checkpoint | epath.PathLike,
  *,
  config: Config | None = None,
  overrides: Sequence[str] = (),
  trust_data_dirs: bool = False,
) -> dict[str, float]:
  """Runs all evaluations of a checkpoint's config.

  Args:
    checkpoint: of `open_checkpoint`, or the workdir of a run.
    config: in place of a workdir's own config.
    overrides: changed fields of a workdir's config, "FIELD=VALUE".
    trust_data_dirs: whether data may be read from all folders that a workdir's
      config names.

  Returns:
    Metrics by name, such as "test/accuracy", and the checkpoint's "step".

  Raises:
    ValueError: the config evaluates nothing, is wrong, does not fit the
      parameters, or names folders that are not confirmed.
    CheckpointError: there is no intact checkpoint.

  >>> metrics = evaluate("runs/digits")
  >>> metrics["step"], 0 <= metrics["test/accuracy"] <= 1
  (23, True)
  """
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
      "%s: the checkpoint has no class names, so whether its classes are those "
      "of the data sets is not checked",
      checkpoint.path,
    )
  evaluators = make_evaluators(checkpoint.model, checkpoint.class_names)
  if not evaluators:
    raise ValueError(
      "config.evaluations={}, config.fewshot={}: one of them must not be "
      "empty. Give a config with evaluations: --config=FILE.py[:ARGUMENTS]."
    )
  metrics: dict[str, float] = {"step": checkpoint.step}
  for evaluator in evaluators:
    metrics.update(evaluator.run(checkpoint.variables, checkpoint.step))
  return metrics
