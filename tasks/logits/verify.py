"""Reads a whole logit store, shard by shard, and names everything that is wrong with it.

Memory does not grow with the store: one object (S3) or a few documents are held at a time, and of a shard's
faults the first few are named and the others counted.
"""

from __future__ import annotations

import json
import math
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import islice, product
from typing import Any

import numpy as np
from pydantic import ValidationError

from tasks.artifacts.artifact import Artifact
from tasks.artifacts.errors import MediusError, TransientStoreError
from tasks.artifacts.manifest import Manifest, ObjectRecord
from tasks.artifacts.store import Store
from tasks.artifacts.verify import manifest_damage, object_damage
from tasks.logits.faults import row_faults
from tasks.logits.prior import PRIOR_SHARD
from tasks.logits.reader import LogitReader
from tasks.logits.schema import SCHEMA_FILE, LogitFormat, LogitSchema, ShardEntry, ShardHeader, ShardPlan, plan_shards

MAX_NAMED = 5
"""Faults of rows that are named in one shard."""
DOCUMENTS_AT_ONCE = 16
"""Read together: 40 MB at 4096 tokens and 64 entries, and 0.6 of the time of one by one at 81 tokens."""
UNREADABLE = (MediusError, ValidationError, ValueError, KeyError, TypeError, OSError, RuntimeError)
_FORMAT = set(LogitFormat.model_fields)
_ANOTHER = {
    "teacher": "is of another teacher",
    "tokenizer_digest": "is of another tokenizer",
    "corpus_digest": "is of another corpus",
    "prior_digest": "was written with another prior",
}


@dataclass(frozen=True)
class Checked:
    """How far a verification is."""

    shards: int
    num_shards: int
    tokens: int
    num_problems: int


def verify(
    store: Store, directory: str, manifest: Manifest, watch: Callable[[Checked], None] = lambda _checked: None
) -> list[str]:
    """One sentence for each problem, with the object's path; empty if all is well.

    Checks the checksums of all objects, the manifest's inputs and the plan against logits.json and, in each shard, that
    it is of the same teacher, tokenizer, corpus and prior, the offsets, and of every row the id, the order, the mass
    and the range of every position. `watch` is called after each shard.

    Raises:
        TransientStoreError: the object store does not answer.
    """
    artifact = Artifact(store, directory)
    groups: dict[str, list[ObjectRecord]] = defaultdict(list)
    for record in manifest.objects:
        groups[record.name.rpartition("/")[0].partition("/")[0]].append(record)
    problems = manifest_damage(artifact, manifest) + list(_damage(artifact, groups.pop("", [])).values())
    try:
        reader = LogitReader(store, directory, manifest, cache_bytes=0)
    except TransientStoreError:
        raise
    except UNREADABLE as error:
        problems.append(f"{_where(artifact, manifest, SCHEMA_FILE)} cannot be read ({_first_line(error)})")
        return problems + [fault for group in groups.values() for fault in _damage(artifact, group).values()]
    problems += [f"{_where(artifact, manifest, SCHEMA_FILE)} {fault}" for fault in _inputs(reader.schema, manifest)]
    problems += [f"{_where(artifact, manifest, SCHEMA_FILE)}: {gap}" for gap in _gaps(reader.schema)]
    checker = _Checker(artifact, manifest, reader)
    problems += checker.prior(groups.pop(PRIOR_SHARD, []))
    tokens = 0
    for number, entry in enumerate(reader.schema.shards, 1):
        problems += checker.shard(entry, groups.pop(entry.name, []))
        tokens += entry.num_tokens
        watch(Checked(number, len(reader.schema.shards), tokens, len(problems)))
    # What no entry of logits.json names still has to be what was committed.
    return problems + [fault for group in groups.values() for fault in _damage(artifact, group).values()]


def _damage(artifact: Artifact, objects: list[ObjectRecord]) -> dict[str, str]:
    """The damaged objects by name."""
    return {entry.name: problem for entry in objects if (problem := object_damage(artifact, entry))}


def _where(artifact: Artifact, manifest: Manifest, name: str) -> str:
    """The path of an object for a message."""
    entry = manifest.object(name)
    return f"{artifact.uri}/manifest.json lists no {name}; it" if entry is None else f"{artifact.uri}/{entry.path}"


def _first_line(error: Exception) -> str:
    if isinstance(error, ValidationError):
        first = error.errors()[0]
        return f"{'.'.join(str(part) for part in first['loc'])}: {first['msg']}"
    return (str(error).splitlines() or [type(error).__name__])[0]


def _inputs(schema: LogitSchema, manifest: Manifest) -> Iterator[str]:
    """Where the store is of another teacher or corpus than the manifest says."""
    for role, digest in (("teacher", schema.teacher_digest), ("corpus", schema.corpus_digest)):
        if role in manifest.inputs and manifest.inputs[role].digest != digest:
            yield (
                f"is of another {role}: {digest[:16]}, the manifest was made from {manifest.inputs[role].digest[:16]}"
            )


def _gaps(schema: LogitSchema) -> list[str]:
    """Rows of the plan that no shard has, and shards that the plan does not have."""
    planned = {plan.name: plan for plan in plan_shards(schema.num_rows, schema.rows_per_shard)}
    listed = {
        entry.name: ShardPlan(name=entry.name, split=entry.split, first_row=entry.first_row, num_rows=entry.num_rows)
        for entry in schema.shards
    }
    problems = []
    for name, plan in planned.items():
        if listed.get(name) != plan:
            last = plan.first_row + plan.num_rows - 1
            problems.append(
                f"rows {plan.first_row} to {last} of split {plan.split} are missing: no shard {name} has them"
            )
    return problems + [f"shard {name} is not in the plan" for name in listed if name not in planned]


class _Checker:
    """Checks one shard after the other."""

    def __init__(self, artifact: Artifact, manifest: Manifest, reader: LogitReader) -> None:
        self._artifact = artifact
        self._names = {entry.name for entry in manifest.objects}
        self._reader = reader
        self._readable = True
        """Whether there is a prior to decode with."""

    def prior(self, objects: list[ObjectRecord]) -> list[str]:
        """What is wrong with the prior; one sentence an object."""
        damage = _damage(self._artifact, objects)
        problems = list(damage.values())
        root = next((entry for entry in objects if entry.name == f"{PRIOR_SHARD}/zarr.json"), None)
        if root is None:
            problems.append(f"{self._artifact.uri}/manifest.json lists no {PRIOR_SHARD}/zarr.json")
        elif not damage:
            try:
                ours, theirs = str(self._attributes(root)["digest"]), self._reader.schema.prior_digest
                if ours != theirs:
                    where = f"{self._artifact.uri}/{root.path} ({root.name})"
                    problems.append(f"{where} is another prior: {_told(ours, theirs)}")
                else:
                    problems += self._unlisted(objects)
                    self._reader.prior()
            except TransientStoreError:
                raise
            except UNREADABLE as error:
                problems.append(f"{self._artifact.uri}/{root.path} ({root.name}) cannot be read: {_first_line(error)}")
        self._readable = not problems
        if problems:
            problems[-1] += "; without it no row can be decoded, so only the shards' objects were checked"
        return problems

    def shard(self, entry: ShardEntry, objects: list[ObjectRecord]) -> list[str]:
        """What is wrong with a shard. Its rows are read where all its objects are what was committed."""
        damage = _damage(self._artifact, objects)
        root = next((record for record in objects if record.name == f"{entry.name}/zarr.json"), None)
        if root is None:
            where = f"{self._artifact.uri}/manifest.json lists no {entry.name}/zarr.json"
            return [*damage.values(), f"{where}: rows {_rows(entry)} are missing"]
        where = f"{self._artifact.uri}/{root.path} (shard {entry.name})"
        try:
            said = self._header_fault(entry, root)
        except TransientStoreError:
            raise
        except UNREADABLE as error:
            said = None if root.name in damage else f"cannot be read ({_first_line(error)})"
        if said is not None:
            # One sentence for one object: a header from another store has other bytes, too.
            damage[root.name] = f"{damage[root.name]}: it {said}" if root.name in damage else f"{where} {said}"
        problems = [*damage.values()]
        if not problems:
            problems += self._unlisted(objects)
        if not problems and self._readable:
            problems += self._rows(entry, f"{self._artifact.uri}/{root.path.rpartition('/')[0]} (shard {entry.name})")
        return problems

    def _attributes(self, root: ObjectRecord) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self._artifact.store.get(self._artifact.path(root.path)))["attributes"]
        return found

    def _header_fault(self, entry: ShardEntry, root: ObjectRecord) -> str | None:
        """What a shard says of itself against what logits.json says of it."""
        header = ShardHeader.model_validate(self._attributes(root))
        ours, theirs = header.model_dump(include=_FORMAT), self._reader.schema.model_dump(include=_FORMAT)
        for name in (*_ANOTHER, *theirs):
            if ours[name] != theirs[name]:
                fault = _ANOTHER.get(name, f"has another {name}")
                return f"{fault}: {_told(ours[name], theirs[name])}"
        if header.shard != entry.name:
            return f"says that it is shard {header.shard}"
        for name in ("split", "first_row", "num_rows", "num_tokens", "num_targets"):
            if getattr(header, name) != getattr(entry, name):
                return (
                    f"has other rows than planned: {name} {getattr(header, name)}, {SCHEMA_FILE} says "
                    f"{getattr(entry, name)}"
                )
        return None

    def _unlisted(self, objects: list[ObjectRecord]) -> list[str]:
        """Chunks that an array's zarr.json expects and the manifest does not list: zarr would read them as zeros."""
        problems = []
        for record in objects:
            if not record.name.endswith("/zarr.json"):
                continue
            array = json.loads(self._artifact.store.get(self._artifact.path(record.path)))
            if array["node_type"] != "array":
                continue
            counts = [
                math.ceil(length / size)
                for length, size in zip(
                    array["shape"], array["chunk_grid"]["configuration"]["chunk_shape"], strict=True
                )
            ]
            base = record.name.removesuffix("zarr.json")
            for place in product(*(range(count) for count in counts)):
                name = f"{base}c/{'/'.join(map(str, place))}"
                if name not in self._names:
                    problems.append(f"{self._artifact.uri}/manifest.json lists no {name}, which {record.path} expects")
        return problems

    def _rows(self, entry: ShardEntry, where: str) -> list[str]:
        try:
            faults = self._faults(entry)
            problems = [f"{where} {fault}" for fault in islice(faults, MAX_NAMED)]
            if others := sum(1 for _ in faults):
                problems.append(f"{where} has {others} more faults in its rows")
        except TransientStoreError:
            raise
        except UNREADABLE as error:
            return [f"{where} cannot be read ({_first_line(error)})"]
        return problems

    def _faults(self, entry: ShardEntry) -> Iterator[str]:
        shard = self._reader.shard(entry.name)
        header, offsets = shard.header, shard.offsets
        if len(offsets) != header.num_rows + 1 or offsets[0] != 0 or offsets[-1] != header.num_tokens:
            yield f"has offsets that do not span its {header.num_rows} rows of {header.num_tokens} tokens"
            return
        if (np.diff(offsets) < 1).any() or len(shard) != header.num_rows:
            yield "has a row without tokens or without an id"
            return
        if len(shard.num_targets) != header.num_rows or int(shard.num_targets.sum()) != header.num_targets:
            yield f"has targets that do not add up to {header.num_targets}"
            return
        last = 0
        while last < header.num_rows:
            first = last
            while last < min(first + DOCUMENTS_AT_ONCE, header.num_rows):
                last = shard.chunk_of(last)[1]
            rows = self._artifact.store.reading(self._artifact.path(entry.name), partial(shard.rows, first, last))
            for index, row in enumerate(rows, first):
                for fault in row_faults(row, int(shard.num_targets[index]), header, shard.codec):
                    yield f"row {header.first_row + index} {fault}"


def _rows(entry: ShardEntry) -> str:
    return f"{entry.first_row} to {entry.first_row + entry.num_rows - 1} of split {entry.split}"


def _told(ours: Any, theirs: Any) -> str:
    """Two values that differ; of records the first field that does, of digests the start."""
    if isinstance(ours, dict) and isinstance(theirs, dict):
        name = next(name for name in {**ours, **theirs} if ours.get(name) != theirs.get(name))
        return f"{name} {_told(ours.get(name), theirs.get(name))}"
    mine, other = (value[:16] if isinstance(value, str) else value for value in (ours, theirs))
    return f"{mine}, {SCHEMA_FILE} says {other}"
