"""Saving, restoring, and what happens to damaged checkpoints."""

import contextlib
import gc
import resource
import shutil
import signal
import threading
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest

from vmoe_study.checkpoint import load as load_lib
from vmoe_study.checkpoint import store as store_lib
from vmoe_study.checkpoint.errors import CheckpointError

# Orbax leaves coroutines behind when a read or write fails.
pytestmark = pytest.mark.filterwarnings(
  "ignore::pytest.PytestUnraisableExceptionWarning",
  "ignore:coroutine:RuntimeWarning",
)

STEPS = (3, 7)
OPTIMIZER = optax.adam(1e-3)


def _params(seed):
  rng = np.random.default_rng(seed)
  return {
    "Dense": {
      "kernel": jnp.asarray(rng.normal(size=(64, 48)), jnp.float32),
      "bias": jnp.asarray(rng.normal(size=(48,)), jnp.bfloat16),
    },
    "scale": jnp.float32(rng.normal()),
  }


def _state(seed):
  params = _params(seed)
  grads = _params(seed + 1)
  _, opt_state = OPTIMIZER.update(grads, OPTIMIZER.init(params), params)
  return params, opt_state


def _config(step):
  return {"name": "run", "step": step, "sizes": [1, 2]}


def _same(left, right):
  left, right = jax.tree.leaves(left), jax.tree.leaves(right)
  assert len(left) == len(right)
  return all(
    a.dtype == b.dtype and np.array_equal(np.asarray(a), np.asarray(b))
    for a, b in zip(left, right, strict=True)
  )


@pytest.fixture(autouse=True)
def _collect_coroutines_here():
  gc.freeze()  # Searching what other tests left would take a second.
  yield
  gc.collect()
  gc.unfreeze()


@pytest.fixture(scope="module")
def states():
  return {step: _state(step) for step in STEPS}


@pytest.fixture(scope="module")
def saved(tmp_path_factory, states):
  """A directory with both steps, never written to by a test."""
  directory = tmp_path_factory.mktemp("saved") / "checkpoints"
  store = store_lib.CheckpointStore(directory)
  for step, (params, opt_state) in states.items():
    store.save(step, params, opt_state, _config(step))
  store.close()
  return directory


@pytest.fixture
def directory(saved, tmp_path):
  """A copy to damage."""
  return shutil.copytree(saved, tmp_path / "checkpoints")


def _restore(directory, states, step=None):
  store = store_lib.CheckpointStore(directory)
  params, opt_state = states[STEPS[0]]
  template = jax.eval_shape(lambda: (params, opt_state))
  restored = store.restore(step, params=template[0], opt_state=template[1])
  store.close()
  return restored


def _files(directory, step):
  return sorted(f for f in (directory / str(step)).rglob("*") if f.is_file())


def test_round_trip(saved, states):
  restored = _restore(saved, states)
  assert restored.step == STEPS[-1]
  assert _same(restored.params, states[STEPS[-1]][0])
  assert _same(restored.opt_state, states[STEPS[-1]][1])
  assert restored.metadata == _config(STEPS[-1])
  assert jax.tree.structure(restored.opt_state) == jax.tree.structure(
    states[STEPS[-1]][1]
  )


def test_a_step_can_be_named(saved, states):
  restored = _restore(saved, states, step=STEPS[0])
  assert restored.step == STEPS[0]
  assert _same(restored.params, states[STEPS[0]][0])
  with pytest.raises(CheckpointError, match=r"no step 5; .*3, 7"):
    _restore(saved, states, step=5)


def test_parameters_open_without_optimizer_or_template(saved, states):
  params, config, step = load_lib.load_params(saved)
  assert (step, config) == (STEPS[-1], _config(STEPS[-1]))
  assert all(isinstance(leaf, np.ndarray) for leaf in jax.tree.leaves(params))
  assert _same(params, states[step][0])
  params, _, _ = load_lib.load_params(saved, STEPS[0], states[STEPS[0]][0])
  assert _same(params, states[STEPS[0]][0])
  assert load_lib.load_metadata(saved) == (_config(STEPS[-1]), STEPS[-1])


def test_a_state_without_arrays_is_allowed(tmp_path, states):
  params, _ = states[STEPS[0]]
  opt_state = optax.sgd(0.1).init(params)
  store = store_lib.CheckpointStore(tmp_path)
  store.save(1, params, opt_state, {}, wait=True)
  assert (
    store.restore(params=params, opt_state=opt_state).opt_state == opt_state
  )
  with pytest.raises(ValueError, match="0/count: expected, not in the ch"):
    store.restore(params=params, opt_state=OPTIMIZER.init(params))
  store.close()


def test_the_newest_and_every_nth_are_kept(tmp_path):
  store = store_lib.CheckpointStore(tmp_path, keep=2, keep_every=4)
  for step in range(1, 8):
    store.save(step, {"w": jnp.full((2,), step)}, None, {})
  assert store.latest_step() == 7
  store.close()
  assert sorted(int(p.name) for p in tmp_path.iterdir()) == [4, 6, 7]
  for bad in ({"keep": 0}, {"keep_every": -1}):
    with pytest.raises(ValueError, match="at least 1"):
      store_lib.CheckpointStore(tmp_path, **bad)


def test_steps_are_saved_in_order(directory, states):
  store = store_lib.CheckpointStore(directory)
  for step in (5, 7):
    with pytest.raises(ValueError, match=f"step={step}: must be larger than 7"):
      store.save(step, *states[STEPS[0]], {})
  store.close()


def test_donated_parameters_are_saved_as_they_were(tmp_path):
  advance = jax.jit(lambda x: 2 * x + 1, donate_argnums=0)
  weights = jnp.arange(2**18, dtype=jnp.float32)
  store = store_lib.CheckpointStore(tmp_path)
  for step in range(1, 4):
    expected = np.array(weights)
    store.save(step, {"w": weights}, None, {})
    for _ in range(10):
      weights = advance(weights)
    store.wait()
    params, _, _ = load_lib.load_params(tmp_path, step)
    np.testing.assert_array_equal(params["w"], expected)
  store.close()


@pytest.mark.parametrize("change", ["name", "shape", "dtype"])
def test_differences_are_named(saved, states, change):
  params, opt_state = states[STEPS[0]]
  kernel = params["Dense"]["kernel"]
  dense = {
    "name": {"weights": kernel, "bias": params["Dense"]["bias"]},
    "shape": params["Dense"] | {"kernel": kernel[:-1]},
    "dtype": params["Dense"] | {"kernel": kernel.astype(jnp.bfloat16)},
  }[change]
  message = {
    "name": r"Dense/kernel: in the checkpoint, not.*\n  Dense/weights: expec",
    "shape": r"Dense/kernel: float32\[64, 48\] in .* float32\[63, 48\] expec",
    "dtype": r"Dense/kernel: float32.* bfloat16.* expected",
  }[change]
  store = store_lib.CheckpointStore(saved)
  with pytest.raises(ValueError, match=message):
    store.restore(params=params | {"Dense": dense}, opt_state=opt_state)
  store.close()


@pytest.mark.slow
def test_damage_anywhere_is_never_silent(directory, saved, states):
  """Every file deleted, cut short, and flipped at random bytes."""
  rng = np.random.default_rng(0)
  params, _ = states[STEPS[0]]
  fallbacks = 0
  for file in _files(directory, STEPS[-1]):
    content = file.read_bytes()
    damages = [None, content[: len(content) // 2]]
    for position in rng.integers(0, len(content), 4):
      flipped = bytearray(content)
      flipped[position] ^= 1 << rng.integers(8)
      damages.append(bytes(flipped))
    if "opt_state" in file.parts:
      del damages[1:]  # Parameters are read without it.
    for damage in damages:
      file.unlink() if damage is None else file.write_bytes(damage)
      read, config, step = load_lib.load_params(directory, template=params)
      assert _same(read, states[step][0]) and config == _config(step)
      fallbacks += step == STEPS[0]
      file.write_bytes(content)
  assert fallbacks > 10


def _largest_file(directory, item):
  files = _files(directory, STEPS[-1])
  return max(
    (file for file in files if item in file.parts),
    key=lambda file: file.stat().st_size,
  )


def _flip(file, position):
  content = bytearray(file.read_bytes())
  content[position] ^= 0x10
  file.write_bytes(bytes(content))


@pytest.mark.parametrize("item", ["params", "opt_state"])
def test_a_run_steps_back_and_goes_on(directory, states, item, caplog):
  _flip(_largest_file(directory, item), 3000)
  restored = _restore(directory, states)
  assert restored.step == STEPS[0]
  assert _same(restored.params, states[STEPS[0]][0])
  assert str(directory / str(STEPS[-1])) in caplog.text
  assert (directory / f"damaged-{STEPS[-1]}").exists()

  store = store_lib.CheckpointStore(directory)
  assert store.latest_step() == STEPS[0]
  store.save(STEPS[-1], *states[STEPS[-1]], _config(STEPS[-1]))
  store.close()
  assert _restore(directory, states).step == STEPS[-1]

  _flip(_largest_file(directory, item), 3000)
  assert _restore(directory, states).step == STEPS[0]
  assert (directory / f"damaged-{STEPS[-1]}-2").exists()


def test_a_step_that_a_run_replaces_while_it_is_read(directory, monkeypatch):
  read = load_lib.read_manifest

  def read_late(path):
    if path.name == "7":
      path.rename(path.parent / "9")
    return read(path)

  monkeypatch.setattr(load_lib, "read_manifest", read_late)
  assert load_lib.load_params(directory)[2] == 9


def test_a_damaged_step_asked_for_by_name_is_an_error(directory, states):
  _flip(_largest_file(directory, "params"), 3000)
  with pytest.raises(CheckpointError, match=r"\[7\] cannot be read"):
    _restore(directory, states, step=STEPS[-1])


def test_nothing_intact_is_an_error_that_changes_nothing(directory, states):
  for step in STEPS:
    (directory / str(step) / "manifest" / "metadata").write_text("{}")
  before = sorted(directory.rglob("*"))
  with pytest.raises(CheckpointError, match=r"no intact .*\[3, 7\]"):
    _restore(directory, states)
  assert sorted(directory.rglob("*")) == before
  with pytest.raises(CheckpointError, match="holds no checkpoint"):
    load_lib.load_params(directory / "absent")


def test_unfinished_saves_are_removed(directory, states):
  stale = directory / "9.orbax-checkpoint-tmp"
  shutil.copytree(directory / "7", stale)
  restored = _restore(directory, states)
  assert restored.step == STEPS[-1]
  assert not stale.exists()


@pytest.fixture
def file_size_limit():
  """Makes writes beyond 4 kB fail, as on a full disk."""
  soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
  handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
  yield lambda on: resource.setrlimit(
    resource.RLIMIT_FSIZE, (4096 if on else soft, hard)
  )
  resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
  signal.signal(signal.SIGXFSZ, handler)


def test_a_failed_save_surfaces_and_leaves_the_last_intact(
  directory, states, file_size_limit
):
  store = store_lib.CheckpointStore(directory, keep=1)
  file_size_limit(True)
  with pytest.raises(CheckpointError, match="unchanged; the newest is step 7"):
    store.save(8, *states[STEPS[0]], {}, wait=True)
  file_size_limit(False)
  assert store.latest_step() == STEPS[-1]
  assert _same(load_lib.load_params(directory)[0], states[STEPS[-1]][0])
  store.save(8, *states[STEPS[0]], {})
  store.close()
  assert load_lib.load_params(directory)[2] == 8


@pytest.mark.slow
def test_a_failed_save_that_is_still_written_does_not_fail_the_next(
  directory, states, file_size_limit
):
  unfinished = directory / f"6{ocp.utils.TMP_DIR_SUFFIX}" / "params"
  stop = time.monotonic() + 2

  def write():  # As a thread of Orbax that has not noticed the error.
    while time.monotonic() < stop:
      with contextlib.suppress(OSError):
        unfinished.mkdir(parents=True, exist_ok=True)
        for number in range(50):
          (unfinished / str(number)).touch()

  writer = threading.Thread(target=write)
  store = store_lib.CheckpointStore(directory, keep=1)
  file_size_limit(True)
  writer.start()
  with pytest.raises(CheckpointError, match="unchanged; the newest is step 7"):
    store.save(8, *states[STEPS[0]], {}, wait=True)
  file_size_limit(False)
  store.save(8, *states[STEPS[0]], {})
  store.close()
  writer.join()
  assert load_lib.load_params(directory)[2] == 8
