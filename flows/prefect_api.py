"""A Prefect server by its REST API: what is asked of it where Prefect itself is too slow or too early to import."""

from __future__ import annotations

import base64
import http.client
import json
import ssl
import time
import urllib.error
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any

from tasks.artifacts.errors import MediusError

_SECONDS = 60
_BUSY = {429, 502, 503}
"""A server whose database is locked by another request says 503."""
_PAUSES = (0.5, 1.0, 2.0, 4.0)
"""Seconds before each further try."""
_TRUE = {"1", "true", "t", "yes", "y", "on"}
"""As pydantic reads a variable."""
_PAGE = 200
"""As many as a server gives at once unless it is told otherwise."""


@dataclass(frozen=True)
class PrefectApi:
    """One server."""

    url: str
    """Ends with /api; a slash after that is left out."""
    password: str | None = None
    """name:password, of a server that wants that."""
    key: str | None = None
    """Of Prefect Cloud."""
    headers: Mapping[str, str] = field(default_factory=dict)
    """Further ones, such as a proxy before the server wants."""
    certificates: str | None = None
    """A file with the authorities to trust; otherwise those of certifi, as for Prefect."""
    insecure: bool = False
    """Whether any certificate will do."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "url", self.url.rstrip("/"))

    @classmethod
    def of(cls, environment: Mapping[str, str]) -> PrefectApi:
        """The server that PREFECT_API_URL names, by the environment alone.

        For a process of its own environment's making, such as one of `medius up`, and where half a second for reading
        Prefect's settings is too long: `flows.prefect_settings` knows profiles and files, too.
        """
        return cls(
            environment["PREFECT_API_URL"],
            environment.get("PREFECT_API_AUTH_STRING"),
            environment.get("PREFECT_API_KEY"),
            headers=json.loads(environment.get("PREFECT_CLIENT_CUSTOM_HEADERS") or "{}"),
            certificates=environment.get("PREFECT_API_SSL_CERT_FILE") or environment.get("SSL_CERT_FILE"),
            insecure=environment.get("PREFECT_API_TLS_INSECURE_SKIP_VERIFY", "").lower() in _TRUE,
        )

    def post(self, path: str, body: dict[str, Any] | list[dict[str, Any]]) -> Any:
        """What the server answers, None where that is empty. Raises MediusError where it does not, or refuses."""
        return self._answer(path, body)[0]

    def now(self) -> datetime:
        """The server's time, to the second: clocks of hosts may be wrong by minutes. Raises MediusError as `post`."""
        date = self._answer("/flow_runs/count", {})[1]
        # A gate on the way may have taken it out.
        return datetime.now(UTC) if date is None else parsedate_to_datetime(date)

    def _answer(self, path: str, body: dict[str, Any] | list[dict[str, Any]]) -> tuple[Any, str | None]:
        """The answer and its date."""
        # Gates on the way may turn away the name that urllib gives itself.
        headers = {"Content-Type": "application/json", "User-Agent": "medius"}
        if self.password is not None:
            headers["Authorization"] = f"Basic {base64.b64encode(self.password.encode()).decode()}"
        elif self.key is not None:
            headers["Authorization"] = f"Bearer {self.key}"
        request = urllib.request.Request(f"{self.url}{path}", json.dumps(body).encode(), {**headers, **self.headers})
        for pause in (*_PAUSES, None):
            try:
                with urllib.request.urlopen(request, timeout=_SECONDS, context=self._trust()) as answer:
                    text = answer.read()
                    return json.loads(text) if text else None, answer.headers["Date"]
            except urllib.error.HTTPError as error:
                if error.code not in _BUSY or pause is None:
                    if error.code in {401, 403}:
                        raise MediusError(
                            f"the Prefect server at {self.url} refuses the password or key; set "
                            f"PREFECT_API_AUTH_STRING=name:password, or for Prefect Cloud PREFECT_API_KEY"
                        ) from error
                    raise MediusError(
                        f"the Prefect server at {self.url} answers {error.code} {error.reason}; see its log"
                    ) from error
                time.sleep(pause)
            except (OSError, http.client.HTTPException, ValueError) as error:
                raise MediusError(f"the Prefect server at {self.url} does not answer ({error}); see its log") from error
        raise AssertionError("the last try returned or raised")

    def _trust(self) -> ssl.SSLContext | None:
        """Whose certificates are taken; None where the server has none."""
        if not self.url.startswith("https:"):
            return None
        import certifi

        context = ssl.create_default_context(cafile=self.certificates or certifi.where())
        if self.insecure:
            context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        return context

    def require(self) -> None:
        """Raises MediusError where the server does not answer, or does not take the password or key."""
        self.post("/flow_runs/count", {})

    def everything(self, path: str, body: dict[str, Any]) -> list[dict[str, Any]]:
        """All that a filter finds, page by page; what comes or goes meanwhile may be left out."""
        found: dict[str, dict[str, Any]] = {}
        for offset in range(0, 1_000_000, _PAGE):
            page = self.post(path, {**body, "limit": _PAGE, "offset": offset})
            found |= {entry["id"]: entry for entry in page}
            if len(page) < _PAGE:
                break
        return list(found.values())
