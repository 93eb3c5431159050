#!/usr/bin/env bash
# Makes .venv with this package and the extras named, if it is not there yet.
#
#   launch/setup_venv.sh            # what training needs
#   launch/setup_venv.sh test       # and what the tests need
#
# A stamp of pyproject.toml, for each set of extras, lets the second call return at once.
set -euo pipefail
cd "$(dirname "$0")/.."

extras="${1:-}"
stamp=".venv/installed-${extras:-base}"
wanted="$(cksum < pyproject.toml)"
if [[ -x .venv/bin/python ]] && grep -qsxF "$wanted" "$stamp" .venv/installed-dev; then
  exit 0
fi

is_recent() { "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2> /dev/null; }

if ! [[ -x .venv/bin/python ]]; then
  for candidate in "${PYTHON:-}" python3.11 python3.12 python3.13 python3; do
    if [[ -n "$candidate" ]] && is_recent "$candidate"; then
      python="$candidate"
      break
    fi
  done
  if [[ -z "${python:-}" ]]; then
    echo "error: Python 3.11 or newer is needed; set PYTHON to one" >&2
    exit 1
  fi
  echo "making .venv with $("$python" --version)"
  "$python" -m venv .venv
fi

echo "installing shortcut_tpu${extras:+[$extras]} into .venv, about a minute"
.venv/bin/python -m pip install -qq --disable-pip-version-check -e ".${extras:+[$extras]}"
echo "$wanted" > "$stamp"
