"""Trains a model, or resumes where an earlier run of the command stopped."""

import argparse
import contextlib
import functools
from typing import Any

import jax
from absl import logging
from clu import parameter_overview

from vmoe_study.checkpoint.errors import CheckpointError
from vmoe_study.checkpoint.load import absolute, complete_steps
from vmoe_study.checkpoint.store import CheckpointStore
from vmoe_study.cli import config_flags, report
from vmoe_study.config import Config, parse
from vmoe_study.data.prefetch import prefetch_to_device
from vmoe_study.nn.cost import routing, training_flops
from vmoe_study.parallel import distributed, hosts
from vmoe_study.parallel.sharding import to_global
from vmoe_study.run import lock
from vmoe_study.run import workdir as workdir_lib
from vmoe_study.run.exit_codes import PREEMPTED
from vmoe_study.run.experiment import (
  Model,
  Training,
  make_evaluators,
  open_train_input,
)
from vmoe_study.run.failures import Failures
from vmoe_study.run.initialize import initial_params
from vmoe_study.study import results
from vmoe_study.training.loop import Cadence, train
from vmoe_study.training.metrics import MetricsWriter
from vmoe_study.training.optimizer import check_schedule
from vmoe_study.training.preemption import Preemption
from vmoe_study.training.state import TrainState


def add_arguments(parser: argparse.ArgumentParser) -> None:
  """Declares the command's options."""
  config_flags.add_config(parser)
  parser.add_argument(
    "--workdir",
    required=True,
    metavar="DIR",
    help="checkpoints and metrics go here; run the command again to resume",
  )
  parser.add_argument(
    "--allow-change",
    action="store_true",
    help="resume though the config differs from the workdir's, in: "
    + ", ".join(f"{name}*" for name in workdir_lib.HARMLESS),
  )
  distributed.add_arguments(parser)


def run(args: argparse.Namespace) -> int:
  """Runs the command."""
  values = config_flags.load(args)
  config = parse(values)
  distributed.initialize(args)
  data = open_train_input(config)
  num_steps = config.train.total_steps(data.num_examples)
  check_schedule(config.train.schedule, num_steps)  # Before all that is slow.
  model = Model(config, data.image_shape)
  training = Training(model, data.num_examples)
  evaluators = make_evaluators(model)
  check = functools.partial(
    workdir_lib.check, args.workdir, values, args.allow_change
  )
  with hosts.raise_on_all_hosts():
    check()
  record = {
    "config": values,
    "image_shape": list(data.image_shape),
    "num_examples": data.num_examples,
  }

  with contextlib.ExitStack() as stack:
    state, found, store = _restore_or_init(args.workdir, training, stack)
    with hosts.raise_on_all_hosts():
      check(saved=found.get("config"))  # Alone in the workdir now.
      workdir_lib.claim(args.workdir, values)
    start_step = int(state.step)
    _describe(training, state, data.num_examples)
    if start_step < training.num_steps:
      on_error = config.train.on_save_error
      writer = MetricsWriter(args.workdir, start_step, on_error)
      stack.callback(writer.close)
      if start_step == 0:
        writer.write_scalars(0, _sizes(training, state))
      put = functools.partial(to_global, model.mesh)
      batches = prefetch_to_device(data.iterate(start_step), put)
      stack.callback(batches.close)
      state = train(
        state,
        training.step,
        batches,
        start_step=start_step,
        skipped=found.get("skipped_steps", 0),
        num_steps=training.num_steps,
        batch_size=config.train.batch_size,
        cadence=_cadence(config),
        evaluators=evaluators,
        save=functools.partial(_save, store, record, on_error),
        stop=Preemption(),
        writer=writer,
        health=config.train.health,
        on_failure=Failures(args.workdir, record, training, data),
      )
      _check_saved(store, int(state.step))
  if int(state.step) < training.num_steps:
    logging.warning("Stopped at step %d. Run again to resume.", state.step)
    return PREEMPTED
  if jax.process_index() == 0:
    print(report.table(results.load([args.workdir])))
  return 0


def _sizes(training: Training, state: TrainState) -> dict[str, float]:
  """What tables say of the run besides what it measures."""
  model = training.model
  return {
    "parameters": parameter_overview.count_parameters(state.params),
    "num_steps": training.num_steps,
    "flops_per_image": training_flops(model.module, model.image_shape),
  }


def _describe(training: Training, state: TrainState, num_examples: int):
  model = training.model
  # Without statistics: those of experts on other hosts cannot be fetched.
  table = parameter_overview.get_parameter_overview(
    state.params, include_stats=False
  )
  logging.info("\n%s", table)
  if sizes := routing(model.module, model.image_shape):
    logging.info("%s", sizes.describe())
  logging.info(
    "step %d of %d, %d training images, mesh %s",
    state.step,
    training.num_steps,
    num_examples,
    dict(model.mesh.shape),
  )


def _restore_or_init(
  workdir: str, training: Training, stack: contextlib.ExitStack
) -> tuple[TrainState, dict[str, Any], CheckpointStore]:
  """The state to go on from, what its checkpoint says of it, and the store.

  A start that fails leaves no workdir behind. Workdir and store are the run's
  alone until `stack` closes.
  """
  model, spec = training.model, training.model.config.train
  directory = absolute(workdir_lib.checkpoints(workdir))
  state, record = None, {}
  if not complete_steps(directory):  # Alike on all hosts.
    state = training.init(initial_params(model.config.initialize, model))
  stack.enter_context(lock.hold(workdir))
  store = CheckpointStore(
    directory, keep=spec.keep, keep_every=spec.keep_every or None
  )
  stack.callback(store.close)
  if complete_steps(directory):  # Perhaps those of a run that has just ended.
    template = training.state_template()
    found = store.restore(params=template.params, opt_state=template.opt_state)
    state = training.state_at(found.step, found.params, found.opt_state)
    record = found.config
  return state, record, store


def _save(
  store: CheckpointStore,
  record: dict[str, Any],
  on_error: str,
  step: int,
  state: TrainState,
  skipped: int,
) -> None:
  record = {**record, "skipped_steps": skipped}
  save = functools.partial(
    store.save, step, state.params, state.opt_state, record
  )
  for action in (store.wait, save):  # The save before this one, and this one.
    try:
      action()
    except (OSError, CheckpointError) as error:
      if on_error == "stop":
        raise
      logging.error("%s The run goes on without it.", error)


def _check_saved(store: CheckpointStore, step: int) -> None:
  """Makes sure of the last checkpoint, without which all was in vain."""
  try:
    store.wait()
  except CheckpointError as error:
    logging.error("%s", error)
  if store.latest_step() != step:
    raise CheckpointError(
      f"step {step}, the last one, could not be saved: see above. Free space "
      "or mend the file system, then run again: it resumes from step "
      f"{store.latest_step() or 0}."
    )


def _cadence(config: Config) -> Cadence:
  spec = config.train
  return Cadence(spec.report_every, spec.evaluate_every, spec.save_every)
