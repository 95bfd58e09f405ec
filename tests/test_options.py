"""The checks on what a user writes."""

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal

import pytest

from vmoe_study import options


@dataclasses.dataclass(frozen=True)
class Inner:
  rate: float = 1.0
  pairs: tuple[tuple[str, float], ...] = ()

  def __post_init__(self):
    if self.rate < 0:
      raise ValueError(f"rate={self.rate}: must be 0 or more.")


@dataclasses.dataclass(frozen=True)
class Outer:
  count: int
  kind: Literal["a", "b"] = "a"
  inner: Inner = dataclasses.field(default_factory=Inner)
  maybe: Inner | None = None
  many: Mapping[str, Inner] = dataclasses.field(default_factory=dict)
  anything: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  numbers: str | tuple[int, ...] = ()


def test_builds_nested_dataclasses_from_json_like_values():
  built = options.build(
    Outer,
    "config",
    {
      "count": 3,
      "inner": {"rate": 2, "pairs": [["kernel", 0.1]]},
      "maybe": {"rate": 3.0},
      "many": {"x": {"rate": 4.0}},
      "anything": {"k": 1},
    },
  )
  assert built == Outer(
    3,
    inner=Inner(2, (("kernel", 0.1),)),
    maybe=Inner(3.0),
    many={"x": Inner(4.0)},
    anything={"k": 1},
  )
  assert (
    options.build(Outer, "config", {"count": 1, "maybe": None}).maybe is None
  )


@pytest.mark.parametrize(
  ("values", "message"),
  [
    ({}, r"config\.count: must be given"),
    ({"count": "3"}, r"config\.count='3' \(str\): must be int"),
    ({"count": True}, r"config\.count=True \(bool\): must be int"),
    ({"count": 1, "kind": "c"}, r"config\.kind='c'.*'a' or 'b'"),
    ({"count": 1, "inner": {"rat": 1}}, r"config\.inner.*'rat'.*Did you mean"),
    ({"count": 1, "inner": 5}, r"config\.inner=5: must be a mapping"),
    ({"count": 1, "inner": {"rate": float("nan")}}, r"rate=nan.*finite"),
    ({"count": 1, "inner": {"rate": -1.0}}, r"config\.inner: rate=-1\.0"),
    ({"count": 1, "many": {"x": {"rate": "a"}}}, r"config\.many\.x\.rate='a'"),
    ({"count": 1, "inner": {"pairs": [["a", "b"]]}}, r"config\.inner\.pairs"),
    ({"count": 1, "numbers": [1] * 50 + ["x"]}, r"numbers\[50\]='x'.*int"),
    ({"count": 1, "numbers": [1, True]}, r"numbers\[1\]=True.*int"),
  ],
)
def test_names_the_field_the_value_and_the_rule(values, message):
  with pytest.raises(ValueError, match=message):
    options.build(Outer, "config", values)


def test_everything_that_is_wrong_is_said():
  values = {
    "kind": "c",
    "knd": 1,
    "inner": {"rate": -1.0},
    "many": {"x": {"rate": "a"}, "y": {"rat": 1}, "z": {"rate": 2.0}},
  }
  with pytest.raises(options.OptionsError) as error:
    options.build(Outer, "config", values)
  problems = error.value.problems
  assert str(error.value) == "\n".join(problems)
  for text in (
    "config.count: must be given",
    "unknown name 'knd'",
    "config.kind='c'",
    "config.inner: rate=-1.0",
    "config.many.x.rate='a'",
    "config.many.y: unknown name 'rat'",
  ):
    assert sum(text in problem for problem in problems) == 1, text
  assert len(problems) == 6
