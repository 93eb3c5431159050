#!/usr/bin/env bash
# Runs the tests; the first call makes .venv. Arguments go to pytest.
#
#   ./tests/run.sh
#   ./tests/run.sh -m pods            # those that lose machines and find them again
#   ./tests/run.sh -k shortcut -x
set -euo pipefail
cd "$(dirname "$0")/.."
launch/setup_venv.sh test
exec .venv/bin/python -m pytest "$@"
