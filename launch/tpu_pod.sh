#!/usr/bin/env bash
# Every worker of a Cloud TPU pod slice runs the same line; the workdir is a disk or bucket that all of them mount.
#   launch/tpu_pod.sh my-pod us-central2-b --config=configs/cifar_ct.py --workdir=/mnt/runs/cifar_ct
set -euo pipefail
pod=$1 zone=$2
shift 2
gcloud compute tpus tpu-vm ssh "$pod" --zone="$zone" --worker=all \
  --command="cd cmjax && CMJAX_DISTRIBUTED=1 python3 -m cmjax.main $(printf '%q ' "$@")"
