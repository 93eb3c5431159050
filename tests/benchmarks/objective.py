"""The shortcut step beside the flow-matching step: what the bootstrap targets cost.

A quarter of the rows, k, needs two more forward passes, and a step of flow matching is worth three:
(3 + 2k) / 3.
"""

import jax

from tests.benchmarks.comparison import Bar, Comparison, Options, in_turns
from tests.benchmarks.small import Run, small_config

SHARE = 0.25
BEST = (3 + 2 * SHARE) / 3
STEPS = 2


def measure(options: Options) -> list[Comparison]:
    config = small_config("shortcut").copy_and_resolve_references()
    config.objective.shortcut.bootstrap_share = SHARE
    shortcut = Run(config, jax.devices())
    flow = Run(small_config("flow_matching"), jax.devices())
    flops = [run.compiled.cost_analysis()["flops"] for run in (shortcut, flow)]
    ours, other = in_turns(
        lambda: shortcut.seconds_a_step(STEPS), lambda: flow.seconds_a_step(STEPS), options.rounds
    )
    name = "shortcut step over flow matching's, k = 1/4"
    return [
        Comparison(f"{name}, FLOPs", "FLOPs", flops[:1], flops[1:], Bar(high=1.02 * BEST)),
        Comparison(f"{name}, time", "s", ours, other, Bar(high=1.25 * BEST)),
    ]
