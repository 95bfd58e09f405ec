#!/usr/bin/env bash
# Several processes on this machine, as if each were a host.
set -euo pipefail

usage() {
  cat << 'END'
Usage: launch/local.sh [-n PROCESSES] [-d DEVICES] [--dry-run] -- COMMAND...

Runs `python -m vmoe_study COMMAND...` in several processes that form one run,
each with its own fake CPU devices. If one process fails, the others are
stopped, and its exit code is returned. Ctrl-C and SIGTERM reach all.

  -n PROCESSES  how many; 2 if not given
  -d DEVICES    fake devices of each process; 4 if not given
  --dry-run     print the commands instead of running them
  --help        print this

Environment: PYTHON, the interpreter (python if not set).

Example:
  launch/local.sh -n 2 -d 4 -- train --config=configs/digits.py \
    --workdir=/tmp/digits --config.mesh.expert=4
END
}

fail() {
  echo "local.sh: $1" >&2
  exit 2
}

processes=2
devices=4
dry_run=false
while (($#)); do
  case "$1" in
    -n) processes="${2:-}" ;;
    -d) devices="${2:-}" ;;
    --dry-run) dry_run=true ;;
    --help) usage && exit ;;
    --) break ;;
    *) fail "unknown option $1; see --help" ;;
  esac
  case "$1" in
    -n | -d) shift 2 || fail "$1 needs a number" ;;
    *) shift ;;
  esac
done
shift || true
[[ "$processes" =~ ^[1-9][0-9]*$ ]] || fail "-n $processes: not a number above 0"
[[ "$devices" =~ ^[1-9][0-9]*$ ]] || fail "-d $devices: not a number above 0"
(($#)) || fail "no command given after --; see --help"

python="${PYTHON:-python}"
port="$("$python" -c '
import socket
with socket.socket() as free:
  free.bind(("localhost", 0))
  print(free.getsockname()[1])')"
export JAX_PLATFORMS=cpu
export XLA_FLAGS="--xla_force_host_platform_device_count=$devices"

pids=()
stop() {
  for pid in "${pids[@]}"; do
    kill -TERM "$pid" 2> /dev/null || true
  done
}
trap stop INT TERM

for ((id = 0; id < processes; id++)); do
  command=("$python" -m vmoe_study "$@" "--coordinator=localhost:$port"
    "--num-processes=$processes" "--process-id=$id")
  if "$dry_run"; then
    echo "JAX_PLATFORMS=$JAX_PLATFORMS XLA_FLAGS=$XLA_FLAGS ${command[*]@Q}"
  else
    "${command[@]}" &
    pids+=("$!")
  fi
done

# Waits for all; the first failure ends the others.
result=0
for _ in "${pids[@]}"; do
  code=0
  wait -n || code=$?
  if ((code && !result)); then
    result=$code
    stop
  fi
done
exit "$result"
