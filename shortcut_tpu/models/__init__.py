"""Networks that predict velocities: `apply(params, x, t, d, labels) -> v`."""

from shortcut_tpu.models.dit import DiT, DiTConfig, Params

__all__ = ["DiT", "DiTConfig", "Params"]
