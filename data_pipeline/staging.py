"""Copies records from a bucket or a slow disk to where this host reads them fast.

Random reads of single records from a bucket would starve a chip; all latents of ImageNet fit the
memory of a TPU VM, which is the default place. The copy is made once a machine, checked against the
manifest's checksums, and found again by every later start.

Usage:
    folder = local("gs://BUCKET/latents")                 # in /dev/shm
    folder = local("gs://BUCKET/latents", "/mnt/disk")
    folder = local("data/digits")                         # the folder itself
"""

from collections.abc import Iterator
import concurrent.futures
import contextlib
import hashlib
import os
from pathlib import Path
import shutil
import socket

from etils import epath

from data_pipeline import locks
from data_pipeline.atomic_files import failures, in_bucket
from data_pipeline.errors import UserError
from data_pipeline.manifest import FILE_NAME, Manifest, Shard
from data_pipeline.progress import progress_bar
from data_pipeline.system_errors import unreadable

MEMORY = "/dev/shm/shortcut_tpu"
_THREADS = 8
_CHUNK_BYTES = 1 << 24


def local(path: str | os.PathLike[str], stage: str = "") -> Path:
    """The folder in which this machine reads the records of `path`.

    Args:
        path: a folder of records, on a disk or in a bucket.
        stage: where copies stand; "" for `MEMORY` where `path` is in a bucket, and for no copy
            where it is not.

    Raises:
        UserError: there are no records, a shard is not what the manifest says, or the copy does not
            fit.
    """
    if not in_bucket(path) and not stage:
        return Path(path)
    source = epath.Path(path)
    try:
        manifest = (source / FILE_NAME).read_bytes()
    except FileNotFoundError:
        raise UserError(f"{source / FILE_NAME}: no such file; data.path has no records") from None
    except failures() as error:
        raise unreadable(source / FILE_NAME, error) from None
    target = Path(stage or MEMORY) / hashlib.sha256(manifest).hexdigest()[:16]
    try:
        target.mkdir(parents=True, exist_ok=True)
        with _alone_in(target) as incoming:
            if not (target / FILE_NAME).exists():
                _copy(source, manifest, target, incoming)
    except PermissionError as error:
        raise UserError(f"data.stage: {target}: {error.strerror}") from None
    return target


@contextlib.contextmanager
def _alone_in(folder: Path) -> Iterator[Path]:
    """Keeps the other processes of this machine out until one has made the copy.

    Where there are no locks each copies for itself, and the last one's files stay.

    Yields:
        The folder for what is not whole yet.
    """
    with (folder / ".lock").open("w") as file:
        if locks.take(file.fileno(), wait=True):
            yield folder / "incoming"
            return
        own = folder / f"incoming-{socket.gethostname()}-{os.getpid()}"
        try:
            yield own
        finally:
            shutil.rmtree(own, ignore_errors=True)


def _copy(source: epath.Path, manifest: bytes, target: Path, incoming: Path) -> None:
    incoming.mkdir(exist_ok=True)
    (incoming / FILE_NAME).write_bytes(manifest)
    shards = Manifest.load(incoming).shards
    missing = [shard for shard in shards if not _is_whole(target / shard.file, shard)]
    needed, free = sum(shard.num_bytes for shard in missing), shutil.disk_usage(target).free
    if needed > free:
        raise UserError(
            f"{source}: {needed / 2**30:.1f} GiB do not fit into {target.parent}, where "
            f"{free / 2**30:.1f} are free; name a larger place by data.stage"
        )
    with (
        progress_bar("shards", len(missing)) as advance,
        concurrent.futures.ThreadPoolExecutor(_THREADS) as threads,
    ):
        copies = [threads.submit(_copy_shard, source, shard, target, incoming) for shard in missing]
        try:
            for copy in concurrent.futures.as_completed(copies):
                copy.result()
                advance(1)
        except BaseException:
            threads.shutdown(cancel_futures=True)
            raise
    # Last, for it says that all is there.
    os.replace(incoming / FILE_NAME, target / FILE_NAME)


def _copy_shard(source: epath.Path, shard: Shard, target: Path, incoming: Path) -> None:
    temporary, digest = incoming / shard.file, hashlib.sha256()
    try:
        with (source / shard.file).open("rb") as read, temporary.open("wb") as write:
            while chunk := read.read(_CHUNK_BYTES):
                digest.update(chunk)
                write.write(chunk)
    except FileNotFoundError:
        raise UserError(f"{source / shard.file}: missing shard; encode the latents again") from None
    except failures() as error:
        raise unreadable(source / shard.file, error) from None
    if digest.hexdigest() != shard.sha256:
        temporary.unlink()
        raise UserError(f"{source / shard.file}: damaged shard: its checksum is not the manifest's")
    os.replace(temporary, target / shard.file)


def _is_whole(path: Path, shard: Shard) -> bool:
    # Only a shard whose checksum was right has this name.
    return path.exists() and path.stat().st_size == shard.num_bytes
