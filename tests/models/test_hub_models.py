"""Hub models, read offline from a cache laid out as the hub's own client does."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from huggingface_hub import constants

from tasks.artifacts.errors import BadInputError
from tasks.models.stage import MINIATURES

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def snapshot(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The cached snapshot of lab/tiny, with files beside the model that must not be taken."""
    folder = tmp_path / "hub" / "models--lab--tiny" / "snapshots" / COMMIT
    shutil.copytree(MINIATURES / "qwen-base", folder)
    (folder / "modeling_tiny.py").write_text("raise SystemExit('was run')")
    (folder / "pytorch_model.bin").write_bytes(b"\x80")
    (folder / "LICENSE").write_text("terms")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    return folder


def source(**fields: str) -> dict[str, dict[str, str]]:
    return {"source": {"kind": "hub", "repo": "lab/tiny", "revision": COMMIT, **fields}}


def test_a_copy_has_weights_and_neither_pickles_nor_code(run_stage, snapshot: Path) -> None:
    manifest = run_stage("models", source(), {}).manifest()
    names = {entry.name for entry in manifest.objects}
    assert "model.safetensors" in names
    assert not names & {"modeling_tiny.py", "pytorch_model.bin", "reference.json"}


def test_a_reference_has_config_and_tokenizer_and_says_where_the_weights_are(
    run_stage, snapshot: Path, tmp_path: Path
) -> None:
    artifact = run_stage("models", source(mode="reference"), {})
    manifest = artifact.manifest()
    folder = artifact.fetch(manifest, tmp_path / "copy")
    assert {path.name for path in folder.iterdir()} == {
        "LICENSE",
        "chat_template.jinja",
        "config.json",
        "generation_config.json",
        "reference.json",
        "tokenizer.json",
        "tokenizer_config.json",
    }
    assert json.loads((folder / "reference.json").read_text()) == {"repo": "lab/tiny", "revision": COMMIT}
    assert manifest.metrics["parameters"] is None


def test_a_repository_without_generation_config_gets_one_from_its_config(
    run_stage, snapshot: Path, tmp_path: Path
) -> None:
    (snapshot / "generation_config.json").unlink()
    artifact = run_stage("models", source(), {})
    folder = artifact.fetch(artifact.manifest(), tmp_path / "copy")
    eos = json.loads((snapshot / "config.json").read_text())["eos_token_id"]
    assert json.loads((folder / "generation_config.json").read_text())["eos_token_id"] == eos


def test_a_repository_of_pickles_is_refused(run_stage, snapshot: Path) -> None:
    (snapshot / "model.safetensors").unlink()
    with pytest.raises(BadInputError, match=r"only pickles \(pytorch_model\.bin\)"):
        run_stage("models", source(), {})


def test_offline_and_not_in_the_cache_says_so(run_stage, snapshot: Path) -> None:
    with pytest.raises(BadInputError, match="lab/other at 0123456789ab is not in this machine's cache"):
        run_stage("models", source(repo="lab/other"), {})
