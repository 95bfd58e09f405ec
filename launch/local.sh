#!/usr/bin/env bash
# Several processes on this machine, as if each were a host.
set -euo pipefail
# shellcheck source=launch/lib.sh
source "$(dirname -- "$0")/lib.sh"

usage() {
  cat << 'END'
Usage: launch/local.sh [--processes=N] [--devices=N] [--dry-run] \
  -- COMMAND...

Runs `python -m vmoe_study COMMAND...` in several processes that form one run,
each with its own fake CPU devices. If one process fails, the others are killed
and its exit code is returned. Ctrl-C and SIGTERM are sent to all of them.

  --processes=N  number of processes; 2 if not given
  --devices=N    fake devices of each process; 4 if not given
  --dry-run      print the commands instead of running them
  --help         print this

COMMAND is checked before the processes start: its name, its options, and its
config with all overrides.

Environment: PYTHON, the interpreter (python if not set).

Example:
  launch/local.sh --processes=2 --devices=4 -- train --config=configs/digits.py \
    --config.mesh.expert=4 --workdir=/tmp/digits
END
}

processes=2
devices=4
read_options "processes= devices=" "$@"
need_number "$processes" --processes
need_number "$devices" --devices
need_command

port="$("$python" -c '
import socket
with socket.socket() as free:
  free.bind(("localhost", 0))
  print(free.getsockname()[1])')"
command+=("--coordinator=localhost:$port" "--num-processes=$processes")
check_command .
flags="${XLA_FLAGS:-} --xla_force_host_platform_device_count=$devices"

pids=()
signal_all() {
  kill "-$1" "${pids[@]}" 2> /dev/null || true
}
# JAX takes SIGTERM for a preemption notice: each process saves and stops.
told=false
trap 'told=true; signal_all TERM' INT TERM

for ((id = 0; id < processes; id++)); do
  words=(env JAX_PLATFORMS=cpu "XLA_FLAGS=$flags"
    "$python" -m vmoe_study "${command[@]}" "--process-id=$id")
  if "$dry_run"; then
    execute "${words[@]}"
  else
    "${words[@]}" &
    pids+=("$!")
  fi
done
# A signal may have come before the last of them was known.
! "$told" || signal_all TERM

# Waits for each process; 127 means that none is left. The exit code is that of
# the first process that fails.
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
