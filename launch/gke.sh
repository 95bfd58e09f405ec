#!/usr/bin/env bash
# A run on a TPU slice of a GKE cluster, as a JobSet.
set -euo pipefail
# shellcheck source=launch/lib.sh
source "$(dirname "$0")/lib.sh"

usage() {
  cat << 'END'
Usage: launch/gke.sh ACTION --name=NAME [OPTIONS] [-- COMMAND...]

Actions:
  render  print the manifest that create and run would apply
  create  the same as run: the cluster starts the job when it has the slice
  run     apply the manifest
  follow  print the log of host 0 as it grows
  resume  start the job anew; it goes on from its last checkpoint
  delete  end the job and give the slice back

Options:
  --name=NAME       of the job: letters, digits and dashes
  --topology=T      the slice, as v5e:4x4 or v5p:2x2x4
  --image=IMAGE     a container with this project installed with extras `tpu`
                    and `gcs`
  --restarts=N      how often a failed job is started again; 10 if not given
  --env=NAME=VALUE  a variable of the hosts' environment, such as
                    TFDS_DATA_DIR=gs://BUCKET/tfds; may be given several times;
                    not for secrets
  --dry-run         print the commands instead of running them
  --help            print this

COMMAND is that of `python -m vmoe_study`; its workdir must be one that all
hosts reach, such as gs://BUCKET/RUN. render, create, run and resume need
--topology, --image and COMMAND. kubectl must point at the cluster, and JobSet
be installed there.

Example:
  launch/gke.sh run --name=moe --topology=v5e:4x4 --image=REGISTRY/vmoe \
    -- train --config=configs/pretrain.py:backbone=B/16 \
    --config.mesh.expert=16 --workdir=gs://my-bucket/moe
END
}

accelerator() {
  case "$1" in
    v4) echo tpu-v4-podslice ;;
    v5e) echo tpu-v5-lite-podslice ;;
    v5p) echo tpu-v5p-slice ;;
    v6e) echo tpu-v6e-slice ;;
    *) fail "--topology: chip '$1' must be v4, v5e, v5p or v6e" ;;
  esac
}

# A word as YAML, which JSON is.
json_string() {
  local word="${1//\\/\\\\}"
  echo "\"${word//\"/\\\"}\""
}

json_list() {
  local quoted=() argument
  for argument; do
    quoted+=("$(json_string "$argument")")
  done
  (IFS=, && echo "[${quoted[*]}]")
}

# Words NAME=VALUE as the `env` of a container.
json_env() {
  local entries=() word value
  for word; do
    value="$(json_string "${word#*=}")"
    entries+=("{\"name\": \"${word%%=*}\", \"value\": $value}")
  done
  (IFS=, && echo "[${entries[*]}]")
}

render() {
  need "$topology" --topology
  need "$image" --image
  need_number "$restarts" --restarts
  check_env "${env[@]}"
  need_command
  local shape="${topology#*:}" kind chips manifest
  [[ "$shape" =~ ^[1-9][0-9]*(x[1-9][0-9]*)+$ ]] ||
    fail "--topology=$topology: must be CHIP:SHAPE, as v5e:4x4"
  kind="$(accelerator "${topology%%:*}")"
  chips="$((${shape//x/*}))"
  manifest="$(< "$(dirname "$0")/gke_jobset.yaml")"
  manifest="${manifest//@NAME@/"$name"}"
  manifest="${manifest//@RESTARTS@/"$restarts"}"
  manifest="${manifest//@HOSTS@/"$(((chips + 3) / 4))"}"
  manifest="${manifest//@CHIPS@/"$((chips < 4 ? chips : 4))"}"
  manifest="${manifest//@ACCELERATOR@/"$kind"}"
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

name="" topology="" image="" restarts=10 env=()
read_action "name= topology= image= restarts= env=" "$@"
[[ "$name" =~ ^[a-z]([a-z0-9-]*[a-z0-9])?$ ]] ||
  fail "--name=$name: must be small letters, digits and dashes"
host_0="jobset.sigs.k8s.io/jobset-name=$name"
host_0+=",batch.kubernetes.io/job-completion-index=0"

case "$action" in
  render) render ;;
  create | run) run ;;
  follow) execute kubectl logs -f -l "$host_0" ;;
  resume) delete && run ;;
  delete) delete ;;
  *) fail "action '$action': must be render, create, run, follow, resume or \
delete; see --help" ;;
esac
