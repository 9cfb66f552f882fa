"""Which held-out texts a comparison reads: those that the evaluation leaves out. No torch, so that a flow can look."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from tasks.artifacts.errors import BadInputError
from tasks.logits.rows import Row, read_rows

HELDOUT_FILE = "heldout.parquet"


def texts_to_choose_on(file: Path, skip_documents: int, max_documents: int | None, where: str) -> Sequence[Row]:
    """All rows of the texts after the first `skip_documents`: whole documents, in the order of the corpus.

    Args:
        file: a corpus' held-out rows.
        where: names the corpus in the error.

    Raises:
        BadInputError: fewer than two are left.
    """
    rows = [row for row in read_rows(file) if row.kind == "text" and row.text]
    documents = list(dict.fromkeys(row.document for row in rows))
    kept = set(documents[skip_documents:][:max_documents])
    if len(kept) < 2:
        raise BadInputError(
            f"{where} holds out {len(documents)} texts, and the first {skip_documents} are the evaluation's: "
            f"{len(kept)} are left to choose on, and a standard error needs two; "
            + (
                f"lower assessment.evaluate.recipe.max_documents to about {len(documents) // 2}, or raise "
                if len(documents) >= 4
                else "raise "
            )
            + "the corpora's heldout_fraction"
        )
    return [row for row in rows if row.document in kept]
