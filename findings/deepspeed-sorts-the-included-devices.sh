#!/usr/bin/env bash
# Version: deepspeed==0.19.8 torch==2.13.0
#
# `deepspeed --include localhost:3,2 rank.py`, and the same order in CUDA_VISIBLE_DEVICES.
#
# Expected: rank 0 gets device 3 and rank 1 device 2, as CUDA_VISIBLE_DEVICES=3,2 does elsewhere.
# seen for both, `rank 0 of devices 2,3` and `rank 1 of devices 2,3`: the launcher sorts the ids
# and sets the variable anew, also where the order came in by that very variable.
#
# Who is hit: whoever orders devices on purpose, such as keeping rank 0 (which saves, logs and
# evaluates) off a device that another job shares, or matching ranks to network cards.
# A way out: map the ranks to devices in the script, by LOCAL_RANK.
set -euo pipefail
unset PYTHONPATH
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install -q --no-compile deepspeed==0.19.8 torch==2.13.0
cd "$work"

cat > rank.py <<'PY'
import os

line = f"rank {os.environ['LOCAL_RANK']} of devices {os.environ['CUDA_VISIBLE_DEVICES']}\n"
os.write(1, line.encode())
PY

# The launcher only hands out ids here, so the CPU accelerator with four slots is enough.
export PATH="$work/venv/bin:$PATH" DS_ACCELERATOR=cpu LOCAL_SIZE=4
unset CUDA_VISIBLE_DEVICES
deepspeed --hostfile "$work/none" --include localhost:3,2 rank.py > include.log 2>&1
CUDA_VISIBLE_DEVICES=3,2 deepspeed --hostfile "$work/none" rank.py > variable.log 2>&1
grep -F 'setting --include=localhost:3,2' variable.log
for log in include.log variable.log; do
    grep '^rank ' "$log" | sort | sed "s/^/$log: /"
    test "$(grep -c '^rank [01] of devices 2,3$' "$log")" = 2
done
echo "finding: deepspeed --include localhost:3,2 (or CUDA_VISIBLE_DEVICES=3,2) gives the ranks the devices in sorted order 2,3, so rank 0 runs on device 2"
