"""Puts a trained network's weights into one of another objective, image size or number of classes.

Usage:
  adoption = Adoption("init_from=runs/flow", theirs, ours)        # both from `make_parts`
  embedders = adoption.embedders(their_params)          # on the host, the same on all
  params = jax.jit(adoption)(their_params, our_fresh_params, embedders)
  say(*adoption.lines())                                # what was taken, changed, new and left out
"""

from collections.abc import Iterable
import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from configs.common import get_limits
from data_pipeline.errors import UserError
from shortcut_tpu.models import NETWORKS, InContext, Model, Params
from shortcut_tpu.models.dit import Transformer
from shortcut_tpu.objectives.told_guidance import UNGUIDED
from shortcut_tpu.pod import partitioning
from shortcut_tpu.training import refitting
from shortcut_tpu.training.parts import Parts

Arrays = dict[str, jax.Array]

# Fields of a network's config that may differ: what they change is computed, converted below, or
# no matter of the weights.
_MAY_DIFFER = {
    *("image_size", "horizon", "num_classes", "conditions", "heads", "aux_head_depth"),
    *("faithful", "smooth_times", "told_time", "finest_level"),
    *("dtype", "tangent_dtype", "remat", "attention", "unroll"),
}
_TIMES = 129
_POINTS_A_LEVEL = 8


@dataclasses.dataclass(eq=False)
class Adoption:
    """The way of a network's weights into another network.

    Both must be of one kind and have the same shapes inside. What differs by the objective, the
    images or the numerics is converted, so that the new network starts as the old one's velocity
    wherever it can: a condition that the old one lacks starts without effect, a class as no label.

    Attributes:
      name: what the weights are called in messages, such as "init_from=runs/flow".
      theirs: the parts of the run that they are from.
      ours: the parts of the new run.

    Raises:
      UserError: the networks do not go together; the message names the key.
    """

    name: str
    theirs: Parts
    ours: Parts

    def __post_init__(self) -> None:
        theirs, ours = self.theirs.network_config, self.ours.network_config
        if self.theirs.network is not self.ours.network:
            there, here = (_network(parts.network) for parts in (self.theirs, self.ours))
            raise UserError(
                f"{self.name}: its network is {there}, this config's {here}; a run "
                "starts from weights of its own kind of network"
            )
        for name in (field.name for field in dataclasses.fields(ours)):
            there, here = getattr(theirs, name), getattr(ours, name)
            # A network that is told the step size can become one that is told where it ends.
            if name not in _MAY_DIFFER and there != here and (name != "decoupled_depth" or there):
                key = _key(self.ours.network, name)
                raise UserError(
                    f"{self.name}: {key} is {there} there and {here} here; a run "
                    "starts from weights of the same shapes"
                )
        self._changed: dict[str, str] = {}
        self._table: list[tuple[str, str]] = []

    # ------------------------------------------------------------------ the weights
    def __call__(self, source: Params, fresh: Params, embedders: Any) -> Params:
        """The new network's weights.

        Args:
          source: the old network's weights.
          fresh: the new one's, as they are initialised.
          embedders: from `embedders`.

        Raises:
          UserError: weights of other shapes would have to be put into each other.
        """
        found, own = _flat(source), _flat(fresh)
        before = set(found)
        if self.ours.network is InContext:
            self._restack(found)
        if issubclass(self.ours.network, Transformer):
            self._scale_queries(found)
        self._pick_heads(found, own)
        self._name_classes(found, own)
        for prefix in self._changed:
            if f"{prefix}/hidden/kernel" in own:
                for name in _below(f"{prefix}/", own):
                    found.pop(f"{prefix}/{name}", None)
        found |= embedders
        for path, leaf in own.items():
            if path in found and found[path].shape != leaf.shape:
                raise UserError(
                    f"{self.name}: {path} has the shape {found[path].shape} there and "
                    f"{leaf.shape} here"
                )
        self._tabulate(found, own, before)
        leaves, tree = jax.tree.flatten(fresh)
        taken = [found.get(path, leaf) for path, leaf in zip(own, leaves, strict=True)]
        return jax.tree.unflatten(tree, taken)

    def _scale_queries(self, found: Arrays) -> None:
        """Attention's logits as they were, where the numerics scale them otherwise."""
        ratio = self.theirs.network_config.logit_scale / self.ours.network_config.logit_scale
        if ratio == 1 or self.ours.network is InContext:
            return
        for path, axis in (("blocks/qkv/kernel", 2), ("blocks/qkv/bias", 1)):
            query, *others = jnp.unstack(found[path], axis=axis)
            found[path] = jnp.stack([query * ratio, *others], axis=axis)
        self._changed["blocks"] = "queries scaled, for model.faithful differs"

    def _pick_heads(self, found: Arrays, own: Arrays) -> None:
        """The last layer's velocities; one that was not there is the first or starts at zero."""
        heads = [parts.objective.heads for parts in (self.theirs, self.ours)]
        if heads[0] == heads[1] or "final/project/kernel" not in own:
            return
        channels = self.ours.network_config.channels
        for path in ("final/project/kernel", "final/project/bias"):
            there = found[path].reshape(*found[path].shape[:-1], -1, heads[0], channels)
            parts = [
                jnp.zeros_like(there[..., 0, :]) if source is None else there[..., source, :]
                for source in self._head_sources()
            ]
            found[path] = jnp.stack(parts, axis=-2).reshape(own[path].shape)
        self._changed["final"] = _heads_in_words(*heads)

    def _head_sources(self) -> list[int | None]:
        """For each output of the new network the old one's that it starts as, or None."""
        there, ours = self.theirs.objective.heads, self.ours.objective
        return [
            head if head < there else 0 if head < ours.velocity_heads else None
            for head in range(ours.heads)
        ]

    def _restack(self, found: Arrays) -> None:
        """Blocks that outputs share and those of their own, where they are dealt out otherwise."""
        theirs, ours = self.theirs.network_config, self.ours.network_config
        if theirs.stack_depths == ours.stack_depths:
            return
        heads = {name: found.pop(name) for name in list(found) if name.startswith("heads/")}
        shared = _below("shared_blocks/", found)
        for name in shared:
            del found[f"shared_blocks/{name}"]
        for head, source in enumerate(self._head_sources()):
            if source is None:
                continue
            for name, array in _below(f"heads/head_{source}/", heads).items():
                if not name.startswith("blocks/"):
                    found[f"heads/head_{head}/{name}"] = array
            last = _below(f"heads/head_{source}/blocks/", heads)
            for name in shared or last:
                stacks = [blocks[name] for blocks in (shared, last) if blocks]
                whole = jnp.concatenate(stacks)
                if ours.shared_depth and not head:
                    found[f"shared_blocks/{name}"] = whole[: ours.shared_depth]
                if ours.shared_depth < ours.depth:
                    found[f"heads/head_{head}/blocks/{name}"] = whole[ours.shared_depth :]
        heads_in_words = _heads_in_words(theirs.heads, ours.heads)
        for name in ("shared_blocks", "heads"):
            self._changed[name] = f"{heads_in_words}, {ours.shared_depth} blocks shared"

    def _name_classes(self, found: Arrays, own: Arrays) -> None:
        """Other classes start as no label, which is the last row."""
        theirs, ours = (parts.network_config for parts in (self.theirs, self.ours))
        for path, leaf in own.items():
            if path.endswith("label_embed/embedding") and found[path].shape != leaf.shape:
                found[path] = jnp.broadcast_to(found[path][-1:], leaf.shape)
                self._changed[_module(path)] = (
                    f"{ours.num_classes} classes in place of {theirs.num_classes}, each starts as "
                    "no label"
                )

    # ------------------------------------------------------------------ the conditions
    def embedders(self, source: Params) -> dict[str, np.ndarray]:
        """Layers by path of the embedders that change, made on the host in float64.

        Args:
          source: the old network's weights; embedders lie whole on every device.
        """
        made: dict[str, np.ndarray] = {}
        if not issubclass(self.ours.network, Transformer):
            return made
        theirs, ours, flat = self.theirs.network_config, self.ours.network_config, _flat(source)

        def old(name: str) -> refitting.Layers:
            layers = _below(f"{self._embedder(name)}/", flat)
            return {path: np.asarray(leaf, np.float64) for path, leaf in layers.items()}

        for name in ours.conditions:
            if name not in theirs.conditions:
                made |= self._silent(name, np.zeros(ours.width))
        if ours.told_time and not theirs.told_time:
            made |= self._silent("time", np.zeros(ours.width))
        elif ours.told_time and theirs.time_scale != ours.time_scale:
            t = np.linspace(0, 1, _TIMES)
            points = refitting.Points(t * theirs.time_scale, t * ours.time_scale)
            made |= self._refitted("time", old("time"), points)
        decoupled = [getattr(c, "decoupled_depth", 0) > 0 for c in (theirs, ours)]
        if not decoupled[1]:
            made |= self._step(old("step"))
        if self.ours.network is InContext:
            return _as_weights(made)
        # Their embeddings are summed, so that what is told no more can stay as a constant.
        kept = "time" if decoupled[1] else "step"
        bias = f"{self._embedder(kept)}/out/bias"
        constants = {name: UNGUIDED[name] for name in {*theirs.conditions} - {*ours.conditions}}
        if decoupled[1] and not decoupled[0]:
            constants["step"] = self._velocity_step()
        for name, told in sorted(constants.items()):
            constant = refitting.embedded(old(name), np.full(1, told))[0]
            made[bias] = made.get(bias, old(kept)["out/bias"]) + constant
        return _as_weights(made)

    def _velocity_step(self) -> float:
        """What the old network is told of the step size at which it puts out the velocity."""
        only = self.theirs.objective.only_step
        level = np.inf if only is None else -np.log2(only)
        return float(_told(self.theirs.network_config, np.full(1, level))[0])

    def _step(self, step: refitting.Layers) -> dict[str, np.ndarray]:
        """The step size; one that was never told, or is told no more, stays as a constant."""
        theirs, ours = self.theirs.network_config, self.ours.network_config
        only = [parts.objective.only_step for parts in (self.theirs, self.ours)]
        if only[0] is not None and only[0] == only[1]:
            return {}
        if only != [None, None]:
            constant = refitting.embedded(step, np.full(1, self._velocity_step()))[0]
            return self._silent("step", constant, "starts with the old velocity at every step size")
        scales = [0.0 if c.smooth_times else c.level_scale for c in (theirs, ours)]
        if scales[0] == scales[1]:
            return {}
        return self._refitted("step", step, _step_points(theirs, ours))

    def _silent(
        self, name: str, constant: np.ndarray, why: str = "starts without effect"
    ) -> dict[str, np.ndarray]:
        """The last layer of an embedder that puts out a constant [width], whatever it is told."""
        prefix = self._embedder(name)
        self._changed[prefix] = why
        kernel = np.zeros((constant.size, constant.size))
        return {f"{prefix}/out/kernel": kernel, f"{prefix}/out/bias": constant}

    def _refitted(
        self, name: str, layers: refitting.Layers, points: refitting.Points
    ) -> dict[str, np.ndarray]:
        """The layers of an embedder of a number that is told on another scale."""
        prefix = self._embedder(name)
        fitted, error = refitting.refitted(layers, points)
        self._changed[prefix] = f"fitted to another scale of its numbers (error {error:.1%})"
        return {f"{prefix}/{path}": layer for path, layer in fitted.items()}

    def _embedder(self, name: str) -> str:
        if self.ours.network is InContext:
            return f"scalar_embed/{name}"
        return f"{name}_embed" if name in ("time", "step") else f"condition_embed/{name}"

    # ------------------------------------------------------------------ the table
    def _tabulate(self, found: Arrays, own: Arrays, before: set[str]) -> None:
        def changed(path: str) -> str | None:
            return next((name for name in self._changed if path.startswith(f"{name}/")), None)

        taken = [path for path in own if path in found and not changed(path)]
        new = [path for path in own if path not in found]
        left = [path for path in before if path not in own and not changed(path)]
        count = sum(own[path].size for path in taken)
        self._table = [
            (f"taken ({count / 1e6:.3g}M)", ", ".join(_modules(taken))),
            *(("changed", f"{name}: {why}") for name, why in sorted(self._changed.items())),
            ("new", ", ".join(_modules(new, 2))),
            ("left out", ", ".join(_modules(left, 2))),
        ]

    def lines(self) -> list[str]:
        """The table: what was taken, changed, new and left out."""
        return [f"  {kind:<16} {what}" for kind, what in self._table if what]


def _as_weights(layers: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {path: layer.astype(np.float32) for path, layer in layers.items()}


def _told(config: Any, levels: np.ndarray) -> np.ndarray:
    """What a network is told of step sizes 2^-level; an infinite level is a step of 0."""
    if config.smooth_times:
        return (2.0**-levels).astype(np.float32)
    return (np.minimum(levels, config.finest_level) * config.level_scale).astype(np.float32)


def _step_points(theirs: Any, ours: Any) -> refitting.Points:
    """Step sizes by level; between the whole levels of a grid the old outputs are interpolated."""
    finest = theirs.finest_level
    levels = np.linspace(0, finest, finest * _POINTS_A_LEVEL + 1)
    if ours.smooth_times:
        levels = np.append(levels, np.inf)
    if theirs.smooth_times:
        return refitting.Points(_told(theirs, levels), _told(ours, levels))
    whole = np.arange(finest + 1)
    mix = np.maximum(0, 1 - np.abs(np.minimum(levels, finest)[:, None] - whole))
    return refitting.Points(_told(theirs, whole), _told(ours, levels), mix)


def _network(network: type[Model]) -> str:
    return next(name for name, kind in NETWORKS.items() if kind is network)


def _key(network: type[Model], field: str) -> str:
    """The key of a config that a network's field stands for."""
    keys = (f"data.{field}", f"model.{field}", f"model.{_network(network)}.{field}")
    return next(key for key in keys if key in get_limits())


def _flat(params: Params) -> Arrays:
    return {
        partitioning.path_name(path): leaf
        for path, leaf in jax.tree_util.tree_leaves_with_path(params)
    }


def _below(prefix: str, arrays: Arrays) -> Arrays:
    return {
        name.removeprefix(prefix): array
        for name, array in arrays.items()
        if name.startswith(prefix)
    }


def _module(path: str, levels: int = 1) -> str:
    """What a weight is of, to so many levels; the layers of an embedder are not told apart."""
    parts = [part for part in path.split("/")[:-1] if part not in ("hidden", "out")]
    return "/".join(parts[:levels])


def _modules(paths: Iterable[str], levels: int = 1) -> list[str]:
    return sorted({_module(path, levels) for path in paths})


def _heads_in_words(there: int, here: int) -> str:
    return f"outputs: {here} in place of {there}"
