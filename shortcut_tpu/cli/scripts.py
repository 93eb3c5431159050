"""Console scripts: `shortcut-train` runs `python -m shortcut_tpu.train`.

pyproject.toml gives each its name.
"""

from collections.abc import Callable
import runpy


def _command(module: str) -> Callable[[], None]:
    def script() -> None:
        # As `python -m` runs it, so that --help and the flags are the same.
        runpy.run_module(module, run_name="__main__", alter_sys=True)

    return script


compare = _command("shortcut_tpu.compare")
config_reference = _command("shortcut_tpu.config_reference")
convert = _command("shortcut_tpu.convert")
demonstrate = _command("data_pipeline.demonstrate")
encode_latents = _command("data_pipeline.encode_latents")
evaluate = _command("shortcut_tpu.evaluate")
generate_pairs = _command("shortcut_tpu.generate_pairs")
local_pod = _command("launch.local_pod")
measure = _command("shortcut_tpu.measure")
preflight = _command("shortcut_tpu.preflight")
reference_stats = _command("shortcut_tpu.reference_stats")
report = _command("shortcut_tpu.report")
rollout = _command("shortcut_tpu.rollout")
sample = _command("shortcut_tpu.sample")
train = _command("shortcut_tpu.train")
