"""The TPU compiler's word on a config. Skips where libtpu is not installed."""

import importlib.util
import json
import subprocess
import sys

import pytest

from tests.end_to_end.test_commands import typed

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None, reason="libtpu, the TPU compiler, is not installed"
)


def test_a_step_that_fits(tmp_path):
    path, cache = tmp_path / "figures.json", tmp_path / "cache"
    done = typed(
        "shortcut_tpu.preflight",
        "--config=imagenet256_b",
        "--config.model.depth=2",
        "--config.mesh.fsdp=1",
        "--topology=v5e-16",
        "--explain",
        f"--config.train.compile_cache={cache}",
        f"--json={path}",
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "fits"
    assert done.stderr == ""
    figures = json.loads(path.read_text())
    assert figures["topology"] == "v5e-16"
    assert figures["chips"] == 16
    assert figures["fits"] is True
    assert figures["mesh"] == {"data": 16, "fsdp": 1, "stride": 1, "tensor": 1}
    # Four float32 copies of the parameters (weights, two moments, one average) must be in it.
    assert figures["hbm_state_bytes"] > 4 * 4 * 15e6
    assert figures["hbm_state_bytes"] < figures["hbm_bytes_per_chip"]
    assert figures["hbm_bytes_per_chip"] < figures["hbm_capacity_bytes"] == int(15.75 * 2**30)
    kinds = figures["hbm_bytes_by_kind"]
    assert sum(kinds.values()) == pytest.approx(figures["hbm_state_bytes"], rel=0.01)
    assert kinds["optimizer"] == pytest.approx(2 * kinds["parameters"], rel=1e-3)

    # Nothing moves but the gradients.
    assert {c["op"] for c in figures["collectives"] if c["bytes"] > 1e4} == {"all-reduce"}
    assert {c["axis"] for c in figures["collectives"]} == {"data"}
    assert figures["collective_bytes_ratio"] == pytest.approx(1, abs=0.1)
    assert figures["required_bytes"] == kinds["parameters"] // 2  # summed in bfloat16

    # Nothing is recomputed; guided rows that no device needs whole are at most a few.
    assert 0.99 < figures["executed_flops"] / figures["model_flops"] < 1.1
    times = figures["roofline_seconds"]
    assert figures["bound_by"] == max(times, key=times.get)
    assert times["mxu"] == pytest.approx(figures["executed_flops"] / 16 / 197e12)
    assert 0 < figures["mfu_bound"] < 1

    # The compiler's own costs: dearer than the limit, and each with a line of the model's.
    assert figures["estimated_seconds"] > max(times.values())
    assert figures["estimated_mfu"] < figures["mfu_bound"]
    assert figures["estimated_cycles"] == sum(figures["cycles_by_kind"].values())
    assert figures["cycles_by_kind"]["products"] > 0.2 * figures["estimated_cycles"]
    assert figures["cycles_by_kind"]["attention"] > 0
    assert figures["cycles_by_kind"]["optimizer and averages"] > 0
    dearest = figures["dearest"]
    assert len(dearest) == 20
    lines = {operation["source"].partition(":")[0] for operation in dearest}
    assert {"models/dit.py", "training/train_step.py"} <= lines
    assert figures["cycles_by_function"]["Block.__call__"] > 0
    explained = done.stdout.splitlines()
    head = next(n for n, line in enumerate(explained) if line.split()[:2] == ["ms", "share"])
    assert all("; " in line for line in explained[head + 1 : head + 21])

    assert [entry.name.partition("-")[0] for entry in cache.glob("*-cache")] == ["jit_train_step"]


def test_long_sequences_attend_by_kernels(tmp_path):
    """1024 tokens, a method of both modes; what kernels do counts."""
    path = tmp_path / "figures.json"
    done = typed(
        "shortcut_tpu.preflight",
        "--config=imagenet256_b",
        "--config.model.depth=1",
        "--config.model.width=128",
        "--config.model.num_heads=2",
        "--config.data.image_size=64",
        "--config.model.attention=auto",
        "--config.objective.name=improved_meanflow",
        "--topology=v5e-16",
        f"--json={path}",
    )
    assert done.returncode == 0, done.stderr
    figures = json.loads(path.read_text())
    assert figures["kernels"] == [
        "attention_tangent",
        "splash_mha_dkv_no_residuals",
        "splash_mha_fwd_no_residuals",
        "splash_mha_fwd_residuals",
    ]
    # Of attention's products three more than XLA's: one backwards, two beside the tangent.
    assert 1 < figures["executed_flops"] / figures["model_flops"] < 1.15


def test_a_step_that_does_not_fit_is_refused_in_one_line(tmp_path):
    path = tmp_path / "figures.json"
    done = typed(
        "shortcut_tpu.preflight",
        "--config=imagenet256_b",
        "--config.model.depth=2",
        "--topology=v5e-16",
        "--config.batch_size=65536",
        f"--json={path}",
    )
    assert done.returncode == 1
    [line] = done.stderr.splitlines()
    assert line.startswith("error: batch 65536 does not fit on v5e-16: ")
    assert "HBM" in line
    assert json.loads(path.read_text())["fits"] is False


@pytest.mark.parametrize(
    ("pod", "shape"),
    [
        ("v5e-256", (64, 1, 4, 1)),
        ("v6e-256", (64, 1, 4, 1)),
        ("v5p-128", (16, 2, 1, 2)),
        ("v4-64", (8, 1, 4, 1)),
    ],
)
def test_meshes_can_be_laid_over_the_torus(pod, shape):
    """Also where an axis of the torus must be split between two axes of the mesh."""
    code = (
        "import shortcut_tpu.preflight\n"
        "from shortcut_tpu.pod.partitioning import make_mesh\n"
        "from shortcut_tpu.pod.topologies import Topology\n"
        f"print(make_mesh({shape}, Topology.parse({pod!r}).devices()).devices.shape)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=300, check=True
    )
    assert done.stdout.strip() == str(shape)


STRIDED = """
import shortcut_tpu.preflight
import jax
from jax.experimental.layout import Format, Layout
from jax.sharding import SingleDeviceSharding
from shortcut_tpu.compiled.cycles import STACKS, operations
from shortcut_tpu.compiled.hlo import Program
from shortcut_tpu.pod.topologies import Topology

topology = Topology.parse("v5e-4")
one = SingleDeviceSharding(topology.devices()[0])

def scanned(stack, x):
    return jax.lax.scan(lambda h, w: (h @ w, None), x, stack)[0]

for order in ((0, 1, 2), (1, 0, 2)):
    shapes = (jax.ShapeDtypeStruct((16, 512, 512), "bfloat16", sharding=Format(Layout(order), one)),
              jax.ShapeDtypeStruct((512, 512), "bfloat16", sharding=one))
    text = jax.jit(scanned).lower(*shapes).compile().as_text()
    found = operations(Program.parse(text), topology.chip)
    print(sum(o.total for o in found if o.kind == STACKS), sum(o.total for o in found))
"""


def test_a_slice_across_tiles_is_told_from_one_along_them():
    """Layers that share tiles: a turn reads eight rows of each tile to use one."""
    done = subprocess.run(
        [sys.executable, "-c", STRIDED], capture_output=True, text=True, timeout=300, check=True
    )
    (along, all_along), (across, all_across) = (
        map(int, line.split()) for line in done.stdout.splitlines()
    )
    assert across > 3 * along
    # Of one the slices are what the loop does; of the other they are hidden by the products.
    assert across > 0.5 * all_across
    assert all_across > 1.5 * all_along


@pytest.mark.pods
def test_a_whole_run_at_its_real_size(tmp_path):
    """ImageNet's DiT-B on 256 chips, from its records to the features of its evaluations."""
    path = tmp_path / "run.json"
    done = typed(
        "shortcut_tpu.preflight",
        "--config=imagenet256_b",
        "--topology=v5e-256",
        "--whole",
        f"--json={path}",
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "fits"
    figures = json.loads(path.read_text())
    assert figures["fits"]
    assert (figures["chips"], figures["hosts"]) == (256, 64)
    acts = {act["name"]: act for act in figures["acts"]}
    assert acts["1281167 records of 32772 bytes staged"]["host_bytes"] == 1_281_167 * 32_772
    compiled = {name: act for name, act in acts.items() if act["compile_seconds"] is not None}
    assert list(compiled) == [
        "train step",
        *(f"sampler, {n}" for n in ("1 step", "4 steps", "128 steps")),
    ]
    assert all(0 < act["chip_bytes"] < figures["chip_capacity_bytes"] for act in compiled.values())
    # 50,000 samples by 256 at a time; the 128 steps are guided, which takes two passes each.
    assert {act["calls"] for name, act in compiled.items() if name != "train step"} == {196}
    one, many = (acts[f"sampler, {n}"]["seconds"] for n in ("1 step", "128 steps"))
    assert 64 * one < many < 512 * one
    # Weights, two moments and an average, in float32.
    assert figures["state_bytes"] == pytest.approx(4 * 4 * 131e6, rel=0.01)
    step = figures["programs"]["train step"]
    assert step["batch_size"] == 256
    assert 0 < step["estimated_mfu"] < step["mfu_bound"] < 1
