"""The Prefect server that Prefect's own settings name: its environment variables, the active profile, its files."""

from __future__ import annotations

from prefect.settings.context import get_current_settings
from pydantic import SecretStr

from flows.prefect_api import PrefectApi
from tasks.artifacts.errors import BadInputError


def configured_server() -> PrefectApi:
    """That server. Raises BadInputError where none is named."""
    server = find_server()
    if server is None:
        raise BadInputError(
            'no Prefect server is named; set PREFECT_API_URL, or after "medius up": source .medius/up/environment'
        )
    return server


def find_server() -> PrefectApi | None:
    """That server; None where none is named."""
    settings = get_current_settings()
    api = settings.api
    if api.url is None:
        return None
    return PrefectApi(
        str(api.url),
        _revealed(api.auth_string),
        _revealed(api.key),
        headers=settings.client.custom_headers,
        certificates=api.ssl_cert_file,
        insecure=api.tls_insecure_skip_verify,
    )


def _revealed(secret: SecretStr | None) -> str | None:
    return None if secret is None else secret.get_secret_value()
