"""Checkpoints of an unfinished artifact, kept below its key so that a run with another recipe can never resume them.

    checkpoints/step-<N>-<attempt8>/<files>        uploaded first
    checkpoints/step-<N>-<attempt8>.json           the list of them with checksums, written last

A checkpoint without its list, or with a file that differs from it, is torn: the one before is used. The files of one
without a list go with the next save.
"""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from tasks.artifacts.artifact import Artifact, encode_record
from tasks.artifacts.errors import CorruptArtifactError, ObjectMissingError
from tasks.artifacts.fingerprint import file_sha256
from tasks.artifacts.frozen import Frozen
from tasks.artifacts.manifest import ObjectRecord

_NAME = re.compile(r"step-(\d+)-[0-9a-f]+\.json")
_FOLDER = re.compile(r"step-\d+-([0-9a-f]+)")


class CheckpointRecord(Frozen):
    """What a complete checkpoint consists of. `state` is the caller's: data position, seeds, world size."""

    step: int
    objects: tuple[ObjectRecord, ...]
    inputs: dict[str, str]
    """Digest of each input; a checkpoint of other bytes is never resumed."""
    state: dict[str, Any]


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint on local disk."""

    step: int
    directory: Path
    state: dict[str, Any]


class CheckpointFolder:
    """The checkpoints of one artifact, written by one attempt and read from all."""

    def __init__(self, artifact: Artifact, attempt: str, inputs: dict[str, str]) -> None:
        self.artifact = artifact
        self.attempt = attempt
        self.inputs = inputs

    def save(self, step: int, directory: Path, state: dict[str, Any], keep: int) -> None:
        """Uploads a local folder as the checkpoint of `step`, then removes torn ones and all but the newest `keep`."""
        base = f"checkpoints/step-{step}-{self.attempt}"
        objects = []
        for file in sorted(path for path in directory.rglob("*") if path.is_file()):
            name = file.relative_to(directory).as_posix()
            self.artifact.store.upload(file, self.artifact.path(f"{base}/{name}"))
            objects.append(
                ObjectRecord(name=name, path=f"{base}/{name}", size=file.stat().st_size, sha256=file_sha256(file))
            )
        record = CheckpointRecord(step=step, objects=tuple(objects), inputs=self.inputs, state=state)
        self.artifact.store.put(self.artifact.path(f"{base}.json"), encode_record(record))
        names = _names(self.artifact)
        listed = _newest_first(names)
        own = base.rpartition("/")[2]
        for name, _ in listed[keep:]:
            if name != f"{own}.json":
                self._remove(name)
        # The artifact's lease excludes other writers, so a folder without a list is of an attempt that has ended.
        whole = {own, *(name.removesuffix(".json") for name, _ in listed)}
        for name in names:
            folder, inside, _ = name.partition("/")
            if inside and folder not in whole and _FOLDER.fullmatch(folder):
                self.artifact.store.delete(self._path(name))

    def latest(self, target: Path) -> Checkpoint | None:
        """The newest checkpoint that is whole and of these inputs, copied into a folder below `target`."""
        for name, step in _newest_first(_names(self.artifact)):
            directory = target / name.removesuffix(".json")
            try:
                record = CheckpointRecord.model_validate_json(self.artifact.store.get(self._path(name)))
                if record.inputs != self.inputs:
                    continue
                self._fetch(record, directory)
            except (ObjectMissingError, CorruptArtifactError, ValidationError, json.JSONDecodeError):
                # It may be as large as the one that is fetched next.
                shutil.rmtree(directory, ignore_errors=True)
                continue
            return Checkpoint(step, directory, record.state)
        return None

    def clear(self) -> None:
        """Removes every checkpoint; for an artifact that is finished."""
        for entry in list(self.artifact.store.list(self.artifact.path("checkpoints"))):
            self.artifact.store.delete(entry.path)

    def _path(self, name: str) -> str:
        return self.artifact.path(f"checkpoints/{name}")

    def _fetch(self, record: CheckpointRecord, directory: Path) -> None:
        for entry in record.objects:
            file = directory / entry.name
            self.artifact.store.download(self.artifact.path(entry.path), file)
            if file_sha256(file) != entry.sha256:
                raise CorruptArtifactError(f"{self.artifact.uri}/{entry.path} is damaged")

    def _remove(self, name: str) -> None:
        # The list goes first: a half-removed checkpoint must not look whole.
        self.artifact.store.delete(self._path(name))
        for entry in list(self.artifact.store.list(self._path(name.removesuffix(".json")))):
            self.artifact.store.delete(entry.path)


def checkpoint_lists(artifact: Artifact) -> list[tuple[str, int]]:
    """(path in the store, step) of the list of each checkpoint that has one, newest first. No file is compared with
    it."""
    return [(artifact.path(f"checkpoints/{name}"), step) for name, step in _newest_first(_names(artifact))]


def checkpoint_attempts(artifact: Artifact) -> set[str]:
    """The attempts that left anything below checkpoints/, be it torn."""
    folders = (name.partition("/")[0].removesuffix(".json") for name in _names(artifact))
    return {match[1] for folder in folders if (match := _FOLDER.fullmatch(folder))}


def _names(artifact: Artifact) -> list[str]:
    """Paths of all lists and files below checkpoints/."""
    prefix = artifact.path("checkpoints/")
    return [entry.path.removeprefix(prefix) for entry in artifact.store.list(prefix[:-1])]


def _newest_first(names: list[str]) -> list[tuple[str, int]]:
    """The lists among `names` and their steps."""
    found = [(name, int(match[1])) for name in names if (match := _NAME.fullmatch(name))]
    return sorted(found, key=lambda item: (-item[1], item[0]))
