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

# Reads [--OPTION[=VALUE]...] [-- COMMAND...] into a variable for each option and
# the array `command`: read_options "name= spot" "$@" knows --name=VALUE and
# --spot, which becomes "true". A variable that is an array gathers the values
# of an option that is given several times.
read_options() {
  local known=" $1 " option
  shift
  while (($#)); do
    option="${1%%=*}"
    case "$1" in
      --dry-run) dry_run=true ;;
      --help) usage && exit ;;
      --) shift && break ;;
      --*=*)
        [[ "$known" == *" ${option#--}= "* ]] || unknown "$1"
        assign "${option#--}" "${1#*=}"
        ;;
      --*)
        [[ "$known" == *" ${option#--} "* ]] || unknown "$1"
        printf -v "${option#--}" true
        ;;
      *) unknown "$1" ;;
    esac
    shift
  done
  # shellcheck disable=SC2034
  command=("$@")
}

# Sets a variable, or adds to an array: assign NAME VALUE.
assign() {
  if [[ "$(declare -p "$1")" == "declare -a"* ]]; then
    local -n array="$1"
    array+=("$2")
  else
    printf -v "$1" %s "$2"
  fi
}

# Reads ACTION into `action`, and then as read_options does.
read_action() {
  local known="$1"
  action="${2:-}"
  [[ "$action" != --help ]] || { usage && exit; }
  read_options "$known" "${@:3}"
}

unknown() {
  fail "unknown option $1; see --help"
}

# Checks that there is a command.
need_command() {
  ((${#command[@]})) || fail "no command given after --; see --help"
}

# Checks that an option has been given: need VALUE NAME.
need() {
  [[ -n "$1" ]] || fail "$2 must be given; see --help"
}

# Checks the values of --env, each NAME=VALUE.
check_env() {
  local word
  for word; do
    [[ "$word" =~ ^[A-Za-z_][A-Za-z0-9_]*= ]] ||
      fail "--env=$word: must be NAME=VALUE"
  done
}

# Checks that a value is a number above 0: need_number VALUE NAME.
need_number() {
  [[ "$1" =~ ^[1-9][0-9]*$ ]] || fail "$2=$1: must be a number above 0"
}
