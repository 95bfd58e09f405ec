"""Classes by name: one numbering for all data sets that share a head.

Every data set numbers its own classes; an image folder does so by the names of
its subfolders. A run uses the numbers of its training data, and every other
data set is mapped to them by name. A class without a name is called by its
number.
"""

from collections.abc import Iterable, Sequence
from typing import Protocol

import numpy as np

from vmoe_study.options import did_you_mean

# Names by class number; empty if the classes have only numbers.
ClassNames = tuple[str, ...]

_MAX_SHOWN = 10


class Declared(Protocol):
  """The classes that a data set declares."""

  @property
  def class_names(self) -> ClassNames:
    """Names by class number; empty if the classes have only numbers."""

  @property
  def empty_folders(self) -> Sequence[str]:
    """Paths of class folders without images; their names are not classes."""


def check_folders(data: Declared) -> None:
  """Raises ValueError for class folders without images in training data."""
  if data.empty_folders:
    raise ValueError(
      f"{', '.join(data.empty_folders)}: no .jpg or other image file in this "
      "class folder. Add images, or remove it. Folders inside it are not read: "
      "label_key='path' makes classes of them."
    )


def training_classes(
  data_sets: Sequence[Declared], num_classes: int
) -> ClassNames:
  """The classes of a new run: those of its data sets, in order.

  Args:
    data_sets: the data sets, the main one first; the others may add classes.
    num_classes: size of the head.

  Raises:
    ValueError: there are more classes than the head has.
  """
  names = (name for data in data_sets for name in data.class_names)
  merged = tuple(dict.fromkeys(names))
  if len(merged) > num_classes:
    raise ValueError(
      f"num_classes={num_classes}: must be at least {len(merged)}, the number "
      f"of classes of the training data: {_shorten(merged)}. Set num_classes "
      "of all data sets and of the model."
    )
  return merged


def check_several(names: ClassNames) -> None:
  """Raises ValueError for a single class, for which any model is correct."""
  if len(names) == 1:
    raise ValueError(
      f"training data: {_classes(names)} is the only one, so there is nothing "
      "to tell apart. Add images of other classes."
    )


def number_classes(
  own: ClassNames, run: ClassNames, num_classes: int
) -> tuple[np.ndarray | None, list[str]]:
  """Maps the class numbers of a data set to those of a run.

  Args:
    own: the classes of the data set.
    run: the classes of the run.
    num_classes: size of the head.

  Returns:
    The run's number of every class of the data set, int64 (N,), or None if the
    numbers are equal; and notes for the user.

  Raises:
    ValueError: names the classes that the run does not have.
  """
  if own == run:
    return None, []
  numbers = tuple(str(number) for number in range(num_classes))
  if not own and not set(run) <= set(numbers):
    note = "its classes have no names, so their numbers are used unchecked"
    return None, [note]
  own, run = own or numbers, run or numbers
  index = {name: number for number, name in enumerate(run)}
  if unknown := [name for name in own if name not in index]:
    hint = did_you_mean(unknown[0], run) if len(unknown) == 1 else ""
    raise ValueError(
      f"{_classes(unknown)}: not among the classes of the run, {_shorten(run)}."
      f"{hint} Rename or remove it here, or train a run with it."
    )
  missing = sorted(index.keys() - {*own}, key=index.__getitem__)
  notes = [f"no images of {_classes(missing)}; the others keep their numbers"]
  return np.asarray([index[name] for name in own]), notes if missing else []


def describe_classes(names: ClassNames) -> str:
  """One line about the classes of a run."""
  return f"{len(names):,}: {_shorten(names)}" if names else "have numbers only"


def class_label(names: Sequence[str], number: int) -> str:
  """The name of a class, or its number if it has none."""
  return names[number] if number < len(names) else str(number)


def _classes(names: Iterable[str]) -> str:
  names = list(names)
  return f"{'class' if len(names) == 1 else 'classes'} {_shorten(names)}"


def _shorten(names: Sequence[str]) -> str:
  shown = ", ".join(map(repr, names[:_MAX_SHOWN]))
  rest = len(names) - _MAX_SHOWN
  return f"{shown} and {rest} more" if rest > 0 else shown
