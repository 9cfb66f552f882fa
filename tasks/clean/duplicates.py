"""Steps that judge a row beside the rows before it: exact and near duplicates. The first in the file's order stays."""

from __future__ import annotations

import numpy as np
from datasketch import MinHash, MinHashLSH

from tasks.artifacts.fingerprint import canonical_json, sha256_hex
from tasks.benchmarks.words import Hashes, plain, run_hashes, tokens
from tasks.clean.filters import Judge, Why
from tasks.clean.rows import Row
from tasks.clean.stage import NearDuplicates

RECALL = 0.99
"""Of the pairs just at the threshold, the share that the bands bring together; of pairs above it, more."""


class ExactDuplicates:
    """Conversations equal under `plain` to an earlier one that stays, roles and system prompt included."""

    def __init__(self) -> None:
        self._kept: dict[str, str] = {}

    def judge(self, row: Row) -> Why | None:
        """Which row that was kept it equals, if any."""
        of = self._kept.get(_key(row))
        return {"of": of} if of is not None else None

    def keep(self, row: Row) -> None:
        """Takes in a row that stays: past every step, so that nothing goes for the sake of a row that goes itself."""
        self._kept[_key(row)] = row.id


def _key(row: Row) -> str:
    return sha256_hex(canonical_json([[turn.role, plain(turn.content)] for turn in row.turns]))


def near_judge(settings: NearDuplicates) -> Judge:
    """Rows whose shingles have at least the threshold's Jaccard similarity with those of an earlier row that stays.

    MinHash bands bring candidates together, and their sets of shingles decide: no pair below the threshold is taken
    for a duplicate, and at most 1 - RECALL of those at it are missed. System prompts are left out.
    """
    bands, rows_a_band = bands_of(settings.threshold, settings.permutations)
    index = MinHashLSH(num_perm=settings.permutations, params=(bands, rows_a_band))
    empty = MinHash(settings.permutations, seed=settings.seed, hashfunc=int, scheme="affine32")
    kept: list[tuple[str, Hashes]] = []

    def judge(row: Row) -> Why | None:
        shingles = shingles_of(row, settings.shingle_words)
        if not len(shingles):
            return None
        sketch = empty.copy()
        # The upper half of a run's hash depends on all bits of its words, the lower half only on their lower ones.
        sketch.update_batch((shingles >> np.uint64(32)).tolist())
        for candidate in sorted(index.query(sketch)):
            of, others = kept[candidate]
            similarity = jaccard(shingles, others)
            if similarity >= settings.threshold:
                return {"of": of, "jaccard": round(similarity, 4)}
        index.insert(len(kept), sketch)
        kept.append((row.id, shingles))
        return None

    return judge


def bands_of(threshold: float, permutations: int) -> tuple[int, int]:
    """Bands, and rows of each: as many rows as still bring RECALL of the pairs at the threshold together."""
    for rows in range(permutations, 1, -1):
        bands = permutations // rows
        if 1 - (1 - threshold**rows) ** bands >= RECALL:
            return bands, rows
    return permutations, 1


def shingles_of(row: Row, size: int) -> Hashes:
    """Sorted hashes of the row's different runs of `size` tokens; a shorter row is one run."""
    text = [token for turn in row.spoken for token in tokens(turn.content)]
    return np.unique(run_hashes(text, min(size, len(text)))) if text else np.empty(0, np.uint64)


def jaccard(one: Hashes, other: Hashes) -> float:
    """Of two sorted sets, at least one of them not empty."""
    common = len(np.intersect1d(one, other, assume_unique=True))
    return common / (len(one) + len(other) - common)
