#!/usr/bin/env bash
# All stages on this host, one rank a device:
#   bash launch/single_node.sh RUN.yaml [--ranks N] [a.b=c ...] [-- flags of the deepspeed launcher]
set -u
source "$(dirname -- "${BASH_SOURCE[0]}")/run_line.sh"
[ $# -ge 1 ] || usage
run_stages : "$@"
