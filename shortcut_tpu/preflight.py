"""Compiles a config for a TPU pod on this machine, and prints whether it fits and what bounds it.

  python -m shortcut_tpu.preflight --config=imagenet256_xl --topology=v5e-256
  python -m shortcut_tpu.preflight --config=imagenet256_xl --topology="2x v5e-256" \\
      --config.batch_size=2048 --config.mesh.fsdp=8
  python -m shortcut_tpu.preflight --config=imagenet256_xl --topology=v5e-256 --explain
  python -m shortcut_tpu.preflight --config=imagenet256_xl --topology=v5e-256 --program=sample
  python -m shortcut_tpu.preflight --config=imagenet256_xl --topology=v5e-256 --search
  python -m shortcut_tpu.preflight --config=imagenet256_xl --topology=v5e-256 --whole
  python -m shortcut_tpu.preflight --all --json=pods.json            # every config on every pod
  python -m shortcut_tpu.preflight --all --config=imagenet256_xl     # one config on every pod
  python -m shortcut_tpu.preflight --all --whole --json=runs.json    # every whole run on every pod

libtpu's compiler works on any Linux machine without a TPU. It compiles the same step, state and
shardings that `shortcut_tpu.train` runs on the pod. Nothing is run: figures come from the compiler
and the chips' published peaks. "At least" is a lower bound of the time, "estimate" the sum of the
compiler's own costs (docs/estimates.md). The exit status is 1 if the run does not fit. With
--config.train.compile_cache=DIR the compiled step is stored where `train` looks for it; no pod has
tried yet whether it finds that entry. --all takes a minute or two for each row, with --whole two to
five, and --search about a quarter of an hour for XL. All continue when they are started again with
the same --json.
"""

import functools
import os
import sys
from typing import Any
import warnings

# Before JAX wakes: this machine is no TPU host, and its compiler shall not ask for one.
os.environ["JAX_PLATFORMS"] = "cpu"
os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
# Without a name of its own the compiler warns about every variable that a TPU VM would have.
os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")
os.environ.setdefault("TPU_ACCELERATOR_TYPE", "v5litepod-256")
os.environ.setdefault("TPU_MIN_LOG_LEVEL", "3")

from absl import flags
import jax
from ml_collections import ConfigDict

from data_pipeline.errors import UserError
from shortcut_tpu.cli import command
from shortcut_tpu.cli import config as config_lib
from shortcut_tpu.compiled import whole_run
from shortcut_tpu.compiled.analysis import PROGRAMS, analyse
from shortcut_tpu.compiled.estimate import estimate_lines, explain_lines
from shortcut_tpu.compiled.matrix import PODS, Row, compiled, markdown, matrix, read_rows
from shortcut_tpu.compiled.search import best, named, search, seconds_a_row
from shortcut_tpu.compiled.walks import COLUMNS, train_steps, walked
from shortcut_tpu.pod import compile_cache, partitioning
from shortcut_tpu.pod.topologies import Topology

GIB = 2**30


def define_flags() -> None:
    command.define_config()
    flags.DEFINE_string(
        "topology", None, 'Pod, such as v5e-256, v6e-256, v5p-128, v4-64, or slices: "2x v5e-256".'
    )
    flags.DEFINE_enum(
        "program",
        "train",
        PROGRAMS,
        "The train step, the sampler of evaluation (latents), or the network once.",
    )
    flags.DEFINE_integer("steps", 1, "Steps of the sampler.", lower_bound=1)
    flags.DEFINE_boolean(
        "search", False, "Find the layout and batch of the least estimated time an image; minutes."
    )
    flags.DEFINE_boolean(
        "whole",
        False,
        "Check the whole run, not only one program: records, checkpoints, evaluations; minutes.",
    )
    flags.DEFINE_boolean(
        "all",
        False,
        "A table of every config on every pod; --config or --topology leaves one.",
    )
    flags.DEFINE_boolean(
        "explain", False, "Name the twenty dearest operations and the lines they come from."
    )
    command.define_json()


def report(figures: dict[str, Any]) -> list[str]:
    """The figures as lines for a person."""
    capacity = figures["hbm_capacity_bytes"] / GIB
    mesh = partitioning.in_words(figures["mesh"])
    kinds = ", ".join(
        f"{kind} {size / GIB:.2f}" for kind, size in figures["hbm_bytes_by_kind"].items()
    )
    lines = [
        f"topology     {figures['topology']}, {figures['chips']} chips as ({mesh})",
        f"batch        {figures['batch_size']} rows, remat {figures['remat']}",
    ]
    if "hbm_bytes_per_chip" not in figures:
        return [*lines, f"HBM a chip   {kinds} of {capacity:.2f} GiB before anything is computed"]
    used = figures["hbm_bytes_per_chip"] / GIB
    times = ", ".join(
        f"{part.upper()} {1e3 * seconds:.3g}"
        for part, seconds in figures["roofline_seconds"].items()
        if seconds or part != "dcn"
    )
    per_image = figures["model_flops"] / figures["batch_size"]
    more = figures["executed_flops"] / figures["model_flops"] - 1
    moved, ratio = figures["collective_bytes"] / GIB, figures["collective_bytes_ratio"]
    compared = f"{ratio:.3f} x the {figures['required_bytes'] / GIB:.3g}" if ratio else "of the 0"
    lines += [
        f"HBM a chip   {used:.2f} of {capacity:.2f} GiB: {kinds}, activations and other "
        f"temporaries {figures['hbm_temporary_bytes'] / GIB:.2f}, code "
        f"{figures['hbm_code_bytes'] / GIB:.2f}",
        f"operations   {per_image:.4g} FLOPs a row; {100 * more:+.1f} % recomputed or padded",
        *([f"kernels      {', '.join(figures['kernels'])}"] if figures["kernels"] else []),
        f"collectives  {moved:.3g} GiB a chip, {compared} that must move",
        *_collective_lines(figures["collectives"]),
        f"at least     {times} ms a call: bound by {figures['bound_by'].upper()}, "
        f"MFU at most {100 * figures['mfu_bound']:.0f} %",
        *(estimate_lines(figures) if "estimated_cycles" in figures else []),
        f"compiled in  {figures['compile_seconds']} s",
    ]
    return lines


def _collective_lines(entries: list[dict[str, Any]]) -> list[str]:
    """One line for each operation and axis."""
    totals: dict[tuple[str, str, bool], tuple[int, int]] = {}
    for entry in entries:
        key = (entry["op"], entry["axis"], entry["overlapped"])
        size, count = totals.get(key, (0, 0))
        totals[key] = (size + entry["bytes"] * entry["count"], count + entry["count"])
    return [
        f"             {op} over {axis}: {size / GIB:.3g} GiB in {count}"
        + (", overlapped" if overlapped else "")
        for (op, axis, overlapped), (size, count) in totals.items()
    ]


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def why_not(figures: dict[str, Any]) -> str:
    """Why a program does not fit."""
    return figures.get("reason") or (
        f"{figures['hbm_bytes_per_chip'] / GIB:.2f} GiB a chip of "
        f"{figures['hbm_capacity_bytes'] / GIB:.2f}"
    )


def one(config: ConfigDict, topology: Topology) -> None:
    """Reports on one program of a config on a pod."""
    figures = analyse(config, topology, flags.FLAGS.program, flags.FLAGS.steps)
    command.write_json(figures)
    if not figures["fits"]:
        raise UserError(
            f"batch {figures['batch_size']} does not fit on {topology.name}: {why_not(figures)}"
        )
    dearest = ["", *explain_lines(figures), ""] if flags.FLAGS.explain else []
    print(*report(figures), *dearest, "fits", sep="\n")


def whole(config: ConfigDict, topology: Topology) -> None:
    """Walks the run from its first act to its last."""
    found = whole_run.walk(config, topology, say=_say)
    command.write_json(found)
    print(*whole_run.report(found), sep="\n")
    sys.stdout.flush()
    if not found["fits"]:
        raise UserError(f"on {topology.name} the run does not fit: {found['reason']}")
    print("fits")


def fastest(config: ConfigDict, topology: Topology) -> None:
    """Reports on the search for the least time an image; what --json holds is not made again."""
    known = read_rows(flags.FLAGS.json)
    rows: list[Row] = []
    for row in search(config, topology, known, say=_say):
        rows.append(row)
        known.pop(row.get("key", ""), None)
        command.write_json({"topology": topology.name, "rows": [*rows, *known.values()]})
    own, least = best(rows, same_batch=True), best(rows)
    command.write_json(
        {"topology": topology.name, "rows": rows, "best_of_this_batch": own, "best": least}
    )
    print(f"{'batch':>6}{'HBM, GiB':>10}{'ms':>9}{'an image':>10}{'MFU':>6}  changed")
    for row in rows:
        figures = (
            f"{'does not fit':>35}"
            if not row["fits"]
            else (
                f"{row['hbm_bytes_per_chip'] / GIB:10.2f}{1e3 * row['estimated_seconds']:9.4g}"
                f"{1e3 * seconds_a_row(row):10.4g}{100 * row['estimated_mfu']:4.0f} %"
            )
        )
        print(f"{row.get('batch_size', ''):>6}{figures}  {named(row['changed'])}")
    print(f"of this batch the fastest: {named(own['changed'])}")
    print(f"of all: {named(least['changed'])}")


def table() -> None:
    """Prints the matrix of configs and pods; what --json holds of it already is not made again."""
    values = flags.FLAGS
    configs = (
        [(command.config_path().stem, values.config)]
        if values.config is not None
        else [(name, config_lib.load(name)) for name in config_lib.names()]
    )
    pods = [values.topology] if values.topology else PODS
    known = read_rows(values.json)
    figures, columns = (
        (functools.partial(walked, known=known), COLUMNS)
        if values.whole
        else (
            functools.partial(compiled, program=values.program, steps=values.steps, known=known),
            None,
        )
    )
    rows = []
    for row in matrix(configs, pods, figures, known, _say):
        rows.append(row)
        known.pop(row.get("key", ""), None)
        # Whenever this ends, the next run finds what this one and those before it made.
        command.write_json({"rows": [*rows, *known.values()]})
    print(markdown(rows, columns))
    if values.whole:
        print("", "The train steps:", "", markdown(train_steps(rows)), sep="\n")
    command.write_json({"rows": rows})


def main() -> None:
    # As `train` sets it: noise must not depend on how an array is sharded.
    jax.config.update("jax_threefry_partitionable", True)
    command.require_places()
    if flags.FLAGS.all:
        table()
        return
    config = command.config()
    topology = Topology.parse(command.required("topology", "the pod, such as v5e-256"))
    compile_cache.enable(config.train.compile_cache)
    # Without a TPU an entry is written and found again, but cannot be loaded.
    warnings.filterwarnings("ignore", "Error reading persistent compilation cache entry")
    if flags.FLAGS.whole:
        whole(config, topology)
    elif flags.FLAGS.search:
        fastest(config, topology)
    else:
        one(config, topology)
    sys.stdout.flush()


if __name__ == "__main__":
    command.run(main, define_flags)
