"""Checks that the workdir is of this run, is writable and has enough space."""

import math
import shutil
import tempfile
from pathlib import Path
from typing import Any

import jax

from vmoe_study.checkpoint import load, manifest
from vmoe_study.doctor.finding import (
  NOTE,
  OK,
  PROBLEM,
  SKIPPED,
  Finding,
  attempt,
)
from vmoe_study.files.location import REMEDY, check_reachable
from vmoe_study.run import workdir as workdir_lib
from vmoe_study.training.spec import TrainSpec

GIB = 2**30


def check_workdir(workdir: str, values: dict[str, Any]) -> list[Finding]:
  """Checks that the workdir is new or of this config, and is writable."""
  _, problems = attempt("workdir", _check_remote, workdir)
  if problems:
    return problems
  _, problems = attempt("workdir", workdir_lib.check, workdir, values)
  _, unwritable = attempt("workdir", _write, workdir)
  problems += unwritable
  return problems or [Finding(OK, "workdir", f"{workdir} can be written to")]


def _check_remote(workdir: str) -> None:
  """Writes and deletes a file, if the workdir is on remote storage."""
  if "://" not in workdir:
    return
  check_reachable(workdir)
  probe = load.absolute(workdir) / ".doctor"
  try:
    probe.write_text("")
    probe.unlink()
  except Exception as error:  # Storage libraries raise many kinds.
    raise OSError(
      f"workdir={workdir}: cannot be written to: {error}. {REMEDY}"
    ) from error


def _write(workdir: str) -> None:
  """Writes a temporary file where the workdir is or will be."""
  if "://" in workdir:
    return
  folder = _existing_folder(workdir)
  try:
    with tempfile.TemporaryFile(dir=folder):
      pass
  except OSError as error:
    raise ValueError(
      f"workdir={workdir}: cannot be written to: {folder}: {error.strerror}."
      " Choose another workdir, or change the permissions."
    ) from error


def _existing_folder(workdir: str) -> Path:
  """The workdir, or its nearest parent folder that exists."""
  path = Path(workdir).expanduser().resolve()
  return next(p for p in (path, *path.parents) if p.exists())


def saved_steps(workdir: str) -> list[int]:
  """Steps of the checkpoints from which a run could resume."""
  if attempt("workdir", check_reachable, workdir)[1]:
    return []
  found, _ = attempt("workdir", load.complete_steps, _checkpoints(workdir))
  return found or []


def _checkpoints(workdir: str):
  return load.absolute(workdir_lib.checkpoints(workdir))


def check_resume(
  workdir: str, num_steps: int | None, templates: dict[str, Any]
) -> list[Finding]:
  """Checks that the newest checkpoint fits the model.

  Args:
    workdir: workdir of the run.
    num_steps: number of steps of the whole run; None if unknown.
    templates: shapes of "params", "opt_state", "router_state" and "ema".
  """
  directory, subject = _checkpoints(workdir), "resume"
  found, problems = attempt(subject, load.load_metadata, directory)
  if problems:
    return problems
  _, step = found
  path = directory / str(step)
  items = load.read_manifest(path)["items"]
  for item, template in templates.items():
    saved = items.get(item, {})
    problems += attempt(
      subject, manifest.check_template, item, saved, template, str(path)
    )[1]
  if problems:
    return problems
  if num_steps is not None and step >= num_steps:
    return [Finding(NOTE, subject, f"finished: step {step} of {num_steps}")]
  return [Finding(OK, subject, f"from step {step} of {num_steps or 'unknown'}")]


def check_space(
  workdir: str, train: TrainSpec, num_steps: int, state: Any, num_saved: int
) -> Finding:
  """Compares free space with the checkpoints that exist at the same time.

  Args:
    workdir: workdir of the run.
    train: fields that determine how many checkpoints are kept.
    num_steps: number of steps of the whole run.
    state: shapes of everything in a checkpoint.
    num_saved: number of existing checkpoints.
  """
  size = sum(
    math.prod(x.shape) * x.dtype.itemsize for x in jax.tree.leaves(state)
  )
  count = checkpoints_at_once(train, num_steps)
  need = max(count - num_saved, 1) * size
  text = (
    f"{count} checkpoints of {size / GIB:,.3f} GiB at a time, of which"
    f" {num_saved} exist: needs {need / GIB:,.3f} GiB more"
  )
  if "://" in workdir:
    return Finding(SKIPPED, "disk", f"{text}; the free space there is unknown")
  free = shutil.disk_usage(_existing_folder(workdir)).free
  text = f"{text}, {free / GIB:,.3f} GiB free at {_existing_folder(workdir)}"
  if need <= free:
    return Finding(OK, "disk", text)
  return Finding(
    PROBLEM,
    "disk",
    f"{text}. Free some space, choose another workdir, or keep fewer"
    " checkpoints with --config.train.keep and --config.train.keep_every.",
  )


def checkpoints_at_once(train: TrainSpec, num_steps: int) -> int:
  """Largest number of checkpoints at a time, with the one being written."""
  lasting = 0
  if train.keep_every:
    lasting = num_checkpoints(train, num_steps, train.keep_every)
  return min(num_checkpoints(train, num_steps), train.keep + 1 + lasting)


def num_checkpoints(train: TrainSpec, num_steps: int, multiple: int = 1) -> int:
  """Number of checkpoints that a run saves at multiples of a step.

  There is one at the end, and one before every evaluation.
  """
  save, evaluate = (
    every or num_steps for every in (train.save_every, train.evaluate_every)
  )
  saves, evaluations, both = (
    (num_steps - 1) // math.lcm(multiple, *intervals)
    for intervals in ((save,), (evaluate,), (save, evaluate))
  )
  at_end = num_steps % multiple == 0
  return saves + evaluations - both + at_end
