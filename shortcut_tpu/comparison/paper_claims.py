"""Checks the claims of the shortcut paper against measured distances.

Usage:
  lines = check({"shortcut": {1: 0.5, 4: 0.2, 128: 0.2}, "flow_matching": {...}})
"""

from collections.abc import Mapping

_ONE_PHASE = ("flow_matching", "consistency_training", "live_reflow")


def check(
    distances: Mapping[str, Mapping[int, float]], phases: Mapping[str, int] | None = None
) -> list[str]:
    """A line for each claim that the distances can decide.

    Source: "One Step Diffusion via Shortcut Models" (arXiv 2410.12557, section 5.1 and Table 1).

    Args:
      distances: by method and number of sampling steps.
      phases: by method, the trainings that follow each other.
    """
    lines = []
    shortcut = distances.get("shortcut", {})
    for other in _ONE_PHASE:
        for steps in (1, 4):
            if steps in shortcut and steps in distances.get(other, {}):
                ours, theirs = shortcut[steps], distances[other][steps]
                lines.append(
                    f"{_verdict(ours < theirs)}  shortcut beats {other} at {steps} step(s): "
                    f"{ours:.3g} against {theirs:.3g}"
                )
    flow = distances.get("flow_matching", {})
    if 128 in shortcut and 128 in flow:
        ratio = shortcut[128] / flow[128]
        lines.append(
            f"{_verdict(ratio <= 1.1)}  shortcut is within 10 % of flow matching at 128 steps: "
            f"{shortcut[128]:.3g} against {flow[128]:.3g}"
        )
    if phases and "shortcut" in phases:
        needed = phases["shortcut"]
        lines.append(f"{_verdict(needed == 1)}  shortcut needs one phase of training: {needed}")
    return lines


def _verdict(holds: bool) -> str:
    return "holds" if holds else "FAILS"
