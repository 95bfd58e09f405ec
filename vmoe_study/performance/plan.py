"""Resource estimates of a run on TPU slices, without a TPU, and on GPUs.

`plan_run` and `plan_gpus` estimate one config on one mesh; `search` looks for
the fastest way to run a config on given slices.
"""

import dataclasses
import functools
from collections.abc import Iterator, Sequence

from absl import logging

from vmoe_study.config import Config, check_batches
from vmoe_study.console.progress import waiting
from vmoe_study.parallel.mesh import MeshSpec, make_mesh
from vmoe_study.performance import analytic, data_sizes
from vmoe_study.performance.estimate import ResourceEstimate, estimate_resources
from vmoe_study.performance.sizes import plan_form, with_plan_form
from vmoe_study.performance.target import CompileTarget, open_target
from vmoe_study.run.experiment import Model, Training
from vmoe_study.training.optimizer import OWN

ImageShape = tuple[int, int, int]

NUM_COMPILED = 6  # Candidates to compile; more if none of them fits.
MOST_COMPILED = 12
# The analytic model may be wrong by this factor; candidates that it finds
# larger are left out.
SLACK = 1.3
REMAT = ("none", "dots", "full")
ACCUMULATION = (1, 2, 4)


def plan_run(
  config: Config,
  topology: str,
  *,
  num_slices: int = 1,
  image_shape: ImageShape | None = None,
  num_examples: int | None = None,
) -> ResourceEstimate:
  """Estimates what a run needs on TPU slices, and how long a step takes.

  Compiles the training step with libtpu, without the slices themselves: small
  models take seconds, large ones minutes. `launch/README.md` says what is
  modelled and what is not. From then on JAX computes on the CPU in this
  process.

  Args:
    config: config of the run.
    topology: the slice, such as "v5e:4x4" or "v5p:4x4x4".
    num_slices: number of such slices, connected by the data-centre network.
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
  >>> estimate.fits, estimate.bottleneck  # doctest: +SKIP
  (True, 'exposed')
  """
  sizes = _data_sizes(config, image_shape, num_examples)
  target = open_target(topology, num_slices)
  return estimate_resources(config, target, *sizes)


def plan_gpus(
  config: Config,
  devices: str,
  *,
  image_shape: ImageShape | None = None,
  num_examples: int | None = None,
) -> ResourceEstimate:
  """Estimates a run on GPUs, such as "h100:8", by the analytic model.

  Nothing is compiled (`performance.analytic`). Arguments and errors are those
  of `plan_run`.
  """
  sizes = _data_sizes(config, image_shape, num_examples)
  return analytic.estimate_gpus(config, devices, *sizes)


def search(
  config: Config,
  topology: str,
  *,
  num_slices: int = 1,
  image_shape: ImageShape | None = None,
  num_examples: int | None = None,
) -> list[ResourceEstimate]:
  """Searches for the fastest way to run a config on slices.

  The search varies mesh, plan form, FSDP, remat, accumulation, the dtype of the
  moments and the batches ahead. The analytic model ranks the candidates and
  drops those that are far too large; the best few are compiled. Arguments and
  errors are those of `plan_run`.

  Returns:
    The compiled candidates; `fastest` finds the best.
  """
  sizes = _data_sizes(config, image_shape, num_examples)
  target = open_target(topology, num_slices)
  configs = list(variants(config, len(target.devices), num_slices))
  # If no mesh is valid, the config's own mesh raises the right error.
  order = _rank_by_analytic_time(configs or [config], target, *sizes)
  found: list[ResourceEstimate] = []
  for candidate in order[:MOST_COMPILED]:
    if len(found) >= NUM_COMPILED and fastest(found):
      break
    logging.info("candidate %d: %s", len(found) + 1, _description(candidate))
    estimate = estimate_resources(candidate, target, *sizes)
    found.append(_with_batches_that_fit(estimate))
  return found


def _data_sizes(
  config: Config,
  image_shape: ImageShape | None,
  num_examples: int | None,
) -> tuple[ImageShape, int]:
  """Image shape and number of examples; looks up those that are None."""
  if image_shape is None:
    image_shape = data_sizes.image_shape(config.data)
  if num_examples is None:
    num_examples = data_sizes.num_examples(config)
  return image_shape, num_examples


def variants(
  config: Config, num_devices: int, num_slices: int = 1
) -> Iterator[Config]:
  """The variants of a config that `search` considers.

  On each mesh, and in each plan form, the first variant has the config's own
  remat, accumulation and moments.
  """
  for mesh in _meshes(config, num_devices, num_slices):
    on_mesh = dataclasses.replace(config, mesh=mesh)
    try:
      check_batches(on_mesh, num_devices)
    except ValueError:
      continue
    for form in ["index", "dense"] if plan_form(config) else [None]:
      for candidate in _memory_variants(with_plan_form(on_mesh, form)):
        try:
          check_batches(candidate, num_devices)
        except ValueError:
          continue
        yield candidate


def _meshes(
  config: Config, num_devices: int, num_slices: int
) -> Iterator[MeshSpec]:
  for expert in range(1, num_devices // num_slices + 1):
    if num_devices // num_slices % expert:
      continue
    if expert > 1 and not config.model.is_routed:
      continue
    for fsdp in (False, True) if num_devices > num_slices else (False,):
      yield MeshSpec(num_devices // expert, expert, fsdp)


def _memory_variants(config: Config) -> Iterator[Config]:
  """Variants that need less memory, the config's own first."""
  remat = config.model.fields.get("remat", "none")
  train = config.train
  for kind in dict.fromkeys((remat, *REMAT)):
    fields = {**config.model.fields, "remat": kind}
    model = dataclasses.replace(config.model, fields=fields)
    for parts in dict.fromkeys((train.accumulation, *ACCUMULATION)):
      if train.batch_size % parts:
        continue
      own = train.optimizer.moment_dtype
      others = ("bfloat16",) if train.optimizer.name in OWN else ()
      for dtype in dict.fromkeys((own, *others)):
        optimizer = dataclasses.replace(train.optimizer, moment_dtype=dtype)
        changed = dataclasses.replace(
          train, accumulation=parts, optimizer=optimizer
        )
        yield dataclasses.replace(config, model=model, train=changed)


def _rank_by_analytic_time(
  configs: Sequence[Config],
  target: CompileTarget,
  image_shape: ImageShape,
  num_examples: int,
) -> list[Config]:
  """Orders candidates by the analytic model; the best of each mesh come first.

  Candidates that are far too large for the HBM are left out, unless all are.
  """
  most_shared = max(configs, key=lambda c: c.mesh.expert)

  @functools.cache
  def products(form: str | None, remat: str) -> analytic.Products:
    """Those of the mesh with the most exchanges."""
    fields = {**most_shared.model.fields, "remat": remat}
    model = dataclasses.replace(most_shared.model, fields=fields)
    traced = dataclasses.replace(most_shared, model=model)
    return analytic.trace_products(
      _model(with_plan_form(traced, form), target, image_shape)
    )

  @functools.cache
  def training(mesh: MeshSpec, dtype: str) -> Training:
    config = next(
      c
      for c in configs
      if (c.mesh, c.train.optimizer.moment_dtype) == (mesh, dtype)
    )
    return Training(_model(config, target, image_shape), num_examples)

  def ranked(number: int) -> tuple[float, float, int]:
    config = configs[number]
    train = config.train
    work = products(plan_form(config), config.model.fields.get("remat", "none"))
    run = training(config.mesh, train.optimizer.moment_dtype)
    fewest = dataclasses.replace(train, batches_ahead=0)
    size = sum(analytic.memory(run, work, fewest).values())
    links = target.links(run.model.mesh)
    seconds = analytic.step_seconds(run, work, train.accumulation, links)
    return size, seconds["step"], number

  with waiting(f"comparing {len(configs)} candidates"):
    ranks = [ranked(number) for number in range(len(configs))]
  limit = max(SLACK * target.hbm_bytes, min(rank[0] for rank in ranks))
  ranks = sorted((r for r in ranks if r[0] <= limit), key=lambda r: r[1:])
  order = [configs[number] for _, _, number in ranks]
  best: dict = {}
  for config in order:
    best.setdefault((config.mesh, plan_form(config)), config)
  chosen = {id(config) for config in best.values()}
  return [*best.values(), *(c for c in order if id(c) not in chosen)]


def _model(
  config: Config, target: CompileTarget, image_shape: ImageShape
) -> Model:
  return Model(config, image_shape, make_mesh(config.mesh, target.devices))


def _description(config: Config) -> str:
  mesh, train = config.mesh, config.train
  parts = [f"expert={mesh.expert}", f"fsdp={mesh.fsdp}"]
  parts += [f"plan_form={plan_form(config)}"]
  parts += [f"remat={config.model.fields.get('remat', 'none')}"]
  parts += [f"accumulation={train.accumulation}"]
  parts += [f"moment_dtype={train.optimizer.moment_dtype}"]
  return ", ".join(parts)


def _with_batches_that_fit(estimate: ResourceEstimate) -> ResourceEstimate:
  """Reduces the batches ahead of an estimate if the step fits only then."""
  memory = estimate.hbm_bytes
  spare = memory["capacity"] - memory["total"] + memory["waiting batches"]
  if estimate.fits or estimate.step_seconds is None or spare < 0:
    return estimate
  number = int(spare // memory["batch"])
  waiting = number * memory["batch"]
  total = memory["total"] - memory["waiting batches"] + waiting
  memory = {**memory, "waiting batches": waiting, "total": total}
  return dataclasses.replace(
    estimate, fits=True, hbm_bytes=memory, batches_ahead=number
  )


def fastest(estimates: Sequence[ResourceEstimate]) -> ResourceEstimate | None:
  """The estimate with the shortest step among those that fit; None if none."""
  fitting = [estimate for estimate in estimates if estimate.fits]
  return max(fitting, key=lambda e: e.images_per_second, default=None)
