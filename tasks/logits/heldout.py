"""Which held-out texts and conversations models are measured on: the first ones of a corpus, or those after the first.
No torch."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from tasks.logits.enough_to_choose import require_conversations, require_texts
from tasks.logits.rows import Row, read_rows

HELDOUT_FILE = "heldout.parquet"


@dataclass(frozen=True)
class HeldoutTexts:
    """Whole documents, in the order of the corpus."""

    rows: list[Row]
    """All rows of the chosen documents."""
    chosen: int
    """Documents that they are of."""
    held_out: int
    """Documents that the corpus holds out as text."""


def heldout_texts(file: Path, *, skip: int = 0, maximum: int | None = None) -> HeldoutTexts:
    """The texts of a corpus' held-out rows after the first `skip` documents, at most `maximum` documents.

    Conversations are left out: the text of one hangs on the chat template of a model.
    """
    rows = [row for row in read_rows(file) if row.kind == "text" and row.text]
    documents = list(dict.fromkeys(row.document for row in rows))
    chosen = set(documents[skip:][:maximum])
    return HeldoutTexts([row for row in rows if row.document in chosen], len(chosen), len(documents))


def texts_to_choose_on(file: Path, skip_documents: int, max_documents: int | None, where: str) -> Sequence[Row]:
    """All rows of the texts after the first `skip_documents`: whole documents, in the order of the corpus.

    Args:
        file: a corpus' held-out rows.
        where: names the corpus in the error.

    Raises:
        BadInputError: fewer than two are left.
    """
    texts = heldout_texts(file, skip=skip_documents, maximum=max_documents)
    require_texts(texts.held_out, skip_documents, max_documents, where)
    return texts.rows


def conversations_to_choose_on(rows: Iterable[Row], maximum: int, where: str) -> list[Row]:
    """The first conversations of a corpus' held-out rows; each is one row.

    Raises:
        BadInputError: there are fewer than two.
    """
    chats = [row for row in rows if row.kind == "chat"]
    require_conversations(len(chats), where)
    return chats[:maximum]
