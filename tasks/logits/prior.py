"""How often the teacher keeps each token: the order in which a store numbers the vocabulary.

An entry is stored as its token's place in this order. Frequent tokens get small numbers, whose high byte is nearly
always 0 and so costs little.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import numpy.typing as npt
import zarr
import zarr.abc.store
from zarr.codecs import Crc32cCodec, ZstdCodec
from zarr.storage import LocalStore

from tasks.artifacts.errors import CorruptArtifactError

PRIOR_SHARD = "prior"
"""Name of the shard that holds it; committed before any other."""
_ARRAY = "id_of_place"


class Prior:
    """A permutation of a vocabulary's V ids."""

    def __init__(self, id_of_place_V: npt.ArrayLike) -> None:
        """`id_of_place_V`: the ids, the most frequent first."""
        self.id_of_place_V = np.ascontiguousarray(id_of_place_V, np.int32)
        self.place_of_id_V = np.empty_like(self.id_of_place_V)
        self.place_of_id_V[self.id_of_place_V] = np.arange(len(self.id_of_place_V), dtype=np.int32)

    @classmethod
    def from_counts(cls, counts_V: npt.ArrayLike) -> Prior:
        """By count descending, then by id: a byte-pair tokenizer gave its frequent tokens low ids."""
        return cls(np.argsort(-np.asarray(counts_V, np.int64), kind="stable"))

    @classmethod
    def identity(cls, vocab_size: int) -> Prior:
        """Where nothing was counted."""
        return cls(np.arange(vocab_size))

    @property
    def vocab_size(self) -> int:
        return len(self.id_of_place_V)

    @property
    def digest(self) -> str:
        """Hex sha256 of the ids in order, as little-endian int32. Every shard that was written with it says it."""
        return hashlib.sha256(self.id_of_place_V.astype("<i4").tobytes()).hexdigest()


def write_prior(directory: Path, prior: Prior, num_tokens: int = 0) -> None:
    """Writes the zarr group `directory`; `num_tokens` says on how many positions it was counted."""
    with zarr.config.set({"array.write_empty_chunks": True}):
        group = zarr.create_group(LocalStore(directory), attributes={"num_tokens": num_tokens, "digest": prior.digest})
        array = group.create_array(
            _ARRAY,
            shape=prior.id_of_place_V.shape,
            dtype="int32",
            chunks=prior.id_of_place_V.shape,
            compressors=[ZstdCodec(level=9), Crc32cCodec()],
            fill_value=0,
        )
        array[:] = prior.id_of_place_V


def read_prior(store: zarr.abc.store.Store, where: str) -> Prior:
    """Reads what `write_prior` wrote; `where` names it in an error.

    Raises:
        CorruptArtifactError: it is no permutation, or not the one that its digest names.
    """
    group = zarr.open_group(store, mode="r")
    ids_V = np.asarray(group[_ARRAY][:])  # type: ignore[index]
    if not np.array_equal(np.sort(ids_V), np.arange(len(ids_V))):
        raise CorruptArtifactError(
            f"{where} does not name each token once; delete its receipt and run dump_logits again"
        )
    prior = Prior(ids_V)
    if prior.digest != group.attrs["digest"]:
        raise CorruptArtifactError(
            f"{where} is not the prior that its digest names; delete it and run dump_logits again"
        )
    return prior
