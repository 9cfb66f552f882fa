"""Plans are shown before anything ran, from tokenizers alone, and again from a finished artifact."""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from flows import surgery
from flows.dag import build
from flows.profiles import load_profile
from tasks.artifacts.artifact import Artifact
from tasks.artifacts.errors import BadInputError
from tasks.artifacts.store import open_store
from tasks.modeling.tokenizer_files import load_tokenizer
from tasks.surgeon.plan import PARTS, plan_transplant
from tasks.surgeon.stage import TransplantRecipe

SPECIAL_TOKENS = "branches.llama.surgeon.recipe.special_tokens"


def _in_this_process(module: str, *files: Path) -> None:
    try:
        importlib.import_module(module).main(*files)
    except SystemExit as end:
        raise BadInputError(f"{module} ended with {end.code}") from None


@pytest.fixture
def console() -> Console:
    return Console(record=True, width=100, file=open("/dev/null", "w"))


def _shown(console: Console) -> str:
    return console.export_text()


def test_a_profile_is_planned_without_a_single_artifact(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, console: Console
) -> None:
    monkeypatch.setattr(surgery, "_run", _in_this_process)
    store = open_store(str(tmp_path / "store"))
    surgery.print_surgeries(build(load_profile("micro", (), store.uri)), store, console)
    shown = _shown(console)
    assert "surgeon-llama: 1,003 tokens become 1,024, in 1,024 rows (0 of padding)" in shown
    assert "<|eot_id|>" in shown
    assert max(map(len, shown.splitlines())) <= 100
    assert not list(store.list("artifacts"))

    refused = load_profile("micro", (f"{SPECIAL_TOKENS}.<|eot_id|>=<|nobody|>",), store.uri)
    with pytest.raises(BadInputError, match=r"surgeon-llama: recipe.special_tokens maps .*<\|nobody\|>"):
        surgery.print_surgeries(build(refused), store, console)


def test_inspect_prints_what_the_artifact_has(
    tmp_path: Path, artifact_of: Callable[..., Artifact], make_student: Any, make_donor: Any, console: Console
) -> None:
    student, donor = load_tokenizer(make_student()), load_tokenizer(make_donor())
    special_tokens = {
        "<|begin_of_text|>": "<|endoftext|>",
        "<|eot_id|>": "<|im_end|>",
        "<|start_header_id|>": "<|im_start|>",
        "<|end_header_id|>": "\n",
    }
    recipe = TransplantRecipe(method="composed", special_tokens=special_tokens)
    plan = plan_transplant(student, donor, recipe, rows=320)
    folder = tmp_path / "out"
    folder.mkdir()
    (folder / "surgery.json").write_text(json.dumps({"mode": "transplant", **plan.record()}))
    artifact = artifact_of(folder)
    manifest = artifact.manifest()
    assert manifest is not None
    surgery.print_record(artifact, manifest, console)
    shown = _shown(console)
    digits = plan.record()["examples"]["digits"][0]["token"]
    assert f"'{digits}' = {' + '.join(repr(digit) for digit in digits)}" in shown
    assert f"{sum(plan.counts[part]['total'] for part in PARTS)}" in shown
    assert r"'\n'" in shown
