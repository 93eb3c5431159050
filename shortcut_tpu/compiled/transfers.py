"""Finds transfers that the TPU compiler splits over fusions and loops.

Each of them repeats the collective with its operands and results, although none but the first moves
anything anew. Where those that carry it on lie in a loop, all turns share one transfer.

Usage:
  begun = started(program)
  if carried_on(fused, begun): ...                      # counted where it starts
"""

from collections.abc import Set

from shortcut_tpu.compiled.hlo import Computation, Program

START, DONE = "AsyncCollectiveStart", "AsyncCollectiveDone"


def targets(fused: Computation, target: str) -> bool:
    """Whether a computation holds a custom call of this name."""
    return any(
        i.op == "custom-call" and f'custom_call_target="{target}"' in i.attributes
        for i in fused.instructions
    )


def started(program: Program) -> frozenset[str]:
    """Channels of the transfers that a fusion starts and others carry on."""
    return frozenset(
        channel
        for fused in program.computations.values()
        if targets(fused, START)
        for channel in (i.attribute("channel_id") for i in fused.instructions)
        if channel is not None
    )


def carried_on(fused: Computation, begun: Set[str]) -> frozenset[str]:
    """What in a fusion hands on a transfer that another one started, by name; it moves nothing.

    Args:
      fused: the fusion's computation.
      begun: from `started`.
    """
    if targets(fused, START):
        return frozenset()
    parts = {i.name for i in fused.instructions if i.attribute("channel_id") in begun}
    handed = {fused.root.name} if parts and fused.root.op in ("tuple", "custom-call") else set()
    return frozenset(parts | handed)
