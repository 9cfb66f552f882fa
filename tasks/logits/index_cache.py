"""A zarr store that remembers the indices of sharded objects.

zarr 3.1 fetches an object's index again for every chunk that it reads from it. With the index kept, a random document
costs one range request on S3 instead of two.
"""

from __future__ import annotations

from collections import OrderedDict

from zarr.abc.store import ByteRequest, Store, SuffixByteRequest
from zarr.core.buffer import Buffer, BufferPrototype
from zarr.storage import WrapperStore

MAX_INDICES = 4096
"""16 bytes a document each: some 10 MB at 100 documents an object."""


class IndexCachingStore(WrapperStore[Store]):
    """Serves repeated reads of the end of an object from memory. Its objects must never change."""

    def __init__(self, store: Store) -> None:
        super().__init__(store)
        self._ends: OrderedDict[tuple[str, int], Buffer] = OrderedDict()

    async def get(self, key: str, prototype: BufferPrototype, byte_range: ByteRequest | None = None) -> Buffer | None:
        """As the wrapped store's; zarr asks for the last bytes of an object only for its index."""
        if not isinstance(byte_range, SuffixByteRequest):
            return await super().get(key, prototype, byte_range)
        place = key, byte_range.suffix
        if (found := self._ends.get(place)) is not None:
            self._ends.move_to_end(place)
            return found
        end = await super().get(key, prototype, byte_range)
        if end is not None:
            self._ends[place] = end
            if len(self._ends) > MAX_INDICES:
                self._ends.popitem(last=False)
        return end
