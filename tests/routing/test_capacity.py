"""Slots per expert: worked examples, and errors."""

import pytest

from vmoe_study.routing.capacity import expert_capacity


@pytest.mark.parametrize(
  "S, E, factor, K, rounding, multiple_of, C",
  [
    (196, 32, 1.0, 1, "round", 1, 6),  # 6.125
    (196, 32, 1.0, 1, "ceil", 4, 8),
    (196, 32, 1.0, 1, "ceil", 1, 7),
    (196, 8, 1.0, 1, "round", 1, 24),  # 24.5 to even
    (196, 8, 1.0, 1, "round", 4, 24),
    (196, 8, 1.0, 1, "ceil", 4, 28),
    (5, 2, 1.0, 1, "round", 1, 2),  # 2.5 to even
    (7, 2, 1.0, 1, "round", 1, 4),  # 3.5 to even
    (16, 4, 2.0, 1, "round", 1, 8),
    (16, 4, 1.0, 2, "round", 1, 8),
    (16, 4, 1.05, 2, "round", 4, 8),  # 8.4
    (16, 4, 1.05, 2, "ceil", 4, 12),
    (16, 32, 1.0, 1, "ceil", 1, 1),  # 0.5
    (49, 8, 0.5, 1, "round", 1, 3),  # 3.0625
    (4, 2, 3, 1, "round", 1, 6),  # More slots than tokens.
  ],
)
def test_examples(S, E, factor, K, rounding, multiple_of, C):
  capacity = expert_capacity(
    S,
    E,
    factor,
    num_selected_experts=K,
    rounding=rounding,
    multiple_of=multiple_of,
  )
  assert capacity == C


def test_no_slot_left_names_all_numbers():
  with pytest.raises(ValueError) as error:
    expert_capacity(16, 64, 1.5, num_selected_experts=1)
  message = str(error.value)
  for part in ("S=16", "K=1", "E=64", "capacity_factor=1.5", "0.375", "Raise"):
    assert part in message


@pytest.mark.parametrize(
  "options, message",
  [
    ({"rounding": "floor"}, r"'floor'.*\['round', 'ceil'\]"),
    ({"multiple_of": 0}, "capacity_multiple_of=0.*at least 1"),
    ({"capacity_factor": 0.0}, "capacity_factor=0.0.*positive"),
    ({"capacity_factor": -1.0}, "capacity_factor=-1.0.*positive"),
    ({"capacity_factor": float("inf")}, "capacity_factor=inf.*finite"),
    ({"capacity_factor": float("nan")}, "capacity_factor=nan.*finite"),
    ({"num_experts": 0}, "num_experts=0.*at least 1"),
  ],
)
def test_bad_arguments(options, message):
  arguments = {"num_tokens": 16, "num_experts": 4, "capacity_factor": 1.0}
  with pytest.raises(ValueError, match=message):
    expert_capacity(**(arguments | options))
