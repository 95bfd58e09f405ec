"""The sections `evaluations` and `fewshot` of a config."""

import dataclasses

from vmoe_study import options
from vmoe_study.data.spec import DataSpec


@dataclasses.dataclass(frozen=True)
class EvaluationSpec:
  """Accuracy and loss on a data set.

  Padding images fill up the last batch. They are not counted, but if images are
  routed in groups, they compete for slots with the real images of their group.
  There is no padding if `batch_size` divides the number of images.

  Attributes:
    data: the data set and its preprocessing.
    batch_size: images per batch, over all hosts.
  """

  data: DataSpec
  batch_size: int

  def __post_init__(self):
    options.check_least("batch_size", self.batch_size, 1)
    options.check_upper_bounds("evaluation", vars(self))


@dataclasses.dataclass(frozen=True)
class FewshotSpec:
  """k-shot transfer to a data set; see `evaluation.fewshot`.

  Attributes:
    train: data set of the k images per class.
    test: data set on which accuracy is measured.
    batch_size: images per batch, over all hosts.
  """

  train: DataSpec
  test: DataSpec
  batch_size: int

  def __post_init__(self):
    options.check_least("batch_size", self.batch_size, 1)
    options.check_upper_bounds("fewshot", vars(self))
    for name in ("train", "test"):
      options.check_upper_bounds(f"fewshot.{name}", vars(getattr(self, name)))
