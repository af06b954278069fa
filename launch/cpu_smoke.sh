#!/usr/bin/env bash
# The whole method in about a minute, on CPU ranks whatever devices there are, with the packaged model:
#   bash launch/cpu_smoke.sh [flags of roma-ds demo] [a.b=c ...]
set -u
source "$(dirname -- "${BASH_SOURCE[0]}")/run_line.sh"
export DS_ACCELERATOR=cpu CUDA_VISIBLE_DEVICES=
run_line roma-ds demo --out runs/cpu_smoke --ranks 2 --zero-stage 0 "$@" train.epochs=1 "controls=[]"
