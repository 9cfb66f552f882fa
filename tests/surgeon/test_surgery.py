"""A student goes into a foreign vocabulary: which rows are whose, and that nothing else moved."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from tasks.artifacts.artifact import Artifact
from tasks.artifacts.errors import BadInputError
from tasks.modeling.model_files import copy_tokenizer_files, load_causal_lm
from tasks.modeling.tokenizer_files import assert_same_encoding, load_tokenizer
from tasks.surgeon import stored_rows
from tasks.surgeon.compose import composed
from tests.committed import metrics_of

RunStage = Callable[..., Artifact]
MakeModel = Callable[..., Path]

MAP = {
    "<|begin_of_text|>": "<|endoftext|>",
    "<|eot_id|>": "<|im_end|>",
    "<|start_header_id|>": "<|im_start|>",
    "<|end_header_id|>": "\n",
}
TRANSPLANT = {
    "mode": "transplant",
    "method": "omp_anchored",
    "k": 8,
    "pad_rows_to_multiple_of": 64,
    "special_tokens": MAP,
}
COMPOSED = {name: value for name, value in TRANSPLANT.items() if name != "k"} | {"method": "composed"}
EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"


def fetched(artifact: Artifact, target: Path) -> Path:
    manifest = artifact.manifest()
    assert manifest is not None
    return artifact.fetch(manifest, target)


def tensors_of(directory: Path) -> dict[str, torch.Tensor]:
    return load_file(directory / "model.safetensors")


def plan_of(directory: Path) -> dict[str, Any]:
    plan: dict[str, Any] = json.loads((directory / "transplant_plan.json").read_text())
    return plan


def _check_transplant(result: Path, student: Path, donor: Path, *, tied: bool) -> None:
    before, after = tensors_of(student), tensors_of(result)
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
    [(False, False, torch.float32), (True, False, torch.bfloat16), (True, True, torch.bfloat16)],
)
def test_a_transplant_is_a_model_with_the_donors_tokens(
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
    result = fetched(transplanted, tmp_path / "result")
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
        "transplant_plan.json",
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
    assert {token["donor"]: token["student"] for token in record["mapped"]} == MAP
    assert sum(record["counts"][part]["total"] for part in ("shared", "mapped", "approximated")) == len(theirs)
    assert record["counts"]["approximated"]["digits"] > 0
    metrics = metrics_of(transplanted)
    assert set(metrics["bits_per_byte_ratio"]) == {"prose", "code", "digits", "non_latin"}
    # Eight of some 200 random rows of width 24 cannot give another one exactly, nor miss it altogether.
    assert set(metrics["reconstruction_cosine"]) == ({"embedding"} if student_tied else {"embedding", "head"})
    assert all(0.8 < cosine < 0.999 for cosine in metrics["reconstruction_cosine"].values())


def test_two_transplants_have_equal_bytes(
    run_stage: RunStage, artifact_of: Callable[..., Artifact], make_student: MakeModel, make_donor: MakeModel
) -> None:
    """Each input committed anew: other keys and paths, so that a path in the result would show."""
    student, donor = make_student(), make_donor()
    made = [
        run_stage("surgeon", TRANSPLANT, {"student": artifact_of(student), "donor": donor}).manifest() for _ in range(2)
    ]
    assert made[0] is not None
    assert made[1] is not None
    assert made[0].key != made[1].key
    assert made[0].digest == made[1].digest


@pytest.mark.parametrize("tied", [False, True])
def test_a_tokenizer_alone_is_donor_enough_for_composed_rows(
    tmp_path: Path, run_stage: RunStage, make_student: MakeModel, make_donor: MakeModel, tied: bool
) -> None:
    student = make_student(tied=tied)
    copy_tokenizer_files(make_donor(), tmp_path / "tokenizer")
    recipe = {**COMPOSED, "composition": {"scale": 0.8, "embedding_decay": 0.25}}
    result = fetched(
        run_stage("surgeon", recipe, {"student": student, "donor": tmp_path / "tokenizer"}), tmp_path / "result"
    )
    _check_transplant(result, student, tmp_path / "tokenizer", tied=tied)
    plan = plan_of(result)
    assert not plan["approximated"]
    decays = {EMBEDDING: 0.7} if tied else {EMBEDDING: 0.25, HEAD: 1.0}
    for name, decay in decays.items():
        rows_RD = tensors_of(student)[name]
        expected_ND = composed([tuple(ids) for ids in plan["composed"].values()], scale=0.8, decay=decay).apply(rows_RD)
        assert torch.equal(tensors_of(result)[name][[int(token) for token in plan["composed"]]], expected_ND)
    config, theirs = json.loads((result / "config.json").read_text()), load_tokenizer(tmp_path / "tokenizer")
    assert (config["bos_token_id"], config["eos_token_id"], config["pad_token_id"]) == (
        theirs.bos_token_id,
        theirs.eos_token_id,
        theirs.eos_token_id,
    )


def test_anchored_rows_are_those_of_mergekit_when_every_shared_token_is_an_anchor(
    tmp_path: Path, run_stage: RunStage, make_student: MakeModel, make_donor: MakeModel
) -> None:
    """The approximated rows alone; digits are composed under either method."""
    student, donor = make_student(), make_donor()
    results = {}
    for method in ("omp", "omp_anchored"):
        recipe = {**TRANSPLANT, "method": method, "composed_kinds": ["digits"], "new_row_scale": 0.5}
        made = run_stage("surgeon", recipe, {"student": student, "donor": donor})
        results[method] = fetched(made, tmp_path / method)
    plans = [plan_of(directory) for directory in results.values()]
    assert plans[0] == plans[1]
    assert plans[0]["composed"]
    assert plans[0]["approximated"]
    for name in (EMBEDDING, HEAD):
        theirs_VD, ours_VD = (tensors_of(directory)[name] for directory in results.values())
        invented = plans[0]["approximated"]
        torch.testing.assert_close(ours_VD[invented], theirs_VD[invented], rtol=1e-3, atol=1e-5)
        others = sorted(set(range(320)) - set(invented))
        assert torch.equal(ours_VD[others], theirs_VD[others])


@pytest.mark.parametrize("method", ["common_interpolation", "mean"])
def test_mergekits_other_methods_fill_every_row(
    tmp_path: Path, run_stage: RunStage, make_student: MakeModel, make_donor: MakeModel, method: str
) -> None:
    donor = make_donor(dtype=torch.bfloat16)
    recipe = {**COMPOSED, "method": method, "rows": 384, **({} if method == "mean" else {"k": 8})}
    made = run_stage("surgeon", recipe, {"student": make_student(), "donor": donor})
    result = fetched(made, tmp_path / "result")
    embedding = tensors_of(result)[EMBEDDING]
    assert embedding.shape[0] == 384
    assert embedding[: len(load_tokenizer(donor))].any(dim=1).all()
    assert embedding.isfinite().all()


def _without(token: str) -> dict[str, str]:
    return {name: value for name, value in MAP.items() if name != token}


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"k": 1000}, r"share \d+ tokens of text, and recipe\.k asks for 1000"),
        ({"special_tokens": {**MAP, "<|nobody|>": "a"}}, "donor's tokenizer does not have"),
        ({"special_tokens": _without("<|eot_id|>")}, r'"<\|eot_id\|>": "<\|im_end\|>"'),
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


def test_donors_that_cannot_give_what_the_method_reads_are_refused(
    tmp_path: Path, run_stage: RunStage, make_student: MakeModel, make_donor: MakeModel
) -> None:
    student, tied, alone = make_student(), make_donor(tied=True), tmp_path / "tokenizer"
    copy_tokenizer_files(tied, alone)
    for method in ("omp_anchored", "omp", "common_interpolation"):
        recipe = {**TRANSPLANT, "method": method}
        with pytest.raises(BadInputError, match="donor's head is its embedding and the student has a head of its own"):
            run_stage("surgeon", recipe, {"student": student, "donor": tied})
        with pytest.raises(BadInputError, match=r"tokenizer without a model.*set recipe\.method to composed"):
            run_stage("surgeon", recipe, {"student": student, "donor": alone})
    with pytest.raises(BadInputError, match=r"no safetensors.*set recipe\.method to composed"):
        run_stage("surgeon", {**COMPOSED, "method": "mean"}, {"student": student, "donor": alone})
    short = make_donor()
    weights = {
        name: tensor[:100] if name in (EMBEDDING, HEAD) else tensor for name, tensor in tensors_of(short).items()
    }
    save_file({name: tensor.contiguous() for name, tensor in weights.items()}, short / "model.safetensors")
    with pytest.raises(BadInputError, match=r"donor has 100 embedding rows.*give a donor with its own tokenizer"):
        run_stage("surgeon", TRANSPLANT, {"student": student, "donor": short})


def test_rows_are_read_from_the_shard_that_has_them(
    tmp_path: Path, make_donor: MakeModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In any order, with repetitions, over the bounds of the portions."""
    monkeypatch.setattr(stored_rows, "_CHUNK_ROWS", 7)
    donor = make_donor()
    model = load_causal_lm(donor, dtype=torch.float32)
    model.save_pretrained(tmp_path / "sharded", max_shard_size="20KB")
    assert len(list((tmp_path / "sharded").glob("*.safetensors"))) > 1
    vocabulary = stored_rows.stored_vocabulary(tmp_path / "sharded")
    assert (vocabulary.names, vocabulary.tied) == ((EMBEDDING, HEAD), False)
    ids_N = torch.tensor([20, 6, 7, 13, 14, 6, 0, vocabulary.num_rows - 1])
    for matrix, name in enumerate((EMBEDDING, HEAD)):
        assert torch.equal(vocabulary.rows(matrix, ids_N), tensors_of(donor)[name][ids_N])


@pytest.mark.slow
def test_mergekit_and_lm_eval_read_the_donors_tokens(
    tmp_path: Path, run_stage: RunStage, make_student: MakeModel, make_donor: MakeModel
) -> None:
    """Slow for the import of lm_eval. Its runner and mergekit's merges load tokenizers with these two."""
    from lm_eval.models.huggingface import HFLM
    from mergekit.common import ModelPath
    from mergekit.tokenizer.build import get_stripped_tokenizer

    donor = make_donor()
    result = fetched(run_stage("surgeon", TRANSPLANT, {"student": make_student(), "donor": donor}), tmp_path / "result")
    harness = HFLM(pretrained=str(result), device="cpu")
    for tokenizer in (harness.tokenizer, get_stripped_tokenizer(ModelPath(path=str(result)))):
        assert_same_encoding(load_tokenizer(donor), tokenizer)
    assert harness.tok_encode("river 123") == load_tokenizer(donor).encode("river 123", add_special_tokens=False)
