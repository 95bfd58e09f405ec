#!/usr/bin/env bash
# A run on the GPU nodes of a SLURM cluster.
set -euo pipefail
# shellcheck source=launch/lib.sh
source "$(dirname -- "$0")/lib.sh"

usage() {
  cat << 'END'
Usage: launch/slurm.sh ACTION --name=NAME [OPTIONS] [-- COMMAND...]

Actions:
  create  the same as run: SLURM starts the job when it has the nodes
  run     submit COMMAND, with one process per GPU
  follow  print the log of all processes as it grows; each line begins with
          the number of its process
  resume  submit COMMAND again, after an error or `delete`; it resumes from its
          last checkpoint
  delete  cancel all your jobs of that name

Options:
  --name=NAME       name of the job; its log is NAME.log in this folder
  --nodes=N         number of nodes; 1 if not given
  --gpus=N          GPUs of each node; 8 if not given
  --time=LIMIT      time limit, such as 12:00:00; the cluster's default if not
                    given
  --partition=P     partition; the cluster's default if not given
  --account=A       account to charge; your default if not given
  --qos=Q           quality of service; your default if not given
  --cpus=N          CPUs of each process; if not given, one for each worker of
                    train.num_workers and two more, 14 if that is "auto"
  --mem=SIZE        memory of each node, such as 400G; if not given, 1 GB for
                    each worker, and 8 GB for each GPU
  --yes             delete without asking; otherwise delete asks, or refuses if
                    there is no terminal
  --dry-run         print the commands instead of running them
  --help            print this

COMMAND is a command of `python -m vmoe_study`; all nodes must be able to access
its workdir: an absolute path on a shared file system, or a URL. The job has the
environment of the shell that submits it. SLURM requeues it after a node failure
or a preemption. Two minutes before its time limit the job gets SIGTERM, saves,
and is requeued.

COMMAND is checked before anything else: its name, its options, and its config
with all overrides. This takes a few seconds and needs a Python that has this
project installed; without one, a note says that COMMAND was not checked.

Environment: PYTHON, the interpreter that checks COMMAND (python if not set).

Example:
  launch/slurm.sh run --name=moe --nodes=4 --gpus=8 -- train \
    --config=configs/pretrain.py:backbone=B/16 --config.mesh.expert=32 \
    --workdir=/shared/moe
END
}

# Sets the CPUs and the memory that were not given to what the input needs:
# a worker decodes about 400 images/s and holds less than 1 GB.
read_resources() {
  local workers=12
  [[ ! "$said" =~ num_workers=([0-9]+) ]] || workers="${BASH_REMATCH[1]}"
  cpus="${cpus:-$((workers + 2))}"
  mem="${mem:-$((gpus * (workers + 8)))G}"
}

run() {
  read_resources
  execute sbatch "--job-name=$name" "--output=$name.log" "--nodes=$nodes" \
    "--ntasks-per-node=$gpus" "--gpus-per-node=$gpus" ${time:+"--time=$time"} \
    ${partition:+"--partition=$partition"} ${account:+"--account=$account"} \
    ${qos:+"--qos=$qos"} \
    "--cpus-per-task=$cpus" "--mem=$mem" \
    "$launch/slurm.sbatch" "${command[@]}"
}

name="" nodes=1 gpus=8 time="" partition="" account="" qos="" cpus="" mem=""
read_action "name= nodes= gpus= time= partition= account= qos= cpus= mem= yes" \
  "$@"

# All checks come before the first command that has an effect.
need_match "$name" --name "[A-Za-z0-9][A-Za-z0-9._-]*" \
  "letters, digits, dots, dashes and underscores"
need_number "$nodes" --nodes
need_number "$gpus" --gpus
[[ -z "$time" ]] || need_match "$time" --time \
  "([0-9]+-)?[0-9]+(:[0-9]+){0,2}" "minutes, HOURS:MINUTES:SECONDS or DAYS-HOURS"
[[ -z "$partition" ]] || need_match "$partition" --partition \
  "[A-Za-z0-9][A-Za-z0-9._,-]*" "the names of partitions"
word="[A-Za-z0-9][A-Za-z0-9._-]*"
[[ -z "$account" ]] || need_match "$account" --account "$word" "an account"
[[ -z "$qos" ]] || need_match "$qos" --qos "$word" "a quality of service"
[[ -z "$cpus" ]] || need_number "$cpus" --cpus
[[ -z "$mem" ]] || need_match "$mem" --mem "[1-9][0-9]*[KMGT]?" \
  "a size, such as 400G"
case "$action" in
  create | run | resume)
    need_command
    check_folders shared
    check_command .
    ;;
  follow | delete) refuse_command ;;
  *) fail "action '$action': must be create, run, follow, resume or delete; \
see --help" ;;
esac

case "$action" in
  create | run | resume) run ;;
  follow) execute tail -n 100 -F "$name.log" ;;
  delete)
    confirm "all your jobs of the name $name"
    execute scancel "--name=$name" --me
    ;;
esac
