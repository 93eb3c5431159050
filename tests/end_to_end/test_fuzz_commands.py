"""Whatever the flags, a command ends: with a result, or with status 1 and one clear line."""

import os
from pathlib import Path
import subprocess

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
import pytest

from tests.end_to_end.forks import forked_commands

# Nothing here can become a run: there are no records in the folder that it would start from.
FLAGS = {
    "data_pipeline.encode_latents": (
        *("source", "autoencoder", "output", "shard_records", "flips", "preprocessing"),
        *("image_size", "labels", "max_rejected", "workers", "hosts", "host", "verify"),
    ),
    "data_pipeline.demonstrate": ("task", "episodes", "seed"),
    "shortcut_tpu.rollout": ("workdir", "steps", "episodes", "action_steps", "output", "ema"),
    "shortcut_tpu.train": (
        *("config", "workdir", "config.batch_size", "config.mesh.fsdp", "profile_steps"),
    ),
    "shortcut_tpu.evaluate": ("workdir", "steps", "num_samples", "json", "ema", "step"),
    "shortcut_tpu.sample": ("workdir", "steps", "labels", "output", "seed", "ema", "columns"),
    "shortcut_tpu.convert": ("from", "to", "weights", "workdir", "output", "steps", "config"),
    "shortcut_tpu.report": ("workdir", "output"),
    "shortcut_tpu.generate_pairs": ("workdir", "output", "num_pairs", "steps", "guidance", "ema"),
    "shortcut_tpu.reference_stats": ("source", "output", "protocol", "features", "image_size"),
    "shortcut_tpu.config_reference": ("config", "config.batch_size"),
    "data_pipeline.emoji": ("package", "output"),
    "data_pipeline.mnist": ("package", "output"),
    "launch.gke": ("config", "name", "type", "image", "workdir", "slices", "job", "cluster"),
    "shortcut_tpu.preflight": ("config", "topology", "config.batch_size", "config.model.depth"),
}
WORDS = st.sampled_from(
    ["", "0", "-1", "1,2", "1e9", "nan", "digits", "npz:x", "identity", "v5e-3", "v5e-x", "../.."]
)
# What a shell can hand over: no zero byte, no lone surrogate.
TEXT = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=12)

# What each command writes, and flags whose inputs are missing: the output is tried before them.
OUTPUTS = {
    "data_pipeline.encode_latents": ("output", "--source=npz:none.npz"),
    "data_pipeline.demonstrate": ("output", "--task=none"),
    "data_pipeline.emoji": ("output", "--package=none.tgz"),
    "data_pipeline.mnist": ("output", "--package=none.tgz"),
    "launch.local_pod": ("workdir", "--config=digits", "--config.data.source=npz:none.npz"),
    "shortcut_tpu.train": ("workdir", "--config=digits", "--config.data.path=none"),
    "shortcut_tpu.compare": ("workdir", "--config=digits", "--config.data.path=none"),
    "shortcut_tpu.measure": ("json", "--config=digits"),
    "shortcut_tpu.preflight": ("json", "--config=digits", "--topology=none"),
    "shortcut_tpu.convert": ("workdir", "--from=dit", "--weights=none.pt"),
    "shortcut_tpu.generate_pairs": ("output", "--workdir=none"),
    "shortcut_tpu.sample": ("output", "--workdir=none"),
    "shortcut_tpu.report": ("output", "--workdir=none"),
    "shortcut_tpu.rollout": ("output", "--workdir=none"),
    "shortcut_tpu.evaluate": ("json", "--workdir=none"),
    "shortcut_tpu.reference_stats": ("output", "--source=none.npz", "--features=inception:none"),
}
WRITES = ('DEFINE_string("output"', "define_json()", "require_place(", "claimed(")
# Places that take nothing, in a folder of the test's.
REFUSING = {
    "file/x.png": "is no folder",
    "gone/x.png": "is no folder",
    "full/new.png": "No space left on device",
    "fixed/new.png": "Read-only file system",
}


@pytest.fixture(scope="module")
def commands(tmp_path_factory):
    with forked_commands(tmp_path_factory.mktemp("empty")) as run:
        yield run


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    """A file, a link to nothing, and, where this user may mount them, a full disk and one that is
    read-only; which of REFUSING there are, by their whole paths."""
    folder = tmp_path_factory.mktemp("ä b\nc $(x)")
    (folder / "file").write_text("")
    (folder / "gone").symlink_to("nowhere")
    mounted: list[Path] = []
    try:
        for name, options in {"full": "size=4k", "fixed": "size=4k,ro"}.items():
            disk = folder / name
            disk.mkdir()
            mount = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", disk]
            if os.getuid() == 0 and not subprocess.run(mount, check=False).returncode:
                mounted.append(disk)
        if folder / "full" in mounted:
            (folder / "full" / "rest").write_bytes(bytes(4096))
        there = {"file", "gone", *(disk.name for disk in mounted)}
        yield {folder / k: why for k, why in REFUSING.items() if k.split("/")[0] in there}
    finally:
        for disk in mounted:
            subprocess.run(["umount", disk], check=True)


@pytest.mark.parametrize("module", OUTPUTS)
def test_outputs_are_tried_before_the_work(commands, places, module):
    flag, *others = OUTPUTS[module]
    for place, why in places.items():
        status, output = commands(module, [*others, f"--{flag}={place}"])
        named = " ".join(f"--{flag}={place}".splitlines())
        assert status == 1, output
        assert output.splitlines()[-1].startswith(f"error: {named}: cannot be written: "), output
        assert output.rstrip().endswith(why)
        assert "Traceback" not in output


def test_every_command_that_writes_is_in_the_table():
    root = Path(__file__).parents[2]
    writing = {
        ".".join(file.relative_to(root).with_suffix("").parts)
        for room in ("data_pipeline", "shortcut_tpu", "launch")
        for file in (root / room).glob("*.py")
        for text in [file.read_text()]
        if '__name__ == "__main__"' in text
        if any(says in text for says in WRITES)
    }
    assert writing == set(OUTPUTS)


@settings(
    derandomize=True,
    deadline=None,
    max_examples=150,
    suppress_health_check=list(HealthCheck),
)
@given(data=st.data())
def test_any_flags(commands, data):
    module = data.draw(st.sampled_from(sorted(FLAGS)))
    names = data.draw(st.lists(st.sampled_from(FLAGS[module]), max_size=4, unique=True))
    arguments = [f"--{name}={data.draw(WORDS | TEXT)}" for name in names]
    arguments += data.draw(st.lists(TEXT, max_size=1))
    if "--config=digits" in arguments and module == "shortcut_tpu.preflight":
        arguments.append("--topology=none")
    status, output = commands(module, arguments)
    lines = output.strip().splitlines()
    assert status in (0, 1), (arguments, status, output)
    assert "Traceback" not in output, (arguments, output)
    if status:
        assert lines[-1].startswith("error: "), (arguments, output)
