"""The script that a pod's workers run, at boot or over ssh.

It fetches the code, installs it, ends the run before and starts this one under the supervisor.

Usage:
  script = render(source="gs://b/run/code/abc.tar.gz", commit="abc", run="zone/pod", arguments=[])
"""

from collections.abc import Sequence
import shlex

_SCRIPT = """\
#!/bin/bash
set -euo pipefail
export HOME="${{HOME:-/root}}"
root="$HOME/shortcut_tpu"
source={source}
code="$root/code-{commit}"
mkdir -p "$root"
cd "$root"
# What goes wrong before the run starts is in its log and is its status, too.
exec > >(tee -a "$root/log") 2>&1
trap 'echo $? > "$root/status"; echo "error: this worker could not be set up, see above"' ERR

if ! [[ -d "$code" ]]; then
  rm -rf "$code.part"
  mkdir "$code.part"
  if [[ "$source" == gs://* ]]; then
    gcloud storage cp --quiet "$source" code.tar.gz
  else
    cp "$source" code.tar.gz
  fi
  tar -xzf code.tar.gz -C "$code.part"
  mv "$code.part" "$code"
fi

{stop}
rm -f status
cd "$code"
if [[ -n "${{SHORTCUT_TPU_PYTHON:-}}" ]]; then
  python="$SHORTCUT_TPU_PYTHON" # an image that has everything installed
else
  if ! python3.11 -c 'import ensurepip' 2> /dev/null; then
    PIP_BREAK_SYSTEM_PACKAGES=1 python3 -m pip install -q uv
    python3 -m uv python install -q 3.11
    PYTHON="$(python3 -m uv python find 3.11)"
    export PYTHON
  fi
  launch/setup_venv.sh tpu
  python=.venv/bin/python
fi

run() {{
  "$python" "$@" &
  echo $! > "$root/pid"
  status=0
  wait $! || status=$?
  echo "$status" > "$root/status"
}}
export -f run
export python root PYTHONPATH="$code"
# A session of its own: it outlives the shell that started it.
setsid bash -c 'run "$@"' - {command} >> "$root/log" 2>&1 < /dev/null &
"""

_STOP = """\
if [[ -f "$HOME/shortcut_tpu/pid" ]]; then
  pid="$(cat "$HOME/shortcut_tpu/pid")"
  # The supervisor passes the signal on and waits. After a boot the number may be another's.
  if grep -qs launch.supervisor "/proc/$pid/cmdline"; then
    kill -TERM "$pid"
    tail --pid="$pid" -f /dev/null
  fi
  rm -f "$HOME/shortcut_tpu/pid"
fi"""

# Shows the log until the run has ended, and its status has been noted.
FOLLOW = """\
cd "$HOME/shortcut_tpu" || exit
if [[ -f pid ]]; then
  tail -n 100 --pid="$(cat pid)" -f log && sleep 1
elif [[ -f status ]]; then
  tail -n 20 log
fi"""
STATUS = 'cat "$HOME/shortcut_tpu/status" 2> /dev/null || echo running'


def render(*, source: str, commit: str, run: str, arguments: Sequence[str]) -> str:
    """The script.

    Args:
      source: the archive of the code, in a bucket or in a folder that every worker sees.
      commit: names the folder of the code.
      run: the same for a pod that is made anew, which so need not wait for its workdir.
      arguments: what follows `python` on every worker.
    """
    command = ["-m", "launch.supervisor", f"--run={run}", "--", *arguments]
    return _SCRIPT.format(
        source=shlex.quote(source),
        commit=commit,
        stop=_STOP,
        command=" ".join(map(shlex.quote, command)),
    )


def as_root(script: str) -> str:
    """One line of shell that runs a script as root, as at boot."""
    return f"sudo -H bash -c {shlex.quote(script)}"


def stop() -> str:
    """The script that asks the run to save and end, and returns when it has."""
    return _STOP
