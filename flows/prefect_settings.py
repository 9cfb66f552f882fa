"""The Prefect server that Prefect's own settings name: its environment variables, or the active profile."""

from __future__ import annotations

from prefect.settings.context import get_current_settings
from pydantic import SecretStr

from flows.prefect_api import PrefectApi
from tasks.artifacts.errors import BadInputError


def configured_server() -> PrefectApi:
    """That server. Raises BadInputError where none is named."""
    settings = get_current_settings().api
    if settings.url is None:
        raise BadInputError("no Prefect server is named; set PREFECT_API_URL")
    return PrefectApi(str(settings.url), _revealed(settings.auth_string), _revealed(settings.key))


def _revealed(secret: SecretStr | None) -> str | None:
    return None if secret is None else secret.get_secret_value()
