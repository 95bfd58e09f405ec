"""A run that is started again loads what it has compiled before."""

import collections
import shutil

import jax
import numpy as np
import pytest
from jax.experimental.compilation_cache import compilation_cache as jax_cache

import vmoe_study
from vmoe_study.parallel import compilation_cache

from ..fake_gcs import fake_gcs

pytestmark = pytest.mark.cli

TINY = (
  *("model.fields.width=16", "model.fields.depth=2", "model.fields.mlp_dim=32"),
  *("model.fields.num_heads=2", "model.moe.options.num_experts=4"),
  *("train.num_epochs=0.0", "train.num_steps=4", "train.save_every=2"),
  *("train.schedule.warmup_steps=0", "train.evaluate_every=0", "fewshot={}"),
)


@pytest.fixture
def counts():
  """Counts JAX's events, in a process that was told no folder."""
  found = collections.Counter()
  jax.monitoring.register_event_listener(lambda name, **_: found.update([name]))
  names = (
    "jax_compilation_cache_dir",
    "jax_persistent_cache_min_compile_time_secs",
  )
  before = {name: getattr(jax.config, name) for name in names}
  jax.config.update("jax_compilation_cache_dir", None)
  jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
  jax_cache.reset_cache()
  jax.clear_caches()
  yield found
  for name, value in before.items():
    jax.config.update(name, value)
  jax_cache.reset_cache()
  jax.monitoring.clear_event_listeners()


# Scalars of the state: the first start makes them before it has a workdir.
TRIFLES = {"jit_stage", "jit_convert_element_type"}


def kept(workdir):
  return {
    path.name for path in workdir.glob(f"{compilation_cache.FOLDER}/*/*-cache")
  }


@pytest.mark.usefixtures("eight_devices")
def test_a_second_start_compiles_nothing(counts, tmp_path):
  config = vmoe_study.load_config("configs/digits.py", TINY)
  whole = vmoe_study.train(config, tmp_path).metrics
  params = vmoe_study.open_checkpoint(tmp_path).params
  shutil.rmtree(tmp_path / "checkpoints" / "4")
  before = kept(tmp_path)
  assert sum("train_step" in name for name in before) == 1
  jax.clear_caches()
  counts.clear()

  resumed = vmoe_study.train(config, tmp_path).metrics
  kind = "/jax/compilation_cache/"
  compiled = counts[kind + "compile_requests_use_cache"]
  compiled -= counts[kind + "cache_hits"]
  assert counts[kind + "cache_hits"] > 5 >= compiled
  assert {n.partition("-")[0] for n in kept(tmp_path) - before} <= TRIFLES
  again = vmoe_study.open_checkpoint(tmp_path).params
  jax.tree.map(np.testing.assert_array_equal, params, again)
  assert resumed["test/loss"] == whole["test/loss"]
  assert jax.config.jax_compilation_cache_dir is None


@pytest.mark.parametrize("told", [True, False])
def test_a_folder_that_jax_was_told_comes_first(counts, tmp_path, told):
  del counts
  run, other = tmp_path / "run", tmp_path / "other"
  jax.config.update("jax_compilation_cache_dir", str(other) if told else None)
  with compilation_cache.cached_in(run):
    jax.jit(lambda x: x + len(str(run)))(np.float32(1))
  assert bool(kept(run)) == (not told)
  assert any(other.glob("*-cache")) == told


def test_another_processor_has_a_folder_of_its_own(tmp_path, monkeypatch):
  here = compilation_cache.folder("run", "cpu", 2)
  assert here == compilation_cache.folder("run", "cpu", 2)
  described = tmp_path / "cpuinfo"
  monkeypatch.setattr(compilation_cache, "CPU_INFO", described)
  found = {here}
  for flags in ("avx2", "avx2 avx512f"):
    for speed in (2100, 3000):
      described.write_text(f"flags\t: {flags}\ncpu MHz\t: {speed}\n")
      found.add(compilation_cache.folder("run", "cpu", 2))
  assert len(found) == 3


@pytest.mark.slow  # Starts a server.
def test_in_a_bucket(counts, tmp_path):
  (tmp_path / "bucket").mkdir()
  with fake_gcs(tmp_path):
    for _ in range(2):
      with compilation_cache.cached_in("gs://bucket/run"):
        jax.jit(lambda x: x + 3)(np.float32(1))
      jax.clear_caches()
  assert kept(tmp_path / "bucket" / "run")
  kind = "/jax/compilation_cache/"
  assert counts[kind + "cache_hits"] == counts[kind + "cache_misses"] > 0
