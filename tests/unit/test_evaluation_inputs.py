"""A run whose evaluations lack a file is refused before anything of it starts."""

import subprocess
import sys

import numpy as np
import pytest

from data_pipeline.autoencoders import load_autoencoder
from data_pipeline.errors import UserError
from shortcut_tpu.cli import config as config_lib
from shortcut_tpu.evaluation.inputs import require_named, require_readable

NAMED = ("--config.evaluation.features=inception:FILE", "--config.evaluation.reference=FILE")


@pytest.mark.parametrize("name", [n for n in config_lib.names() if n.startswith(("im", "celeba"))])
def test_large_images_are_scored_by_a_fid_and_its_files_are_asked_for(name):
    config = config_lib.load(name).copy_and_resolve_references()
    assert config.evaluation.protocol in ("adm", "official")
    for features, reference in (("", ""), ("inception:f", ""), ("", "r.npz")):
        config.evaluation.update(features=features, reference=reference)
        with pytest.raises(UserError, match="every_steps=0") as refusal:
            require_named(config)
        missing = [flag in str(refusal.value) for flag in NAMED]
        assert missing == [not features, not reference]
    config.evaluation.update(features="inception:f", reference="r.npz")
    require_named(config)


def test_files_are_read_at_the_start(tiny_config, tmp_path):
    config = tiny_config.copy_and_resolve_references()
    identity = load_autoencoder("identity")
    require_readable(config, identity)
    config.evaluation.update(protocol="adm", features="inception:none.pth", reference="none.npz")
    with pytest.raises(UserError, match="none.pth"):
        require_readable(config, identity)
    path = tmp_path / "r.npz"
    np.savez(path, mu=np.zeros(3), sigma=np.eye(3))
    config.evaluation.update(protocol="fd_pixel", features="", reference=str(path))
    with pytest.raises(UserError, match="r.npz"):
        require_readable(config, identity)


@pytest.mark.parametrize(
    "command",
    [
        ("shortcut_tpu.train", "--workdir=run"),
        ("shortcut_tpu.compare", "--workdir=run"),
        ("launch.local_pod", "--workdir=run"),
        ("launch.gke", "--name=x", "--type=v5litepod-256", "--image=i", "--workdir=gs://b/r"),
    ],
)
def test_every_command_that_would_evaluate_refuses_at_once(command, tmp_path):
    module, *arguments = command
    ended = subprocess.run(
        [sys.executable, "-m", module, "--config=imagenet256_xl", *arguments],
        capture_output=True,
        text=True,
        env={"PYTHONPATH": str(config_lib._CONFIG_FOLDER.parent), "JAX_PLATFORMS": "cpu"},
        cwd=tmp_path,
    )
    assert ended.returncode == 1
    assert all(flag in ended.stderr.splitlines()[-1] for flag in NAMED)
    assert not list(tmp_path.iterdir())
