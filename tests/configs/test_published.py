"""Recipes that carry a paper's name against the numbers of its public configs.

`recipes.txt` lists these numbers. Here they are read from it, and from configs
that are finished: as the run gets them, with models and optimizers of them.
"""

import functools
import math
import pathlib
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from configs.tables import TABLES
from vmoe_study.data.ops import parse_ops
from vmoe_study.evaluation.fewshot import PENALTIES
from vmoe_study.nn import cost
from vmoe_study.nn.vit import VisionTransformer, moe_blocks
from vmoe_study.parallel.mesh import MeshSpec, make_mesh
from vmoe_study.run.config_file import load_config
from vmoe_study.run.experiment import Model, Training
from vmoe_study.training.optimizer import ScheduleSpec, make_schedule

pytestmark = pytest.mark.slow

REFERENCE = pathlib.Path(__file__).parents[1] / "data" / "reference"
JFT, I1K, I21K, JFT4B = range(4)
OF_COLUMN = {JFT: "", I1K: "data=imagenet1k", I21K: "data=imagenet21k"}
OF_COLUMN[JFT4B] = "recipe=softmoe"
COLUMNS = tuple(OF_COLUMN)
# The fine-tunings in the order of recipes.txt.
_B16_TUNED, _S32_TUNED, _CIFAR_TUNED, *_ = TABLES["finetune"].rows
TUNED = (_S32_TUNED, _B16_TUNED, _CIFAR_TUNED)


@functools.cache
def pretrained(column, *more):
  arguments = ",".join(filter(None, (OF_COLUMN[column], *more)))
  return load_config(f"configs/pretrain.py:{arguments}")


def tuned(row):
  return load_config(row.config, row.overrides)


@functools.cache
def published(section):
  """The cells of a table in recipes.txt: label to one text per column."""
  text = (REFERENCE / "recipes.txt").read_text()
  start = text.index(f"\n{section}. ")
  end = text.index(f"\n{section + 1}. ", start)
  rows, label = {}, ""
  for line in text[start:end].splitlines():
    first, *cells = (cell.strip() for cell in line.split("|"))
    if not cells:
      continue
    label = first or label
    before = rows.setdefault(label, [""] * len(cells))
    for index, cell in enumerate(cells[: len(before)]):
      before[index] = f"{before[index]} {cell}".strip()
  return rows


def cell(label, column, section=1):
  return published(section)[label][column]


def number(text):
  return float(
    re.search(r"-?\d[\d,]*\.?\d*(e-?\d+)?", text)[0].replace(",", "")
  )


def sizes(config, side=224):
  """Routing of a config's model, and its number of tokens per group."""
  module = VisionTransformer(**config.model.arguments())
  shape = (side, side, 3)
  tokens = cost.tokens_per_image(module, shape) * config.group_images
  found = cost.routing(module, shape)
  return tokens, found.slots_per_group // found.num_experts, found


def test_batch_length_and_data():
  for column in (I1K, I21K, JFT4B):
    config = pretrained(column)
    assert config.train.batch_size == number(cell("batch", column))
    assert config.data.num_classes == number(cell("classes", column))
    size = number(cell("resolution", column))
    assert f"inception_crop({size:.0f})|flip_lr" in config.data.ops
    assert config.train.loss == "sigmoid_xent"
  for column in (I1K, I21K):
    config = pretrained(column)
    assert config.train.num_epochs == number(cell("length", column))
    steps, examples = re.findall(
      r"[\d,]{6,}", cell("steps (our arithm.)", column)
    )
    found = config.train.total_steps(int(number(examples)))
    assert found == number(steps)
    source = f"{config.data.name} {config.data.split}"
    assert source == cell("train split", column)
    layers, magnitude = re.search(
      r"randaug\((\d+),(\d+)\)", cell("train image ops", column)
    ).groups()
    *_, random = parse_ops(config.data.ops).steps
    assert random.args == (int(layers), int(magnitude), "authors")
    assert config.train.mixup == number(cell("mixup", column))
    assert config.train.mixup_within == "device"
    small = "resize_small(256)|central_crop(224)|value_range(-1, 1)"
    assert {e.data.ops for e in config.evaluations.values()} == {small}
  steps, huge = re.findall(r"[\d,]{7,}", cell("length", JFT4B))
  assert pretrained(JFT4B).train.num_steps == number(steps)
  h14 = pretrained(JFT4B, "backbone=H/14")
  assert h14.train.num_steps == number(huge)
  assert pretrained(JFT4B).train.mixup == pretrained(JFT).train.mixup == 0


def test_optimizers():
  for column in COLUMNS:
    spec = pretrained(column).train
    optimizer = (
      spec.optimizer.name,
      spec.optimizer.beta1,
      spec.optimizer.beta2,
    )
    assert optimizer == ("adam", 0.9, 0.999)
    assert spec.optimizer.epsilon == 1e-8
    assert spec.optimizer.moment_dtype == "float32"
    end, warmup = cell("end / warm-up", column).split("/")
    assert spec.schedule.end == number(end)
    assert spec.schedule.warmup_steps == number(warmup)
  peaks = re.findall(r"(\w/\d+) (\de-\d)", cell("peak", JFT))
  assert len(peaks) == 6
  for backbone, peak in peaks:
    backbone = backbone.replace("S/", "S8/")  # V-MoE's S has 8 layers.
    for column in (JFT, I21K):
      spec = pretrained(column, f"backbone={backbone}").train
      assert spec.schedule.peak == float(peak)
    clip = 10.0 if backbone == "H/14" else 0.0
    spec = pretrained(JFT, f"backbone={backbone}").train
    assert spec.optimizer.clip_norm == clip
  for column in (I1K, I21K, JFT4B):
    spec = pretrained(column).train
    assert spec.schedule.peak == number(cell("peak", column))
    assert spec.optimizer.clip_norm == number(
      cell("gradient clip (norm)", column)
    )
  schedule = pretrained(JFT4B).train.schedule
  times = f"{schedule.timescale:,}, {schedule.cooldown_steps:,}"
  assert times == cell("timescale, cooldown", JFT4B)
  assert (schedule.name, schedule.cooldown) == ("rsqrt", "freeze")


def test_heads_and_blocks():
  for column in COLUMNS:
    config = pretrained(column)
    fields = config.model.arguments()
    classes = config.data.num_classes
    layer = cell("representation layer", column)
    width = {"none": 0, "width of the model": fields["width"]}
    wanted = width[layer] if layer in width else number(layer)
    assert fields["representation_size"] == wanted
    bias = cell("head kernel / bias", column).partition("/")[2]
    expected = -math.log(classes) if "log" in bias else number(bias)
    assert fields["head_bias_init"] == pytest.approx(expected)
    pool = {"class token": "token", "global average, no token": "gap"}
    assert fields["pool"] == pool[cell("pooling", column)]
    assert fields["qk_norm"] == (cell("qk-normalisation", column) == "yes")
    assert fields["dropout_rate"] == 0
    dropout = config.model.moe.expert_dropout_rate
    assert dropout == number(cell("dropout in experts", column))
    assert config.model.moe.shared_expert_init
  for column in (JFT, I1K, I21K):
    model = pretrained(column).model
    text = cell("MoE blocks (0-based)", column).partition(": ")[2]
    found = moe_blocks(model.moe.blocks, model.arguments()["depth"])
    listed = [int(n) for n in re.findall(r"\d+", text)]
    if "..." in text:
      last = listed.pop() if not text.endswith("...") else 11  # Of B: 12.
      step = listed[1] - listed[0]
      listed = list(range(listed[0], last + 1, step))
    assert list(found) == listed
  text = cell("MoE blocks (0-based)", JFT4B)
  for letter, count in re.findall(r"(\w) (\d+)", text):
    patch = 14 if letter == "H" else 16
    model = pretrained(JFT4B, f"backbone={letter}/{patch}").model
    depth = model.arguments()["depth"]
    found = moe_blocks(model.moe.blocks, depth)
    assert found == tuple(range(depth - int(count), depth))


def test_routing():
  for column in (JFT, I1K, I21K):
    config = pretrained(column)
    moe = config.model.moe
    assert moe.router == "softmax_token_choice"
    k = int(re.findall(r"\d+", cell("router, K", column))[-1])
    assert moe.options["num_selected_experts"] == k
    assert moe.options["capacity_factor"] == number(
      cell("capacity factor", column)
    )
    rounding = cell("rounding, multiple", column).split(",")
    assert moe.options["capacity_rounding"] == rounding[0]
    assert moe.options["capacity_multiple_of"] == number(rounding[1])
    assert moe.options["noise_std"] == number(cell("noise std", column))
    weights = [
      moe.options[f"{name}_loss_weight"] for name in ("importance", "load")
    ]
    text = cell("importance, load loss", column)
    assert weights == [float(n) for n in text.split(",")]
    assert not moe.options["batch_priority"]
    tokens, capacity, _ = sizes(config)
    slots = cell("slots C (our arithm.)", column)
    if column == JFT:
      for backbone, slots_ in re.findall(r"(\w/\d+)(?: E32)? (\d+)", slots):
        _, found, _ = sizes(pretrained(column, f"backbone={backbone}"))
        assert found == int(slots_)
      continue
    assert moe.options["num_experts"] == number(cell("experts E", column))
    assert tokens == number(cell("group size (tokens)", column))
    assert capacity == number(slots)
    in_evaluation = cell("capacity in evaluation", column)
    factor = re.search(r"factor ([\d.]+)", in_evaluation)
    wanted = float(factor[1]) if factor else 0.0
    assert config.evaluation_capacity == wanted


def test_routing_of_soft_moe():
  experts = re.findall(r"(\w/\d+) (\d+)", cell("experts E", JFT4B))
  assert len(experts) == 5
  for backbone, count in experts:
    for router in ("soft", "softmax_expert_choice"):
      config = pretrained(JFT4B, f"backbone={backbone},router={router}")
      assert config.model.moe.options["num_experts"] == int(count)
      tokens, capacity, found = sizes(config)
      assert tokens == (256 if backbone.endswith("14") else 196)
      if router == "soft":
        assert capacity == 1
        assert config.model.moe.options["noise_std"] == 0
      elif backbone == "S/16":
        text = cell("slots C (our arithm.)", JFT4B)
        wanted = re.match(r"ec S/16 (\d) \(([\d.]+)\)", text)
        assert capacity == int(wanted[1])
        assert found.capacity_factor == pytest.approx(
          float(wanted[2]), abs=1e-3
        )
        assert config.model.moe.options["noise_std"] == 1


def _decays(config):
  """Weight decay by parameter, from an update with a gradient of zero."""
  mesh = make_mesh(MeshSpec(), jax.devices()[:1])
  training = Training(Model(config, (8, 8, 1), mesh), 1000)
  shapes = training.model.params_shape

  @jax.jit
  def update():
    ones = jax.tree.map(lambda s: jnp.ones(s.shape), shapes)
    zeros = jax.tree.map(jnp.zeros_like, ones)
    state = training.optimizer.init(ones)
    return training.optimizer.update(zeros, state, ones)[0]

  rate = training.schedule(0)
  return {
    path: round(float(-leaf.ravel()[0] / rate), 6)
    for path, leaf in flatten_dict(update(), sep="/").items()
  }


def test_decay_masks():
  smoke = "smoke=true,fewshot=none"
  found = _decays(pretrained(JFT, smoke))
  assert set(found.values()) == {number(cell("weight decay", JFT))}
  for column in (I1K, I21K):
    rate = number(cell("weight decay", column))
    for path, decay in _decays(pretrained(column, smoke)).items():
      assert decay == (rate if path.endswith("/kernel") else 0), path
  head, others, scale = map(
    float, re.findall(r"\d\.\d+", cell("weight decay", JFT4B))
  )
  assert (head, others, scale) == (3.0, 0.03, 0.03)
  for path, decay in _decays(pretrained(JFT4B, smoke)).items():
    wanted = others if path.endswith("/kernel") else 0
    wanted = head if path == "head/kernel" else wanted
    wanted = scale if path.endswith("Router/scale") else wanted
    assert decay == wanted, path


@pytest.mark.parametrize("column", COLUMNS)
def test_initial_distributions(column):
  """The distributions of section 4 of recipes.txt."""
  wide = ("width=64", "mlp_dim=256")
  config = load_config(
    f"configs/pretrain.py:{OF_COLUMN[column]},smoke=true,fewshot=none",
    [f"model.fields.{name}" for name in wide],
  )
  mesh = make_mesh(MeshSpec(), jax.devices()[:1])
  params = flatten_dict(Model(config, (8, 8, 1), mesh).init(), sep="/")
  mlp = math.sqrt(2 / (64 + 256))  # Xavier: variance 2 / (in + out).
  attention = math.sqrt(2 / (64 + 64))
  deviations = {
    r"Moe/Mlp/Dense_\d/kernel": mlp,
    r"0/Mlp/Dense_\d/kernel": mlp,
    r"Mlp/Dense_\d/bias": 1e-6,
    r"posembed_input/pos_embedding": 0.02,
    r"SelfAttention/(query|key|value|out)/kernel": attention,
    r"embedding/kernel": 0.5,  # Lecun normal: 4 pixels of one channel.
    r"Router/dense/kernel": 1 / 8,  # Lecun normal: 64 values.
    r"pre_logits/kernel": 1 / 8,
    r"Router/mu": 1 / math.sqrt(64 * 4),
    r"head/kernel|cls|LayerNorm_\d/bias|encoder_norm/bias": 0,
    r"SelfAttention/\w+/bias|embedding/bias": 0,
  }
  seen = set()
  for path, leaf in params.items():
    values = np.asarray(leaf, np.float64)
    for pattern, deviation in deviations.items():
      if re.search(f"({pattern})$", path):
        seen.add(pattern)
        rtol = 6 / math.sqrt(2 * values[:1].size)
        assert values.std() == pytest.approx(deviation, rel=rtol), path
        assert abs(values.mean()) <= 6 * deviation / math.sqrt(values[:1].size)
    if "Moe/Mlp" in path:
      assert (values == values[:1]).all(), path  # Experts start equal.
    elif re.search(r"Dense_\d/kernel$", path):
      assert np.abs(values).max() <= mlp * math.sqrt(3)  # Uniform.
  absent = {r"Router/dense/kernel" if column == JFT4B else r"Router/mu"}
  if cell("representation layer", column) == "none":
    absent.add(r"pre_logits/kernel")
  assert seen == deviations.keys() - absent
  bias = -10.0 if column == I21K else -math.log(10)
  assert (params["head/bias"] == np.float32(bias)).all()


def test_fine_tuning():
  columns = published(2)
  for column, row in enumerate(TUNED):
    config = tuned(row)
    spec = config.train
    batch, steps = columns["batch, steps"][column].split(", ")
    assert spec.batch_size == number(batch)
    assert spec.num_steps == number(steps)
    peak, warmup = columns["peak, warm-up"][column].split(", ")
    assert spec.schedule.peak == float(peak)
    assert spec.schedule.warmup_steps == number(warmup)
    assert (spec.schedule.name, spec.schedule.end) == ("cosine", 1e-5)
    optimizer = (spec.optimizer.name, spec.optimizer.momentum)
    assert optimizer == ("sgd", 0.9) and spec.optimizer.clip_norm == 10.0
    assert not spec.optimizer.weight_decay and not spec.mixup
    assert spec.loss == "softmax_xent"
    side = int(number(columns["resolution"][column]))
    kind = int(config.data.name == "cifar10")  # One cell for both ImageNets.
    split, ops = columns["train"][kind].split(maxsplit=1)
    assert ops == f"inception crop {side}, flip (both)"
    assert config.data.split == split
    range_ = "value_range(-1, 1)"
    assert config.data.ops == f"inception_crop({side})|flip_lr|{range_}"
    assert f"resize to {side} x {side}" in columns["evaluation"][kind]
    found = {e.data.ops for e in config.evaluations.values()}
    assert found == {f"resize({side})|{range_}"}
    tokens, capacity, _ = sizes(config, side)
    group, slots = columns["group, C (arithm.)"][column].split(", ")
    assert (tokens, capacity) == (number(group), number(slots))
    *blocks, experts, k = columns["MoE blocks, E, K"][column].split("; ")
    moe, fields = config.model.moe, config.model.arguments()
    found = moe_blocks(moe.blocks, fields["depth"])
    listed = [int(n) for n in re.findall(r"\d+", blocks[0])]
    assert found[:2] == tuple(listed[:2]) and found[-1] == listed[-1]
    assert moe.options["num_experts"] == number(experts)
    assert moe.options["num_selected_experts"] == number(k)
    assert config.evaluation_capacity == 0
    assert moe.expert_dropout_rate == 0
    assert fields["representation_size"] == 0
    classes = config.data.num_classes
    assert fields["head_bias_init"] == pytest.approx(-math.log(classes))


def test_few_shot_tasks():
  text = (REFERENCE / "recipes.txt").read_text()
  start = text.index("Few-shot (common_fewshot.py)")
  text = " ".join(text[start : text.index("LAION two towers")].split())
  config = pretrained(JFT, "fewshot=many")
  shots = ", ".join(map(str, config.shots))
  assert f"shots {shots}; penalties 2^-10 ... 2^19;" in text
  assert tuple(2.0**n for n in range(-10, 20)) == PENALTIES
  assert "resized to 256 x 256 (LAION 292), centre 224 " in text
  listed, found = text.partition("(name: train, test): ")[2], set()
  for task in config.fewshot.values():
    assert task.train.name == task.test.name
    splits = f"{task.train.split}, {task.test.split}"
    found.add(f"{task.train.name} {splits}")
    for data in (task.train, task.test):
      assert data.ops == "resize(256)|central_crop(224)|value_range(-1, 1)"
  assert found == set(listed.rstrip(".").split("; "))


# Schedules without a recipe here: contrastive training, ensembles, and one that
# the public configs define but do not use.
OTHERS = {
  "softmoe_laion": ScheduleSpec(
    "rsqrt", 1e-3, warmup_steps=20_000, cooldown_steps=20_000
  ),
  "softmoe_linear": ScheduleSpec("linear", 8e-4, warmup_steps=10_000),
  "ft_eee_cifar100": ScheduleSpec("cosine", 5e-3, 1e-5, warmup_steps=200),
}
OF_SCHEDULE = {
  "vmoe_jft_s32": (JFT, "backbone=S8/32"),
  "vmoe_jft_b16": (JFT, "backbone=B/16"),
  "vmoe_jft_l16": (JFT, "backbone=L/16"),
  "vmoe_jft_h14": (JFT, "backbone=H/14"),
  "vmoe_i1k_s32": (I1K,),
  "vmoe_i21k_b16": (I21K,),
  "softmoe_jft4b": (JFT4B,),
  "softmoe_jft4b_h14": (JFT4B, "backbone=H/14"),
}


def test_learning_rates():
  specs = {n: pretrained(*a).train.schedule for n, a in OF_SCHEDULE.items()}
  specs["ft_ilsvrc2012"] = tuned(TUNED[0]).train.schedule
  specs["ft_cifar10"] = tuned(TUNED[2]).train.schedule
  specs |= OTHERS
  arrays = dict(np.load(REFERENCE / "schedules.npz"))
  assert {name.partition("/")[0] for name in arrays} == specs.keys()
  for name, spec in specs.items():
    schedule = make_schedule(spec, int(arrays[f"{name}/total_steps"]))
    found = np.asarray(schedule(arrays[f"{name}/steps"]))
    error = np.abs(found - arrays[f"{name}/lr"]).max()
    assert error < 1e-6 * spec.peak, name
