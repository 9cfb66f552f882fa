"""What is asked of a model, what it answers, and the ledger of the calls that are finished.

A call's identity is the sha256 of its request. The ledger keeps one small object a call in the artifact's folder,
`calls/<2 hex>/<sha256>.json`, written before the answer is used: a launch that is killed loses the calls in flight and
no other. What a reply cost that answered no call lies beside them, as `unanswered/<32 hex>.json`. Neither is part of
the finished artifact's digest.
"""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from typing import Literal

from pydantic import ValidationError

from tasks.artifacts.artifact import Artifact
from tasks.artifacts.errors import CorruptArtifactError, ObjectExistsError
from tasks.artifacts.fingerprint import canonical_json, sha256_hex
from tasks.artifacts.frozen import Frozen
from tasks.evolve.stage import Sampling

CALL_VERSION = 1
_UNANSWERED = "unanswered"
_READERS = 16
"""Threads that read the ledger at the start: at a typical 20 ms for a small GET from S3, 800 calls a second."""


class Message(Frozen):
    role: Literal["system", "user", "assistant"]
    content: str


class Request(Frozen):
    """One call. `seed` tells apart calls that are otherwise equal, whether or not it is sent."""

    sampling: Sampling
    messages: tuple[Message, ...]
    seed: int
    send_seed: bool

    @cached_property
    def digest(self) -> str:
        """Hex sha256 of all that determines the answer's distribution."""
        return sha256_hex(canonical_json({"version": CALL_VERSION, "request": self}))


class Completion(Frozen):
    """An answer. `error` stands for a call that brought none; of it nothing but its tokens is ever recorded, and it
    never becomes data. `content_filter` without a text is a request that the endpoint will not answer: recorded, so
    that it is not asked again, and no data either."""

    text: str
    finish: Literal["stop", "length", "content_filter", "error"]
    model: str = ""
    """As the recipe has it, by which it is priced."""
    served_model: str = ""
    """As the endpoint calls it."""
    prompt_tokens: int = 0
    completion_tokens: int = 0

    @property
    def tokens(self) -> int:
        return self.prompt_tokens + self.completion_tokens


class CallLedger:
    """The finished calls of one artifact, all in memory (about 3 KB each) and each in the store."""

    def __init__(self, artifact: Artifact) -> None:
        self._artifact = artifact
        paths, lost = ([each.path for each in artifact.store.list(artifact.path(at))] for at in ("calls", _UNANSWERED))
        with ThreadPoolExecutor(_READERS) as pool:
            self._finished = dict(zip(map(_digest_of, paths), pool.map(self._read, paths), strict=True))
            self.unanswered = tuple(pool.map(self._read, lost))
            """Tokens of earlier launches for what was no answer."""
        self.num_found = len(paths)
        """Calls that earlier launches had finished."""

    def __len__(self) -> int:
        return len(self._finished)

    def __iter__(self) -> Iterator[Completion]:
        return iter(self._finished.values())

    def get(self, request: Request) -> Completion | None:
        """The recorded answer."""
        return self.answer(request.digest)

    def answer(self, digest: str) -> Completion | None:
        """The recorded answer to the request of this digest."""
        return self._finished.get(digest)

    async def record(self, request: Request, completion: Completion) -> Completion:
        """Stores an answer and returns the one that stands: the first that any launch stored."""
        path = self._path(request.digest)
        try:
            await asyncio.to_thread(self._artifact.store.create, path, canonical_json(completion))
        except ObjectExistsError:
            completion = await asyncio.to_thread(self._read, path)
        self._finished[request.digest] = completion
        return completion

    async def record_unanswered(self, spent: Completion) -> None:
        """Stores what a reply cost that was no answer, each time that it came."""
        path = self._artifact.path(f"{_UNANSWERED}/{uuid.uuid4().hex}.json")
        await asyncio.to_thread(self._artifact.store.create, path, canonical_json(spent))

    def _path(self, digest: str) -> str:
        return self._artifact.path(f"calls/{digest[:2]}/{digest}.json")

    def _read(self, path: str) -> Completion:
        try:
            return Completion.model_validate_json(self._artifact.store.get(path))
        except ValidationError as error:
            raise CorruptArtifactError(
                f"the recorded call {self._artifact.store.locate(path)} cannot be read; delete this object and run "
                f"again to repeat this one call"
            ) from error


def _digest_of(path: str) -> str:
    return path.rpartition("/")[2].removesuffix(".json")
