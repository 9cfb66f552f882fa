"""What all clients of HTTP servers need: an address without secrets, and the key from the environment."""

from __future__ import annotations

import os
from typing import Annotated, TypeAlias
from urllib.parse import urlsplit

from pydantic import AfterValidator

from tasks.artifacts.errors import BadInputError
from tasks.artifacts.redact import is_secret_name


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
