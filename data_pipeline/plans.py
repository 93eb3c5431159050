"""Compares what a folder of records was begun as with what it is to be now.

Usage:
    differences(without(there, ["num_records"]), without(here, ["num_records"]))
"""

from collections.abc import Mapping, Sequence
import json
from typing import Any


def without(plan: Mapping[str, Any], keys: Sequence[str]) -> dict[str, Any]:
    """A plan without some keys, at either level."""
    return {
        key: without(value, keys) if isinstance(value, dict) else value
        for key, value in plan.items()
        if key not in keys
    }


def differences(there: Mapping[str, Any], here: Mapping[str, Any]) -> list[str]:
    """What differs between an earlier plan and this one, a phrase each, short enough to print."""
    old, new = _flatten(there), _flatten(here)
    return [
        f"{key} is {old.get(key, 'absent'):.60} there and {new.get(key, 'absent'):.60} now"
        for key in sorted({*old, *new})
        if old.get(key) != new.get(key)
    ]


def _flatten(plan: Mapping[str, Any]) -> dict[str, str]:
    """A plan as one level of texts, so that tuples and JSON's lists compare equal."""
    flat: dict[str, str] = {}
    for key, value in plan.items():
        inner = value.items() if isinstance(value, dict) else [(key, value)]
        flat.update((name, json.dumps(item)) for name, item in inner)
    return flat
