#!/usr/bin/env bash
# Sets up like quickstart.sh, then: ruff, mypy, and pytest over the layers unit, distributed, deepspeed, cli, hosts.
# Arguments go to pytest (paths among them replace the five layers); variables: see launch/environment.sh.
set -u
source "$(dirname -- "${BASH_SOURCE[0]}")/environment.sh"
use_environment cpu,demo,mpi,eval,dev
cd -- "$ROMA_DS_ROOT" || exit 3

export HF_HUB_OFFLINE="${HF_HUB_OFFLINE:-1}"
failed=""
echo "== ruff"
ruff check . || failed="$failed ruff"
echo "== mypy"
mypy || failed="$failed mypy"
echo "== pytest"
[ -n "$failed" ] || exec pytest "$@"
# tests/conftest.py repeats it in pytest's summary.
export ROMA_DS_FAILED_BEFORE="${failed# }"
pytest "$@"
code=$?
[ "$code" -ne 0 ] || code=1
exit "$code"
