"""The fingerprint sees every changed bit and no change of layout."""

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from vmoe_study.checkpoint import fingerprint

_text = fingerprint.fingerprint


@pytest.fixture(params=["host", "device"], autouse=True)
def where(request, monkeypatch):
  """Small arrays are read on the host, large ones on devices."""
  if request.param == "device":
    monkeypatch.setattr(fingerprint, "SMALL", -1)


def _reference(words):
  """The module's formula in plain Python integers."""

  def mix(word):
    word = (word ^ (word >> 16)) * 0x85EBCA6B % 2**32
    word = (word ^ (word >> 13)) * 0xC2B2AE35 % 2**32
    return word ^ (word >> 16)

  lanes = [
    sum(mix(int(w) ^ mix((i + salt) % 2**32)) for i, w in enumerate(words))
    for salt in (0x9E3779B9, 0x6A09E667)
  ]
  return "".join(f"{lane % 2**32:08x}" for lane in lanes)


@pytest.fixture(scope="module")
def values():
  return np.random.default_rng(0).normal(size=(3, 5, 4)).astype(np.float32)


def test_agrees_with_the_formula(values):
  assert _text(values) == _reference(values.reshape(-1).view(np.uint32))


DTYPES = ["float32", "bfloat16", "float16", "int32", "int8", "uint8", "bool"]
KINDS = [(dtype, (7,)) for dtype in DTYPES]
KINDS += [("float32", shape) for shape in [(), (2, 3), (0, 3)]]


@pytest.mark.parametrize(("dtype", "shape"), KINDS)
def test_host_and_device_agree(dtype, shape, monkeypatch):
  rng = np.random.default_rng(1)
  array = rng.integers(0, 2, shape).astype(jnp.dtype(dtype))
  found = {_text(array), _text(jnp.asarray(array))}
  monkeypatch.setattr(fingerprint, "SMALL", 2**20)
  found |= {_text(array), _text(jnp.asarray(array))}
  assert len(found) == 1


@pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16, np.float64])
def test_sees_every_single_bit(dtype):
  array = np.random.default_rng(2).normal(size=(2, 3)).astype(dtype)
  seen = {_text(array)}
  for byte in range(array.nbytes):
    for bit in range(8):
      raw = bytearray(array.tobytes())
      raw[byte] ^= 1 << bit
      seen.add(_text(np.frombuffer(bytes(raw), dtype).reshape(array.shape)))
  assert len(seen) == 1 + 8 * array.nbytes


def test_sees_changes_that_cancel_in_a_weighted_sum(values):
  signs = values.copy()
  signs[0, 0, :2] *= -1
  swapped = values[:, ::-1]
  moved = np.roll(values.reshape(-1), 1).reshape(values.shape)
  texts = [_text(x) for x in (values, signs, swapped, moved, -values)]
  assert len(set(texts)) == len(texts)


def test_signed_zero_and_nan_payloads_count():
  zeros = np.zeros((4,), np.float32)
  nans = np.array([0x7FC00000, 0x7FC00001], np.uint32).view(np.float32)
  assert _text(zeros) != _text(-zeros)
  assert _text(nans[:1]) != _text(nans[1:])


def test_is_the_same_under_any_sharding(values):
  devices = jax.devices()[: 3 if len(jax.devices()) >= 3 else 1]
  mesh = jax.make_mesh(
    (len(devices),),
    ("replica",),
    axis_types=(jax.sharding.AxisType.Auto,),
    devices=devices,
  )
  sharding = jax.sharding.NamedSharding(mesh, jax.P("replica"))
  assert _text(jax.device_put(values, sharding)) == _text(values)
