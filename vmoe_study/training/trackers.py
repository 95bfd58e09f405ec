"""Experiment trackers other than TensorBoard: Weights & Biases and Aim.

Each is an extra of the installation and is imported only if a config names it.
A resumed run continues the same run of the tracker, whose identity is stored in
WORKDIR/trackers.json.
"""

import html
import importlib.util
import json
import uuid
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from etils import epath

from vmoe_study.files.atomic import write_atomically

IDENTITIES = "trackers.json"
PROJECT = "vmoe_study"


class WandbWriter:
  """A run of Weights & Biases; a `metrics.TrackerWriter`.

  The environment says where it is stored, for example `WANDB_MODE=offline`.
  """

  def __init__(self, workdir: epath.PathLike):
    """Starts or resumes the run that belongs to a workdir."""
    import wandb

    self._wandb = wandb
    identity = _known(workdir, "wandb") or uuid.uuid4().hex[:16]
    _remember(workdir, "wandb", identity)
    self._run = wandb.init(
      project=PROJECT,
      name=epath.Path(workdir).name,
      id=identity,
      resume="allow",
      dir=None if "://" in str(workdir) else str(workdir),
    )

  def write_scalars(self, step: int, scalars: Mapping[str, float]) -> None:
    """Logs scalars; wandb ignores those of steps that it already has."""
    self._run.log(dict(scalars), step=step)

  def write_images(self, step: int, images: Mapping[str, np.ndarray]) -> None:
    """Logs uint8 images (H, W, 3)."""
    found = {name: self._wandb.Image(image) for name, image in images.items()}
    self._run.log(found, step=step)

  def write_histograms(
    self, step: int, arrays: Mapping[str, np.ndarray]
  ) -> None:
    """Logs histograms of the values of arrays."""
    found = {name: self._wandb.Histogram(a) for name, a in arrays.items()}
    self._run.log(found, step=step)

  def write_texts(self, step: int, texts: Mapping[str, str]) -> None:
    """Logs texts as preformatted HTML."""
    shown = {name: f"<pre>{html.escape(t)}</pre>" for name, t in texts.items()}
    found = {name: self._wandb.Html(text) for name, text in shown.items()}
    self._run.log(found, step=step)

  def write_hparams(self, hparams: Mapping[str, Any]) -> None:
    """Sets the config of the run."""
    self._run.config.update(dict(hparams), allow_val_change=True)

  def flush(self) -> None:
    """Does nothing: wandb writes by itself."""

  def close(self) -> None:
    """Finishes the run."""
    self._run.finish()


class AimWriter:
  """A run of Aim; a `metrics.TrackerWriter`.

  The run is stored in the repository that the environment names (`AIM_REPO`),
  by default in that of the working directory.
  """

  def __init__(self, workdir: epath.PathLike):
    """Starts or resumes the run that belongs to a workdir."""
    import aim

    self._aim = aim
    self._run = aim.Run(
      run_hash=_known(workdir, "aim"),
      experiment=PROJECT,
      force_resume=True,
      system_tracking_interval=None,
      capture_terminal_logs=False,
    )
    _remember(workdir, "aim", self._run.hash)
    self._run.name = epath.Path(workdir).name

  def write_scalars(self, step: int, scalars: Mapping[str, float]) -> None:
    """Tracks scalars."""
    self._track(step, scalars)

  def write_images(self, step: int, images: Mapping[str, np.ndarray]) -> None:
    """Tracks uint8 images (H, W, 3)."""
    from PIL import Image

    self._track(
      step,
      {n: self._aim.Image(Image.fromarray(x)) for n, x in images.items()},
    )

  def write_histograms(
    self, step: int, arrays: Mapping[str, np.ndarray]
  ) -> None:
    """Tracks distributions of the values of arrays."""
    make = self._aim.Distribution
    self._track(step, {n: make(np.ravel(a)) for n, a in arrays.items()})

  def write_texts(self, step: int, texts: Mapping[str, str]) -> None:
    """Tracks texts."""
    self._track(step, {n: self._aim.Text(text) for n, text in texts.items()})

  def write_hparams(self, hparams: Mapping[str, Any]) -> None:
    """Sets the parameters of the run."""
    self._run["hparams"] = {
      name: list(value) if isinstance(value, tuple) else value
      for name, value in hparams.items()
    }

  def flush(self) -> None:
    """Does nothing: Aim writes by itself."""

  def close(self) -> None:
    """Closes the run."""
    self._run.close()

  def _track(self, step: int, values: Mapping[str, Any]) -> None:
    for name, value in values.items():
      self._run.track(value, name=name, step=step)


TRACKERS = {"aim": AimWriter, "wandb": WandbWriter}


def check_installed(names: Sequence[str]) -> None:
  """Raises ValueError for a tracker that is not installed."""
  for name in names:
    if importlib.util.find_spec(name) is None:
      raise ValueError(
        f"train.trackers={name!r}: is not installed. Install it with pip "
        f"install 'vmoe-study[{name}]', or leave it out."
      )


def open_tracker(name: str, workdir: epath.PathLike) -> WandbWriter | AimWriter:
  """Starts or resumes the run of a tracker that belongs to a workdir."""
  return TRACKERS[name](workdir)


def _known(workdir: epath.PathLike, tracker: str) -> str | None:
  """The identity of the run in a tracker; None before its first start."""
  return _identities(workdir).get(tracker)


def _remember(workdir: epath.PathLike, tracker: str, identity: str) -> None:
  text = json.dumps(_identities(workdir) | {tracker: identity}) + "\n"
  write_atomically(epath.Path(workdir) / IDENTITIES, text)


def _identities(workdir: epath.PathLike) -> dict[str, str]:
  path = epath.Path(workdir) / IDENTITIES
  return json.loads(path.read_text()) if path.exists() else {}
