# shellcheck shell=bash
# What the scripts share. Sourced, not run.

dry_run=false

# Says what is wrong and stops.
fail() {
  echo "$(basename "$0"): $1" >&2
  exit 2
}

# Runs a command, or with --dry-run prints it, quoted.
execute() {
  if "$dry_run"; then
    echo "${*@Q}"
  else
    "$@"
  fi
}

# Checks that an option has been given: need VALUE NAME.
need() {
  [[ -n "$1" ]] || fail "$2 must be given; see --help"
}

# Checks that a value is a number above 0: need_number VALUE NAME.
need_number() {
  [[ "$1" =~ ^[1-9][0-9]*$ ]] || fail "$2=$1: must be a number above 0"
}
