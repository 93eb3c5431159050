"""Runs commands that it is told, one a line of standard input, each in a fork of this process.

A fork has everything imported already, so that a command takes a fraction of a second. Input is a
list of a module, its arguments, and whether only to parse them; output a list of the exit status
and what was printed, as JSON. `forks.py` is the other end.
"""

import argparse
import json
import os
import runpy
import signal
import sys
import tempfile
import warnings

from absl import app
import clu.metric_writers  # noqa: F401
import jax  # noqa: F401
import orbax.checkpoint  # noqa: F401

import shortcut_tpu.convert
import shortcut_tpu.evaluate
import shortcut_tpu.generate_pairs
import shortcut_tpu.preflight
import shortcut_tpu.reference_stats
import shortcut_tpu.report
import shortcut_tpu.sample
import shortcut_tpu.train  # noqa: F401

SECONDS = 600

# No backend has been started, so that nothing of JAX is lost in a fork.
warnings.filterwarnings("ignore", message="os.fork")


def end_after_parsing() -> None:
    """Makes commands end when they have parsed their flags, by absl or argparse."""
    parse_args = argparse.ArgumentParser.parse_args

    def parse_absl(main, flags_parser):
        if rest := flags_parser(sys.argv)[1:]:
            sys.exit(f"error: unexpected arguments {rest}")

    def parse_argparse(parser, arguments):
        parse_args(parser, arguments)
        sys.exit()

    app.run = parse_absl
    argparse.ArgumentParser.parse_args = parse_argparse


def run(module: str, arguments: list[str], parse_only: bool) -> tuple[int, str]:
    with tempfile.TemporaryFile() as output:
        child = os.fork()
        if child == 0:
            os.dup2(output.fileno(), 1)
            os.dup2(output.fileno(), 2)
            signal.alarm(SECONDS)
            sys.argv = [module, *arguments]
            if parse_only:
                end_after_parsing()
            try:
                runpy.run_module(module, run_name="__main__", alter_sys=True)
                status = 0
            except SystemExit as end:
                status = end.code if isinstance(end.code, int) else int(bool(end.code))
            except BaseException:
                import traceback

                traceback.print_exc()
                status = 70
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(status)
        _, code = os.waitpid(child, 0)
        output.seek(0)
        return os.waitstatus_to_exitcode(code), output.read().decode(errors="replace")


for line in sys.stdin:
    print(json.dumps(run(*json.loads(line))), flush=True)
