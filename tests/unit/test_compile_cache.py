"""A step compiled from shapes, as preflight does, is the one that a run then looks for."""

from etils import epath
import jax
from jax.experimental.compilation_cache import compilation_cache
import pytest

from shortcut_tpu.compiled.analysis import batch_fields, latent_scale
from shortcut_tpu.pod import compile_cache
from shortcut_tpu.train import train
from shortcut_tpu.training.experiment import Experiment


@pytest.fixture
def cache(tmp_path):
    folder = tmp_path / "cache"
    compile_cache.enable(str(folder))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    compilation_cache.reset_cache()
    yield folder
    jax.config.update("jax_compilation_cache_dir", None)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 1.0)
    compilation_cache.reset_cache()


def steps(cache):
    return {path.name for path in cache.glob("jit_train_step-*-cache")}


def test_a_run_finds_the_step_that_was_compiled_from_shapes(tiny_config, devices, tmp_path, cache):
    """The cache's key holds the whole program: it is the same one to the last constant."""
    with tiny_config.unlocked():
        tiny_config.objective.name = "flow_matching"
        tiny_config.model.depth = 1
        tiny_config.train.num_steps = 1
        tiny_config.checkpoint.every_steps = 0
        tiny_config.evaluation.every_steps = 0
    experiment = Experiment.from_config(tiny_config, devices, latent_scale(tiny_config))
    batch = experiment.abstract_batch(batch_fields(tiny_config))
    experiment.train_step.lower(experiment.abstract_state, batch).compile()
    compiled = steps(cache)
    assert len(compiled) == 1
    train(tiny_config, epath.Path(tmp_path / "run"))
    assert steps(cache) == compiled
