"""One program on many hosts: how its processes find each other.

On TPU slices (Cloud TPU VMs and GKE), under SLURM and under MPI, JAX reads from
the environment who the others are. Elsewhere three options say it. Without
either, the program is on its own.

If a process dies, the others stop by themselves, at the latest
`HEARTBEAT_SECONDS` after its last sign of life, with an error: nothing waits
for ever, and the job can be started again from its last checkpoint.
"""

import argparse
import os

import jax
from absl import logging

HEARTBEAT_SECONDS = 100
# Where launchers say how many processes there are, as a number or by name.
_COUNTS = ("SLURM_STEP_NUM_TASKS", "OMPI_COMM_WORLD_SIZE", "PMI_SIZE")
_NAMES = ("TPU_PROCESS_ADDRESSES", "TPU_WORKER_HOSTNAMES")
# What JAX says where it finds no cluster, and where devices are in use already.
_NO_CLUSTER = "coordinator_address should be defined"
_TOO_LATE = "must be called before"


def add_arguments(parser: argparse.ArgumentParser) -> None:
  """Declares the options that say who the other processes are."""
  group = parser.add_argument_group(
    "several processes",
    "found by themselves on TPU slices and under SLURM or MPI",
  )
  group.add_argument(
    "--coordinator", metavar="HOST:PORT", help="where process 0 listens"
  )
  group.add_argument("--num-processes", type=int, metavar="N")
  group.add_argument(
    "--process-id", type=int, metavar="ID", help="of this one, from 0"
  )


def initialize(args: argparse.Namespace) -> None:
  """Connects the processes of a run; to be called before devices are used.

  Does nothing where they are connected already.

  Raises:
    ValueError: if the options are incomplete or contradict each other, or if
      there are several processes that cannot be connected: none of them goes on
      alone, as each would write to the same workdir.
  """
  given = args.coordinator, args.num_processes, args.process_id
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
      f"--coordinator={coordinator}, --num-processes={num_processes}, "
      f"--process-id={process_id}: give all three or none."
    )
  if not 0 <= process_id < num_processes:
    raise ValueError(
      f"--process-id={process_id}: must be in [0, {num_processes}), as "
      f"--num-processes={num_processes}."
    )


def _connect(*given: str | int | None) -> bool:
  """Whether there are other processes; by the options, or the environment."""
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
    _check_alone(given, too_late)
    return False
  return True


def _check_alone(given: tuple[str | int | None, ...], too_late: bool) -> None:
  """Raises ValueError if there are other processes to connect to."""
  signs = _signs_of_others()
  if given != (None, None, None):
    signs.append("--coordinator={}, --num-processes={}".format(*given))
  if too_late and jax.process_count() > 1:
    signs.append(f"jax.process_count()={jax.process_count()}")
  if not signs:
    return
  if too_late:
    problem = (
      "this one has used its devices already and cannot join them. Run the "
      "command as a program of its own, `python -m vmoe_study ...`, or call "
      "jax.distributed.initialize() before anything else."
    )
  else:
    problem = (
      "JAX cannot tell who they are. Give --coordinator, --num-processes and "
      "--process-id."
    )
  raise ValueError(
    f"{', '.join(signs)}: there are other processes, but {problem}"
  )


def _signs_of_others() -> list[str]:
  """Environment variables that tell of more than one process."""
  found = [name for name in _COUNTS if int(os.environ.get(name) or 1) > 1]
  found += [name for name in _NAMES if "," in os.environ.get(name, "")]
  return [f"{name}={os.environ[name]}" for name in found]
