"""`medius inspect` of models: their vocabularies, and their bits per byte on four kinds of text beside each other."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from rich.console import Console
from rich.table import Table

from tasks.artifacts.artifact import Artifact
from tasks.artifacts.errors import BadInputError
from tasks.artifacts.manifest import Manifest

if TYPE_CHECKING:
    from transformers import PretrainedConfig


class ModelFacts(NamedTuple):
    """What a model is, and how well it predicts text."""

    architecture: str
    num_layers: int
    num_parameters: int
    """Tied matrices once."""
    num_rows: int
    num_tokens: int
    """Of the tokenizer; rows beyond them are padding."""
    bits: dict[str, float]
    """Bits per byte by kind of text."""


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
    import torch

    from tasks.modeling.bits_per_byte import bits_per_byte
    from tasks.modeling.model_files import load_causal_lm, resolve_device, stored_dtype, vocabulary_weights
    from tasks.modeling.tokenizer_files import load_tokenizer, real_vocab_size

    with tempfile.TemporaryDirectory(prefix="medius-inspect-") as folder:
        directory = artifact.fetch(manifest, Path(folder))
        tokenizer = load_tokenizer(directory)
        device = resolve_device("auto")
        # float32 on a CPU: some multiply bfloat16 45 times slower.
        dtype = stored_dtype(directory) if device.type == "cuda" else torch.float32
        model = load_causal_lm(directory, dtype=dtype, device=device)
        config: PretrainedConfig = model.config
        return ModelFacts(
            architecture=str(config.model_type),
            num_layers=config.num_hidden_layers,
            num_parameters=sum(parameter.numel() for parameter in model.parameters()),
            num_rows=vocabulary_weights(model)[0].shape[0],
            num_tokens=real_vocab_size(tokenizer),
            bits=bits_per_byte(model, tokenizer),
        )
