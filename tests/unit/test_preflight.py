"""What preflight makes of the compiler's figures: limits, what must move, searches, tables."""

import functools
import json
import types

import jax
import numpy as np
import pytest

from data_pipeline.errors import UserError
from shortcut_tpu.cli import config as config_lib
from shortcut_tpu.compiled import matrix as matrix_lib
from shortcut_tpu.compiled import search as search_lib
from shortcut_tpu.compiled.analysis import Candidate
from shortcut_tpu.compiled.collectives import DCN, Collective
from shortcut_tpu.compiled.required import required_bytes
from shortcut_tpu.compiled.roofline import Roofline, num_links
from shortcut_tpu.pod import partitioning
from shortcut_tpu.pod.topologies import Topology
from shortcut_tpu.training.experiment import Experiment


def torus(*sides, axes, shape):
    """A mesh over chips that lie on a torus, in their order."""
    coordinates = np.stack(np.unravel_index(np.arange(np.prod(sides)), sides), axis=-1)
    devices = np.array([types.SimpleNamespace(coords=tuple(c)) for c in coordinates])
    return types.SimpleNamespace(axis_names=axes, devices=devices.reshape(shape))


def test_links_of_the_axes():
    mesh = torus(4, 4, axes=("data", "tensor"), shape=(4, 4))
    assert num_links(mesh, ["data"]) == 2
    assert num_links(mesh, ["data", "tensor"]) == 4
    # Two neighbours have one link between them.
    assert num_links(torus(4, 2, axes=("data", "tensor"), shape=(4, 2)), ["tensor"]) == 1


def test_roofline_of_known_work():
    """One second of products, half of memory, a quarter of a ring, an eighth between slices."""
    topology = Topology.parse("2x v5e-16")
    chip = topology.chip
    mesh = torus(4, 4, axes=("data", "tensor"), shape=(16, 1))
    ring = Collective("all-reduce", "data", round(4 * chip.link_bandwidth / 8), 1, True, 2, "")
    sent = Collective("send", DCN, round(chip.dcn_bandwidth / 16), 2, True, 2, "")
    roofline = Roofline.of(chip.bf16_flops, chip.hbm_bandwidth / 2, [ring, sent], topology, mesh)
    # An all-reduce over two sends 2 (n - 1) / n = 1 time its bytes, over all four links.
    assert roofline.times == pytest.approx({"mxu": 1, "hbm": 0.5, "ici": 0.125, "dcn": 0.125})
    assert roofline.bound_by == "mxu"
    assert roofline.mfu(chip.bf16_flops / 2) == pytest.approx(0.5)


@pytest.mark.parametrize(
    ("axes", "gradients", "gathers"),
    [({}, 1, 0), ({"fsdp": 8}, 1, 3), ({"fsdp": 4}, 1.25, 3), ({"stride": 4}, 1, 0)],
)
def test_what_must_move(tiny_config, devices, axes, gradients, gathers):
    """Each gradient once, and its part again where fsdp is not all; sharded weights once a pass."""
    with tiny_config.unlocked():
        tiny_config.mesh.update(axes)
    experiment = Experiment.from_config(tiny_config, devices)
    params = experiment.abstract_state.params
    kernels = sum(
        leaf.size * 4 for leaf in jax.tree.leaves(params["blocks"]) if leaf.ndim > 2
    ) - sum(params["blocks"][name]["bias"].size * 4 for name in ("qkv", "modulation"))
    rest = sum(leaf.size * 4 for leaf in jax.tree.leaves(params)) - kernels
    needed = required_bytes(experiment, passes=3)
    assert needed == pytest.approx(rest + (gradients + gathers) * kernels)
    assert required_bytes(experiment, passes=3, gradients=False) == gathers * kernels


def a_pod_that_likes(kept, fits=lambda config: True):
    """`compiled`, of a model: a step of 8 s, and its time by each key that pays, to the rows."""

    def compiled(config, pod, program, steps, known):
        flat = {
            "mesh.gather": config.mesh.gather,
            "mesh.fsdp": config.mesh.fsdp,
            "model.remat": config.model.remat,
            "model.attention": config.model.attention,
            "model.unroll": config.model.unroll,
        }
        seconds = 4 + 4 * config.batch_size / 256
        for key, (value, factor) in kept.items():
            seconds *= factor if flat[key] == value else 1
        key = f"{sorted(flat.items())} {config.batch_size}"
        if key in known:
            return known[key]
        row = {
            "topology": pod,
            "key": key,
            "fits": fits(config),
            "chips": 256,
            "batch_size": config.batch_size,
            "mesh": {"fsdp": config.mesh.fsdp if config.mesh.fsdp > 0 else 64},
            "kernels": [],
        }
        if not row["fits"]:
            return row | {"reason": "exceeded"}
        spent = {"products": 50, "attention": 20, "stacks": 30}
        return row | {
            "estimated_seconds": seconds,
            "estimated_mfu": 0.5,
            "estimated_cycles": 100,
            "cycles_by_kind": spent,
        }

    return compiled


def walk(monkeypatch, compiled, known=None):
    monkeypatch.setattr(search_lib, "compiled", compiled)
    config, said = config_lib.load("imagenet256_xl").copy_and_resolve_references(), []
    with config.unlocked():
        config.mesh.gather = "step"
        config.model.remat = "dots"
    rows = list(search_lib.search(config, Topology.parse("v5e-256"), known or {}, said.append))
    assert len(said) == len(rows)
    return rows, said


def test_search_keeps_what_lowers_the_time_an_image(monkeypatch):
    """Each key by itself, in turns; the batch grows while rows are cheaper together."""
    pays = {"mesh.gather": ("layer", 0.5), "model.remat": ("none", 0.9), "mesh.fsdp": (1, 1.2)}
    limit = 1024
    rows, said = walk(
        monkeypatch, a_pod_that_likes(pays, fits=lambda config: config.batch_size <= limit)
    )
    own = search_lib.best(rows, same_batch=True)
    assert own["changed"] == {"mesh.gather": "layer", "model.remat": "none"}
    assert search_lib.seconds_a_row(own) == pytest.approx(8 * 0.5 * 0.9)
    least = search_lib.best(rows)
    assert least["changed"] == own["changed"] | {"batch_size": limit}
    # Half of the time is there for any batch.
    assert search_lib.seconds_a_row(least) == pytest.approx((1 + 4) * 0.5 * 0.9)
    assert rows[-1]["batch_size"] == 2 * limit
    assert not rows[-1]["fits"]
    assert said[1].startswith("--config.mesh.gather=layer: 4000 ms, ")
    assert ", kept (" in said[1]
    # Compiled once: a search that died goes on with what it knows.
    known = {row["key"]: row for row in rows}
    again, said = walk(monkeypatch, lambda *args: known[a_pod_that_likes({})(*args)["key"]], known)
    assert [row["changed"] for row in again] == [row["changed"] for row in rows]
    assert all(line.endswith("(known)") for line in said)


def test_search_leaves_out_what_cannot_pay(monkeypatch):
    """Layers out of line where slices cost nothing, another attention where that does not."""

    def compiled(*args):
        row = a_pod_that_likes({})(*args)
        return row | {"cycles_by_kind": {"products": 99, "attention": 1}}

    rows, _ = walk(monkeypatch, compiled)
    tried = {key for row in rows for key in row["changed"]}
    assert tried == {"mesh.gather", "mesh.fsdp", "model.remat", "batch_size"}


def test_search_goes_on_from_what_does_not_fit(monkeypatch):
    full = a_pod_that_likes({}, fits=lambda config: config.model.remat == "full")
    rows, _ = walk(monkeypatch, full)
    assert search_lib.best(rows, same_batch=True)["changed"] == {"model.remat": "full"}
    none, _ = walk(monkeypatch, a_pod_that_likes({}, fits=lambda config: False))
    with pytest.raises(UserError, match="no layout of this batch fits on v5e-256"):
        search_lib.best(none)


FITS = {
    "topology": "v5e-16",
    "fits": True,
    "batch_size": 64,
    "mesh": dict.fromkeys(partitioning.AXES, 1),
    "hbm_bytes_per_chip": 2**30,
    "hbm_capacity_bytes": 2**34,
    "collective_bytes": 2**29,
    "collective_bytes_ratio": 1.01,
    "roofline_seconds": {"mxu": 0.062, "hbm": 0.001},
    "bound_by": "mxu",
    "mfu_bound": 0.5,
    "estimated_seconds": 0.1,
    "estimated_mfu": 0.31,
    "dearest": ["long"],
}


def fill(configs, known, monkeypatch):
    """The matrix of two pods, one of which refuses; and the programs that were compiled for it."""
    compiled, said = [], []

    def make(config, devices, program, steps):
        if devices == "v4-8":
            raise UserError("cannot be laid out")
        return types.SimpleNamespace(
            fingerprint=lambda topology: f"{config.batch_size} {topology.name} {program}"
        )

    def examine(candidate, topology):
        compiled.append(candidate.fingerprint(topology))
        return FITS

    monkeypatch.setattr(Topology, "devices", lambda topology: topology.name)
    monkeypatch.setattr(matrix_lib.Candidate, "make", make)
    monkeypatch.setattr(matrix_lib, "examine", examine)
    pods = ["v5e-16", "v4-8"]
    figures = functools.partial(matrix_lib.compiled, program="train", steps=1, known=known)
    rows = list(matrix_lib.matrix(configs, pods, figures, known, said.append))
    assert len(said) == len(rows)
    return rows, compiled


def test_the_table_says_why_a_row_is_missing(monkeypatch, tiny_config):
    rows, _ = fill([("digits", tiny_config)], {}, monkeypatch)
    over = rows[0] | {"fits": False, "hbm_bytes_per_chip": 2**35}
    head, rule, *lines, blank, note = matrix_lib.markdown([*rows, over]).splitlines()
    cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in (head, *lines)]
    fits, refused, too_large = ("1.00 of 16", "does not fit: 1", "32.00 > 16")
    rest = ["0.50 GiB, 1.010 x", "62 ms, MXU", "50 %", "100 ms", "31 %"]
    assert cells == [
        list(matrix_lib.HEAD),
        ["digits", "v5e-16", "64", "1, 1, 1, 1", fits, *rest],
        ["digits", "v4-8", "", "", refused, *[""] * 5],
        ["digits", "v5e-16", "64", "1, 1, 1, 1", too_large, *rest],
    ]
    assert note == "1: digits on v4-8: cannot be laid out"
    assert blank == ""
    # Its columns stand under each other.
    assert len({len(line) for line in (head, rule, *lines)}) == 1


def test_rows_of_a_run_before_are_not_compiled_again(monkeypatch, tmp_path, tiny_config):
    path = tmp_path / "pods.json"
    assert matrix_lib.read_rows(str(path)) == {}
    rows, compiled = fill([("digits", tiny_config)], {}, monkeypatch)
    assert compiled == ["32 v5e-16 train"]
    assert "dearest" not in rows[0]

    path.write_text(json.dumps({"rows": rows}))
    known = matrix_lib.read_rows(str(path))
    larger = tiny_config.copy_and_resolve_references()
    with larger.unlocked():
        larger.batch_size = 64
    again, compiled = fill([("digits", tiny_config), ("larger", larger)], known, monkeypatch)
    assert compiled == ["64 v5e-16 train"]
    assert again[:2] == rows
    # The same program under another name of the config.
    [other, _], compiled = fill([("other", tiny_config)], known, monkeypatch)
    assert other == rows[0] | {"config": "other"}
    assert compiled == []
    # The same program among those of a whole run.
    run = {"key": "a run", "programs": {"train step": rows[0]}}
    [other, _], compiled = fill([("other", tiny_config)], {"a run": run}, monkeypatch)
    assert other == rows[0] | {"config": "other"}
    assert compiled == []
    path.write_text("[]")
    assert matrix_lib.read_rows(str(path)) == {}


def test_a_fingerprint_is_of_the_program(tiny_config, devices):
    """Not of keys that no program holds, such as where the data lie."""

    def fingerprint(pod="v5e-4", program="train", **keys):
        config = tiny_config.copy_and_resolve_references()
        with config.unlocked():
            config.update(keys)
        topology = Topology.parse(pod)
        return Candidate.make(config, devices[:4], program).fingerprint(topology)

    first = fingerprint()
    assert fingerprint(checkpoint={"every_steps": 7}) == first
    others = [
        fingerprint("v6e-4"),
        fingerprint(program="sample"),
        fingerprint(program="forward"),
        fingerprint(batch_size=64),
        fingerprint(mesh={"fsdp": 4}),
    ]
    assert len({first, *others}) == 6


@pytest.mark.parametrize(("program", "batch"), [("train", 32), ("sample", 40), ("forward", 40)])
def test_a_candidate_s_arguments_are_those_of_its_program(tiny_config, devices, program, batch):
    candidate = Candidate.make(tiny_config, devices[:4], program, steps=2)
    out = jax.eval_shape(candidate.function, *candidate.arguments)
    assert candidate.batch_size == batch
    if program != "train":
        assert out.shape == (batch, 8, 8, 1)


def test_a_policy_s_batch_is_counted_too(devices):
    """Its records have no labels."""
    config = config_lib.load("pusht_toy")
    assert Candidate.make(config, devices[:4], "train").batch_size == 256
    candidate = Candidate.make(config, devices[:4], "forward")
    out = jax.eval_shape(candidate.function, *candidate.arguments)
    assert out.shape == (candidate.batch_size, config.data.horizon, config.data.channels)
