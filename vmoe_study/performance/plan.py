"""Resource estimates of a run on TPU slices, without a TPU.

One config on one mesh (`plan_run`), or on all meshes of a slice in all plan
forms (`compare_meshes`).
"""

import dataclasses
from collections.abc import Iterator, Sequence

from absl import logging

from vmoe_study.config import Config, check_batches
from vmoe_study.parallel.mesh import MeshSpec
from vmoe_study.performance import data_sizes
from vmoe_study.performance.estimate import (
  ResourceEstimate,
  estimate_resources,
  plan_form,
  with_plan_form,
)
from vmoe_study.performance.target import open_target


def plan_run(
  config: Config,
  topology: str,
  *,
  image_shape: tuple[int, int, int] | None = None,
  num_examples: int | None = None,
) -> ResourceEstimate:
  """Estimates what a run needs on a TPU slice and how fast it can be.

  Compiles the training step with libtpu, for a slice that need not exist: small
  models take seconds, large ones minutes. Times are lower bounds, with every
  resource at its published peak (`performance.roofline`). From then on JAX
  computes on the CPU in this process.

  Args:
    config: of the run.
    topology: the slice, such as "v5e:4x4" or "v5p:4x4x4".
    image_shape: height, width and channels; by default from the config's image
      operations or the data set.
    num_examples: number of training images; by default read from the data set
      if the config counts epochs.

  Raises:
    ValueError: there is no such slice, libtpu is not installed, the config
      cannot run on this number of chips, or a size of the data is unknown.

  >>> from vmoe_study import load_config
  >>> config = load_config("configs/digits.py", ["model.fields.depth=2"])
  >>> estimate = plan_run(config, "v5e:2x2")  # doctest: +SKIP
  >>> estimate.fits, estimate.bound  # doctest: +SKIP
  (True, 'interconnect')
  """
  sizes = _data_sizes(config, image_shape, num_examples)
  target = open_target(topology)
  return estimate_resources(config, target, *sizes)


def compare_meshes(
  config: Config,
  topology: str,
  *,
  image_shape: tuple[int, int, int] | None = None,
  num_examples: int | None = None,
) -> list[ResourceEstimate]:
  """One estimate for every mesh and plan form; arguments as for `plan_run`.

  Raises:
    ValueError: as `plan_run`, or if the config can run on no mesh of the slice.
  """
  sizes = _data_sizes(config, image_shape, num_examples)
  target = open_target(topology)
  configs = list(mesh_variants(config, len(target.devices)))
  estimates = []
  # If there is no valid mesh, the config's own raises the right error.
  for number, candidate in enumerate(configs or [config], start=1):
    logging.info("estimate %d of %d: %s", number, len(configs), candidate.mesh)
    estimates.append(estimate_resources(candidate, target, *sizes))
  return estimates


def _data_sizes(
  config: Config,
  image_shape: tuple[int, int, int] | None,
  num_examples: int | None,
) -> tuple[tuple[int, int, int], int]:
  """Image shape and number of examples; what is None is looked up."""
  if image_shape is None:
    image_shape = data_sizes.image_shape(config)
  if num_examples is None:
    num_examples = data_sizes.num_examples(config)
  return image_shape, num_examples


def mesh_variants(config: Config, num_chips: int) -> Iterator[Config]:
  """The config on every mesh that it can run on, in every plan form."""
  for expert in range(1, num_chips + 1):
    if num_chips % expert or (expert > 1 and not config.model.is_routed):
      continue
    mesh = MeshSpec(num_chips // expert, expert, config.mesh.fsdp)
    candidate = dataclasses.replace(config, mesh=mesh)
    try:
      check_batches(candidate, num_chips)
    except ValueError:
      continue
    forms = ["index", "dense"] if plan_form(config) else [None]
    for form in forms:
      yield with_plan_form(candidate, form)


def fastest(estimates: Sequence[ResourceEstimate]) -> ResourceEstimate | None:
  """The estimate with the shortest step among those that fit; None if none."""
  fitting = [estimate for estimate in estimates if estimate.fits]
  return max(fitting, key=lambda e: e.images_per_second, default=None)
