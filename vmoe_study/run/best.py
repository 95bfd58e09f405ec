"""The best model of a run, in a workdir of its own, and early stopping.

On disk: WORKDIR/best/checkpoints/STEP, with the parameters that were evaluated
and the states of routers, but no optimizer. `evaluate`, `predict`, `inspect`
and `initialize` read it as the workdir WORKDIR/best.
"""

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from absl import logging
from etils import epath
from jax.experimental import multihost_utils

from vmoe_study.checkpoint.errors import CheckpointError
from vmoe_study.checkpoint.store import CheckpointStore
from vmoe_study.parallel import hosts
from vmoe_study.run import workdir as workdir_lib
from vmoe_study.training.best import BestSoFar, BestSpec
from vmoe_study.training.metrics_file import STOPPED_EARLY, read_metrics

FOLDER = "best"  # In a workdir.


class BestModel:
  """Keeps the best model, and decides whether training stops early.

  All processes of a multi-host run call every method.
  """

  def __init__(
    self,
    workdir: epath.PathLike,
    start_step: int,
    spec: BestSpec,
    on_error: str,
  ):
    """Reads the evaluations up to `start_step`.

    Args:
      workdir: workdir of the run.
      start_step: the step at which the run starts or resumes.
      spec: defines which evaluation is the best.
      on_error: what to do if a model cannot be saved: "stop" raises, "continue"
        logs the error.
    """
    self._spec, self._on_error = spec, on_error
    self._so_far = _replayed(workdir, start_step, spec)
    with hosts.raise_on_all_hosts():
      folder = workdir_lib.checkpoints(epath.Path(workdir) / FOLDER)
      self._store = CheckpointStore(folder, keep=1)

  def on_evaluation(
    self,
    step: int,
    variables: Mapping[str, Any],
    metrics: Mapping[str, float],
    metadata: dict[str, Any],
  ) -> dict[str, float]:
    """Takes an evaluation, and saves its model if it is the best so far.

    The model is saved when the call returns, before the metrics are written: a
    run that is killed in between evaluates this step again.

    Args:
      step: step of the evaluation.
      variables: the evaluated variables.
      metrics: metrics of all evaluations of the step.
      metadata: metadata for the checkpoint.

    Returns:
      The best value as "best/METRIC", and `STOPPED_EARLY` if training stops
      here.

    Raises:
      CheckpointError: the model cannot be saved, and `on_error` is "stop".
    """
    best, name = self._so_far, self._spec.metric
    if best.update(step, metrics):
      self._save(step, variables, metadata)
    found = {f"best/{name}": best.value}
    if best.is_exhausted:
      logging.info(
        "step %d: training stops early, because %d evaluations were not better "
        "than %s %.4g of step %d",
        step,
        best.evaluations_since_best,
        name,
        best.value,
        best.step,
      )
      found[STOPPED_EARLY] = 1.0
    return found

  def close(self) -> None:
    """Releases threads."""
    self._store.close()

  def _save(
    self, step: int, variables: Mapping[str, Any], metadata: dict[str, Any]
  ) -> None:
    try:
      # An earlier start of the run may have saved this step or later ones.
      self._store.remove_from(step)
      self._store.save(
        step,
        variables["params"],
        None,
        metadata,
        wait=True,
        router_state=variables["router_state"],
      )
    except (OSError, CheckpointError) as error:
      if self._on_error == "stop":
        raise
      logging.error("%s The run continues without it.", error)


def _replayed(workdir: epath.PathLike, step: int, spec: BestSpec) -> BestSoFar:
  """The best evaluation up to a step, the same on all hosts."""
  best = BestSoFar(spec)
  with hosts.raise_on_all_hosts():
    if jax.process_index() == 0 and step:
      rows = read_metrics(workdir)
      best.replay(row for row in rows if row["step"] <= step)
  if jax.process_count() > 1:
    own = np.array([best.step, best.value, best.evaluations_since_best], float)
    # As integers, because JAX would round the numbers to float32.
    shared = multihost_utils.broadcast_one_to_all(own.view(np.int32))
    at, value, since = np.asarray(shared).view(np.float64).tolist()
    best = BestSoFar(spec, int(at), value, int(since))
  return best
