#!/usr/bin/env bash
# All stages on the hosts of a hostfile (launch/hostfile.example), through the deepspeed launcher.
# Started once, on any host, with pdsh over ssh:
#   bash launch/multi_node.sh HOSTFILE RUN.yaml [a.b=c ...] [-- flags of the deepspeed launcher]
# Without ssh: the same line on every host, which finds its place in the file by its name (or give -- --node_rank N):
#   bash launch/multi_node.sh --no_ssh HOSTFILE RUN.yaml [a.b=c ...]
set -u
source "$(dirname -- "${BASH_SOURCE[0]}")/run_line.sh"
flags=()
[ "${1:-}" != --no_ssh ] || { flags=(--no_ssh) && shift; }
[ $# -ge 2 ] || usage
hostfile="$1"
shift
run_stages --hostfile "$hostfile" ${flags[@]+"${flags[@]}"} : "$@"
