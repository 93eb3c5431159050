"""The same few labelled pictures in each form that a source reads."""

import io
import json
from pathlib import Path
import tarfile

from array_record.python.array_record_module import ArrayRecordWriter
import numpy as np
from PIL import Image
import pyarrow as pa
from pyarrow import parquet

from data_pipeline.sources.tf_example import _example_class

CLASSES = ("ant", "bee", "cat")
Labelled = list[tuple[bytes, int]]


def pictures(count: int = 12, side: int = 8, seed: int = 0) -> Labelled:
    """PNG files and their labels, in the order of the labels."""
    rng = np.random.default_rng(seed)
    labels = sorted(index % len(CLASSES) for index in range(count))
    return [(png(rng.integers(0, 256, (side, side, 3), np.uint8)), label) for label in labels]


def png(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def write_folders(path: Path, images: Labelled) -> str:
    for index, (data, label) in enumerate(images):
        folder = path / CLASSES[label]
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{index:03d}.png").write_bytes(data)
    return f"imagefolder:{path}"


def write_flat(path: Path, images: Labelled) -> str:
    path.mkdir()
    lines = []
    for index, (data, label) in enumerate(images):
        (path / f"{index:03d}.png").write_bytes(data)
        lines.append(f"{index:03d}.png {CLASSES[label]}\n")
    (path / "labels.txt").write_text("".join(lines))
    return f"imagefolder:{path}"


def write_tars(path: Path, images: Labelled, shards: int = 2) -> str:
    path.mkdir()
    share = -(-len(images) // shards)
    for shard in range(shards):
        with tarfile.open(path / f"train-{shard:04d}.tar", "w") as archive:
            for index in range(shard * share, min((shard + 1) * share, len(images))):
                data, label = images[index]
                label_file = (
                    ("cls", str(label).encode())
                    if index % 2
                    else ("json", json.dumps({"label": label}).encode())
                )
                for extension, content in (("png", data), label_file):
                    member = tarfile.TarInfo(f"{index:03d}.{extension}")
                    member.size = len(content)
                    archive.addfile(member, io.BytesIO(content))
    return f"webdataset:{path}/train-{{0000..{shards - 1:04d}}}.tar"


def write_parquet(path: Path, images: Labelled, files: int = 2) -> str:
    path.mkdir()
    share = -(-len(images) // files)
    names = {"info": {"features": {"label": {"names": list(CLASSES), "_type": "ClassLabel"}}}}
    for number in range(files):
        part = images[number * share : (number + 1) * share]
        table = pa.table(
            {
                "image": [{"bytes": data, "path": None} for data, _ in part],
                "label": pa.array([label for _, label in part], pa.int64()),
            }
        ).replace_schema_metadata({"huggingface": json.dumps(names)})
        name = f"train-{number:05d}-of-{files:05d}.parquet"
        parquet.write_table(table, path / name, row_group_size=4)
    return f"parquet:{path}"


def write_array_records(path: Path, images: Labelled, files: int = 2) -> str:
    path.mkdir()
    share = -(-len(images) // files)
    for number in range(files):
        name = f"set-train.array_record-{number:05d}-of-{files:05d}"
        writer = ArrayRecordWriter(str(path / name), "group_size:1")
        for data, label in images[number * share : (number + 1) * share]:
            example = _example_class()()
            example.features.feature["image"].byteslist.value.append(data)
            example.features.feature["label"].int64list.value.append(label)
            writer.write(example.SerializeToString())
        writer.close()
    (path / "label.labels.txt").write_text("".join(f"{name}\n" for name in CLASSES))
    return f"arrayrecord:{path}/set-train.array_record*"


WRITERS = {
    "folders": write_folders,
    "flat": write_flat,
    "tars": write_tars,
    "parquet": write_parquet,
    "array_records": write_array_records,
}
