"""Whether what a corpus holds out is enough to choose models on, told from its counts: without reading a row, so that
a flow can ask it of a manifest's metrics. No numpy.
"""

from __future__ import annotations

from tasks.artifacts.errors import BadInputError

HELDOUT_TEXTS = "heldout_texts"
"""A corpus' metric: documents that it holds out as text, each counted once however many pieces it is cut into."""
HELDOUT_CONVERSATIONS = "heldout_conversations"
"""A corpus' metric: conversations that it holds out."""


def require_texts(held_out: int, skip_documents: int, max_documents: int | None, where: str) -> None:
    """Raises BadInputError where fewer than two texts are left after the first `skip_documents`.

    Args:
        where: names the corpus in the error.
    """
    chosen = max(0, held_out - skip_documents)
    if max_documents is not None:
        chosen = min(chosen, max_documents)
    if chosen < 2:
        raise BadInputError(
            f"{where} holds out {held_out} texts, and the first {skip_documents} are the evaluation's: {chosen} are "
            f"left to choose on, and a standard error needs two; "
            + (
                f"lower assessment.evaluate.recipe.max_documents to about {held_out // 2}, or raise "
                if held_out >= 4
                else "raise "
            )
            + "the corpora's heldout_fraction"
        )


def require_conversations(held_out: int, where: str) -> None:
    """Raises BadInputError where fewer than two conversations are held out."""
    if held_out < 2:
        raise BadInputError(
            f"{where} holds out {held_out} conversations to choose on, and a standard error needs two; raise "
            f"fine_tuning.corpus.recipe.heldout_fraction, or set fine_tuning.choose to null"
        )
