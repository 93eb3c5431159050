"""A folder of shards that any number of hosts write, across interruptions.

A shard stands for a range of the source's images, and holds a record of each that was not rejected.
Host h of n makes the shards h, h+n, h+2n, ... Until all are there, `unfinished/` holds what was
planned, a note on every finished shard, and how far each host is. The first host gathers the notes
into `manifest.json` and `rejected.jsonl`. All hosts must see the folder: it is in a bucket, or on a
disk that they share.

Usage, on every host:
    with ResumableFolder("DIR", plan, shard_records=8192, hosts=Hosts(0, 2)) as folder:
        for number in folder.missing():
            folder.write(number, records, rejected)
        manifest = folder.finish(max_rejected=0, stall_seconds=1800)
"""

from collections.abc import Callable, Mapping, Sequence
import contextlib
import dataclasses
import json
import os
from pathlib import Path
import tempfile
import time
from typing import Any

from etils import epath
import numpy as np

from data_pipeline import locks
from data_pipeline import manifest as manifest_lib
from data_pipeline.atomic_files import failures, in_bucket, write_json
from data_pipeline.decoding import Rejected
from data_pipeline.errors import UserError
from data_pipeline.hosts import Hosts
from data_pipeline.plans import differences, without
from data_pipeline.progress import progress_bar
from data_pipeline.records import Manifest, Shard, file_sha256, write_shard
from data_pipeline.rejects import (
    REJECTED_FILE,
    check_rejected,
    read_rejected,
    write_rejected,
)
from data_pipeline.system_errors import raise_if_system, reason, unreadable

_NOTES = "unfinished"
_PLAN = "plan.json"
# In the manifest's preprocessing: the images that a shard stands for, and how many were rejected.
_SHARD_RECORDS = "shard_records"
_REJECTED = "rejected"
# What only the finished manifest knows, or takes from the folder.
_NOT_PLANNED = (_SHARD_RECORDS, _REJECTED, "num_records")
_POLL_SECONDS = 0.2
_REPORT_SECONDS = 1.0
# A bucket bills every look, and takes a file anew at most once a second.
_BUCKET_POLL_SECONDS = 5.0
_BUCKET_REPORT_SECONDS = 5.0


@dataclasses.dataclass(frozen=True)
class _Done:
    """A finished shard, and the images of its range that are not in it."""

    shard: Shard
    rejected: tuple[Rejected, ...] = ()


class ResumableFolder:
    """What a folder will hold, and which of its shards are there already."""

    def __init__(
        self, path: str | os.PathLike[str], plan: Manifest, shard_records: int, hosts: Hosts
    ):
        """Describes the folder; nothing is written.

        Args:
            path: the folder, on a disk or in a bucket.
            plan: the manifest to be, without its shards; its num_records counts the images.
            shard_records: images a shard; the last one takes what is left. A folder that was
                begun with another number is refused, and a finished one keeps its own.
            hosts: this host among all.

        Raises:
            UserError: the number is not positive, or there is a manifest that cannot be read.
        """
        if shard_records < 1:
            raise UserError(f"shard_records must be at least 1, not {shard_records}")
        self._path = epath.Path(path)
        self._notes = self._path / _NOTES
        self._in_bucket = in_bucket(path)
        # Where this host writes a file before it gets its place.
        self._temporaries = Path(self._notes)
        self._plan = plan
        self._shard_records = shard_records
        self._hosts = hosts
        self._done: dict[int, _Done] = {}
        self._reported_at = 0.0
        self._there: Manifest | None = None
        self._stack = contextlib.ExitStack()
        if (self._path / manifest_lib.FILE_NAME).exists():
            self._there = Manifest.load(path)
            first = self._there.shards[0].num_records
            self._shard_records = self._there.preprocessing.get(_SHARD_RECORDS, first)
            if type(self._shard_records) is not int or self._shard_records < 1:
                raise UserError(f"{path}: not a valid manifest: its shard_records is no count")

    @property
    def numbers(self) -> range:
        """The numbers of the shards."""
        return range(-(-self._plan.num_records // self._shard_records))

    def images(self, number: int) -> range:
        """The images that a shard stands for."""
        start = number * self._shard_records
        return range(start, min(start + self._shard_records, self._plan.num_records))

    def number_of(self, image: int) -> int:
        """The shard that an image belongs to."""
        return image // self._shard_records

    def __enter__(self) -> "ResumableFolder":
        """Makes the folder, or checks that what it holds is of this plan.

        Raises:
            UserError: it holds something else, cannot be used, or another process works on it in
                this host's place.
        """
        if self._in_bucket:
            folder = tempfile.TemporaryDirectory()
            self._temporaries = Path(self._stack.enter_context(folder))
        planned = dataclasses.asdict(self._plan)
        if self._there is not None:
            there = dataclasses.asdict(dataclasses.replace(self._there, shards=()))
            self._require_same(without(there, _NOT_PLANNED), without(planned, _NOT_PLANNED))
            if len(self._there.shards) != len(self.numbers):
                raise UserError(
                    f"{self._path}: its manifest lists {len(self._there.shards)} shards"
                    f" where there must be {len(self.numbers)}; delete that folder"
                )
            return self
        content = without(planned, _NOT_PLANNED) | {_SHARD_RECORDS: self._shard_records}
        plan_file = self._notes / _PLAN
        try:
            self._notes.mkdir(parents=True, exist_ok=True)
            if not self._in_bucket:
                self._take_place()
            if not plan_file.exists():
                write_json(plan_file, content, self._suffix)
            self._require_same(json.loads(plan_file.read_text("utf-8")), content)
        except failures(ValueError) as error:
            self._stack.close()
            raise UserError(f"{self._path}: cannot be used: {reason(error)}") from None
        except UserError:
            self._stack.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def missing(self) -> list[int]:
        """The numbers of the shards that this host has to make."""
        if self._there is not None:
            # Rare, and more than one could not agree on who writes the manifest anew.
            mine: Sequence[int] = self.numbers if self._hosts.index == 0 else ()
        else:
            mine = self.numbers[self._hosts.index :: self._hosts.count]
        return [number for number in mine if not self._is_whole(number)]

    def write(self, number: int, records: np.ndarray, rejected: Sequence[Rejected]) -> None:
        """Writes a shard, whole or not at all.

        Args:
            number: which one.
            records: of the manifest's `record_dtype`, of the images that were not rejected.
            rejected: those that were.

        Raises:
            UserError: it cannot be written.
        """
        path = self._shard_path(number)
        try:
            self._notes.mkdir(parents=True, exist_ok=True)
        except failures() as error:
            raise UserError(f"{self._notes}: cannot be written: {error}") from None
        shard = write_shard(path, records, self._temporary(path.name))
        note = {"shard": dataclasses.asdict(shard), "rejected": [vars(image) for image in rejected]}
        write_json(self._note_path(number), note, self._suffix)
        self._done[number] = _Done(shard, tuple(rejected))

    def report(self, number: int, done: int) -> None:
        """Lets the other hosts know how many images of a shard are done; now and then is enough."""
        every = _BUCKET_REPORT_SECONDS if self._in_bucket else _REPORT_SECONDS
        if self._hosts.count > 1 and time.monotonic() > self._reported_at + every:
            self._reported_at = time.monotonic()
            path = self._notes / f"progress-{self._hosts.index:05d}.json"
            write_json(path, {"shard": number, "images": done}, self._suffix)

    def num_done(self) -> int:
        """How many images are done, of all hosts."""
        finished = sum(len(self.images(number)) for number in self.numbers if self._look(number))
        return finished + sum(
            min(images, len(self.images(number)))
            for number, images in self._progress()
            if number not in self._done
        )

    def rejected(self) -> list[Rejected]:
        """The images that finished shards lack, by their numbers."""
        done = {number: self._look(number) for number in self.numbers}
        found = [image for each in done.values() if each is not None for image in each.rejected]
        if self._there is not None:
            listed = read_rejected(self._path)
            found += [image for image in listed if done.get(self.number_of(image.index)) is None]
        return sorted(found, key=lambda image: image.index)

    def finish(self, max_rejected: int, stall_seconds: float) -> Manifest:
        """Waits for all shards; the first host then writes the manifest, the others wait for it.

        Args:
            max_rejected: how many rejected images may be missing.
            stall_seconds: how long to wait without a sign of life from any other host.

        Raises:
            UserError: more images were rejected, none was not, the other hosts show no life, or
                the manifest cannot be written.
        """
        if self._there is not None and not self._done:
            if self._hosts.index == 0:
                self._clear()
            return self._there
        if self._hosts.index > 0:
            manifest_file = self._path / manifest_lib.FILE_NAME
            self._wait(manifest_file.exists, stall_seconds, "the first host's manifest.json")
            return Manifest.load(self._path)
        if self._there is None:
            self._wait(
                lambda: all(self._look(number) for number in self.numbers),
                stall_seconds,
                "shards of the other hosts",
            )
        done = [self._look(number) or self._of_manifest(number) for number in self.numbers]
        rejected = self.rejected()
        self.list_rejected(rejected)
        check_rejected(self._path, rejected, max_rejected)
        shards = tuple(each.shard for each in done if each is not None)
        num_records = sum(shard.num_records for shard in shards)
        if not num_records:
            raise UserError(f"{self._path / REJECTED_FILE}: all images were rejected")
        manifest = dataclasses.replace(
            self._plan,
            shards=shards,
            num_records=num_records,
            preprocessing=self._plan.preprocessing
            | {_SHARD_RECORDS: self._shard_records, _REJECTED: len(rejected)},
        )
        manifest.save(self._path)
        self._clear()
        return manifest

    def list_rejected(self, rejected: Sequence[Rejected]) -> None:
        """Writes `rejected.jsonl`, see `data_pipeline.rejects`.

        Raises:
            UserError: it cannot be written.
        """
        write_rejected(self._path, rejected, self._temporary(REJECTED_FILE))

    @property
    def _suffix(self) -> str:
        """What this host's temporary files end in."""
        return f".host-{self._hosts.index}.tmp"

    def _temporary(self, name: str) -> Path:
        return self._temporaries / f".{name}{self._suffix}"

    def _take_place(self) -> None:
        """Locks this host's place; what an earlier process of it left goes.

        In a bucket nothing is locked: of two in one place each makes the same files.
        """
        self._lock()
        for stale in self._temporaries.glob(f".*{self._suffix}"):
            stale.unlink()

    def _clear(self) -> None:
        """Removes what only unfinished folders hold."""
        with contextlib.suppress(*failures()):
            self._notes.rmtree()

    def _lock(self) -> None:
        """Keeps other processes from this host's place, where there are locks."""
        path = self._temporaries / f"host-{self._hosts.index:05d}.lock"
        file = self._stack.enter_context(path.open("w"))
        try:
            locks.take(file.fileno())
        except BlockingIOError:
            raise UserError(
                f"{self._path}: another process is at work here as host {self._hosts.index} of"
                f" {self._hosts.count}"
            ) from None
        except OSError as error:
            raise UserError(f"{path}: {error.strerror}") from None

    def _wait(self, condition: Callable[[], bool], stall_seconds: float, what: str) -> None:
        """Returns once a condition holds.

        Raises:
            UserError: nothing has changed for so long.
        """
        if condition():
            return
        with progress_bar("images on all hosts", self._plan.num_records) as advance:
            self._wait_longer(condition, stall_seconds, what, advance)

    def _wait_longer(
        self,
        condition: Callable[[], bool],
        stall_seconds: float,
        what: str,
        advance: Callable[[int], None],
    ) -> None:
        state, since, shown = None, time.monotonic(), 0
        while not condition():
            new = (self.num_done(), sorted(self._progress()))
            if new != state:
                state, since = new, time.monotonic()
                advance(new[0] - shown)
                shown = new[0]
            if time.monotonic() > since + stall_seconds:
                missing = [number for number in self.numbers if not self._look(number)]
                of = f", such as {self._shard_path(missing[0]).name}" if missing else ""
                raise UserError(
                    f"{self._path}: waited {stall_seconds:g} s for {what}{of}; start the command"
                    f" again on all of the {self._hosts.count} hosts"
                )
            time.sleep(_BUCKET_POLL_SECONDS if self._in_bucket else _POLL_SECONDS)

    def _progress(self) -> list[tuple[int, int]]:
        """The shard that each host is at, and how many of its images are done."""
        found = []
        for path in self._notes.glob("progress-*.json"):
            try:
                content = json.loads(path.read_text("utf-8"))
                found.append((int(content["shard"]), int(content["images"])))
            except failures(TypeError, ValueError, KeyError):
                continue  # Gone, or of no use.
        return found

    def _is_whole(self, number: int) -> bool:
        """Whether a shard was finished, and its file is still the one that was written."""
        done = self._look(number) or self._of_manifest(number)
        path = self._shard_path(number)
        try:
            if done is not None and path.is_file() and file_sha256(path) == done.shard.sha256:
                return True
        except failures() as error:
            raise unreadable(path, error) from None
        self._done.pop(number, None)
        with contextlib.suppress(*failures()):
            self._note_path(number).unlink()
        return False

    def _look(self, number: int) -> _Done | None:
        """What a shard's note says, if there is one."""
        if number not in self._done:
            try:
                note = json.loads(self._note_path(number).read_text("utf-8"))
                rejected = tuple(Rejected(**image) for image in note["rejected"])
                self._done[number] = _Done(Shard.of(note["shard"]), rejected)
            except FileNotFoundError:
                return None
            except failures(TypeError, ValueError, KeyError) as error:
                raise_if_system(self._note_path(number), error)
                return None  # Whatever it is about, the shard can be made again.
        return self._done[number]

    def _of_manifest(self, number: int) -> _Done | None:
        return _Done(self._there.shards[number]) if self._there is not None else None

    def _shard_path(self, number: int) -> epath.Path:
        return self._path / f"shard-{number:05d}-of-{len(self.numbers):05d}.array_record"

    def _note_path(self, number: int) -> epath.Path:
        return self._notes / f"{self._shard_path(number).name}.json"

    def _require_same(self, there: Mapping[str, Any], here: Mapping[str, Any]) -> None:
        """Raises a UserError that names the differences, if any, between two plans."""
        found = differences(there, here)
        if found:
            raise UserError(
                f"{self._path}: holds records of something else ({'; '.join(found)});"
                " choose another --output or delete that folder"
            )
