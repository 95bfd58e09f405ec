"""Assembles a model and its training from a `Config`."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from vmoe_study.config import Config, check_batches
from vmoe_study.data.device_ops import DeviceOps
from vmoe_study.data.mixup import mixup, rolled_mixup
from vmoe_study.nn.parameter_names import (
  ENCODER,
  EXPERT_PATTERN,
  MOE,
  ROUTER,
  ROUTER_STATE,
)
from vmoe_study.nn.vit import VisionTransformer
from vmoe_study.nn.zoo import make_router
from vmoe_study.parallel import sharding
from vmoe_study.parallel.compiler import compiler_options
from vmoe_study.parallel.mesh import AXES, make_mesh
from vmoe_study.routing.exchange import Exchange
from vmoe_study.training import loss as losses
from vmoe_study.training.optimizer import make_optimizer, make_schedule
from vmoe_study.training.state import TrainState
from vmoe_study.training.step import (
  ROUTER_STATISTICS,
  make_gradient,
  make_train_step,
)


class Model:
  """A configured Vision Transformer on a mesh, without data or optimizer."""

  def __init__(
    self,
    config: Config,
    image_shape: tuple[int, int, int],
    mesh: Mesh | None = None,
  ):
    """Checks that the model can be built; computes shapes only.

    Args:
      config: config of the run.
      image_shape: height, width and channels of the images.
      mesh: device mesh; by default all devices, arranged as the config says.

    Raises:
      ValueError: if image, patches, groups, experts or devices do not fit.
    """
    self.mesh = make_mesh(config.mesh) if mesh is None else mesh
    check_batches(config, self.mesh.size)
    self.config = config
    self.image_shape = image_shape
    self.module = VisionTransformer(
      **config.model.arguments(),
      exchange=Exchange(self.mesh, AXES),
    )
    self.evaluation_module = self.module.clone(moe=config.evaluation_moe)
    init = functools.partial(self._init, self.module, image_shape)
    self._variables = jax.jit(init)
    shapes = jax.eval_shape(self._variables, jax.random.key(0))
    self.params_shape = shapes["params"]
    self.router_state_shape = shapes.get(ROUTER_STATE, {})
    if config.evaluation_capacity:
      self._check_evaluation()
    experts = EXPERT_PATTERN if config.model.is_routed else None
    self.params_sharding = sharding.tree_shardings(
      self.mesh,
      sharding.parameter_rules(experts, config.mesh.fsdp),
      self.params_shape,
      EXPERT_PATTERN,
    )

  def params_template(self) -> Any:
    """Shapes, dtypes and shardings of the parameters."""
    return _template(self.params_shape, self.params_sharding)

  def router_state_template(self) -> Any:
    """Shapes, dtypes and shardings of the router states; may be empty."""
    return _template(self.router_state_shape, self.router_state_sharding)

  @property
  def router_state_sharding(self) -> Any:
    """Router states are replicated on all devices."""
    whole = sharding.replicated(self.mesh)
    return jax.tree.map(lambda _: whole, self.router_state_shape)

  def init(self) -> Any:
    """Random parameters; each device computes and holds only its own part."""
    return self._compiled_init("params", self.params_sharding)

  def init_router_state(self) -> Any:
    """Initializes the router states; {} if no router has one."""
    if not self.router_state_shape:
      return {}
    return self._compiled_init(ROUTER_STATE, self.router_state_sharding)

  def _compiled_init(self, collection: str, shardings: Any) -> Any:
    # `_variables` has been traced for the shapes, and is not traced again.
    init = jax.jit(
      lambda key: self._variables(key)[collection], out_shardings=shardings
    )
    return init(jax.random.key(self.config.seed))

  def _init(
    self,
    module: VisionTransformer,
    image_shape: tuple[int, int, int],
    key: jax.Array,
  ) -> Any:
    batch = self.mesh.size * self.config.group_images
    return module.init(key, jnp.zeros((batch, *image_shape)))

  def _evaluation_shapes(self, image_shape: tuple[int, int, int]) -> Any:
    """Traces the evaluation module and returns the shapes of its variables."""
    init = functools.partial(self._init, self.evaluation_module, image_shape)
    return jax.eval_shape(init, jax.random.key(0))

  def _check_evaluation(self) -> None:
    """Raises ValueError if the model cannot run at `evaluation_capacity`."""
    try:
      self._evaluation_shapes(self.image_shape)
    except ValueError as error:
      text = str(error).replace("capacity_factor", "evaluation_capacity")
      raise ValueError(text) from error

  def check_images(self, where: str, shape: tuple[int, int, int]) -> None:
    """Checks that the model can evaluate images of another shape than its own.

    Raises:
      ValueError: they do not fit patches, groups or experts, or parameters
        depend on the shape, such as learned positions.
    """
    if shape == self.image_shape:
      return
    try:
      wanted = self._evaluation_shapes(shape)
    except ValueError as error:
      raise ValueError(
        f"{where}: its images are {_size(shape)}: {error}"
      ) from error
    changed = wanted["params"] != self.params_shape
    if changed or self.module.posemb == "learned":
      raise ValueError(
        f"{where}: its images are {_size(shape)}, but the model was built for "
        f"{_size(self.image_shape)}, and some of its parameters depend on that "
        "(learned positions, slots of a soft router). Resize the images in "
        "`ops`, or use `initialize` to fine-tune a model of the other size."
      )

  @functools.cached_property
  def predict(self):
    """Compiled (variables, images) -> logits, without noise or dropout.

    As in Flax, the variables are {"params": ...} and, if routers have states,
    "router_state".
    """
    return jax.jit(lambda variables, images: self._apply(variables, images)[0])

  @functools.cached_property
  def features(self):
    """Compiled (variables, images) -> features before the head."""
    return jax.jit(
      lambda variables, images: self._apply(variables, images)[1].features,
      out_shardings=sharding.batch_sharding(self.mesh),
    )

  def _apply(self, variables, images):
    return self.evaluation_module.apply(variables, images)

  def loss(self, params: Any, router_state: Any, batch: Any, key: jax.Array):
    """Training loss and metrics of a batch; `key` seeds all randomness."""
    spec = self.config.train
    dropout, router = jax.random.split(key)
    logits, outputs = self.module.apply(
      {"params": params, ROUTER_STATE: router_state},
      batch["image"],
      deterministic=False,
      rngs={"dropout": dropout, "router": router},
    )
    main = losses.LOSSES[spec.loss](logits, batch["label"]).mean()
    auxiliary = losses.auxiliary_loss(outputs.aux)
    loss = main + auxiliary
    metrics = {"loss": loss, "main_loss": main, "auxiliary_loss": auxiliary}
    metrics["precision_at_1"] = losses.precision_at_1(logits, batch["label"])
    metrics |= losses.routing_metrics(outputs.aux)
    metrics[ROUTER_STATISTICS] = losses.router_statistics(outputs.aux)
    return loss, metrics

  def update_router_state(self, router_state: Any, statistics: Any) -> Any:
    """The states of routers after a step.

    Args:
      router_state: router states before the step.
      statistics: statistics of the step, by layer; see
        `loss.router_statistics`.
    """
    if not router_state:
      return router_state
    moe = self.config.model.moe
    controller = make_router(moe.router, **moe.options).controller
    layers = router_state[ENCODER]
    updated = {
      layer: {
        MOE: {ROUTER: controller.update(layers[layer][MOE][ROUTER], values)}
      }
      for layer, values in statistics.items()
    }
    return {ENCODER: updated}


class Training:
  """A model with its optimizer, train state and compiled step.

  The step takes batches of bytes, as `data.pipeline` makes them.
  """

  def __init__(self, model: Model, num_examples: int):
    """Prepares a run over `num_examples` training images.

    Raises:
      ValueError: if schedule or weight decay do not fit the run.
    """
    spec = model.config.train
    self.model = model
    self.num_steps = spec.total_steps(num_examples)
    self.schedule = make_schedule(spec.schedule, self.num_steps)
    self.optimizer = make_optimizer(
      spec.optimizer, self.schedule, model.params_shape
    )
    self.opt_shape = jax.eval_shape(self.optimizer.init, model.params_shape)
    self.opt_sharding = self._opt_sharding()
    self.gradient = make_gradient(
      model.loss,
      augment=self._augment,
      accumulation=spec.accumulation,
      chunk=model.config.group_images,
    )
    self.step = self._compiled_step()

  def _augment(self, batch: Any, key: jax.Array) -> Any:
    """Converts a batch of bytes to float images and labels; applies mixup."""
    batch = DeviceOps.of(self.model.config.data)(batch)
    spec = self.model.config.train
    if not spec.mixup:
      return batch
    if spec.mixup_within == "pair":
      return mixup(batch, key, spec.mixup)
    return rolled_mixup(batch, key, spec.mixup, self.model.mesh.size)

  def _opt_sharding(self) -> Any:
    """Statistics are sharded like their parameters; the rest is replicated."""
    return optax.tree_map_params(
      self.optimizer,
      sharding.statistic_sharding,
      self.opt_shape,
      self.model.params_shape,
      self.model.params_sharding,
      transform_non_params=lambda _: sharding.replicated(self.model.mesh),
    )

  def _compiled_step(self):
    model = self.model
    step = make_train_step(
      self.gradient,
      self.optimizer,
      model.update_router_state,
      model.config.train.ema_decay,
    )

    def train_step(state, batch):
      rate = self.schedule(state.step)
      state, metrics = step(state, batch)
      return state, metrics | {"learning_rate": rate}

    shardings = self.state_sharding()
    batch = sharding.batch_sharding(model.mesh)
    return jax.jit(
      train_step,
      in_shardings=(shardings, batch),
      out_shardings=(shardings, sharding.replicated(model.mesh)),
      donate_argnums=0,
      compiler_options=compiler_options(model.mesh),
    )

  def state_sharding(self) -> TrainState:
    """The sharding of every array of the state."""
    scalar = sharding.replicated(self.model.mesh)
    return TrainState(
      step=scalar,
      params=self.model.params_sharding,
      opt_state=self.opt_sharding,
      failed=scalar,
      seed=scalar,
      router_state=self.model.router_state_sharding,
      ema=self._ema_of(self.model.params_sharding),
    )

  def _ema_of(self, tree: Any) -> Any:
    """The tree for the moving average; {} if the run keeps none."""
    return tree if self.model.config.train.ema_decay else {}

  def state_template(self) -> TrainState:
    """Shapes, dtypes and shardings of the state."""
    shapes = TrainState(
      step=jax.ShapeDtypeStruct((), jnp.int32),
      params=self.model.params_shape,
      opt_state=self.opt_shape,
      failed=jax.ShapeDtypeStruct((), jnp.bool_),
      seed=jax.ShapeDtypeStruct((), jnp.uint32),
      router_state=self.model.router_state_shape,
      ema=self._ema_of(self.model.params_shape),
    )
    return _template(shapes, self.state_sharding())

  def init(
    self, params: Any | None = None, router_state: Any | None = None
  ) -> TrainState:
    """The state before the first step, by default with random parameters.

    A moving average starts at the parameters.
    """
    params = self.model.init() if params is None else params
    if router_state is None:
      router_state = self.model.init_router_state()
    init = jax.jit(self.optimizer.init, out_shardings=self.opt_sharding)
    opt_state = init(params)
    # A copy, because one buffer cannot be donated to the step twice.
    copy = jax.jit(
      lambda tree: jax.tree.map(jnp.copy, tree),
      out_shardings=self._ema_of(self.model.params_sharding),
    )
    ema = copy(self._ema_of(params))
    return self.state_at(0, params, opt_state, router_state, ema)

  def state_at(
    self,
    step: int,
    params: Any,
    opt_state: Any,
    router_state: Any,
    ema: Any = None,
  ) -> TrainState:
    """A state after `step` steps that is not frozen by a failure."""
    seed = self.model.config.seed
    state = TrainState.create(step, params, opt_state, router_state, ema, seed)
    scalar = sharding.replicated(self.model.mesh)
    return state.replace(
      step=jax.device_put(state.step, scalar),
      failed=jax.device_put(state.failed, scalar),
      seed=jax.device_put(state.seed, scalar),
    )


def _size(shape: tuple[int, int, int]) -> str:
  height, width, channels = shape
  return f"{height} x {width} x {channels}"


def _template(shapes: Any, shardings: Any) -> Any:
  return jax.tree.map(
    lambda s, d: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=d),
    shapes,
    shardings,
  )
