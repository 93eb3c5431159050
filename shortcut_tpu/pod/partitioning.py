"""The device mesh and its sharding rules.

Rows of a batch are split over the axes `data` and `fsdp` in whole strides, weights over `fsdp` and
`tensor`. The devices along `stride` hold the same strides: of a pass over the whole batch each
computes its share of the rows, a pass over some rows of each stride they compute alike. So a batch
may have fewer strides than there are devices, and nothing but gradients moves.

Usage:
  mesh = make_mesh(choose_shape(config.mesh, len(devices), batch_size=256, ...), devices)
  shardings = state_shardings(mesh, jax.eval_shape(create, key))
  x = jax.device_put(x, rows(mesh))
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
import dataclasses
import functools
import itertools
import math
import re
from typing import Any

import jax
from jax.custom_derivatives import linear_call
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
import numpy as np

from data_pipeline.errors import UserError

DATA, FSDP, STRIDE, TENSOR = AXES = ("data", "fsdp", "stride", "tensor")
Shape = tuple[int, int, int, int]
# Axes whose devices compute rows of their own, and those over which a batch is laid out.
ROW_AXES = (DATA, FSDP, STRIDE)
ROWS = P((DATA, FSDP))

# The first pattern found in a leaf's path decides. Averages and optimizer moments have their
# parameter's path as a suffix and so lie where it does. The leading axis of `blocks` is the layer.
RULES: tuple[tuple[str, P], ...] = (
    # Adafactor's vectors, of which a matrix's second moments are made, and what stands where a
    # matrix has none.
    (r"/v_(row|col)/", P()),
    (r"blocks/qkv/kernel", P(None, FSDP, None, TENSOR)),
    (r"blocks/qkv/bias", P(None, None, TENSOR)),
    (r"blocks/attention_out/kernel", P(None, TENSOR, None, FSDP)),
    (r"blocks/mlp_in/kernel", P(None, FSDP, TENSOR)),
    (r"blocks/mlp_in/bias", P(None, TENSOR)),
    # Cut along its inputs: parts cut along the lanes would be put together by a copy of the whole.
    (r"blocks/mlp_out/kernel", P(None, (TENSOR, FSDP))),
    (r"blocks/gate_up/kernel", P(None, FSDP, None, TENSOR)),
    # Of gated MLPs the hidden width is 8/3 of the network's, which many chips do not divide.
    (r"blocks/down/kernel", P(None, TENSOR, FSDP)),
    (r"blocks/modulation/kernel", P(None, FSDP, None, TENSOR)),
    (r"blocks/modulation/bias", P(None, None, TENSOR)),
    (r"", P()),
)


def in_words(shape: Mapping[str, int]) -> str:
    """A mesh's shape, such as "data 16, fsdp 16, stride 1, tensor 1"."""
    return ", ".join(f"{axis} {size}" for axis, size in shape.items())


def choose_shape(
    axes: Mapping[str, int],
    num_devices: int,
    *,
    batch_size: int,
    row_stride: int,
    num_heads: int,
    width: int,
    slices: int = 1,
) -> Shape:
    """The mesh (data, fsdp, stride, tensor) for a config on some devices.

    An axis of -1 is chosen: of the shapes whose devices hold whole strides of rows, the one with
    the smallest tensor axis, then with the smallest stride axis, then with the largest fsdp axis.

    Args:
      axes: `config.mesh`.
      num_devices: how many there are.
      batch_size: rows of the global batch.
      row_stride: `Objective.row_stride`; every device holds a multiple of this many rows.
      num_heads: the tensor axis must divide it.
      width: of the network; the fsdp axis must divide it.
      slices: of the pod; the data axis must hold whole ones.

    Raises:
      UserError: no shape fits; the message names batch sizes that would.
    """
    asked = tuple(axes[name] for name in AXES)
    shapes = [
        (num_devices // (fsdp * stride * tensor), fsdp, stride, tensor)
        for tensor in _divisors(num_devices)
        for stride in _divisors(num_devices // tensor)
        for fsdp in _divisors(num_devices // (tensor * stride))
        if num_heads % tensor == 0 and row_stride % stride == 0
    ]
    shapes = [
        shape
        for shape in shapes
        if all(want in (-1, have) for want, have in zip(asked, shape, strict=True))
        and (asked[1] != -1 or width % shape[1] == 0)
        and shape[0] % slices == 0
    ]
    if not shapes:
        raise UserError(
            f"mesh (data, fsdp, stride, tensor) = {asked} cannot be laid over {num_devices} "
            f"devices with {num_heads} attention heads; the axes must multiply to {num_devices}, "
            f"tensor must divide the heads and stride the objective's {row_stride} rows"
            + (f", and data must be a multiple of the {slices} slices" if slices > 1 else "")
        )
    for shape in sorted(shapes, key=lambda shape: (shape[3], shape[2], -shape[1])):
        if batch_size % (shape[0] * shape[1] * row_stride) == 0:
            return shape
    multiple = min(shape[0] * shape[1] for shape in shapes) * row_stride
    near = max(batch_size // multiple, 1) * multiple
    raise UserError(
        f"batch_size={batch_size} cannot be laid out over {num_devices} devices in whole strides "
        f"of {row_stride} rows each; batch sizes that can: {near}, {near + multiple}, or any "
        f"other multiple of {multiple}"
    )


def _divisors(number: int) -> list[int]:
    return [n for n in range(1, number + 1) if number % n == 0]


def make_mesh(shape: Shape, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """The mesh of this shape over all devices, or over those given.

    Neighbours on an axis are neighbours on the torus. An axis of the torus may be split between
    two of the mesh, as (64, 1, 1, 4) over 16 x 16 chips needs. Of several slices each is a part of
    the data axis, so that only gradients cross the network between them.
    """
    devices = jax.devices() if devices is None else devices
    slices = count_slices(devices)
    if slices == 1:
        placed = mesh_utils.create_device_mesh(shape, devices, allow_split_physical_axes=True)
    else:
        placed = mesh_utils.create_hybrid_device_mesh(
            (shape[0] // slices, *shape[1:]),
            (slices, 1, 1, 1),
            devices,
            allow_split_physical_axes=True,
        )
    return Mesh(placed, AXES, axis_types=(AxisType.Auto,) * len(AXES))


def count_slices(devices: Iterable[jax.Device]) -> int:
    """How many slices of TPU pods the devices belong to; 1 for other devices."""
    return len({getattr(device, "slice_index", 0) for device in devices})


def row_shards(mesh: Mesh) -> int:
    """Into how many parts of whole strides a batch is laid out."""
    return mesh.shape[DATA] * mesh.shape[FSDP]


def rows(mesh: Mesh) -> NamedSharding:
    """The sharding of an array whose first axis is a batch."""
    return NamedSharding(mesh, ROWS)


def replicated(mesh: Mesh) -> NamedSharding:
    """The sharding of an array that every device holds whole."""
    return NamedSharding(mesh, P())


def replicate(mesh: Mesh, arrays: Any) -> Any:
    """Arrays that every host has, whole on every device; shapes as shapes of such."""
    everywhere = replicated(mesh)

    def place(array: Any) -> Any:
        if isinstance(array, jax.ShapeDtypeStruct):
            return jax.ShapeDtypeStruct(array.shape, array.dtype, sharding=everywhere)
        return jax.make_array_from_callback(array.shape, everywhere, np.asarray(array).__getitem__)

    return jax.tree.map(place, arrays)


def state_shardings(mesh: Mesh, abstract: Any) -> Any:
    """A NamedSharding for each leaf of a train state or of its parameters.

    Args:
      mesh: from `make_mesh`.
      abstract: a pytree of arrays or of ShapeDtypeStructs.

    Raises:
      UserError: an axis does not divide a weight's dimension.
    """

    def place(path: Any, leaf: Any) -> NamedSharding:
        name = path_name(path)
        spec = _rule(name) if leaf.shape != (1,) else P()
        for dimension, held in zip(leaf.shape, spec, strict=False):
            axes = _axes(held)
            if dimension % math.prod(mesh.shape[axis] for axis in axes):
                sizes = " x ".join(f"mesh.{axis}={mesh.shape[axis]}" for axis in axes)
                raise UserError(f"{sizes} does not divide {dimension}, a dimension of {name}")
        return NamedSharding(mesh, spec)

    return jax.tree_util.tree_map_with_path(place, abstract)


def _rule(name: str) -> P:
    return next(spec for pattern, spec in RULES if re.search(pattern, name))


@dataclasses.dataclass(frozen=True)
class MeshPlacement:
    """Activations by whole rows, weights whole but for their tensor axis: `models.placement`.

    Attributes:
      batch_size: a pass over so many rows or more is split over the stride axis as well; those
        that a batch is taken in at once.
      gather: when weights are gathered over fsdp, by "layer" or by "step".
    """

    mesh: Mesh
    batch_size: int
    gather: str = "layer"

    @property
    def platform(self) -> str:
        return str(self.mesh.devices.flat[0].platform)

    @property
    def whole(self) -> bool:
        return self.gather == "step" and self.mesh.shape[FSDP] > 1

    def heads(self, function: Callable[..., jax.Array], *arrays: jax.Array) -> jax.Array:
        """A kernel on arrays [B, H, ...], which the compiler cannot split: one on each device."""
        num_rows = arrays[0].shape[0]
        axes = self._row_axes(num_rows)
        spec = P(axes if self._divide(axes, num_rows) else None, TENSOR)
        # Kernels do not say along which axes their results differ, which is what would be checked.
        split = jax.shard_map(
            function, mesh=self.mesh, in_specs=spec, out_specs=spec, check_vma=False
        )
        return split(*arrays)

    def inputs(self, arrays: Any) -> Any:
        """Arrays [B, ...], taken from where batches lie to where a pass wants them.

        Devices along the stride axis have all rows of their strides, so each takes its share of
        what it holds; without the first placement the compiler would lay out what comes before
        like the share, and move rows to make it.
        """
        return jax.tree.map(lambda x: self.rows(self._as_batch(x)), arrays)

    def output(self, x: jax.Array) -> jax.Array:
        """[B, ...] laid out as a batch is: shares of strides are put together, a few kilobytes."""
        return self._as_batch(self.rows(x))

    def _as_batch(self, x: jax.Array) -> jax.Array:
        if self.mesh.shape[STRIDE] == 1:
            return self._by_rows(x, (DATA, FSDP))
        # Of constraints one upon another the partitioner keeps the last for all uses of the array;
        # a barrier on either side keeps them apart.
        barrier = jax.lax.optimization_barrier
        return barrier(self._by_rows(barrier(x), (DATA, FSDP)))

    def rows(self, x: jax.Array) -> jax.Array:
        """[B, ...] with each device holding whole rows."""
        return self._by_rows(x, self._row_axes(x.shape[0]))

    def _row_axes(self, num_rows: int) -> tuple[str, ...]:
        return ROW_AXES if num_rows >= self.batch_size else (DATA, FSDP)

    def _by_rows(self, x: jax.Array, axes: tuple[str, ...]) -> jax.Array:
        return self._constrained(x, P(axes)) if self._divide(axes, x.shape[0]) else x

    def _divide(self, axes: tuple[str, ...], num_rows: int) -> bool:
        return num_rows % math.prod(self.mesh.shape[axis] for axis in axes) == 0

    def params(self, params: Any) -> Any:
        """All weights, gathered over fsdp where that is done once for all layers."""
        if not self.whole:
            return params
        return jax.tree_util.tree_map_with_path(
            lambda path, leaf: self._gathered(leaf, _rule(path_name(path))), params
        )

    def weights(self, module: str, weights: Any) -> Any:
        """One layer's weights, gathered over fsdp; their gradients are scattered again."""
        if self.mesh.shape[FSDP] == 1:
            return weights

        def place(path: Any, leaf: jax.Array) -> jax.Array:
            # Without the leading axis, which is the layer.
            spec = P(*tuple(_rule(f"{module}/{path_name(path)}"))[1:])
            shape, held = _heads_joined(leaf.shape, spec)
            if self.whole:
                # They are whole already; their gradients are scattered here. The compiler sums
                # these well where they are whole first.
                joined = self._gathered(leaf, spec).reshape(shape)
            else:
                joined = self._constrained(self._constrained(leaf, spec).reshape(shape), held)
            return self._constrained(joined, _whole(held)).reshape(leaf.shape)

        return jax.tree_util.tree_map_with_path(place, weights)

    def _gathered(self, weight: jax.Array, held: P) -> jax.Array:
        return _gather(
            weight, NamedSharding(self.mesh, held), NamedSharding(self.mesh, _whole(held))
        )

    def _constrained(self, x: jax.Array, spec: P) -> jax.Array:
        return jax.lax.with_sharding_constraint(x, NamedSharding(self.mesh, spec))


@functools.partial(jax.custom_jvp, nondiff_argnums=(1, 2))
def _gather(weight: jax.Array, held: NamedSharding, whole: NamedSharding) -> jax.Array:
    """The weight laid out as `whole`; its gradient is laid out as `held`.

    A constraint alone would have the gradient whole, too, and kept so for all layers.
    """
    return jax.lax.with_sharding_constraint(weight, whole)


@_gather.defjvp
def _gather_jvp(
    held: NamedSharding,
    whole: NamedSharding,
    primals: tuple[jax.Array],
    tangents: tuple[jax.Array],
) -> tuple[jax.Array, jax.Array]:
    tangent = linear_call(
        lambda _, change: jax.lax.with_sharding_constraint(change, whole),
        lambda _, cotangent: jax.lax.with_sharding_constraint(cotangent, held),
        (),
        *tangents,
    )
    return _gather(*primals, held, whole), tangent


def _heads_joined(shape: tuple[int, ...], spec: P) -> tuple[tuple[int, ...], P]:
    """The shape and layout of a weight whose heads' widths stand side by side.

    Gathered or scattered with an axis of 72 it would be copied to fill lanes, and back.
    """
    lengths: list[int] = []
    axes: list[Any] = []
    for length, held in itertools.zip_longest(shape, spec):
        if held is None and axes and axes[-1] == TENSOR:
            lengths[-1] *= length
        else:
            lengths.append(length)
            axes.append(held)
    return tuple(lengths), P(*axes)


def _whole(spec: P) -> P:
    return P(*(tuple(axis for axis in _axes(held) if axis != FSDP) or None for held in spec))


def _axes(held: str | tuple[str, ...] | None) -> tuple[str, ...]:
    """Of the mesh, those that a dimension lies over."""
    if held is None:
        return ()
    return (held,) if isinstance(held, str) else held


def path_name(path: Any) -> str:
    """Where a leaf of a tree stands, as blocks/qkv/kernel, from JAX's path of keys."""
    return jax.tree_util.keystr(path, simple=True, separator="/")


def local_rows(mesh: Mesh, batch_size: int) -> tuple[int, int]:
    """(start, stop): the rows of the global batch that this process's devices hold."""
    held_by_device = rows(mesh).addressable_devices_indices_map((batch_size,)).values()
    spans = [index[0].indices(batch_size) for index in held_by_device if index]
    start, stop = min(span[0] for span in spans), max(span[1] for span in spans)
    held = {row for span in spans for row in range(span[0], span[1])}
    assert held == set(range(start, stop)), "a process's rows must be contiguous"
    return start, stop


def to_global(mesh: Mesh, batch: dict[str, Any], batch_size: int) -> dict[str, jax.Array]:
    """Each process's rows, joined to global arrays without a copy between hosts."""
    return {
        name: jax.make_array_from_process_local_data(
            rows(mesh), array, (batch_size, *array.shape[1:])
        )
        for name, array in batch.items()
    }
