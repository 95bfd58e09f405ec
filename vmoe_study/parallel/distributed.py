"""Connecting the processes of a multi-host run.

On TPU slices (Cloud TPU VMs and GKE), under SLURM and under MPI, JAX finds the
other processes in the environment. Elsewhere three arguments describe them.
Without an environment or arguments, the program runs as a single process.

If a process dies, the others stop with an error at most `HEARTBEAT_SECONDS`
after its last heartbeat. The job can then be restarted from its last
checkpoint.
"""

import os

import jax
from absl import logging

HEARTBEAT_SECONDS = 100
# Environment variables of launchers: the number of processes, or their names.
_COUNTS = ("SLURM_STEP_NUM_TASKS", "OMPI_COMM_WORLD_SIZE", "PMI_SIZE")
_NAMES = ("TPU_PROCESS_ADDRESSES", "TPU_WORKER_HOSTNAMES")
# Parts of JAX's error messages: no cluster found; devices already in use.
_NO_CLUSTER = "coordinator_address should be defined"
_TOO_LATE = "must be called before"


def initialize(
  coordinator: str | None = None,
  num_processes: int | None = None,
  process_id: int | None = None,
) -> None:
  """Connects the processes of a run. Call it before JAX uses any device.

  Does nothing if the processes are already connected. Without arguments, JAX
  looks for the other processes in the environment.

  Args:
    coordinator: "HOST:PORT", where process 0 listens.
    num_processes: number of processes of the run.
    process_id: number of this process, from 0.

  Raises:
    ValueError: the arguments are incomplete or contradict each other, or other
      processes exist but cannot be connected. Continuing alone would let
      several processes write to the same workdir.
  """
  given = coordinator, num_processes, process_id
  if given != (None, None, None):
    _check(*given)
  if not jax.distributed.is_initialized() and not _connect(*given):
    return
  logging.info(
    "process %d of %d, %d of %d devices",
    jax.process_index(),
    jax.process_count(),
    jax.local_device_count(),
    jax.device_count(),
  )


def _check(
  coordinator: str | None, num_processes: int | None, process_id: int | None
) -> None:
  if coordinator is None or num_processes is None or process_id is None:
    raise ValueError(
      f"coordinator={coordinator}, num_processes={num_processes}, "
      f"process_id={process_id}: must be given together. Give all three or "
      "none."
    )
  if not 0 <= process_id < num_processes:
    raise ValueError(
      f"process_id={process_id}: must be in [0, {num_processes}), as "
      f"num_processes={num_processes}. Number the processes from 0."
    )


def _connect(*given: str | int | None) -> bool:
  """Connects to other processes; returns False if there are none."""
  try:
    jax.distributed.initialize(
      *given,
      heartbeat_timeout_seconds=HEARTBEAT_SECONDS,
      shutdown_timeout_seconds=HEARTBEAT_SECONDS,
    )
  except (ValueError, RuntimeError) as error:
    too_late = _TOO_LATE in str(error)
    if not too_late and _NO_CLUSTER not in str(error):
      raise
    _check_is_alone(given, too_late)
    return False
  return True


def _check_is_alone(
  given: tuple[str | int | None, ...], too_late: bool
) -> None:
  """Raises ValueError if there are other processes to connect to."""
  signs = _signs_of_others()
  if given != (None, None, None):
    signs.append("coordinator={}, num_processes={}".format(*given))
  if too_late and jax.process_count() > 1:
    signs.append(f"jax.process_count()={jax.process_count()}")
  if not signs:
    return
  if too_late:
    problem = (
      "this process has used its devices already and cannot join them. Run the "
      "command as a program of its own, `python -m vmoe_study ...`, or call "
      "jax.distributed.initialize() before anything else."
    )
  else:
    problem = (
      "JAX cannot find them. Give coordinator, num_processes and process_id; "
      "on the command line --coordinator, --num-processes and --process-id."
    )
  raise ValueError(
    f"{', '.join(signs)}: there are other processes, but {problem}"
  )


def _signs_of_others() -> list[str]:
  """The environment variables that name more than one process."""
  found = [name for name in _COUNTS if int(os.environ.get(name) or 1) > 1]
  found += [name for name in _NAMES if "," in os.environ.get(name, "")]
  return [f"{name}={os.environ[name]}" for name in found]
