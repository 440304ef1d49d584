#!/usr/bin/env bash
# One run on hosts that ssh reaches: HOSTS="a b c" bash docs/launch/ssh.sh CONFIG WORKDIR [soups run's other options]
#
# Needs: ssh without a password to each of HOSTS; a folder that all of them see, with WORKDIR on it; soups at SOUPS on
# each; port PORT of the first host open to the others. Ctrl-C, or SIGTERM, is sent on to all hosts, where the run keeps
# its step; the same command goes on, with these or with other hosts.
# DRY_RUN=1 prints what would be run.
set -uo pipefail
CONFIG=$1 WORKDIR=$2
shift 2
read -r -a hosts <<< "${HOSTS:?name the hosts}"
pids=() pipe=$(mktemp -u)
mkfifo "$pipe" && exec 9<> "$pipe" && rm "$pipe" # which has no end before this script and its ssh have
for index in "${!hosts[@]}"; do
    options=(--config "$CONFIG" --workdir "$WORKDIR" "--coordinator=${hosts[0]}:${PORT:-8476}")
    options+=("--processes=${#hosts[@]}" "--process=$index" "$@")
    # the shell there sees the end of its input when ssh ends here, and ends the run
    remote="${SOUPS:-soups} run $(printf '%q ' "${options[@]}") & run=\$!;"
    remote+=" { while read -r _; do :; done; kill -TERM \$run; } <&0 > /dev/null 2>&1 & watch=\$!;"
    remote+=" wait \$run; code=\$?; kill \$watch; exit \$code"
    if [ -n "${DRY_RUN:-}" ]; then
        echo ssh "${hosts[$index]}" "$remote"
        continue
    fi
    ssh "${hosts[$index]}" "$remote" <&9 &
    pids+=($!)
done
trap 'kill "${pids[@]}" 2> /dev/null' INT TERM
code=0
for pid in "${pids[@]}"; do
    wait "$pid" || code=$?
done
exit "$code"
