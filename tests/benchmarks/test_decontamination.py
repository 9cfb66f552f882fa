"""The index of evaluation items: what shares text with one, and what does not."""

from __future__ import annotations

from tasks.benchmarks.declare import ExerciseTasks
from tasks.benchmarks.decontamination import EvaluationIndex
from tasks.benchmarks.evaluation_sets import Decontamination
from tasks.benchmarks.evaluation_texts import Item, items_of
from tasks.exercises import generate
from tasks.modeling.conversation import Turn

LONG = "one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen"
TEN = "alpha beta gamma delta epsilon zeta eta theta iota kappa"


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
