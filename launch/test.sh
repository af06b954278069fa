#!/usr/bin/env bash
# Sets up like quickstart.sh, then: ruff, mypy, and pytest over the layers unit, distributed, deepspeed, cli, hosts.
# Arguments go to pytest (paths among them replace the five layers); variables: see launch/environment.sh.
# Without arguments files of tests run side by side, those that start ranks in a few processes at most; several hosts
# have the machine to themselves.
set -u
source "$(dirname -- "${BASH_SOURCE[0]}")/environment.sh"
use_environment cpu,demo,mpi,eval,dev
cd -- "$ROMA_DS_ROOT" || exit 3

export HF_HUB_OFFLINE="${HF_HUB_OFFLINE:-1}"
failed=""
check() { # NAME COMMAND...
  echo "== $1"
  "${@:2}" || failed="$failed${failed:+, }$1"
  # tests/conftest.py repeats it in pytest's summary.
  export ROMA_DS_FAILED_BEFORE="$failed"
}
check ruff ruff check .
check mypy mypy
if [ "$#" -gt 0 ]; then
  check pytest pytest "$@"
else
  check "pytest: unit" pytest tests/unit --numprocesses auto
  check "pytest: ranks" pytest tests/distributed tests/deepspeed tests/cli \
    --numprocesses auto --maxprocesses 4 --dist loadfile
  check "pytest: hosts" pytest tests/hosts
fi
[ -z "$failed" ] || { echo "failed: $failed" >&2; exit 1; }
