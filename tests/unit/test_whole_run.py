"""A run walked from its first act to its last: what does not fit is refused by its key."""

import pytest

from shortcut_tpu.cli import config as config_lib
from shortcut_tpu.compiled import walks, whole_run
from shortcut_tpu.compiled.matrix import markdown
from shortcut_tpu.pod.topologies import Topology

FIGURES = {
    "hbm_bytes_per_chip": 2**30,
    "estimated_seconds": 0.25,
    "compile_seconds": 2.0,
}


@pytest.fixture
def walk(monkeypatch, devices):
    """Walks a small DiT on ImageNet's records over eight devices, nothing compiled."""

    def run(pod="v5e-8", **groups):
        config = config_lib.load("imagenet256_b").copy_and_resolve_references()
        with config.unlocked():
            config.model.update({"depth": 1, "width": 128, "num_heads": 2})
            config.evaluation.update({"protocol": "adm", "steps": (1, 128)})
            for group, values in groups.items():
                config[group].update(values)
        monkeypatch.setattr(Topology, "devices", lambda topology: devices)
        monkeypatch.setattr(whole_run, "examined", lambda candidate, topology, known: FIGURES)
        return whole_run.walk(config, Topology.parse(pod), say=lambda line: None)

    return run


def test_a_run_that_fits(walk):
    found = walk()
    acts = {act["name"].split(",")[0]: act for act in found["acts"]}
    assert list(acts) == [
        "1281167 records of 32772 bytes staged",
        "checksums of a resume",
        "state restored",
        "state saved",
        "checksums of a save",
        "statistics of 50000 samples",
        "train step",
        "sampler",
        "decoder of sd-vae-ft-mse",
        "features of adm",
    ]
    assert found["fits"] and "reason" not in found
    assert acts["1281167 records of 32772 bytes staged"]["host_bytes"] == 1_281_167 * 32_772
    state = found["state_bytes"]
    assert acts["state saved"]["host_bytes"] == state
    assert acts["state restored"]["moved_bytes"] == state
    assert found["kept_bytes"] == 4 * state
    # 196 batches of 256 samples, by each of two samplers.
    assert [act["calls"] for act in found["acts"]].count(196) == 2
    both = (
        2 * 196 * (acts["decoder of sd-vae-ft-mse"]["seconds"] + acts["features of adm"]["seconds"])
    )
    assert found["evaluation_seconds"] == pytest.approx(2 * 196 * 0.25 + both)
    assert found["compile_seconds"] == 3 * 2
    # Beside a sampler lie the state, whose average it takes, the weights of both networks.
    beside = acts["sampler"]["chip_bytes"] - FIGURES["hbm_bytes_per_chip"]
    assert beside > 4 * (49_490_199 + 23_000_000) + 0.7 * state / 8
    lines = whole_run.report(found)
    assert len(lines) == 1 + 1 + len(found["acts"]) + 1 + 2
    assert lines[1].split("  ")[-1] == "compiled, s"


PIXELS = {"autoencoder": "identity", "image_size": 256, "channels": 3}


@pytest.mark.parametrize(
    ("pod", "groups", "reason"),
    [
        (
            "v5e-8",
            {"data": {"num_records": 10**7}, "evaluation": {"every_steps": 0}},
            "data.stage: 10000000 records in /dev/shm ",
        ),
        (
            "v5e-8",
            {"data": PIXELS | {"num_records": 1}, "evaluation": {"protocol": "fd_pixel"}},
            "evaluation.protocol=fd_pixel: the covariances of images of 256x256x3 take 2592 GiB ",
        ),
        ("v5e-8", {"evaluation": {"batch_size": 2**14}}, "evaluation.batch_size: decoder of "),
        (
            "v5e-8",
            {
                "data": {"num_records": 5_800_000},
                "evaluation": {"num_samples": 15_000_000, "batch_size": 256},
            },
            "evaluation.protocol: all that a host holds takes ",
        ),
    ],
)
def test_what_does_not_fit_is_refused_by_its_key(walk, pod, groups, reason):
    found = walk(pod, **groups)
    assert not found["fits"]
    assert found["reason"].startswith(reason)
    assert any(" *" in line for line in whole_run.report(found))


def test_records_on_a_disk_take_no_memory(walk):
    data = {"num_records": 10**7, "stage": "/mnt/disk"}
    found = walk(data=data, evaluation={"every_steps": 0})
    assert found["fits"]
    assert found["acts"][0]["host_bytes"] is None


def test_a_program_that_the_compiler_refuses(walk, monkeypatch):
    refused = {"reason": "Ran out of memory in memory space hbm"}
    monkeypatch.setitem(FIGURES, "reason", refused["reason"])
    monkeypatch.delitem(FIGURES, "hbm_bytes_per_chip")
    assert (
        walk(evaluation={"every_steps": 0})["reason"]
        == "batch_size: train step: Ran out of memory in memory space hbm"
    )


def test_a_table_of_runs(walk, monkeypatch):
    """A line a run; one that was walked before, by the same code, is not walked again."""
    config = config_lib.load("imagenet256_b")
    monkeypatch.setattr(walks, "walk", lambda config, topology, **_: walk(topology.name))
    row = walks.walked(config, "v5e-8", known={})
    monkeypatch.setattr(walks, "walk", None)
    assert walks.walked(config, "v5e-8", known={row["key"]: row}) is row
    assert walks.fingerprint(config, "v5e-16") != row["key"]
    other = config_lib.load("imagenet256_b").copy_and_resolve_references()
    with other.unlocked():
        other.evaluation.batch_size = 512
    assert walks.fingerprint(other, "v5e-8") != row["key"]

    over = {"topology": "v5e-8", "fits": False, "reason": "batch_size: too many"}
    rows = [{"config": "b"} | row, {"config": "b"} | over]
    _, _, *lines, _, note = markdown(rows, walks.COLUMNS).splitlines()
    cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines]
    gib = 2**30
    fullest = max(row["acts"], key=lambda act: act["chip_bytes"] or 0)
    assert cells == [
        [
            "b",
            "v5e-8",
            f"{fullest['chip_bytes'] / gib:.2f} of 15.75, {fullest['name']}",
            f"{row['host_bytes'] / gib:.1f} of {row['host_capacity_bytes'] / gib:.0f}",
            f"{row['kept_bytes'] / gib:.1f}",
            f"{row['evaluation_seconds']:.1f} s",
            f"{row['seconds']:.0f} s",
        ],
        ["b", "v5e-8", "does not fit: 1", *[""] * 4],
    ]
    assert note == "1: b on v5e-8: batch_size: too many"
    # The second never came to its train step.
    assert list(walks.train_steps(rows)) == [{"config": "b"} | FIGURES]
