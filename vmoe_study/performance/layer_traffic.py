"""HBM traffic of one MoE layer on a TPU slice, beside the ideal.

  python -m vmoe_study.performance.layer_traffic --topology=v5e:4x4 \\
    --config=configs/pretrain.py:router=softmax_expert_choice,backbone=B/16

Compiles the first routed layer of a config alone: forward and backward pass, in
training, with the shapes and shardings of the run. Nothing is executed. Tokens
enter and leave in row-major layout, that of the attention kernel.
"""

import argparse

import jax
import jax.numpy as jnp
from jax.experimental.layout import Format, Layout
from jax.sharding import NamedSharding, PartitionSpec

from vmoe_study.nn import cost
from vmoe_study.nn import parameter_names as names
from vmoe_study.nn.moe import Moe
from vmoe_study.parallel import sharding
from vmoe_study.parallel.compiler import compiler_options
from vmoe_study.parallel.mesh import AXES
from vmoe_study.performance import hlo
from vmoe_study.performance.estimate import model_on
from vmoe_study.performance.target import open_target
from vmoe_study.run.config_file import load_config
from vmoe_study.run.experiment import Model

IMAGE_SHAPE = 224, 224, 3
EXCHANGE, OTHERS = "exchange", "copies and others"
# Parts of a layer, by what the name of an operation contains.
PARTS = {
  "experts": (names.MLP,),
  "router": (names.ROUTER,),
  "dispatch and combine": ("GSEC", "pallas_call"),
}


def compile_layer(model: Model) -> str:
  """The compiled program of the first routed layer, as text."""
  module, mesh = model.module, model.mesh
  rate, dtype = module.dropout_rate, module.dtype
  layer = Moe(module.moe, module.mlp_dim, rate, dtype, module.exchange)
  length = cost.tokens_per_image(module, model.image_shape)
  shape = model.config.train.batch_size, length, module.width
  by_image = NamedSharding(mesh, PartitionSpec(AXES))
  row_major = Format(Layout((0, 1, 2)), by_image)
  x = jax.ShapeDtypeStruct(shape, dtype, sharding=row_major)
  params = next(
    block[names.MOE]
    for _, block in sorted(model.params_template()[names.ENCODER].items())
    if names.MOE in block
  )
  key = jax.eval_shape(lambda: jax.random.key(0))

  def step(params, x, d_y, key):
    def forward(params, x):
      rngs = {"router": key, "dropout": key}
      y, aux = layer.apply({"params": params}, x, False, rngs=rngs)
      return y, aux.auxiliary_loss.mean()

    y, gradients = jax.vjp(forward, params, x)
    return y, gradients((d_y, jnp.float32(1)))

  placed = jax.tree.map(lambda leaf: leaf.sharding, params)
  whole = sharding.replicated(mesh)
  function = jax.jit(
    step,
    out_shardings=((row_major, whole), (placed, row_major)),
    compiler_options=compiler_options(mesh),
  )
  return function.lower(params, x, x, key).compile().as_text()


def by_part(program: str) -> dict[str, float]:
  """Bytes of HBM traffic of each part of a layer."""
  found = dict.fromkeys((*PARTS, EXCHANGE, OTHERS), 0.0)
  for event in hlo.schedule(program):
    if isinstance(event, hlo.Loop):
      found[OTHERS] += hlo.traffic((event,)).hbm_bytes
    else:
      found[_part(event)] += event.hbm_bytes
  return found


def _part(event: hlo.Event) -> str:
  if event.collective or event.ends:
    return EXCHANGE
  for part, words in PARTS.items():
    if any(word in event.source for word in words):
      return part
  return OTHERS


def ideal(model: Model) -> dict[str, float]:
  """Bytes of an ideal layer on each device, without padding.

  Every matrix product of the experts, two forward and four backward, reads its
  factors and writes its result: six times the rows (N, D) of all slots, and
  seven times (N, F). Each of four exchanges reads and writes the rows. Tokens
  are read and written once in each direction, and the experts' kernels are read
  once. XLA may need less: it keeps some arrays on the chip.
  """
  module, size = model.module, jnp.dtype(model.module.dtype).itemsize
  moe = cost.routing(module, model.image_shape)
  images = model.config.train.batch_size // model.mesh.size
  length = cost.tokens_per_image(module, model.image_shape)
  width, mlp_dim = module.width, module.mlp_dim
  slots = images // module.moe.group_images * moe.slots_per_group
  exchanged = 8 if module.exchange.num_devices > 1 else 0
  local = moe.num_experts // module.exchange.num_devices
  return {
    "experts": slots * (6 * width + 7 * mlp_dim) * size,
    "exchange": exchanged * slots * width * size,
    "tokens": 4 * images * length * width * size,
    "kernels": 2 * local * width * mlp_dim * 4,
  }


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
  parser.add_argument("--config", required=True, metavar="FILE.py:ARGUMENTS")
  parser.add_argument("--topology", default="v5e:4x4", metavar="CHIP:SHAPE")
  parser.add_argument("--expert", type=int, default=16, metavar="N")
  args = parser.parse_args()
  target = open_target(args.topology)
  config = load_config(args.config, [f"mesh.expert={args.expert}"])
  model = model_on(target, config, IMAGE_SHAPE)
  found, best = by_part(compile_layer(model)), ideal(model)
  for title, parts in (("compiled", found), ("ideal", best)):
    for name, count in {**parts, "all": sum(parts.values())}.items():
      print(f"{title:8}  {name:20} {count / 1e6:8,.0f} MB")
  print(f"ratio     {sum(found.values()) / sum(best.values()):.3f}")


if __name__ == "__main__":
  main()
