"""Computes the statistics of real images that distances are measured against.

  python -m shortcut_tpu.reference_stats --source=imagefolder:ILSVRC/train --image_size=256 \\
      --protocol=adm --features=inception:WEIGHTS --output=imagenet256_adm.npz
  python -m shortcut_tpu.reference_stats --source=VIRTUAL_imagenet256_labeled.npz --protocol=adm \\
      --features=inception:WEIGHTS --output=imagenet256.npz

The source is KIND:PATH as for encode_latents, a folder of images, or an npz with images `arr_0`. If
the npz already has statistics, such as ADM's or the official code's, they are kept, and its images
only give the vectors for precision and recall. On a pod every host runs this same command.
"""

from collections.abc import Callable, Iterator
import dataclasses
from pathlib import Path

from absl import flags
import jax
from jax.sharding import Mesh
import numpy as np

from data_pipeline.decoding import default_workers, open_reader
from data_pipeline.errors import UserError
from data_pipeline.images import RESIZES, Preprocessing
from data_pipeline.progress import progress_bar
from data_pipeline.sources import Columns, EncodedSource, Source, open_source
from shortcut_tpu.cli import command
from shortcut_tpu.cli.console import say
from shortcut_tpu.evaluation.evaluator import open_reference
from shortcut_tpu.evaluation.features import Features, load_features
from shortcut_tpu.evaluation.images import (
    ImageProgram,
    as_reference,
    every,
    one_mesh,
    sample_sums,
)
from shortcut_tpu.evaluation.protocols import PROTOCOLS, get_protocol
from shortcut_tpu.evaluation.reference import Reference, holds_statistics, save_reference
from shortcut_tpu.evaluation.sample_files import SampleReader
from shortcut_tpu.evaluation.sums import Sums
from shortcut_tpu.pod import distributed

_BATCH = 256
# A file of statistics alone does not say; no distance but FD-pixel's depends on it.
_ANY_SHAPE = (256, 256, 3)


def define_flags() -> None:
    flags.DEFINE_string("source", None, "KIND:PATH, a folder of images, or an npz.")
    flags.DEFINE_string("output", None, "npz file to write.")
    flags.DEFINE_string("protocol", "adm", f"One of {', '.join(PROTOCOLS)}.")
    flags.DEFINE_string("features", "", "The weights of its network, inception:FILE.")
    flags.DEFINE_integer("image_size", 256, "Side that image files are cut and resized to.", 1)
    flags.DEFINE_enum("preprocessing", "adm", list(RESIZES), "How they are.")
    flags.DEFINE_string("image_column", "", "Name of the images' column, feature or ending.")
    flags.DEFINE_integer("max_rejected", 0, "Images that may be unreadable; one more stops it.", 0)
    flags.DEFINE_integer("workers", None, "Decoding processes; one a processor if unset.", 0)


def main() -> None:
    values = flags.FLAGS
    source = command.required("source", "the images, such as imagefolder:DIR or FILE.npz")
    output = command.required("output", "the npz file for the statistics")
    protocol = get_protocol(values.protocol)
    distributed.initialize()
    distributed.first_does(command.require_places)
    features = load_features(protocol, values.features)
    if Path(source).suffix == ".npz" and ":" not in source:
        reference = from_npz(source, features, one_mesh())
    else:
        if ":" not in source and source != "digits":
            source = f"imagefolder:{source}"
        # Labels count for nothing here; of folders they are the order of the images.
        unlabeled = source.partition(":")[0] not in ("imagefolder", "digits", "npz")
        columns = Columns(values.image_column)
        opened = open_source(source, unlabeled=unlabeled, columns=columns)
        reference = from_source(
            opened,
            Preprocessing(values.preprocessing, values.image_size),
            features,
            one_mesh(),
            workers=default_workers() if values.workers is None else values.workers,
            max_rejected=values.max_rejected,
        )
    if jax.process_index() == 0:
        save_reference(output, reference, features)
    holds = ["mu, sigma"]
    holds += ["mu_s, sigma_s"] if reference.spatial is not None else []
    if reference.vectors is not None:
        holds.append(f"{len(reference.vectors)} vectors for precision and recall")
    say(
        f"{output}: {', '.join(holds)}; protocol {values.protocol}, of"
        f" {reference.images or 'an unknown number of'} images; digest {reference.digest[:16]}"
    )


def from_npz(path: str, features: Features, mesh: Mesh) -> Reference:
    """The statistics of an npz file, or those of its images.

    Raises:
      UserError: it is missing or damaged, or holds neither.
    """
    if holds_statistics(path):
        return open_reference(path, features, _ANY_SHAPE, mesh)
    with SampleReader(path) as samples:
        count = len(samples)
    if count < 2:
        raise UserError(f"{path}: a covariance needs at least 2 images")
    with progress_bar("images", count if jax.process_index() == 0 else 0) as advance:
        sums = sample_sums(
            path, features, mesh, batch_size=_BATCH, all_vectors=False, progress=advance
        )
    return _reference(sums, features, Path(path).name)


def from_source(
    source: Source | EncodedSource,
    preprocessing: Preprocessing,
    features: Features,
    mesh: Mesh,
    *,
    workers: int,
    max_rejected: int,
) -> Reference:
    """The statistics of all images of a source, each once and not mirrored.

    Raises:
      UserError: more than `max_rejected` images cannot be read.
    """
    count = len(source)
    rejected: list[str] = []
    if isinstance(source, Source):
        shape = source.image_shape
    else:
        shape = (preprocessing.size, preprocessing.size, 3)

    def batches(advance: Callable[[int], None]) -> Iterator[np.ndarray]:
        ranges = [range(n, min(n + _BATCH, count)) for n in range(0, count, _BATCH)]
        # Bytes and floats are programs of their own, so a source gives one or the other.
        with open_reader(source, preprocessing, workers) as reader:
            for batch in reader.batches(ranges):
                rejected.extend(f"{image.name}: {image.reason}" for image in batch.rejected)
                if len(rejected) > max_rejected:
                    raise UserError(
                        f"{rejected[-1]}; --max_rejected={max_rejected} images may be unreadable"
                    )
                left_out = {image.index - batch.first for image in batch.rejected}
                kept = [row for row in range(len(batch)) if row not in left_out]
                advance(len(left_out))
                yield batch.images[kept]

    sums = Sums.empty(features, shape, count, every=every(count))
    with progress_bar("images", count if jax.process_index() == 0 else 0) as advance:
        sums = ImageProgram(features, mesh).gather(batches(advance), sums, advance)
    if sums.count < 2:
        raise UserError(f"{source.name}: a covariance needs at least 2 images, not {sums.count}")
    for line in rejected:
        say(f"left out: {line}")
    return _reference(sums, features, source.name)


def _reference(sums: Sums, features: Features, name: str) -> Reference:
    reference = as_reference(sums, name)
    if "precision" in features.protocol.distances:
        return reference
    return dataclasses.replace(reference, vectors=None)


if __name__ == "__main__":
    command.run(main, define_flags)
