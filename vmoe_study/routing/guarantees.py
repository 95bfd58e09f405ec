"""What the plans of a router satisfy, whatever the router logits are."""

import dataclasses
from typing import Literal

# How many, in the letters of `routing.plan`; M is the cap of experts per token.
Count = Literal["0", "1", "K", "M", "E", "C", "S", "min(C, S)"]
Condition = Literal["never", "if C >= S", "if E C >= K S", "always"]


@dataclasses.dataclass(frozen=True)
class Guarantees:
  """Bounds of a router's plans; the contract tests hold every router to them.

  Attributes:
    load: the least and the largest number of tokens that an expert processes in
      a group.
    experts: the least and the largest number of experts that process a token;
      the least one only if `processed` holds.
    processed: when every token is processed: "never" promises nothing.
    slots: whether a slot holds one token or none, or a weighted mean of all.

  Example:
    >>> from vmoe_study.nn.zoo import ROUTERS
    >>> guarantees = ROUTERS["softmax_token_choice"].guarantees
    >>> guarantees.load, guarantees.experts, guarantees.processed
    (('0', 'C'), ('K', 'K'), 'if C >= S')
  """

  load: tuple[Count, Count]
  experts: tuple[Count, Count]
  processed: Condition = "never"
  slots: Literal["one token", "a mean"] = "one token"
