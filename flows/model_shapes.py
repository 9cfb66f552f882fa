"""The shape of a model from the config.json that there is before the model: in its folder, or in configs/models/."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from flows.profiles import CONFIGS
from tasks.artifacts.errors import BadInputError
from tasks.models.stage import DirectorySource, GgufSource, MiniatureSource
from tasks.models.stage import HubSource as HubModel
from tasks.planning.architecture import Architecture, architecture
from tasks.runtime.declare import Step

SHAPES = CONFIGS / "models"


def shape_before(step: Step) -> Architecture:
    """Of the model that a step `models` fetches.

    Raises:
        BadInputError: there is no config.json where one is looked for, or it does not say the shape.
    """
    source: Any = step.config.recipe.source  # type: ignore[attr-defined]
    match source:
        case MiniatureSource() | DirectorySource():
            file = source.directory() / "config.json"
        case GgufSource():
            file = SHAPES / f"{source.package}.json"
        case HubModel():
            file = SHAPES / f"{source.repo.replace('/', '--')}.json"
        case _:
            raise BadInputError(f"{step.label} is a tokenizer and no model; name a model there")
    return _of_file(file, step.label)


def _of_file(file: Path, label: str) -> Architecture:
    if not file.is_file():
        raise BadInputError(f"the shape of {label} is not known; put its config.json at {file}")
    return shape_of(file.read_bytes(), str(file), label)


def shape_of(data: bytes, where: str, label: str) -> Architecture:
    """From the bytes of a config.json.

    Args:
        data: its content.
        where: the place of the file, for messages.
        label: of the stage that makes the model.

    Raises:
        BadInputError: it is no JSON object, or its architecture or a size is not known.
    """
    try:
        content: Any = json.loads(data)
    except ValueError as error:
        raise BadInputError(f"{where} is no JSON ({error}); put the config.json of {label} there") from error
    if not isinstance(content, dict):
        raise BadInputError(f"{where} holds no JSON object; put the config.json of {label} there")
    try:
        return architecture(content)
    except BadInputError as error:
        raise BadInputError(
            f"{where}, of {label}: {error}; correct the file, add an architecture whose layers have no other matrices "
            f"to GATED_TYPES in tasks/planning/flops.py, or plan without --cost"
        ) from error
