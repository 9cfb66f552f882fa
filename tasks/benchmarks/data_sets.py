"""Reading with the library `datasets`, with every failure as a sentence that says whether a later try may succeed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from tasks.artifacts.errors import BadInputError, TransientStoreError


@contextmanager
def faults_told(what: str, *, advice: str, instead: str | None) -> Iterator[None]:
    """In this block the library reads `what`, such as "the rows of a/b".

    Args:
        advice: what to correct where it cannot be read.
        instead: what to do without the hub; None where it is not asked.

    Raises:
        BadInputError: the data are not there or are no data set, or the hub must not be asked (HF_HUB_OFFLINE).
        TransientStoreError: the hub cannot be reached now; a later try may succeed.
    """
    # It reads where its caches are when it is imported, which a stage decides before.
    import datasets

    try:
        yield
    except (OSError, ValueError, KeyError, datasets.exceptions.DatasetsError) as error:
        if isinstance(error, ConnectionError) and instead is not None:
            if datasets.config.HF_HUB_OFFLINE:
                raise BadInputError(
                    f"HF_HUB_OFFLINE is set, so the hub is not asked for {what}; unset it, or {instead}"
                ) from error
            raise TransientStoreError(
                f"the hub cannot be reached for {what}; try again when the network is up, or {instead}"
            ) from error
        reason = " ".join(str(error).split())[:200]
        raise BadInputError(
            f"{what} cannot be read as a data set ({type(error).__name__}: {reason}); {advice}"
        ) from error
