#!/usr/bin/env bash
# Rehearses a config's whole run on this machine, as a pod of several processes.
#
#   ./launch/local_pod.sh --config=digits
#
# `--help` lists the flags. The first call makes .venv.
set -euo pipefail
cd "$(dirname "$0")/.."
launch/setup_venv.sh
exec .venv/bin/python -m launch.local_pod "$@"
