"""The meshes and plan forms that a sweep compares."""

from vmoe_study.config import parse
from vmoe_study.performance.plan import mesh_variants


def test_meshes_are_those_that_divide_devices_and_experts():
  values = {
    "name": "test",
    "model": {
      "backbone": "S/16",
      "fields": {"num_classes": 10},
      "moe": {
        "router": "softmax_expert_choice",
        "options": {"num_experts": 12},
      },
    },
    "data": {"name": "x", "split": "train", "ops": "resize(32)"}
    | {"num_classes": 10},
    "train": {"batch_size": 16, "num_steps": 10},
  }
  found = [
    (c.mesh.replica, c.mesh.expert, c.model.moe.options["plan_form"])
    for c in mesh_variants(parse(values), 8)
  ]
  meshes = [(8, 1), (4, 2), (2, 4)]  # 12 experts cannot be shared by 8.
  assert found == [(*m, form) for m in meshes for form in ("index", "dense")]
