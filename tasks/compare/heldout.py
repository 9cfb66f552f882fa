"""Which held-out texts a comparison reads: those that the evaluation leaves out. No torch, so that a flow can look."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from tasks.artifacts.errors import BadInputError
from tasks.logits.heldout import HELDOUT_FILE, heldout_texts
from tasks.logits.rows import Row

__all__ = ["HELDOUT_FILE", "texts_to_choose_on"]


def texts_to_choose_on(file: Path, skip_documents: int, max_documents: int | None, where: str) -> Sequence[Row]:
    """All rows of the texts after the first `skip_documents`: whole documents, in the order of the corpus.

    Args:
        file: a corpus' held-out rows.
        where: names the corpus in the error.

    Raises:
        BadInputError: fewer than two are left.
    """
    texts = heldout_texts(file, skip=skip_documents, maximum=max_documents)
    if texts.chosen < 2:
        raise BadInputError(
            f"{where} holds out {texts.held_out} texts, and the first {skip_documents} are the evaluation's: "
            f"{texts.chosen} are left to choose on, and a standard error needs two; "
            + (
                f"lower assessment.evaluate.recipe.max_documents to about {texts.held_out // 2}, or raise "
                if texts.held_out >= 4
                else "raise "
            )
            + "the corpora's heldout_fraction"
        )
    return texts.rows
