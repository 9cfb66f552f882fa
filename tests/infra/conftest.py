from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.infra.guarded_server import GuardedServer, guarded_server


@pytest.fixture(scope="session")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[GuardedServer]:
    """A Prefect server with a password: one for all tests, as it takes long to start."""
    with guarded_server(tmp_path_factory.mktemp("guarded")) as server:
        yield server
