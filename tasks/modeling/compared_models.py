"""The names that a comparison gives its models. No torch."""

from __future__ import annotations

import re
from collections.abc import Iterable

from tasks.artifacts.errors import BadInputError

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


def check_models(stage: str, fields: str, named: Iterable[str], models: Iterable[str]) -> None:
    """Whether all models that the recipe names are there, and all can be file names.

    Args:
        stage: for the error, as `fields`, which names those of the recipe that `named` comes from.
        models: of the inputs model.<name>.

    Raises:
        BadInputError: one is not.
    """
    known = sorted(models)
    for name in named:
        if name not in known:
            raise BadInputError(
                f"{stage}.recipe compares with {name!r}, which is not among its models {', '.join(known)}; "
                f'add the input "model.{name}" or change {fields}'
            )
    check_names(known)


def check_names(names: Iterable[str]) -> None:
    """Whether all can be file names. Raises BadInputError."""
    for name in names:
        if not _NAME.fullmatch(name):
            raise BadInputError(f"the model name {name!r} becomes a file name; use letters, digits and . _ -")
