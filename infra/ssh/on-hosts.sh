#!/usr/bin/env bash
# Runs a command once on every host of a hostfile, in this folder, and ends when all have: what srun does in Slurm.
#   node_command: [infra/ssh/on-hosts.sh, HOSTFILE]
# Exit code: of the first host that failed.
set -euo pipefail
hostfile=$1
shift
# Host names only: a line is `name slots=8`, as deepspeed reads it.
mapfile -t hosts < <(sed -e 's/#.*//' -e '/^[[:space:]]*$/d' "$hostfile" | awk '{print $1}')
[ "${#hosts[@]}" -gt 0 ] || { echo "on-hosts.sh: $hostfile names no host; write one line a host" >&2; exit 2; }
printf -v remote 'cd %q && exec %s' "$PWD" "$(printf '%q ' "$@")"
trap 'trap - TERM; kill 0' TERM
processes=()
for host in "${hosts[@]}"; do
  ssh -n -o BatchMode=yes "$host" "$remote" &
  processes+=($!)
done
code=0
for process in "${processes[@]}"; do
  wait "$process" || code=$((code ? code : $?))
done
exit "$code"
