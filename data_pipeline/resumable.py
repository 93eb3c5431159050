"""A folder of shards that is written in any order, by any number of hosts, across interruptions.

Usage, on every host:
    output = ResumableFolder(Path("DIR"), plan, shard_records=8192)
    output.open()                              # by one host, before the others go on
    for number in output.numbers:
        if not output.is_done(number):
            output.write(number, records)      # whole or not at all
    manifest = output.finish()                 # by one host, once all shards are there
"""

from collections.abc import Mapping
import dataclasses
import json
from pathlib import Path
import shutil
from typing import Any

import numpy as np

from data_pipeline import manifest as manifest_lib
from data_pipeline.errors import UserError
from data_pipeline.records import Manifest, Shard, file_sha256, write_shard

_NOTES = "unfinished"  # Holds the plan and a note on every finished shard until all are there.
_PLAN = "plan.json"


class ResumableFolder:
    """What a folder will hold, and which of its shards are there already.

    A shard counts as done when its note, or the manifest of a finished folder, has its checksum.
    """

    def __init__(self, folder: Path, plan: Manifest, shard_records: int):
        """Describes the folder; nothing is written.

        Args:
            folder: shared by all hosts.
            plan: the manifest to be, without its shards.
            shard_records: records a shard; the last one takes what is left. A folder that was
                begun with another number is refused, and a finished one keeps its own.
        """
        if shard_records < 1:
            raise UserError(f"shard_records must be at least 1, not {shard_records}")
        self._folder = folder
        self._plan = plan
        self._shard_records = shard_records
        self._there: Manifest | None = None
        if (folder / manifest_lib.FILE_NAME).exists():
            self._there = Manifest.load(folder)
            self._shard_records = self._there.shards[0].num_records

    @property
    def numbers(self) -> range:
        """The numbers of the shards."""
        return range(-(-self._plan.num_records // self._shard_records))

    def records(self, number: int) -> range:
        """The indices of a shard's records."""
        start = number * self._shard_records
        return range(start, min(start + self._shard_records, self._plan.num_records))

    def open(self) -> None:
        """Makes the folder, or checks that what it holds is of this plan.

        Raises:
            UserError: it holds something else, or cannot be used.
        """
        if self._there is not None:
            self._require_same(
                dataclasses.asdict(dataclasses.replace(self._there, shards=())),
                dataclasses.asdict(self._plan),
            )
            return
        plan_file = self._folder / _NOTES / _PLAN
        content = dataclasses.asdict(self._plan) | {"shard_records": self._shard_records}
        try:
            plan_file.parent.mkdir(parents=True, exist_ok=True)
            if not plan_file.exists():
                manifest_lib.write_json(plan_file, content)
            self._require_same(json.loads(plan_file.read_text("utf-8")), content)
        except (OSError, ValueError) as error:
            raise UserError(f"{self._folder}: cannot be used: {error}") from None

    def is_done(self, number: int) -> bool:
        """Whether a shard was finished, and its file is still the one that was written."""
        shard, path = self._note(number), self._path(number)
        return shard is not None and path.is_file() and file_sha256(path) == shard.sha256

    def write(self, number: int, records: np.ndarray) -> None:
        """Writes a shard, whole or not at all.

        Args:
            number: which one.
            records: as many as `records(number)` has, of the manifest's `record_dtype`.

        Raises:
            UserError: it cannot be written.
        """
        shard = write_shard(self._path(number), records)
        notes = self._folder / _NOTES
        try:
            notes.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"{notes}: cannot be written: {error}") from None
        manifest_lib.write_json(self._note_path(number), dataclasses.asdict(shard))

    def finish(self) -> Manifest:
        """Writes the manifest and removes the notes.

        Raises:
            UserError: a shard is missing, or the manifest cannot be written.
        """
        if self._there is not None and not (self._folder / _NOTES).is_dir():
            return self._there
        shards = [self._note(number) for number in self.numbers]
        missing = [number for number, shard in enumerate(shards) if shard is None]
        if missing:
            raise UserError(f"{self._path(missing[0])}: not written; start the command again")
        manifest = dataclasses.replace(self._plan, shards=tuple(s for s in shards if s))
        manifest.save(self._folder)
        shutil.rmtree(self._folder / _NOTES, ignore_errors=True)
        return manifest

    def _path(self, number: int) -> Path:
        return self._folder / f"shard-{number:05d}-of-{len(self.numbers):05d}.array_record"

    def _note_path(self, number: int) -> Path:
        return self._folder / _NOTES / f"{self._path(number).name}.json"

    def _note(self, number: int) -> Shard | None:
        """What is known of a finished shard: its note, else what the manifest says."""
        try:
            return Shard(**json.loads(self._note_path(number).read_text("utf-8")))
        except FileNotFoundError:
            pass
        except (OSError, TypeError, ValueError):
            return None  # Whatever it is about, the shard can be made again.
        return self._there.shards[number] if self._there is not None else None

    def _require_same(self, there: Mapping[str, Any], here: Mapping[str, Any]) -> None:
        """Raises a UserError that names the differences, if any, between two plans."""
        old, new = _flatten(there), _flatten(here)
        differences = [
            f"{key} is {old.get(key, 'absent'):.60} there and {new.get(key, 'absent'):.60} now"
            for key in sorted({*old, *new})
            if old.get(key) != new.get(key)
        ]
        if differences:
            raise UserError(
                f"{self._folder}: holds records of something else ({'; '.join(differences)});"
                " choose another --output or delete that folder"
            )


def _flatten(plan: Mapping[str, Any]) -> dict[str, str]:
    """A plan as one level of texts, so that tuples and JSON's lists compare equal."""
    flat: dict[str, str] = {}
    for key, value in plan.items():
        inner = value.items() if isinstance(value, dict) else [(key, value)]
        flat.update((name, json.dumps(item)) for name, item in inner)
    return flat
