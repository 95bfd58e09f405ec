"""How well training batches are mixed: blocks against single examples.

    python -m vmoe_study.performance.shuffle_quality --examples=1281167 \
      --per-block=38 --batch-size=1024

The data are assumed to be sorted by class, the worst case. Files that TFDS
wrote are shuffled, so that every block is already mixed.
"""

import argparse
import dataclasses

import numpy as np

from vmoe_study.data.order import BlockOrder, FullOrder, Order, num_lanes

BATCHES = 10


@dataclasses.dataclass(frozen=True)
class Mixing:
  """How well batches are mixed.

  Attributes:
    distance: mean distance in the data set between consecutive examples of the
      order, as a fraction of its size; 1/3 for independent examples.
    classes: mean fraction of all classes that occur in a batch.
    deviation: standard deviation of the number of examples per class in a
      batch, relative to that of independent draws.
  """

  distance: float
  classes: float
  deviation: float


def mixing(
  order: Order, num_examples: int, batch_size: int, num_classes: int
) -> Mixing:
  """Measures the first `BATCHES` batches of an order.

  Args:
    order: order of the examples, which are sorted by class.
    num_examples: number of examples of all classes, which are equally large.
    batch_size: size of the batches.
    num_classes: number of classes of the data set.
  """
  count = batch_size * BATCHES
  found = np.asarray([order[position] for position in range(count)])
  found = found.reshape(BATCHES, batch_size)
  labels = found * num_classes // num_examples
  counts = np.asarray(
    [np.bincount(row, minlength=num_classes) for row in labels]
  )
  expected = batch_size / num_classes
  independent = np.sqrt(expected * (1 - 1 / num_classes))
  return Mixing(
    distance=float(np.abs(np.diff(found, axis=1)).mean() / num_examples),
    classes=float((counts > 0).mean()),
    deviation=float(np.sqrt(((counts - expected) ** 2).mean()) / independent),
  )


def compare(
  num_examples: int, per_block: int, batch_size: int, num_classes: int
) -> dict[str, Mixing]:
  """Measures both orders for blocks of `per_block` examples."""
  blocks = np.append(np.arange(0, num_examples, per_block), num_examples)
  orders: dict[str, Order] = {
    "full": FullOrder(num_examples, 0),
    "blocks": BlockOrder(blocks, 0, num_lanes(batch_size, len(blocks) - 1)),
  }
  return {
    name: mixing(order, num_examples, batch_size, num_classes)
    for name, order in orders.items()
  }


def main() -> None:
  parser = argparse.ArgumentParser()
  parser.add_argument("--examples", type=int, default=1_281_167)
  parser.add_argument("--per-block", type=int, default=38)
  parser.add_argument("--batch-size", type=int, default=1024)
  parser.add_argument("--classes", type=int, default=1000)
  args = parser.parse_args()
  found = compare(args.examples, args.per_block, args.batch_size, args.classes)
  for name, measured in found.items():
    print(name, dataclasses.asdict(measured))


if __name__ == "__main__":
  main()
