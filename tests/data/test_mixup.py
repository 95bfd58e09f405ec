"""Mixup conserves label mass and stays within pairs, or within devices."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import AxisType, NamedSharding

from vmoe_study.data.mixup import mixup, rolled_mixup

pytestmark = pytest.mark.slow


def make_batch(size, seed=0):
  rng = np.random.default_rng(seed)
  return {
    "image": jnp.asarray(rng.random((size, 4, 4, 3)), jnp.float32),
    "label": jnp.asarray(rng.random((size, 7)) < 0.4, jnp.float32),
  }


@given(
  seed=st.integers(0, 1000),
  alpha=st.floats(0.05, 4.0),
)
@settings(max_examples=25, deadline=None)
def test_label_mass_is_conserved_in_each_pair(seed, alpha):
  batch = make_batch(8, seed)
  mixed = mixup(batch, jax.random.key(seed), alpha)
  for name in ("image", "label"):
    before = batch[name].reshape(4, 2, -1)
    after = mixed[name].reshape(4, 2, -1)
    np.testing.assert_allclose(before.sum(1), after.sum(1), atol=1e-4)


def test_images_and_labels_share_one_weight():
  batch = make_batch(8)
  mixed = mixup(batch, jax.random.key(3), 1.0)
  partner = np.arange(8) ^ 1
  for name in ("image", "label"):
    x, y = np.asarray(batch[name]), np.asarray(mixed[name])
    neighbour = x[partner]
    differ = x != neighbour
    weights = ((y - neighbour) / np.where(differ, x - neighbour, 1))[differ]
    weight = float(np.median(weights))
    assert 0.5 <= weight < 1
    np.testing.assert_allclose(
      y, weight * x + (1 - weight) * neighbour, atol=1e-5
    )


def test_weights_follow_the_folded_beta_distribution():
  batch = {
    "image": jnp.zeros((2, 1, 1, 1)),
    "label": jnp.asarray([[1.0], [0.0]]),
  }
  keys = jax.random.split(jax.random.key(0), 4000)
  draws = jax.vmap(lambda key: mixup(batch, key, 0.5)["label"][0, 0])(keys)
  beta = np.random.default_rng(0).beta(0.5, 0.5, 100_000)
  expected = np.maximum(beta, 1 - beta)
  np.testing.assert_allclose(draws.mean(), expected.mean(), atol=0.01)
  np.testing.assert_allclose(draws.std(), expected.std(), atol=0.01)


def test_rolled_images_are_blended_with_the_next_of_their_device():
  batch = make_batch(12)
  mixed = rolled_mixup(batch, jax.random.key(3), 1.0, num_devices=3)
  following = [1, 2, 3, 0, 5, 6, 7, 4, 9, 10, 11, 8]
  found = set()
  for device in range(3):
    rows = slice(4 * device, 4 * device + 4)
    x = np.asarray(batch["image"])
    y, own, other = mixed["image"][rows], x[rows], x[following][rows]
    weight = float(np.median((y - other) / (own - other)))
    assert 0.5 <= weight < 1
    for name in ("image", "label"):
      x = np.asarray(batch[name])
      expected = weight * x[rows] + (1 - weight) * x[following][rows]
      np.testing.assert_allclose(mixed[name][rows], expected, atol=1e-5)
    found.add(round(weight, 4))
  assert len(found) == 3  # Each device has a weight of its own.


MIXUPS = {
  "pair": lambda batch, key: mixup(batch, key, 0.5),
  "device": lambda batch, key: rolled_mixup(batch, key, 0.5, num_devices=8),
}


@pytest.mark.parametrize("within", MIXUPS)
def test_nothing_crosses_devices(within):
  mesh = jax.make_mesh((8,), ("batch",), axis_types=(AxisType.Auto,))
  sharding = NamedSharding(mesh, jax.P("batch"))
  batch = jax.device_put(make_batch(32), sharding)
  step = jax.jit(MIXUPS[within], out_shardings=sharding)
  compiled = step.lower(batch, jax.random.key(0)).compile()
  text = compiled.as_text()
  for exchange in ("all-gather", "all-to-all", "collective-permute"):
    assert exchange not in text
  # Devices that draw weights of their own agree on when all have drawn one.
  reduced = re.findall(r"= (\S+) all-reduce\(", text)
  assert set(reduced) <= ({"pred[]"} if within == "device" else set())
  single = MIXUPS[within](make_batch(32), jax.random.key(0))
  result = compiled(batch, jax.random.key(0))
  np.testing.assert_allclose(result["label"], single["label"], rtol=1e-6)


def test_other_entries_pass_and_bad_values_are_explained():
  batch = {**make_batch(6), "mask": jnp.ones(6)}
  assert mixup(batch, jax.random.key(0), 1.0)["mask"] is batch["mask"]
  with pytest.raises(ValueError, match="mixup=0: "):
    mixup(batch, jax.random.key(0), 0)
  with pytest.raises(ValueError, match="batch_size=5: .* multiple of 2"):
    mixup(make_batch(5), jax.random.key(0), 1.0)
  with pytest.raises(ValueError, match="batch_size=6: .* multiple of 4"):
    rolled_mixup(make_batch(6), jax.random.key(0), 1.0, num_devices=4)
