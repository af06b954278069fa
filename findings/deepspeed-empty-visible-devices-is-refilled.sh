#!/usr/bin/env bash
# Version: deepspeed==0.19.8 torch==2.13.0
#
# `CUDA_VISIBLE_DEVICES= DS_ACCELERATOR=cpu deepspeed rank.py`: a run on the CPU, with all GPUs
# hidden in the usual way.
#
# Expected: the ranks inherit the empty variable, or at least see no devices in it.
# seen, `rank 0 sees '0,1'` and `rank 1 sees '0,1'`: the launcher takes an empty variable for one
# that is not set, and then writes the slot numbers of the CPU accelerator into it.
#
# Who is hit: on a machine with GPUs, CPU runs (tests, debugging, a job beside somebody else's):
# the ranks' variable names devices that the user had hidden, so CUDA may use
# them (this script needs no GPU).
# A way out: hide the devices in the script itself, before torch is imported.
set -euo pipefail
unset PYTHONPATH
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install -q --no-compile deepspeed==0.19.8 torch==2.13.0
cd "$work"

cat > rank.py <<'PY'
import os

line = f"rank {os.environ['LOCAL_RANK']} sees {os.environ.get('CUDA_VISIBLE_DEVICES')!r}\n"
os.write(1, line.encode())
PY

export PATH="$work/venv/bin:$PATH" DS_ACCELERATOR=cpu LOCAL_SIZE=2
CUDA_VISIBLE_DEVICES='' python -c 'import os; assert os.environ["CUDA_VISIBLE_DEVICES"] == ""'
CUDA_VISIBLE_DEVICES='' deepspeed --hostfile "$work/none" rank.py > ranks.log 2>&1
grep '^rank ' ranks.log | sort
test "$(grep -c "^rank [01] sees '0,1'\$" ranks.log)" = 2
echo "finding: with an empty CUDA_VISIBLE_DEVICES the deepspeed launcher's ranks see 0,1,... in it, so those devices are no longer hidden"
