"""Modules that know which strings their options take."""

import dataclasses
from typing import Literal, get_origin

import flax.linen as nn

from vmoe_study.options import check_type


class CheckedModule(nn.Module):
  """Every field of a `Literal` type holds one of its values.

  Raises:
    ValueError: as it is made, naming the field, the value and the values known.
  """

  def __post_init__(self):
    for field in dataclasses.fields(self):
      if get_origin(field.type) is Literal:
        where = f"{type(self).__name__}.{field.name}"
        check_type(where, getattr(self, field.name), field.type)
    super().__post_init__()
