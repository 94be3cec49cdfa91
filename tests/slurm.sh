#!/usr/bin/env bash
# launch/slurm.sbatch on a SLURM of one node, which this script starts on the loopback address and takes down again. A
# small run is requeued, meets its time limit, is cancelled, and ends; every logged step must be recorded once.
#   tests/slurm.sh [TASKS]      2 by default; some five minutes
# By hand, as root; needs Debian's slurmctld, slurmd and slurm-client, and the python on PATH to have cmjax's libraries.
set -euo pipefail
cd "$(dirname "$0")/.."
tasks=${1:-2} patience=900
folder=$(mktemp -d)
run=$folder/runs/digits_ct log=$folder/job.log
export SLURM_CONF=$folder/slurm.conf PYTHONPATH=$PWD JAX_PLATFORMS=cpu
daemons=()

fail() {
  echo "FAILED: $1" >&2
  tail -n 40 "$log" "$folder/slurmctld.log" "$folder/slurmd.log" >&2
  exit 1
}

free_port() {
  python -c 'import socket; s = socket.socket(); s.bind(("localhost", 0)); print(s.getsockname()[1])'
}

start_slurm() {
  mkdir "$folder/spool" "$folder/state"
  cat >"$SLURM_CONF" <<CONF
ClusterName=loopback
SlurmctldHost=localhost
SlurmctldPort=$(free_port)
SlurmdPort=$(free_port)
SlurmUser=$(id -un)
AuthType=auth/none
CredType=cred/none
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SlurmdParameters=config_overrides
KillWait=300
SlurmctldPidFile=$folder/slurmctld.pid
SlurmdPidFile=$folder/slurmd.pid
SlurmdSpoolDir=$folder/spool
StateSaveLocation=$folder/state
NodeName=localhost NodeAddr=127.0.0.1 NodeHostname=$(hostname -s) CPUs=$tasks
PartitionName=all Nodes=ALL Default=YES State=UP
CONF
  slurmctld -D >"$folder/slurmctld.log" 2>&1 &
  daemons+=("$!")
  slurmd -D -N localhost >"$folder/slurmd.log" 2>&1 &
  daemons+=("$!")
  wait_until "the node is idle" node_is_idle
}

stop_slurm() {
  scancel --quiet --signal=KILL --full --user="$(id -un)" || true
  sleep 2
  kill "${daemons[@]}" && wait "${daemons[@]}" || true
  rm -rf "$folder"
}
trap stop_slurm EXIT

wait_until() { # words for what it waits for, and the command that succeeds when it has come
  local words=$1 end=$((SECONDS + patience))
  shift
  until "$@"; do
    ((SECONDS < end)) || fail "not within $patience s: $words"
    sleep 1
  done
  echo "after $SECONDS s: $words"
}

node_is_idle() { [[ $(sinfo --noheader --format=%T 2>/dev/null) == idle ]]; }
job_is() { [[ $(scontrol --oneliner show job "$job") == *" JobState=$1 "* ]]; }

submit() { # the number of steps, then options of sbatch
  local steps=$1
  shift
  sbatch --parsable --gpus-per-node=0 --ntasks-per-node="$tasks" --output="$log" "$@" launch/slurm.sbatch \
    --config=configs/digits_ct.py --workdir="$run" --config.steps="$steps" --config.net.width=32 \
    --config.net.depth=1 --config.metrics.num=0 --config.samples.num=4 --config.log.every=100
}

trains_beyond() {
  [[ -s $run/metrics.jsonl ]] && (($(tail -n 1 "$run/metrics.jsonl" | sed -E 's/.*"step": ([0-9]+).*/\1/') > $1))
}

stops() { grep --only-matching 'stopped at step [0-9]*, saved' "$log" | uniq | grep --only-matching '[0-9]*'; }
restarts() { grep --only-matching 'going on from step [0-9]*' "$log" | grep --only-matching '[0-9]*$'; }

stopped_times() { (($(stops | wc -l) == $1)); }
restarted_times() {
  scontrol update JobId="$job" StartTime=now 2>/dev/null || true # a requeued job would wait two minutes
  (($(restarts | wc -l) == $1))
}

start_slurm
job=$(submit 10000000 --time=30)
wait_until "trained" trains_beyond 300

scontrol requeue "$job"
wait_until "requeued: saved" stopped_times 1
wait_until "started again" restarted_times 1
wait_until "trained on" trains_beyond "$(($(stops | tail -n 1) + 300))"

scontrol update JobId="$job" TimeLimit=3
wait_until "two minutes before its time limit: saved" stopped_times 2
wait_until "queued itself, started again" restarted_times 2
wait_until "trained on" trains_beyond "$(($(stops | tail -n 1) + 300))"

scancel "$job"
wait_until "cancelled: saved" stopped_times 3
wait_until "cancelled for good" job_is CANCELLED

steps=$((($(stops | tail -n 1) / 100 + 5) * 100))
job=$(submit "$steps")
wait_until "submitted again, up to step $steps: ended" job_is COMPLETED

[[ $(restarts) == "$(stops)" ]] || fail "stopped at $(stops | xargs), went on from $(restarts | xargs)"
[[ -f $run/summary.json ]] || fail "no summary.json"
python - "$run/metrics.jsonl" "$steps" <<'PYTHON' || fail "metrics.jsonl has not each logged step once"
import json, sys
steps = [json.loads(line)["step"] for line in open(sys.argv[1])]
sys.exit(steps != list(range(100, int(sys.argv[2]) + 1, 100)))
PYTHON
echo "passed, tasks: $tasks; stopped at and gone on from the steps $(stops | xargs), ended at $steps"
