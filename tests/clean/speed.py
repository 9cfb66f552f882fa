"""`python -m tests.clean.speed` prints how many rows of about 400 words one core cleans a second, in CPU time."""

from __future__ import annotations

import random
import time

from tasks.benchmarks.decontamination import EvaluationIndex
from tasks.benchmarks.evaluation_sets import Decontamination
from tasks.benchmarks.evaluation_texts import Item
from tasks.clean.duplicates import ExactDuplicates, near_judge
from tasks.clean.filters import cut_off, length_judge, refused
from tasks.clean.rows import Row
from tasks.clean.stage import Length, NearDuplicates
from tasks.modeling.conversation import Turn

NUM_ROWS, WORDS = 1000, 400


def main() -> None:
    rng = random.Random(0)
    # Zipf's law, as in text: the hash of a frequent word is known already.
    vocabulary, weights = range(20_000), [1 / (rank + 10) for rank in range(20_000)]

    def text(length: int) -> str:
        return " ".join(f"w{word}" for word in rng.choices(vocabulary, weights, k=length))

    rows = [
        Row(str(at), (Turn("user", text(WORDS // 4)), Turn("assistant", text(WORDS - WORDS // 4))), b"")
        for at in range(NUM_ROWS)
    ]
    index = EvaluationIndex(Decontamination())
    index.add("set", (Item(str(at), (text(120),), (text(20),)) for at in range(2000)))
    index.close()
    exact = ExactDuplicates()
    alone = [length_judge(Length()), refused, cut_off, lambda row: index.judge(row.spoken)]
    judges = [*alone, exact.judge, near_judge(NearDuplicates())]
    started = time.process_time()
    kept = 0
    for row in rows:
        if all(judge(row) is None for judge in judges):
            exact.keep(row)
            kept += 1
    seconds = time.process_time() - started
    print(f"{NUM_ROWS / seconds:.0f} rows of {WORDS} words a CPU-second, {kept} of {NUM_ROWS} kept")


if __name__ == "__main__":
    main()
