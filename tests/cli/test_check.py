"""`--check`: reads the command line and the config, and does nothing else."""

import pytest

from vmoe_study.cli.main import main

DIGITS = "--config=configs/digits.py"
TABLE = """
import types

def row(name, router):
  config = f"configs/digits.py:router={router}"
  return types.SimpleNamespace(
    name=name, config=config, overrides=(), expected={}, source="", note=""
  )

TABLES = {
  "good": [row("a", "soft")],
  "bad": [row("a", "soft"), row("b", "x")],
}
"""


@pytest.mark.parametrize(
  "words",
  [
    ["train", "--check", DIGITS, "--config.seed=1", "--workdir=gs://b/x"],
    ["evaluate", "--check", "--workdir=gs://b/x", "--config.shots=(1,)"],
    ["bench", "--check", "step", DIGITS],
    ["plan", "--check", DIGITS, "--topology=v5e:4x4"],
    ["report", "--check", "nowhere"],
  ],
)
def test_a_valid_command_line_is_not_run(words, capsys, tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  assert main(words) == 0
  *resources, last = capsys.readouterr().out.splitlines()
  assert last == "The command line is valid."
  # For launch/slurm.sh.
  assert resources == ["num_workers=auto"] * (words[0] == "train")
  assert not [*tmp_path.iterdir()]


@pytest.mark.parametrize(
  "words, message",
  [
    (["trian", "--check"], "invalid choice: 'trian'"),
    (["train", "--check", DIGITS], "--workdir"),
    (["train", "--check", DIGITS, "--workdir=x", "--st=1"], "--st=1"),
    (["train", "--check", f"{DIGITS}:router=x", "--workdir=x"], "router"),
    (["train", "--check", DIGITS, "--workdir=x", "--config.sed=1"], "'seed'"),
    (["evaluate", "--check", "--workdir=x", "--config=no.py"], "no file no.py"),
  ],
)
def test_what_is_wrong_is_said(words, message, capsys):
  try:
    code = main(words)
  except SystemExit as stopped:  # argparse
    code = stopped.code
  assert code == 2
  assert message in capsys.readouterr().err


def test_every_config_of_a_table_is_checked(tmp_path, capsys):
  (tmp_path / "table.py").write_text(TABLE)
  sweep = ["sweep", "--check", f"--root={tmp_path / 'runs'}"]
  assert main([*sweep, f"{tmp_path}/table.py:good"]) == 0
  assert main([*sweep, f"{tmp_path}/table.py:bad"]) == 2
  assert "router=x" in capsys.readouterr().err
  assert main([*sweep, f"{tmp_path}/table.py:ugly"]) == 2
  assert not (tmp_path / "runs").exists()
