"""Modules that check the values of their options."""

import dataclasses
from typing import Literal, get_origin

import flax.linen as nn

from vmoe_study.options import check_type


class CheckedModule(nn.Module):
  """A module that checks its `Literal` fields when it is constructed.

  Raises:
    ValueError: for an invalid value; names the field and the valid values.
  """

  def __post_init__(self):
    for field in dataclasses.fields(self):
      if get_origin(field.type) is Literal:
        where = f"{type(self).__name__}.{field.name}"
        check_type(where, getattr(self, field.name), field.type)
    super().__post_init__()
