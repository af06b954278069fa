#!/usr/bin/env bash
# All stages on the hosts of a hostfile (launch/hostfile.example), by mpirun of Open MPI:
#   bash launch/openmpi.sh HOSTFILE RUN.yaml [a.b=c ...] [-- --launcher_args "flags of mpirun"]
# Through the deepspeed launcher's own runner of Open MPI:
#   bash launch/openmpi.sh --deepspeed HOSTFILE RUN.yaml [a.b=c ...] [-- flags of the deepspeed launcher]
set -u
source "$(dirname -- "${BASH_SOURCE[0]}")/run_line.sh"
launcher=mpirun
[ "${1:-}" != --deepspeed ] || { launcher=openmpi && shift; }
[ $# -ge 2 ] || usage
hostfile="$1"
shift
run_stages --hostfile "$hostfile" --launcher "$launcher" : "$@"
