"""A reverse proxy before an S3 server that does to requests and answers what networks and servers do to them.

It passes host and signature on unchanged. Bodies are held in memory: those of micro are small.
"""

from __future__ import annotations

import asyncio
import threading
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass

from aiohttp import ClientError, ClientSession, ClientTimeout, DummyCookieJar, web
from yarl import URL

_HOP_BY_HOP = {"connection", "keep-alive", "expect", "transfer-encoding", "content-length"}
_BUSY = (
    b'<?xml version="1.0" encoding="UTF-8"?><Error><Code>SlowDown</Code>'
    b"<Message>Please reduce your request rate.</Message></Error>"
)
_START_SECONDS = 30


@dataclass(frozen=True)
class Request:
    """What came from the client."""

    number: int
    """Of all requests through this proxy, from 0."""
    method: str
    path: str
    """Of the object, without the query: /bucket/key."""
    query: str
    headers: list[tuple[str, str]]
    body: bytes

    def header(self, name: str) -> str | None:
        """Value of the first header of this name, in whatever case."""
        return next((value for key, value in self.headers if key.lower() == name.lower()), None)


@dataclass(frozen=True)
class Answer:
    """What the server said."""

    status: int
    headers: list[tuple[str, str]]
    body: bytes


class Exchange:
    """One request on its way, in the hands of a fault."""

    def __init__(self, proxy: S3Proxy, request: Request, client: web.Request) -> None:
        self.request = request
        self._proxy = proxy
        self._client = client

    async def pass_on(self, cut_at: int | None = None, then: Callable[[], Awaitable[None]] | None = None) -> Answer:
        """Sends the request to the server. With `then`, that happens after `cut_at` bytes of the body are sent."""
        headers = [(name, value) for name, value in self.request.headers if name.lower() not in _HOP_BY_HOP]
        body = self.request.body
        data: bytes | AsyncIterator[bytes] | None = body or None
        if then is not None:
            middle = then

            async def halves() -> AsyncIterator[bytes]:
                yield body[:cut_at]
                await middle()
                yield body[cut_at:]

            data = halves()
        if body or self.request.method in {"PUT", "POST"}:
            headers.append(("Content-Length", str(len(body))))
        url = URL(f"{self._proxy.upstream}{self._client.raw_path}", encoded=True)
        session = self._proxy.session
        async with session.request(self.request.method, url, headers=headers, data=data, allow_redirects=False) as got:
            return Answer(got.status, list(got.headers.items()), await got.read())

    async def answer(self, answer: Answer, keep: float = 1.0) -> web.StreamResponse:
        """Gives it to the client; only the first part of its body where `keep` is below 1, and then a closed
        connection.
        """
        response = web.StreamResponse(status=answer.status)
        for name, value in answer.headers:
            if name.lower() not in _HOP_BY_HOP:
                response.headers.add(name, value)
        # The answer to a HEAD tells the object's length and has no body.
        told = next((value for name, value in answer.headers if name.lower() == "content-length"), None)
        response.content_length = int(told) if told is not None else len(answer.body)
        await response.prepare(self._client)
        if keep < 1:
            await response.write(answer.body[: int(len(answer.body) * keep)])
            self.reset()
        elif answer.body:
            await response.write(answer.body)
        return response

    def refuse(self) -> web.StreamResponse:
        """503 without asking the server."""
        return web.Response(status=503, body=_BUSY, content_type="application/xml")

    def reset(self) -> web.StreamResponse:
        """Ends the client's connection without a word more."""
        if self._client.transport is not None:
            self._client.transport.abort()
        return web.Response()


Fault = Callable[[Exchange], Awaitable[web.StreamResponse | None]]
"""Answers an exchange in its own way; None: it passes undisturbed."""


class S3Proxy:
    """Listens on a loopback port until it is closed. `fault` may be changed at any time."""

    def __init__(self, upstream: str, fault: Fault | None = None) -> None:
        self.upstream = upstream
        self.fault = fault
        self.disturbed: Counter[str] = Counter()
        """How many requests a fault answered, by method."""
        self.requests = 0
        self.session: ClientSession
        self._runner: web.AppRunner
        self._port = 0
        self._failure: BaseException | None = None
        self._up = threading.Event()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, name="s3 proxy", daemon=True)
        self._thread.start()
        if not self._up.wait(_START_SECONDS) or self._failure is not None:
            raise RuntimeError(f"the proxy did not start: {self._failure}")

    @property
    def endpoint(self) -> str:
        """Where clients find it."""
        return f"http://127.0.0.1:{self._port}"

    def close(self) -> None:
        """Ends it; connections that are open are dropped."""
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(_START_SECONDS)

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        try:
            self._loop.run_until_complete(self._listen())
        except BaseException as error:
            self._failure = error
            raise
        finally:
            self._up.set()
        self._loop.run_forever()
        self._loop.run_until_complete(self._end())
        self._loop.close()

    async def _listen(self) -> None:
        # Nothing of one client may reach another, and the server's answer passes as it is.
        self.session = ClientSession(
            cookie_jar=DummyCookieJar(),
            auto_decompress=False,
            skip_auto_headers=("User-Agent", "Accept", "Accept-Encoding", "Content-Type"),
            timeout=ClientTimeout(total=300),
        )
        application = web.Application(client_max_size=2**30)
        application.router.add_route("*", "/{path:.*}", self._handle)
        self._runner = web.AppRunner(application, access_log=None, auto_decompress=False, shutdown_timeout=1)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", 0)
        await site.start()
        self._port = self._runner.addresses[0][1]

    async def _end(self) -> None:
        await self._runner.cleanup()
        await self.session.close()

    async def _handle(self, client: web.Request) -> web.StreamResponse:
        request = Request(
            self.requests, client.method, client.path, client.query_string, list(client.headers.items()),
            await client.read(),
        )  # fmt: skip
        self.requests += 1
        exchange = Exchange(self, request, client)
        try:
            if self.fault is not None and (response := await self.fault(exchange)) is not None:
                self.disturbed[request.method] += 1
                return response
            return await exchange.answer(await exchange.pass_on())
        except (ClientError, OSError):
            # The server is away: so is what stands before it.
            return exchange.reset()
