"""The manifest of a folder of records: everything a reader needs to decode them.

Usage:
    manifest = Manifest.load("DIR")            # reads DIR/manifest.json
    manifest.record_dtype                      # the bytes of one record, as a numpy dtype
    manifest.require_autoencoder(name, digest) # refuses latents that another autoencoder made
    manifest.save("DIR")                       # whole or not at all
"""

from collections.abc import Iterable, Mapping
import dataclasses
import json
import math
import os
from pathlib import PurePath
from typing import Any

from etils import epath
import numpy as np

from data_pipeline.atomic_files import failures, write_json
from data_pipeline.errors import UserError
from data_pipeline.system_errors import unreadable

FORMAT_VERSION = 1
FILE_NAME = "manifest.json"

_AUTOENCODER_KEYS = ("name", "digest", "scale", "deterministic", "latent_shape", "image_shape")


@dataclasses.dataclass(frozen=True)
class Field:
    """One field of every record: `shape` values of `dtype` (a numpy name such as float16)."""

    name: str
    dtype: str
    shape: tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Shard:
    """One ArrayRecord file: its name within the folder, and what tells a whole one from another.

    `moments` holds, by channel, the sums over its records of the latents and of their squares, each
    drawn from its posterior; () in folders of before there were any.
    """

    file: str
    num_records: int
    num_bytes: int
    sha256: str
    moments: tuple[tuple[float, ...], ...] = ()

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> "Shard":
        """From JSON, which has lists for tuples."""
        return cls(**{**values, "moments": tuple(map(tuple, values.get("moments", ())))})


@dataclasses.dataclass(frozen=True)
class Manifest:
    """What a folder of latent records holds.

    Attributes:
        fields: the fields of a record, in the order of their bytes. `mean` [H, W, C] float16;
            `std` [H, W, C] float16 unless the autoencoder is deterministic; `mean_flipped` and
            `std_flipped`, the latents of the mirrored image, where preprocessing["flips"]; and
            `label`, an int32 scalar. Records of pairs have `noise` [H, W, C] float16 too, what a
            model made the latent `mean` from. Of demonstrations `mean` [horizon, A] float32 is a
            chunk of actions, and `observation` [O] float32 stands in for the label.
        shards: the files, in the order of the record indices.
        autoencoder: name, digest, scale, deterministic, latent_shape and image_shape. Stored
            latents are not scaled: the model sees mean * scale.
        preprocessing: the source, its digest, and whether flips are kept; of image files also how
            they were resized. `shard_records` is how many images each shard stands for, and
            `rejected` how many of all have no record. Of pairs the source is "pairs", the digest is
            of the model that made them, and what it was told stands beside.
        class_names: the name of every label, by label.
        num_records: how many records the shards hold together.
        format_version: the version of this format; a reader refuses those it does not know.
    """

    fields: tuple[Field, ...]
    shards: tuple[Shard, ...]
    autoencoder: dict[str, Any]
    preprocessing: dict[str, Any]
    class_names: tuple[str, ...]
    num_records: int
    format_version: int = FORMAT_VERSION

    @property
    def record_dtype(self) -> np.dtype[Any]:
        """The packed little-endian structured dtype of one record."""
        return np.dtype(
            [(f.name, np.dtype(f.dtype).newbyteorder("<"), f.shape) for f in self.fields]
        )

    @property
    def num_classes(self) -> int:
        """How many labels there are."""
        return len(self.class_names)

    @property
    def latent_shape(self) -> tuple[int, ...]:
        """The shape [H, W, C] of one latent, or [horizon, A] of one chunk of actions."""
        return tuple(self.autoencoder["latent_shape"])

    @property
    def data_keys(self) -> dict[str, Any]:
        """What a config's `data` has to say of these records, by key; latents must be square."""
        length, channels = self.latent_shape[0], self.latent_shape[-1]
        is_image = len(self.latent_shape) == 3
        return {
            "autoencoder": self.autoencoder["name"],
            **({"image_size": length, "horizon": 0} if is_image else {"horizon": length}),
            "channels": channels,
            "num_classes": self.num_classes,
            "observation_size": self.observation_size,
        }

    @property
    def observation_size(self) -> int:
        """Numbers of an observation; 0 where records have labels."""
        return sum(math.prod(f.shape) for f in self.fields if f.name == "observation")

    @property
    def channel_statistics(self) -> tuple[tuple[float, ...], tuple[float, ...]] | None:
        """Mean and standard deviation of stored latents by channel; None where nobody summed.

        Of latents drawn from their posteriors, E[std^2] + Var[mean], mirrored ones among them. The
        sums of shards are added up exactly, so whoever wrote which does not show.
        """
        if not all(shard.moments for shard in self.shards):
            return None
        flips = any(field.name == "mean_flipped" for field in self.fields)
        count = self.num_records * (1 + flips) * math.prod(self.latent_shape[:-1])
        first, second = (
            [math.fsum(column) / count for column in zip(*sums, strict=True)]
            for sums in zip(*(shard.moments for shard in self.shards), strict=True)
        )
        variances = [max(b - a * a, 0.0) for a, b in zip(first, second, strict=True)]
        return tuple(first), tuple(map(math.sqrt, variances))

    @property
    def holds_pairs(self) -> bool:
        """Whether the records are a model's samples, each with the noise it was made from."""
        return any(field.name == "noise" for field in self.fields)

    def require_autoencoder(self, name: str, digest: str) -> None:
        """Raises a UserError unless this autoencoder, with these weights, made the latents."""
        made_by = (self.autoencoder["name"], self.autoencoder["digest"])
        if made_by != (name, digest):
            raise UserError(
                f"the latents were made by autoencoder {made_by[0]} (digest {made_by[1]}), not by"
                f" {name} (digest {digest}); encode the images again with that one"
            )

    @classmethod
    def load(cls, directory: str | os.PathLike[str]) -> "Manifest":
        """Reads and checks the manifest of a folder.

        Raises:
            UserError: it is missing, unreadable, inconsistent or of an unknown format version.
        """
        path = epath.Path(directory) / FILE_NAME
        try:
            raw = json.loads(path.read_text("utf-8"))
        except (FileNotFoundError, NotADirectoryError):
            raise UserError(
                f"{path}: no such file; make the records with `python -m"
                f" data_pipeline.encode_latents --source=... --output={directory}`, those of a"
                f" policy with `python -m data_pipeline.demonstrate --output={directory}`"
            ) from None
        except failures(ValueError) as error:
            raise unreadable(path, error) from None
        version = raw.get("format_version") if isinstance(raw, dict) else None
        if version != FORMAT_VERSION:
            raise UserError(
                f"{path}: format version {version!r} is unknown; this release reads version"
                f" {FORMAT_VERSION}"
            )
        try:
            manifest = cls(
                fields=tuple(Field(**(f | {"shape": tuple(f["shape"])})) for f in raw["fields"]),
                shards=tuple(Shard.of(shard) for shard in raw["shards"]),
                autoencoder={key: raw["autoencoder"][key] for key in _AUTOENCODER_KEYS},
                preprocessing=dict(raw["preprocessing"]),
                class_names=tuple(raw["class_names"]),
                num_records=int(raw["num_records"]),
            )
            manifest._check()
        except (AttributeError, KeyError, OverflowError, TypeError, ValueError) as error:
            raise UserError(
                f"{path}: not a valid manifest: {type(error).__name__}: {error}"
            ) from None
        return manifest

    def save(self, directory: str | os.PathLike[str]) -> None:
        """Writes the manifest into a folder, whole or not at all.

        Raises:
            UserError: it cannot be written.
        """
        write_json(epath.Path(directory) / FILE_NAME, dataclasses.asdict(self))

    def _check(self) -> None:
        """Raises a ValueError where the parts do not agree, or are of another type."""
        if not self.latent_shape:
            raise ValueError("its latents have no axes")
        for shard in self.shards:
            counts = (shard.num_records, shard.num_bytes)
            if not all(type(count) is int and count >= 0 for count in counts):
                raise ValueError(f"a shard's counts are {counts}")
            if not _is_name(shard.file):
                raise ValueError(f"a shard's file is {shard.file!r}, it needs a name in the folder")
            if shard.moments and (
                [len(sums) for sums in shard.moments] != [*self.latent_shape[-1:]] * 2
                or not all(type(value) in (int, float) for sums in shard.moments for value in sums)
            ):
                raise ValueError("a shard's moments are not two numbers a channel")
        if not all(isinstance(name, str) for name in self.class_names):
            raise ValueError("a class name is not a text")
        sizes = [size for field in self.fields for size in field.shape]
        if not all(type(size) is int and 0 < size < 2**31 for size in sizes):
            raise ValueError("a field's shape holds something other than sizes")
        dtype = self.record_dtype
        conditions = {"label", "observation"} & set(dtype.names or ())
        if dtype.hasobject or not dtype.itemsize or "mean" not in (dtype.names or ()):
            conditions = set()
        if len(conditions) != 1:
            raise ValueError(
                f"a record needs the fields mean and label, or mean and observation, these are"
                f" {dtype}"
            )
        if dtype["mean"].shape != self.latent_shape:
            raise ValueError(f"the field mean is not of latent_shape {list(self.latent_shape)}")
        if self.holds_pairs and dtype["noise"].shape != self.latent_shape:
            raise ValueError(f"the field noise is not of latent_shape {list(self.latent_shape)}")
        total = sum(shard.num_records for shard in self.shards)
        if total != self.num_records or total < 1:
            raise ValueError(f"the shards hold {total} records, num_records is {self.num_records}")
        if not math.isfinite(self.autoencoder["scale"]):
            raise ValueError(f"the autoencoder's scale is {self.autoencoder['scale']}")


def row_shapes(fields: Iterable[Field]) -> dict[str, tuple[np.dtype, tuple[int, ...]]]:
    """Fields as a batch has them, by name: dtype, and shape of one row."""
    return {field.name: (np.dtype(field.dtype), field.shape) for field in fields}


def pair_fields(latent_shape: tuple[int, ...]) -> tuple[Field, ...]:
    """The fields of records of pairs.

    Noise in float16 is as good as in float32: its steps are 2^-11 of a value, below what networks
    round their input to in bfloat16, 2^-8, and no normal draw comes near the largest, 65504. What
    counts is that a pair belongs together, so a teacher must start from the noise as it is stored.
    """
    return (
        Field("noise", "float16", latent_shape),
        Field("mean", "float16", latent_shape),
        Field("label", "int32", ()),
    )


def demonstration_fields(chunk_shape: tuple[int, ...], observation_size: int) -> tuple[Field, ...]:
    """The fields of records of demonstrations."""
    return (
        Field("mean", "float32", chunk_shape),
        Field("observation", "float32", (observation_size,)),
    )


def _is_name(file: object) -> bool:
    """Whether it can be a file's within the folder, and none elsewhere."""
    plain = isinstance(file, str) and PurePath(file).name == file and "\0" not in file
    return plain and file not in ("", "..")
