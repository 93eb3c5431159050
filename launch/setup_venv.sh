#!/usr/bin/env bash
# Makes .venv with this package and the extras named, if it is not there yet.
#
#   launch/setup_venv.sh            # what training needs
#   launch/setup_venv.sh test       # and what the tests need
#
# A stamp of pyproject.toml, for each set of extras, lets the second call return at once. PYTHON names
# the Python to take; by default it is one that pyproject.toml allows and that can make environments.
set -euo pipefail
cd "$(dirname "$0")/.."

extras="${1:-}"
stamp=".venv/installed-${extras:-base}"
wanted="$(cksum < pyproject.toml)"
if [[ -x .venv/bin/python ]] && grep -qsxF "$wanted" "$stamp" .venv/installed-dev; then
  exit 0
fi

fail() {
  echo "error: $1" >&2
  exit 1
}

machine="$(uname -s) $(uname -m)"
case "$machine" in
  "Linux x86_64" | "Linux aarch64" | "Darwin arm64") ;;
  *) fail "no JAX or TensorFlow is made for $machine: Linux on x86_64 or aarch64 is needed, or a Mac with Apple silicon" ;;
esac

# The minor versions of Python from pyproject.toml, the last one excluded.
read -r oldest beyond < <(sed -n 's/^requires-python = ">=3\.\([0-9]*\),<3\.\([0-9]*\)"$/\1 \2/p' pyproject.toml)
versions="Python 3.$oldest to 3.$((beyond - 1))"

# Prints the minor version of a Python, and a word if it cannot make environments.
probe() {
  "$1" -c 'import sys
say = str(sys.version_info[1]) if sys.version_info[0] == 3 else "0"
try:
    import ensurepip, venv
except ImportError:
    say += " bare"
print(say)' 2> /dev/null
}

choose() {
  local candidate found minor bare unfit=""
  local candidates=("${PYTHON:-}")
  if [[ -z "${PYTHON:-}" ]]; then
    candidates=()
    for ((minor = oldest; minor < beyond; minor++)); do candidates+=("python3.$minor"); done
    candidates+=(python3 python)
  fi
  for candidate in "${candidates[@]}"; do
    found="$(probe "$candidate")" || continue
    read -r minor bare <<< "$found"
    if ((minor < oldest || minor >= beyond)); then
      unfit="${unfit:-"$candidate is Python 3.$minor"}"
    elif [[ -n "$bare" ]]; then
      unfit="$candidate cannot make environments; on Debian and Ubuntu: sudo apt-get install python3.$minor-venv"
    else
      python="$candidate"
      return
    fi
  done
  fail "$versions is needed${unfit:+ ($unfit)}; set PYTHON to one"
}

# An environment whose making was broken off, or whose Python is gone, has no pip that runs.
if ! .venv/bin/python -m pip --version > /dev/null 2>&1; then
  if [[ -L .venv ]]; then
    fail ".venv is a link to $(readlink .venv), where no environment works: make that anew, or remove the link"
  fi
  choose
  echo "making .venv with $("$python" --version)"
  "$python" -m venv --clear .venv || fail "$python could not make .venv, see above"
fi

echo "installing shortcut_tpu${extras:+[$extras]} into .venv, about a minute"
# Compiling every module takes longer than the rest; the commands import a fraction of them.
.venv/bin/python -m pip install -qq --no-compile --disable-pip-version-check \
  -e ".${extras:+[$extras]}" ||
  fail "pip could not install what pyproject.toml names, see above; the next call tries again"
# Images for containers set it, and each process would compile anew.
unset PYTHONDONTWRITEBYTECODE
imports="import clu.metric_writers, shortcut_tpu.evaluate, shortcut_tpu.train"
if ! said="$(.venv/bin/python -c "$imports" 2>&1)"; then
  echo "$said" >&2
  fail "what was installed cannot be imported, see above; the next call tries again"
fi
echo "$wanted" > "$stamp"
