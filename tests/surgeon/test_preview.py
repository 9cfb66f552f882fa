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
from tasks.modeling.tokenizer_files import load_tokenizer, save_tokenizer
from tasks.surgeon.plan import PARTS, plan_transplant
from tasks.surgeon.preview import preview
from tasks.surgeon.stage import TransplantRecipe

SPECIALS = {
    "<|begin_of_text|>": "<|endoftext|>",
    "<|eot_id|>": "<|im_end|>",
    "<|start_header_id|>": "<|im_start|>",
    "<|end_header_id|>": "\n",
}
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
    surgery.print_surgeries(build(load_profile("micro", (), store.uri)), store, console, tmp_path / "plans")
    shown = _shown(console)
    kept = json.loads((tmp_path / "plans" / "surgeon-llama.json").read_text())
    assert (kept["real_vocab_size"], kept["rows"]) == (1024, 1024)
    assert "has the row of the text '\\n'" in " ".join(shown.split())
    assert "surgeon-llama: 1,003 tokens become 1,024, in 1,024 rows (0 of padding)" in shown
    assert "<|eot_id|>" in shown
    assert "<|end_of_text|> ends an answer and has the row of <|begin_of_text|>" in " ".join(shown.split())
    assert "note:" not in shown, "the donor is the teacher"
    assert max(map(len, shown.splitlines())) <= 100
    assert not list(store.list("artifacts"))

    refused = load_profile("micro", (f"{SPECIAL_TOKENS}.<|eot_id|>=<|nobody|>",), store.uri)
    with pytest.raises(BadInputError, match=r"surgeon-llama: recipe.special_tokens maps .*<\|nobody\|>"):
        surgery.print_surgeries(build(refused), store, console, tmp_path / "plans")


def test_inspect_prints_what_the_artifact_has(
    tmp_path: Path, artifact_of: Callable[..., Artifact], make_student: Any, make_donor: Any, console: Console
) -> None:
    student, donor = load_tokenizer(make_student()), load_tokenizer(make_donor())
    recipe = TransplantRecipe(method="composed", special_tokens=SPECIALS)
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


def test_what_the_stage_will_refuse_of_a_donor_is_refused_by_its_config(
    tmp_path: Path, make_student: Any, make_donor: Any
) -> None:
    def said(student: Path, donor: Path, **more: Any) -> str:
        recipe = {"k": 8, "special_tokens": SPECIALS}
        return str(preview({"label": "x", "student": student, "donor": donor, "recipe": recipe, **more}).get("error"))

    tied, untied = make_donor(tied=True), make_donor()
    assert "donor's head is its embedding" in said(make_student(), tied)
    assert said(make_student(tied=True), tied) == said(make_student(), untied) == "None"
    # A student whose tokenizer is another's: what counts is whose weights it has.
    assert "donor's head is its embedding" in said(make_student(tied=True), tied, student_config=make_student())
    for weights in (*untied.glob("*.safetensors"), *make_student().glob("*.safetensors")):
        weights.unlink()
    config = json.loads((untied / "config.json").read_text())
    (untied / "config.json").write_text(json.dumps({**config, "vocab_size": 100}))
    assert "donor has 100 embedding rows" in said(make_student(), untied)
    (untied / "config.json").unlink()
    assert said(make_student(), untied) == "None", "a vocabulary without a model has no config to look at"


def test_a_donor_chats_as_the_teacher_does(tmp_path: Path, make_student: Any, make_donor: Any) -> None:
    donor, teacher = load_tokenizer(make_donor()), make_donor(tied=True)

    def answer(**changes: str | None) -> dict[str, Any]:
        for name, value in changes.items():
            setattr(donor, name, value)
        folder = tmp_path / "other-donor"
        save_tokenizer(donor, folder)
        recipe = {"method": "composed", "special_tokens": {**SPECIALS, "<|reserved|>": "<|endoftext|>"}}
        request = {"label": "x", "student": make_student(), "donor": folder, "recipe": recipe}
        return preview({**request, "teachers": {"model-teacher": teacher}})

    assert answer()["notes"] == []
    template = str(donor.chat_template)
    [note] = answer(chat_template=template + " ")["notes"]
    assert "is not that of the teacher model-teacher" in note
    assert "has no chat template and the teacher model-teacher has one" in answer(chat_template=None)["error"]
    ended = answer(chat_template=template, eos_token="<|reserved|>")["error"]
    assert "ends with <|reserved|> and the teacher model-teacher with <|eot_id|>" in ended


def test_the_teachers_are_those_whose_logits_the_student_learns(tmp_path: Path) -> None:
    donor = "branches.llama.donor=merge-base"
    steps = {step.label: step for step in build(load_profile("micro", (donor,), str(tmp_path)))}
    teachers = surgery._teachers(steps["surgeon-llama"], list(steps.values()))
    assert list(teachers) == ["model-llama-teacher"]
