"""Manifests come with checkpoints, and these from anywhere."""

import pytest

from vmoe_study.checkpoint import manifest as manifest_lib
from vmoe_study.checkpoint.errors import CheckpointError


@pytest.mark.parametrize(
  "items",
  [
    [],
    {"params": 3},
    {"params": {"head/kernel": 3}},
    {"params": {"x": {"shape": [-1], "dtype": "float32", "fingerprint": ""}}},
    {"params": {"x": {"shape": [1], "dtype": "object?", "fingerprint": ""}}},
    {"params": {"x": {"shape": [1], "dtype": "float32"}}},
  ],
)
def test_a_hostile_manifest_is_refused(items):
  manifest = manifest_lib.build({}, {}) | {"items": items}
  del manifest["digest"]
  manifest["digest"] = manifest_lib._digest(manifest)
  with pytest.raises(CheckpointError, match="does not describe arrays"):
    manifest_lib.check(manifest)
