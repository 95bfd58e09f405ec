#!/usr/bin/env bash
# A run on a TPU slice of a GKE cluster, as a JobSet.
set -euo pipefail
# shellcheck source=launch/lib.sh
source "$(dirname -- "$0")/lib.sh"

usage() {
  cat << 'END'
Usage: launch/gke.sh ACTION --name=NAME [OPTIONS] [-- COMMAND...]

Actions:
  render  print the manifest that create and run would apply
  create  the same as run: the cluster starts the job when it has the slice
  run     apply the manifest
  follow  print the log of host 0 as it grows
  resume  delete the job and start it again, from its last checkpoint
  delete  end the job and give the slice back

Options:
  --name=NAME       of the job: letters, digits and dashes
  --topology=T      the slice, as v5e:4x4 or v5p:2x2x4
  --image=IMAGE     a container with this project installed with extras `tpu`
                    and `gcs`
  --restarts=N      how often a failed job is restarted; 10 if not given
  --env=NAME=VALUE  a variable of the hosts' environment, such as
                    TFDS_DATA_DIR=gs://BUCKET/tfds; may be given several times;
                    not for secrets
  --yes             delete without asking; resume and delete ask on a terminal,
                    and elsewhere refuse
  --no-check        do not check COMMAND: for an image whose project or configs
                    are not those of this folder
  --dry-run         print the commands instead of running them
  --help            print this

COMMAND is that of `python -m vmoe_study`; its workdir must be a URL that all
hosts reach, such as gs://BUCKET/RUN. render, create, run and resume need
--topology, --image and COMMAND. kubectl must point at the cluster, and JobSet
be installed there.

COMMAND is checked before anything else: its name, its options, and its config
with all overrides. This takes a few seconds and needs a Python that has this
project installed; without one, a note says that COMMAND was not checked.

Environment: PYTHON, the interpreter that checks COMMAND (python if not set).

Example:
  launch/gke.sh run --name=moe --topology=v5e:4x4 --image=REGISTRY/vmoe \
    -- train --config=configs/pretrain.py:backbone=B/16 \
    --config.mesh.expert=16 --workdir=gs://my-bucket/moe
END
}

# Reads --topology into `accelerator`, `shape` and `chips`.
read_topology() {
  local chip="${topology%%:*}" flat="1x1|2x2|2x4|4x4|4x8|8x8|8x16|16x16"
  need_match "$topology" --topology "[a-z0-9]+:[1-9][0-9]*(x[1-9][0-9]*)+" \
    "CHIP:SHAPE, as v5e:4x4"
  shape="${topology#*:}"
  chips="$((${shape//x/*}))"
  case "$chip" in
    v4) accelerator=tpu-v4-podslice ;;
    v5e) accelerator=tpu-v5-lite-podslice ;;
    v5p) accelerator=tpu-v5p-slice ;;
    v6e) accelerator=tpu-v6e-slice ;;
    *) fail "--topology=$topology: chip '$chip' must be v4, v5e, v5p or v6e" ;;
  esac
  case "$chip" in
    v5e | v6e)
      need_match "$topology" --topology "$chip:($flat)" \
        "one of $chip:${flat//|/, }"
      ;;
    *) is_deep || fail "--topology=$topology: must be $chip:AxBxC, where each \
number is 2 or a multiple of 4, or $chip:2x2x1" ;;
  esac
}

# Whether `shape` is that of a slice with three dimensions.
is_deep() {
  local axes axis
  IFS=x read -r -a axes <<< "$shape"
  ((${#axes[@]} == 3)) || return 1
  [[ "$shape" != 2x2x1 ]] || return 0
  for axis in "${axes[@]}"; do
    ((axis == 2 || axis % 4 == 0)) || return 1
  done
}

# Checks all values that go into a manifest.
check_manifest() {
  check_env "${env[@]}"
  read_topology
  need_match "$image" --image "[A-Za-z0-9][A-Za-z0-9._/:@-]*" \
    "the name of a container image"
  need_number "$restarts" --restarts
  need_command
  check_folders
  [[ -z "$no_check" ]] || return 0
  check_config_file "$launch/.." "Give a path in this project, which \
launch/Dockerfile copies into the image; --no-check if the image has others"
  check_command "$launch/.."
}

# A word as a JSON string, which is valid YAML.
json_string() {
  local word="${1//\\/\\\\}"
  word="${word//\"/\\\"}"
  word="${word//$'\n'/\\n}"
  echo "\"${word//$'\t'/\\t}\""
}

json_list() {
  local quoted=() argument
  for argument; do
    quoted+=("$(json_string "$argument")")
  done
  (IFS=, && echo "[${quoted[*]}]")
}

# Converts words NAME=VALUE to the `env` of a container.
json_env() {
  local entries=() word value
  for word; do
    value="$(json_string "${word#*=}")"
    entries+=("{\"name\": \"${word%%=*}\", \"value\": $value}")
  done
  (IFS=, && echo "[${entries[*]}]")
}

render() {
  local manifest
  manifest="$(< "$launch/gke_jobset.yaml")"
  manifest="${manifest//@NAME@/"$name"}"
  manifest="${manifest//@RESTARTS@/"$restarts"}"
  manifest="${manifest//@HOSTS@/"$(((chips + 3) / 4))"}"
  manifest="${manifest//@CHIPS@/"$((chips < 4 ? chips : 4))"}"
  manifest="${manifest//@ACCELERATOR@/"$accelerator"}"
  manifest="${manifest//@SHAPE@/"$shape"}"
  manifest="${manifest//@IMAGE@/"$image"}"
  manifest="${manifest//@ENV@/"$(json_env "${env[@]}")"}"
  manifest="${manifest//@COMMAND@/"$(json_list python -m vmoe_study "${command[@]}")"}"
  echo "$manifest"
}

run() {
  local manifest
  manifest="$(render)"
  if "$dry_run"; then
    echo "$manifest"
  fi
  execute kubectl apply -f - <<< "$manifest"
}

delete() {
  execute kubectl delete jobset "$name" --ignore-not-found
}

name="" topology="" image="" restarts=10 env=() no_check=""
read_action "name= topology= image= restarts= env= yes no-check" "$@"

# All checks come before the first command that has an effect.
need_match "$name" --name "[a-z]([a-z0-9-]{0,38}[a-z0-9])?" \
  "small letters, digits and dashes, at most 40"
host_0="jobset.sigs.k8s.io/jobset-name=$name"
host_0+=",batch.kubernetes.io/job-completion-index=0"
case "$action" in
  render | create | run | resume) check_manifest ;;
  follow | delete) refuse_command ;;
  *) fail "action '$action': must be render, create, run, follow, resume or \
delete; see --help" ;;
esac
case "$action" in
  resume | delete) confirm "the JobSet $name of the cluster and namespace that \
kubectl points at" ;;
esac

case "$action" in
  render) render ;;
  create | run) run ;;
  follow) execute kubectl logs -f -l "$host_0" ;;
  resume)
    delete
    run
    ;;
  delete) delete ;;
esac
