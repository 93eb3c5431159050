"""A DiT over chunks of actions, conditioned on an observation: a diffusion policy.

Source: "Diffusion Policy" (arXiv 2303.04137), whose transformer reads the observation by attention;
here it modulates the blocks, as DiT's label does. A token is `patch_size` actions.

Usage:
  model = Policy(PolicyConfig(horizon=16, channels=2, observation_size=8, patch_size=4, ...))
  v = model.apply(params, x, t, d, observations)          # [B, 16, 2] float32
"""

import dataclasses

from flax import nnx
from jaxtyping import Array, Float
import numpy as np

from shortcut_tpu.array_types import Outputs, Rows, Tokens, Vectors
from shortcut_tpu.models import dit
from shortcut_tpu.models.embeddings import sincos_1d


@dataclasses.dataclass(frozen=True, kw_only=True)
class PolicyConfig(dit.TransformerConfig):
    """A DiT's shapes and those of the data; `channels` are the numbers of an action.

    Attributes:
      horizon: actions of a chunk.
      observation_size: numbers of an observation.
    """

    horizon: int
    observation_size: int

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.horizon % self.patch_size:
            raise ValueError(
                f"model.patch_size={self.patch_size} does not divide data.horizon={self.horizon}"
            )

    @property
    def num_patches(self) -> int:
        return self.horizon // self.patch_size

    @property
    def patch_values(self) -> int:
        return self.patch_size * self.channels


class ObservationEmbedder(nnx.Module):
    """A vector of an observation, in the place of a label's."""

    def __init__(self, size: int, width: int, *, rngs: nnx.Rngs):
        xavier = nnx.initializers.xavier_uniform()
        self.enter = nnx.Linear(size, width, kernel_init=xavier, rngs=rngs)
        self.hidden = nnx.Linear(width, width, kernel_init=xavier, rngs=rngs)
        self.out = nnx.Linear(width, width, kernel_init=xavier, rngs=rngs)

    def __call__(self, observation: Float[Array, "B O"]) -> Vectors:
        h = nnx.silu(self.enter(observation.astype(self.enter.kernel.dtype)))
        return self.out(nnx.silu(self.hidden(h)))


class Network(dit.Network):
    """The modules of a policy."""

    def label_embedder(self, rngs: nnx.Rngs) -> nnx.Module:
        return ObservationEmbedder(self.config.observation_size, self.config.width, rngs=rngs)

    def to_tokens(self, x: Rows) -> Tokens:
        return x.reshape(len(x), -1, self.config.patch_values)

    def from_tokens(self, tokens: Tokens) -> Outputs:
        return tokens.reshape(len(tokens), self.config.horizon, -1)

    def positions(self) -> Float[np.ndarray, "N D"]:
        return sincos_1d(self.config.width, self.config.num_patches)


class Policy(dit.Transformer):
    """A policy as two pure functions; x are chunks [B, horizon, A], labels observations [B, O]."""

    Config = PolicyConfig
    Network = Network
    data_keys = ("horizon", "channels", "observation_size")

    @property
    def null_label(self) -> float:
        """An observation of zeros stands for none."""
        return 0.0
