"""A hub that cannot be reached is asked again later, whoever reads from it; all else is said in a sentence."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import datasets
import pytest

from tasks.artifacts.errors import BadInputError, MediusError, TransientStoreError
from tasks.benchmarks.loading import harness_tasks
from tasks.corpus.documents import load_documents
from tasks.corpus.stage import HubSource
from tasks.evolve.sources import from_dataset
from tasks.evolve.stage import DatasetSource

COMMIT = "0123456789abcdef0123456789abcdef01234567"


def read_documents(_cache: Path) -> object:
    return list(load_documents(HubSource(dataset="lab/set", revision=COMMIT, limit=1, text_field="text"), None))


def read_rows(cache: Path) -> object:
    rows = {"origin": "hub", "dataset": "lab/set", "revision": COMMIT}
    return from_dataset(DatasetSource.model_validate({"kind": "dataset", "rows": rows}), cache)


def read_evaluation_set(_cache: Path) -> object:
    return harness_tasks("arc_easy")


@pytest.mark.parametrize("read", [read_documents, read_rows, read_evaluation_set])
@pytest.mark.parametrize(
    ("raised", "offline", "kind", "message"),
    [
        (ConnectionError("no route"), False, TransientStoreError, "cannot be reached for .* the network is up, or"),
        (ConnectionError("offline"), True, BadInputError, "HF_HUB_OFFLINE is set, .*; unset it, or"),
        (
            FileNotFoundError("no\nfile"),
            False,
            BadInputError,
            r"cannot be read as a data set \(FileNotFoundError: no f",
        ),
    ],
)
def test_every_reader_says_whether_to_try_again(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    read: Callable[[Path], object],
    raised: Exception,
    offline: bool,
    kind: type[MediusError],
    message: str,
) -> None:
    def fail(*_arguments: object, **_options: object) -> object:
        raise raised

    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", offline)
    monkeypatch.setattr(datasets, "load_dataset", fail)
    with pytest.raises(kind, match=message):
        read(tmp_path)
