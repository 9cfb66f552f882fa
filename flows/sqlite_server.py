"""A Prefect server that goes on answering with its database in SQLite.

`python -m flows.sqlite_server …` is `prefect server start` with the same options. With Prefect 3.8, SQLAlchemy 2.0 and
aiosqlite 0.22 that server stops answering for 60 s at a time some seconds after a run of ten stages is started:

- Its transactions begin DEFERRED. One that has read and then writes fails at once where another has written meanwhile
  ("database is locked": 60 times in 15 s in the evaluation of triggers, each an alert that is not counted).
- A statement that fails leaves its cursor open in a traceback. Where the garbage collector meets it on the thread of
  the event loop, the reset waits for the cursor's connection; that may wait up to 60 s for the write lock by then, and
  who has the lock waits for the event loop.

Here every transaction begins IMMEDIATE, and a cursor is closed on its connection's thread. With another database this
changes nothing.
"""

from __future__ import annotations

import sys
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

from aiosqlite import Cursor
from prefect.cli import app
from prefect.server.database.configurations import AioSqliteConfiguration
from prefect.server.database.dependencies import MODELS_DEPENDENCIES
from prefect.server.utilities.database import get_dialect
from prefect.settings import PREFECT_API_DATABASE_CONNECTION_URL
from sqlalchemy.ext.asyncio import AsyncSession, AsyncSessionTransaction


class WriteLockFirst(AioSqliteConfiguration):
    """Takes the write lock when a transaction begins, not when it first writes."""

    @asynccontextmanager
    async def begin_transaction(
        self,
        session: AsyncSession,
        with_for_update: bool = True,
    ) -> AsyncGenerator[AsyncSessionTransaction, None]:
        async with super().begin_transaction(session, with_for_update=True) as transaction:
            yield transaction


def _close_on_its_thread(cursor: Cursor) -> None:
    # An entry of the connection's queue: who waits for it (nobody), and what its thread is to do.
    cursor._conn._tx.put_nowait((None, cursor._cursor.close))


def mend() -> None:
    """Call before the server's application is made."""
    url = PREFECT_API_DATABASE_CONNECTION_URL.value()
    if get_dialect(url).name != "sqlite":
        return
    MODELS_DEPENDENCIES["database_config"] = WriteLockFirst(connection_url=url)
    # aiosqlite makes its cursors by the name of the class, so that one of our own would not be used.
    Cursor.__del__ = _close_on_its_thread  # type: ignore[attr-defined]


if __name__ == "__main__":
    mend()
    sys.argv[1:] = ["server", "start", *sys.argv[1:]]
    app()
