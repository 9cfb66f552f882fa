"""The stage as a whole: bytes in, bytes out, and counts that add up."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from tasks.artifacts.errors import BadInputError
from tasks.clean.stage import STAGE, STEPS, CleanConfig, CleanGates
from tasks.exercises import generate
from tests.clean.test_filters import REFUSAL

Clean = Callable[..., dict[str, bytes]]
Said = Callable[..., dict[str, Any]]
TALE = " ".join(f"word{number} and then" for number in range(60))
SETS = [{"type": "exercises", "kinds": ["reverse", "swap"], "items_per_kind": 6}]


def ids(files: dict[str, bytes]) -> list[str]:
    return [json.loads(line)["id"] for line in files["instructions.jsonl"].split(b"\n") if line]


def planted(said: Said) -> list[dict[str, Any]]:
    """One row for each step to remove, between rows that stay."""
    item = generate("swap", "test", 6, 0)[3]
    return [
        said("first", "Name a river.", "The Danube."),
        said("twice", "Name  a\r\nRIVER.", "the danube."),
        said("empty", "Say nothing.", ""),
        said("refused", "Name a poison.", REFUSAL),
        said("cut", "Tell me of the sea.", "The sea is deep and blue, and those who sail it say that the"),
        said(
            "german",
            "Wie heißt der längste Fluss in Europa, und wo mündet er ins Meer?",
            "Die Wolga, ins Kaspische Meer.",
        ),
        said("leaked", item.prompt, item.answer),
        said("long", f"Go on: {TALE}", TALE),
        said("nearly", f"Go on: {TALE}", f"{TALE} the end"),
        said("last", "Name a mountain of Japan, in Japanese.", "富士山\u2028 it is"),
    ]


def test_each_step_takes_its_row_and_the_rest_stays_byte_for_byte(clean: Clean, said: Said) -> None:
    lines = planted(said)
    files = clean(lines, {"evaluations": SETS, "language": {"allowed": ["en", "ja"]}})
    assert set(files) - {"metrics"} == {"instructions.jsonl", "clean.json", "funnel.svg"}
    assert ids(files) == ["first", "long", "last"]
    kept = [json.dumps(line, ensure_ascii=False, sort_keys=True) for line in lines if line["id"] in ids(files)]
    assert files["instructions.jsonl"].decode() == "".join(line + "\n" for line in kept)

    report = json.loads(files["clean.json"])
    steps = {step["name"]: step for step in report["steps"]}
    assert list(steps) == list(STEPS)
    taken = {name: [example["id"] for example in step["examples"]] for name, step in steps.items()}
    assert taken == {
        "exact_duplicates": ["twice"],
        "length": ["empty"],
        "refusals": ["refused"],
        "truncated": ["cut"],
        "language": ["german"],
        "decontamination": ["leaked"],
        "near_duplicates": ["nearly"],
    }
    assert steps["exact_duplicates"]["examples"][0]["of"] == "first"
    assert steps["near_duplicates"]["examples"][0]["of"] == "long"
    assert steps["decontamination"]["examples"][0]["item"] == "exercise_swap/3"


def test_a_row_that_goes_stands_in_the_way_of_no_other(clean: Clean, said: Said) -> None:
    """A row that is too long by its spaces, and one that goes as a near duplicate, each before its exact duplicate."""
    lines = [
        said("padded", "Name a lake.", "Lake" + " " * 400 + "Constance."),
        said("plain", "Name a lake.", "Lake Constance."),
        said("long", f"Go on: {TALE}", TALE),
        said("nearly", f"Go on: {TALE}", f"{TALE} the end"),
        said("nearly again", f"Go  on: {TALE}", f"{TALE} the end"),
    ]
    assert ids(clean(lines, {"length": {"max_chars": 400}})) == ["plain"]
    files = clean(lines)
    examples = [example for step in json.loads(files["clean.json"])["steps"] for example in step["examples"]]
    assert {example["id"]: example["of"] for example in examples} == {
        "plain": "padded",
        "nearly": "long",
        "nearly again": "long",
    }


def test_the_funnel_adds_up(clean: Clean, said: Said) -> None:
    lines = [*planted(said), *(said(f"copy-{number}", "Name a river.", "The Danube.") for number in range(7))]
    files = clean(lines, {"evaluations": SETS})
    report, metrics = json.loads(files["clean.json"]), json.loads(files["metrics"])
    left = report["offered"]
    assert left == len(lines)
    for step in report["steps"]:
        assert step["rows_in"] == left
        left -= step["removed"]
        assert step["left"] == left
        assert len(step["examples"]) == min(step["removed"], 5)
    assert left == report["rows"] == metrics["rows"] == len(ids(files))
    assert metrics["removed_share"] == pytest.approx(1 - left / len(lines))
    assert metrics["removed"] == {step["name"]: step["removed"] for step in report["steps"]}
    assert metrics["removed"]["exact_duplicates"] == 8
    assert report["evaluations"]["exercises"]["items"] == 12
    assert report["evaluations"]["exercises"]["rows_removed"] == 1
    # The text of the picture is drawn as outlines; its comments keep what it says.
    assert b"near duplicates" in files["funnel.svg"]
    assert b"exact duplicates" in files["funnel.svg"]


def test_the_same_input_gives_the_same_bytes(clean: Clean, said: Said) -> None:
    lines = planted(said)
    assert clean(lines, {"evaluations": SETS}) == clean(lines, {"evaluations": SETS})


def test_null_switches_each_step_off(clean: Clean, said: Said) -> None:
    lines = planted(said)
    files = clean(lines, {**dict.fromkeys(STEPS), "evaluations": SETS})
    assert ids(files) == [line["id"] for line in lines]
    report = json.loads(files["clean.json"])
    assert report["steps"] == []
    assert report["removed_share"] == 0


def test_crlf_blank_lines_and_no_rows_at_all(clean: Clean, said: Said) -> None:
    line = json.dumps(said("a", "Name a river.", "Danube.")).encode()
    other = json.dumps(said("b", "Name a lake.", "Constance.")).encode()
    files = clean(line + b"\r\n\r\n" + other)
    assert files["instructions.jsonl"] == line + b"\n" + other + b"\n"
    nothing = clean(b"")
    assert nothing["instructions.jsonl"] == b""
    assert json.loads(nothing["clean.json"])["removed_share"] == 0
    failed = {gate.gate for gate in STAGE.judge(json.loads(nothing["metrics"]), CleanGates()) if not gate.passed}
    assert failed == {"min_rows"}


@pytest.mark.parametrize("line", [b"{", b"[]", b'{"id": "a"}', b'{"id": "a", "messages": [{"role": "user"}]}'])
def test_a_line_that_is_no_row_is_named(clean: Clean, line: bytes) -> None:
    with pytest.raises(BadInputError, match=r"line 1 of instructions.jsonl of .*make the instructions again"):
        clean(line + b"\n")


def test_gates() -> None:
    gates = CleanGates(min_rows=10, max_removed_share=0.2)
    assert [each.passed for each in STAGE.judge({"rows": 10, "removed_share": 0.2}, gates)] == [True, True]
    assert [each.passed for each in STAGE.judge({"rows": 9, "removed_share": 0.21}, gates)] == [False, False]
    assert [each.passed for each in STAGE.judge({}, gates)] == [False, False]


def test_the_recipe_follows_the_list_of_evaluations() -> None:
    from flows.dag import build
    from flows.profiles import load_profile

    def key(*overrides: str) -> str:
        steps = {step.label: step for step in build(load_profile("micro", overrides))}
        assert steps["corpus-sft"].inputs["instructions"] is steps["clean"]
        return steps["clean"].key

    listed = "assessment.evaluate.recipe.tasks"
    more = "{type: lm_eval, name: mmlu_anatomy, metric: acc}"
    same = "{type: lm_eval, name: mmlu_anatomy, metric: acc_norm, limit: 10, num_fewshot: 5}"
    exercises = "{type: exercises, kinds: [reverse, add], items_per_kind: 8}"
    assert key(f"{listed}=[{exercises}]") == key()
    assert key(f"{listed}=[{exercises}, {more}]") != key()
    # What is measured on a set, and on how many of its items, does not change its items.
    assert key(f"{listed}=[{exercises}, {more}]") == key(f"{listed}=[{exercises}, {same}]")
    assert key(f"{listed}.0.items_per_kind=9") != key()
    off = "fine_tuning.clean.recipe.decontamination=null"
    assert key(off) == key(off, f"{listed}.0.items_per_kind=9")
    labels = {step.label for step in build(load_profile("micro", ["fine_tuning.clean=null"]))}
    assert "clean" not in labels


def test_a_reason_is_only_given_for_a_set_of_the_profile() -> None:
    config = CleanConfig.model_validate({"recipe": {"not_decontaminated": {"mmlu": "no copy here"}}})
    with pytest.raises(BadInputError, match="names 'mmlu', which is no evaluation set of the profile"):
        config.against([])
