"""Training objectives by name.

To add one: a file here with a frozen dataclass derived from `Objective`, a line in `OBJECTIVES`,
and its hyperparameters in `configs/hyperparameters.py`.
"""

from collections.abc import Mapping
from typing import Any

from shortcut_tpu.objectives.alpha_flow import AlphaFlow
from shortcut_tpu.objectives.base import Inputs, Judge, Metrics, Objective
from shortcut_tpu.objectives.consistency_distillation import ConsistencyDistillation
from shortcut_tpu.objectives.consistency_training import ConsistencyTraining
from shortcut_tpu.objectives.diffusion import Diffusion
from shortcut_tpu.objectives.fd_loss import FDLoss
from shortcut_tpu.objectives.flow_anchored import FlowAnchored
from shortcut_tpu.objectives.flow_matching import FlowMatching
from shortcut_tpu.objectives.get import GenerativeEquilibrium
from shortcut_tpu.objectives.high_order import HighOrder
from shortcut_tpu.objectives.improved_meanflow import ImprovedMeanFlow
from shortcut_tpu.objectives.improved_shortcut import ImprovedShortcut
from shortcut_tpu.objectives.koopman import KoopmanDistillation
from shortcut_tpu.objectives.live_reflow import LiveReflow
from shortcut_tpu.objectives.meanflow import MeanFlow
from shortcut_tpu.objectives.progressive_distillation import ProgressiveDistillation
from shortcut_tpu.objectives.reflow import Reflow
from shortcut_tpu.objectives.shortcut import Shortcut
from shortcut_tpu.objectives.split_meanflow import SplitMeanFlow

_ALL: tuple[type[Objective], ...] = (
    FlowMatching,
    Diffusion,
    Shortcut,
    ConsistencyTraining,
    LiveReflow,
    ProgressiveDistillation,
    ConsistencyDistillation,
    Reflow,
    GenerativeEquilibrium,
    KoopmanDistillation,
    MeanFlow,
    ImprovedMeanFlow,
    AlphaFlow,
    SplitMeanFlow,
    ImprovedShortcut,
    HighOrder,
    FDLoss,
    FlowAnchored,
)
OBJECTIVES: dict[str, type[Objective]] = {objective.name: objective for objective in _ALL}


def make_objective(config: Mapping[str, Any]) -> Objective:
    """The objective that `config.name` names, with the hyperparameters in its group.

    Raises:
      ValueError: for an unknown name or a hyperparameter out of its range.
    """
    name = config["name"]
    if name not in OBJECTIVES:
        raise ValueError(f"objective.name={name!r} is none of {', '.join(OBJECTIVES)}")
    objective = OBJECTIVES[name]
    own = dict(config[objective.group])
    if objective.needs_judges:
        own["trained"] = make_objective({**config, "name": own["generator"]})
    return objective(**own)


__all__ = ["OBJECTIVES", "Inputs", "Judge", "Metrics", "Objective", "make_objective"]
