"""Loading of harness tasks in this process, each time as if by a new launch."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest


@pytest.fixture(autouse=True)
def _environment(own_environment: None) -> None:
    """As the workers of these tests are this process."""


@pytest.fixture
def launch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """launch() forgets what the library `datasets` has prepared, as a scratch folder of a new process has nothing."""
    import datasets.config

    number = iter(range(1000))

    def forget() -> None:
        monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / f"datasets-{next(number)}")

    forget()
    return forget
