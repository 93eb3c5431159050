"""Encodes images into a folder of latent records; docs/latents.md explains all of it.

Started again after a kill it continues, and writes the same bytes as an unbroken run. Several hosts
share the work if each runs this command on the same --output, on a disk or in a bucket.

    $ python -m data_pipeline.encode_latents --source=digits --autoencoder=identity --output=DIR
    $ python -m data_pipeline.encode_latents --source=imagefolder:photos --image_size=28 \\
        --output=data/photos --write_config=photos.py
    $ python -m data_pipeline.encode_latents --verify --output=DIR

Sources:
    digits                 scikit-learn's 8x8 digits
    npz:FILE               arrays `images` [N, H, W, C] and `labels` [N], used as they are
    imagefolder:DIR        a folder for each class; or one folder, with labels.txt, --labels or none
    webdataset:FILES       tar shards of images with .cls or .json
    parquet:FILES          Hugging Face's columns `image` and `label`
    arrayrecord:FILES      TFDS's examples with `image` and `label`
FILES is a folder, or names with commas between them; quote 'webdataset:train-{0000..1023}.tar'.
"""

from collections.abc import Sequence
import dataclasses
import os
from pathlib import Path
import shlex
import tempfile
from typing import TYPE_CHECKING

from absl import app, flags
from etils import epath
import numpy as np

from data_pipeline import staging
from data_pipeline.atomic_files import in_bucket, require_place
from data_pipeline.command_line import flag_group, parse_flags, quiet_libraries, required
from data_pipeline.decoding import Rejected, all_grey, default_workers, open_reader
from data_pipeline.errors import UserError, exit_on_user_error
from data_pipeline.hosts import Hosts, find_hosts
from data_pipeline.images import RESIZES, Preprocessing
from data_pipeline.manifest import FILE_NAME as MANIFEST
from data_pipeline.progress import progress_bar
from data_pipeline.records import Field, Manifest
from data_pipeline.rejects import check_rejected
from data_pipeline.resumable import ResumableFolder
from data_pipeline.sources import Columns, EncodedSource, Source, open_source
from data_pipeline.verification import verify_records

if TYPE_CHECKING:
    from data_pipeline.autoencoders import Autoencoder

# JAX is imported where it is needed: each decoding process imports this file.

# A shard is whole in memory before it is written, half a GiB of the largest ImageNet latents. More
# of them let more hosts help and lose less to a kill; batches drawn from more files read more
# slowly.
SHARD_RECORDS = 16384

_DEFAULT_IMAGE_SIZE = 256
_SHOWN_CLASSES = 10
_STALL_SECONDS = 1800.0


def encode(
    source: Source | EncodedSource,
    autoencoder: "Autoencoder",
    output: str | os.PathLike[str],
    *,
    shard_records: int = SHARD_RECORDS,
    flips: bool = False,
    preprocessing: Preprocessing | None = None,
    workers: int = 0,
    max_rejected: int = 0,
    hosts: Hosts | None = None,
    stall_seconds: float = _STALL_SECONDS,
) -> tuple[Manifest, int]:
    """Encodes all images of a source, or this host's share; keeps the shards that are there.

    Args:
        source: the images.
        autoencoder: what encodes them.
        output: the folder, on a disk or in a bucket; made if need be.
        shard_records: images a shard; the last one takes what is left. A finished folder keeps
            the size it has.
        flips: whether the latents of the mirrored images are kept as well.
        preprocessing: what becomes of image files; ADM's to 256x256 by default.
        workers: processes that decode image files; 0 for none but this one.
        max_rejected: how many images may be left out for being unreadable.
        hosts: this host among those that do the same; this one alone by default.
        stall_seconds: how long to wait for other hosts that give no sign of life.

    Returns:
        The manifest, which is written last, and how many images this host had to encode.

    Raises:
        UserError: the folder holds records of something else or cannot be written, too many
            images cannot be used, or another host is gone.
    """
    from data_pipeline.encoder import Encoder

    output = epath.Path(output)
    preprocessing = preprocessing or Preprocessing("adm", _DEFAULT_IMAGE_SIZE)
    hosts = hosts or Hosts()
    plan = _plan(source, autoencoder, flips, preprocessing)
    encoder = Encoder(autoencoder, tuple(plan.autoencoder["image_shape"]), flips)
    with ResumableFolder(output, plan, shard_records, hosts) as folder:
        missing = folder.missing()
        mine = sum(len(folder.images(number)) for number in missing)
        # Batches never straddle shards: a record's bytes must not depend on where a run was broken.
        ranges = [
            batch
            for number in missing
            for batch in _split(folder.images(number), encoder.batch_size)
        ]
        records = np.empty(0, plan.record_dtype)
        rejected: list[Rejected] = []
        with (
            progress_bar("images", mine) as advance,
            open_reader(source, preprocessing, workers if mine else 0) as reader,
        ):
            for batch, latents in encoder.encode(reader.batches(ranges)):
                number = folder.number_of(batch.first)
                images = folder.images(number)
                if batch.first == images.start:
                    records, rejected = np.empty(len(images), plan.record_dtype), []
                if batch.rejected:
                    rejected += batch.rejected
                    _refuse_too_many(folder, rejected, output, max_rejected)
                rows = slice(batch.first - images.start, batch.first - images.start + len(batch))
                for name, values in latents.items():
                    records[name][rows] = values
                records["label"][rows] = batch.labels
                advance(len(batch))
                if rows.stop == len(images):
                    kept = np.ones(len(images), bool)
                    kept[[image.index - images.start for image in rejected]] = False
                    folder.write(number, records[kept], rejected)
                else:
                    folder.report(number, rows.stop)
        manifest = folder.finish(max_rejected, stall_seconds)
    return manifest, mine


def _plan(
    source: Source | EncodedSource,
    autoencoder: "Autoencoder",
    flips: bool,
    preprocessing: Preprocessing,
) -> Manifest:
    """The manifest to be, without its shards; num_records counts the images."""
    how: dict[str, object] = {
        "source": source.name,
        "source_digest": source.digest,
        "flips": flips,
    }
    if isinstance(source, Source):
        image_shape = source.image_shape
    else:
        image_shape = (preprocessing.size, preprocessing.size, preprocessing.channels)
        how["resize"] = preprocessing.name
    latent_shape = autoencoder.latent_shape(image_shape)
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
            "image_shape": list(image_shape),
        },
        preprocessing=how,
        class_names=source.class_names,
        num_records=len(source),
    )


def _split(images: range, size: int) -> list[range]:
    return [images[start : start + size] for start in range(0, len(images), size)]


def _refuse_too_many(
    folder: ResumableFolder, rejected: Sequence[Rejected], output: epath.Path, max_rejected: int
) -> None:
    """Lists the rejected images and raises a UserError where they are too many."""
    found = {image.index: image for image in (*folder.rejected(), *rejected)}
    known = [found[index] for index in sorted(found)]
    if len(known) > max_rejected:
        folder.list_rejected(known)
    check_rejected(output, known, max_rejected)


def _define_flags() -> None:
    # Not at import: other commands have flags of the same names.
    flags.DEFINE_string("source", None, "The images, KIND or KIND:PATH; see above.")
    flags.DEFINE_string("autoencoder", "identity", "What encodes them, NAME[:WEIGHTS].")
    flags.DEFINE_string("output", None, "Folder for the records, gs:// or on a shared disk.")
    flags.DEFINE_string("write_config", None, "File.py for a config that suits the records.")
    flags.DEFINE_bool("verify", False, "Whether to read every record back; needs no --source.")
    with flag_group("Pictures"):
        flags.DEFINE_integer(
            "image_size", None, f"Side of the square pictures; {_DEFAULT_IMAGE_SIZE} by default.", 1
        )
        flags.DEFINE_enum("preprocessing", "adm", sorted(RESIZES), "How images are made square.")
        flags.DEFINE_bool("flips", False, "Whether to keep the latents of the mirrored images too.")
        flags.DEFINE_integer("max_rejected", 0, "Unreadable images to do without; more stop it.", 0)
    with flag_group("Labels"):
        flags.DEFINE_string("labels", None, "File of names and classes for a flat image folder.")
        flags.DEFINE_bool("unlabeled", False, "Whether all images are of one class.")
        flags.DEFINE_string("image_column", "", "Name of the images' column, feature or ending.")
        flags.DEFINE_string(
            "label_column", "", "Name of the labels' column, feature, ending or key."
        )
    with flag_group("Machines"):
        flags.DEFINE_integer("shard_records", SHARD_RECORDS, "Images a shard.", 1)
        flags.DEFINE_integer("workers", None, "Decoding processes; one a processor by default.", 0)
        flags.DEFINE_integer("host", None, "Number of this host, where the launcher does not tell.")
        flags.DEFINE_integer("hosts", None, "How many hosts run this command on one --output.")
        flags.DEFINE_float(
            "stall_seconds", _STALL_SECONDS, "Patience with hosts that stand still.", 0
        )


def main(argv: Sequence[str]) -> None:
    """Runs the command; the flags are those of `_define_flags`."""
    if argv[1:]:
        raise UserError(f"unknown argument {argv[1]!r}; see --help")
    quiet_libraries()
    values = flags.FLAGS
    output = required("output", "the folder for the records")
    if values.verify and not values.source:
        _verify(output)
        return
    source = required("source", "the images, such as digits or imagefolder:DIR")
    # A finished folder may lie where nothing can be written.
    if not (epath.Path(output) / MANIFEST).exists():
        require_place("output", output, "folder")
    if values.write_config:
        if not values.write_config.endswith(".py"):
            raise UserError(f"--write_config={values.write_config}: must end in .py")
        require_place("write_config", values.write_config)
    from data_pipeline.autoencoders import load_autoencoder

    hosts = find_hosts(values.host, values.hosts)
    columns = Columns(values.image_column, values.label_column)
    images = open_source(source, values.labels, unlabeled=values.unlabeled, columns=columns)
    if isinstance(images, Source) and values.image_size not in (None, images.image_shape[0]):
        raise UserError(
            f"--image_size={values.image_size}: the images of {source} are arrays of"
            f" {images.image_shape[0]}x{images.image_shape[1]} pixels, which are used as they are"
        )
    workers = default_workers() if values.workers is None else values.workers
    preprocessing = Preprocessing(values.preprocessing, values.image_size or _DEFAULT_IMAGE_SIZE)
    # Autoencoders take pictures in colour; without one, three equal channels are three times the
    # work.
    if (
        values.autoencoder == "identity"
        and not isinstance(images, Source)
        and all_grey(images, preprocessing, workers)
    ):
        preprocessing = dataclasses.replace(preprocessing, channels=1)
    manifest, encoded = encode(
        images,
        load_autoencoder(values.autoencoder),
        output,
        shard_records=values.shard_records,
        flips=values.flips,
        preprocessing=preprocessing,
        workers=workers,
        max_rejected=values.max_rejected,
        hosts=hosts,
        stall_seconds=values.stall_seconds,
    )
    held = f"{manifest.num_records} records in {len(manifest.shards)} shard(s)"
    if encoded:
        print(f"{values.output}: encoded {encoded} of {held}")
    else:
        print(f"{values.output}: already complete, {held}")
    if values.verify and hosts.index == 0:
        _verify(output)
    print(f"{len(manifest.class_names)} class(es) in this order: {_order(manifest.class_names)}")
    if values.write_config and hosts.index == 0:
        _write_config(Path(values.write_config), output, values.autoencoder, manifest)
    else:
        print(f"to train on them: {_training_command(output, values.autoencoder, manifest)}")


def _write_config(path: Path, output: str, autoencoder: str, manifest: Manifest) -> None:
    """Writes a config that suits the records and this machine, and says how to train by it."""
    from data_pipeline import starting_config

    plan = starting_config.plan_for(manifest)
    starting_config.write(path, plan, manifest, output, autoencoder)
    print(
        f"{path}: {plan.num_steps} steps of {plan.batch_size} pictures, about"
        f" {plan.seconds / 60:.0f} minutes on {plan.machine} (estimated)"
    )
    config, workdir = (shlex.quote(text) for text in (str(path), f"runs/{path.stem}"))
    print(f"to train on them: python -m shortcut_tpu.train --config={config} --workdir={workdir}")


def _order(names: Sequence[str]) -> str:
    """Which class each number is, of many the first and the last."""
    lines = [f"{number} = {name.split(',')[0]:.40}" for number, name in enumerate(names)]
    if len(lines) > 2 * _SHOWN_CLASSES:
        lines = [*lines[:_SHOWN_CLASSES], "...", *lines[-2:]]
    return ", ".join(lines)


def _training_command(output: str, autoencoder: str, manifest: Manifest) -> str:
    """How these records are named to a config that was written for others."""
    keys = {"path": output, **manifest.data_keys, "autoencoder": autoencoder}
    overrides = (f"--config.data.{k}={shlex.quote(str(v))}" for k, v in keys.items() if v)
    return f"python -m shortcut_tpu.train --config=CONFIG --workdir=RUN {' '.join(overrides)}"


def _verify(output: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        copy = staging.local(output, folder) if in_bucket(output) else output
        manifest = verify_records(output, copy)
    print(
        f"{output}: all {manifest.num_records} records are whole; images rejected:"
        f" {manifest.preprocessing.get('rejected', 0)}"
    )


if __name__ == "__main__":
    _define_flags()
    app.run(exit_on_user_error(main), flags_parser=exit_on_user_error(parse_flags))
