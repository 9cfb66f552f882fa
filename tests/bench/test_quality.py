"""The comparison of students with their twins: its split, its items and its standard errors, on made-up parts."""

from __future__ import annotations

import math
import re
import shutil
import statistics
from pathlib import Path

import numpy as np
import pytest

from tasks.logits.rows import make_row
from tasks.modeling.tokenizer_files import load_tokenizer
from tasks.models.stage import MINIATURES
from tests.bench import quality_words
from tests.bench.paths import BENCH, ROOT
from tests.bench.quality_documents import SHARED_WORDS, distinct
from tests.bench.quality_folder import FOLDER, SOURCES, sources_digest
from tests.bench.quality_judge import JudgedDocument
from tests.bench.quality_recipes import ARMS, CHOSEN, LATER_ROUNDS, joined, recipe_of
from tests.bench.quality_words import cloze_items
from tests.bench.train_quality import SCALES, compare

WORDS = [f"word{number}" for number in range(SHARED_WORDS + 2)]


def test_no_two_documents_share_a_long_run_of_words() -> None:
    long_run, short_run = " ".join(WORDS[:SHARED_WORDS]), " ".join(WORDS[: SHARED_WORDS - 1])
    assert list(distinct([f"a {long_run}", f"b {long_run}!", f"c {short_run} d"])) == [
        f"a {long_run}",
        f"c {short_run} d",
    ]


def _judged(bits: float, correct: int) -> JudgedDocument:
    return JudgedDocument("", bits, num_bytes=100, correct=correct, num_items=10)


def test_a_gain_has_the_error_of_its_documents_and_of_its_pairs() -> None:
    twins = [[_judged(100, 5), _judged(120, 6)], [_judged(110, 5), _judged(130, 6)]]
    students = [[_judged(90, 6), _judged(100, 8)], [_judged(95, 6), _judged(115, 8)]]
    bits, accuracy = (compare(students, twins, scale) for scale in SCALES)
    # Gains of the pairs: 30/200 and 30/200; of the documents, in the mean over pairs: 12.5/100 and 17.5/100.
    assert bits.gain == pytest.approx(0.15)
    assert bits.by_pair == pytest.approx((0.15, 0.15))
    assert bits.error == pytest.approx(statistics.stdev((0.125, 0.175)) / math.sqrt(2))
    assert accuracy.gain == pytest.approx(0.15)
    assert compare(twins, students, SCALES[0]).gain == pytest.approx(-0.15)
    unlike = compare([students[0], twins[1]], twins, SCALES[0])
    assert unlike.error_pairs == pytest.approx(0.15 / 2)
    assert unlike.error == pytest.approx(math.hypot(0.15 / 2, statistics.stdev((0.05, 0.1)) / math.sqrt(2)))


def test_an_item_asks_for_the_word_that_stands_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quality_words, "NUM_COMMON", 0)
    monkeypatch.setattr(quality_words, "NUM_CHOICES", 4)
    tokenizer = load_tokenizer(Path(MINIATURES, "llama-teacher"))
    words = [token[1:] for token in sorted(tokenizer.get_vocab()) if re.fullmatch("Ġ[a-z]{3,}", token)][:48]
    rows = []
    for own in (words[:24], words[24:]):
        text = " ".join(["a", *own, *own]) + "."
        ids = np.array(tokenizer.encode(text, add_special_tokens=False), np.int32)
        rows.append(make_row(ids, np.ones(len(ids), np.uint8), text, "text", "test", own[0]))
    items = cloze_items(rows, tokenizer)
    assert items
    for item in items:
        right, *others = item.choices
        assert rows[item.row].input_ids[item.position] == right
        assert len({*item.choices}) == 4
        assert all(other in rows[1 - item.row].input_ids for other in others)


def test_the_arms_differ_in_what_was_searched_alone() -> None:
    assert [len(trials) for trials in LATER_ROUNDS["student"]] == [len(trials) for trials in LATER_ROUNDS["twin"]]
    student, twin = (recipe_of(arm, joined(CHOSEN[arm]), 1, 10) for arm in ARMS)
    assert student["loss"]["forward_kl"] > 0
    assert twin["loss"] == {"forward_kl": 0.0, "ce": 1.0}
    for name in student.keys() - {"loss", "optimizer"}:
        assert student[name] == twin[name]


def test_another_loss_is_trained_anew(tmp_path: Path) -> None:
    """In a copy of the sources: a changed line gives another folder, a note beside them does not."""
    for pattern in SOURCES:
        for path in ROOT.glob(pattern):
            target = tmp_path / path.relative_to(ROOT)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, target)
    before = sources_digest(tmp_path)
    assert BENCH / "quality" / before[:16] == FOLDER
    (tmp_path / "tasks/training/README.md").write_text("a note")
    assert sources_digest(tmp_path) == before
    digests = {before}
    for name in ("tasks/training/losses.py", "tasks/logits/reader.py", "tasks/distill/worker.py"):
        with (tmp_path / name).open("a") as file:
            file.write("# another loss\n")
        digests.add(sources_digest(tmp_path))
    (tmp_path / "tasks/training/buckets.py").rename(tmp_path / "tasks/training/divergences.py")
    assert len({*digests, sources_digest(tmp_path)}) == 5
    shutil.rmtree(tmp_path / "tasks/distill")
    with pytest.raises(ValueError, match=r"no file tasks/distill"):
        sources_digest(tmp_path)
