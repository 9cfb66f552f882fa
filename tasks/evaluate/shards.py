"""What is measured of one model at a time, each a shard: an entry of the recipe's tasks, or its bits per byte."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tasks.artifacts.errors import BadInputError
from tasks.artifacts.fingerprint import canonical_json
from tasks.artifacts.manifest import ShardReceipt
from tasks.evaluate.results import Measured
from tasks.evaluate.stage import EvaluateRecipe
from tasks.worker.job import Job

BITS = "bits"
_SAMPLES, _DOCUMENTS, _ABOUT = "samples.jsonl", "documents.jsonl", "about.json"


@dataclass(frozen=True)
class Part:
    """One measurement of one model."""

    model: str
    entry: str | None
    """One of the recipe's `entries`; None for bits per byte."""

    @property
    def measured(self) -> str:
        """The entry as a part of file names."""
        return BITS if self.entry is None else re.sub(r"[^A-Za-z0-9._-]", "_", self.entry)

    @property
    def shard(self) -> str:
        """Names its receipt."""
        return f"model-{self.model}-{self.measured}"


def parts_of(recipe: EvaluateRecipe, models: Iterable[str]) -> list[Part]:
    """All measurements, model by model: bits per byte first, which tells a broken model soonest. Served ones come last,
    and no bits are counted of them.

    Raises:
        BadInputError: two of them would have one name.
    """
    bits = [None] if recipe.bits_per_byte else []
    parts = [Part(model, entry) for model in models for entry in (*bits, *recipe.entries)]
    parts += [Part(model, entry) for model in recipe.served for entry in recipe.entries]
    known: dict[str, Part] = {}
    for part in parts:
        other = known.setdefault(part.shard, part)
        if other is not part:
            raise BadInputError(
                f"the results of {other.model} and {part.model} would both be {part.shard}; give one of the two "
                f"models another name"
            )
    return parts


def commit_items(
    job: Job, part: Part, items: Iterable[Mapping[str, Any]], about: Mapping[str, Any], **metrics: Any
) -> None:
    """Commits the shard of an entry."""
    _commit(job, part, _SAMPLES, items, about, metrics)


def commit_documents(
    job: Job, part: Part, documents: Iterable[Mapping[str, Any]], about: Mapping[str, Any], **metrics: Any
) -> None:
    """Commits the shard of a model's bits per byte."""
    _commit(job, part, _DOCUMENTS, documents, about, metrics)


def _commit(
    job: Job,
    part: Part,
    name: str,
    records: Iterable[Mapping[str, Any]],
    about: Mapping[str, Any],
    metrics: dict[str, Any],
) -> None:
    directory = job.new_directory(part.shard)
    write_lines(directory / name, records)
    (directory / _ABOUT).write_bytes(canonical_json(about) + b"\n")
    job.commit_shard(part.shard, directory, metrics)


def copy_parts(job: Job, measured: str, parts: Sequence[Part]) -> int:
    """Commits parts of a model whose files another one has too, out of what was measured of that; returns how many."""
    receipts = job.receipts()
    for part in parts:
        directory = job.new_directory(part.shard)
        for name, data in _files(job, receipts[Part(measured, part.entry).shard]).items():
            (directory / name).write_bytes(data)
        job.commit_shard(part.shard, directory, {"measured_as": measured})
    job.log(f"{parts[0].model} has the files of {measured}, and what was measured of that")
    return len(parts)


def check_same_harness(
    job: Job, done: Iterable[Part], receipts: Mapping[str, ShardReceipt], lm_eval: str, data: Mapping[str, str]
) -> None:
    """Whether what earlier launches measured compares with what this one would: before hours are spent on it.

    Args:
        lm_eval: the version that is installed.
        data: entry → sha256 of the data that were loaded for it.

    Raises:
        BadInputError: it does not.
    """
    for part in done:
        if part.entry is None:
            continue
        made_by = json.loads(_files(job, receipts[part.shard])[_ABOUT])["harness"]
        if made_by["lm_eval"] != lm_eval:
            raise BadInputError(
                f"an earlier launch evaluated {part.model} on {part.entry} by lm-eval {made_by['lm_eval']}, and "
                f"{lm_eval} is installed, which do not compare; install the former, or delete the receipts "
                f"shards/model-*.json of this evaluation and run again"
            )
        if made_by["data"][part.entry] != data[part.entry]:
            raise BadInputError(
                f"an earlier launch evaluated {part.model} on {part.entry} with other data than are read now, which "
                f"do not compare; bring back those with the sha256 {made_by['data'][part.entry]}, or delete the "
                f"receipts shards/model-*-{part.measured}.json of this evaluation and run again"
            )


def read_measured(job: Job, parts: Sequence[Part], receipts: Mapping[str, ShardReceipt]) -> Measured:
    """All shards of one model as one, its items in the order of the parts.

    Raises:
        BadInputError: they were made by different versions of the harness.
    """
    items: list[dict[str, Any]] = []
    documents: list[dict[str, Any]] = []
    about: dict[str, Any] = {}
    harness: dict[str, Any] = {"tasks": {}, "data": {}}
    for part in parts:
        data = _files(job, receipts[part.shard])
        items += _read_lines(data.get(_SAMPLES, b""))
        documents += _read_lines(data.get(_DOCUMENTS, b""))
        own = json.loads(data[_ABOUT])
        made_by = own.pop("harness", None)
        about |= own
        if made_by is None:
            continue
        if harness.setdefault("lm_eval", made_by["lm_eval"]) != made_by["lm_eval"]:
            raise BadInputError(
                f"{part.model} was evaluated on {part.entry} by lm-eval {made_by['lm_eval']} and on other tasks by "
                f"{harness['lm_eval']}, which do not compare; delete the receipts shards/model-*.json of this "
                f"evaluation and run again"
            )
        for name in ("tasks", "data"):
            harness[name] |= made_by[name]
    return Measured(items, documents, {**about, "harness": harness})


def _files(job: Job, receipt: ShardReceipt) -> dict[str, bytes]:
    return {Path(entry.name).name: job.store.get(job.artifact.path(entry.path)) for entry in receipt.objects}


def _read_lines(data: bytes) -> list[dict[str, Any]]:
    # bytes.splitlines, unlike that of str, does not split at U+2028 within a text.
    return [json.loads(line) for line in data.splitlines()]


def write_lines(file: Path, records: Iterable[Mapping[str, Any]]) -> None:
    """One JSON object a line; raises ValueError for NaN, which is no JSON."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("w", encoding="utf-8") as lines:
        lines.writelines(
            json.dumps(record, sort_keys=True, ensure_ascii=False, allow_nan=False) + "\n" for record in records
        )
