"""The records that make an artifact: receipts of shards, the manifest that is written last, and what refers to it.

    artifacts/<stage>/<label>-<key16>/manifest.json
                                      shards/<shard>.json      one receipt a shard, create-only
                                      data/<shard>-<attempt8>/<logical name>
                                      checkpoints/step-<N>-<attempt8>/…
                                      lease.json  verdict.json  acceptances/<gate>.json

The receipt of the shard named `main` lists the other shards that belong to the artifact and carries its metrics: once
it stands, all that is left to do is to write the manifest.
"""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import AfterValidator, Field

from tasks.artifacts.errors import BadInputError
from tasks.artifacts.fingerprint import content_digest
from tasks.artifacts.frozen import Frozen
from tasks.artifacts.store import checked

RECORD_VERSION = 1
MAIN_SHARD = "main"


def _inside(name: str) -> str:
    try:
        return checked(name)
    except BadInputError as error:
        raise ValueError(str(error)) from error


InsideName = Annotated[str, AfterValidator(_inside)]
"""Files are written under it, so whoever can write a record must not be able to name one outside of a folder."""


class ObjectRecord(Frozen):
    """One object that counts. `path` is relative to the artifact's folder; only `name` and `sha256` make the digest."""

    name: InsideName
    path: InsideName
    size: int
    sha256: str


class ShardReceipt(Frozen):
    """A finished shard. Written create-only, so the first writer of a shard is its only one."""

    record: int = RECORD_VERSION
    shard: str
    write_id: str
    objects: tuple[ObjectRecord, ...]
    inputs: dict[str, str] = Field(default_factory=dict)
    """Digest of each input that the shard was made from."""
    metrics: dict[str, Any] = Field(default_factory=dict)
    covers: tuple[str, ...] = ()
    """For the shard `main`: the shards whose objects belong to the artifact besides its own."""


class InputRecord(Frozen):
    """An input as it was when the artifact was made."""

    key: str
    digest: str
    directory: str


class Provenance(Frozen):
    """How, when and where: kept for people, never part of a key or a digest."""

    write_id: str
    created: str
    seconds: float
    attempts: int
    flow_run: str | None
    pool: str | None = None
    """Prefect's work pool, and the worker of it, that the flow run was of; None outside of them."""
    pool_worker: str | None = None
    git_sha: str | None
    git_dirty: bool | None
    hardware: dict[str, Any]
    versions: dict[str, str]
    runtime: dict[str, Any]


class Manifest(Frozen):
    """An artifact exists if and only if this does."""

    record: int = RECORD_VERSION
    stage: str
    version: int
    label: str
    key: str
    digest: str
    recipe: dict[str, Any]
    inputs: dict[str, InputRecord]
    objects: tuple[ObjectRecord, ...]
    metrics: dict[str, Any]
    provenance: Provenance

    def object(self, name: str) -> ObjectRecord | None:
        """The object with this logical name."""
        return next((entry for entry in self.objects if entry.name == name), None)


class ArtifactRef(Frozen):
    """What a task returns and the next one takes: small enough for any orchestrator."""

    uri: str
    directory: str
    key: str
    digest: str
    reused: bool = False


def digest_of(objects: tuple[ObjectRecord, ...]) -> str:
    """Digest of an artifact made of these objects."""
    return content_digest((entry.name, entry.sha256) for entry in objects)
