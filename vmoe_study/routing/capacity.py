"""How many slots each expert gets per group."""

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
  """Slots per expert and group: f(S * K * factor / E), raised to a multiple.

  Args:
    num_tokens: S, tokens in a group.
    num_experts: E.
    capacity_factor: slots per choice that a token may make; 1.0 has just as
      many slots as choices.
    num_selected_experts: K under token choice; 1 for the other routers.
    rounding: "round" (half to even, as Python rounds) or "ceil".
    multiple_of: the result is raised to the next multiple of this.

  Raises:
    ValueError: if no slot is left, or an argument is outside its domain.
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
      f"capacity_factor={capacity_factor} leaves each expert {slots} slots: "
      f"S={num_tokens} tokens per group x K={num_selected_experts} choices x "
      f"factor / E={num_experts} experts = "
      f"{choices * capacity_factor / num_experts:.3g}, {rounding} to {slots}. "
      "Raise capacity_factor, route more images per group, use fewer experts, "
      "or capacity_rounding='ceil'."
    )
  return -(-slots // multiple_of) * multiple_of
