"""Times a config's programs on the devices at hand, beside the compiler's limits.

  launch/tpu_pod.sh --config=imagenet256_xl --job=measure ...        # a pod, in about five minutes
  python -m shortcut_tpu.measure --config=imagenet256_b              # this machine
  python -m shortcut_tpu.measure --config=digits --rounds=3 --json=figures.json

It times the train step, the same step for flow matching, one pass of the network, and sampling in
one and in many steps, with random rows in the run's layout: sharded over all devices of all hosts.
"Limit" is preflight's "at least" and "estimate" is the compiler's estimate of the program that ran,
each as a share of the measured time. Devices without published peaks have neither. It needs no
records and writes nothing but --json.
"""

from collections.abc import Iterator
import dataclasses
import math
import statistics
import time
from typing import Any

from absl import flags
import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from shortcut_tpu.cli import command
from shortcut_tpu.cli.console import say
from shortcut_tpu.compiled.analysis import Candidate, examine_compiled
from shortcut_tpu.observability.speed import utilisation
from shortcut_tpu.pod import compile_cache, distributed, partitioning
from shortcut_tpu.pod.topologies import Topology

GIB = 2**30
STEP, FLOW, FORWARD = "train step", "the same, flow matching", "network, one pass"
# A round takes about so many seconds.
_ROUND_SECONDS = 2.0


@dataclasses.dataclass(frozen=True)
class Timing:
    """A program and how long it took.

    Attributes:
      name: of the program.
      rows: that a call trains on or makes.
      model_flops: of a call on all devices, no recomputation.
      seconds: of a call, the mean of each round.
      limits: of one device, as `preflight` has them; empty without published peaks.
    """

    name: str
    rows: int
    model_flops: int
    seconds: list[float]
    limits: dict[str, Any]

    @property
    def median(self) -> float:
        """Seconds of a call."""
        return statistics.median(self.seconds)

    @property
    def limit(self) -> float | None:
        """Seconds that a call takes at least."""
        return max(self.limits["roofline_seconds"].values()) if self.limits else None

    def figures(self) -> dict[str, Any]:
        """All of it and what follows, for JSON."""
        devices = jax.devices()
        rates = utilisation(self.model_flops / self.median, len(devices), devices[0].device_kind)
        return {
            "name": self.name,
            "rows": self.rows,
            "model_flops": self.model_flops,
            "seconds": self.seconds,
            "median_seconds": self.median,
            "rows_per_second": self.rows / self.median,
            **{name.removeprefix("perf/"): rate for name, rate in rates.items()},
            "limit_seconds": self.limit,
            **self.limits,
        }


def candidates(config: ConfigDict, many: int) -> Iterator[tuple[str, Candidate]]:
    """The programs that are timed, by name.

    Args:
      config: of the run.
      many: steps of the longer sampling.
    """
    devices = jax.devices()
    yield STEP, Candidate.make(config, devices, "train")
    if config.objective.name != "flow_matching":
        flow = config.copy_and_resolve_references()
        with flow.unlocked():
            flow.objective.name = "flow_matching"
        yield FLOW, Candidate.make(flow, devices, "train")
    yield FORWARD, Candidate.make(config, devices, "forward")
    # A policy's samples are of another kind; `rollout` makes them.
    if not config.data.horizon:
        for steps in (1, many):
            yield sampling(steps), Candidate.make(config, devices, "sample", steps)


def sampling(steps: int) -> str:
    """The name of a sampler."""
    return f"sampling, {steps} step{'s' if steps > 1 else ''}"


def timed(name: str, candidate: Candidate, topology: Topology | None, rounds: int) -> Timing:
    """Compiles a program and runs it in rounds of about the same time."""
    started = time.monotonic()
    compiled = candidate.lowered.compile()
    say(f"{name}: compiled in {time.monotonic() - started:.0f} s")
    first, *rest = _arguments(candidate)

    def call() -> Any:
        nonlocal first
        out = compiled(first, *rest)
        if candidate.trains:
            first, out = out
        return out

    def mean(calls: int) -> float:
        started = time.perf_counter()
        before = None
        for _ in range(calls):
            # One waits while another runs: no more, or results would fill the memory.
            out = call()
            jax.block_until_ready(before)
            before = out
        jax.block_until_ready((first, before))
        return (time.perf_counter() - started) / calls

    mean(1)
    # All hosts must call it equally often.
    calls = distributed.from_first(math.ceil(_ROUND_SECONDS / mean(1)))
    return Timing(
        name=name,
        rows=candidate.batch_size,
        model_flops=candidate.model_flops(),
        seconds=[mean(calls) for _ in range(rounds)],
        limits=examine_compiled(candidate, topology, compiled) if topology else {},
    )


def _arguments(candidate: Candidate) -> tuple[Any, ...]:
    """Weights as a run has them at its start, and random rows."""
    state = candidate.experiment.init_state()
    first = state if candidate.trains else state.emas["evaluation"]
    return first, *(_random(argument) for argument in candidate.arguments[1:])


def _random(shapes: Any) -> Any:
    """Normal numbers, and zeros where integers are wanted."""

    def fill() -> Any:
        return jax.tree.map(
            lambda leaf: (
                jax.random.normal(jax.random.key(0), leaf.shape, leaf.dtype)
                if jnp.issubdtype(leaf.dtype, jnp.floating)
                else jnp.zeros(leaf.shape, leaf.dtype)
            ),
            shapes,
        )

    return jax.jit(fill, out_shardings=jax.tree.map(lambda leaf: leaf.sharding, shapes))()


def ratios(timings: dict[str, Timing], many: int) -> dict[str, float]:
    """How the programs' times compare, where both are there.

    Args:
      timings: by name.
      many: steps of the longer sampling.
    """
    pairs = {
        "train step over flow matching's": (STEP, FLOW, 1),
        f"a step of {many} over sampling in one": (sampling(many), sampling(1), many),
        "sampling in one step over a pass": (sampling(1), FORWARD, 1),
    }
    return {
        name: timings[ours].median / times / timings[other].median
        for name, (ours, other, times) in pairs.items()
        if ours in timings and other in timings
    }


def table(timings: list[Timing]) -> list[str]:
    """A line for each program, under a head."""
    width = max(len(timing.name) for timing in timings)
    lines = [
        f"{'':{width}} {'rows':>6} {'ms a call':>10} {'lowest':>9} {'highest':>9} {'rows/s':>9}"
        f" {'TFLOP/s':>8} {'MFU':>5}  limit; estimate"
    ]
    for timing in timings:
        found = timing.figures()
        mfu = f"{found['mfu']:.1%}" if "mfu" in found else "-"
        limit = timing.limit
        share = (
            f"{1e3 * limit:.4g} ms, {timing.limits['bound_by'].upper()}, "
            f"{limit / timing.median:.0%}"
            if limit
            else "-"
        )
        estimate = timing.limits.get("estimated_seconds")
        if estimate:
            share += f"; {1e3 * estimate:.4g} ms, {estimate / timing.median:.0%}"
        lines.append(
            f"{timing.name:{width}} {timing.rows:6} {1e3 * timing.median:10.4g}"
            f" {1e3 * min(timing.seconds):9.4g} {1e3 * max(timing.seconds):9.4g}"
            f" {found['rows_per_second']:9.4g} {found['model_tflops_per_second']:8.4g} {mfu:>5}"
            f"  {share}"
        )
    return lines


def memory() -> dict[str, int]:
    """Bytes in use at most, so far, and those there are, on this host's first device."""
    stats = jax.local_devices()[0].memory_stats() or {}
    names = {"peak_bytes": "peak_bytes_in_use", "capacity_bytes": "bytes_limit"}
    return {ours: stats[theirs] for ours, theirs in names.items() if theirs in stats}


def measure(config: ConfigDict, rounds: int, many: int) -> dict[str, Any]:
    """Times all programs and prints them.

    Args:
      config: of the run.
      rounds: how often each is timed.
      many: steps of the longer sampling.

    Raises:
      UserError: the config is not valid on these devices.
    """
    devices = jax.devices()
    topology = Topology.of_devices(devices)
    timings: dict[str, Timing] = {}
    mesh: dict[str, int] = {}
    for name, candidate in candidates(config, many):
        if not timings:
            mesh = {axis: int(size) for axis, size in candidate.experiment.mesh.shape.items()}
            shape = partitioning.in_words(mesh)
            say(f"{len(devices)} {devices[0].device_kind} devices ({shape})")
        timings[name] = timed(name, candidate, topology, rounds)
    compared, used = ratios(timings, many), memory()
    operations = timings[STEP].model_flops / timings[FLOW].model_flops if FLOW in timings else 1
    say("", *table(list(timings.values())), "")
    for name, ratio in compared.items():
        told = f", {operations:.3f} in operations" if name.startswith("train") else ""
        say(f"{name}: {ratio:.3f} x{told}")
    if used:
        say(" of ".join(f"{size / GIB:.2f}" for size in used.values()) + " GiB in use at most")
    return {
        "device_kind": devices[0].device_kind,
        "devices": len(devices),
        "mesh": mesh,
        "programs": [timing.figures() for timing in timings.values()],
        "ratios": compared,
        "memory": used,
    }


def define_flags() -> None:
    command.define_config()
    flags.DEFINE_integer("rounds", 5, "How often each program is timed.", lower_bound=1)
    flags.DEFINE_integer("steps", 128, "Steps of the longer sampling.", lower_bound=2)
    command.define_json()


def main() -> None:
    config = command.config()
    distributed.initialize()
    distributed.first_does(command.require_places)
    compile_cache.enable(config.train.compile_cache)
    figures = measure(config, flags.FLAGS.rounds, flags.FLAGS.steps)
    if jax.process_index() == 0:
        command.write_json(figures)


if __name__ == "__main__":
    command.run(main, define_flags)
