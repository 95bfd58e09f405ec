"""Trains a model, or resumes where an earlier run of the command stopped."""

import argparse
import functools
from typing import Any

import jax
from absl import logging
from clu import parameter_overview

from vmoe_study import distributed
from vmoe_study import workdir as workdir_lib
from vmoe_study.analysis.cost import routing
from vmoe_study.checkpoint.store import CheckpointStore
from vmoe_study.cli import config_flags, report
from vmoe_study.config import Config, parse
from vmoe_study.data.prefetch import prefetch_to_device
from vmoe_study.experiment import (
  Model,
  Training,
  make_evaluators,
  open_train_input,
)
from vmoe_study.initialize import initial_params
from vmoe_study.sharding import to_global
from vmoe_study.train.loop import Cadence, train
from vmoe_study.train.metrics import MetricsWriter
from vmoe_study.train.state import TrainState


def add_arguments(parser: argparse.ArgumentParser) -> None:
  """Declares the command's options."""
  config_flags.add_config(parser)
  parser.add_argument(
    "--workdir",
    required=True,
    metavar="DIR",
    help="checkpoints and metrics go here; run the command again to resume",
  )
  distributed.add_arguments(parser)


def run(args: argparse.Namespace) -> int:
  """Runs the command."""
  values = config_flags.load(args)
  config = parse(values)
  distributed.initialize(args)
  data = open_train_input(config)
  model = Model(config, data.image_shape)
  training = Training(model, data.num_examples)
  evaluators = make_evaluators(model)

  workdir_lib.claim(args.workdir, values)
  store = CheckpointStore(
    workdir_lib.checkpoints(args.workdir),
    keep=config.train.keep,
    keep_every=config.train.keep_every or None,
  )
  state = _restore_or_init(store, training)
  start_step = int(state.step)
  logging.info("\n%s", parameter_overview.get_parameter_overview(state.params))
  logging.info(
    "step %d of %d, %d training images, mesh %s",
    start_step,
    training.num_steps,
    data.num_examples,
    dict(model.mesh.shape),
  )
  if sizes := routing(model.module, model.image_shape):
    logging.info("%s", sizes.describe())
  if start_step < training.num_steps:
    writer = MetricsWriter(args.workdir, start_step)
    if start_step == 0:
      count = parameter_overview.count_parameters(state.params)
      writer.write_scalars(0, {"parameters": count})
    put = functools.partial(to_global, model.mesh)
    batches = prefetch_to_device(data.iterate(start_step), put)
    train(
      state,
      training.step,
      batches,
      start_step=start_step,
      num_steps=training.num_steps,
      batch_size=config.train.batch_size,
      cadence=_cadence(config),
      evaluators=evaluators,
      save=functools.partial(_save, store, values, data.image_shape),
      writer=writer,
    )
    batches.close()
    writer.close()
  store.close()
  if jax.process_index() == 0:
    print(report.table([args.workdir]))
  return 0


def _restore_or_init(store: CheckpointStore, training: Training) -> TrainState:
  if store.latest_step() is None:
    model = training.model
    return training.init(initial_params(model.config.initialize, model))
  template = training.state_template()
  found = store.restore(params=template.params, opt_state=template.opt_state)
  return training.state_at(found.step, found.params, found.opt_state)


def _save(
  store: CheckpointStore,
  values: dict[str, Any],
  image_shape: tuple[int, ...],
  step: int,
  state: TrainState,
) -> None:
  record = {"config": values, "image_shape": list(image_shape)}
  store.save(step, state.params, state.opt_state, record)


def _cadence(config: Config) -> Cadence:
  spec = config.train
  return Cadence(spec.report_every, spec.evaluate_every, spec.save_every)
