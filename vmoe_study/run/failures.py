"""Reports, counts and keeps failed steps, for `replay`.

A step fails if its loss, gradient or update is not finite.

On disk: WORKDIR/failures/step_N/ with `report.json` and, below N/, the inputs
of the step: parameters, optimizer state, batch and metadata, in the format of
checkpoints, with fingerprints.
"""

import json
import re
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from absl import logging
from etils import epath

from vmoe_study.checkpoint.errors import CheckpointError
from vmoe_study.checkpoint.store import CheckpointStore
from vmoe_study.checkpoint.tree import flatten
from vmoe_study.data.pipeline import TrainInput
from vmoe_study.parallel import hosts
from vmoe_study.run.experiment import Training
from vmoe_study.run.metadata import Metadata
from vmoe_study.training.health import TrainingFailure
from vmoe_study.training.state import TrainState

REPORT_FILE = "report.json"
MAX_KEPT = 3  # Per start of a run; a kept step takes the space of a checkpoint.
MAX_CONSECUTIVE = 10  # This many consecutive failed steps stop the run.
_SHOWN = 8


class Failures:
  """Handles steps that were not finite: keeps them, then stops or skips.

  Attributes:
    count: number of steps that failed since the start.
  """

  def __init__(
    self,
    workdir: epath.PathLike,
    metadata: Metadata,
    training: Training,
    data: TrainInput,
  ):
    """Prepares to handle failures; does not touch any file.

    Args:
      workdir: workdir of the run.
      metadata: metadata for the checkpoints of the run.
      training: the training whose steps may fail.
      data: the source of their batches.
    """
    self.count = 0
    self._workdir = epath.Path(workdir)
    self._metadata, self._data = metadata, data
    self._action = training.model.config.train.health.on_nonfinite
    self._row, self._last = 0, -1

  def __call__(
    self, step: int, state: TrainState, batch: Any, metrics: Mapping[str, Any]
  ) -> None:
    """Reports and keeps a failed step; stops the run if the config says so.

    Every process of a multi-host run calls it for the same steps.

    Args:
      step: number of the step, from 0.
      state: state before the step.
      batch: batch of the step.
      metrics: metrics of the step.

    Raises:
      TrainingFailure: unless the step is to be skipped.
    """
    report = describe(step, state.params, metrics)
    report["examples"] = self._data.examples(step)
    text = _sentence(report)
    if self.count < MAX_KEPT:
      text += self._keep_inputs(step, state, batch, report)
    self.count += 1
    self._row = self._row + 1 if step == self._last + 1 else 1
    self._last = step
    if self._action == "stop":
      raise TrainingFailure(
        f"{text} A lower learning rate, gradient clipping or "
        "--config.train.health.on_nonfinite=skip with --allow-change may help."
      )
    if self._row == MAX_CONSECUTIVE:
      raise TrainingFailure(
        f"{text} {MAX_CONSECUTIVE} steps in a row have failed."
      )
    logging.warning("%s The update is skipped (%d so far).", text, self.count)

  def _keep_inputs(self, step, state, batch, report) -> str:
    folder = self._workdir / "failures" / f"step_{step}"
    try:
      with hosts.raise_on_all_hosts():
        store = CheckpointStore(folder)
      if store.latest_step() is None:  # Not kept by an earlier start.
        store.save(
          step,
          state.params,
          state.opt_state,
          self._metadata.to_dict(),
          wait=True,
          batch=batch,
          router_state=state.router_state,
        )
      store.close()
      with hosts.raise_on_all_hosts():
        if jax.process_index() == 0:
          text = json.dumps(report, indent=1) + "\n"
          (folder / REPORT_FILE).write_text(text)
    except (OSError, CheckpointError, hosts.OtherHostError) as error:
      return f" The step could not be kept for `replay`: {error}"
    return (
      f" To recompute it: python -m vmoe_study replay "
      f"--workdir={self._workdir} "
      f"--step={step}."
    )


def describe(
  step: int, params: Any, metrics: Mapping[str, Any]
) -> dict[str, Any]:
  """Describes what was not finite in a step, as JSON-able values."""
  metrics = jax.device_get(dict(metrics))
  norms = metrics["gradient_norms"]
  names = list(flatten(params))
  bad = [names[i] for i in np.flatnonzero(~np.isfinite(norms))]
  return {
    "step": step,
    "loss": str(metrics["loss"]),
    "gradient_norm": str(metrics["gradient_norm"]),
    "update_norm": str(metrics["update_norm"]),
    "bad_gradients": sorted(bad),
  }


def _sentence(report: Mapping[str, Any]) -> str:
  bad, examples = report["bad_gradients"], report["examples"]
  shown = ", ".join(f"{name} {index}" for name, index in examples[:_SHOWN])
  more = ", ..." if len(examples) > _SHOWN else ""
  if bad:
    which = (
      f"{len(bad)} gradients are not finite; the first by name is {bad[0]}"
    )
  else:
    which = "the gradients of all tensors are finite"
  return (
    f"step {report['step']}: the loss is {report['loss']}, the gradient's norm "
    f"{report['gradient_norm']}, the update's {report['update_norm']}; "
    f"{which}. The {len(examples)} images of the batch: {shown}{more}."
  )


def find_failed_step(
  workdir: epath.PathLike, step: int | None
) -> tuple[epath.Path, int]:
  """The folder and number of a kept step, by default the newest one.

  Raises:
    ValueError: there is no such step.
  """
  folder = epath.Path(workdir) / "failures"
  paths = folder.iterdir() if folder.exists() else []
  found = (re.fullmatch(r"step_(\d+)", path.name) for path in paths)
  steps = sorted(
    int(match[1])
    for match in found
    if match and (folder / match[0] / REPORT_FILE).exists()
  )
  if not steps or (step is not None and step not in steps):
    wanted = "failed step" if step is None else f"step {step}"
    raise ValueError(
      f"{folder}: holds no {wanted}; the steps there are {steps}. Give the "
      "--workdir of a run in which a loss or gradient was not finite, and one "
      "of its failed steps."
    )
  step = steps[-1] if step is None else step
  return folder / f"step_{step}", step
