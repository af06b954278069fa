# Sourced by the scripts beside it, which take a config and flags and leave the rest to roma-ds.

# run_line COMMAND...: print the line, then become it.
run_line() {
  printf '$'
  printf ' %q' "$@"
  printf '\n'
  if ! command -v -- "$1" >/dev/null; then
    echo "$1 is not on the PATH" >&2
    echo "  fix: source .venv/bin/activate (launch/quickstart.sh makes it), or load the module that brings $1" >&2
    exit 3
  fi
  exec "$@"
}

# run_stages FLAGS... : RUN.yaml [a.b=c ...] [-- more flags]: all stages, FLAGS going to the launcher.
run_stages() {
  local flags=() word separator=(--)
  while [ "$1" != : ]; do
    flags+=("$1")
    shift
  done
  shift
  [ ${#flags[@]} -gt 0 ] || separator=()
  for word in "$@"; do
    [ "$word" != -- ] || separator=()
  done
  run_line roma-ds run "$@" ${separator[@]+"${separator[@]}"} ${flags[@]+"${flags[@]}"}
}

# usage: what the script takes, as it stands at its head; exit code 2.
usage() {
  sed -n '2,/^[^#]/{/^#SBATCH/d;/^#/s/^# \{0,1\}//p}' "$0" >&2
  exit 2
}
