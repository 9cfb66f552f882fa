"""Which trained row stands for a special token of the original, and that no row of text is made of a special one's."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import torch
from safetensors.torch import save_file

from tasks.modeling.tokenizer_files import load_tokenizer, save_tokenizer
from tasks.surgeon.reversion_rows import match_tokens, reverted_matrix
from tasks.surgeon.stage import RevertRecipe
from tests.surgeon.test_reversion import match_of_text, reversion
from tests.surgeon.test_surgery import EMBEDDING, HEAD, TRANSPLANT, MakeModel, RunStage, fetched, plan_of, tensors_of


def test_a_token_of_the_same_name_stands_before_one_that_the_map_gave_its_rows(
    make_student: MakeModel, make_donor: MakeModel
) -> None:
    """A donor whose begin of text has to be mapped, and that has the student's token for it too."""
    original, foreign = load_tokenizer(make_student()), load_tokenizer(make_donor())
    foreign.add_tokens(["<|endoftext|>"], special_tokens=True)
    match = match_tokens(original, foreign, {"<|begin_of_text|>": "<|endoftext|>"})
    pairs = dict(zip(match.original_ids_S.tolist(), match.foreign_ids_S.tolist(), strict=True))
    end_of_text = original.convert_tokens_to_ids("<|endoftext|>")
    assert pairs[end_of_text] == foreign.convert_tokens_to_ids("<|endoftext|>")
    # Unless the map gives it elsewhere.
    elsewhere = {"<|begin_of_text|>": "<|endoftext|>", "<|endoftext|>": "<|im_end|>"}
    match = match_tokens(original, foreign, elsewhere)
    pairs = dict(zip(match.original_ids_S.tolist(), match.foreign_ids_S.tolist(), strict=True))
    assert pairs[end_of_text] == foreign.convert_tokens_to_ids("<|begin_of_text|>")


def test_the_order_of_the_map_means_nothing(make_student: MakeModel, make_donor: MakeModel) -> None:
    """It is in no key: of several the one of the same duty stands, then the one of the lowest id."""
    original, foreign = load_tokenizer(make_student()), load_tokenizer(make_donor())
    foreign.add_tokens(["<|eom_id|>", "<|end_of_text|>"], special_tokens=True)
    special_tokens = {
        "<|reserved|>": "<|im_end|>",
        "<|eom_id|>": "<|im_end|>",
        "<|eot_id|>": "<|im_end|>",
        "<|begin_of_text|>": "<|endoftext|>",
        "<|end_of_text|>": "<|endoftext|>",
        "<|end_header_id|>": "<|im_start|>",
        "<|start_header_id|>": "<|im_start|>",
    }
    one = match_tokens(original, foreign, special_tokens)
    other = match_tokens(original, foreign, dict(reversed(special_tokens.items())))
    assert torch.equal(one.foreign_ids_S, other.foreign_ids_S)
    pairs = dict(zip(one.original_ids_S.tolist(), one.foreign_ids_S.tolist(), strict=True))
    expected = {"<|im_end|>": "<|eot_id|>", "<|endoftext|>": "<|end_of_text|>", "<|im_start|>": "<|start_header_id|>"}
    for name, foreign_name in expected.items():
        token = original.convert_tokens_to_ids(name)
        assert pairs[token] == foreign.convert_tokens_to_ids(foreign_name)
        assert not one.is_text_S[one.original_ids_S == token].any()


def test_a_reverted_row_takes_nothing_of_a_special_tokens() -> None:
    """Row 0 is special, has by far the largest inner product with the target, and moved most."""
    original_RD = torch.cat([torch.full((1, 4), 100.0), torch.eye(4), torch.tensor([[1.0, 1, 0, 0]])])
    trained_VD = original_RD + 0.5
    trained_VD[0] = 1e6
    match = replace(match_of_text(torch.arange(5), torch.arange(5), torch.tensor([5])), is_text_S=torch.arange(5) > 0)
    for strategy, expected_D in (("delta_transplant", [2.0, 2, 1, 1]), ("back_transplant", [2.0, 2, 1, 1])):
        recipe = RevertRecipe.model_validate(reversion(strategy, k=2))
        device = torch.device("cpu")
        result = reverted_matrix(recipe, match, original_RD, trained_VD, batch_size=None, device=device)
        torch.testing.assert_close(result.rows_RD[5], torch.tensor(expected_D))


def test_a_transplanted_row_is_made_of_no_special_tokens(
    tmp_path: Path, run_stage: RunStage, make_student: MakeModel, make_donor: MakeModel
) -> None:
    """SmolLM2 has its special tokens first, among the ids that count as most used."""
    donor = make_donor()
    student = make_student()
    for directory in (student, donor):
        tokenizer = load_tokenizer(directory)
        tokenizer.add_tokens(["<|both|>"], special_tokens=True)
        save_tokenizer(tokenizer, directory)
        weights = tensors_of(directory)
        if directory == donor:
            weights = {
                name: torch.cat([rows, rows[:1]]) if name in (EMBEDDING, HEAD) else rows
                for name, rows in weights.items()
            }
            config = json.loads((donor / "config.json").read_text())
            (donor / "config.json").write_text(json.dumps({**config, "vocab_size": len(tokenizer)}))
        for name in (EMBEDDING, HEAD):
            # In the donor the largest inner products are with this row, whatever the target.
            weights[name][tokenizer.convert_tokens_to_ids("<|both|>")] = 1e3
        save_file(weights, directory / "model.safetensors", metadata={"format": "pt"})
    result = fetched(run_stage("surgeon", TRANSPLANT, {"student": student, "donor": donor}), tmp_path / "result")
    both = load_tokenizer(donor).convert_tokens_to_ids("<|both|>")
    plan = plan_of(result)
    assert both in plan["shared"][0]
    assert plan["approximated"]
    for name in (EMBEDDING, HEAD):
        rows = tensors_of(result)[name]
        assert rows[both].min() == 1e3
        assert rows[plan["approximated"]].abs().max() < 100
