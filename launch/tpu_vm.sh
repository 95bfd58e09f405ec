#!/usr/bin/env bash
# A run on a slice of Cloud TPU VMs, by queued resources.
set -euo pipefail
# shellcheck source=launch/lib.sh
source "$(dirname "$0")/lib.sh"

usage() {
  cat << 'END'
Usage: launch/tpu_vm.sh ACTION --name=NAME --zone=ZONE [OPTIONS] [-- COMMAND...]

Actions:
  create  request the slice; it waits in a queue until it is granted
  status  say how far the request is
  run     copy this project to every host, install it, and start COMMAND there
          (the hosts bring an old Python, so that uv fetches one)
  follow  print the log of host 0 as it grows
  resume  after a preemption: request the slice anew; then `run` as before
  delete  give the slice and the request back

Options:
  --name=NAME        of the slice and its request
  --zone=ZONE        such as us-west4-a
  --project=PROJECT  gcloud's own default if not given
  --type=TYPE        accelerator type for create and resume: v4-32,
                     v5litepod-16, v5p-32, v6e-16, ...
  --spot             cheaper, and may be taken away at any time
  --dry-run          print the commands instead of running them
  --help             print this

COMMAND is that of `python -m vmoe_study`. It finds checkpoints in its workdir
and goes on from them, so that the same `run` starts and resumes. The workdir
must be one that all hosts reach, such as gs://BUCKET/RUN.

Example:
  launch/tpu_vm.sh run --name=moe --zone=us-west4-a -- train \
    --config=configs/pretrain.py:backbone=B/16 --config.mesh.expert=16 \
    --workdir=gs://my-bucket/moe
END
}

runtime_version() {
  case "$1" in
    v4-*) echo tpu-ubuntu2204-base ;;
    v5litepod-*) echo v2-alpha-tpuv5-lite ;;
    v5p-*) echo v2-alpha-tpuv5 ;;
    v6e-*) echo v2-alpha-tpuv6e ;;
    *) fail "--type=$1: must be v4-N, v5litepod-N, v5p-N or v6e-N" ;;
  esac
}

name="" zone="" type="" project="" spot=""
read_action "name= zone= project= type= spot" "$@"
need "$name" --name
need "$zone" --zone
where=("--zone=$zone" ${project:+"--project=$project"})
queue=(gcloud compute tpus queued-resources)

create() {
  need "$type" --type
  local version
  version="$(runtime_version "$type")"
  execute "${queue[@]}" create "$name" "${where[@]}" "--node-id=$name" \
    "--accelerator-type=$type" "--runtime-version=$version" ${spot:+--spot}
}

delete() {
  execute "${queue[@]}" delete "$name" "${where[@]}" --force --quiet
}

# Runs a shell command on hosts: on_hosts WORKERS COMMAND.
on_hosts() {
  execute gcloud compute tpus tpu-vm ssh "$name" "${where[@]}" \
    "--worker=$1" "--command=$2"
}

run() {
  need_command
  local root archive
  root="$(cd "$(dirname "$0")/.." && pwd)"
  archive="vmoe_study.tar.gz"
  execute tar -czf "/tmp/$archive" -C "$root" --exclude=.git .
  execute gcloud compute tpus tpu-vm scp "/tmp/$archive" "$name:$archive" \
    "${where[@]}" --worker=all
  on_hosts all "set -e
mkdir -p vmoe_study && tar -xzf $archive -C vmoe_study && cd vmoe_study
python3 -m pip install -q --user uv
python3 -m uv venv -q --python 3.11 --allow-existing ~/venv
python3 -m uv pip install -q --python ~/venv/bin/python -e '.[tpu]'
setsid nohup ~/venv/bin/python -m vmoe_study ${command[*]@Q} \
> ~/train.log 2>&1 < /dev/null &"
}

case "$action" in
  create) create ;;
  status) execute "${queue[@]}" describe "$name" "${where[@]}" ;;
  run) run ;;
  follow) on_hosts 0 "tail -n 100 -F train.log" ;;
  resume) delete && create ;;
  delete) delete ;;
  *) fail "action '$action': must be create, status, run, follow, resume or \
delete; see --help" ;;
esac
