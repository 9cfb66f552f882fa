"""What a surgery leaves behind, however it ends: refused, stopped, or done with a broken model."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from tasks.artifacts.errors import BadInputError
from tasks.modeling.tokenizer_files import load_tokenizer
from tasks.surgeon.stage import STAGE, SurgeonGates
from tasks.worker.job import Job, PreemptedError
from tests.committed import metrics_of
from tests.surgeon.test_surgery import (
    COMPOSED,
    EMBEDDING,
    TRANSPLANT,
    MakeModel,
    RunStage,
    fetched,
    tensors_of,
)


def test_the_students_way_of_sampling_goes_along_as_it_is_written(
    tmp_path: Path, run_stage: RunStage, make_student: MakeModel, make_donor: MakeModel
) -> None:
    """A temperature without do_sample, which transformers refuses to save."""
    student, donor = make_student(), make_donor()
    sampling = {"temperature": 0.6, "top_p": 0.9, "eos_token_id": 5}
    (student / "generation_config.json").write_text(json.dumps(sampling))
    result = fetched(run_stage("surgeon", COMPOSED, {"student": student, "donor": donor}), tmp_path / "result")
    theirs = load_tokenizer(donor)
    assert json.loads((result / "generation_config.json").read_text()) == {
        "temperature": 0.6,
        "top_p": 0.9,
        "bos_token_id": theirs.bos_token_id,
        "eos_token_id": theirs.eos_token_id,
        "pad_token_id": theirs.eos_token_id,
    }


def test_a_surgery_that_breaks_the_model_is_kept_and_its_gates_fail(
    run_stage: RunStage, make_student: MakeModel, make_donor: MakeModel
) -> None:
    """Rows of a donor that are beyond float16 by far, in which the student is."""
    student, donor = make_student(tied=True, dtype=torch.float16), make_donor(tied=True)
    digits = [token for name, token in load_tokenizer(donor).get_vocab().items() if len(name) == 3 and name.isdigit()]
    weights = tensors_of(donor)
    weights[EMBEDDING][digits] *= 1e6
    save_file(weights, donor / "model.safetensors", metadata={"format": "pt"})
    metrics = metrics_of(run_stage("surgeon", TRANSPLANT, {"student": student, "donor": donor}))
    assert metrics["bits_per_byte_ratio"]["digits"] is None
    assert metrics["bits_per_byte_after"]["digits"] is None
    failed = {result.gate: result.meaning for result in STAGE.judge(metrics, SurgeonGates()) if not result.passed}
    assert "logits are not finite" in failed["max_ratio_digits"]


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ({}, "only one of them has model.layers.0.self_attn.k_proj.bias"),
        ({"qwen": 24}, r"model\.embed_tokens\.weight has shape \[24\] in the trained model and \[16\] in the original"),
    ],
)
def test_reversion_to_another_architecture_is_refused_before_any_weight_is_loaded(
    monkeypatch: pytest.MonkeyPatch,
    run_stage: RunStage,
    make_student: MakeModel,
    make_donor: MakeModel,
    other: dict[str, int],
    message: str,
) -> None:
    def fail(*_arguments: object, **_options: object) -> None:
        raise AssertionError("weights were loaded")

    trained, original = make_donor(), make_student()
    if other:
        config = json.loads((original / "config.json").read_text())
        (trained / "config.json").write_text(json.dumps({**config, "hidden_size": other["qwen"]}))
    monkeypatch.setattr("tasks.surgeon.revert.load_causal_lm", fail)
    with pytest.raises(BadInputError, match=message + ".*give the model that the trained one was transplanted from"):
        run_stage("surgeon", {"mode": "revert"}, {"trained": trained, "original": original})


def test_a_donor_that_gives_no_rows_is_refused_before_any_weight_is_loaded(
    monkeypatch: pytest.MonkeyPatch, run_stage: RunStage, make_student: MakeModel, make_donor: MakeModel
) -> None:
    def fail(*_arguments: object, **_options: object) -> None:
        raise AssertionError("weights were loaded")

    monkeypatch.setattr("tasks.surgeon.transplant.load_causal_lm", fail)
    with pytest.raises(BadInputError, match="donor's head is its embedding"):
        run_stage("surgeon", TRANSPLANT, {"student": make_student(), "donor": make_donor(tied=True)})


def test_a_worker_that_is_asked_to_stop_ends_between_two_batches(
    monkeypatch: pytest.MonkeyPatch, run_stage: RunStage, make_student: MakeModel, make_donor: MakeModel
) -> None:
    asked = iter([False] * 5)
    monkeypatch.setattr(Job, "stop_requested", property(lambda _: next(asked, True)))
    inputs = {"student": make_student(), "donor": make_donor()}
    with pytest.raises(PreemptedError) as left:
        run_stage("surgeon", TRANSPLANT, inputs, {"batch_size": 1})
    assert "anchored_pursuit" in [frame.name for frame in left.traceback]


def test_a_worker_that_is_asked_to_stop_ends(
    monkeypatch: pytest.MonkeyPatch, run_stage: RunStage, make_student: MakeModel
) -> None:
    student = make_student()
    for polls in range(4):
        asked = iter([False] * polls)
        monkeypatch.setattr(Job, "stop_requested", property(lambda _, asked=asked: next(asked, True)))
        with pytest.raises(PreemptedError):
            run_stage("surgeon", {"mode": "revert"}, {"trained": student, "original": student})
