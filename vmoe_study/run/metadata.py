"""The metadata that a checkpoint of a run stores with its arrays."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from vmoe_study.data.classes import ClassNames
from vmoe_study.files.json_text import MALFORMED
from vmoe_study.run.saved_config import upgrade


@dataclasses.dataclass(frozen=True)
class Metadata:
  """The metadata of a checkpoint, typed.

  Attributes:
    config: the completed config of the run; for an imported checkpoint it may
      be only the section `model`.
    image_shape: height, width and channels of the training images.
    num_examples: number of training images; 0 if unknown.
    skipped_steps: number of steps skipped so far because they were not finite.
    class_names: names by class number; empty if the classes have only numbers;
      None if they are not known, as in checkpoints of earlier versions.
  """

  config: Mapping[str, Any]
  image_shape: tuple[int, int, int]
  num_examples: int = 0
  skipped_steps: int = 0
  class_names: ClassNames | None = None

  @classmethod
  def from_dict(cls, values: Mapping[str, Any]) -> "Metadata":
    """Reads what `to_dict` has written, in this or an earlier version.

    Raises:
      ValueError: it was written by something else.
    """
    try:
      return cls._from_dict(values)
    except MALFORMED as error:
      raise ValueError(
        f"metadata={values!r:.200}: must be those of a run. Give the workdir "
        "of a run."
      ) from error

  @classmethod
  def _from_dict(cls, values: Mapping[str, Any]) -> "Metadata":
    height, width, channels = map(int, values["image_shape"])
    names = values.get("class_names")
    return cls(
      upgrade(values["config"]),
      (height, width, channels),
      values.get("num_examples", 0),
      values.get("skipped_steps", 0),
      None if names is None else tuple(names),
    )

  def to_dict(self) -> dict[str, Any]:
    """JSON-able, for `CheckpointStore.save`."""
    return dataclasses.asdict(self) | {"image_shape": list(self.image_shape)}
