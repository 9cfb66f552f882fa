"""A student goes into a foreign vocabulary and comes back: which rows are whose, and that nothing else moved."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from tasks.artifacts.artifact import Artifact
from tasks.artifacts.errors import BadInputError
from tasks.modeling.model_files import copy_tokenizer_files, load_causal_lm, save_causal_lm
from tasks.modeling.tokenizer_files import assert_same_encoding, load_tokenizer, tokenizer_digest

RunStage = Callable[..., Artifact]
MakeModel = Callable[..., Path]

MAP = {
    "<|begin_of_text|>": "<|endoftext|>",
    "<|eot_id|>": "<|im_end|>",
    "<|start_header_id|>": "<|im_start|>",
    "<|end_header_id|>": "\n",
}
TRANSPLANT = {"mode": "transplant", "k": 8, "pad_rows_to_multiple_of": 64, "special_tokens": MAP}
EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"


def _files(artifact: Artifact, target: Path) -> Path:
    manifest = artifact.manifest()
    assert manifest is not None
    return artifact.fetch(manifest, target)


def _metrics(artifact: Artifact) -> dict[str, Any]:
    manifest = artifact.manifest()
    assert manifest is not None
    return manifest.metrics


def _digest(artifact: Artifact) -> str:
    manifest = artifact.manifest()
    assert manifest is not None
    return manifest.digest


def _check_transplant(result: Path, student: Path, donor: Path, *, tied: bool) -> None:
    before, after = load_file(student / "model.safetensors"), load_file(result / "model.safetensors")
    theirs, ours = load_tokenizer(donor), load_tokenizer(student)
    student_ids, donor_ids = ours.get_vocab(), theirs.get_vocab()
    names = [EMBEDDING] if tied else [EMBEDDING, HEAD]
    assert (HEAD in after) is not tied
    for name in names:
        assert after[name].shape == (320, 16)
        assert not after[name][len(theirs) :].any(), "padding rows are zero"
        for token in donor_ids.keys() & student_ids.keys():
            assert torch.equal(after[name][donor_ids[token]], before[name][student_ids[token]]), token
        for token in donor_ids.keys() - student_ids.keys():
            assert after[name][donor_ids[token]].any(), f"the row of {token} was left empty"
        for token, mapped in MAP.items():
            student_id = ours.encode(mapped, add_special_tokens=False)[0]
            assert torch.equal(after[name][donor_ids[token]], before[name][student_id]), token
    for name in before.keys() - set(names):
        assert torch.equal(before[name], after[name]), f"{name} is trunk and moved"


@pytest.mark.parametrize(
    ("student_tied", "donor_tied", "dtype"),
    [(False, False, torch.float32), (True, False, torch.bfloat16), (False, True, torch.bfloat16)],
)
def test_transplant_and_back(
    tmp_path: Path,
    run_stage: RunStage,
    make_student: MakeModel,
    make_donor: MakeModel,
    student_tied: bool,
    donor_tied: bool,
    dtype: torch.dtype,
) -> None:
    student, donor = make_student(tied=student_tied, dtype=dtype), make_donor(tied=donor_tied, dtype=dtype)
    transplanted = run_stage("surgeon", TRANSPLANT, {"student": student, "donor": donor})
    result = _files(transplanted, tmp_path / "result")
    _check_transplant(result, student, donor, tied=student_tied)

    theirs = load_tokenizer(donor)
    assert sorted(path.name for path in result.iterdir()) == [
        "chat_template.jinja",
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "surgery.json",
        "tokenizer.json",
        "tokenizer_config.json",
    ]
    config, generation = (json.loads((result / f"{name}config.json").read_text()) for name in ("", "generation_"))
    assert config["model_type"] == "qwen2"
    assert config["vocab_size"] == 320
    for written in (config, generation):
        assert written["bos_token_id"] == theirs.bos_token_id
        assert written["eos_token_id"] == written["pad_token_id"] == theirs.eos_token_id
    reloaded: tuple[Any, ...] = (AutoTokenizer.from_pretrained(result), PreTrainedTokenizerFast.from_pretrained(result))
    for tokenizer in reloaded:
        assert_same_encoding(theirs, tokenizer)
        assert tokenizer.chat_template == theirs.chat_template

    record = json.loads((result / "surgery.json").read_text())
    assert record["rows"] - record["padding_rows"] == record["real_vocab_size"] == len(theirs)
    assert record["unmapped_specials"] == ["<|reserved|>"]
    assert {token["donor"]: token["student"] for token in record["mapped"]} == MAP
    assert record["counts"]["donor_only"]["digits"] > 0
    assert record["counts"]["shared"]["total"] + record["counts"]["donor_only"]["total"] == len(theirs)
    assert set(_metrics(transplanted)["bits_per_byte_ratio"]) == {"prose", "code", "digits", "non_latin"}

    reverted = run_stage("surgeon", {"mode": "revert"}, {"trained": transplanted, "original": student})
    back = _files(reverted, tmp_path / "back")
    for file in student.iterdir():
        assert (back / file.name).read_bytes() == file.read_bytes(), file.name
    metrics = _metrics(reverted)
    assert metrics["trunk_moved_relative"] == 0
    assert metrics["bits_per_byte_ratio"] == dict.fromkeys(metrics["bits_per_byte_ratio"], 1.0)


def test_two_transplants_have_equal_bytes(
    tmp_path: Path,
    run_stage: RunStage,
    artifact_of: Callable[..., Artifact],
    make_student: MakeModel,
    make_donor: MakeModel,
) -> None:
    """Each input committed anew: other keys and paths, so that a path in the result would show."""
    student, donor = make_student(), make_donor()
    first = run_stage("surgeon", TRANSPLANT, {"student": artifact_of(student), "donor": donor})
    second = run_stage("surgeon", TRANSPLANT, {"student": artifact_of(student), "donor": donor})
    assert first.directory != second.directory
    assert _digest(first) == _digest(second)


def test_reversion_keeps_what_was_trained(
    tmp_path: Path, run_stage: RunStage, make_student: MakeModel, make_donor: MakeModel
) -> None:
    student, donor = make_student(), make_donor()
    transplanted = _files(
        run_stage("surgeon", TRANSPLANT, {"student": student, "donor": donor}), tmp_path / "transplanted"
    )
    trained = load_causal_lm(transplanted, dtype=torch.float32)
    with torch.no_grad():
        for parameter in trained.parameters():
            parameter.mul_(1.5)
    save_causal_lm(trained, tmp_path / "trained")
    copy_tokenizer_files(transplanted, tmp_path / "trained")
    reverted = run_stage("surgeon", {"mode": "revert"}, {"trained": tmp_path / "trained", "original": student})
    back = load_file(_files(reverted, tmp_path / "back") / "model.safetensors")
    for name, tensor in load_file(student / "model.safetensors").items():
        assert torch.equal(back[name], tensor if name in (EMBEDDING, HEAD) else tensor * 1.5), name
    assert _metrics(reverted)["trunk_moved_relative"] == pytest.approx(0.5, rel=1e-5)
    assert tokenizer_digest(load_tokenizer(tmp_path / "back")) == tokenizer_digest(load_tokenizer(student))


@pytest.mark.parametrize(
    "fields",
    [
        {"method": "common_interpolation"},
        {"method": "mean"},
        {"method": "omp", "new_row_scale": 0.5, "rows": 384},
    ],
)
def test_other_methods_fill_every_row(
    tmp_path: Path, run_stage: RunStage, make_student: MakeModel, make_donor: MakeModel, fields: dict[str, Any]
) -> None:
    donor = make_donor(dtype=torch.bfloat16)
    result = _files(
        run_stage("surgeon", {**TRANSPLANT, **fields}, {"student": make_student(), "donor": donor}), tmp_path / "result"
    )
    embedding = load_file(result / "model.safetensors")[EMBEDDING]
    assert embedding.shape[0] == fields.get("rows", 320)
    assert embedding[: len(load_tokenizer(donor))].any(dim=1).all()
    assert embedding.isfinite().all()


def _without(token: str) -> dict[str, str]:
    return {name: value for name, value in MAP.items() if name != token}


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"k": 1000}, r"share \d+ tokens, and recipe\.k asks for 1000"),
        ({"special_tokens": {**MAP, "<|nobody|>": "a"}}, "donor's tokenizer does not have"),
        ({"special_tokens": {**MAP, "<|eot_id|>": "<|nobody|>"}}, "neither a token of the student nor a text"),
        ({"special_tokens": _without("<|eot_id|>")}, r'consider \{"<\|eot_id\|>": "<\|im_end\|>"\}'),
        ({"special_tokens": _without("<|start_header_id|>")}, r'"<\|start_header_id\|>": "<\|im_start\|>"'),
        ({"rows": 256}, r"recipe\.rows is 256"),
        ({"method": "common_interpolation", "weight_scheme": "distance_proportional"}, "least_squares"),
    ],
)
def test_impossible_transplants_are_refused_before_any_work(
    run_stage: RunStage, make_student: MakeModel, make_donor: MakeModel, fields: dict[str, Any], message: str
) -> None:
    inputs = {"student": make_student(), "donor": make_donor(dtype=torch.bfloat16)}
    with pytest.raises(BadInputError, match=message):
        run_stage("surgeon", {**TRANSPLANT, **fields}, inputs)


def test_reversion_to_another_architecture_is_refused(
    run_stage: RunStage, make_student: MakeModel, make_donor: MakeModel
) -> None:
    with pytest.raises(BadInputError, match="give the model that the trained one was transplanted from"):
        run_stage("surgeon", {"mode": "revert"}, {"trained": make_donor(), "original": make_student()})
