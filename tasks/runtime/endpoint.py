"""What all clients of HTTP servers need: an address and quotes without secrets, the key from the environment, and which
statuses pass."""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import Annotated, TypeAlias
from urllib.parse import urlsplit

from pydantic import AfterValidator

from tasks.artifacts.errors import BadInputError
from tasks.artifacts.redact import is_secret_name

QUOTED_CHARS = 300
"""So much of what a server said stands in a message."""
_RETRIED = {408, 409, 429}


def _no_secret_in_url(url: str) -> str:
    parts = urlsplit(url)
    if parts.scheme not in {"http", "https"} or not parts.hostname:
        raise ValueError("base_url must be an http or https URL")
    if parts.username or parts.password or parts.query or parts.fragment:
        raise ValueError("base_url must hold no user, password or query: name the key's variable in api_key_env")
    return url


BaseUrl: TypeAlias = Annotated[str, AfterValidator(_no_secret_in_url)]
"""Up to and including the /v1 that most servers have. It is written into records, so it may hold no secret."""


def _named_as_a_secret(name: str) -> str:
    if not is_secret_name(name):
        raise ValueError(
            f"api_key_env is {name}, and logs keep the value of a variable of that name; call it …_KEY or …_TOKEN"
        )
    return name


KeyVariable: TypeAlias = Annotated[str, AfterValidator(_named_as_a_secret)]
"""The environment variable with an endpoint's key. Servers echo keys that they refuse, and of which values logs are
cleaned is known by the variables' names alone."""


def key_from_environment(name: str | None, field: str) -> str | None:
    """The key in the environment variable `name`, which `field` of the profile named; None where it names none.

    Raises:
        BadInputError: the variable is empty.
    """
    if name is None:
        return None
    key = os.environ.get(name, "").strip()
    if not key:
        raise BadInputError(
            f"the environment variable {name}, named in {field}, is empty; put the endpoint's key into it where the "
            f"stage runs"
        )
    return key


def is_retried(status: int) -> bool:
    """Whether a request that failed with this status may succeed later."""
    return status in _RETRIED or status >= 500


def quoted(text: str, secrets: Iterable[str | None]) -> str:
    """What a server said, for a message: on one line, without the secrets, then cut."""
    for secret in secrets:
        if secret:
            text = text.replace(secret, "[key]")
    return " ".join(text.split())[:QUOTED_CHARS]
