"""The architecture of an AutoencoderKL, as diffusers' `config.json` states it.

Usage:
    config = KLConfig.load("DIR/config.json")
"""

from collections.abc import Mapping
import dataclasses
import json
import math
from typing import Any

from etils import epath

from data_pipeline.errors import UserError
from data_pipeline.system_errors import unreadable

# What the network here is; a file that says otherwise describes another one.
_FIXED: dict[str, tuple[Any, ...]] = {
    "_class_name": ("AutoencoderKL",),
    "act_fn": ("silu",),
    "latents_mean": (None,),
    "latents_std": (None,),
}


@dataclasses.dataclass(frozen=True)
class KLConfig:
    """The keys of `config.json` that matter, with diffusers' defaults.

    Attributes:
        in_channels: channels of the images that are encoded.
        out_channels: channels of the decoded images.
        block_out_channels: the width at each resolution, from the images' down.
        layers_per_block: residual blocks a resolution; the decoder has one more.
        latent_channels: channels of a latent.
        norm_num_groups: groups of the normalisations.
        scaling_factor: what the latents are multiplied by for the model.
        shift_factor: what is subtracted from them before.
        use_quant_conv: whether a 1x1 convolution follows the encoder.
        use_post_quant_conv: whether one precedes the decoder.
        mid_block_add_attention: whether pixels attend to each other in the middle, at the lowest
            resolution.
        lowest_attention: whether they do so after each of the other blocks of that resolution.
    """

    in_channels: int = 3
    out_channels: int = 3
    block_out_channels: tuple[int, ...] = (64,)
    layers_per_block: int = 1
    latent_channels: int = 4
    norm_num_groups: int = 32
    scaling_factor: float = 0.18215
    shift_factor: float = 0.0
    use_quant_conv: bool = True
    use_post_quant_conv: bool = True
    mid_block_add_attention: bool = True
    lowest_attention: bool = False

    @classmethod
    def va_vae(cls) -> "KLConfig":
        """Of VA-VAE (arXiv 2501.01423)."""
        return cls(
            block_out_channels=(128, 128, 256, 256, 512),
            layers_per_block=2,
            latent_channels=32,
            scaling_factor=1.0,
            lowest_attention=True,
        )

    @classmethod
    def published(cls, latent_channels: int = 4) -> "KLConfig":
        """Of Stable Diffusion's autoencoders (arXiv 2112.10752); later ones have more channels."""
        return cls(
            block_out_channels=(128, 256, 512, 512),
            layers_per_block=2,
            latent_channels=latent_channels,
        )

    @property
    def reduction(self) -> int:
        """How many of an image's pixels one of the latent's stands for, in each direction."""
        return 1 << (len(self.block_out_channels) - 1)

    @classmethod
    def load(cls, path: epath.PathLike) -> "KLConfig":
        """Reads a `config.json`.

        Raises:
            UserError: the file is missing or no JSON, a value is out of range, or the file
                describes another kind of network.
        """
        try:
            raw = json.loads(epath.Path(path).read_text())
        except OSError as error:
            raise unreadable(path, error) from None
        except ValueError as error:
            raise UserError(f"{path}: is not JSON: {error}") from None
        if not isinstance(raw, dict):
            raise UserError(f"{path}: is not a JSON object")
        try:
            return cls._from_mapping(raw)
        except ValueError as error:
            raise UserError(f"{path}: {error}") from None

    @classmethod
    def _from_mapping(cls, raw: Mapping[str, Any]) -> "KLConfig":
        """Takes the values that matter; raises a ValueError for the first that cannot be used."""
        for key, allowed in _FIXED.items():
            if key in raw and raw[key] not in allowed:
                raise ValueError(f"{key} {raw[key]!r} is not supported, only {allowed[0]!r}")
        values: dict[str, Any] = {}
        for field in dataclasses.fields(cls):
            # diffusers writes null for a shift that is not there.
            value = raw.get(field.name)
            if value is not None:
                values[field.name] = _checked(field.name, value, field.default)
        config = cls(**values)
        for key, kind in (("down", "DownEncoderBlock2D"), ("up", "UpDecoderBlock2D")):
            types = raw.get(f"{key}_block_types", [kind] * len(config.block_out_channels))
            if types != [kind] * len(config.block_out_channels):
                raise ValueError(
                    f"{key}_block_types {types!r} are not supported, only one {kind} for each of"
                    " block_out_channels"
                )
        for width in config.block_out_channels:
            if width % config.norm_num_groups:
                raise ValueError(
                    f"norm_num_groups {config.norm_num_groups} does not divide the"
                    f" {width} of block_out_channels"
                )
        return config


def _checked(key: str, value: Any, default: Any) -> Any:
    """A value, if it is of its default's type and in range."""
    if isinstance(default, tuple):
        if not isinstance(value, list) or not value:
            raise ValueError(f"{key} {value!r} is not a list of numbers")
        return tuple(_checked(key, item, default[0]) for item in value)
    if isinstance(default, bool):
        valid = isinstance(value, bool)
    elif isinstance(default, int):
        valid = type(value) is int and value > 0
    else:
        valid = type(value) in (int, float) and math.isfinite(value)
        valid = valid and (key != "scaling_factor" or value > 0)
    if not valid:
        raise ValueError(f"{key} {value!r} cannot be used")
    return value
