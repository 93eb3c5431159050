"""Our XL step beside the official one on a pod, by the TPU compiler's own cycles an image.

DiT-XL/2, batch 256 on v4-64, a share of 1/8 and guidance of 1.5, the official state whole on every
chip or laid over all of them along each weight's largest axis, as the official code has it. Nothing
is run; the official step, its 28 blocks written out, compiles for minutes.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from ml_collections import ConfigDict
import numpy as np

# Imported for the environment that the compiler needs.
from shortcut_tpu import preflight  # noqa: F401
from shortcut_tpu.cli import config as config_lib
from shortcut_tpu.compiled.analysis import analyse
from shortcut_tpu.compiled.cycles import Operation, operations
from shortcut_tpu.compiled.hlo import Program
from shortcut_tpu.pod.topologies import Topology
from tests.benchmarks.comparison import Bar, Comparison, Options, Skipped
from tests.benchmarks.official import SHARE, Official, quiet

POD, BATCH, GUIDANCE = "v4-64", 256, 1.5
# Smaller weights the official code leaves whole.
_MIN_BYTES = 4 * 2**20


def pod_config() -> ConfigDict:
    """Ours, with the official share and guidance."""
    config = config_lib.load("imagenet256_xl").copy_and_resolve_references()
    with config.unlocked():
        config.batch_size = BATCH
        config.objective.shortcut.update({"bootstrap_share": SHARE, "guidance": GUIDANCE})
    return config.lock()


def official_operations(official: Official, topology: Topology, *, fsdp: bool) -> list[Operation]:
    """What the compiler makes of the official step on a pod."""
    mesh = Mesh(np.array(topology.devices()), ("devices",))
    whole, rows = NamedSharding(mesh, P()), NamedSharding(mesh, P("devices"))

    def place(leaf: Any) -> NamedSharding:
        if fsdp and leaf.size * leaf.dtype.itemsize > _MIN_BYTES:
            for axis in np.argsort(leaf.shape)[::-1]:
                if leaf.shape[axis] % topology.chips == 0:
                    return NamedSharding(mesh, P(*[None] * axis, "devices"))
        return whole

    def step(state: Any, images: jax.Array, labels: jax.Array) -> Any:
        # The official step shuffles its batch before it divides the rows into kinds.
        order = jax.random.permutation(jax.random.fold_in(state.rng, 1), len(labels))
        images, labels = (
            jax.lax.with_sharding_constraint(a[order], rows) for a in (images, labels)
        )
        return official.step(state, images, labels)

    data = official.config.data
    batch = (
        jax.ShapeDtypeStruct(
            (BATCH, data.image_size, data.image_size, data.channels), jnp.float32, sharding=rows
        ),
        jax.ShapeDtypeStruct((BATCH,), jnp.int32, sharding=rows),
    )
    with quiet():
        shapes = jax.eval_shape(official.create)
        shardings = jax.tree.map(place, shapes)
        state = jax.tree.map(
            lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
            shapes,
            shardings,
        )
        jitted = jax.jit(step, out_shardings=(shardings, whole))
        text = jitted.lower(state, *batch).compile().as_text()
    return operations(Program.parse(text), topology.chip)


def measure(options: Options) -> list[Comparison]:
    if options.official is None:
        raise Skipped("give --official=CLONE of github.com/kvfrans/shortcut-models")
    topology, config = Topology.parse(POD), pod_config()
    ours = analyse(config, topology)["estimated_cycles"] / BATCH
    official = Official(options.official, config, GUIDANCE)
    found = []
    for name, fsdp in (("fsdp", True), ("dp", False)):
        theirs = sum(o.total for o in official_operations(official, topology, fsdp=fsdp)) / BATCH
        found.append(
            Comparison(
                f"XL on {POD}, ours over official {name}, cycles an image and chip",
                "",
                [ours],
                [theirs],
                Bar(high=0.5),
            )
        )
    return found
