"""The capacity: the number of slots of each expert per group."""

import math
from collections.abc import Callable

_ROUNDINGS: dict[str, Callable[[float], int]] = {
  "round": round,
  "ceil": math.ceil,
}


def expert_capacity(
  num_tokens: int,
  num_experts: int,
  capacity_factor: float | int,
  *,
  num_selected_experts: int = 1,
  rounding: str = "round",
  multiple_of: int = 1,
) -> int:
  """Slots per expert and group: C = rounding(S * K * capacity_factor / E).

  Args:
    num_tokens: S, tokens in a group.
    num_experts: E.
    capacity_factor: slots per choice of a token; at 1.0 there are as many slots
      as choices.
    num_selected_experts: K under token choice; 1 for the other routers.
    rounding: "round" (half to even, as Python rounds) or "ceil".
    multiple_of: C is rounded up to a multiple of this.

  Raises:
    ValueError: if C is 0, or an argument is out of range.

  Example:
    >>> from vmoe_study.routing.capacity import expert_capacity
    >>> expert_capacity(196, 32, 1.0)
    6
    >>> expert_capacity(196, 32, 1.0, rounding="ceil", multiple_of=4)
    8
  """
  if rounding not in _ROUNDINGS:
    raise ValueError(
      f"capacity_rounding={rounding!r}: must be one of {list(_ROUNDINGS)}."
    )
  if num_experts < 1:
    raise ValueError(f"num_experts={num_experts}: must be at least 1.")
  if multiple_of < 1:
    raise ValueError(f"capacity_multiple_of={multiple_of}: must be at least 1.")
  if not (capacity_factor > 0 and math.isfinite(capacity_factor)):
    raise ValueError(
      f"capacity_factor={capacity_factor}: must be a positive, finite number."
    )
  choices = num_tokens * num_selected_experts
  slots = _ROUNDINGS[rounding](choices * capacity_factor / num_experts)
  if slots < 1:
    raise ValueError(
      f"capacity_factor={capacity_factor}: leaves each expert {slots} slots, "
      f"must leave at least 1. S={num_tokens} tokens per group x "
      f"K={num_selected_experts} choices x factor / E={num_experts} experts = "
      f"{choices * capacity_factor / num_experts:.3g} ({rounding}: {slots}). "
      "Raise capacity_factor, route more images per group, use fewer experts, "
      "or set capacity_rounding='ceil'."
    )
  return -(-slots // multiple_of) * multiple_of
