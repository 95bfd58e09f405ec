"""The section `train` of a config."""

import dataclasses
import math
from typing import Literal

from vmoe_study import options
from vmoe_study.training.best import BestSpec
from vmoe_study.training.health import HealthSpec
from vmoe_study.training.optimizer import OptimizerSpec, ScheduleSpec
from vmoe_study.training.trackers import TRACKERS


@dataclasses.dataclass(frozen=True)
class TrainSpec:
  """Length, batches, loss and optimizer of a training run.

  Attributes:
    batch_size: images per step, over all hosts.
    num_steps: updates. Give either this or `num_epochs`.
    num_epochs: passes over the training data.
    loss: "softmax_xent", or "sigmoid_xent" for many labels per image.
    optimizer: see `OptimizerSpec`.
    schedule: see `ScheduleSpec`.
    accumulation: number of parts into which each batch is split; the parts are
      computed one after another.
    ema_decay: decay of an exponential moving average of the parameters, such as
      0.999; 0 for none. The average starts at the initial parameters, and the
      run is evaluated, exported and fine-tuned from it. Router states are not
      averaged.
    mixup: parameter of mixup's Beta distribution; 0 for no mixup.
    mixup_within: which images are blended: the two images of a "pair", with one
      weight for the batch; or, as in V-MoE, every image with the next one on
      its "device", with one weight per device. See `data.mixup`.
    shuffle: "full", "blocks" to read neighbouring examples together, or "auto",
      which is "blocks" for data in an object store; see `data.order`.
    num_workers: number of worker processes per host that read and decode
      images; 0 uses threads only. "auto" is the number of cores that the
      process may use minus one, or 0 if the model itself runs on these cores.
    read_threads: number of concurrent requests to an object store per worker.
    batches_ahead: number of batches that may wait on the devices, in addition
      to the one in use.
    report_every: steps between training metrics.
    evaluate_every: steps between evaluations; 0 evaluates at the end only.
    save_every: steps between checkpoints; 0 saves at the end only. Every
      evaluation is also preceded by a checkpoint.
    keep: number of newest checkpoints to keep.
    keep_every: checkpoints at multiples of this step are never deleted; 0 for
      none.
    trackers: "wandb" and "aim", in addition to TensorBoard's files; see
      `training.trackers`.
    on_save_error: what to do if a checkpoint or metrics cannot be written, for
      example on a full disk: "stop", or "continue" without it. If the last
      checkpoint cannot be saved, the run always fails.
    best: see `BestSpec`; the best model is kept in the folder `best` of the
      workdir.
    health: see `HealthSpec`.
  """

  batch_size: int
  num_steps: int = 0
  num_epochs: float = 0.0
  loss: Literal["softmax_xent", "sigmoid_xent"] = "softmax_xent"
  optimizer: OptimizerSpec = dataclasses.field(default_factory=OptimizerSpec)
  schedule: ScheduleSpec = dataclasses.field(default_factory=ScheduleSpec)
  accumulation: int = 1
  ema_decay: float = 0.0
  mixup: float = 0.0
  mixup_within: Literal["pair", "device"] = "pair"
  shuffle: Literal["auto", "full", "blocks"] = "auto"
  num_workers: int | str = "auto"
  read_threads: int = 16
  batches_ahead: int = 2
  report_every: int = 100
  evaluate_every: int = 0
  save_every: int = 0
  keep: int = 2
  keep_every: int = 0
  trackers: tuple[str, ...] = ()
  on_save_error: Literal["stop", "continue"] = "stop"
  best: BestSpec = dataclasses.field(default_factory=BestSpec)
  health: HealthSpec = dataclasses.field(default_factory=HealthSpec)

  def __post_init__(self):
    if str(self.num_workers).isdigit():  # Also "2", of a command line.
      object.__setattr__(self, "num_workers", int(self.num_workers))
    elif self.num_workers != "auto":
      raise ValueError(
        f"num_workers={self.num_workers!r}: must be 'auto', or a number of "
        "processes, 0 or more. Change it to one."
      )
    for name in ["batch_size", "accumulation", "report_every", "keep"]:
      options.check_least(name, getattr(self, name), 1)
    options.check_least("read_threads", self.read_threads, 1)
    if not 0 <= self.ema_decay < 1:
      raise ValueError(f"ema_decay={self.ema_decay}: must be in [0, 1).")
    for name in ("mixup", "batches_ahead"):
      options.check_least(name, getattr(self, name), 0)
    for name in ("num_steps", "num_epochs"):
      options.check_least(name, getattr(self, name), 0)
    for name in ("evaluate_every", "save_every", "keep_every"):
      options.check_least(name, getattr(self, name), 0)
    options.check_upper_bounds("train", vars(self))
    options.check_names("trackers", self.trackers, TRACKERS)
    if self.best.patience and not self.evaluate_every:
      raise ValueError(
        f"best.patience={self.best.patience}: counts evaluations, but there is "
        "only the last one. Set evaluate_every to a number of steps."
      )
    if self.mixup and self.mixup_within == "pair" and self.batch_size % 2:
      raise ValueError(
        f"batch_size={self.batch_size}: must be even, as mixup={self.mixup} "
        "blends pairs of images. Add or remove one image."
      )
    if (self.num_steps > 0) == (self.num_epochs > 0):
      raise ValueError(
        f"num_steps={self.num_steps}, num_epochs={self.num_epochs}: exactly "
        "one must be above 0. Set the other to 0."
      )

  def total_steps(self, num_examples: int) -> int:
    """Number of steps of the whole run."""
    if self.num_steps:
      return self.num_steps
    return max(1, math.ceil(self.num_epochs * num_examples / self.batch_size))
