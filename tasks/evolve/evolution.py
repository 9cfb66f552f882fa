"""One seed's way: rewritten round by round, then answered. Pure logic over `complete`, in any order of arrival.

Every request is a function of the recipe, the seeds and the answers before it, so that a run repeated over the same
recorded answers asks for exactly the same calls.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from tasks.artifacts.fingerprint import canonical_json, sha256_hex
from tasks.evolve import parsing, prompts
from tasks.evolve.calls import Completion, Message, Request
from tasks.evolve.parsing import Reason, Rejection
from tasks.evolve.stage import AutoEvolSource, Sampling

T = TypeVar("T")
Complete = Callable[[Request], Awaitable[Completion]]


@dataclass(frozen=True)
class Seed:
    """A seed instruction. `id` is made of its text; `origin` says where that stands, with the index of its row."""

    id: str
    text: str
    origin: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Trajectory:
    """A seed's forms, the seed itself first. `rejected` says why it did not go on to the last round."""

    forms: tuple[str, ...]
    rejected: Reason | None

    @property
    def rounds(self) -> int:
        return len(self.forms) - 1


@dataclass(frozen=True)
class Conversation:
    """User and assistant in turn, each user turn answered; empty if the first answer could not be used. `rejected`
    says why it did not go on to the last turn."""

    messages: tuple[Message, ...]
    rejected: Reason | None

    @property
    def turns(self) -> int:
        """User turns with their answers."""
        return len(self.messages) // 2


@dataclass(frozen=True)
class Outcome:
    """What became of a seed in the final evolution."""

    seed: Seed
    trajectory: Trajectory
    conversation: Conversation | None
    """None if the seed did not evolve at all, so that nothing was asked."""


class Evolver:
    """The calls that both the search for a method and the final evolution are made of."""

    def __init__(self, source: AutoEvolSource, complete: Complete) -> None:
        self.source = source
        self._complete = complete

    async def ask(self, sampling: Sampling, messages: tuple[Message, ...], sample: int = 0) -> Completion:
        """One call; `sample` tells apart draws from the same prompt."""
        identity = canonical_json([self.source.seed, sample, [message.content for message in messages]])
        # 31 bits: some servers hold the seed in a signed 32-bit integer.
        seed = int(sha256_hex(identity)[:8], 16) >> 1
        return await self._complete(
            Request(sampling=sampling, messages=messages, seed=seed, send_seed=self.source.send_seed)
        )

    async def trajectory(self, method: str, instruction: str, rounds: int) -> Trajectory:
        """Rewrites an instruction up to `rounds` times; ends at the first reply that cannot be used."""
        forms = [instruction]
        for _ in range(rounds):
            completion = await self.ask(self.source.evolver, prompts.evolve(method, forms[-1]))
            evolved = parsing.evolved_instruction(
                completion, prompts.EVOLVED_TAG, forms, self.source.unchanged_similarity
            )
            if isinstance(evolved, Rejection):
                return Trajectory(tuple(forms), evolved.reason)
            forms.append(evolved)
        return Trajectory(tuple(forms), None)

    async def answer(self, messages: tuple[Message, ...]) -> str | Rejection:
        """The answer to a conversation that ends with a user turn, or why it is none to train on."""
        return parsing.answer(await self.ask(self.source.answerer, messages))

    async def followup(self, messages: tuple[Message, ...]) -> str | Rejection:
        """What the user might ask next; not what was asked before."""
        asked = [message.content for message in messages if message.role == "user"]
        completion = await self.ask(self.source.evolver, prompts.followup(messages))
        return parsing.evolved_instruction(completion, prompts.FOLLOWUP_TAG, asked, self.source.unchanged_similarity)

    async def converse(self, instruction: str) -> Conversation:
        """The instruction with its answer and `followup_turns` more turns; ends at the first that cannot be used."""
        finished: tuple[Message, ...] = ()
        asked: str | Rejection = instruction
        for turn in range(1 + self.source.followup_turns):
            if turn:
                asked = await self.followup(finished)
            if isinstance(asked, Rejection):
                return Conversation(finished, asked.reason)
            messages = (*finished, Message(role="user", content=asked))
            reply = await self.answer(messages)
            if isinstance(reply, Rejection):
                return Conversation(finished, reply.reason)
            finished = (*messages, Message(role="assistant", content=reply))
        return Conversation(finished, None)

    async def finish(self, method: str, seed: Seed) -> Outcome:
        """The seed's last usable form and the conversation that begins with it."""
        trajectory = await self.trajectory(method, seed.text, self.source.evolution_rounds)
        conversation = await self.converse(trajectory.forms[-1]) if trajectory.rounds else None
        return Outcome(seed, trajectory, conversation)


def seeds_of(offered: Iterable[tuple[str, Mapping[str, Any]]]) -> list[Seed]:
    """Seeds of (text, origin) with their ids; a repeated text counts once, where it stands first."""
    origins: dict[str, Mapping[str, Any]] = {}
    for text, origin in offered:
        if text.strip():
            origins.setdefault(text.strip(), origin)
    return [Seed(sha256_hex(text.encode())[:16], text, origin) for text, origin in origins.items()]


async def in_order(work: Sequence[Coroutine[Any, Any, T]]) -> list[T]:
    """Runs all at once and returns the results in order; the first failure cancels the rest and is raised as it is."""
    tasks = [asyncio.create_task(item) for item in work]
    try:
        return await asyncio.gather(*tasks)
    except BaseException:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        raise
