"""Memory and network traffic of a compiled program, from its optimised HLO.

XLA's own cost analysis counts the body of a loop once, and counts accesses to
on-chip memory as HBM traffic. Here the body of a loop counts once per
iteration, and an array counts only if it is in HBM, with the padding to the
tiles of its layout. All figures are per chip.

A program is read as a schedule: its operations in the order in which they run.
An asynchronous operation is a pair of a start and an end, with other operations
in between.
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
# Operations without memory traffic of their own.
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
  """A collective operation between chips.

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
class Event:
  """One operation of a schedule.

  Attributes:
    hbm_bytes: bytes that it reads from and writes to HBM. An estimate: a fusion
      is assumed to read each of its operands once, in full.
    collective: the communication that it does, or starts.
    starts: name of the asynchronous operation that it starts; else empty.
    ends: name of the asynchronous operation that it waits for; else empty.
    source: what it computes, by JAX's name stack, or its kind.
  """

  hbm_bytes: float = 0.0
  collective: Collective | None = None
  starts: str = ""
  ends: str = ""
  source: str = dataclasses.field(default="", compare=False)


@dataclasses.dataclass(frozen=True)
class Loop:
  """A part of a schedule that is executed several times."""

  body: "Schedule"
  count: int


Schedule = tuple[Event | Loop, ...]


@dataclasses.dataclass(frozen=True)
class Traffic:
  """Memory and network traffic of a schedule.

  Attributes:
    hbm_bytes: bytes read from and written to HBM, see `Event`.
    collectives: collective operations, in the order of the schedule.
  """

  hbm_bytes: float = 0.0
  collectives: tuple[Collective, ...] = ()


@dataclasses.dataclass(frozen=True)
class _Instruction:
  name: str
  shape: str
  op: str
  operands: tuple[str, ...]
  attributes: str

  @property
  def called(self) -> dict[str, list[str]]:
    """Names of the computations that the instruction calls, by role."""
    return {
      use: re.findall(r"[\w.\-]+", one or many)
      for use, one, many in _CALLED.findall(self.attributes)
    }


def summary(collectives: Sequence[Collective]) -> dict[str, dict[str, float]]:
  """Executions and bytes by kind: {kind: {"count", "bytes"}}."""
  totals: dict[str, dict[str, float]] = {}
  for collective in collectives:
    total = totals.setdefault(collective.kind, {"count": 0, "bytes": 0})
    total["count"] += collective.count
    total["bytes"] += collective.bytes * collective.count
  return totals


def traffic(schedule: Schedule, count: int = 1) -> Traffic:
  """Traffic of `count` executions of a schedule."""
  hbm_bytes, collectives = 0.0, []
  for event in schedule:
    if isinstance(event, Loop):
      inner = traffic(event.body, count * event.count)
      hbm_bytes += inner.hbm_bytes
      collectives += inner.collectives
      continue
    hbm_bytes += count * event.hbm_bytes
    if event.collective:
      found = event.collective
      found = dataclasses.replace(found, count=count * found.count)
      collectives.append(found)
  return Traffic(hbm_bytes, tuple(collectives))


def schedule(text: str) -> Schedule:
  """The schedule of a program.

  Args:
    text: optimised and scheduled HLO module, as of `compiled.as_text()`.

  Raises:
    ValueError: the groups of a collective are in an unknown notation.
  """
  return _Program(text).schedule()


def argument_bytes(text: str) -> list[float]:
  """HBM size of each argument of a program, with the padding to tiles."""
  return _Program(text).argument_bytes()


class _Program:
  """The computations of a module by name; walks over those that run."""

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

  def schedule(self) -> Schedule:
    return self._computation(self._entry)

  def argument_bytes(self) -> list[float]:
    found = {
      int(instruction.operands[0]): sum(_array_bytes(instruction.shape))
      for instruction in self._computations[self._entry]
      if instruction.op == "parameter"
    }
    return [found[number] for number in sorted(found)]

  def _computation(self, name: str) -> Schedule:
    instructions = self._computations[name]
    by_name = {i.name: i for i in instructions}
    events: list[Event | Loop] = []
    chains: dict[str, int] = {}  # The last event of each.
    for instruction in instructions:
      events += self._called(instruction)
      event = self._event(instruction, by_name)
      if chain := self._chain(instruction):
        # A collective that is interleaved with computation is spread over a
        # chain of fusions, and appears in each of them.
        if chain in chains:
          last = chains[chain]
          events[last] = dataclasses.replace(events[last], ends="")
          event = dataclasses.replace(event, ends=chain)
        else:
          collective = self._inner_collective(instruction)
          event = dataclasses.replace(
            event, collective=collective, starts=chain
          )
        chains[chain] = len(events)
      if event != Event():
        source = _source(instruction)
        events.append(dataclasses.replace(event, source=source))
    return tuple(events)

  def _called(self, instruction: _Instruction) -> Schedule:
    """The schedule of the computations that an instruction calls."""
    called = instruction.called
    if instruction.op == "while":
      condition = self._computations[called["condition"][0]]
      trips = _trip_count(instruction, condition)
      return (Loop(self._computation(called["body"][0]), trips),)
    if instruction.op == "conditional":
      branches = [n for use, ns in called.items() for n in ns if "comp" in use]
      return max(
        map(self._computation, branches), key=lambda s: traffic(s).hbm_bytes
      )
    if instruction.op == "call":
      return self._computation(*called.get("to_apply", called.get("calls")))
    return ()

  def _chain(self, instruction: _Instruction) -> str:
    """The number of the chain that a fusion belongs to, or an empty string."""
    if instruction.op != "fusion":
      return ""
    for inner in self._computations[instruction.called["calls"][0]]:
      found = re.search(r'chain_id="(\d+)"', inner.attributes)
      if found and _kind(inner.op):
        return f"chain {found[1]}"
    return ""

  def _inner_collective(self, instruction: _Instruction) -> Collective | None:
    """The collective within a fusion, or a wrapper of an asynchronous one."""
    for use in ("calls", "called_computations"):
      for name in instruction.called.get(use, ()):
        for inner in self._computations.get(name, ()):
          if _kind(inner.op):
            return self._collective(inner, inner.shape)
    return None

  def _event(
    self, instruction: _Instruction, by_name: Mapping[str, _Instruction]
  ) -> Event:
    """The event of an instruction itself, without the computations it calls."""
    op, operands = instruction.op, instruction.operands
    if op == "async-start":
      found = self._inner_collective(instruction)
      return Event(0.0, found, instruction.name if found else "")
    if op.endswith("-start") and _kind(op):
      shape = _result_shape(instruction)
      found = self._collective(instruction, shape)
      read = _hbm_bytes(operands, by_name)
      return Event(read, found, instruction.name)
    if op == "send" and (between := _between_slices(instruction)):
      return Event(
        _hbm_bytes(operands, by_name), between, _transfer_key(instruction)
      )
    if op == "recv-done" and (meeting := _transfer_key(by_name[operands[0]])):
      return Event(sum(_array_bytes(instruction.shape)), ends=meeting)
    if op.endswith("-update") or op in ("send", "recv"):
      return Event()
    if op.endswith("-done"):
      start = _start_of(instruction, by_name)
      is_collective = start and (_kind(start.op) or start.op == "async-start")
      written = sum(_array_bytes(instruction.shape))
      return Event(written, ends=start.name if is_collective else "")
    if op.endswith("-start") or op in _NO_TRAFFIC:
      return Event()
    moved = _hbm_bytes(operands, by_name)
    moved += sum(_array_bytes(instruction.shape, hbm_only=True))
    if op == "custom-call":
      moved *= _accessed_share(instruction, by_name)
    if _kind(op):
      return Event(moved, self._collective(instruction, instruction.shape))
    if op == "fusion" and not self._chain(instruction):
      return Event(moved, self._inner_collective(instruction))
    return Event(moved)

  def _collective(self, instruction: _Instruction, shape: str) -> Collective:
    """The collective of an instruction whose result has a shape."""
    kind = _kind(instruction.op)
    groups = _groups(instruction.attributes, self._num_partitions)
    scale = groups.shape[1] if kind == "reduce-scatter" else 1
    # Transfers have no padding.
    return Collective(
      kind, scale * sum(_array_bytes(shape, tiled=False)), groups
    )


def _source(instruction: _Instruction) -> str:
  """JAX's name stack of an instruction or, without one, its operation."""
  found = re.search(r'op_name="([^"]*)"', instruction.attributes)
  return found[1] if found else instruction.op


def _transfer_key(instruction: _Instruction) -> str:
  """The key shared by the send and the receive of a transfer between slices."""
  found = re.search(
    r'_xla_host_transfer_rendezvous="([^"]*)"', instruction.attributes
  )
  return found[1] if found else ""


def _between_slices(send: _Instruction) -> Collective | None:
  """The transfer to other slices that an instruction starts, if it does.

  It is a collective of devices that have the same number in each slice.
  """
  kind = re.search(r'_xla_megascale_transfer_type="(\w+)"', send.attributes)
  target = re.search(
    r'_xla_megascale_target="\{([\d,:]+)\}x\{([\d,:]+)\}"', send.attributes
  )
  if not kind or not target:
    return None
  slices, devices = map(_count_numbers, target.groups())
  groups = np.arange(slices * devices).reshape(slices, devices).T
  # The shape of a send ends with a context and a token.
  size = _array_bytes(send.shape, tiled=False)[0]
  return Collective(kind[1].lower().replace("_", "-"), size, groups)


def _count_numbers(numbers: str) -> int:
  """The number of numbers listed by "0:3" or "1,2"."""
  ranges = [part.split(":") for part in numbers.split(",")]
  return sum(int(part[-1]) - int(part[0]) + 1 for part in ranges)


def _kind(op: str) -> str:
  """The kind of collective of an operation; empty if it is none."""
  kind = op.removesuffix("-start")
  return kind if kind in KINDS else ""


def _start_of(
  instruction: _Instruction, by_name: Mapping[str, _Instruction]
) -> _Instruction | None:
  """The instruction that started what this one waits for."""
  while instruction and not instruction.op.endswith("-start"):
    names = [name for name in instruction.operands if name in by_name]
    if not names:
      return None
    instruction = by_name[names[0]]
  return instruction


def _result_shape(start: _Instruction) -> str:
  """The shape of the result in that of a start: (inputs, outputs, contexts)."""
  if start.op == "all-reduce-start" or not start.shape.startswith("("):
    return start.shape
  arrays = [match[0] for match in _ARRAY.finditer(start.shape)]
  arrays = [array for array in arrays if not array.startswith("u32[]")]
  count = len(start.operands)
  return " ".join(arrays[count : 2 * count])


def _instruction(name: str, shape: str, op: str, rest: str) -> _Instruction:
  operands, _, attributes = rest.partition(")")
  names = tuple(re.findall(r"%([\w.\-]+)", operands))
  if op in ("constant", "parameter"):
    names = (operands,)  # A value, or a number.
  return _Instruction(name, shape, op, names, attributes)


def _accessed_share(
  kernel: _Instruction, by_name: Mapping[str, _Instruction]
) -> float:
  """The share of its arrays that a kernel says it accesses; 1 without a word.

  A kernel may read a part of an operand, or write a part of a result in place.
  """
  stated = re.search(r'"bytes_accessed":"(\d+)"', kernel.attributes)
  if not stated:
    return 1.0
  operands = [by_name[name].shape for name in kernel.operands]
  arrays = [_array_bytes(s, tiled=False) for s in (*operands, kernel.shape)]
  return min(1.0, int(stated[1]) / sum(map(sum, arrays)))


def _hbm_bytes(
  operands: Sequence[str], by_name: Mapping[str, _Instruction]
) -> float:
  """Size of the operands that are in HBM."""
  shapes = [by_name[name].shape for name in operands if name in by_name]
  return sum(sum(_array_bytes(shape, hbm_only=True)) for shape in shapes)


def _array_bytes(
  shape: str, hbm_only: bool = False, tiled: bool = True
) -> list[float]:
  """Size of each array in a shape.

  Args:
    shape: such as "(f32[5,3]{1,0:T(8,128)}, bf16[2]{0:S(1)})", where S(n) marks
      memory other than HBM, and T(...) the tiles that a layout is padded to.
    hbm_only: leave out arrays in other memory.
    tiled: with the padding.
  """
  return [
    _item_bytes(dtype) * _count(_numbers(dims), layout if tiled else "")
    for dtype, dims, layout in _ARRAY.findall(shape)
    if not (hbm_only and "S(" in layout)
  ]


def _count(dims: Sequence[int], layout: str) -> int:
  """Number of elements, with the padding to the first tile of a layout."""
  order, _, rest = layout.partition(":")
  tile = re.match(r"T\(([\d,]+)\)", rest)
  if not tile or not dims:
    return math.prod(dims)
  padded = [
    dims[axis] for axis in _numbers(order)
  ]  # The innermost comes first.
  for i, size in enumerate(reversed(_numbers(tile[1]))):
    if i == len(padded):
      break
    padded[i] = -(-padded[i] // size) * size
  return math.prod(padded)


def _item_bytes(dtype: str) -> float:
  bits = re.search(r"\d+", dtype)
  return int(bits[0]) / 8 if bits else float(dtype == "pred")


def _trip_count(loop: _Instruction, condition: Sequence[_Instruction]) -> int:
  """From XLA, or from a condition `i < n`; 1 if it depends on the data."""
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
  mesh = re.search(
    r"replica_groups=mesh\[(.*?)\]"
    r"(?:, device_ids=\(\[([\d,]+)\](?:T\(([\d,]+)\))?\))? \{(.*?)\}",
    attributes,
  )
  if not mesh or ":" in mesh[4]:
    raise ValueError(
      f"attributes={attributes[:200]!r}: replica_groups of a collective in an "
      "unknown notation. Install a version of libtpu that vmoe-study requires."
    )
  axes = dict(re.findall(r"'([\w.\-]+)'=(\d+)", mesh[1]))
  shape = [int(size) for size in axes.values()]
  used = [list(axes).index(name) for name in re.findall(r"'([^']+)'", mesh[4])]
  ids = np.arange(math.prod(shape))
  if mesh[2]:  # The order of the devices in the mesh.
    ids = ids.reshape(_numbers(mesh[2])).transpose(_numbers(mesh[3]) or None)
  ids = ids.reshape(shape)
  ids = np.moveaxis(ids, used, range(-len(used), 0))
  return ids.reshape(-1, math.prod(shape[axis] for axis in used))


def _numbers(text: str | None) -> list[int]:
  return [int(n) for n in text.split(",")] if text else []
