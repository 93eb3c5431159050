"""The networks by name: `apply(params, x, t, d, labels)`.

To add one: a file here with a class derived from `Model`, a line in `NETWORKS` and, where it has
shapes of its own, a group of that name under `model` in `configs/common.py`.
"""

from collections.abc import Mapping
from typing import Any

from shortcut_tpu.models.dit import DiT, DiTConfig
from shortcut_tpu.models.get import GET
from shortcut_tpu.models.in_context import InContext
from shortcut_tpu.models.koopman import Koopman
from shortcut_tpu.models.model import Model, Params
from shortcut_tpu.models.policy import Policy

NETWORKS: dict[str, type[Model]] = {
    "dit": DiT,
    "in_context": InContext,
    "policy": Policy,
    "equilibrium": GET,
    "koopman": Koopman,
}


def data_keys(name: str) -> tuple[str, ...]:
    """What the network of that name must be told of `config.data`.

    Raises:
      ValueError: there is no such network.
    """
    if name not in NETWORKS:
        raise ValueError(f"model.network={name!r} is none of {', '.join(NETWORKS)}")
    return NETWORKS[name].data_keys


def configure(name: str, options: Mapping[str, Any], **shapes: Any) -> Any:
    """The `Config` of the network of that name.

    Args:
      name: a key of `NETWORKS`.
      options: `config.model`; of its groups only the one of that name counts.
      shapes: what the data and the objective ask for.

    Raises:
      ValueError: an option is out of its range.
    """
    unshared = {"network", *NETWORKS}
    common = {key: value for key, value in options.items() if key not in unshared}
    return NETWORKS[name].Config(**common, **options.get(name, {}), **shapes)


__all__ = ["NETWORKS", "DiT", "DiTConfig", "InContext", "Model", "Params", "configure", "data_keys"]
