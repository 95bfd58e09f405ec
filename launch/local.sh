#!/usr/bin/env bash
# Several processes on this machine, as if each were a host.
set -euo pipefail
# shellcheck source=launch/lib.sh
source "$(dirname "$0")/lib.sh"

usage() {
  cat << 'END'
Usage: launch/local.sh [-n PROCESSES] [-d DEVICES] [--dry-run] -- COMMAND...

Runs `python -m vmoe_study COMMAND...` in several processes that form one run,
each with its own fake CPU devices. If one process fails, the others are killed
and its exit code is returned. Ctrl-C and SIGTERM reach all.

  -n PROCESSES  how many; 2 if not given
  -d DEVICES    fake devices of each process; 4 if not given
  --dry-run     print the commands instead of running them
  --help        print this

Environment: PYTHON, the interpreter (python if not set).

Example:
  launch/local.sh -n 2 -d 4 -- train --config=configs/digits.py \
    --config.mesh.expert=4 --workdir=/tmp/digits
END
}

processes=2
devices=4
while (($#)); do
  case "$1" in
    -n) need_number "${2:-}" -n && processes="$2" && shift ;;
    -d) need_number "${2:-}" -d && devices="$2" && shift ;;
    --dry-run) dry_run=true ;;
    --help) usage && exit ;;
    --) shift && break ;;
    *) fail "unknown option $1; see --help" ;;
  esac
  shift
done
(($#)) || fail "no command given after --; see --help"

python="${PYTHON:-python}"
port="$("$python" -c '
import socket
with socket.socket() as free:
  free.bind(("localhost", 0))
  print(free.getsockname()[1])')"
flags="--xla_force_host_platform_device_count=$devices"

pids=()
signal_all() {
  kill "-$1" "${pids[@]}" 2> /dev/null || true
}
# JAX takes SIGTERM for a notice: each process saves and stops by itself.
told=false
trap 'told=true; signal_all TERM' INT TERM

for ((id = 0; id < processes; id++)); do
  command=(env JAX_PLATFORMS=cpu "XLA_FLAGS=$flags"
    "$python" -m vmoe_study "$@" "--coordinator=localhost:$port"
    "--num-processes=$processes" "--process-id=$id")
  if "$dry_run"; then
    execute "${command[@]}"
  else
    "${command[@]}" &
    pids+=("$!")
  fi
done

# Waits for each; 127 says that none is left. The first failure counts.
result=0
while true; do
  code=0
  wait -n || code=$?
  ((code != 127)) || break
  if ((code == 0 || result)) || { "$told" && [[ -n "$(jobs -pr)" ]]; }; then
    continue
  fi
  result=$code
  "$told" || signal_all KILL
done
exit "$result"
