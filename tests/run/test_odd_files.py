"""Files of a workdir that hold something else: one sentence, or passed over."""

import json
import math

import pytest

from configs import digits
from vmoe_study.cli.main import main
from vmoe_study.config import parse
from vmoe_study.run import workdir as workdir_lib
from vmoe_study.run.metadata import Metadata
from vmoe_study.run.saved_config import read_config
from vmoe_study.study import results
from vmoe_study.study.task_runner import Task, TaskRunner
from vmoe_study.training.metrics_file import read_metrics

CONFIG = parse(digits.get_config().to_dict()).to_dict()
ROW = b'{"step": 3, "train/loss": 0.5, "num_steps": 3}'
ODD = [
  b"",
  b"[]",
  b"null",
  b"3",
  b'"text"',
  b"{",
  b"\x00\xff\xfe\x80",
  b"[" * 100_000,
  b'{"a":' * 100_000,
  "\ud800".encode("utf-8", "surrogatepass"),
]
ODD_ROWS = [
  *ODD,
  b"{}",
  b'{"step": null}',
  b'{"step": NaN}',
  b'{"step": "3"}',
  b'{"step": [3]}',
  b'{"step": true}',
  b'{"train/loss": 1}',
  ROW[:-5],
]


@pytest.mark.parametrize("odd", ODD_ROWS, ids=lambda odd: repr(odd[:12]))
def test_lines_that_are_no_rows_are_passed_over(tmp_path, odd):
  (tmp_path / "metrics.jsonl").write_bytes(odd + b"\n" + ROW + b"\n" + odd)
  expected = {"step": 3, "train/loss": 0.5, "num_steps": 3}
  assert list(read_metrics(tmp_path)) == [expected]


def test_values_that_are_no_numbers_are_passed_over(tmp_path):
  odd = {"a": None, "b": [1], "c": "1", "d": {}, "e": True, "f": 10**400}
  row = json.dumps({"step": 3, **odd, "loss": 2})
  (tmp_path / "metrics.jsonl").write_text(row)
  [found] = read_metrics(tmp_path)
  assert math.isnan(found.pop("a")) and found == {"step": 3, "loss": 2}


@pytest.mark.parametrize("length", ["null", "Infinity", "0"])
def test_a_sweep_does_not_need_the_length_of_a_run(tmp_path, length):
  row = f'{{"step": 3, "num_steps": {length}}}'
  (tmp_path / "metrics.jsonl").write_text(row)
  TaskRunner([Task("soft", 0, tmp_path, [])], 1, tmp_path)


@pytest.mark.parametrize("odd", ODD, ids=lambda odd: repr(odd[:12]))
def test_a_config_that_is_none(tmp_path, odd):
  path = tmp_path / "config.json"
  path.write_bytes(odd)
  for read in (
    read_config,
    lambda path: results.load([path.parent]),
    lambda path: workdir_lib.check(path.parent, CONFIG),
  ):
    with pytest.raises(ValueError, match=r"config\.json is damaged: .* Remove"):
      read(path)


@pytest.mark.parametrize(
  ("field", "value"),
  [
    ("seed", None),
    ("seed", "0"),
    ("model", []),
    ("model", {"moe": None}),
    ("model", {"moe": {"router": 3, "options": {}, "group_images": 1}}),
    ("model", {"moe": {"router": "soft", "options": 1, "group_images": 1}}),
    ("train", {"batch_size": "64"}),
    ("train", 3),
    ("evaluations", ["test"]),
    ("fewshot", None),
  ],
)
def test_a_config_with_values_of_other_types(tmp_path, field, value, capsys):
  config = {**CONFIG, field: value}
  (tmp_path / "config.json").write_text(json.dumps(config))
  (tmp_path / "metrics.jsonl").write_bytes(ROW)
  (tmp_path / "checkpoints" / "3").mkdir(parents=True)
  assert main(["report", str(tmp_path)]) == 2
  said = capsys.readouterr().err
  assert said.startswith("error: ") and f"{field}" in said
  with pytest.raises(ValueError, match=f"another config:(.|\n)*{field}"):
    workdir_lib.check(tmp_path, CONFIG)


@pytest.mark.parametrize("odd", [*ODD, b'{"seeds": [0], "cells": {"a": 1}}'])
@pytest.mark.parametrize("name", ["sweep.json", "results.json"])
def test_results_that_are_none(tmp_path, name, odd, capsys):
  (tmp_path / name).write_bytes(odd)
  assert main(["report", str(tmp_path)]) == 2
  assert capsys.readouterr().err.count("\n") == 1


@pytest.mark.parametrize(
  "odd",
  [{}, {"config": []}, {"image_shape": [8, 8, 1]}, {"image_shape": 3}]
  + [{"image_shape": [8, 8], "config": {}}, {"image_shape": "abc"}],
)
def test_metadata_that_are_not_of_a_run(odd):
  with pytest.raises(ValueError, match="must be those of a run"):
    Metadata.from_dict(odd)
