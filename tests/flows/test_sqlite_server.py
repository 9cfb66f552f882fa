"""Prefect's server in SQLite: what makes it stop answering, with Prefect's own parts and with ours."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import sqlite3
import time
from collections.abc import Iterator
from pathlib import Path

import aiosqlite
import pytest
import sqlalchemy as sa
from aiosqlite import Cursor
from prefect.server.database import dependencies
from prefect.server.database.configurations import AioSqliteConfiguration
from prefect.settings import PREFECT_API_DATABASE_CONNECTION_URL, temporary_settings

from flows.sqlite_server import WriteLockFirst, mend

BUSY_SECONDS = 6.0


@pytest.fixture
def mended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Mended for one test."""
    monkeypatch.setattr(Cursor, "__del__", None, raising=False)
    monkeypatch.setitem(dependencies.MODELS_DEPENDENCIES, "database_config", None)
    with temporary_settings({PREFECT_API_DATABASE_CONNECTION_URL: _url(tmp_path / "prefect.db")}):
        mend()
        assert isinstance(dependencies.MODELS_DEPENDENCIES["database_config"], WriteLockFirst)
        yield


def _url(file: Path) -> str:
    return f"sqlite+aiosqlite:///{file}"


async def _seconds_blocked(file: Path) -> float:
    """How long the event loop stands still where a cursor with rows left is dropped while its connection waits for the
    write lock, which another connection has.
    """
    connect = functools.partial(aiosqlite.connect, file, isolation_level=None)
    async with connect() as holder, connect() as waiter:
        left = await waiter.execute("SELECT 1 UNION SELECT 2")
        # The connection's thread holds what it returned last.
        await waiter.execute(f"PRAGMA busy_timeout = {1000 * BUSY_SECONDS:.0f}")
        await holder.execute("BEGIN IMMEDIATE")
        waits = asyncio.ensure_future(waiter.execute("BEGIN IMMEDIATE"))
        await asyncio.sleep(BUSY_SECONDS / 4)
        started = time.monotonic()
        del left
        blocked = time.monotonic() - started
        await holder.execute("COMMIT")
        with contextlib.suppress(sqlite3.OperationalError):  # it waited in vain where the event loop stood still
            await waits
    return blocked


def test_a_dropped_cursor_stops_the_event_loop_as_aiosqlite_has_it(tmp_path: Path) -> None:
    assert asyncio.run(_seconds_blocked(tmp_path / "plain.db")) > BUSY_SECONDS / 4, "the fault that is mended"


@pytest.mark.usefixtures("mended")
def test_a_dropped_cursor_is_closed_on_its_connections_thread(tmp_path: Path) -> None:
    assert asyncio.run(_seconds_blocked(tmp_path / "mended.db")) < BUSY_SECONDS / 8


async def _refused(database: AioSqliteConfiguration, writers: int = 8) -> int:
    """How many of the transactions that read first and write then are refused."""
    engine = await database.engine()
    async with engine.begin() as connection:
        await connection.execute(sa.text("CREATE TABLE numbers (value INTEGER)"))

    async def write(number: int) -> None:
        session = await database.session(engine)
        async with session, database.begin_transaction(session):
            await session.execute(sa.text("SELECT value FROM numbers"))
            await asyncio.sleep(0.02)
            await session.execute(sa.text("INSERT INTO numbers VALUES (:number)"), {"number": number})

    outcomes = await asyncio.gather(*(write(number) for number in range(writers)), return_exceptions=True)
    async with engine.connect() as connection:
        kept = list(await connection.scalars(sa.text("SELECT value FROM numbers ORDER BY value")))
    await engine.dispose()
    done = [number for number, outcome in enumerate(outcomes) if outcome is None]
    assert kept == done
    refused = [outcome for outcome in outcomes if outcome is not None]
    assert all("database is locked" in str(outcome) for outcome in refused)
    return len(refused)


def test_transactions_that_read_first_are_refused_as_prefect_has_it(tmp_path: Path) -> None:
    url = _url(tmp_path / "plain.db")
    assert asyncio.run(_refused(AioSqliteConfiguration(connection_url=url))) > 0, "the fault that is mended"


def test_transactions_that_read_first_wait_for_their_turn(tmp_path: Path) -> None:
    assert asyncio.run(_refused(WriteLockFirst(connection_url=_url(tmp_path / "mended.db")))) == 0


def test_another_database_is_left_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(dependencies.MODELS_DEPENDENCIES, "database_config", None)
    postgres = "postgresql+asyncpg://prefect:secret@localhost:5432/prefect"
    with temporary_settings({PREFECT_API_DATABASE_CONNECTION_URL: postgres}):
        mend()
    assert dependencies.MODELS_DEPENDENCIES["database_config"] is None
    assert not hasattr(Cursor, "__del__")
