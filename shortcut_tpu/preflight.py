"""Compiles a config's train step for a TPU pod, here, and says whether it fits.

  python -m shortcut_tpu.preflight --config=imagenet256_xl --topology=v5e-256
  python -m shortcut_tpu.preflight --config=imagenet256_xl --topology=v5p-128 \\
      --config.batch_size=1024 --config.mesh.fsdp=8

The TPU compiler of libtpu does the work on any Linux machine; no TPU is needed. The step, state and
shardings are those that `shortcut_tpu.train` runs on that pod. Exits 1 where it does not fit. The
figures are the compiler's: nothing was run.
"""

import os
from pathlib import Path
import sys
import time
from typing import Any

# Before JAX wakes: this machine is no TPU host, and its compiler shall not ask for one.
os.environ["JAX_PLATFORMS"] = "cpu"
os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
# Without a name of its own the compiler warns about every variable that a TPU VM would have.
os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")
os.environ.setdefault("TPU_ACCELERATOR_TYPE", "v5litepod-256")
os.environ.setdefault("TPU_MIN_LOG_LEVEL", "3")

from absl import flags
import jax
from ml_collections import ConfigDict

from data_pipeline.errors import UserError
from data_pipeline.manifest import FILE_NAME as MANIFEST
from data_pipeline.manifest import Manifest, pair_fields
from shortcut_tpu import command
from shortcut_tpu.experiment import Experiment, needs_pairs
from shortcut_tpu.topologies import Topology

GIB = 2**30


def define_flags() -> None:
    command.define_config()
    flags.DEFINE_string("topology", None, "Pod, such as v5e-256, v6e-256, v5p-128, v4-64.")
    command.define_json()


def batch_fields(config: ConfigDict) -> dict[str, tuple[Any, tuple[int, ...]]]:
    """Fields of the records: the manifest's if they are here, else the most that there can be."""
    if not needs_pairs(config) and (Path(config.data.path) / MANIFEST).is_file():
        fields = Manifest.load(config.data.path).fields
        return {field.name: (jax.numpy.dtype(field.dtype), field.shape) for field in fields}
    latent = (config.data.image_size, config.data.image_size, config.data.channels)
    if needs_pairs(config):
        return {f.name: (jax.numpy.dtype(f.dtype), f.shape) for f in pair_fields(latent)}
    moments = ("mean", "std", "mean_flipped", "std_flipped")
    return {
        **{name: (jax.numpy.dtype("float16"), latent) for name in moments},
        "label": (jax.numpy.dtype("int32"), ()),
    }


def preflight(config: ConfigDict, topology: Topology) -> dict[str, Any]:
    """Compiles the step for the pod.

    Returns:
      The figures of the report; `reason` is there only where it does not fit.

    Raises:
      UserError: libtpu is missing, or the config is not valid on so many chips.
    """
    experiment = Experiment.from_config(config, topology.devices())
    batch = experiment.abstract_batch(batch_fields(config))
    figures: dict[str, Any] = {
        "topology": topology.name,
        "chips": topology.chips,
        "mesh": dict(experiment.mesh.shape),
        "batch_size": config.batch_size,
        "hbm_capacity_bytes": topology.hbm_bytes,
    }
    started = time.monotonic()
    try:
        compiled = experiment.train_step.lower(experiment.abstract_state, batch).compile()
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        return figures | {"fits": False, "reason": _reason(str(error))}
    memory = compiled.memory_analysis()
    # Donated outputs live in their arguments' place.
    used = (
        memory.argument_size_in_bytes
        + memory.output_size_in_bytes
        - memory.alias_size_in_bytes
        + memory.temp_size_in_bytes
        + memory.generated_code_size_in_bytes
    )
    return figures | {
        "fits": used <= topology.hbm_bytes,
        "hbm_bytes_per_chip": used,
        "hbm_state_bytes": memory.argument_size_in_bytes,
        "hbm_temporary_bytes": memory.temp_size_in_bytes,
        "compile_seconds": round(time.monotonic() - started, 1),
    }


def _reason(message: str) -> str:
    """The compiler's own words on what it could not place, in one line."""
    lines = [line.strip() for line in message.splitlines()]
    said = next((line for line in lines if "RESOURCE_EXHAUSTED" in line), lines[0])
    return said.partition("RESOURCE_EXHAUSTED: ")[2] or said


def report(figures: dict[str, Any]) -> list[str]:
    """The figures as lines for a person."""
    capacity = figures["hbm_capacity_bytes"] / GIB
    mesh = ", ".join(f"{axis} {size}" for axis, size in figures["mesh"].items())
    lines = [
        f"topology     {figures['topology']}, {figures['chips']} chips as ({mesh})",
        f"batch        {figures['batch_size']} rows",
    ]
    if "hbm_bytes_per_chip" in figures:
        used = figures["hbm_bytes_per_chip"] / GIB
        lines += [
            f"HBM a chip   {used:.2f} of {capacity:.2f} GiB: state and batch "
            f"{figures['hbm_state_bytes'] / GIB:.2f}, temporaries "
            f"{figures['hbm_temporary_bytes'] / GIB:.2f}",
            f"compiled in  {figures['compile_seconds']} s",
        ]
    return lines


def main() -> None:
    config = command.config()
    topology = Topology.parse(command.required("topology", "the pod, such as v5e-256"))
    figures = preflight(config, topology)
    command.write_json(figures)
    if not figures["fits"]:
        reason = figures.get("reason") or (
            f"{figures['hbm_bytes_per_chip'] / GIB:.2f} GiB a chip of "
            f"{figures['hbm_capacity_bytes'] / GIB:.2f}"
        )
        raise UserError(f"batch {config.batch_size} does not fit on {topology.name}: {reason}")
    print(*report(figures), "fits", sep="\n")
    sys.stdout.flush()


if __name__ == "__main__":
    command.run(main, define_flags)
