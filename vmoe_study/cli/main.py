"""The entry point of all commands.

A command is a module with `add_arguments(parser)` and `run(args)`, which
returns the exit code. The module is imported only when its command is called. A
module that reads files other than the one of `--config` has a function
`check(args)`, which `--check` calls.
"""

import argparse
import contextlib
import importlib
import os
import sys

from vmoe_study import __version__
from vmoe_study.cli import config_flags
from vmoe_study.cli.background import silence_background_errors
from vmoe_study.cli.stop_signals import StopHandler
from vmoe_study.files.location import expand
from vmoe_study.run.exit_codes import (
  FAILED,
  INTERRUPTED,
  PREEMPTED,
  USAGE_ERROR,
)
from vmoe_study.run.log_setup import log_progress

# Command -> its module and what it does.
COMMANDS = {
  "train": ("train", "train a model, or resume its training"),
  "replay": (
    "replay",
    "recompute a failed step, to find what was not finite",
  ),
  "evaluate": ("evaluate", "evaluate a checkpoint"),
  "predict": ("predict", "predict the classes of images, with probabilities"),
  "inspect": ("inspect", "measure and draw the routing of a checkpoint"),
  "bench": ("bench", "time input, layer, step or solvers on this machine"),
  "doctor": ("doctor", "check a run before it starts"),
  "plan": ("plan", "estimate what a run needs on TPU slices or GPUs"),
  "sweep": ("sweep", "train all configs of a table; skip finished runs"),
  "report": ("report", "tabulate finished runs"),
  "prepare": ("prepare", "build a data set"),
  "import-vmoe": ("import_vmoe", "convert a public V-MoE checkpoint"),
  "export": ("export", "export a checkpoint: safetensors, StableHLO or .npz"),
}

# Commands that resume where they were stopped if they are run again.
RESUMABLE = ("train", "sweep")
_STOPPED = {
  INTERRUPTED: "Interrupted.",
  PREEMPTED: "Stopped before there was anything to save. Run it again.",
}


def main(argv: list[str] | None = None) -> int:
  """Runs a command and returns its exit code.

  Invalid input ends with a message on stderr and exit code 2; `--debug` shows
  the traceback.
  """
  words = sys.argv[1:] if argv is None else argv
  os.environ.setdefault("EPATH_USE_TF", "false")  # Reads gs:// without it.
  # If a data set is built with TensorFlow, it logs a lot.
  os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
  os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")
  parser = argparse.ArgumentParser(
    prog="vmoe-study",
    description="Routers in Vision Mixture of Experts: an empirical study.",
  )
  version = f"%(prog)s {__version__}"
  parser.add_argument("--version", action="version", version=version)
  commands = parser.add_subparsers(dest="command", required=True)
  chosen = next((word for word in words if word in COMMANDS), None)
  module = None
  for name, (file, summary) in COMMANDS.items():
    sub = commands.add_parser(
      name,
      help=summary,
      formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    sub.add_argument("--debug", action="store_true", help="show tracebacks")
    sub.add_argument(
      "--check",
      action="store_true",
      help="only check the options and the config with its overrides; needs "
      "no data, checkpoint or accelerator",
    )
    sub.set_defaults(parser=sub)
    if name == chosen:
      module = importlib.import_module(f"vmoe_study.cli.{file}")
      module.add_arguments(sub)
      sub.description = module.__doc__
  args, overrides = parser.parse_known_args(words)
  unknown = [
    word for word in overrides if not word.startswith(config_flags.PREFIX)
  ]
  has_configs = hasattr(args, "config") or hasattr(args, "table")
  if unknown or (overrides and not has_configs):
    args.parser.error(
      f"unrecognized arguments: {' '.join(unknown or overrides)}"
    )
  args.overrides = config_flags.overrides(overrides)
  if argv is None and not args.debug:  # The process is this command's alone.
    silence_background_errors()
  return _run(module, args)


def _run(module, args) -> int:
  stop = StopHandler()
  resumable = args.command in RESUMABLE
  try:
    with stop if resumable else contextlib.nullcontext():
      log_progress()
      _expand_data_dir()
      return _check(module, args) if args.check else module.run(args)
  except BaseException as error:
    code = PREEMPTED if stop.requested else _exit_code(error)
    if args.debug or code is None:
      raise
    print(_STOPPED.get(code, f"error: {error}"), file=sys.stderr)
    return code


def _expand_data_dir() -> None:
  """Replaces "~" in TFDS_DATA_DIR, which TFDS reads when it is imported."""
  if (folder := os.environ.get("TFDS_DATA_DIR")) is not None:
    os.environ["TFDS_DATA_DIR"] = expand("TFDS_DATA_DIR", folder)


def _check(module, args) -> int:
  """Checks what can be checked without data, checkpoints and devices."""
  if hasattr(module, "check"):
    module.check(args)
  elif getattr(args, "config", None):
    config_flags.load(args)
  print("The command line is valid.")
  return 0


def _exit_code(error: BaseException) -> int | None:
  """The exit code for an error that ends with a message; else None."""
  if isinstance(error, KeyboardInterrupt):
    return INTERRUPTED
  if isinstance(error, ValueError | OSError):
    return USAGE_ERROR
  # Imported only here: most commands run without them.
  from vmoe_study.checkpoint.errors import CheckpointError
  from vmoe_study.parallel.hosts import OtherHostError
  from vmoe_study.training.health import TrainingFailure

  if isinstance(error, CheckpointError):
    return USAGE_ERROR
  return FAILED if isinstance(error, TrainingFailure | OtherHostError) else None
