"""Tests run on eight virtual CPU devices, so that sharding can be seen in one process."""

import os

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["JAX_NUM_CPU_DEVICES"] = "8"
os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
# Compiling is most of what the tests do; those that run long programs ask for `well_compiled`.
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
# Two processes of the tests may ask the TPU compiler at once.
os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")

import jax
from jaxtyping import install_import_hook
import pytest

from tests import shapes

# Whatever these rooms are called with, and return, has the shapes that their types say.
install_import_hook(
    ["shortcut_tpu.models", "shortcut_tpu.objectives", "shortcut_tpu.sampling"],
    f"{shapes.__name__}.checked",
)

from data_pipeline.autoencoders import load_autoencoder
from data_pipeline.encode_latents import encode
from data_pipeline.sources import open_source
from shortcut_tpu.cli import config as config_lib


@pytest.fixture(scope="session")
def digits_path(tmp_path_factory):
    """The digits' records, in two shards."""
    path = tmp_path_factory.mktemp("digits")
    encode(open_source("digits"), load_autoencoder("identity"), path, shard_records=1000)
    return path


@pytest.fixture
def tiny_config(digits_path):
    """The digits config with a network and a run small enough for a test."""
    config = config_lib.load("digits").copy_and_resolve_references()
    with config.unlocked():
        config.data.path = str(digits_path)
        config.batch_size = 32
        config.model.patch_size = 2
        config.objective.shortcut.bootstrap_share = 0.25
        config.model.width = 16
        config.model.depth = 2
        config.model.num_heads = 2
        config.model.unroll = 1
        config.train.num_steps = 12
        config.train.log_every_steps = 4
        config.optimizer.warmup_steps = 2
        config.checkpoint.every_steps = 4
        config.evaluation.steps = (1, 2)
        config.evaluation.num_samples = 60
        config.evaluation.batch_size = 40
    return config.lock()


@pytest.fixture
def well_compiled(monkeypatch):
    """All of the compiler's optimizations, for long programs and for what a TPU's compiler says."""
    monkeypatch.delenv("JAX_DISABLE_MOST_OPTIMIZATIONS")
    jax.config.update("jax_disable_most_optimizations", False)
    yield
    jax.config.update("jax_disable_most_optimizations", True)


@pytest.fixture
def float64():
    """Computes in double precision."""
    with jax.enable_x64(True):
        yield


@pytest.fixture(scope="session")
def devices():
    return jax.devices()
