"""The section `model` of a config."""

import dataclasses
import typing
from collections.abc import Mapping
from typing import Any

from vmoe_study import options
from vmoe_study.nn.moe import MoeOptions
from vmoe_study.nn.vit import (
  SIZE_FIELDS,
  VisionTransformer,
  backbone_sizes,
  moe_blocks,
)


@dataclasses.dataclass(frozen=True)
class ModelSpec:
  """The fields of a `VisionTransformer`.

  Attributes:
    backbone: a published size such as "B/16"; empty if `fields` has all sizes.
    fields: further fields of `VisionTransformer`, except `moe` and `exchange`.
      They take precedence over the backbone's.
    moe: the routed blocks; with router "dense" there are none.
  """

  backbone: str = ""
  fields: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  moe: MoeOptions = dataclasses.field(default_factory=MoeOptions)

  def __post_init__(self):
    hints = typing.get_type_hints(VisionTransformer)
    options.check_names("fields", self.fields, self.names())
    for name, value in self.fields.items():
      options.check_type(f"fields.{name}", value, hints[name])
    options.check_upper_bounds("fields", self.fields)
    options.check_upper_bounds("moe.options", self.moe.options)
    self.moe.check_router()
    sizes = self.arguments()
    for name in ("num_classes", *SIZE_FIELDS):
      if name not in sizes:
        raise ValueError(f"fields.{name} must be given, or a backbone.")
      options.check_least(f"fields.{name}", sizes[name], 1)
    size = sizes.get("representation_size") or 0
    options.check_least("fields.representation_size", size, 0)
    if not 0 <= sizes.get("dropout_rate", 0) < 1:
      raise ValueError(
        f"fields.dropout_rate={sizes['dropout_rate']}: must be in [0, 1)."
      )
    if self.is_routed:
      moe_blocks(self.moe.blocks, sizes["depth"])

  @staticmethod
  def names() -> set[str]:
    """Valid names of `fields`."""
    own = {"parent", "name", "moe", "exchange"}
    return {f.name for f in dataclasses.fields(VisionTransformer)} - own

  @property
  def is_routed(self) -> bool:
    """Whether there are MoE blocks."""
    return self.moe.is_routed

  def arguments(self) -> dict[str, Any]:
    """Arguments of `VisionTransformer`, except the exchange."""
    sizes = backbone_sizes(self.backbone) if self.backbone else {}
    return {**sizes, **self.fields, "moe": self.moe}
