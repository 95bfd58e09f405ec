"""A tiny model of every kind, its batches, and what its program sends."""

import collections
import re

import numpy as np

from vmoe_study.config import parse

from .. import routers

# One router of every form of plan, and none: they train for longer. What is
# exchanged depends on the plan, not on how its tokens were chosen.
DEEP = ("softmax_token_choice", "softmax_expert_choice", "soft", "dense")
# And the study's other routers, states that all devices share, and an exchange
# of its own. `routing/test_exchange.py` sends the tokens of every router.
ROUTERS = (
  *dict.fromkeys((*DEEP, *routers.STUDY)),
  "bias_adjusted_token_choice",
  "relu",
  "dropless_token_choice",
)
BATCH = 32


def config(router, replica, expert, **changes):
  experts = {} if router == "dense" else {"num_experts": 8}
  experts |= changes.get("options", {})
  if router == "softmax_token_choice":
    experts |= {"importance_loss_weight": 0.005, "load_loss_weight": 0.005}
  data = {"name": "digits", "split": "train", "num_classes": 10}
  data["ops"] = "value_range(-6, 6)"
  return parse(
    {
      "name": "test",
      "model": {
        "fields": {
          "num_classes": 10,
          "patch_size": 2,
          "width": 16,
          "depth": num_blocks(router),
          "mlp_dim": 32,
          "num_heads": 2,
          **changes.get("fields", {}),
        },
        "moe": {
          "router": router,
          "options": experts,
          "group_images": 2,
          "blocks": f"last {num_blocks(router)}",
        },
      },
      "data": data,
      "train": {
        "batch_size": BATCH,
        "num_steps": num_steps(router),
        "optimizer": {"name": "sgd", "momentum": 0.9},
        "schedule": {"name": "constant", "peak": 0.05},
        "mixup": 0.5,
        **changes.get("train", {}),
      },
      "mesh": {
        "replica": replica,
        "expert": expert,
        "fsdp": changes.get("fsdp", False),
      },
    }
  )


def num_blocks(router):
  """All are routed."""
  return 2 if router in DEEP else 1


def num_steps(router):
  """Until rounding has grown, or decided a choice, in some of the others."""
  return 20 if router in DEEP else 5


def batch(number=0):
  """Images and labels of a step.

  Routers choose, and where two scores are equal to rounding, the order of a sum
  decides. Sparse transport is most prone to that: its dual is best just where
  choices tie. With these images no choice is that close.
  """
  rng = np.random.default_rng(200 + number)
  labels = rng.integers(0, 10, BATCH)
  images = rng.normal(size=(BATCH, 8, 8, 1)) + labels[:, None, None, None] / 5
  levels = np.rint((images + 6) * (255 / 12)).clip(0, 255)
  return {"image": levels.astype(np.uint8), "label": labels.astype(np.int32)}


def exchanges(hlo):
  """{(block, "forward" or "backward"): all-to-alls} in a compiled step.

  Each runs once: a step without accumulation has no loop around them.
  """
  names = re.findall(r" all-to-all(?:-start)?\(.*op_name=\"([^\"]+)\"", hlo)
  return collections.Counter(
    (
      re.search(r"encoderblock_\d+", name)[0],
      "backward" if "transpose(" in name else "forward",
    )
    for name in names
  )


def assert_only_exchanges(hlo, router):
  """Two all-to-alls per layer and direction, and nothing gathered.

  Dropless routing exchanges the loads first, and has two programs for the rest.
  """
  num_routed = 0 if router == "dense" else num_blocks(router)
  blocks = [f"encoderblock_{number}" for number in range(num_routed)]
  is_dropless = router == "dropless_token_choice"
  counts = (
    {"forward": 5, "backward": 4}
    if is_dropless
    else {"forward": 2, "backward": 2}
  )
  assert exchanges(hlo) == {
    (block, direction): count
    for block in blocks
    for direction, count in counts.items()
  }
  assert not re.findall(r" all-gather(?:-start)?\(", hlo)
