"""One program on many hosts: how its processes find each other.

On TPU slices (Cloud TPU VMs and GKE), under SLURM and under MPI, JAX reads from
the environment who the others are. Elsewhere three options say it. Without
either, the program is on its own.

If a process dies, the others stop by themselves, at the latest
`HEARTBEAT_SECONDS` after its last sign of life, with an error: nothing waits
for ever, and the job can be started again from its last checkpoint.
"""

import argparse

import jax
from absl import logging

HEARTBEAT_SECONDS = 100
# What JAX says where there is no cluster, or where devices are in use already,
# as in a notebook.
_ALONE = ("coordinator_address should be defined", "must be called before")


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

  Raises:
    ValueError: if the options are incomplete or contradict each other.
  """
  given = args.coordinator, args.num_processes, args.process_id
  if given != (None, None, None):
    _check(*given)
    jax.distributed.initialize(
      *given, heartbeat_timeout_seconds=HEARTBEAT_SECONDS
    )
  elif not _initialize_from_environment():
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


def _initialize_from_environment() -> bool:
  """Whether JAX found a cluster that this process is part of."""
  try:
    jax.distributed.initialize(heartbeat_timeout_seconds=HEARTBEAT_SECONDS)
  except (ValueError, RuntimeError) as error:
    if any(text in str(error) for text in _ALONE):
      return False
    raise
  return True
