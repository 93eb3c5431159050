#!/usr/bin/env bash
# Runs the tests; the first call makes .venv. Arguments go to pytest.
#
#   ./tests/run.sh                    # all that lose no machines, in two processes
#   ./tests/run.sh -m pods            # those that lose machines and find them again
#   ./tests/run.sh -k shortcut -x
set -euo pipefail
cd "$(dirname "$0")/.."
launch/setup_venv.sh test
if (($# == 0)); then
  # A file stays in one process, for its tests share what they compile; the long ones come first.
  set -- -n 2 --dist loadfile --no-loadscope-reorder
fi
exec .venv/bin/python -m pytest "$@"
