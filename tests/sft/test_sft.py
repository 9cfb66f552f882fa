"""The stage sft as a whole, in this process."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from tasks.artifacts.artifact import Artifact
from tasks.artifacts.errors import BadInputError
from tasks.logits.rows import Row, row_id_of
from tasks.training.batches import Batch
from tasks.training.engine import DivergedError, TrainingEngine
from tests.training.parts import VOCAB, corpus_directory, make_model, make_rows, model_directory

RECIPE = {"optimizer": {"learning_rate": 0.01}, "epochs": 4, "rows_per_step": 4, "precision": "float32"}
RUNTIME = {"device": "cpu", "micro_batch_tokens": 32}
CORPUS_OF = Callable[[dict[str, list[Row]]], Path]


@pytest.fixture
def corpus_of(tmp_path: Path) -> CORPUS_OF:
    return lambda rows: corpus_directory(tmp_path / "corpus", rows)


def test_learns_its_documents(tmp_path: Path, corpus_of: CORPUS_OF, run_stage: Callable[..., Artifact]) -> None:
    rows = make_rows()
    inputs = {
        "model": model_directory(tmp_path / "model", make_model()),
        "corpus": corpus_of({**rows, "heldout": rows["train"][:3]}),
    }
    manifest = run_stage("sft", RECIPE, inputs, RUNTIME).manifest()
    assert manifest is not None
    assert manifest.metrics["steps"] == 12
    assert manifest.metrics["heldout_ce"] < manifest.metrics["heldout_ce_start"]
    assert not [name for name in manifest.metrics if "kl" in name], "there is no teacher to be near to"
    judged_alone = corpus_directory(tmp_path / "first", {**rows, "heldout": rows["train"][:1]})
    first, part = (
        run_stage("sft", {**RECIPE, **more}, {**inputs, **other}, RUNTIME).manifest()
        for more, other in (({}, {"corpus": judged_alone}), ({"max_heldout_rows": 1}, {}))
    )
    assert first is not None
    assert part is not None
    for name in ("heldout_ce_start", "heldout_ce"):
        assert part.metrics[name] == pytest.approx(first.metrics[name], rel=1e-6)
        assert part.metrics[name] != pytest.approx(manifest.metrics[name], rel=1e-6)
    assert {"config.json", "model.safetensors", "tokenizer.json", "training_log.jsonl"} <= {
        entry.name for entry in manifest.objects
    }


def test_a_broken_loss_names_the_documents(
    tmp_path: Path, corpus_of: CORPUS_OF, run_stage: Callable[..., Artifact]
) -> None:
    """A token has no number in its embedding, and is in one document of twelve; the proof of the head passes it by."""
    broken = VOCAB - 2
    model = make_model(tie_word_embeddings=False)
    with torch.no_grad():
        model.get_input_embeddings().weight[broken] = torch.nan
    rows = {split: [_without(row, broken) for row in part] for split, part in make_rows().items()}
    longest = max(range(12), key=lambda index: len(rows["train"][index].input_ids))
    bad = rows["train"][longest].input_ids.copy()
    bad[1] = broken
    # Nothing fits into a row beside the longest document.
    rows["train"][longest] = _row(rows["train"][longest], bad)
    inputs = {"model": model_directory(tmp_path / "model", model), "corpus": corpus_of(rows)}
    with pytest.raises(DivergedError) as failure:
        run_stage("sft", RECIPE, inputs, {**RUNTIME, "micro_batch_tokens": 1})
    message = str(failure.value)
    assert row_id_of(bad) in message
    assert not any(row.row_id in message for row in rows["train"] if row.row_id != row_id_of(bad))
    assert "no checkpoint was written yet" in message
    [step] = (tmp_path / "store").glob("artifacts/sft/*/logs/*/diverged.jsonl")
    first, *others = [json.loads(line) for line in step.read_text().splitlines()]
    assert (first["loss"], first["row_ids"]) == (None, [row_id_of(bad)])
    assert [line["loss"] for line in others] == sorted((line["loss"] for line in others), reverse=True)
    assert str(step.relative_to(tmp_path / "store")) in message


def test_a_broken_held_out_loss_names_the_documents(
    tmp_path: Path, corpus_of: CORPUS_OF, run_stage: Callable[..., Artifact], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A token that no document to train on has, at the start; and a pass that breaks while training."""
    broken = VOCAB - 2
    model = make_model(tie_word_embeddings=False)
    rows = {split: [_without(row, broken) for row in part] for split, part in make_rows().items()}
    # The longest, beside which nothing fits.
    bad = rows["heldout"][1].input_ids.copy()
    bad[1] = broken
    rows["heldout"][1] = _row(rows["heldout"][1], bad)
    inputs = {"model": model_directory(tmp_path / "whole", model), "corpus": corpus_of(rows)}
    with torch.no_grad():
        model.get_input_embeddings().weight[broken] = torch.nan
    with pytest.raises(DivergedError) as failure:
        run_stage(
            "sft",
            RECIPE,
            {**inputs, "model": model_directory(tmp_path / "model", model)},
            {**RUNTIME, "micro_batch_tokens": 1},
        )
    assert f"held-out split is nan before the first step on the rows {row_id_of(bad)};" in str(failure.value)

    judge, passes = TrainingEngine.judge, []

    def break_the_third(engine: TrainingEngine, batch: Batch) -> torch.Tensor:
        passes.append(batch)
        return judge(engine, batch) * (torch.nan if len(passes) == 3 else 1)

    monkeypatch.setattr(TrainingEngine, "judge", break_the_third)
    told = r"held-out split is nan after step 2 on the rows \w+; the newest checkpoint is after step 1; lower optimizer"
    with pytest.raises(DivergedError, match=told) as failure:
        run_stage(
            "sft",
            {**RECIPE, "heldout_every_steps": 2},
            inputs,
            {**RUNTIME, "micro_batch_tokens": 1, "checkpoint_every_steps": 1},
        )
    assert passes[2].row_ids[0] in str(failure.value)


def test_a_broken_gradient_names_the_step_s_documents(
    tmp_path: Path, corpus_of: CORPUS_OF, run_stage: Callable[..., Artifact]
) -> None:
    """Tiny hidden states times a huge head: usual losses, but a gradient by the final norm whose square overflows."""
    model = make_model(tie_word_embeddings=False)
    with torch.no_grad():
        model.model.norm.weight.mul_(1e-20)
        model.lm_head.weight.mul_(1e20)
    rows = make_rows()
    inputs = {"model": model_directory(tmp_path / "model", model), "corpus": corpus_of(rows)}
    told = (
        r"norm is inf in step 1 on the rows .* and 4 more, by the loss of their pass; the last good step is 0, no check"
    )
    with pytest.raises(DivergedError, match=told) as failure:
        run_stage("sft", {**RECIPE, "rows_per_step": 12}, inputs, RUNTIME)
    assert sum(row.row_id in str(failure.value) for row in rows["train"]) == 8
    [step] = (tmp_path / "store").glob("artifacts/sft/*/logs/*/diverged.jsonl")
    passes = [json.loads(line) for line in step.read_text().splitlines()]
    row_ids = [row_id for line in passes for row_id in line["row_ids"]]
    assert sorted(row_ids) == sorted(row.row_id for row in rows["train"])
    assert f"on the rows {', '.join(row_ids[:8])} and" in str(failure.value)
    assert [line["loss"] for line in passes] == sorted((line["loss"] for line in passes), reverse=True)
    assert len(passes) > 1


def test_unusable_inputs_are_refused(tmp_path: Path, corpus_of: CORPUS_OF, run_stage: Callable[..., Artifact]) -> None:
    corpus = corpus_of(make_rows())
    other = model_directory(tmp_path / "other", make_model(), vocab_size=VOCAB + 1)
    with pytest.raises(BadInputError, match="written with tokenizer"):
        run_stage("sft", RECIPE, {"model": other, "corpus": corpus}, RUNTIME)
    inputs = {"model": model_directory(tmp_path / "model", make_model()), "corpus": corpus}
    with pytest.raises(BadInputError, match="launcher"):
        run_stage("sft", RECIPE, inputs, {**RUNTIME, "launcher": "torchrun", "num_processes": 2})
    empty = corpus_directory(tmp_path / "empty", {**make_rows(), "heldout": []})
    with pytest.raises(BadInputError, match="held-out split has no rows"):
        run_stage("sft", RECIPE, {**inputs, "corpus": empty}, RUNTIME)
    masked = [dataclasses.replace(row, loss_mask=np.zeros_like(row.loss_mask)) for row in make_rows()["heldout"]]
    silent = corpus_directory(tmp_path / "silent", {**make_rows(), "heldout": masked})
    with pytest.raises(BadInputError, match="held-out split has no target token"):
        run_stage("sft", RECIPE, {**inputs, "corpus": silent}, RUNTIME)
    written = json.loads((corpus / "corpus.json").read_text())
    assert written.keys() == {"tokenizer_digest"}


def _row(row: Row, input_ids: object) -> Row:
    return Row(row_id_of(input_ids), input_ids, row.loss_mask, row.text, row.num_bytes, row.kind, row.source)  # type: ignore[arg-type]


def _without(row: Row, token: int) -> Row:
    input_ids = row.input_ids.copy()
    input_ids[input_ids == token] = 8
    return _row(row, input_ids)
