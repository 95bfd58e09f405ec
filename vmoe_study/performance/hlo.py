"""Memory and network traffic of a compiled program, from its optimised HLO.

XLA's own cost analysis counts the body of a loop once, and counts accesses to
on-chip memory as HBM traffic. Here the body of a loop counts once per
iteration, and an array counts only if it is in HBM. All figures are per chip.
"""

import dataclasses
import math
import re
from collections.abc import Mapping, Sequence

import numpy as np

KINDS = (
  "all-to-all",
  "all-gather",
  "all-reduce",
  "reduce-scatter",
  "collective-permute",
  "ragged-all-to-all",
)
_COMPUTATION = re.compile(r"(ENTRY )?%?([\w.\-]+) \(.*\) -> .*\{$")
_INSTRUCTION = re.compile(
  r"\s+(?:ROOT )?%?([\w.\-]+) = (.+?) ([a-z][\w\-]*)\((.*)$"
)
_ARRAY = re.compile(r"([a-z]\w*)\[([\d,]*)\](?:\{([^{}]*)\})?")
_CALLED = re.compile(
  r"(calls|to_apply|body|condition|\w+_computations?)="
  r"(?:%?([\w.\-]+)|\{([^{}]*)\})"
)
# Operations without memory traffic of their own. The bytes of an asynchronous
# operation count at its "-done" half.
_NO_TRAFFIC = {
  "parameter",
  "constant",
  "tuple",
  "get-tuple-element",
  "bitcast",
  "after-all",
  "partition-id",
  "replica-id",
  "while",
  "conditional",
  "call",
}


@dataclasses.dataclass(frozen=True)
class Collective:
  """One communication operation between chips.

  Attributes:
    kind: one of `KINDS`.
    bytes: size on one chip of the larger of input and output: the output of an
      all-gather, the input of a reduce-scatter; otherwise they are equal.
    groups: (groups, n): numbers of the chips that communicate with each other;
      for a permutation, pairs of source and target.
    count: number of executions.
  """

  kind: str
  bytes: float
  groups: np.ndarray
  count: int = 1


@dataclasses.dataclass(frozen=True)
class Traffic:
  """Memory and network traffic of a program.

  Attributes:
    hbm_bytes: bytes read from and written to HBM. An estimate: a fusion is
      assumed to read each of its operands once, in full.
    collectives: communication operations, in program order.
  """

  hbm_bytes: float = 0.0
  collectives: tuple[Collective, ...] = ()

  def times(self, count: int) -> "Traffic":
    """Traffic of `count` executions."""
    repeated = [
      dataclasses.replace(c, count=c.count * count) for c in self.collectives
    ]
    return Traffic(self.hbm_bytes * count, tuple(repeated))

  def __add__(self, other: "Traffic") -> "Traffic":
    return Traffic(
      self.hbm_bytes + other.hbm_bytes, self.collectives + other.collectives
    )


@dataclasses.dataclass(frozen=True)
class _Instruction:
  name: str
  shape: str
  op: str
  operands: tuple[str, ...]
  attributes: str

  @property
  def called(self) -> dict[str, list[str]]:
    """Names of the computations that it calls, by their role."""
    return {
      use: re.findall(r"[\w.\-]+", one or many)
      for use, one, many in _CALLED.findall(self.attributes)
    }


def summary(collectives: Sequence[Collective]) -> dict[str, dict[str, float]]:
  """Executions and bytes of each kind: {kind: {"count", "bytes"}}."""
  totals: dict[str, dict[str, float]] = {}
  for collective in collectives:
    total = totals.setdefault(collective.kind, {"count": 0, "bytes": 0})
    total["count"] += collective.count
    total["bytes"] += collective.bytes * collective.count
  return totals


def traffic(text: str) -> Traffic:
  """Traffic of one execution of a program.

  Args:
    text: optimised HLO module, as returned by `compiled.as_text()`.

  Raises:
    ValueError: the groups of a collective are in an unknown notation.
  """
  return _Program(text).traffic()


class _Program:
  """The computations of a module by name, and a walk over those that run."""

  def __init__(self, text: str):
    self._computations: dict[str, list[_Instruction]] = {}
    instructions: list[_Instruction] = []
    for line in text.splitlines():
      if match := _COMPUTATION.match(line):
        instructions = self._computations.setdefault(match[2], [])
        if match[1]:
          self._entry = match[2]
      elif match := _INSTRUCTION.match(line):
        instructions.append(_instruction(*match.groups()))
    found = re.search(r"num_partitions=(\d+)", text)
    self._num_partitions = int(found[1]) if found else 1
    self._chains: set[str] = set()

  def traffic(self) -> Traffic:
    return self._computation(self._entry)

  def _computation(self, name: str) -> Traffic:
    instructions = self._computations[name]
    shapes = {i.name: i.shape for i in instructions}
    total = Traffic()
    for instruction in instructions:
      total += self._called_traffic(instruction)
      if collective := self._collective(instruction):
        total += Traffic(0.0, (collective,))
      total += Traffic(_hbm_bytes(instruction, shapes))
    return total

  def _called_traffic(self, instruction: _Instruction) -> Traffic:
    """Traffic of the computations that an instruction calls."""
    called = instruction.called
    if instruction.op == "while":
      condition = self._computations[called["condition"][0]]
      trips = _trip_count(instruction, condition)
      return self._computation(called["body"][0]).times(trips)
    if instruction.op == "conditional":
      branches = [n for use, ns in called.items() for n in ns if "comp" in use]
      return max(map(self._computation, branches), key=lambda t: t.hbm_bytes)
    if instruction.op in ("call", "async-start"):
      return self._computation(*called.get("to_apply", called.get("calls")))
    if instruction.op == "fusion":
      inner = self._computation(*called["calls"])
      return Traffic(0.0, inner.collectives)
    return Traffic()

  def _collective(self, instruction: _Instruction) -> Collective | None:
    op = instruction.op.removesuffix("-start")
    if op not in KINDS:
      return None
    # A collective that is interleaved with computation is spread over a chain
    # of fusions and appears in each of them.
    chain = re.search(r'chain_id="(\d+)"', instruction.attributes)
    if chain and chain[1] in self._chains:
      return None
    self._chains |= {chain[1]} if chain else set()
    groups = _groups(instruction.attributes, self._num_partitions)
    sizes = _array_bytes(instruction.shape)
    if instruction.op == "all-gather-start":
      sizes = sizes[len(sizes) // 2 :]  # Inputs come first, then outputs.
    if instruction.op == "collective-permute-start":
      sizes = sizes[1:2]
    scale = groups.shape[1] if op == "reduce-scatter" else 1
    return Collective(op, scale * sum(sizes), groups)


def _instruction(name: str, shape: str, op: str, rest: str) -> _Instruction:
  operands, _, attributes = rest.partition(")")
  names = tuple(re.findall(r"%([\w.\-]+)", operands))
  if op == "constant":
    names = (operands,)
  return _Instruction(name, shape, op, names, attributes)


def _hbm_bytes(instruction: _Instruction, shapes: Mapping[str, str]) -> float:
  if instruction.op in _NO_TRAFFIC or instruction.op.endswith("-start"):
    return 0.0
  if instruction.op.endswith("-done"):  # A copy between HBM and on-chip memory.
    return sum(_array_bytes(instruction.shape))
  touched = [instruction.shape]
  touched += [shapes.get(operand, "") for operand in instruction.operands]
  return sum(sum(_array_bytes(shape, hbm_only=True)) for shape in touched)


def _array_bytes(shape: str, hbm_only: bool = False) -> list[float]:
  """Size of each array in a shape; S(n) marks memory other than HBM."""
  return [
    _item_bytes(dtype) * math.prod(_numbers(dims))
    for dtype, dims, layout in _ARRAY.findall(shape)
    if not (hbm_only and "S(" in layout)
  ]


def _item_bytes(dtype: str) -> float:
  bits = re.search(r"\d+", dtype)
  return int(bits[0]) / 8 if bits else float(dtype == "pred")


def _trip_count(loop: _Instruction, condition: Sequence[_Instruction]) -> int:
  """Known to XLA, or from a condition `i < n`; 1 if it depends on the data."""
  known = re.search(r'known_trip_count":\{"n":"(\d+)"', loop.attributes)
  if known:
    return int(known[1])
  constants = {i.name: i.operands[0] for i in condition if i.op == "constant"}
  compare = next((i for i in condition if i.op == "compare"), None)
  if compare is None or "direction=LT" not in compare.attributes:
    return 1
  limits = [constants[o] for o in compare.operands if o in constants]
  return int(limits[0]) if limits and limits[0].isdigit() else 1


def _groups(attributes: str, num_partitions: int) -> np.ndarray:
  """Parses `replica_groups` in any of XLA's notations, or permuted pairs."""
  listed = re.search(
    r"(?:replica_groups|source_target_pairs)=\{(\{[\d,{} ]*\})?\}", attributes
  )
  if listed and not listed[1]:
    return np.arange(num_partitions)[None]
  if listed:
    rows = re.findall(r"\{([\d, ]+)\}", listed[1])
    return np.array([[int(n) for n in row.split(",")] for row in rows])
  iota = re.search(
    r"replica_groups=\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?", attributes
  )
  if iota:
    shape, sizes, order = (_numbers(part) for part in iota.groups())
    ids = np.arange(math.prod(sizes)).reshape(sizes)
    return ids.transpose(order or None).reshape(shape)
  mesh = re.search(r"replica_groups=mesh\[(.*?)\] \{(.*?)\}", attributes)
  if not mesh or ":" in mesh[2]:
    raise ValueError(
      f"attributes={attributes[:200]!r}: replica_groups of a collective in an "
      "unknown notation. Install a version of libtpu that vmoe-study requires."
    )
  axes = dict(re.findall(r"'([\w.\-]+)'=(\d+)", mesh[1]))
  shape = [int(size) for size in axes.values()]
  used = [list(axes).index(name) for name in re.findall(r"'([^']+)'", mesh[2])]
  ids = np.arange(math.prod(shape)).reshape(shape)
  ids = np.moveaxis(ids, used, range(-len(used), 0))
  return ids.reshape(-1, math.prod(shape[axis] for axis in used))


def _numbers(text: str | None) -> list[int]:
  return [int(n) for n in text.split(",")] if text else []
