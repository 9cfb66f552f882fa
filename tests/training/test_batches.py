"""Exactly the right positions are judged, and documents of one row do not know of each other."""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import (
    BloomConfig,
    BloomForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MambaConfig,
    MambaForCausalLM,
    PreTrainedModel,
)

from tasks.artifacts.errors import BadInputError, CorruptArtifactError
from tasks.training.batches import Batch, check_packing, check_rope, collate
from tests.training.parts import NUM_KEPT, ROWS, dense_logits, make_model, make_rows, truncate


def row_of(row_id: str, input_ids: list[int], loss_mask: list[int], **more: Any) -> SimpleNamespace:
    return SimpleNamespace(
        row_id=row_id, input_ids=np.array(input_ids, np.int32), loss_mask=np.array(loss_mask, np.uint8), **more
    )


def logit_row(place: int = 4, num_kept: int = NUM_KEPT, *, drawn: bool = False) -> SimpleNamespace:
    row = make_rows()["train"][place]
    positions = truncate(dense_logits(make_model(), row), row.input_ids[1:], ())
    found = SimpleNamespace(**vars(row), **{f.name: getattr(positions, f.name) for f in dataclasses.fields(positions)})
    found.topk_ids_PK = found.topk_ids_PK[:, :num_kept]
    found.topk_logprobs_PK = found.topk_logprobs_PK[:, :num_kept]
    if drawn:
        found.counts_PK = np.full(found.topk_ids_PK.shape, 3, np.uint16)
    return found


# Prompt 5 6 | answer 7 8 | end 9 | another turn 5: 7, 8 and 9 are predicted, what follows the end is not.
CHAT = row_of("a", [5, 6, 7, 8, 9, 5], [0, 0, 1, 1, 1, 0])
TEXT = row_of("b", [1, 2, 3], [1, 1, 1])
LATE = row_of("c", list(range(8)), [0] * 7 + [1])


def test_the_mask_is_read_at_the_predicted_token() -> None:
    batch = collate([[CHAT], [LATE]])
    assert batch.input_ids_BL.shape == (2, 8)
    assert batch.position_ids_BL is None
    assert batch.positions_N.tolist() == [1, 2, 3, 8 + 6]
    assert batch.targets.gold_N.tolist() == [7, 8, 9, 7]
    assert batch.targets.topk_ids_NK.shape == (4, 0)


def test_no_document_predicts_the_first_token_of_the_next() -> None:
    batch = collate([[CHAT, TEXT], [TEXT, TEXT]])
    assert batch.row_ids == ("a", "b", "b", "b")
    assert batch.input_ids_BL.tolist() == [[5, 6, 7, 8, 9, 5, 1, 2, 3], [1, 2, 3, 1, 2, 3, 0, 0, 0]]
    assert batch.position_ids_BL is not None
    assert batch.position_ids_BL.tolist() == [[0, 1, 2, 3, 4, 5, 0, 1, 2], [0, 1, 2] * 3]
    # Position 5, before TEXT's first token, and 9 + 2 are last tokens: no target although TEXT's mask begins with 1.
    assert batch.positions_N.tolist() == [1, 2, 3, 6, 7, 9 + 0, 9 + 1, 9 + 3, 9 + 4]
    assert batch.targets.gold_N.tolist() == [7, 8, 9, 2, 3, 2, 3, 2, 3]


def test_teacher_entries_belong_to_the_judged_positions() -> None:
    first, second = logit_row(3), logit_row(4)
    batch = collate([[first, second]])
    judged = [[p for p in range(len(row.input_ids) - 1) if row.loss_mask[p + 1]] for row in (first, second)]
    for name, found in (("topk_ids_PK", "topk_ids_NK"), ("topk_logprobs_PK", "topk_logprobs_NK")):
        expected = np.concatenate([getattr(row, name)[p] for row, p in zip((first, second), judged, strict=True)])
        assert np.array_equal(getattr(batch.targets, found).numpy(), expected)
    assert batch.positions_N.tolist() == [*judged[0], *(len(first.input_ids) + p for p in judged[1])]
    assert batch.targets.draws_NK is None


def test_documents_may_keep_different_numbers_of_entries() -> None:
    wide, narrow = collate([[logit_row(3)]]).targets, collate([[logit_row(4, 2)]]).targets
    both = collate([[logit_row(3), logit_row(4, 2)]]).targets
    split = len(wide.gold_N)
    assert torch.equal(both.topk_ids_NK[:split], wide.topk_ids_NK)
    assert torch.equal(both.topk_ids_NK[split:, :2], narrow.topk_ids_NK)
    assert (both.topk_ids_NK[split:, 2:] == -1).all()
    assert torch.isneginf(both.topk_logprobs_NK[split:, 2:]).all()
    draws_NK = collate([[logit_row(3, drawn=True), logit_row(4, 2, drawn=True)]]).targets.draws_NK
    assert draws_NK is not None
    assert (draws_NK[:split] == 3).all()
    assert draws_NK[split:].unique().tolist() == [0, 3]
    with pytest.raises(BadInputError, match="different kinds of teachers"):
        collate([[logit_row(3), logit_row(4, drawn=True)]])


def test_a_document_without_targets_makes_an_empty_batch() -> None:
    row = logit_row()
    row.loss_mask[:] = 0
    for batch in (collate([[row]]), collate([[logit_row()]]).without_targets()):
        assert len(batch.positions_N) == 0
        assert batch.targets.topk_ids_NK.shape == (0, NUM_KEPT)


def test_malformed_rows_are_named() -> None:
    row = logit_row()
    row.topk_ids_PK[:] = -1
    with pytest.raises(CorruptArtifactError, match=row.row_id):
        collate([[row]])
    with pytest.raises(CorruptArtifactError, match="row a has 6 tokens and 3 of loss_mask"):
        collate([[row_of("a", CHAT.input_ids.tolist(), [0, 0, 1])]])
    row = logit_row()
    row.tail_logprob_P = row.tail_logprob_P[1:]
    with pytest.raises(CorruptArtifactError, match=f"row {row.row_id} has 17 tokens and 15 of tail_logprob_P"):
        collate([[row]])
    with pytest.raises(CorruptArtifactError, match="row a has no tokens"):
        collate([[row_of("a", [], []), TEXT]])


def llama(**changes: Any) -> LlamaForCausalLM:
    torch.manual_seed(1)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=ROWS, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2,
            num_key_value_heads=1, max_position_embeddings=32, initializer_range=0.2, **changes,
        )
    )  # fmt: skip


def hidden_states(model: PreTrainedModel, batch: Batch) -> Tensor:
    return model.base_model(input_ids=batch.input_ids_BL, position_ids=batch.position_ids_BL, use_cache=False)[0]


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("make", [make_model, llama])
def test_a_document_is_the_same_beside_others(make: Any, attention: str, checkpointing: bool) -> None:
    """Hidden states, and the gradient of one document's loss by all weights, in one packed row and in two."""
    model: PreTrainedModel = make()
    model.set_attn_implementation(attention)
    model.train()
    if checkpointing:
        model.activation_checkpointing_enable({"use_reentrant": False})
    rows = make_rows()["train"]
    layout = [[rows[3], rows[0], rows[5]], [rows[1], rows[6]]]
    for packed in (layout[:1], layout):
        batch = collate(packed)
        for place, row in enumerate(packed):
            start = 0
            for document in row:
                part = slice(start, start := start + len(document.input_ids))
                pairs = []
                for hidden_TD in (
                    hidden_states(model, batch)[place, part],
                    hidden_states(model, collate([[document]]))[0],
                ):
                    model.zero_grad()
                    (hidden_TD * torch.linspace(-1, 1, 16)).sin().sum().backward()
                    pairs.append((hidden_TD.detach(), [p.grad for p in model.parameters() if p.grad is not None]))
                (found, found_grads), (expected, expected_grads) = pairs
                assert len(found_grads) == len(expected_grads) > 5
                for one, other in zip([found, *found_grads], [expected, *expected_grads], strict=True):
                    assert (one - other).norm() <= 1e-5 * other.norm()


def test_a_model_that_keeps_documents_apart_passes() -> None:
    model = make_model(use_sliding_window=True, sliding_window=3, max_window_layers=0).train()
    check_packing(model)
    assert model.training
    check_packing(llama(torch_dtype=torch.bfloat16))


def test_a_model_that_does_not_is_refused() -> None:
    """A state along the row, positions that are not the given ones, a cache."""
    mamba = MambaForCausalLM(MambaConfig(vocab_size=ROWS, hidden_size=16, num_hidden_layers=1, state_size=4))
    bloom = BloomForCausalLM(BloomConfig(vocab_size=ROWS, hidden_size=16, n_layer=1, n_head=2, initializer_range=0.2))
    cached = make_model()
    forward = cached.model.forward
    cached.model.forward = lambda **given: forward(**given | {"use_cache": True})
    for model in (mamba, bloom, cached):
        with pytest.raises(BadInputError, match="does not keep the documents of one row apart"):
            check_packing(model)


LONG = {"rope_type": "longrope", "short_factor": [1.0] * 4, "long_factor": [4.0] * 4, "factor": 2.0}
DYNAMIC = {"rope_type": "dynamic", "factor": 2.0}


@pytest.mark.parametrize(
    ("rope", "limit"),
    [({**LONG, "original_max_position_embeddings": 8, "rope_theta": 1e4}, 8), ({**DYNAMIC, "rope_theta": 1e4}, 16)],
    ids=["longrope", "dynamic"],
)
def test_positions_that_follow_the_longest_document_are_refused(rope: dict[str, Any], limit: int) -> None:
    """The model itself: a document beside one beyond the limit is another than alone; up to the limit it is not."""
    model = make_model(rope_parameters=rope, max_position_embeddings=16)
    kind = rope["rope_type"]
    short = row_of("a", [5, 6, 7, 8, 9, 5], [1] * 6)
    for length, changed in ((limit, False), (limit + 4, True)):
        other = row_of("b", list(range(length)), [1] * length)
        with torch.no_grad():
            alone, beside = (hidden_states(model, collate(rows))[0, :6] for rows in ([[short]], [[short], [other]]))
        change = float((alone - beside).norm() / alone.norm())
        assert change > 1e-3 if changed else change < 1e-6
        if changed:
            with pytest.raises(BadInputError, match=rf"type {kind}, .* beyond {limit} tokens, and a row here may"):
                check_rope(model, length)
        else:
            check_rope(model, length)
    check_rope(make_model(), 10**6)
