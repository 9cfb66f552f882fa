"""The pass over a source before any shard: which documents there are, how often each token is kept, what is wrong.

Everything that a set can be refused for is found here, before hours of work.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from tasks.artifacts.errors import BadInputError
from tasks.exercises.holdout import is_heldout
from tasks.import_logits.aligned import AlignedDocument
from tasks.import_logits.source import Place, SourceFiles
from tasks.logits.rows import row_id_of
from tasks.logits.schema import Split

NEIGHBOURS = {-1: "itself", 1: "the one after it"}
"""Tokens that a position seems to predict if the set is shifted: its own, or the next but one."""
MIN_DIFFERENCE = 0.02
MIN_ERRORS = 5.0
"""By how much, in probability and in standard errors, a neighbour must be predicted better for a set to be refused."""
MAX_GOLD_GAP = 0.5
"""Nats, on average, between gold_logprob and the same token's entry. The coarsest values of a store here, those of
sampled support, are off by 0.05 on average; a shift by one makes several nats."""


@dataclass(frozen=True)
class Contents:
    """The documents of each split in the source's order, each once."""

    places: Mapping[Split, list[Place]]
    duplicates: int

    @property
    def num_rows(self) -> dict[Split, int]:
        return {split: len(places) for split, places in self.places.items() if places}


def list_documents(files: SourceFiles, heldout_fraction: float, seed: int) -> Contents:
    """Reads all token ids and divides the documents.

    Raises:
        BadInputError: a split is empty that should not be.
    """
    places: dict[Split, list[Place]] = {"train": [], "heldout": []}
    seen: set[bytes] = set()
    duplicates = 0
    # Held-out files first: a document that is also among the others is then missing from training.
    for named in ("heldout", "train"):
        for place, tokens in files.token_ids(named):
            row_id = row_id_of(tokens)
            if bytes.fromhex(row_id) in seen:
                duplicates += 1
                continue
            seen.add(bytes.fromhex(row_id))
            by_hash = not files.heldout_named and is_heldout(row_id, heldout_fraction, seed)
            places["heldout" if by_hash else named].append(place)
    wants_heldout = files.heldout_named or heldout_fraction > 0
    if not places["train"] or (wants_heldout and not places["heldout"]):
        raise BadInputError(
            f"the source of import_logits has {len(seen)} different documents, {len(places['train'])} to train on and "
            f"{len(places['heldout'])} held out; change heldout_fraction or seed, or name more files"
        )
    return Contents(places, duplicates)


@dataclass
class Survey:
    """What is counted over all documents."""

    vocab_size: int
    num_documents: int = 0
    num_positions: int = 0
    widest: int = 0
    """Entries of the position that has most."""
    counts_V: npt.NDArray[np.int64] = field(init=False)
    """How often each token is kept."""
    _shift: dict[int, npt.NDArray[np.float64]] = field(init=False)
    _gap: npt.NDArray[np.float64] = field(init=False)

    def __post_init__(self) -> None:
        self.counts_V = np.zeros(self.vocab_size, np.int64)
        # Number, sum and sum of squares of differences in probability.
        self._shift = {offset: np.zeros(3) for offset in NEIGHBOURS}
        self._gap = np.zeros(2)

    def add(self, document: AlignedDocument) -> None:
        """Counts one document."""
        ids_PK = document.positions.topk_ids_PK
        kept_PK = ids_PK >= 0
        self.num_documents += 1
        self.num_positions += len(ids_PK)
        self.widest = max(self.widest, int(kept_PK.sum(1).max(initial=0)))
        self.counts_V += np.bincount(ids_PK[kept_PK], minlength=self.vocab_size)
        told_P = document.gold_given & ~np.isnan(document.gold_entry_P)
        gaps = np.abs(document.positions.gold_logprob_P[told_P] - document.gold_entry_P[told_P])
        self._gap += len(gaps), np.minimum(gaps, 100.0).sum()
        probabilities_PK = np.exp(document.positions.topk_logprobs_PK.astype(np.float64))
        tokens_T = document.input_ids_T
        for offset, sums in self._shift.items():
            # Positions that have both the token they should predict, p + 1, and its neighbour p + 1 + offset.
            last = len(tokens_T) - 1 - max(offset, 0)
            right_P, other_P = (tokens_T[1 + shift : 1 + shift + last] for shift in (0, offset))
            differences_P = sum(
                sign * np.where(ids_PK[:last] == gold_P[:, None], probabilities_PK[:last], 0.0).sum(1)
                for sign, gold_P in ((1, other_P), (-1, right_P))
            )
            sums += last, np.sum(differences_P), np.sum(np.square(differences_P))

    def check(self) -> None:
        """Raises BadInputError where the distributions fit a neighbour of the token that they should predict."""
        for offset, (count, total, squares) in self._shift.items():
            if count < 2:
                continue
            mean = total / count
            error = np.sqrt(max(squares / count - mean**2, 1e-12) / count)
            if mean > max(MIN_DIFFERENCE, MIN_ERRORS * error):
                raise BadInputError(
                    f"the positions of this set seem to be shifted by one: a token's distribution gives "
                    f"{NEIGHBOURS[offset]} {mean:.2f} more probability than the next token, on average over "
                    f"{count:.0f}; set recipe.format.extra_position of import_logits to what the set is"
                )
        if self._gap[0] and self._gap[1] / self._gap[0] > MAX_GOLD_GAP:
            raise BadInputError(
                f"gold_logprob and the same tokens' entries differ by {self._gap[1] / self._gap[0]:.2f} nats on "
                f"average, so they belong to other positions; set recipe.format.extra_position of import_logits to "
                f"what the set is, or leave the column out"
            )

    def record(self) -> dict[str, Any]:
        """The metrics of the prior's receipt."""
        return {"rows": self.num_documents, "positions": self.num_positions, "widest": self.widest}
