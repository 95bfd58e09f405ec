"""Every row of every table, built without computing parameters."""

import dataclasses
import functools
import itertools
import re
import subprocess
import sys

import jax
import numpy as np
import pytest

from configs import tables
from vmoe_study.config import check_batches
from vmoe_study.data.ops import parse_ops
from vmoe_study.nn.cost import forward_flops, routing
from vmoe_study.nn.vit import VisionTransformer
from vmoe_study.parallel.mesh import MeshSpec, make_mesh
from vmoe_study.run.config_file import load_config
from vmoe_study.run.experiment import Model, Training
from vmoe_study.study.table_file import load_analysis

pytestmark = pytest.mark.slow

IMAGES = 1_000_000
POD = 128


@functools.cache
def check(config, overrides=(), devices=POD, image=(300, 320, 3)):
  """A config, and the shape of its images.

  Checks that batches can be split over `devices`, and that the data operations
  accept images of this shape.
  """
  spec = load_config(config, overrides)
  check_batches(spec, devices)
  for data in (spec.data, *(e.data for e in spec.evaluations.values())):
    ops = parse_ops(data.ops)
    shape = ops(np.zeros(image, np.uint8), np.random.default_rng(0)).shape
  return spec, shape


@functools.cache
def build(*arguments, **more):
  """The model of a config on one device, without computing its parameters."""
  spec, shape = check(*arguments, **more)
  mesh = make_mesh(MeshSpec(), jax.devices()[:1])
  return Training(Model(spec, shape, mesh), IMAGES).model


@functools.cache
def build_shallow(*arguments):
  """As `build`, with one dense and one routed block.

  Blocks of a kind have the same shapes, and `load_config` checks which exist.
  """
  spec, shape = check(*arguments)
  model = spec.model
  model = dataclasses.replace(
    model,
    fields={**model.fields, "depth": 2},
    moe=dataclasses.replace(model.moe, blocks=(1,)),
  )
  spec = dataclasses.replace(spec, model=model)
  mesh = make_mesh(MeshSpec(), jax.devices()[:1])
  return Training(Model(spec, shape, mesh), IMAGES).model


def shapes_of(row):
  """Rows that differ in other fields have layers of the same shapes."""
  parts = ("router", "backbone", "recipe", "kind", "data")
  parts += ("experts", "width", "mlp")
  fields = tuple(text for text in row.overrides if "model.fields" in text)
  return (row.recipe, fields, *map(row.arguments.get, parts))


ROWS = [*itertools.chain(*tables.TABLES.values())]
FIRST = {shapes_of(row): row for row in reversed(ROWS)}


def modules(row):
  """The modules of training and of evaluations, and the shape of images."""
  spec, shape = check(row.config, row.overrides, devices_of(row))
  arguments = spec.model.arguments()
  return [
    VisionTransformer(**{**arguments, "moe": moe})
    for moe in (spec.model.moe, spec.evaluation_moe)
  ], shape


def millions(model):
  return sum(leaf.size for leaf in jax.tree.leaves(model.params_shape)) / 1e6


def devices_of(row):
  return 1 if row.recipe == "glyphs" else POD


def name(row):
  return " ".join([row.config, *row.overrides])


@pytest.mark.parametrize("table", tables.TABLES)
def test_every_row_can_be_built(table):
  for row in tables.TABLES[table]:
    devices = devices_of(row)
    of_row, shape = modules(row)
    for module in of_row:
      routing(module, shape)  # Is an error where no slot is left.
    if row.parameters:
      model = build(row.config, row.overrides, devices)
      decimals = len(row.parameters.partition(".")[2])
      count = round(millions(model), decimals)
      assert count == float(row.parameters), name(row)
    elif row is FIRST[shapes_of(row)]:
      build_shallow(row.config, row.overrides, devices)


def test_every_row_has_a_smoke_size():
  """One row per kind is enough: rows of a kind differ in numbers only.

  `test_pretrain.py` trains every router of the study at this size.
  """
  kinds = {}
  for row in ROWS:
    arguments = row.arguments
    if arguments["router"] not in ("dense", "softmax_token_choice", "soft"):
      continue
    if row.recipe in ("pretrain", "finetune"):
      kind = (row.recipe, *map(arguments.get, ("router", "recipe", "data")))
      kinds.setdefault(kind, row)
  for row in kinds.values():
    model = build(f"{row.config},smoke=true", devices=8, image=(8, 8, 1))
    assert model.image_shape in ((8, 8, 1), (16, 16, 1)), name(row)
    assert millions(model) < 0.1, name(row)


def test_every_model_has_a_dense_counterpart():
  for name_of_table, rows in tables.TABLES.items():
    if name_of_table == "dense_controls":
      continue
    models: dict[bool, set] = {True: set(), False: set()}
    for row in rows:
      dense = row.arguments["router"] == "dense"
      models[dense].add(tuple(map(row.arguments.get, ("backbone", "recipe"))))
    assert models[True] == models[False]


def test_dense_controls_have_the_flops_of_routed_models():
  rows = {row.name: row for row in ROWS}
  controls = [r for r in rows.values() if r.note.startswith("FLOPs of ")]
  assert len(controls) > 8
  for row in controls:
    routed = rows[row.note.removeprefix("FLOPs of ")]
    flops = []
    for each in (row, routed):
      (module, _), shape = modules(each)
      flops.append(sum(forward_flops(module, shape).values()))
    assert flops[0] == pytest.approx(flops[1], rel=1e-4), row.name


@pytest.mark.parametrize("table", tables.TABLES)
def test_planned_contrasts_name_rows_with_their_metrics(table):
  if tables.TABLES[table].analysis is None:
    return
  analysis = load_analysis(f"configs/tables.py:{table}")
  rows = {row.name: row for row in tables.TABLES[table]}
  for contrast in analysis.contrasts:
    assert sum(contrast.weights.values()) == pytest.approx(0)
    for name_of_row in contrast.weights:
      row = rows[name_of_row]
      config, _ = check(row.config, row.overrides, devices_of(row))
      metrics = {f"{name}/accuracy" for name in config.evaluations}
      metrics |= {f"fewshot/{name}/10shot" for name in config.fewshot}
      assert metrics >= set(itertools.chain(*analysis.end_points.values()))
      assert 10 in config.shots


def test_few_shot_of_a_trained_model():
  arguments = "backbone=B/16,router=softmax_expert_choice"
  trained, _ = check(f"configs/pretrain.py:{arguments}")
  config = load_config(f"configs/fewshot.py:{arguments}")
  assert config.model == trained.model
  assert config.shots == (10,) and len(config.fewshot) == 9
  assert not config.evaluations


@pytest.mark.parametrize("table", tables.TABLES)
def test_rows_differ_and_numbers_have_sources(table):
  rows = tables.TABLES[table].rows
  assert len({name(row) for row in rows}) == len(rows)
  for row in rows:
    assert bool(row.expected or row.parameters) == bool(row.source), name(row)
    assert (row.results == tables.NOT_PUBLISHED) == (not row.source), name(row)


def test_the_study_covers_all_combinations():
  rows = tables.TABLES["study"]
  moe = [load_config(row.config, row.overrides).model.moe for row in rows]
  assert {m.router for m in moe} == {"dense", *tables.ROUTERS}
  assert {m.options["num_experts"] for m in moe if m.options} == {32}
  choices = {
    (m.router, m.options["num_selected_experts"], m.options["batch_priority"])
    for m in moe
    if m.router in tables.TOKEN_CHOICE
  }
  assert len(choices) == 2 * 2 * 2
  weights = {
    (m.router, m.options["importance_loss_weight"])
    for m in moe
    if m.router in tables.TOKEN_CHOICE
  }
  assert weights == {
    ("softmax_token_choice", 0.005),
    ("sinkhorn_token_choice", 0.005),
    ("sinkhorn_token_choice", 0.0),
  }
  capacities = {
    (m.router, m.options["capacity_factor"], m.group_images)
    for m in moe
    if m.router in tables.EXPERT_CHOICE
  }
  assert len(capacities) == 3 * 2 * 2
  assert not any(row.expected for row in rows)


def test_fine_tuning_keeps_the_slots_of_a_soft_router():
  for arguments in ("backbone=B/32", "backbone=S/16,recipe=softmoe"):
    arguments = f"router=soft,capacity=2,{arguments}"
    before = build_shallow(f"configs/pretrain.py:{arguments}")
    after = build_shallow(f"configs/finetune.py:start=DIR,{arguments}")
    slots = [
      model.params_shape["Encoder"]["encoderblock_1"]["Moe"]["Router"]["mu"]
      for model in (before, after)
    ]
    assert before.image_shape < after.image_shape
    assert slots[0].shape == slots[1].shape


def test_a_table_is_printed_as_commands():
  about, _, _, _, first, *_ = tables.markdown("soft_moe_9").splitlines()
  assert about == "2308.00951, Table 9: routers on JFT-4B, 300,000 steps."
  assert "router=dense,backbone=B/32,recipe=softmoe" in first
  assert "--config.train.num_steps=300000" in first
  assert "JFT precision@1 48.0%, ImageNet 10-shot 63.4%" in first
  assert "2308.00951" in first
  _, _, _, _, *rows = tables.markdown("study").splitlines()
  assert rows and all("| not published |" in _squeezed(row) for row in rows)


def test_tables_say_what_they_are_and_print_the_actual_capacity():
  overview = tables.overview()
  for name, table in tables.TABLES.items():
    assert f"{name}\n  {table.about[:60]}" in overview
    assert table.about.startswith(("Of no paper", "2", "The comparison of"))
  for config in ("pretrain_laion.py", "eee_paper", "randaug_medium"):
    assert config in overview.partition("Without a counterpart here:")[2]
  _, _, _, _, first, *_ = tables.markdown("imagenet1k").splitlines()
  assert "| 1.08 in training, 4 in evaluation |" in _squeezed(first)
  assert "ILSVRC2012 validation 73.1%" in first
  row = tables.pretrain(backbone="B/32", router="softmax_expert_choice")
  assert tables.actual_capacity(row) == "1.28"  # One image has 50 tokens.


def _squeezed(text):
  return re.sub(" +", " ", text)


def test_a_mistyped_table_is_an_error(capsys):
  with pytest.raises(SystemExit, match="2"):
    tables.main(["glyphs_gird"])
  error = capsys.readouterr().err
  assert "error: tables" in error and "Did you mean 'glyphs_grid'?" in error


def test_a_closed_pipe_ends_the_program_silently():
  command = [sys.executable, "-m", "configs.tables", "soft_moe_9"]
  pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
  pipes["pipesize"] = 4096  # Less than the table.
  with subprocess.Popen(command, **pipes) as process:
    process.stdout.readline()
    process.stdout.close()
    assert process.stderr.read() == b""
