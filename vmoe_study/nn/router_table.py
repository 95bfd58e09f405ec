"""The table of ROUTERS.md, from the rows of `ROUTERS`.

python -m vmoe_study.nn.router_table
"""

import re
from collections.abc import Iterator

from vmoe_study.nn.zoo import ROUTERS, RouterSpec
from vmoe_study.routing.guarantees import Guarantees

HEADER = (
  ("router", "scores", "Dispatch", "Combine"),
  ("a slot holds", "tokens per expert", "experts per token", "tokens dropped"),
  ("expert rows per token", "source"),
)
_ARXIV = re.compile(r"(\d{4}\.\d{5})")


def render() -> str:
  """Renders the table in Markdown."""
  header = [name for names in HEADER for name in names]
  lines = [header, ["---"] * len(header), *map(list, _rows())]
  return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _rows() -> Iterator[tuple[str, ...]]:
  for name, spec in ROUTERS.items():
    about, promised = spec.about, spec.guarantees
    yield (
      f"`{name}`",
      about.scores,
      about.dispatch,
      about.combine,
      promised.slots,
      _range(*promised.tokens_per_expert),
      _range("0" if _may_drop(promised) else "", promised.experts_per_token[1]),
      _dropped(promised),
      expert_rows(spec),
      _ARXIV.sub(r"[\1](https://arxiv.org/abs/\1)", about.source),
    )


def _range(least: str, most: str) -> str:
  return most if least in ("", most) else f"{least} to {most}"


def _may_drop(promised: Guarantees) -> bool:
  return promised.all_processed_if != "always"


def _dropped(promised: Guarantees) -> str:
  """The condition under which no token is dropped, and its experts then."""
  if promised.all_processed_if == "never":
    return "any"
  if not _may_drop(promised):
    return "none"
  experts = _range(*promised.experts_per_token)
  return f"none {promised.all_processed_if}; then {experts}"


def expert_rows(spec: RouterSpec) -> str:
  """Rows that experts compute per token, in full and empty slots."""
  if spec.router.is_dropless:
    return "K"
  options = spec.options()
  chosen = {"num_selected_experts", "mean_experts_per_token"} & options.keys()
  return "K x factor" if chosen else "factor"


if __name__ == "__main__":
  print(render())
