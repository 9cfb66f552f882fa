"""What the hub's library raises becomes a sentence, and says whether a later try may succeed."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from huggingface_hub import constants
from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError, RepositoryNotFoundError
from huggingface_hub.utils import filter_repo_objects

from tasks.artifacts.errors import BadInputError, MediusError, TransientStoreError
from tasks.modeling.hub import hub_snapshot
from tasks.modeling.model_files import load_causal_lm, weights_directory
from tasks.surgeon.stored_rows import stored_vocabulary

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class _Response:
    """As much of an answer as the library's errors read."""

    request = None

    def __init__(self, status: int) -> None:
        self.status_code, self.headers = status, dict[str, str]()


def _answered(status: int, kind: type[HfHubHTTPError] = HfHubHTTPError) -> HfHubHTTPError:
    return kind("the hub's own words", response=_Response(status))  # type: ignore[arg-type]


def _not_cached(cause: Exception) -> Exception:
    """What the library raises after it failed to ask for the list of files."""
    error = LocalEntryNotFoundError("not in the cache")
    error.__cause__ = cause
    return error


@pytest.mark.parametrize(
    ("raised", "kind", "message"),
    [
        (_answered(429), TransientStoreError, "answered 429 for lab/tiny at 0123456789ab; try again later"),
        (_not_cached(_answered(503)), TransientStoreError, "answered 503"),
        (_not_cached(_answered(403)), BadInputError, "answered 403.*HF_TOKEN"),
        (_answered(404, RepositoryNotFoundError), BadInputError, "answered 404.*check the name"),
        (_not_cached(OSError("no route")), TransientStoreError, "cannot be reached.*when the network is up"),
        (ConnectionResetError("in the middle of a file"), TransientStoreError, "cannot be reached"),
    ],
)
def test_every_failure_is_a_sentence(
    monkeypatch: pytest.MonkeyPatch, raised: Exception, kind: type[MediusError], message: str
) -> None:
    def fail(*_arguments: object, **_options: object) -> str:
        raise raised

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.snapshot_download", fail)
    with pytest.raises(kind, match=message):
        hub_snapshot("lab/tiny", COMMIT, ["*.json"])


def test_weights_that_nothing_loads_are_not_fetched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = ["config.json", "consolidated.safetensors", "model-00001-of-00002.safetensors", "tokenizer.json",
             "original/params.json", "original/consolidated.00.pth"]  # fmt: skip
    asked: list[str] = []

    def stop(_repo: str, *, allow_patterns: list[str], ignore_patterns: list[str], **_options: object) -> str:
        # The library's own choice among the files of a repository.
        asked.extend(filter_repo_objects(files, allow_patterns=allow_patterns, ignore_patterns=ignore_patterns))
        raise ConnectionResetError("before the first file")

    monkeypatch.setattr("huggingface_hub.snapshot_download", stop)
    (tmp_path / "reference.json").write_text(json.dumps({"repo": "lab/mistral", "revision": COMMIT}))
    with pytest.raises(TransientStoreError):
        weights_directory(tmp_path)
    assert asked == ["config.json", "model-00001-of-00002.safetensors", "tokenizer.json"]


@pytest.mark.parametrize(
    "use", [lambda folder: load_causal_lm(folder, dtype=torch.float32), stored_vocabulary], ids=["weights", "rows"]
)
def test_weights_on_the_hub_are_asked_for_in_the_same_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, use: Callable[[Path], object]
) -> None:
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    (tmp_path / "reference.json").write_text(json.dumps({"repo": "lab/tiny", "revision": COMMIT}))
    with pytest.raises(BadInputError, match="lab/tiny at 0123456789ab is not in this machine's cache"):
        use(tmp_path)
