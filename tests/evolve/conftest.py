"""A real HTTP server on 127.0.0.1 that speaks /v1/chat/completions, answers by a script and misbehaves on demand."""

from __future__ import annotations

import hashlib
import json
import re
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

Body = dict[str, Any]
IMPROVED_METHOD = "Step 1. Add one sharper condition and keep every fact that an answer needs."
_EXTRA = "Moreover, prove each step and treat the rarest case of it separately, in at most nine sentences."


@dataclass(frozen=True)
class ServerReply:
    """What the server sends: by default a completion with this content; `raw` is a body as it stands."""

    content: str = ""
    finish: str | None = "stop"
    status: int = 200
    raw: str | None = None
    headers: dict[str, str] = field(default_factory=dict)
    delay: float = 0
    after: threading.Event | None = None
    """Held back until this is set."""
    hang_up: bool = False
    """Closes the connection without a word."""
    cut: bool = False
    """Closes the connection in the middle of the body."""

    @property
    def is_answer(self) -> bool:
        return self.status == 200 and self.raw is None and not self.hang_up and not self.cut


def prompt_of(body: Body) -> str:
    return str(body["messages"][-1]["content"])


def purpose_of(body: Body) -> str:
    """Which of the stage's prompts this is, by the tag that it asks for."""
    prompt = prompt_of(body)
    for tag in ("evolved_instruction", "feedback", "verdict", "method", "next_message"):
        if prompt.endswith(f"</{tag}>.") or f"between <{tag}>" in prompt:
            return tag
    return "answer"


def instruction_of(body: Body) -> str:
    match = re.search(r"\[instruction\]\n(.*)\n\[end of instruction\]", prompt_of(body), re.DOTALL)
    return match[1] if match else prompt_of(body)


def scripted(body: Body) -> ServerReply:
    """A well-behaved model: the same request always has the same answer."""
    purpose = purpose_of(body)
    if purpose == "evolved_instruction":
        text = f"{instruction_of(body)} {_EXTRA}"
        return ServerReply(f"Step 1: done.\n<evolved_instruction>\n{text}\n</evolved_instruction>")
    if purpose == "feedback":
        return ServerReply("<feedback>Cases 1 and 2 only grew in length.</feedback>")
    if purpose == "method":
        return ServerReply(f"<method>{IMPROVED_METHOD}</method>")
    if purpose == "verdict":
        return ServerReply("<verdict>pass</verdict>")
    if purpose == "next_message":
        asked = prompt_of(body).count("[user]")
        told = hashlib.sha256(prompt_of(body).encode()).hexdigest()
        return ServerReply(f"<next_message>Step {asked}: what follows from {told}?</next_message>")
    return ServerReply(
        f"The answer to {len(prompt_of(body))} letters is {hashlib.sha256(prompt_of(body).encode()).hexdigest()}."
    )


class Endpoint:
    """The server's script and what it saw. Survives `restart`."""

    # Within reach of the tests, which cannot import a conftest.
    Reply = ServerReply
    scripted = staticmethod(scripted)
    purpose_of = staticmethod(purpose_of)
    prompt_of = staticmethod(prompt_of)
    instruction_of = staticmethod(instruction_of)
    improved_method = IMPROVED_METHOD

    def __init__(self) -> None:
        self.respond: Callable[[Body], ServerReply] = scripted
        self.faults: deque[ServerReply] = deque()
        """Sent before anything else, one for each request that comes in."""
        self.answered: Counter[str] = Counter()
        """Completions sent, by the sha256 of the request's body."""
        self.bodies: list[Body] = []
        self.times: list[float] = []
        """When each request came in, monotonic seconds."""
        self.keys: set[str] = set()
        self.most_at_once = 0
        self.stop_after: int | None = None
        """The server stops listening after so many completions."""
        self._at_once = 0
        self._lock = threading.Lock()
        self._server: ThreadingHTTPServer | None = None
        self.start()

    @property
    def url(self) -> str:
        assert self._server is not None
        return f"http://127.0.0.1:{self._server.server_address[1]}/v1"

    def settings(self, **changes: Any) -> dict[str, Any]:
        """Runtime block with this endpoint, quick to retry."""
        return {"endpoint": {"base_url": self.url, "first_delay_seconds": 0.01, "timeout_seconds": 10, **changes}}

    def start(self) -> None:
        endpoint = self

        class Handler(BaseHTTPRequestHandler):
            # HTTP/1.0 closes each connection, so that a stopped server is gone for every client.
            def do_POST(self) -> None:
                endpoint.handle(self)

            def log_message(self, *_: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        # So that closing the server waits for their threads.
        self._server.daemon_threads = False
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()

    def stop(self) -> None:
        """Takes no more requests, and waits until none is under way."""
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()
            self._server = None

    def restart(self) -> None:
        self.stop()
        self.stop_after = None
        self.start()

    def handle(self, handler: BaseHTTPRequestHandler) -> None:
        data = handler.rfile.read(int(handler.headers["content-length"]))
        body = json.loads(data)
        with self._lock:
            self._at_once += 1
            self.most_at_once = max(self.most_at_once, self._at_once)
            self.bodies.append(body)
            self.times.append(time.monotonic())
            self.keys.add(handler.headers.get("authorization", ""))
            reply = self.faults.popleft() if self.faults else self.respond(body)
            if self.stop_after is not None and sum(self.answered.values()) >= self.stop_after:
                reply = ServerReply(hang_up=True)
            if reply.is_answer and reply.delay < 1:
                self.answered[hashlib.sha256(data).hexdigest()] += 1
        if reply.after is not None:
            assert reply.after.wait(20)
        time.sleep(reply.delay)
        try:
            self._send(handler, body, reply)
        except BrokenPipeError:
            return  # the client had stopped waiting, as in the test of time-outs
        finally:
            with self._lock:
                self._at_once -= 1

    def _send(self, handler: BaseHTTPRequestHandler, body: Body, reply: ServerReply) -> None:
        if reply.hang_up:
            handler.connection.close()
            return
        echoed = (reply.raw or "").replace("{authorization}", handler.headers.get("authorization", ""))
        text = echoed if reply.raw is not None else json.dumps(self._completion(body, reply))
        data = text.encode()
        handler.send_response(reply.status)
        for name, value in {"content-type": "application/json", **reply.headers}.items():
            handler.send_header(name, value)
        handler.send_header("content-length", str(len(data)))
        handler.end_headers()
        handler.wfile.write(data[: len(data) // 2] if reply.cut else data)

    def _completion(self, body: Body, reply: ServerReply) -> dict[str, Any]:
        return {
            "id": "x",
            "object": "chat.completion",
            "created": int(time.time()),
            "model": f"served-{body['model']}",
            "choices": [
                {"index": 0, "finish_reason": reply.finish, "message": {"role": "assistant", "content": reply.content}}
            ],
            "usage": {"prompt_tokens": 20, "completion_tokens": 10, "total_tokens": 30},
        }


@pytest.fixture
def endpoint(monkeypatch: pytest.MonkeyPatch) -> Iterator[Endpoint]:
    for name in ("OPENAI_API_KEY", "OPENAI_BASE_URL", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)
    server = Endpoint()
    yield server
    server.stop()


@pytest.fixture
def autoevol_recipe() -> Callable[..., dict[str, Any]]:
    """autoevol_recipe(num_seeds=6, **changes): a small recipe with one round of search and two of evolution."""

    def make(num_seeds: int = 6, **changes: Any) -> dict[str, Any]:
        sampling = {"model": "writer", "temperature": 0.7, "max_tokens": 256}
        source = {
            "kind": "autoevol",
            "seeds": {
                "origin": "inline",
                "instructions": [
                    f"Explain in one sentence what lock number {n} of a canal does." for n in range(num_seeds)
                ],
            },
            "evolver": sampling,
            "optimiser": {**sampling, "model": "critic"},
            "answerer": sampling,
            "method_rounds": 1,
            "batch_size": 2,
            "dev_size": 2,
            "candidates": 2,
        }
        return {"source": {**source, **changes}}

    return make
