"""What an artifact was made of: read from the manifests that its inputs lead to, or planned before it is made."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from tasks.artifacts.artifact import Artifact
from tasks.artifacts.errors import ObjectMissingError, StaleInputError
from tasks.artifacts.manifest import InputRecord, Manifest
from tasks.artifacts.store import Store
from tasks.runtime.declare import Step


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


@dataclass(frozen=True)
class Made:
    """What a lineage says of one of its members whether it is finished or not. `inputs` holds keys by role."""

    key: str
    stage: str
    label: str
    recipe: Mapping[str, Any]
    inputs: Mapping[str, str]
    chosen: str | None = None
    """Of a finished choice: the name of the model that it took."""

    @property
    def made_of(self) -> Mapping[str, str]:
        """The inputs that are in the result: not the texts and conversations that a choice measured models on, nor the
        models that it did not take. Of one that is not finished all models may be."""
        if self.stage != "choose":
            return self.inputs
        roles = [f"model.{self.chosen}"] if self.chosen else [role for role in self.inputs if role.startswith("model.")]
        return {role: self.inputs[role] for role in roles}


def made(lineage: Iterable[Ancestor]) -> dict[str, Made]:
    """Finished artifacts by key, in their order."""
    return {
        manifest.key: Made(
            key=manifest.key,
            stage=manifest.stage,
            label=manifest.label,
            recipe=manifest.recipe,
            inputs={role: record.key for role, record in sorted(manifest.inputs.items())},
            chosen=manifest.metrics.get("chosen") if manifest.stage == "choose" else None,
        )
        for manifest in (ancestor.manifest for ancestor in lineage)
    }


def making(lineage: Iterable[Ancestor], key: str) -> list[Ancestor]:
    """Of a lineage what the member `key` was made of, itself included, in the order of the lineage."""
    lineage = list(lineage)
    known = made(lineage)
    kept, left = set[str](), [key]
    while left:
        at = left.pop()
        if at not in kept:
            kept.add(at)
            left += known[at].made_of.values()
    return [ancestor for ancestor in lineage if ancestor.manifest.key in kept]


def planned(step: Step) -> dict[str, Made]:
    """A step and all that it will be made of by key, inputs before what uses them."""
    found: dict[str, Made] = {}

    def visit(each: Step) -> None:
        if each.key in found:
            return
        for role in sorted(each.inputs):
            visit(each.inputs[role])
        found[each.key] = Made(
            key=each.key,
            stage=each.stage.name,
            label=each.label,
            recipe=each.config.recipe.model_dump(mode="json"),
            inputs={role: source.key for role, source in sorted(each.inputs.items())},
        )

    visit(step)
    return found


def marker(model: Manifest) -> str:
    """A line of the card of a model that no other model's card has, invisible where Markdown is shown."""
    return f"<!-- medius: the model with the digest {model.digest} -->"


def is_twin(manifest: Manifest) -> bool:
    """Whether this is a distillation without a teacher: of the loss only the cross-entropy has a weight."""
    loss = manifest.recipe.get("loss")
    if manifest.stage != "distill" or not loss:
        return False
    return not any(loss.get(part) for part in ("forward_kl", "reverse_kl", "jsd"))
