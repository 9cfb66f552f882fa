"""A Prefect server by its REST API: what is asked of it where Prefect itself is too slow or too early to import."""

from __future__ import annotations

import base64
import http.client
import json
import time
import urllib.error
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tasks.artifacts.errors import MediusError

_SECONDS = 60
_BUSY = {429, 502, 503}
"""A server whose database is locked by another request says 503."""
_PAUSES = (0.5, 1.0, 2.0, 4.0)
"""Seconds before each further try."""
_PAGE = 200
"""As many as a server gives at once unless it is told otherwise."""


@dataclass(frozen=True)
class PrefectApi:
    """One server."""

    url: str
    """Ends with /api."""
    password: str | None = None
    """name:password, of a server that wants that."""
    key: str | None = None
    """Of Prefect Cloud."""

    @classmethod
    def of(cls, environment: Mapping[str, str]) -> PrefectApi:
        """The server that PREFECT_API_URL names."""
        return cls(
            environment["PREFECT_API_URL"],
            environment.get("PREFECT_API_AUTH_STRING"),
            environment.get("PREFECT_API_KEY"),
        )

    def post(self, path: str, body: dict[str, Any] | list[dict[str, Any]]) -> Any:
        """What the server answers, None where that is empty. Raises MediusError where it does not, or refuses."""
        headers = {"Content-Type": "application/json"}
        if self.password is not None:
            headers["Authorization"] = f"Basic {base64.b64encode(self.password.encode()).decode()}"
        elif self.key is not None:
            headers["Authorization"] = f"Bearer {self.key}"
        request = urllib.request.Request(f"{self.url}{path}", json.dumps(body).encode(), headers)
        for pause in (*_PAUSES, None):
            try:
                with urllib.request.urlopen(request, timeout=_SECONDS) as answer:
                    text = answer.read()
                    return json.loads(text) if text else None
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
