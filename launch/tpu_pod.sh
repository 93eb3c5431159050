#!/usr/bin/env bash
# Trains a config on a TPU pod, from any machine that has gcloud.
#
#   launch/tpu_pod.sh --config=imagenet256_xl --name=NAME --zone=ZONE --type=v5litepod-256 \
#       --workdir=gs://BUCKET/RUN --config.evaluation.features=inception:gs://BUCKET/inception.pth \
#       --config.evaluation.reference=gs://BUCKET/VIRTUAL_imagenet256_labeled.npz
#
# `--help` lists the flags. The first call makes .venv.
set -euo pipefail
cd "$(dirname "$0")/.."
launch/setup_venv.sh test
exec .venv/bin/python -m launch.tpu_pod "$@"
