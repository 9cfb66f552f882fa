"""A trained student comes back into its own vocabulary: what is bit by bit its own, what is trained, what is made."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tasks.artifacts.errors import BadInputError
from tasks.modeling.model_files import copy_tokenizer_files, load_causal_lm, save_causal_lm
from tasks.modeling.tokenizer_files import load_tokenizer, tokenizer_digest
from tasks.surgeon.reversion_rows import TokenMatch, check_match, match_tokens, reverted_matrix
from tasks.surgeon.stage import RevertRecipe
from tests.committed import metrics_of
from tests.surgeon.test_surgery import COMPOSED, EMBEDDING, HEAD, MAP, MakeModel, RunStage, fetched

STRATEGIES = ("original_rows", "shared_trained", "delta_transplant", "back_transplant")


def reversion(strategy: str, k: int = 8) -> dict[str, Any]:
    made_of_shared = strategy in ("delta_transplant", "back_transplant")
    return {"mode": "revert", "strategy": strategy, **({"k": k} if made_of_shared else {})}


def match_of_text(original_ids_S: torch.Tensor, foreign_ids_S: torch.Tensor, other_ids_N: torch.Tensor) -> TokenMatch:
    """Of text alone."""
    return TokenMatch(original_ids_S, foreign_ids_S, torch.ones_like(original_ids_S, dtype=torch.bool), other_ids_N)


@pytest.mark.parametrize(
    ("tied", "dtype", "strategies"),
    [
        (False, torch.float32, ("original_rows", "delta_transplant")),
        (True, torch.bfloat16, ("shared_trained", "back_transplant")),
    ],
)
def test_what_was_not_trained_comes_back_as_it_was(
    tmp_path: Path,
    run_stage: RunStage,
    make_student: MakeModel,
    make_donor: MakeModel,
    tied: bool,
    dtype: torch.dtype,
    strategies: tuple[str, ...],
) -> None:
    """Only a plain back-transplant makes rows anew that were never lost."""
    student, donor = make_student(tied=tied, dtype=dtype), make_donor(tied=tied, dtype=dtype)
    transplanted = run_stage("surgeon", COMPOSED, {"student": student, "donor": donor})
    others = match_tokens(load_tokenizer(student), load_tokenizer(donor), {}).other_ids_N.tolist()
    assert others
    for strategy in strategies:
        reverted = run_stage("surgeon", reversion(strategy), {"trained": transplanted, "original": student})
        back = fetched(reverted, tmp_path / strategy)
        for file in student.iterdir():
            if strategy != "back_transplant" or file.name != "model.safetensors":
                assert (back / file.name).read_bytes() == file.read_bytes(), (strategy, file.name)
        metrics = metrics_of(reverted)
        assert metrics["trunk_moved_relative"] == 0
        if strategy == "back_transplant":
            before, after = load_file(student / "model.safetensors"), load_file(back / "model.safetensors")
            for name, tensor in before.items():
                moved = (tensor != after[name]).any(dim=-1).nonzero()[:, 0].tolist() if tensor.ndim == 2 else []
                assert moved == (others if name in (EMBEDDING, HEAD) else []), name
            assert all(0.5 < cosine < 0.999 for cosine in metrics["reconstruction_cosine"].values())
        else:
            assert metrics["bits_per_byte_ratio"] == dict.fromkeys(metrics["bits_per_byte_ratio"], 1.0)
            assert metrics["rows_moved_relative"] == dict.fromkeys(metrics["rows_moved_relative"], 0.0)


def test_each_strategy_takes_its_rows(
    tmp_path: Path, run_stage: RunStage, make_student: MakeModel, make_donor: MakeModel
) -> None:
    student, donor = make_student(), make_donor()
    transplanted = fetched(
        run_stage("surgeon", COMPOSED, {"student": student, "donor": donor}), tmp_path / "transplanted"
    )
    model = load_causal_lm(transplanted, dtype=torch.float32)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.5)
    save_causal_lm(model, tmp_path / "trained")
    copy_tokenizer_files(transplanted, tmp_path / "trained")
    before = load_file(student / "model.safetensors")
    tokenizer = load_tokenizer(student)
    match = match_tokens(tokenizer, load_tokenizer(donor), {})
    shared, others = match.original_ids_S, match.other_ids_N
    # Neither the student's three special tokens nor its padding rows are the donor's.
    rest = sorted(set(range(320)) - {*shared.tolist(), *others.tolist()})
    assert rest == list(range(len(tokenizer) - 3, 320))
    for strategy in ("original_rows", "delta_transplant"):
        reverted = run_stage("surgeon", reversion(strategy), {"trained": tmp_path / "trained", "original": student})
        result = fetched(reverted, tmp_path / strategy)
        after = load_file(result / "model.safetensors")
        for name, tensor in before.items():
            if name not in (EMBEDDING, HEAD):
                assert torch.equal(after[name], tensor * 1.5), name
                continue
            assert torch.equal(after[name][rest], tensor[rest])
            assert torch.equal(after[name][shared], tensor[shared] * (1 if strategy == "original_rows" else 1.5))
            assert torch.equal(after[name][others], tensor[others]) is (strategy == "original_rows")
        assert tokenizer_digest(load_tokenizer(result)) == tokenizer_digest(tokenizer)
        metrics = metrics_of(reverted)
        assert metrics["trunk_moved_relative"] == pytest.approx(0.5, rel=1e-5)
        assert (metrics["shared_tokens"], metrics["other_tokens"]) == (len(shared), len(others))
        assert metrics["stops"]["prompts"] == 8


def test_a_mapped_special_token_stands_for_the_originals(make_student: MakeModel, make_donor: MakeModel) -> None:
    original, foreign = load_tokenizer(make_student()), load_tokenizer(make_donor())
    plain = match_tokens(original, foreign, {})
    # The later entry for <|im_end|> and the one to a token of text change nothing.
    mapped = match_tokens(original, foreign, {**MAP, "<|reserved|>": "<|im_end|>"})
    pairs = dict(zip(mapped.original_ids_S.tolist(), mapped.foreign_ids_S.tolist(), strict=True))
    added = {
        original.convert_ids_to_tokens(token): pairs[token] for token in pairs.keys() - {*plain.original_ids_S.tolist()}
    }
    expected = {"<|endoftext|>": "<|begin_of_text|>", "<|im_end|>": "<|eot_id|>", "<|im_start|>": "<|start_header_id|>"}
    assert added == {name: foreign.convert_tokens_to_ids(token) for name, token in expected.items()}
    assert torch.equal(mapped.other_ids_N, plain.other_ids_N)
    with pytest.raises(BadInputError, match="nobody"):
        match_tokens(original, foreign, {"<|nobody|>": "<|im_end|>"})


def test_a_row_takes_the_changes_of_the_rows_that_it_is_made_of() -> None:
    """Row 3 is 2 · row 0 - row 1; row 4 is special and row 5 padding. Shared are 0, 1, 2, in another order there."""
    anchors_AD = torch.eye(3, 4)
    original_RD = torch.stack([*anchors_AD, 2 * anchors_AD[0] - anchors_AD[1], torch.ones(4), torch.zeros(4)])
    changes_AD = torch.tensor([[1.0, 2, 3, 4], [10.0, 20, 30, 40], [100.0, 0, 0, 0]])
    trained_VD = torch.full((7, 4), 1e9)
    foreign_ids_A = torch.tensor([6, 2, 4])
    trained_VD[foreign_ids_A] = anchors_AD + changes_AD
    match = match_of_text(torch.arange(3), foreign_ids_A, torch.tensor([3]))
    expected = {
        "delta_transplant": original_RD[3] + 2 * changes_AD[0] - changes_AD[1],
        "back_transplant": 2 * (anchors_AD[0] + changes_AD[0]) - (anchors_AD[1] + changes_AD[1]),
        "shared_trained": original_RD[3],
    }
    for strategy, row_D in expected.items():
        recipe = RevertRecipe.model_validate(reversion(strategy, k=2))
        device = torch.device("cpu")
        result = reverted_matrix(recipe, match, original_RD, trained_VD, batch_size=None, device=device)
        torch.testing.assert_close(result.rows_RD[3], row_D)
        assert torch.equal(result.rows_RD[:3], anchors_AD + changes_AD)
        assert torch.equal(result.rows_RD[4:], original_RD[4:])
        assert result.reconstruction_cosine == (None if strategy == "shared_trained" else pytest.approx(1))


def test_without_training_no_bit_of_a_row_changes() -> None:
    """In bfloat16, with negative zeros, which a sum of 0 would make positive."""
    torch.manual_seed(0)
    original_RD = torch.randn(40, 8, dtype=torch.bfloat16)
    original_RD[35:, ::2] = -0.0
    match = match_of_text(torch.arange(30), torch.arange(29, -1, -1), torch.arange(30, 38))
    trained_VD = original_RD[:30].flip(0)
    device = torch.device("cpu")
    for strategy in STRATEGIES:
        recipe = RevertRecipe.model_validate(reversion(strategy))
        result = reverted_matrix(recipe, match, original_RD, trained_VD, batch_size=None, device=device)
        same = result.rows_RD.view(torch.int16) == original_RD.view(torch.int16)
        assert bool(same.all()) is (strategy != "back_transplant")
        assert same[[*range(30), 38, 39]].all()


def test_strategies_that_the_shared_tokens_do_not_allow_are_refused() -> None:
    few, none = (match_of_text(torch.arange(n), torch.arange(n), torch.tensor([9])) for n in (7, 0))
    for strategy in STRATEGIES:
        recipe = RevertRecipe.model_validate(reversion(strategy))
        if strategy == "original_rows":
            check_match(recipe, none)
            continue
        with pytest.raises(BadInputError, match="share no tokens"):
            check_match(recipe, none)
        if strategy == "shared_trained":
            check_match(recipe, few)
            continue
        with pytest.raises(BadInputError, match=r"share 7 tokens of text, and recipe\.k asks for 8"):
            check_match(recipe, few)
        # Special tokens are no anchors.
        eight = match_of_text(torch.arange(8), torch.arange(8), torch.tensor([9]))
        with pytest.raises(BadInputError, match=r"share 7 tokens of text, and recipe\.k asks for 8"):
            check_match(recipe, replace(eight, is_text_S=torch.arange(8) > 0))
