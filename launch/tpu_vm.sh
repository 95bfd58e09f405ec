#!/usr/bin/env bash
# A run on slices of Cloud TPU VMs, by queued resources.
set -euo pipefail
# shellcheck source=launch/lib.sh
source "$(dirname -- "$0")/lib.sh"

usage() {
  cat << 'END'
Usage: launch/tpu_vm.sh ACTION --name=NAME --zone=ZONE [OPTIONS] [-- COMMAND...]

Actions:
  create  request the slices; they wait in a queue until they are granted
  status  print the state of the request
  run     copy this project to every host, install it, and start COMMAND there
          (uv installs a Python, because that of the hosts is too old). Copies
          the files that git tracks, with your edits: `git add` new files first
  follow  print the log of one host as it grows
  stop    ask COMMAND on every host to save and exit; keep the slices
  resume  after a preemption: delete the slices and request them again; then use
          `run` as before
  delete  delete the slices and the request

Options:
  --name=NAME        name of the slice and its request; several slices are
                     called NAME-0, NAME-1, ...
  --zone=ZONE        zone, such as us-west4-a
  --project=PROJECT  gcloud's own default if not given
  --type=TYPE        accelerator type for create and resume: v4-32,
                     v5litepod-16, v5p-32, v6e-16, ...
  --slices=N         number of slices, the same for all actions; 1 if not given
  --spot             cheaper, and may be taken away at any time
  --reserved         use reservations of the project
  --flex-start=TIME  start when there is room, for at most TIME, such as 2d
                     (gcloud alpha)
  --service-account=EMAIL
                     service account of the hosts; the project's default if not
                     given
  --network=NETWORK  and --subnetwork=SUBNETWORK: gcloud's defaults if not given
  --slice=N          slice whose log `follow` prints; 0 if not given
  --host=N           host of that slice; 0 if not given
  --env=NAME=VALUE   a variable of COMMAND's environment on every host, such as
                     TFDS_DATA_DIR=gs://BUCKET/tfds; may be given several times;
                     not for secrets
  --yes              delete without asking; otherwise resume and delete ask, or
                     refuse if there is no terminal
  --dry-run          print the commands instead of running them
  --help             print this

COMMAND is a command of `python -m vmoe_study`. It resumes from the checkpoints
in its workdir, so the same `run` starts and resumes. The workdir must be a URL
that all hosts can access, such as gs://BUCKET/RUN.

COMMAND is checked before anything else: its name, its options, and its config
with all overrides, in a copy of the files that the hosts will get. This takes a
few seconds and needs a Python that has this project installed; without one, a
note says that COMMAND was not checked.

Environment: PYTHON, the interpreter that checks COMMAND (python if not set).

Example:
  launch/tpu_vm.sh run --name=moe --zone=us-west4-a -- train \
    --config=configs/pretrain.py:backbone=B/16 --config.mesh.expert=16 \
    --workdir=gs://my-bucket/moe
END
}

# Reads --type into `version`, that of the hosts' software.
read_type() {
  local sizes="1|4|8|16|32|64|128|256"
  need_match "$type" --type "(v4|v5litepod|v5p|v6e)-[1-9][0-9]*" \
    "v4-N, v5litepod-N, v5p-N or v6e-N"
  case "$type" in
    v4-*) version=tpu-ubuntu2204-base ;;
    v5litepod-*) version=v2-alpha-tpuv5-lite ;;
    v5p-*) version=v2-alpha-tpuv5 ;;
    v6e-*) version=v2-alpha-tpuv6e ;;
  esac
  case "$type" in
    v4-* | v5p-*)
      ((${type#*-} % 8 == 0)) || fail "--type=$type: must have a multiple of 8 \
cores, which a host has"
      ;;
    *)
      need_match "$type" --type "${type%-*}-($sizes)" \
        "${type%-*}- and one of ${sizes//|/, }"
      ;;
  esac
}

create() {
  local nodes=("--node-id=$name") kind=("${queue[@]}")
  ((slices == 1)) || nodes=("--node-count=$slices" "--node-prefix=$name")
  [[ -z "$flex_start" ]] || kind=(gcloud alpha "${queue[@]:1}")
  execute "${kind[@]}" create "$name" "${where[@]}" "${nodes[@]}" \
    "--accelerator-type=$type" "--runtime-version=$version" ${spot:+--spot} \
    ${reserved:+--reserved} \
    ${flex_start:+--provisioning-model=flex-start} \
    ${flex_start:+"--max-run-duration=$flex_start"} \
    ${service_account:+"--service-account=$service_account"} \
    ${network:+"--network=$network"} ${subnetwork:+"--subnetwork=$subnetwork"}
}

# The names of the slices, one a line.
list_slices() {
  local number
  if ((slices == 1)); then
    echo "$name"
    return
  fi
  for ((number = 0; number < slices; number++)); do
    echo "$name-$number"
  done
}

delete() {
  execute "${queue[@]}" delete "$name" "${where[@]}" --force --quiet
}

# Runs a shell command on hosts of a slice: on_hosts SLICE WORKERS COMMAND.
on_hosts() {
  execute gcloud compute tpus tpu-vm ssh "$1" "${where[@]}" \
    "--worker=$2" "--command=$3"
}

# Runs a shell command on all hosts of all slices: on_all_hosts COMMAND.
on_all_hosts() {
  local node
  for node in $(list_slices); do
    on_hosts "$node" all "$1"
  done
}

# Lists the files to copy, separated by NUL: those that git tracks and that
# still exist, or without git those that .dockerignore does not exclude.
list_files() {
  local path
  if git ls-files --error-unmatch setup.py > /dev/null 2>&1; then
    git ls-files -z
  else
    sed -n 's/^!//p' .dockerignore | tr '\n' '\0'
  fi | while IFS= read -r -d '' path; do
    [[ ! -e "$path" && ! -L "$path" ]] || printf '%s\0' "$path"
  done
}

# Copies the files that the hosts will get into `folder`/project.
copy_files() {
  folder="$(mktemp -d)"
  trap 'rm -rf "$folder"' EXIT
  mkdir "$folder/project"
  cd "$launch/.."
  list_files > "$folder/files"
  tar -cf - --exclude=__pycache__ --null -T "$folder/files" |
    tar -xf - -C "$folder/project"
}

# Checks all values that are passed to the hosts.
check_run() {
  check_env "${env[@]}"
  need_command
  check_folders
  copy_files
  check_config_file "$folder/project" "Give a path in this project; hosts get \
what git tracks: git add a new file first"
  check_command "$folder/project"
}

run() {
  local archive=vmoe_study.tar.gz node
  execute tar -czf "$folder/$archive" -C "$folder/project" \
    --null -T "$folder/files"
  for node in $(list_slices); do
    execute gcloud compute tpus tpu-vm scp "$folder/$archive" \
      "$node:$archive" "${where[@]}" --worker=all
  done
  on_all_hosts "set -e
if pgrep -F train.pid -f vmoe_study > /dev/null 2>&1; then
echo 'A command is running here; stop it first.' >&2
exit 1
fi
mkdir -p vmoe_study
tar -xzf $archive -C vmoe_study
cd vmoe_study
python3 -m pip install -q --user uv
python3 -m uv venv -q --python 3.11 --allow-existing ~/venv
python3 -m uv pip install -q --python ~/venv/bin/python -e '.[tpu,gcs]'
setsid nohup env ${env[*]@Q} ~/venv/bin/python -m vmoe_study ${command[*]@Q} \
> ~/train.log 2>&1 < /dev/null &
echo \$! > ~/train.pid"
}

name="" zone="" type="" project="" spot="" env=() slices=1 reserved=""
flex_start="" service_account="" network="" subnetwork="" slice=0 host=0
read_action "name= zone= project= type= slices= spot reserved flex-start= \
service-account= network= subnetwork= slice= host= env= yes" "$@"

# All checks come before the first command that has an effect.
word="[a-z]([a-z0-9-]*[a-z0-9])?"
need_match "$name" --name "$word" "small letters, digits and dashes"
need_match "$zone" --zone "$word" "a zone, such as us-west4-a"
[[ -z "$project" ]] || need_match "$project" --project \
  "[a-z][a-z0-9.:-]*[a-z0-9]?" "the ID of a project"
[[ -z "$type" ]] || read_type
need_number "$slices" --slices
need_index "$slice" --slice
need_index "$host" --host
((slice < slices)) || fail "--slice=$slice: must be below --slices=$slices"
at_most_one --spot "$spot" --reserved "$reserved" --flex-start "$flex_start"
[[ -z "$flex_start" ]] || need_match "$flex_start" --flex-start \
  "[1-9][0-9]*[dhms]" "a time, such as 2d or 12h"
[[ -z "$service_account" ]] || need_match "$service_account" --service-account \
  "[a-z0-9][a-z0-9.-]*@[a-z0-9.-]+" "an e-mail address"
[[ -z "$network" ]] || need_match "$network" --network "$word" "a network"
[[ -z "$subnetwork" ]] || need_match "$subnetwork" --subnetwork "$word" \
  "a subnetwork"
case "$action" in
  create | resume)
    need "$type" --type
    refuse_command
    ;;
  run) check_run ;;
  status | follow | stop | delete) refuse_command ;;
  *) fail "action '$action': must be create, status, run, follow, stop, \
resume or delete; see --help" ;;
esac
where=("--zone=$zone" ${project:+"--project=$project"})
queue=(gcloud compute tpus queued-resources)
case "$action" in
  resume | delete)
    owner="${project:-the default of gcloud}"
    what="the slice $name and its request"
    ((slices == 1)) || what="the $slices slices and the request $name"
    confirm "$what, zone $zone, project $owner, and all that runs there"
    ;;
esac

case "$action" in
  create) create ;;
  status) execute "${queue[@]}" describe "$name" "${where[@]}" ;;
  run) run ;;
  follow)
    on_hosts "$(list_slices | sed -n "$((slice + 1))p")" "$host" \
      "tail -n 100 -F train.log"
    ;;
  stop) on_all_hosts "pkill -TERM -F train.pid -f vmoe_study" ;;
  resume)
    delete
    create
    ;;
  delete) delete ;;
esac
