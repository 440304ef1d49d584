#!/usr/bin/env bash
# One run on all hosts of a TPU pod slice: CONFIG WORKDIR [soups run's other options], such as
#   TPU=my-pod ZONE=us-east5-b bash docs/launch/tpu_pod.sh digits /mnt/shared/runs/digits
#
# Needs: gcloud, logged in; a slice that is there (gcloud compute tpus tpu-vm create); on its hosts a folder that all of
# them see (Filestore, mounted at the same place), and in it, at SOUPS, an environment with soups and "jax[tpu]".
# The hosts find each other by --coordinator=auto. A slice that is preempted gets SIGTERM: the run keeps its step, and
# the same command goes on when the slice is there again.
# DRY_RUN=1 prints what would be run.
set -euo pipefail
: "${TPU:?name the slice}" "${ZONE:?name its zone}"
CONFIG=$1 WORKDIR=$2
shift 2
SOUPS=${SOUPS:-/mnt/shared/venv/bin/soups}
command="$SOUPS run $(printf '%q ' --config "$CONFIG" --workdir "$WORKDIR" --coordinator=auto "$@")"
${DRY_RUN:+echo} gcloud compute tpus tpu-vm ssh "$TPU" --zone="$ZONE" --worker=all --command="$command"
