"""Rows that hold text of an evaluation: generated items, harness tasks from a local mirror, and what is no leak."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tasks.artifacts.errors import BadInputError
from tasks.benchmarks.declare import ExerciseTasks, HarnessTasks
from tasks.benchmarks.decontamination import EvaluationIndex
from tasks.benchmarks.evaluation_sets import Decontamination, HarnessSet
from tasks.benchmarks.evaluation_texts import Item, items_of
from tasks.exercises import generate
from tasks.modeling.conversation import Turn

Clean = Callable[..., dict[str, bytes]]
Said = Callable[..., dict[str, Any]]
LONG = "one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen"
TEN = "alpha beta gamma delta epsilon zeta eta theta iota kappa"
OF_MMLU = {"evaluations": [{"type": "lm_eval", "name": "mmlu_anatomy"}]}


def row(question: str, answer: str = "Yes.") -> tuple[Turn, ...]:
    return (Turn("user", question), Turn("assistant", answer))


def index(*items: Item) -> EvaluationIndex:
    made = EvaluationIndex(Decontamination())
    made.add("set", items)
    made.close()
    return made


def test_thirteen_words_in_a_row_and_not_twelve() -> None:
    made = index(Item("a", (LONG,), ("no",)))
    words = LONG.split()
    for start in range(3):
        shared = " ".join(words[start : start + 13])
        why = made.judge(row(f"Please, {shared.upper()}!\r\nGo on"))
        assert why == {"evaluation": "set", "item": "a", "words": shared}
        assert made.judge(row("Hello", f"Well:\n{shared.replace(' ', ', ')}.")) is not None
        twelve = " ".join(words[start : start + 12])
        assert made.judge(row(f"Please, {twelve} then something else {twelve}")) is None
    # A run does not reach over the end of a turn.
    assert made.judge(row(" ".join(words[:8]), " ".join(words[8:]))) is None
    assert made.counts["set"].rows_removed == 6
    assert made.judge(row("", "")) is None


def test_answers_count_like_questions() -> None:
    made = index(Item("a", ("What is it?",), (LONG,)))
    assert made.judge(row(f"so {LONG} it is")) is not None


def test_texts_of_eight_to_twelve_words_are_found_whole() -> None:
    made = index(Item("a", (TEN,), ()), Item("b", ("q",), ("one two three four five six seven",)))
    assert made.judge(row(f"Tell me, {TEN}, is that so?")) is not None
    assert made.judge(row("Hello", TEN)) is not None
    assert made.judge(row(" ".join(TEN.split()[:9]))) is None
    # A short answer is nobody's.
    assert made.judge(row("one two three four five six seven")) is None


def test_a_shorter_question_counts_as_a_whole_turn_of_the_user() -> None:
    made = index(Item("a", ("Who wrote Hamlet?",), ("Shakespeare",)))
    assert made.judge(row("who wrote HAMLET")) == {"evaluation": "set", "item": "a", "words": "who wrote hamlet"}
    assert made.judge(row("Who wrote Hamlet, and when?")) is None
    assert made.judge(row("Ask me something.", "Who wrote Hamlet?")) is None
    assert made.judge(row("Shakespeare")) is None


def test_a_short_phrase_of_several_items_identifies_none() -> None:
    phrase = "which of the following statements about this text is true"
    items = [Item(str(number), (f"{number} {LONG} {number} {phrase}", phrase), ()) for number in range(2)]
    assert index(*items).judge(row(phrase)) is None
    assert index(items[0]).judge(row(phrase)) is not None
    # One item in two tasks of a set is still one.
    assert index(items[0], Item("again", items[0].prompts, ())).judge(row(phrase)) is not None


def test_the_order_of_rows_does_not_matter() -> None:
    rows = [row(LONG), row("no"), row(TEN), row("hello", LONG)]
    items = (Item("a", (LONG,), ()), Item("b", (TEN,), ()))
    forth, back = index(*items), index(*items)
    assert [forth.judge(each) for each in rows] == [back.judge(each) for each in reversed(rows)][::-1]


def test_items_of_the_exercises_are_those_that_are_evaluated() -> None:
    tasks = ExerciseTasks(type="exercises", kinds=("sort", "add"), items_per_kind=5, seed=3)
    items = list(items_of(tasks))
    assert [item.name for item in items][::5] == ["exercise_sort/0", "exercise_add/0"]
    assert [item.prompts[0] for item in items[:5]] == [each.prompt for each in generate("sort", "test", 5, 3)]
    made = EvaluationIndex(Decontamination())
    made.add("exercises", items)
    made.close()
    assert all(made.judge(row(item.prompts[0], item.answers[0])) is not None for item in items)
    others = generate("sort", "train", 200, 3)
    assert not any(made.judge(row(each.prompt, each.answer)) for each in others)


def test_a_harness_task_is_read_from_a_mirror_as_the_harness_renders_it(mirror: Path) -> None:
    first, second = items_of(HarnessSet(name="mmlu_anatomy"), str(mirror))
    assert first.name == "mmlu_anatomy/0"
    rendered, question = first.prompts
    assert rendered.startswith(question)
    assert rendered.endswith("D. The masseter\nAnswer:")
    assert first.answers == ("A",)
    assert second.prompts[1] == "Which bone of the middle ear is smallest"


def test_an_evaluation_reads_its_tasks_from_the_same_mirror(mirror: Path) -> None:
    import datasets

    from tasks.benchmarks.loading import load_tasks

    before = datasets.load_dataset
    entry = HarnessTasks(type="lm_eval", name="mmlu_anatomy", metric="acc", num_fewshot=1)
    (loaded,) = load_tasks([entry], 8, str(mirror))
    task = loaded.tasks["mmlu_anatomy"]
    assert [document["question"] for document in task.eval_docs] == [
        item.prompts[1] for item in items_of(HarnessSet(name="mmlu_anatomy"), str(mirror))
    ]
    assert task.get_config("num_fewshot") == 1
    # Outside, the hub is what it was.
    assert datasets.load_dataset is before


def test_a_contaminated_row_is_removed_through_a_mirror(clean: Clean, said: Said, mirror: Path) -> None:
    question = next(iter(items_of(HarnessSet(name="mmlu_anatomy"), str(mirror)))).prompts[1]
    lines = [
        said("clean", "Which muscle raises the pitch of the voice?", "The cricothyroid."),
        said("leaked", f"Quiz!\r\n\r\n{question.upper()}? Think first.", "The cricothyroid muscle."),
        said("in the answer", "Make a quiz question.", f"Here you go: {question}?"),
        said("short", "Tell me: which bone of the middle ear is smallest?", "The stapes."),
        said("other", "Which bone of the middle ear is the largest one?", "The malleus."),
    ]
    files = clean(lines, OF_MMLU, {"mirror": str(mirror)})
    kept = [json.loads(line)["id"] for line in files["instructions.jsonl"].splitlines()]
    assert kept == ["clean", "other"]
    report = json.loads(files["clean.json"])
    about = report["evaluations"]["mmlu_anatomy"]
    assert (about["items"], about["rows_removed"]) == (2, 3)
    assert len(about["sha256"]) == 64
    examples = {example["id"]: example for step in report["steps"] for example in step["examples"]}
    assert examples["leaked"]["item"] == "mmlu_anatomy/0"
    assert examples["short"]["item"] == "mmlu_anatomy/1"


def test_a_set_that_cannot_be_read_is_refused_or_named_with_a_reason(
    clean: Clean, said: Said, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import datasets.config
    import huggingface_hub.constants

    for module, name in ((huggingface_hub.constants, "HF_HUB_OFFLINE"), (datasets.config, "HF_HUB_OFFLINE")):
        monkeypatch.setattr(module, name, True)
    lines = [said("a", "Name a river.", "The Danube.")]
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    with pytest.raises(
        BadInputError, match=r"the data of the evaluation set mmlu_anatomy cannot be read .*mirror.*why"
    ):
        clean(lines, OF_MMLU, {"mirror": str(elsewhere)})
    with pytest.raises(BadInputError, match=r"folder of mirrored data sets .* does not exist"):
        clean(lines, OF_MMLU, {"mirror": str(tmp_path / "nowhere")})
    with pytest.raises(BadInputError, match="the harness has no task or group 'mmlu_alchemy'"):
        clean(lines, {"evaluations": [{"type": "lm_eval", "name": "mmlu_alchemy"}]})
    reason = "the hub is not reached from here"
    files = clean(lines, {**OF_MMLU, "not_decontaminated": {"mmlu_anatomy": reason}})
    assert json.loads(files["clean.json"])["not_decontaminated"] == {"mmlu_anatomy": reason}
    assert json.loads(files["clean.json"])["evaluations"] == {}
    assert json.loads(files["metrics"])["not_decontaminated"] == {"mmlu_anatomy": reason}
