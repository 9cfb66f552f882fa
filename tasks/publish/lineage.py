"""What an artifact was made of, read from the manifests that its inputs lead to."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from tasks.artifacts.artifact import Artifact
from tasks.artifacts.errors import ObjectMissingError, StaleInputError
from tasks.artifacts.manifest import InputRecord, Manifest
from tasks.artifacts.store import Store


@dataclass(frozen=True)
class Ancestor:
    """One finished artifact, and where it is."""

    directory: str
    manifest: Manifest


def ancestors(store: Store, records: Iterable[InputRecord]) -> list[Ancestor]:
    """The artifacts of `records` and all that they were made of, each once, inputs before what uses them.

    Raises:
        ObjectMissingError: an ancestor's manifest is gone.
        StaleInputError: an ancestor was rebuilt with other bytes than its descendants were made from.
    """
    found: dict[str, Ancestor] = {}

    def visit(record: InputRecord) -> None:
        if record.directory in found:
            present = found[record.directory].manifest
        else:
            manifest = Artifact(store, record.directory).manifest()
            if manifest is None:
                raise ObjectMissingError(
                    f"{store.locate(record.directory)} is part of the lineage and has no manifest any more; restore it "
                    f"or run the pipeline again"
                )
            present = manifest
        if present.digest != record.digest:
            raise StaleInputError(
                f"{store.locate(record.directory)} has the digest {present.digest[:16]}, and its descendant was made "
                f'from {record.digest[:16]}; run "medius plan" to see what must be made again'
            )
        if record.directory not in found:
            for role in sorted(present.inputs):
                visit(present.inputs[role])
            found[record.directory] = Ancestor(record.directory, present)

    for record in records:
        visit(record)
    return list(found.values())


def is_twin(manifest: Manifest) -> bool:
    """Whether this is a distillation without a teacher: of the loss only the cross-entropy has a weight."""
    loss = manifest.recipe.get("loss")
    if manifest.stage != "distill" or not loss:
        return False
    return not any(loss.get(part) for part in ("forward_kl", "reverse_kl", "jsd"))
