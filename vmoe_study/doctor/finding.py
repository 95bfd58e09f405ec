"""The result of a check."""

import dataclasses
from collections.abc import Callable
from typing import Any

from vmoe_study.checkpoint.errors import CheckpointError
from vmoe_study.options import problems_of

OK = "ok"
NOTE = "note"  # The run works, though perhaps not as intended.
PROBLEM = "PROBLEM"  # The run would fail.
SKIPPED = "not checked"


@dataclasses.dataclass(frozen=True)
class Finding:
  """One result of a check.

  Attributes:
    status: OK, NOTE, PROBLEM or SKIPPED.
    subject: what was checked, such as a field of the config.
    text: what was found; for a problem, with its remedy.
  """

  status: str
  subject: str
  text: str

  def __str__(self) -> str:
    head = f"{self.status:<11}  "
    lines = f"{self.subject}: {self.text}".splitlines()
    return head + f"\n{' ' * len(head)}".join(lines)


def attempt(
  subject: str, call: Callable[..., Any], *args: Any, **kwargs: Any
) -> tuple[Any, list[Finding]]:
  """Calls a function and turns any exception into problems.

  A check that raises therefore does not prevent the other checks.

  Returns:
    The result and no findings; or None and the problems.
  """
  try:
    return call(*args, **kwargs), []
  except ValueError as error:
    texts = problems_of(error)
  except (OSError, CheckpointError) as error:
    texts = (str(error),)
  except Exception as error:  # Libraries raise many kinds.
    texts = (f"{type(error).__name__}: {error}",)
  return None, [Finding(PROBLEM, subject, text) for text in texts]
