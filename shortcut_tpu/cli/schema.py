"""Checks a config's keys and values before anything is read, compiled or written.

Each key by itself is `config.check_values`'s; here they are held against one another.

Usage:
  check(config)
"""

from collections.abc import Iterator

from ml_collections import ConfigDict

from data_pipeline.errors import UserError
from shortcut_tpu.cli.config import check_keys, check_values
from shortcut_tpu.objectives import OBJECTIVES, make_objective
from shortcut_tpu.sampling.guidance import Guidance
from shortcut_tpu.training.parts import make_parts


def check(config: ConfigDict) -> None:
    """Refuses a config that no run can have, or whose values do not go together.

    Raises:
      UserError: one line with the key, its value and what it may be.
    """
    check_keys(config)
    check_values(config)
    for line in _contradictions(config):
        raise UserError(line)
    Guidance.of(config.evaluation)
    make_parts(config)
    for name in OBJECTIVES:
        # Those that are not trained now may be by `compare`.
        try:
            make_objective(config.objective.to_dict() | {"name": name})
        except ValueError as error:
            raise UserError(str(error)) from None


def _contradictions(config: ConfigDict) -> Iterator[str]:
    """A line for each pair of keys that do not go together and that no part looks at."""
    data, optim, train, objective = config.data, config.optimizer, config.train, config.objective
    if optim.warmup_steps > train.num_steps:
        yield (
            f"optimizer.warmup_steps={optim.warmup_steps}: it may be at most "
            f"train.num_steps={train.num_steps}"
        )
    if train.accumulate > 1 and objective.name == "koopman":
        yield (
            f"train.accumulate={train.accumulate}: it may be 1 for koopman, whose loss is no pass "
            "through its whole network"
        )
    if (config.model.network == "policy") != bool(data.horizon):
        yield (
            f"model.network={config.model.network!r}: it may be policy where data.horizon is above "
            f"0, and only there; that is {data.horizon}"
        )
    if data.horizon and not data.observation_size:
        yield "data.observation_size=0: it may be at least 1 where data.horizon is above 0"
    if not data.horizon and not data.num_classes:
        yield "data.num_classes=0: it may be at least 1, which is a model without labels"
    lengths = [len(data.latent_mean), len(data.latent_std)]
    if lengths not in ([0, 0], [data.channels] * 2):
        yield (
            f"data.latent_mean and data.latent_std have {lengths[0]} and {lengths[1]} numbers: "
            f"each may have none, or data.channels={data.channels}"
        )
    if objective.name == "diffusion":
        most = objective.diffusion.diffusion_steps
        if max(config.evaluation.steps) > most:
            yield (
                f"evaluation.steps={tuple(config.evaluation.steps)}: it may be at most "
                f"objective.diffusion.diffusion_steps={most}"
            )
