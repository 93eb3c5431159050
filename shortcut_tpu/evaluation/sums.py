"""Sums over the features of a set of images, and the statistics that follow from them.

Usage:
  sums = Sums.empty(features, image_shape, num_samples=50_000)
  sums = sums.add({"pool": ..., "spatial": ...})   # in the order of the images
  scores = distances(sums, reference, protocol)    # {"fid": ..., "sfid": ...}
"""

import dataclasses
import io

import numpy as np

from shortcut_tpu.evaluation.distances import (
    ClassSums,
    GaussianStatistics,
    frechet_distance,
    inception_score,
)
from shortcut_tpu.evaluation.features import LOGITS, POOL, SPATIAL, Features
from shortcut_tpu.evaluation.manifold import precision_recall
from shortcut_tpu.evaluation.protocols import Protocol
from shortcut_tpu.evaluation.reference import Reference


@dataclasses.dataclass(frozen=True)
class Sums:
    """Float64 sums over the first images of a set.

    Attributes:
      gaussians: by name of the vector.
      classes: of the Inception Score, where there is a classifier.
      vectors: [n, F] float32 vectors themselves, in parts, for precision and recall.
      every: of how many images one's vector is kept; 0 for none.
    """

    gaussians: dict[str, GaussianStatistics]
    classes: ClassSums | None
    vectors: tuple[np.ndarray, ...] = ()
    every: int = 0

    @classmethod
    def empty(
        cls,
        features: Features,
        image_shape: tuple[int, ...],
        num_samples: int,
        *,
        every: int = 0,
    ) -> "Sums":
        sizes = features.sizes(image_shape)
        classes = sizes.pop(LOGITS, None)
        return cls(
            {name: GaussianStatistics.empty(size) for name, size in sizes.items()},
            ClassSums.empty(num_samples, classes) if classes else None,
            every=every,
        )

    @property
    def count(self) -> int:
        """Images so far."""
        return self.gaussians[POOL].count

    def add(self, outputs: dict[str, np.ndarray]) -> "Sums":
        """With what `Features.compute` gave for the next images added."""
        classes, vectors = self.classes, self.vectors
        if classes is not None:
            classes = classes.add(outputs[LOGITS], start=self.count)
        if self.every:
            kept = outputs[POOL][-self.count % self.every :: self.every]
            vectors = (*vectors, np.array(kept, np.float32))
        gaussians = {name: sums.add(outputs[name]) for name, sums in self.gaussians.items()}
        return Sums(gaussians, classes, vectors, self.every)

    def kept_vectors(self) -> np.ndarray | None:
        """[n, F], or None where none are kept."""
        empty = np.zeros((0, len(self.gaussians[POOL].total)), np.float32)
        return np.concatenate([empty, *self.vectors]) if self.every else None

    def to_bytes(self) -> bytes:
        """All of it as an npz archive."""
        arrays: dict[str, np.ndarray] = {}
        for name, sums in self.gaussians.items():
            for field in dataclasses.fields(sums):
                arrays[f"{name}/{field.name}"] = np.asarray(getattr(sums, field.name))
        if self.classes is not None:
            for field in dataclasses.fields(self.classes):
                arrays[f"classes/{field.name}"] = np.asarray(getattr(self.classes, field.name))
        if (vectors := self.kept_vectors()) is not None:
            arrays["vectors"], arrays["every"] = vectors, np.array(self.every)
        content = io.BytesIO()
        np.savez(content, allow_pickle=False, **arrays)
        return content.getvalue()

    @classmethod
    def from_bytes(cls, content: bytes) -> "Sums":
        """What `to_bytes` made an archive of; any exception if it is damaged."""
        with np.load(io.BytesIO(content), allow_pickle=False) as archive:
            arrays = dict(archive)
        names = [name.split("/")[0] for name in arrays if name.endswith("/outer")]
        gaussians = {
            name: GaussianStatistics(
                int(arrays[f"{name}/count"]),
                *(arrays[f"{name}/{part}"] for part in ("shift", "total", "outer")),
            )
            for name in names
        }
        classes = None
        if "classes/split" in arrays:
            parts = [arrays[f"classes/{field.name}"] for field in dataclasses.fields(ClassSums)]
            classes = ClassSums(int(parts[0]), *parts[1:])
        if "every" in arrays:
            return cls(gaussians, classes, (arrays["vectors"],), int(arrays["every"]))
        return cls(gaussians, classes)


def distances(sums: Sums, reference: Reference, protocol: Protocol) -> dict[str, float]:
    """The protocol's distances that the reference allows; all NaN if an image had no finite ones.

    Without spatial moments there is no sFID, without vectors no precision and recall.
    """
    found = {protocol.metric: lambda: frechet_distance(sums.gaussians[POOL], reference.pool)}
    spatial = reference.spatial
    if spatial is not None and SPATIAL in sums.gaussians:
        found["sfid"] = lambda: frechet_distance(sums.gaussians[SPATIAL], spatial)
    classes = sums.classes
    if classes is not None:
        found["inception_score"] = lambda: inception_score(classes)
    if not np.isfinite(sums.gaussians[POOL].outer).all():
        return dict.fromkeys(found, float("nan"))
    scores = {name: compute() for name, compute in found.items()}
    vectors = sums.kept_vectors()
    if reference.vectors is not None and vectors is not None:
        scores["precision"], scores["recall"] = precision_recall(reference.vectors, vectors)
    return {name: scores[name] for name in protocol.distances if name in scores}
