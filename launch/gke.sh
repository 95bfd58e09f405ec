#!/usr/bin/env bash
# A run on TPU slices of a GKE cluster, as a JobSet.
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
  follow  print the log of one host as it grows
  resume  delete the job and start it again, from its last checkpoint
  delete  end the job and release the slices

Options:
  --name=NAME       name of the job: letters, digits and dashes
  --topology=T      the slice, such as v5e:4x4 or v5p:2x2x4
  --slices=N        number of such slices, each in a node pool of its own; 1 if
                    not given
  --image=IMAGE     container image with this project and its extras `tpu` and
                    `gcs` installed
  --restarts=N      number of restarts after failures; 10 if not given.
                    Preemptions and other requests to stop do not count
  --spot            on spot nodes
  --reservation=R   on nodes of reservation R
  --flex-start      on flex-start nodes
  --queue=QUEUE     the local queue of Kueue that admits the job
  --service-account=NAME
                    Kubernetes service account of the pods
  --host-network    pods use the network of their nodes, which is faster between
                    slices
  --slice=N         slice whose log `follow` prints; 0 if not given
  --host=N          host of that slice; 0 if not given
  --env=NAME=VALUE  a variable of the hosts' environment, such as
                    TFDS_DATA_DIR=gs://BUCKET/tfds; may be given several times;
                    not for secrets
  --yes             delete without asking; otherwise resume and delete ask, or
                    refuse if there is no terminal
  --no-check        do not check COMMAND: for an image whose project or configs
                    are not those of this folder
  --dry-run         print the commands instead of running them
  --help            print this

COMMAND is a command of `python -m vmoe_study`; its workdir must be a URL that
all hosts can access, such as gs://BUCKET/RUN. render, create, run and resume
need --topology, --image and COMMAND. kubectl must point at the cluster, and
JobSet must be installed there.

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
    tpu7x) accelerator=tpu7x ;;
    *) fail "--topology=$topology: chip '$chip' must be v4, v5e, v5p, v6e or \
tpu7x" ;;
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
  need_number "$slices" --slices
  ((slices == 1 || chips > 4)) || fail "--slices=$slices: must be 1 for \
$topology, which is one host. Choose larger slices"
  at_most_one --spot "$spot" --reservation "$reservation" \
    --flex-start "$flex_start"
  local word="[a-z0-9]([a-z0-9.-]*[a-z0-9])?"
  need_kubernetes_name "$queue" --queue
  need_kubernetes_name "$service_account" --service-account
  [[ -z "$reservation" ]] || need_match "$reservation" --reservation \
    "$word" "the name of a reservation"
  need_command
  check_folders
  [[ -z "$no_check" ]] || return 0
  check_config_file "$launch/.." "Give a path in this project, which \
launch/Dockerfile copies into the image; --no-check if the image has others"
  check_command "$launch/.."
}

# Checks a value that may be empty: need_kubernetes_name VALUE NAME.
need_kubernetes_name() {
  [[ -z "$1" ]] || need_match "$1" "$2" "[a-z0-9]([a-z0-9.-]*[a-z0-9])?" \
    "a name in small letters, digits, dashes and dots"
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

# The labels of the nodes that may run the pods, as JSON.
json_nodes() {
  local label=cloud.google.com entries=()
  entries+=("\"$label/gke-tpu-accelerator\": \"$accelerator\"")
  entries+=("\"$label/gke-tpu-topology\": \"$shape\"")
  [[ -z "$spot" ]] || entries+=("\"$label/gke-spot\": \"true\"")
  [[ -z "$flex_start" ]] || entries+=("\"$label/gke-flex-start\": \"true\"")
  if [[ -n "$reservation" ]]; then
    entries+=("\"$label/reservation-name\": \"$reservation\"")
    entries+=("\"$label/reservation-affinity\": \"specific\"")
  fi
  (IFS=, && echo "{${entries[*]}}")
}

render() {
  local manifest labels="{}" network=false dns=ClusterFirst
  [[ -z "$queue" ]] || labels="{\"kueue.x-k8s.io/queue-name\": \"$queue\"}"
  if [[ -n "$host_network" ]]; then
    network=true dns=ClusterFirstWithHostNet
  fi
  manifest="$(< "$launch/gke_jobset.yaml")"
  manifest="${manifest//@LABELS@/"$labels"}"
  manifest="${manifest//@SLICES@/"$slices"}"
  manifest="${manifest//@NODES@/"$(json_nodes)"}"
  manifest="${manifest//@ACCOUNT@/"${service_account:-default}"}"
  manifest="${manifest//@NETWORK@/"$network"}"
  manifest="${manifest//@DNS@/"$dns"}"
  manifest="${manifest//@NAME@/"$name"}"
  manifest="${manifest//@RESTARTS@/"$restarts"}"
  manifest="${manifest//@HOSTS@/"$(((chips + 3) / 4))"}"
  manifest="${manifest//@CHIPS@/"$((chips < 4 ? chips : 4))"}"
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

name="" topology="" image="" restarts=10 env=() no_check="" slices=1 spot=""
reservation="" flex_start="" queue="" service_account="" host_network=""
slice=0 host=0
read_action "name= topology= slices= image= restarts= spot reservation= \
flex-start queue= service-account= host-network slice= host= env= yes no-check" \
  "$@"

# All checks come before the first command that has an effect.
need_match "$name" --name "[a-z]([a-z0-9-]{0,38}[a-z0-9])?" \
  "small letters, digits and dashes, at most 40"
need_index "$slice" --slice
need_index "$host" --host
labels="jobset.sigs.k8s.io/jobset-name=$name"
labels+=",jobset.sigs.k8s.io/job-index=$slice"
labels+=",batch.kubernetes.io/job-completion-index=$host"
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
  follow) execute kubectl logs -f --tail=100 -l "$labels" ;;
  resume)
    delete
    run
    ;;
  delete) delete ;;
esac
