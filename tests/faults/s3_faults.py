"""What is done to the traffic between a run and its object store; each counts what it did through the proxy."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from pathlib import PurePosixPath

from aiohttp import web

from tests.faults.s3_proxy import Exchange, Fault, Request

_LARGE = 1024
"""Bytes: an answer that has more is an object's body."""


def refuse_every(nth: int, storms: Callable[[], bool] = lambda: False) -> Fault:
    """503 for every nth request, and for all of them while `storms()`."""

    async def fault(exchange: Exchange) -> web.StreamResponse | None:
        return exchange.refuse() if exchange.request.number % nth == 0 or storms() else None

    return fault


def reset_every(nth: int) -> Fault:
    """The connection is reset at every nth request before the server has seen it."""

    async def fault(exchange: Exchange) -> web.StreamResponse | None:
        return exchange.reset() if exchange.request.number % nth == 0 else None

    return fault


class Truncation:
    """Of every nth object that is read only the first half arrives."""

    def __init__(self, nth: int) -> None:
        self.seen = 0
        self.cut = 0
        self._nth = nth

    async def __call__(self, exchange: Exchange) -> web.StreamResponse | None:
        if exchange.request.method != "GET" or "list-type" in exchange.request.query:
            return None
        answer = await exchange.pass_on()
        self.seen += len(answer.body) >= _LARGE
        if len(answer.body) < _LARGE or self.seen % self._nth:
            return await exchange.answer(answer)
        self.cut += 1
        return await exchange.answer(answer, keep=0.5)


def is_conditional(request: Request) -> bool:
    """Whether it is a write under a condition: a receipt, a manifest, a lease."""
    conditions = (request.header("If-None-Match"), request.header("If-Match"))
    return request.method == "PUT" and any(value is not None for value in conditions)


def lose_answers(lost: list[str]) -> Fault:
    """The server does each conditional write, and the first answer to it never arrives; `lost` takes the paths."""
    answered: set[tuple[str, bytes]] = set()

    async def fault(exchange: Exchange) -> web.StreamResponse | None:
        request = exchange.request
        if not is_conditional(request) or (request.path, request.body) in answered:
            return None
        answer = await exchange.pass_on()
        answered.add((request.path, request.body))
        if answer.status != 200:
            return await exchange.answer(answer)
        lost.append(request.path)
        return exchange.reset()

    return fault


def slow_down(seconds: float, bytes_per_second: float) -> Fault:
    """Every request takes so much longer, and bodies in either direction are no faster than this."""

    async def fault(exchange: Exchange) -> web.StreamResponse | None:
        await asyncio.sleep(seconds + len(exchange.request.body) / bytes_per_second)
        answer = await exchange.pass_on()
        await asyncio.sleep(len(answer.body) / bytes_per_second)
        return await exchange.answer(answer)

    return fault


def in_the_middle_of_an_upload(happens: Callable[[], None], least_bytes: int, wanted: Callable[[str], bool]) -> Fault:
    """`happens()` once, in a thread, when half of an object of at least this size has gone to the server."""
    done = False

    async def fault(exchange: Exchange) -> web.StreamResponse | None:
        nonlocal done
        request = exchange.request
        if done or request.method != "PUT" or len(request.body) < least_bytes or not wanted(request.path):
            return None
        done = True
        halfway = len(request.body) // 2
        answer = await exchange.pass_on(halfway, lambda: asyncio.to_thread(happens))
        return await exchange.answer(answer)

    return fault


class Storm:
    """Some seconds that begin when they are called for."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._until = 0.0

    def begin(self) -> None:
        self._until = time.monotonic() + self._seconds

    def __call__(self) -> bool:
        return time.monotonic() < self._until


def is_data(path: str) -> bool:
    """Whether an object is one of an artifact's own, not a record about it."""
    return "data" in PurePosixPath(path).parts
