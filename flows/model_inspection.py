"""`medius inspect` of models: their vocabularies, and their bits per byte on four kinds of text beside each other."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

from tasks.artifacts.artifact import Artifact
from tasks.artifacts.errors import BadInputError
from tasks.artifacts.manifest import Manifest

if TYPE_CHECKING:
    from tasks.modeling.model_facts import ModelFacts


def is_model(manifest: Manifest) -> bool:
    """Whether an artifact is a model with weights and a tokenizer."""
    names = {entry.name for entry in manifest.objects}
    weights = "reference.json" in names or any(name.endswith(".safetensors") for name in names)
    return weights and {"config.json", "tokenizer.json"} <= names


def print_models(found: Sequence[tuple[Artifact, Manifest]], console: Console) -> None:
    """Prints a row a model, each in its own vocabulary; after the first, with the change against it in percent.

    Raises:
        BadInputError: one of several artifacts is no model.
    """
    for artifact, manifest in found:
        if not is_model(manifest):
            raise BadInputError(
                f"{artifact.uri} is no model with weights; several artifacts are compared as models only"
            )
    facts = [(manifest.label, _facts(artifact, manifest)) for artifact, manifest in found]
    first = facts[0][1]
    table = Table(title="bits per byte, each model in its own vocabulary", title_justify="left")
    for name in ("model", "layers", "parameters", "rows", "tokens", *(kind.replace("_", "-") for kind in first.bits)):
        table.add_column(name, justify="left" if name == "model" else "right", overflow="fold")
    for place, (label, model) in enumerate(facts):
        bits = [
            f"{value:.3f}" + (f" ({value / first.bits[kind] - 1:+.0%})" if place else "")
            for kind, value in model.bits.items()
        ]
        table.add_row(
            f"{label} ({model.architecture})",
            str(model.num_layers),
            f"{model.num_parameters:,}",
            f"{model.num_rows:,}",
            f"{model.num_tokens:,}",
            *bits,
        )
    console.print(table)


def _facts(artifact: Artifact, manifest: Manifest) -> ModelFacts:
    from tasks.modeling.model_facts import model_facts

    with tempfile.TemporaryDirectory(prefix="medius-inspect-") as folder:
        return model_facts(artifact.fetch(manifest, Path(folder)))
