#!/usr/bin/env bash
# Several processes of one run on one machine, as on a pod: to try that, or to test it.
#   launch/local.sh 2 --config=configs/digits_ct.py
# SIGTERM, Ctrl-C, SIGHUP, SIGUSR1 and SIGUSR2 go on to every process. Where one fails, the others have
# CMJAX_GRACE_SECONDS (60) to end by themselves, and are killed then. The exit code is that of the first to fail, or 0.
# PYTHON names the interpreter (python).
set -uo pipefail

if [[ ! ${1-} =~ ^[1-9][0-9]*$ ]]; then
  echo "usage: launch/local.sh PROCESSES --config=… and other options of cmjax.main; PROCESSES='${1-}': must be a" \
    "whole number, at least 1" >&2
  exit 2
fi
processes=$1
shift

free_port() {
  local port=$((20000 + RANDOM % 12000))
  while (: <"/dev/tcp/127.0.0.1/$port") 2>/dev/null; do
    port=$((port + 1))
  done
  echo "$port"
}

export JAX_NUM_PROCESSES=$processes
export JAX_COORDINATOR_ADDRESS=${JAX_COORDINATOR_ADDRESS:-localhost:$(free_port)}

running=()
pass_on() {
  for pid in "${running[@]}"; do
    kill "-$1" "$pid" 2>/dev/null
  done
}
for signal in TERM INT HUP USR1 USR2; do
  # shellcheck disable=SC2064 # the name of this signal
  trap "pass_on $signal" "$signal"
done

set -m # each process in a group of its own: a terminal's Ctrl-C reaches it once, by way of this script
for ((process = 0; process < processes; process++)); do
  JAX_PROCESS_ID=$process "${PYTHON:-python}" -m cmjax.main "$@" </dev/null &
  running+=("$!")
done

failure=0
while ((${#running[@]})); do
  sleep 0.2 & # `wait -n` overlooks one of two processes that end together
  wait "$!"
  still_running=()
  for pid in "${running[@]}"; do
    if kill -0 "$pid" 2>/dev/null; then
      still_running+=("$pid")
      continue
    fi
    wait "$pid"
    code=$?
    if ((code && !failure)); then
      failure=$code
      deadline=$((SECONDS + ${CMJAX_GRACE_SECONDS:-60}))
    fi
  done
  running=("${still_running[@]}")
  if ((failure && SECONDS > deadline)); then
    pass_on KILL
  fi
done
exit "$failure"
