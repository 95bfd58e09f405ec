"""Trackers get what is measured; the real ones where they are installed."""

import json
import sys
import types

import numpy as np
import pytest

from vmoe_study.training import trackers
from vmoe_study.training.metrics import MetricsWriter
from vmoe_study.training.metrics_file import read_metrics

IMAGE = np.zeros((4, 5, 3), np.uint8)
CONFIG = {"seed": 3, "train": {"mixup": 0.5, "shots": (1, 5)}}


class Fake:
  """A module of a tracker that notes what is called, and checks the steps."""

  def __init__(self):
    self.started, self.logged, self.config = [], [], {}
    self.closed = 0

  def wandb(self):
    run = types.SimpleNamespace(
      log=lambda values, step: self.logged.append((step, values)),
      config=types.SimpleNamespace(
        update=lambda values, allow_val_change: self.config.update(values)
      ),
      finish=self.close,
    )
    media = {n: lambda x, n=n: (n, x) for n in ("Image", "Histogram", "Html")}
    return types.SimpleNamespace(
      init=lambda **words: self.started.append(words) or run, **media
    )

  def aim(self):
    fake = self

    class Run:
      def __init__(self, **words):
        assert words["run_hash"] in (None, "0a")  # Aim finds no others.
        self.hash = words["run_hash"] or "0a"
        fake.started.append({"id": self.hash})

      def __setitem__(self, key, values):
        fake.config.update({key: values})

      def track(self, value, *, name, step):
        fake.logged.append((step, {name: value}))

      def close(self):
        fake.close()

    media = {
      n: lambda x, n=n: (n, x) for n in ("Image", "Distribution", "Text")
    }
    return types.SimpleNamespace(Run=Run, **media)

  def close(self):
    self.closed += 1


def write_everything(workdir, name, start=0):
  writer = MetricsWriter(workdir, start, trackers=(name,))
  writer.write_config(start, CONFIG)
  writer.write_scalars(start + 1, {"train/loss": 0.5})
  writer.write_images(start + 1, {"patches": IMAGE})
  writer.write_histograms(start + 1, {"load": np.arange(8.0)})
  writer.close()


@pytest.mark.parametrize("name", trackers.TRACKERS)
def test_a_tracker_gets_everything_under_one_identity(
  name, tmp_path, monkeypatch
):
  fake = Fake()
  monkeypatch.setitem(sys.modules, name, getattr(fake, name)())
  write_everything(tmp_path, name)
  write_everything(tmp_path, name, start=1)
  assert len({words["id"] for words in fake.started}) == 1
  assert len(fake.started) == fake.closed == 2
  logged = [(step, key) for step, values in fake.logged for key in values]
  keys = {"config": 0, "train/loss": 1, "patches": 1, "load": 1}
  assert logged == [(s + after, k) for s in (0, 1) for k, after in keys.items()]
  values = {k: v for _, logged in fake.logged for k, v in logged.items()}
  assert values["train/loss"] == 0.5
  np.testing.assert_array_equal(values["load"][1], np.arange(8.0))
  np.testing.assert_array_equal(values["patches"][1], IMAGE)
  hparams = fake.config.get("hparams", fake.config)
  assert hparams["train.mixup"] == 0.5 and hparams["seed"] == 3


def test_wandb_offline(tmp_path, monkeypatch):
  pytest.importorskip("wandb")
  monkeypatch.setenv("WANDB_MODE", "offline")
  write_everything(tmp_path, "wandb")
  (file,) = tmp_path.glob("wandb/offline-run-*/*.wandb")
  content = file.read_bytes()
  for name in (b"train/loss", b"patches", b"train.mixup"):
    assert name in content


def test_aim_in_a_repository_of_its_own(tmp_path, monkeypatch):
  aim = pytest.importorskip("aim")
  aim.Repo.from_path(str(tmp_path), init=True)
  monkeypatch.setenv("AIM_REPO", str(tmp_path))
  monkeypatch.chdir(tmp_path)
  write_everything(tmp_path, "aim")
  write_everything(tmp_path, "aim", start=1)
  identities = json.loads((tmp_path / trackers.IDENTITIES).read_text())
  assert aim.Repo(str(tmp_path)).list_all_runs() == [identities["aim"]]


def test_a_tracker_that_fails_leaves_the_metrics_file_whole(
  tmp_path, monkeypatch
):
  fake = Fake()
  fake.logged = None  # Its append fails.
  monkeypatch.setitem(sys.modules, "wandb", fake.wandb())
  writer = MetricsWriter(tmp_path, on_error="continue", trackers=("wandb",))
  writer.write_scalars(1, {"train/loss": 0.5})
  writer.close()
  assert list(read_metrics(tmp_path)) == [{"step": 1, "train/loss": 0.5}]


def test_a_tracker_that_is_not_installed_is_named(monkeypatch):
  monkeypatch.setattr(trackers.importlib.util, "find_spec", lambda name: None)
  with pytest.raises(ValueError, match=r"pip install 'vmoe-study\[wandb\]'"):
    trackers.check_installed(("wandb",))
