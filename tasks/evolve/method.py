"""The search for an evolving method (Auto Evol-Instruct, Zeng et al. 2024, section 3).

A round: evolve a batch of seeds with the method as it stands; let the optimiser say what went wrong in their
trajectories; let it propose new methods; try each on the development seeds; keep the one that fails least often. The
present method is tried as well and stays unless a proposal is better, so the failure rate never rises on these seeds.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tasks.artifacts.errors import BadInputError
from tasks.artifacts.fingerprint import sha256_hex
from tasks.evolve import parsing, prompts
from tasks.evolve.evolution import Evolver, Seed, in_order
from tasks.evolve.method_file import MethodFile
from tasks.evolve.parsing import Rejection


@dataclass(frozen=True)
class MethodRound:
    """One round of the search, for evolve.json. Methods are named by `method_digest`."""

    round: int
    method_before: str
    failure_rate_before: float
    analysed: bool
    """False: the optimiser's analysis could not be read, and the round changed nothing."""
    proposals: dict[str, float]
    """Failure rate of each readable new method."""
    unreadable_proposals: int
    method_after: str
    failure_rate_after: float

    def as_json(self) -> dict[str, Any]:
        return dict(vars(self))


@dataclass(frozen=True)
class Search:
    """The method found, and how."""

    method: str
    history: tuple[MethodRound, ...]


def method_digest(method: str) -> str:
    """Sixteen hex digits that name a method."""
    return sha256_hex(method.encode())[:16]


async def find_method(evolver: Evolver, seeds: Sequence[Seed]) -> Search:
    """Runs the rounds that the recipe asks for.

    Raises:
        BadInputError: there are too few seeds for a development set and a batch.
    """
    source = evolver.source
    start = source.method or prompts.INITIAL_METHOD
    method = start.text() if isinstance(start, MethodFile) else start
    if source.method_rounds == 0:
        return Search(method, ())
    if len(seeds) < source.dev_size + source.batch_size:
        raise BadInputError(
            f"the search for a method needs dev_size + batch_size = {source.dev_size + source.batch_size} seeds and "
            f"finds {len(seeds)}; give more seeds, lower either, or set method_rounds to 0"
        )
    order = list(seeds)
    random.Random(source.seed).shuffle(order)
    dev, pool = order[: source.dev_size], order[source.dev_size :]
    history = []
    for number in range(source.method_rounds):
        batch = random.Random(f"{source.seed}/{number}").sample(pool, source.batch_size)
        method, entry = await _round(evolver, number, method, batch, dev)
        history.append(entry)
    return Search(method, tuple(history))


async def _round(
    evolver: Evolver, number: int, method: str, batch: Sequence[Seed], dev: Sequence[Seed]
) -> tuple[str, MethodRound]:
    rate = await failure_rate(evolver, method, dev)
    proposals, unreadable, analysed = await _propose(evolver, number, method, batch)
    rates = await in_order([failure_rate(evolver, proposal, dev) for proposal in proposals])
    best, best_rate = min(zip([method, *proposals], [rate, *rates], strict=True), key=lambda pair: pair[1])
    return best, MethodRound(
        round=number,
        method_before=method_digest(method),
        failure_rate_before=rate,
        analysed=analysed,
        proposals={method_digest(proposal): value for proposal, value in zip(proposals, rates, strict=True)},
        unreadable_proposals=unreadable,
        method_after=method_digest(best),
        failure_rate_after=best_rate,
    )


async def _propose(evolver: Evolver, number: int, method: str, batch: Sequence[Seed]) -> tuple[list[str], int, bool]:
    """New methods, how many replies held none, and whether the analysis could be read."""
    source = evolver.source
    trajectories = await in_order([evolver.trajectory(method, seed.text, source.trajectory_rounds) for seed in batch])
    # A trajectory that ended early shows the reviewer only the forms that could be used.
    analysis = await evolver.ask(source.optimiser, prompts.analyse([item.forms for item in trajectories]))
    feedback = parsing.tagged(analysis, prompts.FEEDBACK_TAG)
    if isinstance(feedback, Rejection):
        return [], 0, False
    samples = [number * source.candidates + index for index in range(source.candidates)]
    replies = await in_order(
        [evolver.ask(source.optimiser, prompts.optimise(method, feedback), sample) for sample in samples]
    )
    methods = [parsing.tagged(reply, prompts.METHOD_TAG) for reply in replies]
    readable = [item for item in methods if not isinstance(item, Rejection)]
    return [item for item in dict.fromkeys(readable) if item != method], len(methods) - len(readable), True


async def failure_rate(evolver: Evolver, method: str, dev: Sequence[Seed]) -> float:
    """Share of the development seeds that this method fails on."""
    failed = await in_order([_fails(evolver, method, seed) for seed in dev])
    return sum(failed) / len(failed)


async def _fails(evolver: Evolver, method: str, seed: Seed) -> bool:
    """Whether one evolution gives no usable instruction, or one whose answer shows a defect."""
    trajectory = await evolver.trajectory(method, seed.text, 1)
    if not trajectory.rounds:
        return True
    instruction = trajectory.forms[-1]
    answer = await evolver.answer(prompts.question(instruction))
    if isinstance(answer, Rejection):
        return True
    if evolver.source.judge is None:
        return False
    verdict = parsing.tagged(
        await evolver.ask(evolver.source.judge, prompts.judge(instruction, answer)), prompts.VERDICT_TAG
    )
    return isinstance(verdict, Rejection) or verdict.casefold() != "pass"
