"""What evaluations need of a host's memory, and that a run which cannot have it never starts."""

import subprocess
import sys

import pytest

from data_pipeline.autoencoders import abstract_autoencoder, load_autoencoder
from data_pipeline.errors import UserError
from shortcut_tpu.cli import config as config_lib
from shortcut_tpu.evaluation.features import abstract_features
from shortcut_tpu.evaluation.memory import config_bytes, host_bytes, require_host_memory
from shortcut_tpu.evaluation.protocols import get_protocol

GB = 10**9


def imagenet(**evaluation):
    config = config_lib.load("imagenet256_xl").copy_and_resolve_references()
    with config.unlocked():
        config.evaluation.update(evaluation)
    return config


def test_covariances_of_pixels_are_refused_by_name():
    """Of 196608 pixels one covariance is 288 GiB, with a machine of 407 GB or of 1440."""
    config = imagenet(protocol="fd_pixel")
    autoencoder = abstract_autoencoder("sd-vae-ft-mse", 4)
    covariance = 8 * (256 * 256 * 3) ** 2
    assert covariance == 288 * 2**30
    assert config_bytes(config, autoencoder)["statistics"] == 9 * covariance
    for capacity in (407 * GB, 1440 * GB):
        with pytest.raises(
            UserError, match="^evaluation.protocol=fd_pixel: .* 256x256x3 take 2592"
        ):
            require_host_memory(config, autoencoder, capacity)
    require_host_memory(imagenet(protocol="fd_pixel", every_steps=0), autoencoder, 407 * GB)
    require_host_memory(imagenet(protocol="adm"), autoencoder, 48 * GB)


def test_vectors_of_too_many_samples_are_refused_by_name():
    config = imagenet(protocol="adm", num_samples=10**8)
    with pytest.raises(UserError, match="^evaluation.num_samples=100000000: "):
        require_host_memory(config, abstract_autoencoder("sd-vae-ft-mse", 4), 720 * GB)


DISTANCE = """
import re, sys
import numpy as np
from shortcut_tpu.evaluation.distances import GaussianStatistics, frechet_distance

def highest():
    return int(re.search("VmHWM:\\s+([0-9]+)", open("/proc/self/status").read())[1])

size = int(sys.argv[1])
rows = np.random.default_rng(0).standard_normal((16, size))
np.linalg.eigh(np.eye(100))
before = highest()
frechet_distance(*(GaussianStatistics.empty(size).add(rows + i) for i in range(2)))
print(highest() - before)
"""


def test_what_is_counted_is_what_is_there():
    """The distance between two sets of images of 32x32 pixels, in a process of its own."""
    command = [sys.executable, "-c", DISTANCE, str(32 * 32)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    counted = host_bytes({"pool": 32 * 32}, 100, 0, keeps_vectors=False)
    assert 0.7 < 1024 * int(done.stdout) / counted["statistics"] < 1.1


def test_shapes_stand_in_for_weights():
    """A decoder and networks that are not here have their published sizes."""
    decoder = abstract_autoencoder("sd-vae-ft-ema", 4).decoder_weights
    assert sum(weight.size for weight in decoder.values()) == 49_490_199
    sizes = abstract_features(get_protocol("adm")).sizes((256, 256, 3))
    assert sizes == {"pool": 2048, "spatial": 2023, "logits": 1008}
    assert load_autoencoder("identity") == abstract_autoencoder("identity", 1)
    with pytest.raises(UserError, match="unknown autoencoder 'sd'"):
        abstract_autoencoder("sd", 4)
