"""The search for an evolving method (Auto Evol-Instruct, Zeng et al. 2024, section 3).

A round: evolve a batch of seeds with the method as it stands; let the optimiser say what went wrong in their
trajectories; let it propose new methods; try each on the development seeds; keep the one that fails least often. The
present method is tried as well and stays unless a proposal is better, so the failure rate never rises on these seeds.
"""

from __future__ import annotations

import asyncio
import random
import string
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum

from pydantic import ValidationError

from tasks.artifacts.artifact import Artifact
from tasks.artifacts.errors import BadInputError, CorruptArtifactError, ObjectExistsError, ObjectMissingError
from tasks.artifacts.fingerprint import canonical_json, sha256_hex
from tasks.artifacts.frozen import Frozen
from tasks.evolve import parsing, prompts
from tasks.evolve.client import EndpointError, RecordedEndpoint
from tasks.evolve.evolution import Evolver, Seed, in_order
from tasks.evolve.method_file import MethodFile
from tasks.evolve.parsing import Rejection


class MethodRound(Frozen):
    """One round of the search, for evolve.json. Methods are named by `method_digest`."""

    round: int
    method_before: str
    failure_rate_before: float
    analysed: bool
    """False: the optimiser's analysis could not be read, and the round changed nothing."""
    proposals: dict[str, float]
    """Failure rate of each readable new method."""
    unreadable_proposals: int
    unreadable_verdicts: int
    """Replies of the judge, on all methods of the round, that are neither pass nor fail and so say nothing."""
    method_after: str
    failure_rate_after: float


class FinishedRound(Frozen):
    """What a later launch takes from a round."""

    method: str
    round: MethodRound
    calls: tuple[str, ...] = ()
    """Digests of the requests that the run was made of by then; a launch that skips the round counts their answers."""


class RoundLedger:
    """The finished rounds of one artifact, `search/<number>.json` in its folder.

    The calls alone do not say what was chosen: errors are not recorded, and one of them may have tipped the scales. All
    that was evolved since was evolved with that method.
    """

    def __init__(self, artifact: Artifact, endpoint: RecordedEndpoint) -> None:
        self._artifact = artifact
        self._endpoint = endpoint

    async def get(self, number: int) -> FinishedRound | None:
        """A round, if any launch finished it."""
        found = await asyncio.to_thread(self._read, self._path(number))
        if found is not None:
            self._endpoint.count(found.calls)
        return found

    async def record(self, number: int, finished: FinishedRound) -> FinishedRound:
        """Stores a round and returns the one that stands: the first that any launch stored."""
        path = self._path(number)
        finished = finished.model_copy(update={"calls": tuple(sorted(self._endpoint.used()))})
        try:
            await asyncio.to_thread(self._artifact.store.create, path, canonical_json(finished))
        except ObjectExistsError:
            return await self.get(number) or finished
        return finished

    def _path(self, number: int) -> str:
        return self._artifact.path(f"search/{number}.json")

    def _read(self, path: str) -> FinishedRound | None:
        try:
            return FinishedRound.model_validate_json(self._artifact.store.get(path))
        except ObjectMissingError:
            return None
        except ValidationError as error:
            raise CorruptArtifactError(
                f"the recorded round {self._artifact.store.locate(path)} cannot be read; delete this object and run "
                f"again, which searches from this round on with the recorded calls"
            ) from error


@dataclass(frozen=True)
class Search:
    """The method found, and how."""

    method: str
    history: tuple[MethodRound, ...]


def method_digest(method: str) -> str:
    """Sixteen hex digits that name a method."""
    return sha256_hex(method.encode())[:16]


async def find_method(evolver: Evolver, seeds: Sequence[Seed], rounds: RoundLedger) -> Search:
    """Runs the rounds that the recipe asks for, but for those that are finished.

    Raises:
        EndpointError: a round has no development seed on which every call was answered.
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
        finished = await rounds.get(number)
        if finished is None:
            batch = random.Random(f"{source.seed}/{number}").sample(pool, source.batch_size)
            finished = await rounds.record(number, await _round(evolver, number, method, batch, dev))
        method = finished.method
        history.append(finished.round)
    return Search(method, tuple(history))


async def _round(
    evolver: Evolver, number: int, method: str, batch: Sequence[Seed], dev: Sequence[Seed]
) -> FinishedRound:
    trial = await _trial(evolver, method, dev)
    proposals, unreadable, analysed = await _propose(evolver, number, method, batch)
    trials = [trial, *await in_order([_trial(evolver, each, dev) for each in proposals])]
    rate, *rates = failure_rates(trials)
    best, best_rate = min(zip([method, *proposals], [rate, *rates], strict=True), key=lambda pair: pair[1])
    entry = MethodRound(
        round=number,
        method_before=method_digest(method),
        failure_rate_before=rate,
        analysed=analysed,
        proposals={method_digest(proposal): value for proposal, value in zip(proposals, rates, strict=True)},
        unreadable_proposals=unreadable,
        unreadable_verdicts=sum(each.count(TrialOutcome.UNREADABLE) for each in trials),
        method_after=method_digest(best),
        failure_rate_after=best_rate,
    )
    return FinishedRound(method=best, round=entry)


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


class TrialOutcome(Enum):
    """What a development seed says of a method."""

    SOUND = "sound"
    FAILS = "fails"
    UNANSWERED = "unanswered"
    """Nothing: the endpoint's error stands in the place of a reply."""
    UNREADABLE = "unreadable"
    """Nothing: the judge's reply is neither pass nor fail."""


_VERDICTS = {
    "pass": TrialOutcome.SOUND,
    "passed": TrialOutcome.SOUND,
    "fail": TrialOutcome.FAILS,
    "failed": TrialOutcome.FAILS,
}


def failure_rates(trials: Sequence[Sequence[TrialOutcome]]) -> list[float]:
    """Share of the development seeds that each method fails on, over the seeds that say something of all of them.

    Raises:
        EndpointError: there is no such seed, and a call was not answered.
        BadInputError: there is no such seed, as the judge's replies cannot be read.
    """
    silent = {TrialOutcome.UNANSWERED, TrialOutcome.UNREADABLE}
    told = [outcomes for outcomes in zip(*trials, strict=True) if silent.isdisjoint(outcomes)]
    if not told:
        if not any(TrialOutcome.UNANSWERED in each for each in trials):
            raise BadInputError(
                f"on each of the {len(trials[0])} seeds that methods are tried on the judge's reply to one of them is "
                f"neither pass nor fail between <{prompts.VERDICT_TAG}> tags, so none can be preferred; name another "
                f"model as judge, give it more tokens, or leave the judge out"
            )
        raise EndpointError(
            f"the endpoint left a call unanswered on each of the {len(trials[0])} seeds that methods are tried on, so "
            f"none can be preferred; finished calls are kept: mend the endpoint or the recipe's sampling and run again"
        )
    return [outcomes.count(TrialOutcome.FAILS) / len(told) for outcomes in zip(*told, strict=True)]


async def _trial(evolver: Evolver, method: str, dev: Sequence[Seed]) -> list[TrialOutcome]:
    return await in_order([_outcome(evolver, method, seed) for seed in dev])


async def _outcome(evolver: Evolver, method: str, seed: Seed) -> TrialOutcome:
    """A method fails where it gives no usable instruction, or one whose answer shows a defect."""
    trajectory = await evolver.trajectory(method, seed.text, 1)
    if not trajectory.rounds:
        return TrialOutcome.UNANSWERED if trajectory.rejected == "errored" else TrialOutcome.FAILS
    instruction = trajectory.forms[-1]
    answer = await evolver.answer(prompts.question(instruction))
    if isinstance(answer, Rejection):
        return TrialOutcome.UNANSWERED if answer.reason == "errored" else TrialOutcome.FAILS
    if evolver.source.judge is None:
        return TrialOutcome.SOUND
    verdict = parsing.tagged(
        await evolver.ask(evolver.source.judge, prompts.judge(instruction, answer)), prompts.VERDICT_TAG
    )
    if isinstance(verdict, Rejection):
        return TrialOutcome.UNANSWERED if verdict.reason == "errored" else TrialOutcome.UNREADABLE
    return _VERDICTS.get(verdict.strip(string.punctuation + " ").casefold(), TrialOutcome.UNREADABLE)
