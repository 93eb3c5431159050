"""Names of pods, as Google counts them."""

import importlib.util

import pytest

from data_pipeline.errors import UserError
from shortcut_tpu.pod.topologies import CHIPS, Topology, chip_of

needs_libtpu = pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None, reason="libtpu, the TPU compiler, is not installed"
)


@pytest.mark.parametrize(
    ("name", "grid", "hbm_gib"),
    [
        ("v5e-256", (16, 16), 15.75),
        ("v5litepod-16", (4, 4), 15.75),
        ("v6e-8", (2, 4), 31.25),
        # v4 and v5p count cores, two a chip.
        ("v4-64", (2, 4, 4), 30.75),
        ("v5p-128", (4, 4, 4), 95),
        ("v5p-8", (1, 2, 2), 95),
    ],
)
def test_names_become_grids(name, grid, hbm_gib):
    topology = Topology.parse(name)
    assert topology.grid == grid
    assert topology.hbm_bytes == hbm_gib * 2**30


def test_several_slices():
    topology = Topology.parse("2x v5e-256")
    assert topology.slices == 2
    assert topology.grid == (16, 16)
    assert topology.chips == 512
    assert Topology.parse("4xv4-16").chips == 32


@pytest.mark.parametrize(
    ("name", "hosts", "chips", "memory_gb"),
    [
        ("v5e-256", 64, 4, 192),
        ("v5e-8", 1, 8, 384),
        ("v5e-1", 1, 1, 48),
        ("v6e-256", 64, 4, 720),
        ("v5p-128", 16, 4, 448),
        ("2x v4-64", 16, 4, 407),
    ],
)
def test_a_pod_is_made_of_machines(name, hosts, chips, memory_gb):
    topology = Topology.parse(name)
    assert topology.hosts == hosts
    assert (topology.machine.chips, topology.machine.memory_gb) == (chips, memory_gb)


@needs_libtpu
@pytest.mark.parametrize("name", ["v5e-16", "v6e-8", "v5p-8", "v4-16", "2x v5e-16"])
def test_a_pod_is_known_by_its_devices(name):
    topology = Topology.parse(name)
    assert Topology.of_devices(topology.devices()) == topology


def test_processors_are_no_pod(devices):
    assert Topology.of_devices(devices) is None


@pytest.mark.parametrize("name", ["0x v5e-16", "v5e", "v9-8", "v5e-100", "v4-7", "v5p-1", "256"])
def test_unknown_pods_are_refused(name):
    with pytest.raises(UserError, match=f"--topology={name}: "):
        Topology.parse(name)


def test_without_the_compiler_it_says_what_to_install(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="launch/setup_venv.sh tpu installs it"):
        Topology.parse("v5e-4").devices()


@needs_libtpu
@pytest.mark.parametrize("pod", ["v4-8", "v5e-4", "v5p-8", "v6e-4"])
def test_a_devices_kind_tells_the_chip(pod):
    """As the TPU's own runtime calls its devices."""
    topology = Topology.parse(pod)
    assert chip_of(topology.devices()[0].device_kind) is CHIPS[topology.generation]
    assert chip_of("cpu") is None
