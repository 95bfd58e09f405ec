"""Few-shot draws against those of the original code."""

import itertools
import pathlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmoe_study.evaluation.draws import generator_seed, tuple_hash
from vmoe_study.evaluation.fewshot import select_shots

REFERENCE = pathlib.Path(__file__).parents[1] / "data" / "reference"


@pytest.fixture(scope="module")
def arrays():
  return dict(np.load(REFERENCE / "fewshot_seeds.npz"))


def test_seeds_are_those_of_the_original(arrays):
  seeds, draws = arrays["seeds"], arrays["sub_seeds"]
  steps = arrays["foldin_steps"]
  for (i, seed), (j, draw) in itertools.product(
    enumerate(seeds.tolist()), enumerate(draws.tolist())
  ):
    assert tuple_hash((seed, draw)) == arrays["python_hash"][i, j]
    found = generator_seed("vmoe", seed, draw, step=17)
    assert found == arrays["generator_seed"][i, j]
    for k, step in enumerate(steps.tolist()):
      found = generator_seed("vmoe_step", seed, draw, step)
      assert found == arrays["foldin_generator_seed"][i, k, j]
    assert generator_seed("seed", seed, draw, step=17) == seed + draw


def test_images_are_those_of_the_original(arrays):
  for seed, draw, shots in itertools.product(range(5), range(5), (1, 5, 10)):
    found = select_shots(
      arrays["labels"],
      int(arrays["num_classes"]),
      shots,
      generator_seed("vmoe", seed, draw, step=0),
    )
    expected = arrays[f"seed{seed}/sub{draw}/idx_shot{shots}"]
    np.testing.assert_array_equal(found, expected)


@given(st.lists(st.integers(0, 2**61 - 2), max_size=4))
def test_the_hash_is_that_of_python(values):
  assert tuple_hash(values) == hash(tuple(values))
