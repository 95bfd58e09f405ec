"""Checkpoints of a run: saved in the background, verified when restored.

A thin layer over Orbax, which writes arrays in parallel from every host and
makes a step visible only when it is complete. This layer adds three things:
parameters and optimizer state are separate items, so that a model opens without
its optimizer; metadata, with the config, are stored with them; and every array
is compared with its fingerprint (`manifest.py`), so that a damaged step is
reported and the newest intact one is used instead.

On disk: DIRECTORY/STEP/{params,opt_state,manifest}, and router_state unless it
is empty: a tree without leaves is not stored. When a run resumes from an older
step because newer ones are damaged, the damaged ones are renamed
DIRECTORY/damaged-STEP, so that the run can save these steps again.
"""

import contextlib
import time
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import orbax.checkpoint as ocp
from absl import logging
from etils import epath
from jax.experimental import multihost_utils

from vmoe_study.checkpoint import load
from vmoe_study.checkpoint import manifest as manifest_lib
from vmoe_study.checkpoint.errors import CheckpointError, one_line
from vmoe_study.parallel import hosts

PyTree = Any

SECONDS_TO_STOP = 10.0  # Granted to the threads of a failed save.


class Restored(NamedTuple):
  """One verified checkpoint."""

  step: int
  params: PyTree
  opt_state: PyTree
  metadata: dict[str, Any]
  more: dict[str, PyTree]


class CheckpointStore:
  """The checkpoints of one run, in a directory that no other run writes to.

  All processes of a multi-host run call every method.
  """

  def __init__(
    self,
    directory: epath.PathLike,
    *,
    keep: int = 3,
    keep_every: int | None = None,
  ):
    """Opens the directory, creating it, and removes unfinished saves.

    Args:
      directory: local path or gs:// URL.
      keep: number of newest checkpoints to keep, at least 1.
      keep_every: steps that are multiples of this are never removed.

    Raises:
      ValueError: `keep` or `keep_every` is below 1.
    """
    for name, value in (("keep", keep), ("keep_every", keep_every)):
      if value is not None and value < 1:
        raise ValueError(f"{name}={value}: must be at least 1. Raise it.")
    self._directory = load.absolute(directory)
    self._options = ocp.CheckpointManagerOptions(
      max_to_keep=keep,
      keep_period=keep_every,
      cleanup_tmp_directories=True,
      lightweight_initialize=True,
    )
    self._manager = ocp.CheckpointManager(
      self._directory, options=self._options
    )

  def latest_step(self) -> int | None:
    """The newest step that is saved or being saved; None without any."""
    return self._manager.latest_step()

  def save(
    self,
    step: int,
    params: PyTree,
    opt_state: PyTree,
    metadata: dict[str, Any],
    wait: bool = False,
    **more: PyTree,
  ) -> None:
    """Copies the state off the devices and writes it in the background.

    Args:
      step: larger than any saved step.
      params: tree of arrays on any mesh; they may be donated after the call.
      opt_state: like `params`; None or a tree without leaves if there is none.
      metadata: JSON-able; returned when the checkpoint is restored.
      wait: whether to return only when the checkpoint is complete.
      **more: further items by name, such as the batch of a step.

    Raises:
      ValueError: `step` is not larger than the latest step.
      CheckpointError: this save, or the one before it, failed. Complete
        checkpoints are unchanged, and saving can be tried again.
    """
    self.wait()
    latest = self.latest_step()
    if latest is not None and step <= latest:
      raise ValueError(
        f"step={step}: must be larger than {latest}, the latest saved step of "
        f"{self._directory}. Restore that step first, or use a new directory."
      )
    items = {"params": params, "opt_state": opt_state, **more}
    items = {
      name: tree for name, tree in items.items() if jax.tree.leaves(tree)
    }
    manifest = manifest_lib.build(items, metadata)
    args = {name: ocp.args.StandardSave(tree) for name, tree in items.items()}
    with self._reporting(f"saving step {step}"):
      self._manager.save(
        step,
        args=ocp.args.Composite(manifest=ocp.args.JsonSave(manifest), **args),
      )
    if wait:
      self.wait()

  def remove_from(self, step: int) -> None:
    """Removes the checkpoint of a step, and all later ones.

    Raises:
      CheckpointError: one of them cannot be removed.
    """
    self.wait()
    with self._reporting(f"removing checkpoints from step {step} on"):
      for saved in self._manager.all_steps():
        if saved >= step:
          self._manager.delete(saved)

  def restore(
    self,
    step: int | None = None,
    *,
    params: PyTree,
    opt_state: PyTree,
    **more: PyTree,
  ) -> Restored:
    """Reads one step into the shardings of the templates, and verifies it.

    Args:
      step: the step to read; None for the newest intact one.
      params: tree of jax.ShapeDtypeStruct (or arrays) with shardings on any
        mesh; without a sharding, arrays go to the first device.
      opt_state: like `params`.
      **more: like `params`, for further items by name.

    Raises:
      ValueError: names, shapes or dtypes differ from the checkpoint's.
      CheckpointError: there is no checkpoint, or none that is intact.
    """
    self.wait()
    templates = {"params": params, "opt_state": opt_state, **more}
    found, trees, metadata = load.restore_trees(
      self._directory, step, templates
    )
    if step is None:
      self._rename_damaged_steps(found)
    params, opt_state = trees.pop("params"), trees.pop("opt_state")
    return Restored(found, params, opt_state, metadata, trees)

  def wait(self) -> None:
    """Blocks until the current save is complete.

    Raises:
      CheckpointError: it failed.
    """
    with self._reporting("saving in the background"):
      self._manager.wait_until_finished()

  def close(self) -> None:
    """Waits, then releases threads; the store cannot be used afterwards.

    A failed save is only logged, because the store may be closing after another
    error. Call `wait` first to have it raised.
    """
    for action in (self._manager.wait_until_finished, self._manager.close):
      try:
        action()  # Both raise the error of a background save.
      except Exception as error:
        logging.error(
          "A save in %s failed: %s", self._directory, one_line(error)
        )

  @contextlib.contextmanager
  def _reporting(self, action: str) -> Iterator[None]:
    try:
      with hosts.raise_on_all_hosts():
        yield
    except Exception as error:
      # After an error a manager cannot be used again.
      if jax.process_index() == 0:
        _remove_unfinished(self._directory)
      self._manager = ocp.CheckpointManager(
        self._directory, options=self._options
      )
      raise CheckpointError(
        f"{action} in {self._directory} failed: {one_line(error)}. Complete "
        "checkpoints there are unchanged; the newest is step "
        f"{self.latest_step()}. Free space or repair the file system, then run "
        "again."
      ) from error

  def _rename_damaged_steps(self, intact: int) -> None:
    """Renames the steps after the newest intact one, all of them damaged."""
    steps = load.complete_steps(self._directory)
    damaged = [step for step in steps if step > intact]
    if not damaged:
      return
    if jax.process_index() == 0:
      for step in damaged:
        target, copies = self._directory / f"damaged-{step}", 1
        while target.exists():
          copies += 1
          target = self._directory / f"damaged-{step}-{copies}"
        (self._directory / str(step)).rename(target)
        logging.warning("The damaged step %d is now %s.", step, target)
    if jax.process_count() > 1:
      multihost_utils.sync_global_devices("set_aside")
    self._manager.reload()


def _remove_unfinished(directory: epath.Path) -> None:
  """Removes what a failed save has written, once its threads have stopped.

  Orbax does not wait for them; if they write while it removes their files, the
  next save fails too.
  """
  deadline = time.monotonic() + SECONDS_TO_STOP
  quiet = 0
  while quiet < 2 and time.monotonic() < deadline:
    unfinished = list(directory.glob(f"*{ocp.utils.TMP_DIR_SUFFIX}*"))
    quiet = 0 if unfinished else quiet + 1
    for path in unfinished:
      with contextlib.suppress(OSError):
        path.rmtree()
    time.sleep(0.1)
