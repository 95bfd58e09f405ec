"""Reads the misclassified images of a data set."""

from collections.abc import Iterator

from vmoe_study.data.classes import ClassNames
from vmoe_study.data.examples import ExampleReader
from vmoe_study.data.spec import DataSpec
from vmoe_study.evaluation.mistakes import Mistake
from vmoe_study.evaluation.result import Classification


def read_mistakes(
  spec: DataSpec,
  class_names: ClassNames | None,
  found: Classification,
  count: int,
) -> Iterator[Mistake]:
  """Yields the most confident mistakes, in order.

  Args:
    spec: the data set.
    class_names: class names of the run, which number the labels; None if not
      known.
    found: predictions for this data set.
    count: number of images; all mistakes if there are fewer.
  """
  reader = ExampleReader(spec, class_names)
  names, outcomes = found.class_names, found.outcomes
  for row in found.mistakes[:count].tolist():
    index = int(found.index[row])
    example = reader.read(index)
    labels = [names[number] for number in example["labels"]]
    best = outcomes.classes[row], outcomes.probabilities[row]
    yield Mistake(
      reader.source.where(index),
      example["image"],
      labels,
      float(outcomes.label_probability[row]) if len(labels) == 1 else None,
      [(names[n], float(p)) for n, p in zip(*best, strict=True)],
    )
