"""Routers in Vision Mixture of Experts: a study in JAX and Flax.

The public names, imported on first use: `import vmoe_study` itself imports
neither JAX nor anything else that is slow.

>>> import vmoe_study
>>> config = vmoe_study.load_config("configs/digits.py:router=soft")
>>> config.model.moe.router
'soft'
"""

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.2.0"

if TYPE_CHECKING:
  from vmoe_study.config import Config as Config
  from vmoe_study.inspection.comparison import compare as compare
  from vmoe_study.inspection.inspect import inspect as inspect
  from vmoe_study.nn.moe import Moe as Moe
  from vmoe_study.nn.moe import MoeOptions as MoeOptions
  from vmoe_study.nn.vit import VisionTransformer as VisionTransformer
  from vmoe_study.nn.zoo import ROUTERS as ROUTERS
  from vmoe_study.nn.zoo import make_router as make_router
  from vmoe_study.performance.plan import plan_run as plan_run
  from vmoe_study.routing.plan import DensePlan as DensePlan
  from vmoe_study.routing.plan import IndexPlan as IndexPlan
  from vmoe_study.routing.plan import RoutingPlan as RoutingPlan
  from vmoe_study.run.checkpoint import Checkpoint as Checkpoint
  from vmoe_study.run.checkpoint import open_checkpoint as open_checkpoint
  from vmoe_study.run.config_file import load_config as load_config
  from vmoe_study.run.evaluate import evaluate as evaluate
  from vmoe_study.run.log_setup import log_progress as log_progress
  from vmoe_study.run.train import train as train

# Public name -> the module that defines it.
_MODULES = {
  "Checkpoint": "run.checkpoint",
  "Config": "config",
  "DensePlan": "routing.plan",
  "IndexPlan": "routing.plan",
  "Moe": "nn.moe",
  "MoeOptions": "nn.moe",
  "ROUTERS": "nn.zoo",
  "RoutingPlan": "routing.plan",
  "VisionTransformer": "nn.vit",
  "compare": "inspection.comparison",
  "evaluate": "run.evaluate",
  "inspect": "inspection.inspect",
  "load_config": "run.config_file",
  "log_progress": "run.log_setup",
  "make_router": "nn.zoo",
  "open_checkpoint": "run.checkpoint",
  "plan_run": "performance.plan",
  "train": "run.train",
}

__all__ = sorted(_MODULES)  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str) -> Any:
  if name not in _MODULES:
    raise AttributeError(
      f"module 'vmoe_study' has no attribute {name!r}. Public names: "
      f"{', '.join(__all__)}."
    )
  module = importlib.import_module(f"{__name__}.{_MODULES[name]}")
  return getattr(module, name)


def __dir__() -> list[str]:
  return [*__all__, "__version__"]
