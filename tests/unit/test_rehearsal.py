"""The acts of a run tried before its first step: they leave nothing, and name what cannot be."""

from etils import epath
import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image
import pytest

from data_pipeline.errors import UserError
from shortcut_tpu import rehearsal
from shortcut_tpu.rehearsal import rehearse
from shortcut_tpu.runs.checkpointing import Checkpoints
from shortcut_tpu.train import train
from shortcut_tpu.training.experiment import Experiment


@pytest.fixture
def short(tiny_config):
    config = tiny_config.copy_and_resolve_references()
    with config.unlocked():
        config.train.num_steps = 4
        config.model.depth = 1
        config.evaluation.steps = (1,)
    return config


def files(folder):
    """All but TensorBoard's and Orbax's, whose names are another each time."""
    found = (str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())
    return sorted(name for name in found if "tfevents" not in name and "/state/" not in name)


def test_a_rehearsed_run_is_the_same_run(short, tmp_path, capsys):
    """Parameters to the last bit, and the files; evaluations and sheets change neither."""
    rehearsed = train(short, epath.Path(tmp_path / "rehearsed"), rehearsing=True)
    assert "rehearsed: every part of the run works here" in capsys.readouterr().out
    short.evaluation.update(every_steps=0, sheet_every_steps=3)
    plain = train(short, epath.Path(tmp_path / "plain"))
    said = capsys.readouterr().out
    assert "rehearsed:" not in said
    for step in (3, 4):
        sheet = tmp_path / "plain" / "evaluations" / f"{step}.png"
        assert f"samples at step {step}: {sheet}" in said
        with Image.open(sheet) as picture:
            assert picture.width > picture.height > 8
        sheet.unlink()
    for a, b in zip(jax.tree.leaves(plain), jax.tree.leaves(rehearsed), strict=True):
        np.testing.assert_array_equal(np.asarray(a), np.asarray(b))
    left = files(tmp_path / "rehearsed")
    assert left == sorted([*files(tmp_path / "plain"), "evaluations/4.json", "evaluations/4.png"])
    assert not (tmp_path / "rehearsed" / "rehearsal").exists()


class Evaluation:
    """Notes the step counts that it is asked for, and fails at one."""

    step_counts = (1, 2, 4)

    def __init__(self, error=None):
        self.error, self.asked = error, []

    def first_batch(self, params, num_steps):
        self.asked.append(num_steps)
        assert all(leaf.is_fully_addressable for leaf in jax.tree.leaves(params))
        if num_steps == 2 and self.error:
            raise self.error


def test_what_fails_is_named(short, devices, tmp_path, monkeypatch, capsys):
    experiment = Experiment.from_config(short, devices)
    records, workdir = short.data.path, epath.Path(tmp_path)
    # The steps are those of the other test; here they need not be compiled.
    first = experiment.init_state()
    monkeypatch.setattr(rehearsal, "initial_state", lambda _: jax.tree.map(jnp.copy, first))
    monkeypatch.setattr(rehearsal, "_steps", lambda _, state, records: state)
    # What a rehearsal that was killed has left does not matter.
    (workdir / "rehearsal" / "checkpoints" / "3").mkdir(parents=True)
    evaluation, alive = Evaluation(), []
    rehearse(experiment, evaluation, records, workdir, lambda: alive.append(1))
    assert evaluation.asked == [1, 2, 4] and len(alive) == 6

    memory = Evaluation(jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: 9 GiB\nmore"))
    with pytest.raises(UserError, match="failed at an evaluation at 2 steps: RESOURCE_EXHAUSTED"):
        rehearse(experiment, memory, records, workdir)
    # A host that was lost comes back: the supervisor starts all again.
    lost = Evaluation(jax.errors.JaxRuntimeError("UNAVAILABLE: a peer"))
    with pytest.raises(jax.errors.JaxRuntimeError):
        rehearse(experiment, lost, records, workdir)
    assert "failed at an evaluation at 2 steps: UNAVAILABLE" in capsys.readouterr().out

    def refused(manager, *args, **kwargs):
        raise OSError("no space left")

    with monkeypatch.context() as patched:
        patched.setattr("orbax.checkpoint.CheckpointManager.save", refused)
        with pytest.raises(UserError, match="failed at a save: the checkpoint could not be writ"):
            rehearse(experiment, Evaluation(), records, workdir)
    with monkeypatch.context() as patched:
        patched.setattr(Checkpoints, "newest", lambda self: None)
        with pytest.raises(UserError, match="failed at a restore: .* is not there"):
            rehearse(experiment, Evaluation(), records, workdir)
    assert files(tmp_path) == []
    assert not (tmp_path / "rehearsal").exists()
    assert not rehearsal.by_default()
