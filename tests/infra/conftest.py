from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.infra.guarded_server import GuardedServer


@pytest.fixture(scope="session")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[GuardedServer]:
    """A Prefect server with a password: one for all tests, as it takes long to start."""
    server = GuardedServer(tmp_path_factory.mktemp("guarded"))
    try:
        server.start()
        yield server
    finally:
        server.stop()
