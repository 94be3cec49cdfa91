#!/usr/bin/env bash
# Several processes on one machine, each with its own part of the devices: what a pod does, to try it at home.
#   launch/local.sh 2 --config=configs/digits_ct.py
set -euo pipefail
processes=$1
shift
export JAX_NUM_PROCESSES=$processes JAX_COORDINATOR_ADDRESS=${JAX_COORDINATOR_ADDRESS:-localhost:8476}
trap 'kill 0' INT TERM
for ((process = 0; process < processes; process++)); do
  JAX_PROCESS_ID=$process python -m cmjax.main "$@" &
done
wait
