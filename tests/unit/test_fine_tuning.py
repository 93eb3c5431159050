"""A run that starts from another's weights: what it computes at step 0, and what it keeps."""

import json

from etils import epath
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from data_pipeline.errors import UserError
from shortcut_tpu.conversion.runs import make_run
from shortcut_tpu.runs import starting
from shortcut_tpu.runs.loading import load_run
from shortcut_tpu.runs.starting import initial_state
from shortcut_tpu.runs.tensors import card, write_tensors
from shortcut_tpu.train import train
from shortcut_tpu.training import refitting
from shortcut_tpu.training.experiment import Experiment
from shortcut_tpu.training.fine_tuning import Adoption
from shortcut_tpu.training.parts import make_parts

ROWS = 3


def parts(config, objective, **changes):
    """The parts of a config, with keys of it or of its hyperparameters changed."""
    config = config.copy_and_resolve_references()
    with config.unlocked():
        config.objective.name = objective
        config.model.dtype = "float32"
        config.update_from_flattened_dict(changes)
    return make_parts(config)


def random_params(parts, seed=0):
    """Weights none of which is zero, as after a training."""
    shapes = jax.eval_shape(parts.network(parts.network_config).init, jax.random.key(0))
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda leaf: 0.2 * rng.normal(size=leaf.shape).astype("f"), shapes)


class Adopted:
    """A network's weights in another one."""

    def __init__(self, theirs, ours):
        self.adoption, self.parts = Adoption("init_from=runs/old", theirs, ours), (theirs, ours)
        self.source, self.fresh = random_params(theirs), random_params(ours, 1)
        self.embedders = self.adoption.embedders(self.source)

    def outputs(self, old, new):
        """Of the old network for arguments and conditions, and of the new one for each of several;
        in one program."""
        there, here = (parts.network(parts.network_config).apply for parts in self.parts)

        @jax.jit
        def run(source, fresh):
            params = self.adoption(source, fresh, self.embedders)
            ours = [here(params, *arguments, **told) for arguments, told in new]
            return there(source, *old[0], **old[1]), ours

        v, ours = run(self.source, self.fresh)
        self.said = "\n".join(self.adoption.lines())
        return np.asarray(v), [np.asarray(one) for one in ours]

    def adopt(self):
        """The weights, without running a network."""
        params = jax.jit(self.adoption)(self.source, self.fresh, self.embedders)
        self.said = "\n".join(self.adoption.lines())
        return params


def points(config, t, label, side=8):
    x = np.random.default_rng(5).normal(size=(ROWS, side, side, config.channels))
    return jnp.asarray(x, jnp.float32), full(t), jnp.full(ROWS, label)


def full(value):
    return jnp.full(ROWS, value, jnp.float32)


def close(ours, theirs):
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=2e-5 * np.abs(theirs).max())


def test_meanflow_starts_as_the_velocity_of_flow_matching(tiny_config):
    """u(x, t, d) = v(x, t) for every d, though attention's logits are scaled otherwise."""
    theirs = parts(tiny_config, "flow_matching", **{"model.faithful": True})
    adopted = Adopted(theirs, parts(tiny_config, "meanflow"))
    x, t, label = points(theirs.network_config, 0.3, 4)
    new = [((x, t, full(d), label), {}) for d in (0.0, 0.7)]
    v, ours = adopted.outputs(((x, t, full(1), label), {}), new)
    for u in ours:
        close(u, v)
    assert "step_embed: starts with the old velocity at every step size" in adopted.said
    assert "queries scaled" in adopted.said and "taken (" in adopted.said


def test_decoupled_conditions_start_as_the_velocity(tiny_config):
    """u(x, t, 0) = v(x, t) without an embedder of the step size. With d above 0 the last of two
    blocks and the last layer are told t + d: of a network whose first block does nothing u(x, t, d)
    is u(x, t + d, 0), of one in which they do nothing it is u(x, t, 0)."""
    theirs = parts(tiny_config, "flow_matching", **{"model.faithful": True})
    ours = parts(tiny_config, "meanflow", **{"model.dit.decoupled_depth": 1})
    adopted = Adopted(theirs, ours)
    x, t, label = points(theirs.network_config, 0.3, 4)
    old = (x, t, full(1), label)
    v, (u,) = adopted.outputs((old, {}), [((x, t, full(0), label), {})])
    close(u, v)
    assert "left out         step_embed" in adopted.said

    apply = jax.jit(ours.network(ours.network_config).apply)
    for told_nothing, time in ((0, 0.7), (1, 0.3)):
        params = random_params(ours)
        of_blocks = params["blocks"]["modulation"]
        for layer in (of_blocks["kernel"], of_blocks["bias"]):
            layer[told_nothing] = 0
        if told_nothing:
            for layer in params["final"]["modulation"].values():
                layer[...] = 0
        u = apply(params, x, t, full(0.4), label)
        close(u, apply(params, x, full(time), full(0), label))
        assert np.abs(u - apply(params, x, full(1.0 - time), full(0), label)).max() > 1e-3


def test_shortcuts_step_sizes_become_a_continuum(tiny_config):
    """At d of the grid the fitted embedder puts out what the old one did, and at 0 the finest.

    Here eight unrelated outputs, which is the worst case."""
    width = {"model.width": 128}
    adopted = Adopted(
        parts(tiny_config, "shortcut", **width), parts(tiny_config, "meanflow", **width)
    )
    params = adopted.adopt()

    def flat(params):
        layers = params["step_embed"]
        return {f"{a}/{b}": np.asarray(layers[a][b]) for a in layers for b in layers[a]}

    levels = np.append(np.arange(8), np.inf)
    told = 100 * np.minimum(levels, 7)
    before = refitting.embedded(flat(adopted.source), told)
    after = refitting.embedded(flat(params), 2.0**-levels)
    assert np.linalg.norm(after - before) < 0.08 * np.linalg.norm(before)
    assert "step_embed: fitted to another scale of its numbers (error " in adopted.said


def test_a_time_that_is_told_on_another_scale_is_fitted():
    """What an embedder makes of t x 1000, from t itself; and between the points as well."""
    width, rng = 64, np.random.default_rng(0)
    kernel = np.zeros((256, width), np.float32)
    # Slow sinusoids of t x 1000, up to 5 radians: as smooth as a trained one is.
    kernel[68:128], kernel[196:] = rng.normal(size=(2, 60, width))
    layers = {
        "hidden/kernel": kernel,
        "hidden/bias": rng.normal(size=width).astype(np.float32),
        "out/kernel": rng.normal(size=(width, 12)).astype(np.float32),
        "out/bias": np.ones(12, np.float32),
    }
    t = np.linspace(0, 1, 129, dtype=np.float32)
    fitted, error = refitting.refitted(layers, refitting.Points(t * 1000, t))
    between = (t[1:] + t[:-1]) / 2
    ours = refitting.embedded(fitted, between)
    theirs = refitting.embedded(layers, between * 1000)
    assert error < 2e-3
    assert np.linalg.norm(ours - theirs) < 5e-3 * np.linalg.norm(theirs)


def test_other_classes_start_as_no_label(tiny_config):
    """And images may be larger: positions are computed."""
    theirs = parts(tiny_config, "shortcut")
    adopted = Adopted(theirs, parts(tiny_config, "shortcut", **{"data.num_classes": 7}))
    x, t, null = points(theirs.network_config, 0.5, 10)
    new = [((x, t, full(0.25), jnp.full(ROWS, label)), {}) for label in (0, 7)]
    v, ours = adopted.outputs(((x, t, full(0.25), null), {}), new)
    for u in ours:
        close(u, v)
    said = "label_embed: 7 classes in place of 10, each starts as no label"
    assert said in adopted.said

    larger = Adopted(theirs, parts(tiny_config, "shortcut", **{"data.image_size": 16}))
    jax.tree.map(np.testing.assert_array_equal, larger.adopt(), larger.source)


def test_conditions_come_and_go(tiny_config):
    """A strength of guidance that is told no more stays at none; new ones have no effect."""
    guided, plain = parts(tiny_config, "improved_shortcut"), parts(tiny_config, "shortcut")
    x, t, label = points(plain.network_config, 0.5, 2)
    at = (x, t, full(0.5), label)
    adopted = Adopted(guided, plain)
    v, (u,) = adopted.outputs((at, {"guidance": full(0)}), [(at, {})])
    close(u, v)
    assert "left out         condition_embed/guidance" in adopted.said
    adopted = Adopted(plain, guided)
    out = adopted.adopt()["condition_embed"]["guidance"]["out"]
    assert not out["kernel"].any() and not out["bias"].any()
    assert "condition_embed/guidance: starts without effect" in adopted.said


def test_a_second_velocity_starts_as_the_first(tiny_config):
    """iMF's two outputs from MeanFlow's one, and back; HOMO's acceleration starts at zero."""
    flow = parts(tiny_config, "meanflow")
    imf = parts(tiny_config, "improved_meanflow", **{"objective.improved_meanflow.told_time": True})
    x, t, label = points(flow.network_config, 0.5, 2)
    at = (x, t, full(0.1), label)
    adopted = Adopted(flow, imf)
    v, (u,) = adopted.outputs((at, {}), [(at, dict.fromkeys(imf.objective.conditions, t))])
    close(u, np.concatenate([v, v], -1))
    assert "final: outputs: 2 in place of 1" in adopted.said

    def last(adopted, params):
        """[width, pixels of a patch, outputs]."""
        return np.asarray(params["final"]["project"]["kernel"]).reshape(16, 4, -1)

    back = Adopted(imf, flow)
    np.testing.assert_array_equal(last(back, back.adopt()), last(back, back.source)[..., :1])
    homo = Adopted(flow, parts(tiny_config, "high_order"))
    both = last(homo, homo.adopt())
    np.testing.assert_array_equal(both[..., :1], last(homo, homo.source))
    assert not both[..., 1].any()


def test_blocks_are_dealt_out_to_the_outputs(tiny_config):
    """Of the in-context network: from blocks for one output to own ones for two, and back."""
    keys = {"model.network": "in_context", "model.depth": 3, "model.in_context.aux_head_depth": 1}
    more = keys | {"model.in_context.aux_head_depth": 2}
    one = parts(tiny_config, "meanflow", **keys)
    two, split = (parts(tiny_config, "improved_meanflow", **these) for these in (keys, more))
    x, t, label = points(two.network_config, 0.5, 2)
    at = ((x, t, t, label), dict.fromkeys(two.objective.conditions, t))
    adopted = Adopted(two, split)
    v, (u,) = adopted.outputs(at, [at])
    close(u, v)
    assert "2 in place of 2, 1 blocks shared" in adopted.said

    def scales(params, name="shared_blocks"):
        blocks = params[name] if name == "shared_blocks" else params["heads"][name]["blocks"]
        return np.asarray(blocks["attention_scale"])

    joined = Adopted(two, one)
    whole = np.concatenate([scales(joined.source), scales(joined.source, "head_0")])
    np.testing.assert_array_equal(scales(joined.adopt()), whole)
    parted = Adopted(one, two)
    params = parted.adopt()
    for head in ("head_0", "head_1"):
        np.testing.assert_array_equal(scales(params, head), scales(parted.source)[2:])
    assert "left out         scalar_embed/time, tokens" in parted.said


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"model.width": 32}, "model.width is 16 there and 32 here"),
        ({"model.depth": 3}, "model.depth is 2 there and 3 here"),
        ({"model.patch_size": 4}, "model.patch_size is 2 there and 4 here"),
        ({"data.channels": 4}, "data.channels is 1 there and 4 here"),
        ({"model.network": "in_context"}, "its network is dit, this config's in_context"),
    ],
)
def test_what_cannot_fit_is_refused(tiny_config, changes, said):
    with pytest.raises(UserError, match=f"^init_from=old: {said}"):
        Adoption(
            "init_from=old",
            parts(tiny_config, "shortcut"),
            parts(tiny_config, "shortcut", **changes),
        )


@pytest.fixture
def flow_run(tiny_config, tmp_path):
    """The workdir of a flow-matching run whose average is twice its weights."""
    config = tiny_config.copy_and_resolve_references()
    with config.unlocked():
        config.objective.name = "flow_matching"
        config.model.faithful, config.model.depth = True, 1
        config.emas = {"evaluation": 0.99}
    params = random_params(make_parts(config))
    workdir = epath.Path(tmp_path / "flow")
    make_run(config, workdir, 7, params, jax.tree.map(lambda leaf: 2 * leaf, params))
    return workdir, params


def test_a_run_starts_from_another(tiny_config, flow_run, tmp_path, capsys, monkeypatch):
    """Of another objective, on a mesh, from the average that is asked for or a file; and it resumes
    without being told from what."""
    (workdir, params), config = flow_run, tiny_config.copy_and_resolve_references()
    with config.unlocked():
        config.objective.name = "meanflow"
        config.model.depth, config.mesh.fsdp = 1, 2
        config.evaluation.every_steps = 0
        config.train.num_steps, config.checkpoint.every_steps = 1, 1
    experiment = Experiment.from_config(config, jax.devices())
    file = epath.Path(tmp_path / "flow.safetensors")
    run = load_run(workdir)
    write_tensors(file, run.params, card(run, "evaluation"))
    for path, ema, times in ((workdir, "evaluation", 2), (workdir, "", 1), (file, "evaluation", 2)):
        asked = starting.Asked("init_from", str(path), -1, ema)
        taken = starting.read_weights(asked, experiment.mesh).params["blocks"]["mlp_in"]["kernel"]
        own = experiment.abstract_state.params["blocks"]["mlp_in"]["kernel"]
        assert taken.sharding == own.sharding and not own.sharding.is_fully_replicated
        np.testing.assert_array_equal(taken, times * params["blocks"]["mlp_in"]["kernel"])
    with pytest.raises(UserError, match="init_from.ema=fast is none of this run's evaluation"):
        starting.read_weights(asked._replace(path=str(workdir), ema="fast"), experiment.mesh)

    started = []

    def first_state(*args, **kwargs):
        started.append(jax.device_get(state := initial_state(*args, **kwargs)))
        return state

    monkeypatch.setattr("shortcut_tpu.train.initial_state", first_state)
    new = epath.Path(tmp_path / "meanflow")
    config.init_from.path = str(workdir)
    train(config, new)
    said = capsys.readouterr().out
    assert f"started from {workdir}: flow_matching, step 7, average evaluation\n  taken" in said
    assert "  changed          blocks: queries scaled" in said
    (state,) = started
    for tree in (state.params, *state.emas.values()):
        wanted = 2 * params["blocks"]["mlp_in"]["kernel"]
        np.testing.assert_array_equal(tree["blocks"]["mlp_in"]["kernel"], wanted)

    config.init_from.path = ""
    train(config, new)
    said = capsys.readouterr().out
    assert "resumed from step 1" in said and "ignored" not in said
    saved = json.loads((new / "config.json").read_text())
    assert saved["init_from"]["path"] == str(workdir)
    config.init_from.path = "elsewhere"
    train(config, new)
    ignored = f"init_from=elsewhere is ignored: {new} resumes; it started from {workdir}"
    assert ignored in capsys.readouterr().out
