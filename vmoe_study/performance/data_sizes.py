"""Image shape and number of examples of a config, without reading data."""

from vmoe_study.config import Config
from vmoe_study.data import builders
from vmoe_study.data.ops import parse_ops
from vmoe_study.data.sources import open_source
from vmoe_study.data.spec import DataSpec

_SIZING_OPS = ("resize", "central_crop", "inception_crop")


def image_shape(data: DataSpec) -> tuple[int, int, int]:
  """Height, width and channels, from the operations or the data set's builder.

  Raises:
    ValueError: neither gives the size.
  """
  try:
    info = builders.make_builder(data.name, data.data_dir).info
    height, width, channels = info.features["image"].shape
  except (builders.MissingDataError, KeyError):
    height, width, channels = None, None, 3
  if side := image_side(data.ops):
    height = width = side
  if height is None:
    raise ValueError(
      f"ops={data.ops!r}: the size of the images is unknown. Give "
      "image_shape; on the command line --image-shape=224x224x3."
    )
  return height, width, channels


def image_side(ops: str) -> int | None:
  """Height and width of all images after the operations, if they are fixed."""
  sizes = [s.args[0] for s in parse_ops(ops).steps if s.name in _SIZING_OPS]
  return sizes[-1] if sizes else None


def num_examples(config: Config) -> int:
  """Number of training images; 0 if the config counts steps.

  Raises:
    ValueError: the number is needed, but the data set is not prepared.
  """
  if config.train.num_steps:
    return 0
  data = config.data
  try:
    return len(open_source(data))
  except builders.MissingDataError as error:
    raise ValueError(
      f"train.num_epochs={config.train.num_epochs}: the number of steps is "
      f"unknown because data set {data.name!r} is not prepared. Give "
      "num_examples; on the command line --num-examples=N."
    ) from error
