"""The measures of the surgery bench see what they are there for, on the miniatures and on made-up files."""

from __future__ import annotations

import itertools
import json
import math
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from tasks.compare.arithmetic import pages
from tasks.modeling.document_bits import DocumentBits
from tasks.modeling.tokenizer_files import PROBE_TEXTS, load_tokenizer
from tasks.models.stage import MINIATURES
from tasks.runtime.declare import Step
from tests.bench import surgery_reversion_bits, swap_folder, swap_steps
from tests.bench.harness import machine
from tests.bench.paths import ROOT
from tests.bench.records import Measured, judged
from tests.bench.rows import ROWS
from tests.bench.rows_surgery import BACK, INTO_QWEN, KINDS, METHODS, STRATEGIES
from tests.bench.surgery_bad_pairs import is_refused
from tests.bench.surgery_digits import by_operation
from tests.bench.surgery_plan import num_differing, num_unexplained, plan_of, recounted
from tests.bench.surgery_round_trip import values_changed
from tests.bench.surgery_warm_up import DEFAULT, over_best
from tests.bench.swap_bits import Bits, excess
from tests.bench.swap_folder import SOURCES, delete_others, folder, name_of
from tests.bench.swap_loaders import differing_texts
from tests.bench.swap_recount import read_tokenizer_json
from tests.bench.swap_steps import random_model
from tests.bench.swap_table import methods_table
from tests.bench.swap_texts import MEASURED_BYTES, measured_texts, training_file

STUDENT, DONOR = MINIATURES / "qwen-student", MINIATURES / "llama-teacher"
MAP = {
    "<|begin_of_text|>": "<|endoftext|>",
    "<|end_of_text|>": "<|endoftext|>",
    "<|start_header_id|>": "<|im_start|>",
    "<|end_header_id|>": "\n",
    "<|eot_id|>": "<|im_end|>",
    "<|finetune_right_pad_id|>": "<|endoftext|>",
}
NO_LIMIT = 10**9


def test_a_recount_agrees_with_a_plan_and_sees_what_is_wrong_in_one() -> None:
    plan = plan_of(load_tokenizer(STUDENT), load_tokenizer(DONOR), MAP)
    own, other = (read_tokenizer_json(model / "tokenizer.json", NO_LIMIT) for model in (STUDENT, DONOR))
    counts = recounted(own, other, MAP)
    assert num_differing(plan, counts) == 0
    assert num_unexplained(plan, own, other, MAP) == 0
    assert counts["composed"]["digits"] == 10

    one_more = {part: {**by_kind} for part, by_kind in plan.counts.items()}
    one_more["shared"]["words"] += 1
    assert num_differing(replace(plan, counts=one_more), counts) == 1
    shifted = replace(plan, shared_student_ids_S=plan.shared_student_ids_S[::-1].copy())
    assert num_unexplained(shifted, own, other, MAP) > 100
    token, pieces = next((token, pieces) for token, pieces in plan.composed.items() if token in other.texts)
    assert num_unexplained(replace(plan, composed={**plan.composed, token: pieces[1:]}), own, other, MAP) == 1
    lost = {other_token: made_of for other_token, made_of in plan.composed.items() if other_token != token}
    assert num_unexplained(replace(plan, composed=lost), own, other, MAP) == 1
    assert num_unexplained(plan, own, other, {**MAP, "<|eot_id|>": "<|im_start|>"}) == 1


def test_a_changed_bit_and_a_lost_tensor_are_changed_values(tmp_path: Path) -> None:
    weights = {"a": torch.zeros(2, 3), "b": torch.ones(4)}
    other = {"a": weights["a"].clone()}
    other["a"][1, 2] = -0.0
    for name, tensors in (("one", weights), ("other", other)):
        (tmp_path / name).mkdir()
        save_file(tensors, tmp_path / name / "model.safetensors")
    assert values_changed(tmp_path / "one", tmp_path / "one") == (0, 10)
    assert values_changed(tmp_path / "one", tmp_path / "other") == (1 + 4, 10)


def test_a_loader_that_asks_the_config_gives_other_ids(tmp_path: Path) -> None:
    for name in ("tokenizer.json", "chat_template.jinja"):
        shutil.copyfile(DONOR / name, tmp_path / name)
    shutil.copyfile(STUDENT / "config.json", tmp_path / "config.json")
    config = json.loads((DONOR / "tokenizer_config.json").read_text())
    # The mark that keeps AutoTokenizer from asking.
    config.pop("auto_map", None)
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    expected = load_tokenizer(DONOR)
    assert differing_texts("PreTrainedTokenizerFast", tmp_path, expected, PROBE_TEXTS) == 0
    assert differing_texts("AutoTokenizer", tmp_path, expected, PROBE_TEXTS) > 0


def test_answers_are_counted_by_the_operation_that_was_asked() -> None:
    asked = pages(50, seed=0)
    scored = [line for page in asked for line in page[5:]]
    right = [" + " in line.prompt for line in scored]
    assert by_operation(asked, right) == "* 0.000, + 1.000, - 0.000"


def _bits(*kinds: tuple[float, ...]) -> Bits:
    """Documents of 100 bytes with these bits, a tuple a kind."""
    return {
        str(kind): [DocumentBits(str(at), bits, 100) for at, bits in enumerate(of_kind)]
        for kind, of_kind in enumerate(kinds)
    }


def test_two_models_are_compared_by_documents_with_an_error() -> None:
    other = _bits((100.0, 200.0, 300.0), (50.0, 50.0))
    one = _bits((110.0, 200.0, 320.0), (50.0, 54.0))
    found = excess(one, other)
    # Differences a byte: 0.1, 0, 0.2 and 0, 0.04; the error of a mean is s / √n, the kinds weigh the same.
    assert found.difference == pytest.approx((0.1 + 0.02) / 2)
    assert found.error == pytest.approx(math.sqrt(0.1**2 / 3 + 0.02**2) / 2)
    assert found.ratio == pytest.approx((2.1 + 0.52) / (2.0 + 0.5))
    assert (found.ratio - 1) / found.ratio_error == pytest.approx(found.z)
    assert excess(one, one).z == 0
    assert excess(_bits((101.0, 101.0)), _bits((100.0, 100.0))).z == math.inf


@pytest.mark.parametrize(
    ("others", "named", "ok"),
    [
        # Better by 0.05 in every document.
        ({"omp": (95.0, 195.0, 295.1)}, "omp", False),
        # Better in the mean, by one document of three.
        ({"omp": (100.0, 200.0, 270.0)}, "omp", True),
        ({"omp": (110.0, 205.0, 330.0)}, "omp", True),
        # The lower mean is noise, the other one is not.
        ({"omp": (100.0, 200.0, 270.0), "mean": (99.0, 199.0, 299.1)}, "mean", False),
    ],
)
def test_the_default_is_the_best_unless_another_is_better_beyond_two_errors(
    others: dict[str, tuple[float, ...]], named: str, ok: bool
) -> None:
    warm = {DEFAULT: _bits((100.0, 200.0, 300.0)), **{method: _bits(bits) for method, bits in others.items()}}
    measured = over_best("surgery.default_over_best", DEFAULT, warm, "a pair")
    (declared,) = (row for row in ROWS if row.name == measured.name)
    row = judged(declared, measured, "machine")
    assert row.ok is ok
    assert f"{DEFAULT} over {named}" in row.conditions
    assert row.value == pytest.approx(600 / sum(others[named]))
    assert row.goal is not None
    assert row.value is not None
    assert (row.value <= row.goal) is ok, "the file's own goal gives the same verdict"
    assert "; a pair; " in row.conditions


def test_the_table_has_what_was_measured_of_each_method() -> None:
    prefix = f"surgery.bits_per_byte.{INTO_QWEN}"
    values = {f"{prefix}.before.prose": 1.0281, f"{prefix}.mean.start.code": 2.5, f"{prefix}.mean.warm.code": None}
    table = methods_table(values, INTO_QWEN)
    assert table.columns == ("method", "prose", "code", "digits", "other scripts")
    assert [row[0] for row in table.rows] == ["before", *METHODS[INTO_QWEN]]
    assert table.rows[0] == ("before", "1.028", "–", "–", "–")
    assert dict(zip(table.columns, table.rows[2], strict=True))["code"] == "2.500 → –"


def test_the_default_is_judged_wherever_it_applies() -> None:
    assert [direction for direction, methods in METHODS.items() if DEFAULT in methods] == [BACK]
    assert "composed" in METHODS[INTO_QWEN], "the other direction's"


def test_what_a_stopped_bench_left_is_of_the_same_sources_and_machine(tmp_path: Path) -> None:
    """In a copy of the sources: a changed line or another machine gives another folder, a note beside them does not."""
    for pattern in SOURCES:
        for path in ROOT.glob(pattern):
            target = tmp_path / path.relative_to(ROOT)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, target)
    before = name_of(tmp_path, machine())
    assert before == name_of(ROOT, machine())
    (tmp_path / "tasks/surgeon/README.md").write_text("a note")
    assert name_of(tmp_path, machine()) == before
    names = {before, name_of(tmp_path, f"another {machine()}")}
    for changed in (
        *("tasks/surgeon/pursuit.py", "tasks/modeling/document_bits.py", "tasks/sft/worker.py"),
        *("tasks/training/losses.py", "tests/bench/surgery_digits.py", "tests/bench/swap_steps.py"),
    ):
        with (tmp_path / changed).open("a") as file:
            file.write("# another one\n")
        names.add(name_of(tmp_path, machine()))
    assert len(names) == 8


@pytest.fixture
def scratch_bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The folder that the surgery bench keeps things in, elsewhere."""
    unfinished = tmp_path / "unfinished"
    monkeypatch.setattr(swap_folder, "unfinished", lambda _: unfinished)
    folder.cache_clear()
    yield unfinished
    folder.cache_clear()


def test_what_other_sources_left_is_deleted_and_a_started_process_stays_with_its_bench(
    scratch_bench: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = folder()
    assert own.parent == scratch_bench
    for kept in (own, scratch_bench / "older"):
        (kept / "store").mkdir(parents=True)
    delete_others()
    assert list(scratch_bench.iterdir()) == [own]
    monkeypatch.setenv(swap_folder.VARIABLE, str(scratch_bench / "begun"))
    folder.cache_clear()
    assert folder() == scratch_bench / "begun"


def test_a_random_model_has_the_head_and_the_rows_that_are_asked_for(
    scratch_bench: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever was made before it. The miniature's small tokenizer stands for the package's."""
    assert not scratch_bench.exists()
    monkeypatch.setattr(swap_steps, "make", lambda step: step)
    monkeypatch.setattr(swap_steps, "directory_of", lambda _: STUDENT)
    for tied, rows in itertools.product((True, False), (None, 2048)):
        made = json.loads((random_model("qwen", 8, 1, tied=tied, rows=rows) / "config.json").read_text())
        assert made["tie_word_embeddings"] is tied
        assert made["vocab_size"] == (rows or 1024)


def test_what_is_measured_is_not_trained_on() -> None:
    trained = {json.loads(line)["text"] for line in training_file(KINDS).read_text().splitlines()}
    for kind, texts in measured_texts().items():
        assert sum(len(text.text.encode()) for text in texts) >= MEASURED_BYTES, kind
        assert not trained & {text.text for text in texts}, kind


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        (None, False),
        ("KeyError: 'embed' of 3 tokens; asks for 64\n", False),
        ("a and b share 3 tokens, and recipe.k asks for 64", False),
        ("recipe.special_tokens is missing; set it", False),
        ("a and b share 3 tokens, and recipe.k asks for 64; lower k", True),
    ],
)
def test_a_refusal_names_what_is_wrong_and_what_to_do(said: str | None, expected: bool) -> None:
    assert is_refused(said, "asks for 64") is expected


def test_every_strategy_of_the_reversion_is_measured_on_every_kind_of_text(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the models that calculate: nothing is trained for these rows alone."""
    asked = []

    def bits(step: Step) -> Bits:
        asked.append(step)
        return {kind: [DocumentBits("0", 150.0, 100)] for kind in KINDS}

    for step, label in (("smollm2", "original"), ("trained_in_llama", "trained")):
        monkeypatch.setattr(surgery_reversion_bits, step, lambda label=label: label)
    monkeypatch.setattr(surgery_reversion_bits, "reverted", lambda strategy: strategy)
    monkeypatch.setattr(surgery_reversion_bits, "bits_of", bits)
    [measurement] = surgery_reversion_bits.MEASUREMENTS
    measured = {row.name: row for row in measurement.function()}
    assert asked == ["original", "trained", *STRATEGIES]
    assert set(measured) == {row.name for row in ROWS if row.name.startswith("surgery.reversion_bits.")}
    assert {row.value for row in measured.values()} == {1.5}
    assert "original_rows, the default" in measured["surgery.reversion_bits.original_rows.code"].conditions


def test_a_model_that_does_not_calculate_shows_nothing_of_digits() -> None:
    (declared,) = (row for row in ROWS if row.name == "surgery.digits.accuracy_before")
    for value, ok in ((0.25, True), (0.1, False)):
        assert judged(declared, Measured(declared.name, value, "300 sums"), "machine").ok is ok
