"""Autoencoders compute what torch does on the same weights, and name what is wrong with a file.

The golden outputs are of PyTorch and diffusers; `tests/golden/make_autoencoder_goldens.py`.
"""

import hashlib
import json
from pathlib import Path
import subprocess
import sys

import jax
import numpy as np
import pytest
from safetensors.numpy import save_file
from sklearn.datasets import load_sample_image

from data_pipeline import autoencoders
from data_pipeline.autoencoders import kl, load_autoencoder, tiny
from data_pipeline.autoencoders import layers as layers_lib
from data_pipeline.autoencoders.kl_config import KLConfig
from data_pipeline.errors import UserError
from data_pipeline.torch_archive import Checkpoint
from tests.golden.torch_weights import KL_CONFIGS, KL_IMAGES, TINY_IMAGES, images, torch_weights

ROOT = Path(__file__).parents[2]
ASSETS = ROOT.parent / "shared" / "assets"
TOLERANCE = {"rtol": 1e-4, "atol": 1e-4}


@pytest.fixture(scope="module")
def golden():
    return dict(np.load(ROOT / "tests/golden/autoencoders.npz"))


@pytest.fixture
def taef2():
    if not (ASSETS / "taef2_encoder.pth").exists():
        pytest.skip(f"taef2's published weights are not in {ASSETS}")
    return load_autoencoder(f"taef2:{ASSETS}")


def write_kl(folder: Path, name: str, **changes) -> dict[str, np.ndarray]:
    """A folder of diffusers with seeded weights."""
    config = KL_CONFIGS[name] | changes
    (folder / kl.CONFIG_FILE).write_text(json.dumps(config))
    weights = torch_weights(kl.weight_shapes(KLConfig.load(folder / kl.CONFIG_FILE)))
    save_file(weights, folder / kl.WEIGHTS_FILE)
    return weights


@pytest.mark.parametrize("name", list(KL_CONFIGS))
def test_kl_is_that_of_diffusers(tmp_path, golden, name):
    write_kl(tmp_path, name)
    autoencoder = load_autoencoder(f"kl:{tmp_path}")
    shift = KL_CONFIGS[name].get("shift_factor", 0)
    mean, std = jax.jit(autoencoder.encode)(images(KL_IMAGES))
    assert mean.shape[1:] == autoencoder.latent_shape(KL_IMAGES[1:])
    np.testing.assert_allclose(mean + shift, golden[f"{name}/mean"], **TOLERANCE)
    np.testing.assert_allclose(std, golden[f"{name}/std"], **TOLERANCE)
    decoded = jax.jit(autoencoder.decode)(golden[f"{name}/mean"] - np.float32(shift))
    np.testing.assert_allclose(decoded, golden[f"{name}/decoded"], **TOLERANCE)


def va_vae(tmp_path, monkeypatch, **changes):
    """The small VA-VAE of the golden file, by the names of its authors' code."""
    stored = dict(np.load(ROOT / "tests/golden/va_vae.npz"))
    shapes = {k.partition("/")[2]: tuple(v) for k, v in stored.items() if k.startswith("shape/")}
    weights = torch_weights(shapes) | {"loss.logvar": np.zeros((), np.float32)} | changes
    read = Checkpoint(weights, "state_dict", {})
    monkeypatch.setattr("data_pipeline.autoencoders.va_vae.read_torch_checkpoint", lambda _: read)
    (tmp_path / "vavae.pt").write_bytes(b"weights")
    return load_autoencoder(f"va-vae:{tmp_path / 'vavae.pt'}"), stored


def test_va_vae_is_that_of_its_authors(tmp_path, monkeypatch):
    autoencoder, stored = va_vae(tmp_path, monkeypatch)
    mean, std = jax.jit(autoencoder.encode)(images(KL_IMAGES))
    assert mean.shape[1:] == autoencoder.latent_shape(KL_IMAGES[1:])
    np.testing.assert_allclose(mean, stored["mean"], **TOLERANCE)
    np.testing.assert_allclose(std, stored["std"], **TOLERANCE)
    decoded = jax.jit(autoencoder.decode)(stored["mean"])
    np.testing.assert_allclose(decoded, stored["decoded"], **TOLERANCE)
    assert autoencoder.digest == hashlib.sha256(b"weights").hexdigest()


def test_va_vae_refuses_other_weights(tmp_path, monkeypatch):
    """Those of another network, one too many, or none; its published shapes are known without."""
    with pytest.raises(UserError, match="give va-vae:FILE.pt"):
        load_autoencoder("va-vae")
    with pytest.raises(UserError, match="tensor encoder.extra has no place in the network"):
        va_vae(tmp_path, monkeypatch, **{"encoder.extra": np.zeros(1)})
    monkeypatch.setattr(
        "data_pipeline.autoencoders.va_vae.read_torch_checkpoint",
        lambda _: Checkpoint({"x_embedder.weight": np.zeros(1)}, "", {}),
    )
    with pytest.raises(UserError, match="not the weights of VA-VAE"):
        load_autoencoder(f"va-vae:{tmp_path / 'vavae.pt'}")
    published = autoencoders.abstract_autoencoder("va-vae", 32)
    assert published.latent_shape((256, 256, 3)) == (16, 16, 32)
    assert (
        published.decoder_weights["decoder.up_blocks.0.attentions.2.to_q.weight"].shape
        == (512,) * 2
    )


def test_tiny_is_that_of_diffusers(golden):
    variant = tiny.VARIANTS["taesd"]
    encoder = {f"encoder.{name}": shape for name, shape in tiny.weight_shapes(variant)[0].items()}
    decoder = {f"decoder.{name}": shape for name, shape in tiny.weight_shapes(variant)[1].items()}
    weights = [
        {name.split(".", 1)[1]: weight for name, weight in torch_weights(shapes).items()}
        for shapes in (encoder, decoder)
    ]
    autoencoder = tiny.TinyAutoencoder("taesd", "", variant, *weights)
    mean, std = jax.jit(autoencoder.encode)(images(TINY_IMAGES))
    assert std is None
    np.testing.assert_allclose(mean, golden["taesd/mean"], **TOLERANCE)
    decoded = jax.jit(autoencoder.decode)(golden["taesd/mean"])
    np.testing.assert_allclose(decoded, golden["taesd/decoded"], **TOLERANCE)


def test_taef2_is_that_of_torch(golden, taef2):
    mean, std = jax.jit(taef2.encode)(images(TINY_IMAGES))
    assert std is None and taef2.deterministic
    np.testing.assert_allclose(mean, golden["taef2/mean"], **TOLERANCE)
    decoded = jax.jit(taef2.decode)(golden["taef2/mean"])
    np.testing.assert_allclose(decoded, golden["taef2/decoded"], **TOLERANCE)


# The figures are what the authors' torch code reaches on these crops.
@pytest.mark.parametrize(("photo", "decibels"), [("china.jpg", 22.49), ("flower.jpg", 28.44)])
def test_taef2_reconstructs_photographs(taef2, photo, decibels):
    image = load_sample_image(photo)[None, 80:336, 192:448].astype(np.float32) / 127.5 - 1
    latents, _ = jax.jit(taef2.encode)(image)
    assert latents.shape == (1, 32, 32, 32)
    assert 0.9 < np.std(latents) * taef2.scale < 1.1
    error = np.clip(jax.jit(taef2.decode)(latents), -1, 1) - image
    assert 10 * np.log10(4 / np.mean(np.square(error))) == pytest.approx(decibels, abs=0.01)


def test_encoding_is_float32_and_row_by_row(tmp_path):
    write_kl(tmp_path, "kl4")
    encode = jax.jit(load_autoencoder(f"kl:{tmp_path}").encode)
    batch = images((3, 8, 8, 3))
    whole = encode(batch.astype(np.float16))
    assert {array.dtype for array in whole} == {np.dtype(np.float32)}
    for row in range(3):
        for some, one in zip(encode(batch), encode(batch[row : row + 1]), strict=True):
            np.testing.assert_allclose(some[row], one[0], rtol=1e-5, atol=1e-5)


def test_multiplications_are_of_full_precision(tmp_path):
    write_kl(tmp_path, "kl4")
    autoencoder = load_autoencoder(f"kl:{tmp_path}")
    program = jax.jit(autoencoder.encode).lower(images(KL_IMAGES)).as_text()
    lines = [
        line
        for line in program.splitlines()
        if "stablehlo.convolution" in line or "stablehlo.dot_general" in line
    ]
    assert len(lines) > 20
    assert all(line.count("HIGHEST") == 2 for line in lines)


def test_upsampling_repeats_and_attention_averages():
    x = np.arange(4, dtype=np.float32).reshape(1, 2, 2, 1)
    np.testing.assert_array_equal(
        layers_lib.upsample(x)[0, :, :, 0], np.kron(x[0, :, :, 0], np.ones((2, 2)))
    )
    values = np.random.default_rng(0).normal(size=(1, 5, 4)).astype(np.float32)
    attended = layers_lib.attention(np.zeros_like(values), values, values)
    np.testing.assert_allclose(attended, np.tile(values.mean(1), (1, 5, 1)), rtol=1e-5, atol=1e-6)


def test_kl_states_what_its_latents_are(tmp_path):
    write_kl(tmp_path, "kl4")
    weights_digest = hashlib.sha256((tmp_path / kl.WEIGHTS_FILE).read_bytes()).hexdigest()
    autoencoder = load_autoencoder(f"sd-vae-ft-mse:{tmp_path}")
    assert (autoencoder.name, autoencoder.digest) == ("sd-vae-ft-mse", weights_digest)
    assert (autoencoder.scale, autoencoder.deterministic) == (0.18215, False)
    # The same weights under another shift make other latents.
    write_kl(tmp_path, "kl4", shift_factor=0.1, scaling_factor=0.5)
    shifted = load_autoencoder(f"kl:{tmp_path}")
    assert (shifted.digest, shifted.scale) == (f"{weights_digest}-shift0.1", 0.5)


def test_the_attention_of_older_files_has_other_names(tmp_path):
    weights = write_kl(tmp_path, "kl4")
    expected = load_autoencoder(f"kl:{tmp_path}").encode(images(KL_IMAGES))[0]
    old = {
        name.replace("to_q", "query")
        .replace("to_k", "key")
        .replace("to_v", "value")
        .replace("to_out.0", "proj_attn"): weight
        for name, weight in weights.items()
    }
    assert set(old) != set(weights)
    save_file(old, tmp_path / kl.WEIGHTS_FILE)
    found = load_autoencoder(f"kl:{tmp_path}").encode(images(KL_IMAGES))[0]
    np.testing.assert_array_equal(found, expected)


def test_half_precision_files_are_read(tmp_path):
    weights = write_kl(tmp_path, "kl_convolutional")
    halves = {name: weight.astype(np.float16) for name, weight in weights.items()}
    save_file(halves, tmp_path / kl.WEIGHTS_FILE)
    loaded = load_autoencoder(f"kl:{tmp_path}").weights
    for name, half in halves.items():
        np.testing.assert_array_equal(loaded[name], half.astype(np.float32), strict=True)


def test_wrong_tensors_are_named(tmp_path):
    weights = write_kl(tmp_path, "kl4")
    name = "decoder.mid_block.attentions.0.to_k.weight"
    others = (
        ({name: None}, f"tensor {name} is missing"),
        ({name: weights[name][:, :5]}, rf"tensor {name} has the shape \(64, 5\), .* \(64, 64\)"),
        ({"encoder.more": weights[name]}, "tensor encoder.more has no place"),
        ({name: weights[name].astype(np.int32)}, f"tensor {name} is of type I32"),
    )
    for changes, message in others:
        changed = {
            k: np.ascontiguousarray(v) for k, v in (weights | changes).items() if v is not None
        }
        save_file(changed, tmp_path / kl.WEIGHTS_FILE)
        with pytest.raises(UserError, match=f"{kl.WEIGHTS_FILE}: {message}"):
            load_autoencoder(f"kl:{tmp_path}")


def test_truncated_and_missing_files_are_refused(tmp_path):
    write_kl(tmp_path, "kl_convolutional")
    path = tmp_path / kl.WEIGHTS_FILE
    content = path.read_bytes()
    for size in (0, 7, 100, len(content) // 2, len(content) - 1):
        path.write_bytes(content[:size])
        with pytest.raises(UserError, match=f"{kl.WEIGHTS_FILE}: is truncated, damaged or no"):
            load_autoencoder(f"kl:{tmp_path}")
    path.unlink()
    with pytest.raises(UserError, match=f"{kl.WEIGHTS_FILE}: cannot be read: No such file"):
        load_autoencoder(f"kl:{tmp_path}")
    with pytest.raises(UserError, match=r"config.json: cannot be read: No such file"):
        load_autoencoder(f"kl:{tmp_path / 'nowhere'}")
    with pytest.raises(UserError, match=r"taesd_encoder.pth: cannot be read: No such file"):
        load_autoencoder(f"taesd:{tmp_path}")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"_class_name": "AutoencoderTiny"}, "_class_name 'AutoencoderTiny' is not supported"),
        ({"act_fn": "relu"}, "act_fn 'relu' is not supported, only 'silu'"),
        ({"latents_mean": [0.1]}, "latents_mean .* is not supported"),
        ({"down_block_types": ["DownEncoderBlock2D"]}, "down_block_types .* only one"),
        ({"up_block_types": ["AttnUpDecoderBlock2D"] * 2}, "up_block_types .* only one"),
        ({"block_out_channels": []}, r"block_out_channels \[\] is not a list"),
        ({"block_out_channels": [32, "64"]}, "block_out_channels '64' cannot be used"),
        ({"norm_num_groups": 5}, "norm_num_groups 5 does not divide the 32"),
        ({"latent_channels": 0}, "latent_channels 0 cannot be used"),
        ({"latent_channels": True}, "latent_channels True cannot be used"),
        ({"use_quant_conv": 1}, "use_quant_conv 1 cannot be used"),
        ({"scaling_factor": 0}, "scaling_factor 0 cannot be used"),
        ({"shift_factor": "0.1"}, "shift_factor '0.1' cannot be used"),
    ],
)
def test_configs_of_other_networks_are_refused(tmp_path, changes, message):
    path = tmp_path / "config.json"
    path.write_text(json.dumps(KL_CONFIGS["kl4"] | changes))
    with pytest.raises(UserError, match=f"config.json: {message}"):
        KLConfig.load(path)


def test_configs_that_are_none_are_refused(tmp_path):
    path = tmp_path / "config.json"
    for content, message in ((b"{", "is not JSON"), (b"[]", "no"), (b"\xff", "is not JSON")):
        path.write_bytes(content)
        with pytest.raises(UserError, match=f"config.json: .*{message}"):
            KLConfig.load(path)


def test_published_sizes():
    """Stable Diffusion's has 83,653,863 parameters, FLUX.1's 83,819,683, as published."""
    sd = KLConfig(block_out_channels=(128, 256, 512, 512), layers_per_block=2)
    flux = KLConfig(
        block_out_channels=(128, 256, 512, 512),
        layers_per_block=2,
        latent_channels=16,
        use_quant_conv=False,
        use_post_quant_conv=False,
    )
    sizes = [sum(map(np.prod, kl.weight_shapes(config).values())) for config in (sd, flux)]
    assert sizes == [83_653_863, 83_819_683]


def test_images_that_do_not_fit_are_refused(tmp_path):
    write_kl(tmp_path, "kl4")
    autoencoder = load_autoencoder(f"kl:{tmp_path}")
    assert autoencoder.latent_shape((16, 24, 3)) == (8, 12, 4)
    for shape in ((16, 24, 1), (15, 24, 3), (16, 23, 3)):
        with pytest.raises(UserError, match="takes images of 3 channels and sides that 2 divides"):
            autoencoder.latent_shape(shape)
    small = tiny.TinyAutoencoder("taef1", "", tiny.VARIANTS["taef1"], {}, {})
    assert small.latent_shape((16, 24, 3)) == (2, 3, 16)
    for shape in ((16, 24, 1), (12, 24, 3), (16, 20, 3)):
        with pytest.raises(UserError, match="autoencoder taef1 takes .* sides that 8 divides"):
            small.latent_shape(shape)


def test_a_name_without_weights_says_what_to_give(monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    monkeypatch.setattr(autoencoders.importlib.util, "find_spec", lambda name: None)
    for name in ("kl", "sd-vae-ft-mse", "sd-vae-ft-ema"):
        with pytest.raises(UserError, match=f"give {name}:DIR, a folder with config.json and diff"):
            load_autoencoder(name)
    with pytest.raises(UserError, match="give taef2:DIR, .* taef2_encoder.pth and taef2_decoder"):
        load_autoencoder("taef2")


def test_a_published_name_is_fetched_where_the_hubs_client_is(monkeypatch, tmp_path):
    write_kl(tmp_path, "kl_convolutional")
    asked = []

    class Client:
        @staticmethod
        def snapshot_download(repository, allow_patterns):
            asked.append((repository, allow_patterns))
            if "ema" in repository:
                raise RuntimeError("no route")
            return str(tmp_path)

    monkeypatch.setitem(sys.modules, "huggingface_hub", Client)
    monkeypatch.setattr(autoencoders.importlib.util, "find_spec", lambda name: Client)
    assert load_autoencoder("sd-vae-ft-mse").name == "sd-vae-ft-mse"
    assert asked == [("stabilityai/sd-vae-ft-mse", [kl.CONFIG_FILE, kl.WEIGHTS_FILE])]
    with pytest.raises(UserError, match=r"cannot be fetched \(no route\); give sd-vae-ft-ema:DIR"):
        load_autoencoder("sd-vae-ft-ema")


def test_goldens_are_what_torch_computes_here(tmp_path, golden):
    pytest.importorskip("torch", reason="the live comparison needs torch")
    pytest.importorskip("diffusers", reason="the live comparison needs diffusers")
    code = (
        "import numpy, sys; from tests.golden import make_autoencoder_goldens as make;"
        "numpy.savez(sys.argv[1], **make.kl_outputs(make.KL_CONFIGS['kl16']))"
    )
    path = tmp_path / "live.npz"
    subprocess.run([sys.executable, "-c", code, path], check=True, cwd=ROOT)
    for key, value in np.load(path).items():
        np.testing.assert_allclose(value, golden[f"kl16/{key}"], **TOLERANCE)
