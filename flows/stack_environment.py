"""What the processes of a stack see of the shell that started it, and what a shell needs to reach the stack.

s3-secret          the secret key of the S3 server; lives as long as its data
prefect-password   name:password of the dashboard, if it has one
environment        for a shell to source; holds both. All three have mode 0600
"""

from __future__ import annotations

import os
import secrets
import shlex
from collections.abc import Mapping
from pathlib import Path

from flows.addresses import STORE_VARIABLE, URL_VARIABLE
from flows.prefect_server import RUN_SETTINGS
from flows.stack_processes import MARK
from flows.stack_services import BUCKET, STORE, Ports
from tasks.artifacts.errors import BadInputError

PASSWORD_VARIABLE = "PREFECT_SERVER_API_AUTH_STRING"
OWN_SERVER_VARIABLE = "MEDIUS_STACK_SERVER"
"""The address of the stack's Prefect server, for what runs in the stack."""
_CLIENTS = ("AWS_", "PREFECT_", "FSSPEC_S3")
"""Settings that begin so lead to a Prefect or an S3 server, mostly to another than this stack's."""
_TAKEN_OVER = {
    "PREFECT_DEBUG_MODE",
    "PREFECT_LOGGING_LEVEL",
    "PREFECT_LOGGING_ROOT_LEVEL",
    "PREFECT_SERVER_LOGGING_LEVEL",
    "PREFECT_WORKER_QUERY_SECONDS",
}
"""Those that lead nowhere."""
_DIVERTING = (
    "AWS_DEFAULT_PROFILE", "AWS_ENDPOINT_URL_S3", "AWS_IGNORE_CONFIGURED_ENDPOINT_URLS", "AWS_PROFILE",
    "AWS_SECURITY_TOKEN", "AWS_SESSION_TOKEN", "AWS_USE_DUALSTACK_ENDPOINT", "AWS_USE_FIPS_ENDPOINT", "FSSPEC_S3",
    "FSSPEC_S3_ENDPOINT_URL", "FSSPEC_S3_KEY", "FSSPEC_S3_PROFILE", "FSSPEC_S3_SECRET", "FSSPEC_S3_TOKEN",
    "PREFECT_API_AUTH_STRING", "PREFECT_API_DATABASE_CONNECTION_URL", "PREFECT_API_KEY", "PREFECT_PROFILE",
    "PREFECT_SERVER_DATABASE_CONNECTION_URL",
)  # fmt: skip
"""What a shell may have of other servers and would take before the variables that lead here."""


def keep_password(folder: Path, *, running: bool) -> None:
    """Takes the dashboard's password from the environment, where it is named there; an empty one takes it away.

    Raises:
        BadInputError: the server runs, with another; or it is none that Prefect can work with.
    """
    given = os.environ.get(PASSWORD_VARIABLE)
    if given is None or (given or None) == password(folder):
        return
    if running:
        raise BadInputError(
            f'Prefect runs with another password than {PASSWORD_VARIABLE} has; "medius down" first, or leave it out: '
            f"the one that it has is remembered"
        )
    if given and not given.isascii():
        # The server fails at each comparison, with status 500.
        raise BadInputError(f"{PASSWORD_VARIABLE} has a letter that Prefect cannot compare; use ASCII only")
    file = folder / "prefect-password"
    if given:
        _write_private(file, given)
    else:
        file.unlink(missing_ok=True)


def password(folder: Path) -> str | None:
    """The dashboard's name:password, if it has one."""
    file = folder / "prefect-password"
    return file.read_text() if file.exists() else None


def client_environment(folder: Path, ports: Ports) -> dict[str, str]:
    """What a user's shell, a worker and a flow run need to reach both servers; also makes the file to source."""
    folder.mkdir(parents=True, exist_ok=True)
    secret = folder / "s3-secret"
    if not secret.exists():
        _write_private(secret, secrets.token_urlsafe(30))
    environment = {
        "PREFECT_API_URL": ports.api,
        "AWS_ENDPOINT_URL": ports.endpoint,
        "AWS_ACCESS_KEY_ID": BUCKET,
        "AWS_SECRET_ACCESS_KEY": secret.read_text(),
        "AWS_DEFAULT_REGION": "us-east-1",
        STORE_VARIABLE: STORE,
        URL_VARIABLE: ports.store_url,
    }
    if (authority := password(folder)) is not None:
        environment["PREFECT_API_AUTH_STRING"] = authority
    lines = [f"unset {name}\n" for name in _DIVERTING if name not in environment]
    lines += [f"export {name}={shlex.quote(value)}\n" for name, value in environment.items()]
    _write_private(folder / "environment", "".join(lines))
    return environment


def service_environment(client: Mapping[str, str], home: Path, token: str) -> dict[str, str]:
    """What all of a stack's processes get: of the shell's settings for Prefect and S3 only those that lead nowhere."""
    own = {name: value for name, value in os.environ.items() if name in _TAKEN_OVER or not name.startswith(_CLIENTS)}
    authority = client.get("PREFECT_API_AUTH_STRING")
    return {
        **own,
        **client,
        **({} if authority is None else {PASSWORD_VARIABLE: authority}),
        MARK: token,
        OWN_SERVER_VARIABLE: client["PREFECT_API_URL"],
        "PREFECT_HOME": str(home),
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        # Otherwise an error's notice on the dashboard is an advertisement, too.
        "PREFECT_SERVER_UI_SHOW_PROMOTIONAL_CONTENT": "false",
        **RUN_SETTINGS,
        "DO_NOT_TRACK": "1",
        "PYTHONUNBUFFERED": "1",
        # Otherwise the dashboard looks for the server at port 4200.
        "PREFECT_SERVER_UI_API_URL": client["PREFECT_API_URL"],
    }


def _write_private(file: Path, text: str) -> None:
    file.unlink(missing_ok=True)
    with os.fdopen(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as opened:
        opened.write(text)
