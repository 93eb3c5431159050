"""VA-VAE: AutoencoderKL with 16 pixels to a latent's side and 32 channels, from its authors' file.

Source: "Reconstruction vs. Generation: Taming Optimization Dilemma in Latent Diffusion Models"
(VA-VAE and LightningDiT, arXiv 2501.01423). The network is that of latent diffusion (arXiv
2112.10752), under that code's names, which become diffusers' here; unlike Stable Diffusion's it
also attends in the blocks of the lowest resolution. The model sees its latents standardised by
channel: `data.standardize`.

Usage:
    autoencoder = load_va_vae("va-vae", "vavae-imagenet256-f16d32-dinov2.pt")
    mean, std = autoencoder.encode(images)     # [n, H, W, 3] to [n, H/16, W/16, 32], twice
"""

from collections.abc import Mapping
import re

from etils import epath
import numpy as np

from data_pipeline.autoencoders.kl import AutoencoderKL, weight_shapes
from data_pipeline.autoencoders.kl_config import KLConfig
from data_pipeline.autoencoders.weights import fitted, sha256
from data_pipeline.errors import UserError
from data_pipeline.torch_archive import read_torch_checkpoint

# The training's file holds its discriminator and projections to DINOv2's features as well.
_OURS = ("encoder.", "decoder.", "quant_conv.", "post_quant_conv.")
# Parts of names in the code of latent diffusion, and in diffusers.
_NAMES = (
    (r"mid\.block_1\.", "mid_block.resnets.0."),
    (r"mid\.block_2\.", "mid_block.resnets.1."),
    (r"mid\.attn_1\.", "mid_block.attentions.0."),
    (r"(down|up)\.(\d+)\.block\.", r"\1_blocks.\2.resnets."),
    (r"(down|up)\.(\d+)\.attn\.", r"\1_blocks.\2.attentions."),
    (r"down\.(\d+)\.downsample\.", r"down_blocks.\1.downsamplers.0."),
    (r"up\.(\d+)\.upsample\.", r"up_blocks.\1.upsamplers.0."),
    (r"\.nin_shortcut\.", ".conv_shortcut."),
    (r"coder\.norm_out\.", "coder.conv_norm_out."),
    (r"(attentions\.\d+)\.norm\.", r"\1.group_norm."),
    (r"(attentions\.\d+)\.([qkv])\.", r"\1.to_\2."),
    (r"(attentions\.\d+)\.proj_out\.", r"\1.to_out.0."),
)


def load_va_vae(name: str, path: epath.PathLike) -> AutoencoderKL:
    """Loads the authors' file, a `.pt`, local or `gs://`.

    Args:
        name: what the autoencoder is to be called in manifests.
        path: the file.

    Raises:
        UserError: it is missing or damaged, or holds another network.
    """
    tensors = {k: v for k, v in read_torch_checkpoint(path).weights.items() if k.startswith(_OURS)}
    config = _config(path, tensors)
    depth = len(config.block_out_channels)
    renamed = {_name(key, depth): tensor for key, tensor in tensors.items()}
    for key, tensor in renamed.items():
        # Attention's layers are convolutions of one pixel there.
        if ".attentions." in key and tensor.ndim == 4:
            renamed[key] = tensor[:, :, 0, 0]
    weights = fitted(path, renamed, weight_shapes(config))
    return AutoencoderKL(name, sha256([path]), config, weights)


def _config(path: epath.PathLike, tensors: Mapping[str, np.ndarray]) -> KLConfig:
    """What the shapes tell of the network."""
    try:
        down = r"encoder\.down\.{}\.block\.(\d+)\.conv1\.weight"
        levels = sorted({int(m[1]) for m in _found(r"encoder\.down\.(\d+)\.block\.0\.", tensors)})
        widths = [tensors[f"encoder.down.{i}.block.0.conv1.weight"].shape[0] for i in levels]
        return KLConfig(
            block_out_channels=tuple(widths),
            layers_per_block=len(list(_found(down.format(0), tensors))),
            latent_channels=tensors["post_quant_conv.weight"].shape[0],
            scaling_factor=1.0,
            lowest_attention=True,
        )
    except (IndexError, KeyError) as error:
        raise UserError(f"{path}: not the weights of VA-VAE: {error}") from None


def _found(pattern: str, tensors: Mapping[str, np.ndarray]) -> list[re.Match[str]]:
    return [match for match in (re.match(pattern, name) for name in tensors) if match]


def _name(name: str, depth: int) -> str:
    """A tensor's name in diffusers; `depth` resolutions are counted the other way there."""
    for pattern, new in _NAMES:
        name = re.sub(pattern, new, name)
    return re.sub(r"up_blocks\.(\d+)", lambda m: f"up_blocks.{depth - 1 - int(m[1])}", name)
