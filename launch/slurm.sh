#!/usr/bin/env bash
# A run on the GPU nodes of a SLURM cluster.
set -euo pipefail
# shellcheck source=launch/lib.sh
source "$(dirname "$0")/lib.sh"

usage() {
  cat << 'END'
Usage: launch/slurm.sh ACTION --name=NAME [OPTIONS] [-- COMMAND...]

Actions:
  create  the same as run: SLURM starts the job when it has the nodes
  run     submit COMMAND; process and GPU go together one by one
  follow  print the log as it grows
  resume  submit COMMAND again, after an error or `delete`; it goes on from its
          last checkpoint
  delete  cancel the job

Options:
  --name=NAME       of the job; its log is NAME.log in this folder
  --nodes=N         1 if not given
  --gpus=N          GPUs of each node; 8 if not given
  --time=LIMIT      such as 12:00:00; the cluster's default if not given
  --partition=P     the cluster's default if not given
  --dry-run         print the commands instead of running them
  --help            print this

COMMAND is that of `python -m vmoe_study`; its workdir must be one that all
nodes reach. The job has the environment of the shell that submits it. SLURM
puts it back into its queue after a failure of a node or a preemption; two
minutes before its time limit it gets SIGTERM, saves, and goes back, too.

Example:
  launch/slurm.sh run --name=moe --nodes=4 --gpus=8 -- train \
    --config=configs/pretrain.py:backbone=B/16 --config.mesh.expert=32 \
    --workdir=/shared/moe
END
}

name="" nodes=1 gpus=8 time="" partition=""
read_action "name= nodes= gpus= time= partition=" "$@"
need "$name" --name
need_number "$nodes" --nodes
need_number "$gpus" --gpus

run() {
  need_command
  execute sbatch "--job-name=$name" "--output=$name.log" "--nodes=$nodes" \
    "--ntasks-per-node=$gpus" "--gpus-per-node=$gpus" ${time:+"--time=$time"} \
    ${partition:+"--partition=$partition"} \
    "$(dirname "$0")/slurm.sbatch" "${command[@]}"
}

case "$action" in
  create | run | resume) run ;;
  follow) execute tail -n 100 -F "$name.log" ;;
  delete) execute scancel "--name=$name" --me ;;
  *) fail "action '$action': must be create, run, follow, resume or delete; \
see --help" ;;
esac
