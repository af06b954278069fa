#!/usr/bin/env bash
# Sets up like quickstart.sh, then: ruff, mypy, and pytest over the layers unit, distributed, deepspeed, cli, hosts.
#   bash launch/test.sh                 everything; ends with the time by layer
#   bash launch/test.sh quick           ruff, mypy and a representative part in 3 minutes, for use while writing
#   bash launch/test.sh ARGUMENTS...    arguments of pytest (paths among them replace the five layers)
# Variables: see launch/environment.sh. Files of tests run side by side, those that start ranks in a few processes at
# most; several hosts have the machine to themselves.
set -u
source "$(dirname -- "${BASH_SOURCE[0]}")/environment.sh"
use_environment cpu,demo,mpi,eval,engines,dev
cd -- "$ROMA_DS_ROOT" || exit 3

export HF_HUB_OFFLINE="${HF_HUB_OFFLINE:-1}"
BUDGET_MINUTES=20
# One or two files for each wing of the package, the fast ones.
QUICK="architecture circles config data_rows encoding families loading span routed packed_attention frozen_modules
  prefix_cache stream manifold neighbours shard training_step answers evaluate export documents packaging launching"

failed="" times="" SECONDS=0
check() { # NAME COMMAND...
  local started="$SECONDS"
  echo "== $1"
  "${@:2}" || failed="$failed${failed:+, }$1"
  times="$times${times:+, }$1 $((SECONDS - started)) s"
  # tests/conftest.py repeats it in pytest's summary.
  export ROMA_DS_FAILED_BEFORE="$failed"
}
check ruff ruff check .
check mypy mypy
if [ "$*" = quick ]; then
  check quick pytest $(printf 'tests/unit/test_%s.py ' $QUICK) --numprocesses auto --durations 0 --durations-min 5
elif [ "$#" -gt 0 ]; then
  check pytest pytest "$@"
else
  check unit pytest tests/unit --numprocesses auto
  # One more than two cores: tests of ranks wait for each other.
  check ranks pytest tests/distributed tests/deepspeed tests/cli --numprocesses $(($(nproc) < 4 ? 3 : 4)) \
    --dist loadfile --no-loadscope-reorder
  check hosts pytest tests/hosts
  echo "time: $times; $(((SECONDS + 59) / 60)) of $BUDGET_MINUTES minutes on two cores"
fi
[ -z "$failed" ] || { echo "failed: $failed" >&2; exit 1; }
