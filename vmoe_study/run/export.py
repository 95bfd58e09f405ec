"""Exports a model as a folder in the form of model hubs."""

from collections.abc import Iterator, Sequence
from typing import Any

from vmoe_study import __version__
from vmoe_study.checkpoint import exported
from vmoe_study.checkpoint import tree as tree_lib
from vmoe_study.config import Config
from vmoe_study.files.atomic import write_atomically
from vmoe_study.files.location import locate
from vmoe_study.nn import cost
from vmoe_study.nn.parameter_names import EMBEDDING, POSITIONS, ROUTER_STATE
from vmoe_study.run.checkpoint import Checkpoint
from vmoe_study.run.initialize import grid_of
from vmoe_study.run.predict import evaluation_ops
from vmoe_study.training.metrics_file import read_metrics

LIBRARY = "vmoe_study"
_TAGS = ("mixture-of-experts", "vision-transformer", "jax", "flax")
_MAX_CLASSES = 20  # Number of classes that the card names.


def export_model(
  checkpoint: Checkpoint, folder: str, half: bool = False
) -> None:
  """Writes a folder that `open_checkpoint` opens; see `checkpoint.exported`.

  The config is written unchanged, including its paths.

  Args:
    checkpoint: the model.
    folder: local path or URL; new or empty.
    half: store the parameters as float16, rounded, in half the size. They are
      read as float32.

  Raises:
    ValueError: the folder is not empty, or a parameter is beyond the range of
      float16.
    OSError: the folder cannot be written.
  """
  _check_empty(folder)
  ops = (
    evaluation_ops(checkpoint.config) if checkpoint.config.evaluations else ""
  )
  metadata = {
    "library_name": LIBRARY,
    "library_version": __version__,
    "step": checkpoint.step,
    "image_ops": ops,
    **checkpoint.metadata.to_dict(),
  }
  items = {"params": checkpoint.params, ROUTER_STATE: checkpoint.router_state}
  exported.write(folder, items, metadata, half)
  card = "\n".join(_card(checkpoint, ops)) + "\n"
  write_atomically(f"{folder}/{exported.CARD}", card)


def check_positions(out: str, params: Any, image_shape: Sequence[int]) -> None:
  """Checks that parameters can be read without their metadata.

  Readers assume that learned positions are those of a square of patches.

  Args:
    out: output file, for the error message.
    params: the parameter tree.
    image_shape: image shape of the model.

  Raises:
    ValueError: there are learned positions of another grid.
  """
  leaves = tree_lib.flatten(params)
  if POSITIONS in leaves:
    patch_size = leaves[f"{EMBEDDING}/kernel"].shape[0]
    rows, columns = grid_of(image_shape, patch_size)
    if rows != columns:
      raise ValueError(
        f"--out={out}: an .npz file does not say that its positions are those "
        f"of {rows} x {columns} patches, so they would be read as a square. "
        "Export a folder, which says it."
      )


def _check_empty(folder: str) -> None:
  fs, path = locate(folder)
  if fs.exists(path) and (not fs.isdir(path) or fs.ls(path)):
    raise ValueError(
      f"--out={folder}: must be a new or an empty folder. Name another one."
    )


def _card(checkpoint: Checkpoint, ops: str) -> Iterator[str]:
  """The lines of a model card: YAML, then Markdown."""
  config = checkpoint.config
  yield from ("---", f"library_name: {LIBRARY}")
  yield from ("pipeline_tag: image-classification", "tags:")
  yield from (f"- {tag}" for tag in _TAGS)
  yield from ("---", "", f"# {config.name}", "")
  yield from (f"- {line}" for line in _facts(checkpoint, ops))
  yield from ("", "```python", "import vmoe_study", "")
  yield "checkpoint = vmoe_study.open_checkpoint(FOLDER)"
  yield from ('[prediction] = checkpoint.predict(["photo.jpg"])', "```", "")
  yield f"Arrays in `{exported.ARRAYS}` have the names of their Flax modules;"
  yield f"`{exported.CONFIG}` has the whole config of the run."


def _facts(checkpoint: Checkpoint, ops: str) -> Iterator[str]:
  config, model = checkpoint.config, checkpoint.model
  moe = cost.routing(model.evaluation_module, model.image_shape)
  total, active = cost.parameter_counts(model.params_shape, moe)
  yield f"Vision Transformer, {total:,} parameters, {active:,} active per token"
  yield _describe_router(config)
  yield f"trained on `{config.data.name}`, {checkpoint.step:,} steps"
  height, width, channels = model.image_shape
  yield f"images: {height} x {width} x {channels}, after `{ops or 'unknown'}`"
  yield describe_classes(checkpoint)
  for name, value in _metrics(checkpoint).items():
    yield f"{name}: {value:.4g}"


def _describe_router(config: Config) -> str:
  moe = config.model.moe
  if not moe.is_routed:
    return "no routed blocks"
  experts = moe.options.get("num_experts")
  return (
    f"router `{moe.router}`, {experts} experts, groups of {config.group_images}"
  )


def describe_classes(checkpoint: Checkpoint) -> str:
  """The number of classes and the names of the first ones, in Markdown."""
  count = checkpoint.config.model.fields["num_classes"]
  names = checkpoint.class_names or ()
  shown = ", ".join(f"`{name}`" for name in names[:_MAX_CLASSES])
  more = ", ..." if len(names) > _MAX_CLASSES else ""
  return f"{count:,} classes" + (f": {shown}{more}" if names else "")


def _metrics(checkpoint: Checkpoint) -> dict[str, float]:
  """The run's evaluation metrics at this step."""
  prefixes = (*(f"{n}/" for n in checkpoint.config.evaluations), "fewshot/")
  return {
    name: value
    for row in read_metrics(checkpoint.path)
    if row["step"] == checkpoint.step
    for name, value in row.items()
    if name.startswith(prefixes)
  }
