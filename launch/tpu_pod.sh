#!/usr/bin/env bash
# Every host of a Cloud TPU slice runs the same line, in the folder cmjax of its own disk; JAX finds the others.
#   launch/tpu_pod.sh my-slice us-central2-b --config=configs/cifar_ct.py --workdir=gs://BUCKET/runs/cifar_ct
# Before, once:   gcloud compute tpus tpu-vm scp --recurse . my-slice:cmjax --zone=us-central2-b --worker=all
#                 gcloud compute tpus tpu-vm ssh my-slice --zone=us-central2-b --worker=all \
#                   --command="cd cmjax && pip install -e '.[tpu,gcs]'"
# A spot or queued slice that was taken away comes back empty: do this again, and the run goes on from the bucket.
set -euo pipefail

if (($# < 3)) || [[ $1 == -* || $2 == -* ]]; then
  echo "usage: launch/tpu_pod.sh SLICE ZONE --config=… --workdir=gs://… and other options of cmjax.main" >&2
  exit 2
fi
slice=$1 zone=$2
shift 2
gcloud compute tpus tpu-vm ssh "$slice" --zone="$zone" --worker=all \
  --command="cd cmjax && exec python3 -m cmjax.main $(printf '%q ' "$@")"
