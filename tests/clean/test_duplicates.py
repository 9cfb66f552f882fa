"""Exact and near duplicates: what is found, and what is left alone."""

from __future__ import annotations

import random
from itertools import combinations

import numpy as np
import pytest

from tasks.benchmarks.words import run_hashes, tokens, words
from tasks.clean.duplicates import RECALL, ExactDuplicates, bands_of, jaccard, near_judge, shingles_of
from tasks.clean.filters import Judge, Why
from tasks.clean.rows import Row
from tasks.clean.stage import NearDuplicates
from tasks.exercises import KINDS, generate
from tasks.modeling.conversation import Turn

NEAR = NearDuplicates()


def row(name: str, *turns: str, system: str | None = None) -> Row:
    spoken = [Turn(("user", "assistant")[index % 2], turn) for index, turn in enumerate(turns)]
    return Row(name, tuple([Turn("system", system)] if system is not None else []) + tuple(spoken), b"")


def text(rng: random.Random, length: int) -> list[str]:
    return [f"w{rng.randrange(5000)}" for _ in range(length)]


def exact_judge() -> Judge:
    """Where no other step takes a row, so that each which is no duplicate stays."""
    exact = ExactDuplicates()

    def judge(row: Row) -> Why | None:
        why = exact.judge(row)
        if why is None:
            exact.keep(row)
        return why

    return judge


def test_exact_duplicates_differ_in_case_space_and_composition_only() -> None:
    judge = exact_judge()
    assert judge(row("a", "Ist das\r\nein Café?", "Ja.")) is None
    assert judge(row("b", "ist  das ein CAFE\u0301?\n", " ja. ")) == {"of": "a"}
    assert judge(row("c", "Ist das ein Cafe?", "Ja.")) is None
    assert judge(row("d", "Ist das ein Café?", "Ja.", "Sicher?", "Ja.")) is None
    assert judge(row("e", "Ist das ein Café?", "Ja.", system="Be kind.")) is None
    # Punctuation tells sums apart, and where a turn ends tells conversations apart.
    assert judge(row("f", "2 + 3", "5")) is None
    assert judge(row("g", "2 - 3", "5")) is None
    assert judge(row("h", "2 - 3 5", "")) is None
    assert judge(row("a", "Ist das ein Café?", "Ja.")) == {"of": "a"}


def test_how_many_exact_duplicates_go_does_not_hang_on_the_order() -> None:
    rows = [row(str(number), f"Question {number % 7}", "answer") for number in range(30)]
    counts = set()
    for seed in range(4):
        random.Random(seed).shuffle(rows)
        judge = exact_judge()
        counts.add(sum(judge(each) is not None for each in rows))
    assert counts == {23}


@pytest.mark.parametrize(("threshold", "permutations"), [(0.8, 128), (0.9, 128), (0.5, 256), (0.8, 8)])
def test_bands_bring_pairs_at_the_threshold_together(threshold: float, permutations: int) -> None:
    bands, rows = bands_of(threshold, permutations)
    assert bands * rows <= permutations
    assert rows == 1 or 1 - (1 - threshold**rows) ** bands >= RECALL


def test_planted_edits_are_found_above_the_threshold_and_only_there() -> None:
    """300 texts and edits of each, from one word to a third of them; what is removed is told by the exact measure."""
    rng = random.Random(5)
    judge = near_judge(NEAR)
    originals = []
    for number in range(300):
        turns = (text(rng, 40), text(rng, 120))
        originals.append(turns)
        assert judge(row(str(number), " ".join(turns[0]), " ".join(turns[1]))) is None
    above = found = 0
    for number, (question, answer) in enumerate(originals):
        edited = list(answer)
        for place in rng.sample(range(len(edited)), 1 + number % 12):
            edited[place] = "edited"
        changed = row("edit", " ".join(question), " ".join(edited))
        original = row(str(number), " ".join(question), " ".join(answer))
        similarity = jaccard(shingles_of(original, 5), shingles_of(changed, 5))
        why = judge(changed)
        if similarity >= NEAR.threshold:
            above += 1
            found += why is not None
            if why is not None:
                assert why == {"of": str(number), "jaccard": round(similarity, 4)}
        else:
            # Kept, it stands in the index now; no later edit is near to it.
            assert why is None, f"a pair of {similarity:.3f} was taken for a duplicate"
    assert above > 60
    assert found >= RECALL * above


def test_the_first_stays_and_the_seed_decides_nothing_but_what_is_compared() -> None:
    rng = random.Random(1)
    words_of = text(rng, 100)
    one, other = row("one", " ".join(words_of), "yes"), row("other", " ".join([*words_of, "too"]), "yes")
    for seed in range(5):
        for first, second in ((one, other), (other, one)):
            judge = near_judge(NearDuplicates(seed=seed))
            assert judge(first) is None
            why = judge(second)
            assert why is not None
            assert why["of"] == first.id


def test_a_near_duplicate_that_goes_stands_in_nobodys_way() -> None:
    """Three texts in a chain, each near to the next only: the last is measured beside the first, not the second."""
    words_of = text(random.Random(2), 100)
    chain = [row(str(at), " ".join(words_of[at * 10 : at * 10 + 80]), "") for at in range(3)]
    near, far = (jaccard(shingles_of(chain[0], 5), shingles_of(each, 5)) for each in chain[1:])
    judge = near_judge(NearDuplicates(threshold=0.7))
    assert near >= 0.7 > far
    assert [judge(each) is None for each in chain] == [True, False, True]


def test_system_prompts_and_sums_do_not_make_near_duplicates() -> None:
    judge = near_judge(NEAR)
    system = "You are a careful assistant. " * 30
    assert judge(row("a", "Name a river.", "The Danube.", system=system)) is None
    assert judge(row("b", "Name a lake.", "Lake Constance.", system=system)) is None
    assert judge(row("c", "2 + 3", "")) is None
    assert judge(row("d", "2 - 3", "")) is None
    assert judge(row("e", "", "")) is None
    assert judge(row("f", "\r\n", "")) is None


def test_exercises_are_not_near_duplicates_of_each_other() -> None:
    """Short and of one form, but each with its own answer: nearly all must stay."""
    judge = near_judge(NEAR)
    made = [item for kind in KINDS for item in generate(kind, "train", 60, 2)]
    removed = sum(judge(row(item.prompt, item.prompt, item.answer)) is not None for item in made)
    assert removed <= 0.01 * len(made)


def test_words_and_tokens() -> None:
    assert words("Don't, ＳＴＯＰ: x_1\r\n2.5!") == ["don", "t", "stop", "x", "1", "2", "5"]
    assert tokens("2 + 3 = 5.") == ["2", "+", "3", "=", "5", "."]
    assert words("富士山は高い") == list("富士山は高い")
    assert words("नमस्ते दुनिया") == ["नमस्ते", "दुनिया"]
    assert words("...") == []


def test_runs_are_equal_where_their_words_are() -> None:
    rng = random.Random(3)
    one = text(rng, 200)
    hashes = run_hashes(one, 13)
    assert len(hashes) == 188
    assert len(np.unique(hashes)) == 188
    assert (run_hashes(["before", *one], 13)[1:] == hashes).all()
    assert len(run_hashes(one[:12], 13)) == 0
    swapped = [run_hashes(list(pair), 2)[0] for pair in combinations("abcdef", 2)]
    reversed_ = [run_hashes(list(pair)[::-1], 2)[0] for pair in combinations("abcdef", 2)]
    assert not set(swapped) & set(reversed_)
