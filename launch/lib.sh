# shellcheck shell=bash
# Functions that the scripts share. Sourced, not run.

if ((BASH_VERSINFO[0] * 100 + BASH_VERSINFO[1] < 404)); then
  echo "$0: needs bash 4.4 or newer; this is $BASH_VERSION" >&2
  exit 2
fi
# A failure inside $(...) stops the script, too.
shopt -s inherit_errexit

launch="$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")" > /dev/null && pwd)"
# The interpreter, as a path that is valid after a change of folder.
python="${PYTHON:-python}"
if [[ "$python" == */* && "$python" != /* ]]; then
  python="$PWD/$python"
fi
dry_run=false
yes=""

# Says what is wrong and stops.
fail() {
  say "$1"
  exit 2
}

say() {
  echo "$(basename -- "$0"): $1" >&2
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
# --spot, which becomes "true". If the variable is an array, the option may be
# given several times. Dashes in an option's name become underscores.
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
        [[ -n "${1#*=}" ]] ||
          fail "$1: the value is empty. Give one, or leave out the option"
        assign "${option#--}" "${1#*=}"
        ;;
      --*)
        [[ "$known" == *" ${option#--} "* ]] || unknown "$1"
        assign "${option#--}" true
        ;;
      *) unknown "$1" ;;
    esac
    shift
  done
  command=("$@")
}

# Sets the variable of an option, or adds to it: assign OPTION VALUE.
assign() {
  local variable="${1//-/_}"
  if [[ "$(declare -p "$variable")" == "declare -a"* ]]; then
    local -n array="$variable"
    array+=("$2")
  else
    printf -v "$variable" %s "$2"
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

# Checks that there is no command, for an action that would ignore it.
refuse_command() {
  ((!${#command[@]})) || fail "action $action takes no COMMAND; see --help"
}

# Checks that an option has been given: need VALUE NAME.
need() {
  [[ -n "$1" ]] || fail "$2 must be given; see --help"
}

# Checks a value: need_match VALUE NAME REGULAR_EXPRESSION RULE.
need_match() {
  need "$1" "$2"
  [[ "$1" =~ ^($3)$ ]] || fail "$2=$1: must be $4"
}

# Checks that a value is a number above 0: need_number VALUE NAME.
need_number() {
  need_match "$1" "$2" "[1-9][0-9]*" "a number above 0"
}

# Checks a value that counts from 0: need_index VALUE NAME.
need_index() {
  need_match "$1" "$2" "0|[1-9][0-9]*" "a number, from 0"
}

# Checks that at most one of some options is given: at_most_one NAME VALUE...
at_most_one() {
  local given=()
  while (($#)); do
    [[ -z "$2" ]] || given+=("$1")
    shift 2
  done
  ((${#given[@]} <= 1)) || fail "${given[*]}: must not be given together. \
Choose one"
}

# Checks the values of --env, each NAME=VALUE.
check_env() {
  local word
  for word; do
    [[ "$word" =~ ^[A-Za-z_][A-Za-z0-9_]*= ]] ||
      fail "--env=$word: must be NAME=VALUE"
  done
}

# Reads the values of an option of COMMAND into the array `values`. In COMMAND
# the option may be abbreviated, and its value may be the next word.
read_values() {
  local i
  values=()
  for ((i = 0; i < ${#command[@]}; i++)); do
    [[ "${command[i]}" =~ ^--([a-z-]+)(=(.*))?$ ]] || continue
    [[ "$1" == "${BASH_REMATCH[1]}"* ]] || continue
    if [[ -n "${BASH_REMATCH[2]}" ]]; then
      values+=("${BASH_REMATCH[3]}")
    else
      values+=("${command[i + 1]:-}")
    fi
  done
}

# Checks that all hosts reach the folders of COMMAND's results. These are URLs,
# or with `check_folders shared` paths on a shared file system.
check_folders() {
  local option value values
  for option in workdir root; do
    read_values "$option"
    for value in "${values[@]}"; do
      is_url "$value" || is_shared "$value" "${1:-}" ||
        fail "--$option=$value: must be one that all hosts reach: \
${1:+an absolute path on a shared file system, or }a URL such as gs://BUCKET/RUN"
    done
  done
}

is_url() {
  [[ "$1" =~ ^[a-z][a-z0-9+.-]*://[^/]+ && ! "$1" =~ ^(file|local|memory): ]]
}

# Whether a path can be on a shared file system: is_shared PATH [shared].
is_shared() {
  [[ "$2" == shared && "$1" == /* && ! "$1" =~ ^/+(tmp|var/tmp|dev/shm)(/|$) ]]
}

# Checks that the config file of COMMAND is in a folder that the hosts get, at
# the same place: check_config_file FOLDER REMEDY.
check_config_file() {
  local value path values
  read_values config
  for value in "${values[@]}"; do
    path="${value%%:*}"
    [[ "$path" != /* && "/$path/" != */../* && -f "$1/$path" ]] ||
      fail "--config=$value: the hosts will not have $path. $2"
  done
}

# Checks COMMAND, as far as can be known without its hosts: check_command
# FOLDER, from which they run it.
check_command() {
  local code=0
  said="$(cd -- "$1" && "$python" "$launch/check_command.py" "${command[@]}" \
    2>&1 < /dev/null)" || code=$?
  case "$code" in
    0) ;;
    # The exit code for missing packages, and those of the shell for a program
    # that cannot be run.
    3 | 126 | 127)
      say "note: COMMAND was not checked, because this Python cannot import the \
project (set PYTHON to one that can): ${said##*$'\n'}"
      ;;
    *)
      echo "$said" >&2
      fail "COMMAND is not valid; nothing was started or deleted"
      ;;
  esac
}

# Says what will be deleted, and asks unless --yes was given: confirm WHAT.
confirm() {
  local answer=""
  if "$dry_run"; then
    return
  fi
  say "$action deletes $1"
  [[ -z "$yes" ]] || return 0
  [[ -t 0 ]] || fail "there is no terminal to ask; nothing was deleted. To \
delete it, give --yes"
  read -r -p "Type yes to delete it: " answer || true
  [[ "$answer" == yes ]] || fail "nothing was deleted"
}
