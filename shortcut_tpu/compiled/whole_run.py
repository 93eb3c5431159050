"""Checks a whole run on a pod, at full size and step by step: memory of chips and hosts, time.

Nothing is read, staged or sampled: sizes follow from the config and, where it is at hand, the
manifest. The train step and the samplers are compiled by the TPU's compiler; decoder and feature
network, of their published shapes, are counted, see `counted`.

Usage:
  found = walk(config, Topology.parse("v5e-256"), say=print)
  print(*report(found), sep="\n")
"""

from collections import defaultdict
from collections.abc import Iterator, Mapping
import dataclasses
import functools
import math
from pathlib import Path
import time
from typing import Any

import jax
from ml_collections import ConfigDict
import numpy as np

from data_pipeline.autoencoders import Autoencoder, abstract_autoencoder
from data_pipeline.errors import UserError
from data_pipeline.manifest import FILE_NAME as MANIFEST
from data_pipeline.manifest import Manifest
from data_pipeline.staging import MEMORY
from shortcut_tpu.compiled.analysis import Candidate, batch_fields, bytes_per_chip
from shortcut_tpu.compiled.counted import count
from shortcut_tpu.compiled.matrix import Row, Say, examined
from shortcut_tpu.evaluation.features import Features, abstract_features
from shortcut_tpu.evaluation.generator import make_generator
from shortcut_tpu.evaluation.memory import config_bytes, require_host_memory
from shortcut_tpu.evaluation.protocols import get_protocol
from shortcut_tpu.pod import partitioning
from shortcut_tpu.pod.topologies import Topology
from shortcut_tpu.training.experiment import Experiment
from shortcut_tpu.training.input import records_of

GIB = 2**30
# Linux gives a file system in memory half of it, unless it is told otherwise.
_SHARE_OF_MEMORY_FILES = 0.5
# Batches that lie on the devices while one is trained on: the next, and one more.
_BATCHES_AHEAD = 2

TRAIN_STEP = "train step"


@dataclasses.dataclass(frozen=True)
class Act:
    """Something that a run does, and what it takes.

    Attributes:
      name: of what is done.
      key: of the config, that it follows from.
      chip_bytes: memory of a chip, with all that lies there meanwhile.
      host_bytes: memory of the host that needs the most.
      moved_bytes: to or from disk or bucket, by the host that moves the most.
      seconds: of one call; the compiler's estimate of a program, the chip's limit of one that is
        counted.
      calls: in an evaluation.
      compile_seconds: on this machine.
      reason: why it does not fit; empty where it does.
    """

    name: str
    key: str
    chip_bytes: int | None = None
    host_bytes: int | None = None
    moved_bytes: int | None = None
    seconds: float | None = None
    calls: int = 0
    compile_seconds: float | None = None
    reason: str = ""


def walk(
    config: ConfigDict, topology: Topology, say: Say, known: Mapping[str, Row] | None = None
) -> dict[str, Any]:
    """Every act of a run on a pod.

    Args:
      config: of the run.
      topology: the pod.
      say: called with a line for each act.
      known: figures of programs by their key, which are not compiled again.

    Returns:
      `acts`, up to the first that does not fit; `fits`; that one's `reason`; sums over the acts:
      `evaluation_seconds`, `host_bytes`, `kept_bytes`, `compile_seconds`; `programs`, the figures
      of those that were compiled, by the act's name; `seconds` that the walk took.

    Raises:
      UserError: libtpu is missing, or the config is not valid on so many chips.
    """
    started = time.monotonic()
    run = _Run.of(config, topology, known or {})
    acts = []
    for act in run.acts():
        say(f"{act.name}: {act.reason or 'fits'}")
        acts.append(act)
        if act.reason:
            # The rest would be compiled for minutes, for a run that cannot be.
            break
    held = [act for act in acts if act.host_bytes]
    together = sum(act.host_bytes or 0 for act in held)
    if together > topology.machine.memory_bytes and not any(act.reason for act in held):
        largest = max(held, key=lambda act: act.host_bytes or 0)
        reason = _over(
            largest.key, "all that a host holds", together, topology.machine.memory_bytes
        )
        acts.append(Act("memory of a host", largest.key, host_bytes=together, reason=reason))
    reasons = [act.reason for act in acts if act.reason]
    state = run.state_bytes
    return {
        "topology": topology.name,
        "chips": topology.chips,
        "hosts": topology.hosts,
        "chip_capacity_bytes": topology.hbm_bytes,
        "host_capacity_bytes": topology.machine.memory_bytes,
        "mesh": dict(run.experiment.mesh.shape),
        "fits": not reasons,
        **({"reason": reasons[0]} if reasons else {}),
        "acts": [dataclasses.asdict(act) for act in acts],
        "host_bytes": together,
        "state_bytes": state,
        # One more while the newest is being written.
        "kept_bytes": (config.checkpoint.keep + 1) * state,
        "evaluation_seconds": sum(act.calls * (act.seconds or 0) for act in acts),
        "compile_seconds": round(sum(act.compile_seconds or 0 for act in acts), 1),
        "programs": run.programs,
        "seconds": round(time.monotonic() - started, 1),
    }


def _over(key: str, what: str, needed: float, capacity: float) -> str:
    return f"{key}: {what} takes {needed / GIB:.1f} GiB of {capacity / GIB:.1f}"


@dataclasses.dataclass(frozen=True)
class _Run:
    """What the acts of a run are made of."""

    config: ConfigDict
    topology: Topology
    step: Candidate
    autoencoder: Autoencoder
    known: Mapping[str, Row]
    programs: dict[str, Row]

    @classmethod
    def of(cls, config: ConfigDict, topology: Topology, known: Mapping[str, Row]) -> "_Run":
        autoencoder = abstract_autoencoder(config.data.autoencoder, config.data.channels)
        step = Candidate.make(config, topology.devices(), "train")
        return cls(config, topology, step, autoencoder, known, programs={})

    @property
    def experiment(self) -> Experiment:
        return self.step.experiment

    @functools.cached_property
    def state_bytes(self) -> int:
        """Of a checkpoint."""
        leaves = jax.tree.leaves(self.experiment.abstract_state)
        return sum(leaf.size * leaf.dtype.itemsize for leaf in leaves)

    @functools.cached_property
    def features(self) -> Features | None:
        """What evaluations measure; None where there are none."""
        evaluation = self.config.evaluation
        if not evaluation.every_steps or self.config.data.horizon:
            return None
        return abstract_features(get_protocol(evaluation.protocol))

    def acts(self) -> Iterator[Act]:
        """In the order in which a run comes to them, but what is compiled comes last."""
        yield self._staging()
        yield from self._checkpoints()
        if self.features is not None:
            yield self._statistics()
        yield self._training()
        if self.features is not None:
            yield from self._evaluation(self.features)

    # ------------------------------------------------------------------ hosts
    def _staging(self) -> Act:
        data, machine = self.config.data, self.topology.machine
        folder, key = records_of(self.config), "data.stage"
        row = sum(
            math.prod(shape) * np.dtype(dtype).itemsize
            for dtype, shape in batch_fields(self.config).values()
        )
        found = Path(folder) / MANIFEST
        count = Manifest.load(folder).num_records if found.is_file() else data.num_records
        size, name = count * row, f"{count or 'unknown'} records of {row} bytes staged"
        if data.stage and not data.stage.startswith(MEMORY.rpartition("/")[0]):
            return Act(name, key, moved_bytes=size)
        room = _SHARE_OF_MEMORY_FILES * machine.memory_bytes
        over = size > room
        what = f"{count} records in {MEMORY.rpartition('/')[0]}"
        reason = f"{_over(key, what, size, room)}; name a disk by --config.data.stage"
        return Act(name, key, host_bytes=size, moved_bytes=size, reason=reason if over else "")

    def _checkpoints(self) -> Iterator[Act]:
        hosts, key = self.topology.hosts, "checkpoint.every_steps"
        share = -(-self.state_bytes // hosts)
        held = _bytes_per_host(self.experiment.abstract_state)
        # Every host reads its share of the files again, for their checksums.
        yield Act("checksums of a resume", key, moved_bytes=share)
        yield Act("state restored", key, moved_bytes=held)
        # Copied off the devices at once, written beside training.
        yield Act("state saved", key, host_bytes=share, moved_bytes=share)
        yield Act("checksums of a save", key, moved_bytes=share)

    def _statistics(self) -> Act:
        evaluation, machine = self.config.evaluation, self.topology.machine
        needed = config_bytes(self.config, self.autoencoder)
        reason = ""
        try:
            require_host_memory(self.config, self.autoencoder, machine.memory_bytes)
        except UserError as error:
            reason = str(error)
        name = f"statistics of {evaluation.num_samples} samples"
        host_bytes = sum(needed.values())
        return Act(name, "evaluation.protocol", host_bytes=host_bytes, reason=reason)

    # ------------------------------------------------------------------ chips
    @functools.cached_property
    def _weights(self) -> tuple[Any, Any]:
        """The decoder's and the feature network's, whole on every chip once there was a sample."""
        everywhere = partitioning.replicated(self.experiment.mesh)
        networks: Mapping[str, Any] = self.features.weights if self.features else {}

        def lie(weights: Mapping[str, Any]) -> dict[str, Any]:
            return {
                name: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=everywhere)
                for name, leaf in weights.items()
            }

        return lie(self.autoencoder.decoder_weights), lie(networks)

    def _resident(self) -> int:
        """Bytes of a chip that are taken while evaluations and steps take turns."""
        batch = self.experiment.abstract_batch(batch_fields(self.config))
        return bytes_per_chip(
            (
                self.experiment.abstract_state,
                self.experiment.judges,
                self._weights if self.features else (),
            )
        ) + _BATCHES_AHEAD * bytes_per_chip(batch)

    def _compiled(
        self, name: str, key: str, candidate: Candidate, held: Any, calls: int = 0
    ) -> Act:
        """A program; `held` are those of its arguments that are resident anyway."""
        figures = self.programs[name] = examined(candidate, self.topology, self.known)
        capacity = self.topology.hbm_bytes
        if "hbm_bytes_per_chip" not in figures:
            return Act(name, key, calls=calls, reason=f"{key}: {name}: {figures['reason']}")
        used = figures["hbm_bytes_per_chip"] + self._resident() - bytes_per_chip(held)
        return Act(
            name,
            key,
            chip_bytes=used,
            seconds=figures["estimated_seconds"],
            calls=calls,
            compile_seconds=figures["compile_seconds"],
            reason=_over(key, name, used, capacity) if used > capacity else "",
        )

    def _counted(
        self, name: str, key: str, function: Any, arguments: tuple[Any, ...], calls: int
    ) -> Act:
        """A program of convolutions by its shapes; all that it makes is split by rows."""
        found, capacity = count(function, *arguments), self.topology.hbm_bytes
        rows, shards = arguments[-1], partitioning.row_shards(self.experiment.mesh)
        taken = rows.size * rows.dtype.itemsize + found.live_bytes
        used = self._resident() + -(-taken // shards)
        seconds = found.flops / shards / self.topology.chip.bf16_flops
        reason = _over(key, name, used, capacity) if used > capacity else ""
        return Act(name, key, chip_bytes=used, seconds=seconds, calls=calls, reason=reason)

    def _training(self) -> Act:
        return self._compiled(TRAIN_STEP, "batch_size", self.step, self.step.arguments)

    def _evaluation(self, features: Features) -> Iterator[Act]:
        evaluation, mesh = self.config.evaluation, self.experiment.mesh
        shards, rows = partitioning.row_shards(mesh), partitioning.rows(mesh)
        size = max(min(evaluation.batch_size, evaluation.num_samples) // shards, 1) * shards
        calls = -(-evaluation.num_samples // size)
        generator = make_generator(self.experiment, self.autoencoder)
        indices, labels = (
            jax.ShapeDtypeStruct((size,), dtype, sharding=rows) for dtype in ("uint32", "int32")
        )
        params = self.experiment.abstract_state.emas["evaluation"]
        key, steps = "evaluation.batch_size", tuple(evaluation.steps)
        found = self.experiment.objective.step_counts(steps)
        for n in found:
            arguments: tuple[Any, ...] = (params, indices, labels)
            program = Candidate(self.experiment, "sample", n, generator.program(n), arguments)
            name = f"sampler, {n} step{'s' if n > 1 else ''}"
            yield self._compiled(name, key, program, params, calls)
        decoder, networks = self._weights
        x1 = jax.eval_shape(generator.program(found[0]), params, indices, labels)
        images = jax.eval_shape(generator.decoding, decoder, x1)
        for name, function, weights, like in (
            (f"decoder of {self.autoencoder.name}", generator.decoding, decoder, x1),
            (
                f"features of {features.protocol.name}",
                generator.consuming(features),
                networks,
                images,
            ),
        ):
            yield self._counted(name, key, function, (weights, like), calls * len(found))


def _bytes_per_host(tree: Any) -> int:
    """Of the host that has the most: each part once, however many of its devices hold it."""
    most: dict[int, int] = defaultdict(int)
    for leaf in jax.tree.leaves(tree):
        size = math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
        parts = defaultdict(set)
        for device, index in leaf.sharding.devices_indices_map(leaf.shape).items():
            parts[device.process_index].add(str(index))
        for host, found in parts.items():
            most[host] += len(found) * size
    return max(most.values())


def report(found: Mapping[str, Any]) -> list[str]:
    """The acts as a table, and what they come to."""

    def gib(size: int | None) -> str:
        return "" if size is None else f"{size / GIB:.2f}"

    def number(value: float | None, form: str) -> str:
        return "" if value is None else format(value, form)

    head = ["", "chip, GiB", "host, GiB", "moved, GiB", "a call, ms", "calls", "compiled, s"]
    rows = [head]
    for act in found["acts"]:
        milliseconds = None if act["seconds"] is None else 1e3 * act["seconds"]
        rows.append(
            [
                act["name"] + (" *" if act["reason"] else ""),
                *(gib(act[kind]) for kind in ("chip_bytes", "host_bytes", "moved_bytes")),
                number(milliseconds, ".3g"),
                str(act["calls"] or ""),
                number(act["compile_seconds"], ".1f"),
            ]
        )
    chip, host = found["chip_capacity_bytes"], found["host_capacity_bytes"]
    rows.append(["of", gib(chip), gib(host), "", "", "", ""])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        "  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]).rstrip()
        for row in rows
    ]
    mesh = partitioning.in_words(found["mesh"])
    return [
        f"{found['topology']}, {found['chips']} chips as ({mesh}), {found['hosts']} hosts",
        *lines,
        f"checkpoints in the bucket: {gib(found['kept_bytes'])} GiB; memory of a host in all: "
        f"{gib(found['host_bytes'])} GiB",
        f"an evaluation: about {found['evaluation_seconds']:.0f} s; all programs compiled in "
        f"{found['compile_seconds']:.0f} s here",
    ]
