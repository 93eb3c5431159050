"""Compiles a config's program for a pod and collects the figures of the result.

Usage:
  figures = analyse(config, Topology.parse("v5e-256"))
  print(figures["fits"], figures["bound_by"], figures["mfu_bound"])
"""

from collections.abc import Iterable, Sequence
import dataclasses
import functools
import hashlib
import importlib.metadata
import math
from pathlib import Path
import time
from typing import Any

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from data_pipeline.autoencoders import load_autoencoder
from data_pipeline.autoencoders.kl_config import KLConfig
from data_pipeline.autoencoders.tiny import VARIANTS
from data_pipeline.manifest import FILE_NAME as MANIFEST
from data_pipeline.manifest import Manifest, demonstration_fields, pair_fields, row_shapes
from shortcut_tpu.compiled.collectives import Collective, collectives
from shortcut_tpu.compiled.cost import executed_flops, hbm_bytes
from shortcut_tpu.compiled.cycles import operations
from shortcut_tpu.compiled.estimate import Estimate
from shortcut_tpu.compiled.hlo import Program
from shortcut_tpu.compiled.required import required_bytes
from shortcut_tpu.compiled.roofline import Roofline
from shortcut_tpu.evaluation.generator import make_generator
from shortcut_tpu.evaluation.judges import abstract_judges
from shortcut_tpu.pod import partitioning, topologies
from shortcut_tpu.pod.topologies import Topology
from shortcut_tpu.training import flops
from shortcut_tpu.training.experiment import Experiment, latent_shape
from shortcut_tpu.training.flops import count_flops, kernel_flops, layer_passes
from shortcut_tpu.training.input import needs_pairs
from shortcut_tpu.training.latents import with_statistics

PROGRAMS = ("train", "sample", "forward")
# What makes figures of a compiled program, beside this package.
_READERS = (flops.__file__, topologies.__file__)


def batch_fields(config: ConfigDict) -> dict[str, tuple[Any, tuple[int, ...]]]:
    """Fields of the records: the manifest's if they are here, else the most that there can be."""
    latent = latent_shape(config.data)
    fields = None
    if needs_pairs(config):
        fields = pair_fields(latent)
    elif (Path(config.data.path) / MANIFEST).is_file():
        fields = Manifest.load(config.data.path).fields
    elif config.data.observation_size:
        fields = demonstration_fields(latent, config.data.observation_size)
    if fields is not None:
        return row_shapes(fields)
    moments = ("mean", "std", "mean_flipped", "std_flipped")
    return {
        **{name: (jnp.dtype("float16"), latent) for name in moments},
        "label": (jnp.dtype("int32"), ()),
    }


def latent_scale(config: ConfigDict) -> float:
    """The constant that `train` scales latents by: the manifest's, else the autoencoder's usual."""
    if (Path(config.data.path) / MANIFEST).is_file():
        return float(Manifest.load(config.data.path).autoencoder["scale"])
    name = config.data.autoencoder.partition(":")[0]
    if name == "identity":
        return 1.0
    return VARIANTS[name].scale if name in VARIANTS else KLConfig().scaling_factor


@dataclasses.dataclass(frozen=True)
class Candidate:
    """A program of a config on some devices, not yet compiled.

    Attributes:
      program: one of PROGRAMS.
      steps: of the sampler.
      function: jitted.
      arguments: their shapes and shardings.
    """

    experiment: Experiment
    program: str
    steps: int
    function: Any
    arguments: tuple[Any, ...]

    @classmethod
    def make(
        cls, config: ConfigDict, devices: Sequence[jax.Device], program: str, steps: int = 1
    ) -> "Candidate":
        """The train step, the sampler of evaluation at a number of steps, or a bare forward pass.

        Raises:
          UserError: the config is not valid on so many devices.
        """
        if (Path(config.data.path) / MANIFEST).is_file():
            config = with_statistics(config)
        scale = latent_scale(config)
        judges = abstract_judges(config, scale)
        experiment = Experiment.from_config(config, devices, scale, judges)
        if program == "train":
            batch = experiment.abstract_batch(batch_fields(config))
            arguments = (experiment.abstract_state, batch, experiment.judges)
            return cls(experiment, program, steps, experiment.train_step, arguments)
        if program == "sample":
            return cls(experiment, program, steps, *_sampler(experiment, steps))
        return cls(experiment, program, steps, *_forward(experiment))

    @property
    def trains(self) -> bool:
        """Whether it has gradients."""
        return self.program == "train"

    @functools.cached_property
    def lowered(self) -> Any:
        """Traced, with its shardings: what the compiler is given."""
        return self.function.lower(*self.arguments)

    def fingerprint(self, topology: Topology) -> str:
        """A digest of all that its figures depend on: the program, the compiler, what reads it."""
        digest = hashlib.sha256(self.lowered.as_text().encode())
        for text in (topology.name, importlib.metadata.version("libtpu")):
            digest.update(text.encode())
        package = Path(__file__).parent
        for path in (*sorted(package.glob("*.py")), *map(Path, _READERS)):
            digest.update(path.read_bytes())
        return digest.hexdigest()

    def model_flops(self) -> int:
        """Operations in the products of the method, on all chips: no recomputation, no padding."""
        if not self.trains:
            return count_flops(self.function, *self.arguments)
        return self.experiment.model_flops(batch_fields(self.experiment.config))

    @property
    def batch_size(self) -> int:
        """Rows of the global batch; the sampler's last argument is of labels, a row each."""
        return jax.tree.leaves(self.arguments[1 if self.trains else -1])[0].shape[0]

    def passes(self) -> float:
        depths = self.experiment.model.config.stack_depths
        return layer_passes(depths, self.function, *self.arguments)


def _sampler(experiment: Experiment, steps: int) -> tuple[Any, tuple[Any, ...]]:
    """The sampler without a decoder: what it makes are latents."""
    generator = make_generator(experiment, load_autoencoder("identity"))
    rows = partitioning.rows(experiment.mesh)
    count = _sampled_rows(experiment)
    indices = jax.ShapeDtypeStruct((count,), "uint32", sharding=rows)
    labels = jax.ShapeDtypeStruct((count,), "int32", sharding=rows)
    params = experiment.abstract_state.emas["evaluation"]
    return generator.program(steps), (params, indices, labels)


def _forward(experiment: Experiment) -> tuple[Any, tuple[Any, ...]]:
    """The network once, on as many rows as the sampler."""
    rows = partitioning.rows(experiment.mesh)
    count = _sampled_rows(experiment)
    fields = batch_fields(experiment.config)
    like_rows = (
        ("float32", experiment.latent_shape),
        ("float32", ()),
        ("float32", ()),
        fields["observation" if "observation" in fields else "label"],
    )
    arrays = (
        jax.ShapeDtypeStruct((count, *shape), dtype, sharding=rows) for dtype, shape in like_rows
    )
    params = experiment.abstract_state.emas["evaluation"]
    function = jax.jit(experiment.placed(experiment.model.apply), out_shardings=rows)
    return function, (params, *arrays)


def _sampled_rows(experiment: Experiment) -> int:
    count: int = experiment.config.evaluation.batch_size
    return count + -count % partitioning.row_shards(experiment.mesh)


def analyse(
    config: ConfigDict, topology: Topology, program: str = "train", steps: int = 1
) -> dict[str, Any]:
    """Compiles a program of a config for the pod.

    Args:
      config: of the run.
      topology: the pod.
      program: one of PROGRAMS.
      steps: of the sampler.

    Returns:
      As `examine`.

    Raises:
      UserError: libtpu is missing, or the config is not valid on so many chips.
    """
    return examine(Candidate.make(config, topology.devices(), program, steps), topology)


def examine(candidate: Candidate, topology: Topology) -> dict[str, Any]:
    """Compiles a candidate, whose devices are the topology's.

    Returns:
      The figures of the report, all of one chip but `model_flops` and `executed_flops`; `reason`
      is there only where the program does not fit, and then little else.
    """
    figures = _known_before(candidate, topology)
    started = time.monotonic()
    try:
        compiled = candidate.lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        return figures | {"fits": False, "reason": _reason(str(error))}
    took = {"compile_seconds": round(time.monotonic() - started, 1)}
    return figures | took | examine_compiled(candidate, topology, compiled)


def examine_compiled(candidate: Candidate, topology: Topology, compiled: Any) -> dict[str, Any]:
    """Of what `examine` returns, what a candidate's executable holds."""
    memory = compiled.memory_analysis()
    # Donated outputs live in their arguments' place.
    used = (
        memory.argument_size_in_bytes
        + memory.output_size_in_bytes
        - memory.alias_size_in_bytes
        + memory.temp_size_in_bytes
        + memory.generated_code_size_in_bytes
    )
    return {
        "fits": used <= topology.hbm_bytes,
        "hbm_bytes_per_chip": used,
        "hbm_state_bytes": memory.argument_size_in_bytes,
        "hbm_temporary_bytes": memory.temp_size_in_bytes,
        "hbm_code_bytes": memory.generated_code_size_in_bytes,
    } | _costs(candidate, topology, Program.parse(compiled.as_text()))


def _known_before(candidate: Candidate, topology: Topology) -> dict[str, Any]:
    experiment = candidate.experiment
    state = experiment.abstract_state
    kinds = {"parameters": bytes_per_chip(state.params)}
    if candidate.trains:
        kinds["optimizer"] = bytes_per_chip(state.opt_state)
        kinds["emas"] = bytes_per_chip(state.emas)
        kinds["batch"] = bytes_per_chip(candidate.arguments[1])
        if experiment.judges:
            kinds["judges"] = bytes_per_chip((experiment.judges, state.carried))
    figures: dict[str, Any] = {
        "program": candidate.program,
        "topology": topology.name,
        "chips": topology.chips,
        "mesh": dict(experiment.mesh.shape),
        "batch_size": candidate.batch_size,
        "remat": experiment.config.model.remat,
        "hbm_capacity_bytes": topology.hbm_bytes,
        "hbm_bytes_by_kind": kinds,
    }
    return figures if candidate.trains else figures | {"steps": candidate.steps}


def bytes_per_chip(tree: Any) -> int:
    """What a tree of arrays with shardings takes of each chip."""
    return sum(
        math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
        for leaf in jax.tree.leaves(tree)
    )


def _costs(candidate: Candidate, topology: Topology, program: Program) -> dict[str, Any]:
    mesh, chips = candidate.experiment.mesh, topology.chips
    shape = dict(mesh.shape)
    shape[partitioning.DATA] //= topology.slices
    moved = collectives(program, shape)
    kernels = kernel_flops(candidate.function, *candidate.arguments)
    flops = executed_flops(program, kernels)
    roofline = Roofline.of(flops, hbm_bytes(program), moved, topology, mesh)
    model_flops = candidate.model_flops()
    estimate = Estimate.of(operations(program, topology.chip, kernels), moved, roofline, mesh)
    needed = required_bytes(candidate.experiment, candidate.passes(), gradients=candidate.trains)
    total = sum(collective.total_bytes for collective in moved)
    return {
        "collectives": summary(moved),
        "collective_bytes": total,
        "required_bytes": needed,
        "collective_bytes_ratio": total / needed if needed else None,
        "model_flops": model_flops,
        "executed_flops": flops * chips,
        "kernels": sorted({kernel.name for kernel in kernels}),
        "roofline_seconds": roofline.times,
        "bound_by": roofline.bound_by,
        "mfu_bound": roofline.mfu(model_flops / chips),
    } | estimate.figures(model_flops / chips)


def summary(moved: Iterable[Collective]) -> list[dict[str, Any]]:
    """Collectives of the same kind and size as one entry, the most bytes first."""
    counts: dict[tuple[Any, ...], int] = {}
    for collective in moved:
        key = (collective.op, collective.axis, collective.bytes, collective.overlapped)
        counts[key] = counts.get(key, 0) + collective.count
    entries = [
        {"op": op, "axis": axis, "bytes": size, "count": count, "overlapped": overlapped}
        for (op, axis, size, overlapped), count in counts.items()
    ]
    return sorted(entries, key=lambda entry: -entry["bytes"] * entry["count"])


def _reason(message: str) -> str:
    """The compiler's own words on what it could not place, in one line."""
    lines = [line.strip() for line in message.splitlines()]
    said = next((line for line in lines if "RESOURCE_EXHAUSTED" in line), lines[0])
    return said.partition("RESOURCE_EXHAUSTED: ")[2] or said
