from __future__ import annotations

import pytest

from tests.e2e.micro_run import MicroRun, undisturbed_run


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> MicroRun:
    return undisturbed_run(tmp_path_factory.getbasetemp())
