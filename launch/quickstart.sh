#!/usr/bin/env bash
# Installs roma_ds into an environment of its own, then runs the whole method on the packaged tiny model; the demo ends
# by naming its report and the TensorBoard command.
# Arguments go to `roma-ds demo`; variables: see launch/environment.sh.
set -u
source "$(dirname -- "${BASH_SOURCE[0]}")/environment.sh"

out="$ROMA_DS_ROOT/runs/demo"
arguments=()
while [ $# -gt 0 ]; do
  case "$1" in
    --out) [ $# -ge 2 ] || { say "--out needs a folder"; say "  fix: --out DIR"; exit 2; }; out="$2"; shift 2 ;;
    --out=*) out="${1#--out=}"; shift ;;
    *) arguments+=("$1"); shift ;;
  esac
done
case "$out" in /*) ;; *) out="$ROMA_DS_CALLED_FROM/$out" ;; esac

use_environment cpu,demo
cd -- "$ROMA_DS_ROOT" || exit 3
exec roma-ds demo --ranks 2 --zero-stage 3 --out "$out" ${arguments[@]+"${arguments[@]}"}
