"""Bounds that the plans of a router satisfy for any router logits."""

import dataclasses
from typing import Literal

# A count in the letters of `routing.plan`; M is the bound on experts per token.
Count = Literal["0", "1", "K", "M", "E", "C", "S", "min(C, S)"]
Condition = Literal["never", "if C >= S", "if E C >= K S", "always"]


@dataclasses.dataclass(frozen=True)
class Guarantees:
  """Bounds of a router's plans; the contract tests hold every router to them.

  Attributes:
    tokens_per_expert: the least and the largest number of tokens that an expert
      processes in a group.
    experts_per_token: the least and the largest number of experts that process
      a token; the least number holds only if `all_processed_if` does.
    all_processed_if: the condition under which every token is processed;
      "never" promises nothing.
    slots: whether a slot holds one token or none, or a weighted mean of all.

  Example:
    >>> from vmoe_study.nn.zoo import ROUTERS
    >>> guarantees = ROUTERS["softmax_token_choice"].guarantees
    >>> guarantees.tokens_per_expert, guarantees.experts_per_token
    (('0', 'C'), ('K', 'K'))
    >>> guarantees.all_processed_if
    'if C >= S'
  """

  tokens_per_expert: tuple[Count, Count]
  experts_per_token: tuple[Count, Count]
  all_processed_if: Condition = "never"
  slots: Literal["one token", "a mean"] = "one token"
