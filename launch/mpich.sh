#!/usr/bin/env bash
# All stages on the hosts of a hostfile (launch/hostfile.example), by mpirun of MPICH:
#   bash launch/mpich.sh HOSTFILE RUN.yaml [a.b=c ...] [-- --launcher_args "flags of mpirun"]
# Through the deepspeed launcher's own runner of MPICH:
#   bash launch/mpich.sh --deepspeed HOSTFILE RUN.yaml [a.b=c ...] [-- flags of the deepspeed launcher]
set -u
source "$(dirname -- "${BASH_SOURCE[0]}")/run_line.sh"
launcher=mpirun
[ "${1:-}" != --deepspeed ] || { launcher=mpich && shift; }
[ $# -ge 2 ] || usage
hostfile="$1"
shift
run_stages --hostfile "$hostfile" --launcher "$launcher" : "$@"
