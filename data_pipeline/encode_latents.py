"""Encodes a source of images into a folder of latent records.

Stopped at any moment and started again, it keeps the finished shards, and the folder ends up with
the same bytes as after an unbroken run. A damaged shard of a finished folder is encoded anew.

Usage:
    $ python -m data_pipeline.encode_latents --source=digits --autoencoder=identity --output=DIR
    $ python -m data_pipeline.encode_latents --source=npz:images.npz --output=DIR --flips
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
import json
from pathlib import Path
import shutil
from typing import Any

from absl import app, flags
import jax
import numpy as np

from data_pipeline import manifest as manifest_lib
from data_pipeline.autoencoders import Autoencoder, load_autoencoder
from data_pipeline.command_line import parse_flags, required
from data_pipeline.errors import UserError, exit_on_user_error
from data_pipeline.progress import progress_bar
from data_pipeline.records import Field, Manifest, Shard, file_sha256, write_shard
from data_pipeline.sources import Source, open_source

_NOTES = "unfinished"  # Holds the plan and a note on every finished shard until all are there.
_MAX_BATCH = 256
# An SD VAE takes about 1.5 KiB a pixel to encode: 32 images of 256x256 are 3 GiB.
_BATCH_PIXELS = 2**21

# A shard is whole in memory before it is written, 2 GiB of the largest ImageNet latents; smaller
# ones make more files, and batches drawn from more files read more slowly.
SHARD_RECORDS = 65536

EncodeFn = Callable[[np.ndarray], tuple[Any, Any]]


def encode(
    source: Source,
    autoencoder: Autoencoder,
    output: Path,
    *,
    shard_records: int = SHARD_RECORDS,
    flips: bool = False,
) -> tuple[Manifest, int]:
    """Encodes all images of a source; keeps the shards that are there already.

    Args:
        source: the images.
        autoencoder: what encodes them.
        output: the folder; made if need be.
        shard_records: records a shard; the last one takes what is left. A finished folder keeps
            the size it has.
        flips: whether the latents of the mirrored images are kept as well.

    Returns:
        The manifest, which is written last, and how many records had to be encoded.

    Raises:
        UserError: the folder holds records of something else, or cannot be written.
    """
    if shard_records < 1:
        raise UserError(f"shard_records must be at least 1, not {shard_records}")
    plan = _plan(source, autoencoder, flips)
    done, shard_records = _open_output(output, plan, shard_records)
    num_shards = -(-len(source) // shard_records)
    paths = [
        output / f"shard-{number:05d}-of-{num_shards:05d}.array_record"
        for number in range(num_shards)
    ]
    shards = {path: done[path.name] for path in paths if _is_intact(path, done.get(path.name))}
    ranges = {
        path: (number * shard_records, min((number + 1) * shard_records, len(source)))
        for number, path in enumerate(paths)
        if path not in shards
    }
    missing = sum(stop - start for start, stop in ranges.values())
    # One batch size for the jitted function, and batches that never straddle shards: a record's
    # bytes must not depend on where a run was broken.
    encode_fn = jax.jit(autoencoder.encode)
    batch = _batch_size(source.image_shape)
    with progress_bar("images", missing) as advance:
        for path, (start, stop) in ranges.items():
            records = np.empty(stop - start, plan.record_dtype)
            for first in range(start, stop, batch):
                end = min(first + batch, stop)
                _fill(records[first - start : end - start], source, first, encode_fn, batch)
                advance(end - first)
            shards[path] = write_shard(path, records)
            if (output / _NOTES).is_dir():
                note = output / _NOTES / f"{path.name}.json"
                manifest_lib.write_json(note, asdict(shards[path]))
    manifest = replace(plan, shards=tuple(shards[path] for path in paths))
    if missing or (output / _NOTES).is_dir():
        manifest.save(output)
        shutil.rmtree(output / _NOTES, ignore_errors=True)
    return manifest, missing


def _plan(source: Source, autoencoder: Autoencoder, flips: bool) -> Manifest:
    """The manifest to be, without its shards."""
    latent_shape = autoencoder.latent_shape(source.image_shape)
    names = ["mean"] if autoencoder.deterministic else ["mean", "std"]
    names += [f"{name}_flipped" for name in names if flips]
    return Manifest(
        fields=(
            *(Field(name, "float16", latent_shape) for name in names),
            Field("label", "int32", ()),
        ),
        shards=(),
        autoencoder={
            "name": autoencoder.name,
            "digest": autoencoder.digest,
            "scale": autoencoder.scale,
            "deterministic": autoencoder.deterministic,
            "latent_shape": list(latent_shape),
            "image_shape": list(source.image_shape),
        },
        preprocessing={"source": source.name, "source_digest": source.digest, "flips": flips},
        class_names=source.class_names,
        num_records=len(source),
    )


def _open_output(output: Path, plan: Manifest, shard_records: int) -> tuple[dict[str, Shard], int]:
    """Finds what a folder holds already, or makes it.

    Returns:
        The shards said to be finished, by file name, and the records a shard.
    """
    if (output / manifest_lib.FILE_NAME).exists():
        there = Manifest.load(output)
        _require_same(output, asdict(replace(there, shards=())), asdict(plan))
        return {shard.file: shard for shard in there.shards}, there.shards[0].num_records
    notes = output / _NOTES
    content = asdict(plan) | {"shard_records": shard_records}
    try:
        notes.mkdir(parents=True, exist_ok=True)
        if not (notes / "plan.json").exists():
            manifest_lib.write_json(notes / "plan.json", content)
        _require_same(output, json.loads((notes / "plan.json").read_text("utf-8")), content)
        found = [
            Shard(**json.loads(note.read_text("utf-8")))
            for note in notes.glob("*.array_record.json")
        ]
    except (OSError, TypeError, ValueError) as error:
        raise UserError(f"{output}: cannot be used: {error}") from None
    return {shard.file: shard for shard in found}, shard_records


def _require_same(output: Path, there: dict[str, Any], here: dict[str, Any]) -> None:
    """Raises a UserError that names the differences, if any, between two plans."""
    flat_there, flat_here = _flatten(there), _flatten(here)
    differences = [
        f"{key} is {flat_there.get(key, ''):.60} there and {value:.60} now"
        for key, value in flat_here.items()
        if flat_there.get(key) != value
    ]
    if differences:
        raise UserError(
            f"{output}: holds records of something else ({'; '.join(differences)}); choose another"
            " --output or delete that folder"
        )


def _flatten(plan: dict[str, Any]) -> dict[str, str]:
    """A plan as one level of texts, so that tuples and JSON's lists compare equal."""
    flat: dict[str, str] = {}
    for key, value in plan.items():
        inner = value.items() if isinstance(value, dict) else [(key, value)]
        flat.update((name, json.dumps(item)) for name, item in inner)
    return flat


def _is_intact(path: Path, shard: Shard | None) -> bool:
    """Whether a shard was finished, and its file is still the one that was written."""
    return shard is not None and path.is_file() and file_sha256(path) == shard.sha256


def _batch_size(image_shape: tuple[int, ...]) -> int:
    """How many images are encoded at once: a function of their size alone, as bytes must be."""
    return max(min(_BATCH_PIXELS // (image_shape[0] * image_shape[1]), _MAX_BATCH), 1)


def _fill(
    records: np.ndarray, source: Source, first: int, encode_fn: EncodeFn, batch_size: int
) -> None:
    """Encodes the images from number `first` on into records [n], n at most `batch_size`."""
    images, labels = source.read(first, first + len(records))
    images = np.pad(images, [(0, batch_size - len(images)), (0, 0), (0, 0), (0, 0)])
    names = records.dtype.names or ()
    for suffix, batch in (("", images), ("_flipped", images[:, :, ::-1])):
        if f"mean{suffix}" not in names:
            continue
        for name, latents in zip(("mean", "std"), encode_fn(batch), strict=True):
            if latents is None:
                continue
            with np.errstate(over="ignore"):  # Shows as infinity, which the next line reports.
                stored = np.asarray(latents)[: len(records)].astype(np.float16)
            if not np.isfinite(stored).all():
                raise UserError(
                    f"the {name} of an image from number {first} to {first + len(records) - 1} is"
                    " not a finite float16; are these the autoencoder's weights?"
                )
            records[name + suffix] = stored
    records["label"] = labels


def _define_flags() -> None:
    # Not at import: other commands have flags of the same names.
    flags.DEFINE_string("source", None, "The images, KIND or KIND:PATH: digits, npz:FILE.")
    flags.DEFINE_string("autoencoder", "identity", "What encodes them, NAME[:WEIGHTS].")
    flags.DEFINE_string("output", None, "The folder for the records.")
    flags.DEFINE_integer("shard_records", SHARD_RECORDS, "Records a shard.", lower_bound=1)
    flags.DEFINE_bool("flips", False, "Whether to keep the latents of the mirrored images too.")


def main(argv: Sequence[str]) -> None:
    """Runs the command; the flags are those of `_define_flags`."""
    if argv[1:]:
        raise UserError(f"unknown argument {argv[1]!r}; see --help")
    values = flags.FLAGS
    source = required("source", "the images, such as digits or npz:FILE")
    output = required("output", "the folder for the records")
    manifest, encoded = encode(
        open_source(source),
        load_autoencoder(values.autoencoder),
        Path(output),
        shard_records=values.shard_records,
        flips=values.flips,
    )
    held = f"{manifest.num_records} records in {len(manifest.shards)} shard(s)"
    if encoded:
        print(f"{values.output}: encoded {encoded} of {held}")
    else:
        print(f"{values.output}: already complete, {held}")


if __name__ == "__main__":
    _define_flags()
    app.run(exit_on_user_error(main), flags_parser=exit_on_user_error(parse_flags))
