"""Whatever the flags, a command ends: with a result, or with status 1 and one clear line."""

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


@pytest.fixture(scope="module")
def commands(tmp_path_factory):
    with forked_commands(tmp_path_factory.mktemp("empty")) as run:
        yield run


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
