"""The commands `prepare` and `bench input`, as a user runs them."""

import argparse
import json
import os
import re
import subprocess
import sys

import pytest

from vmoe_study.cli import bench_input, prepare


def parse(command, *words):
  """Parses as the command line would."""
  parser = argparse.ArgumentParser()
  command.add_arguments(parser)
  return parser.parse_args(words)


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
  """A folder prepared by the command itself."""
  folder = str(tmp_path_factory.mktemp("tfds"))
  args = parse(prepare, "digits", "jft_like/64", f"--data-dir={folder}")
  assert prepare.run(args) == 0
  return folder


def test_prepare_prints_what_is_there(data_dir, capsys):
  prepare.run(parse(prepare, "digits", f"--data-dir={data_dir}"))
  line = capsys.readouterr().out
  assert "digits: train 1,438, test 359 examples in" in line


def test_a_home_folder_in_the_environment(tmp_path):
  """As launch/tpu_vm.sh passes it on with --env=TFDS_DATA_DIR=~/tfds."""

  def prepare_in(folder):
    return subprocess.run(
      [sys.executable, "-m", "vmoe_study", "prepare", "digits"],
      cwd=tmp_path,
      env=os.environ | {"HOME": str(tmp_path / "me"), "TFDS_DATA_DIR": folder},
      capture_output=True,
      text=True,
    )

  done = prepare_in("~/tfds")
  assert done.returncode == 0, done.stderr
  assert (tmp_path / "me/tfds/digits").is_dir()
  assert not (tmp_path / "~").exists()
  done = prepare_in("")
  assert done.returncode == 2
  assert "error: TFDS_DATA_DIR='': must be a path" in done.stderr


def test_bench_prints_every_rate(data_dir, tmp_path, capsys):
  out = tmp_path / "rates.json"
  options = ["--name=jft_like/64", f"--data-dir={data_dir}", "--workers=1"]
  sizes = ["--batch-size=4", "--num-batches=3", "--rounds=2", f"--out={out}"]
  assert bench_input.run(parse(bench_input, *options, *sizes)) == 0
  printed = capsys.readouterr().out
  assert "64 images; the first 64 have" in printed
  row = printed.splitlines()[-1]
  # Local files: no request, no byte of a request.
  rates = r"\| +1 \| +16( \| +\d+){3}( \| +\d+\.\d\d){3}"
  assert re.fullmatch(rates + r" \| +0\.000 \| +0 \| +[01]\.\d\d \|", row), row
  record = json.loads(out.read_text())
  assert record["corpus"].startswith("jft_like/64 train: 64 images")
  assert "inception_crop(224)" in record["train_ops"]
  (rates,) = record["rows"]
  assert rates["workers"] == rates["speedup"] == 1
  assert rates["train/decode"] == rates["train"] / rates["decode"]
  assert len(rates["rounds"]) == 2
  assert {"decode", "train", "eval"} == set(rates["rounds"][0])


def test_bench_needs_data(tmp_path):
  args = parse(bench_input, f"--data-dir={tmp_path}")
  with pytest.raises(FileNotFoundError, match="prepare jft_like/2000"):
    bench_input.run(args)


@pytest.mark.parametrize(
  ("name", "meant"),
  [("digitz", "digits"), ("jft_lik/20", "jft_like"), ("cifar1O", "cifar10")],
)
def test_a_mistyped_name_is_not_sent_to_prepare(name, meant, tmp_path):
  args = parse(bench_input, f"--name={name}", f"--data-dir={tmp_path}")
  with pytest.raises(FileNotFoundError, match=f"Did you mean '{meant}'"):
    bench_input.run(args)


def test_every_option_of_bench_input_is_explained():
  parser = argparse.ArgumentParser()
  bench_input.add_arguments(parser)
  assert [a.dest for a in parser._actions if not a.help] == []
