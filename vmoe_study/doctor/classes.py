"""Checks of the classes: all data sets that share a head must have the same."""

from collections.abc import Iterator, Mapping, Sequence

from vmoe_study.config import Config
from vmoe_study.data.classes import (
  ClassNames,
  check_several,
  describe_classes,
  number_classes,
  training_classes,
)
from vmoe_study.data.probe import Probe
from vmoe_study.doctor.data import DataField
from vmoe_study.doctor.finding import NOTE, OK, SKIPPED, Finding, attempt
from vmoe_study.run.classes import known_classes

SUBJECT = "classes"


def find_classes(
  config: Config | None,
  workdir: str | None,
  fields: Sequence[DataField],
  probes: Mapping[str, Probe],
) -> tuple[ClassNames | None, list[Finding]]:
  """Finds the class names of a run.

  Args:
    config: config of the run, if it is valid.
    workdir: workdir of the run; None if not decided yet.
    fields: fields of all data sets.
    probes: probes of the readable data sets, by field.

  Returns:
    The names; None if they cannot be known.
  """
  if config is None:
    reason = "because the config is invalid, see above"
    return None, [Finding(SKIPPED, SUBJECT, reason)]
  names, problems = attempt(SUBJECT, known_classes, config, workdir)
  if names is None and not problems:
    training = [field.where for field in fields if field.is_for_training]
    if not {*training} <= probes.keys():
      reason = "because training data cannot be read, see above"
      return None, [Finding(SKIPPED, SUBJECT, reason)]
    names, problems = attempt(
      SUBJECT,
      training_classes,
      [probes[where] for where in training],
      config.model.fields["num_classes"],
    )
  problems += attempt(SUBJECT, check_several, names or ())[1]
  if problems:
    return None, problems
  return names, [Finding(OK, SUBJECT, describe_classes(names))]


def check_classes(
  class_names: ClassNames,
  fields: Sequence[DataField],
  probes: Mapping[str, Probe],
) -> Iterator[Finding]:
  """Compares the classes of all data sets with those of their heads.

  Args:
    class_names: class names of the run.
    fields: fields of all data sets.
    probes: probes of the readable data sets, by field.
  """
  for where, spec in ((f.where, f.spec) for f in fields if f.where in probes):
    names: ClassNames | None = class_names
    if where.startswith("fewshot."):  # With a head of its own.
      training = f"{where.rpartition('.')[0]}.train"
      names = probes[training].class_names if training in probes else None
    if names is not None:
      own = probes[where].class_names
      found, problems = attempt(
        where, number_classes, own, names, spec.num_classes
      )
      yield from problems
      for note in found[1] if found else []:
        yield Finding(NOTE, where, note)
