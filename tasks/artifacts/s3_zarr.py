"""An S3 store as zarr reads it: what a server that is away or refuses raises there is this project's own error."""

from __future__ import annotations

from collections.abc import Callable

from aiohttp import ClientError
from botocore.exceptions import BotoCoreError
from zarr.abc.store import ByteRequest
from zarr.core.buffer import Buffer, BufferPrototype
from zarr.storage import FsspecStore

FAILURES = (BotoCoreError, ClientError, OSError, TimeoutError)
"""What comes of a request that was not answered, or was refused."""


class S3ZarrStore(FsspecStore):
    """Its reads raise what `told` makes of a failure; without it they raise the failure."""

    told: Callable[[Exception], Exception] = staticmethod(lambda error: error)

    async def get(self, key: str, prototype: BufferPrototype, byte_range: ByteRequest | None = None) -> Buffer | None:
        """As FsspecStore's, None where there is no such object.

        Raises:
            StoreError: of S3Store.
        """
        try:
            return await super().get(key, prototype, byte_range)
        except FAILURES as error:
            raise self.told(error) from error
