"""`autoevol` from seeds to rows: the search for a method, the evolution of every seed with it, the answers."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tasks.artifacts.errors import BadInputError
from tasks.evolve.calls import CallLedger, Completion
from tasks.evolve.client import RecordedEndpoint, StoppingError
from tasks.evolve.endpoint import Endpoint
from tasks.evolve.evolution import Conversation, Evolver, Outcome, Seed, in_order, seeds_of
from tasks.evolve.method import RoundLedger, Search, find_method, method_digest
from tasks.evolve.rows import InstructionRow, Result
from tasks.evolve.stage import AutoEvolSource
from tasks.worker.job import Job

_TICK_SECONDS = 1.0


@dataclass(frozen=True)
class Evolved:
    """The rows, the method that made them, each seed's way, and figures that depend on the launch."""

    result: Result
    method: str
    trajectories: Sequence[Mapping[str, Any]]
    """One a seed, also of those that became no row: see `_trajectory`."""
    launch_metrics: dict[str, Any]


def run(
    job: Job, source: AutoEvolSource, settings: Endpoint, offered: Sequence[tuple[str, Mapping[str, Any]]]
) -> Evolved:
    """Evolves and answers seeds, (text, origin) each. A stop asked for by SIGTERM ends the launch as preempted."""
    seeds = seeds_of(offered)
    if not seeds:
        raise BadInputError("autoevol has no seed instruction; give at least one in evolve.recipe.source.seeds")
    ledger = CallLedger(job.artifact)
    if ledger.num_found:
        job.log(f"evolve goes on from {ledger.num_found} finished calls")
    return asyncio.run(_run(job, source, settings, ledger, seeds, len(offered) - len(seeds)))


async def _run(
    job: Job, source: AutoEvolSource, settings: Endpoint, ledger: CallLedger, seeds: list[Seed], num_duplicates: int
) -> Evolved:
    endpoint = RecordedEndpoint(settings, ledger)
    evolver = Evolver(source, endpoint.complete)
    watch = asyncio.create_task(_watch(job, endpoint, most_calls(source, len(seeds))))
    try:
        search = await find_method(evolver, seeds, RoundLedger(job.artifact, endpoint))
        outcomes = await in_order([evolver.finish(search.method, seed) for seed in seeds])
    except StoppingError:
        job.preempted()
    finally:
        watch.cancel()
        await endpoint.close()
    completions = list(endpoint.used().values())
    return Evolved(
        _result(source, search, outcomes, completions, num_duplicates),
        search.method,
        [_trajectory(outcome) for outcome in outcomes],
        {
            "retries": endpoint.num_retries,
            "calls_of_earlier_launches": ledger.num_found,
            **({"cost_usd": round(endpoint.spending.dollars, 6)} if settings.prices else {}),
        },
    )


async def _watch(job: Job, endpoint: RecordedEndpoint, total: int) -> None:
    """Says how far the calls are, and passes a request to stop on."""
    started, spent_before = time.monotonic(), endpoint.spending.tokens
    while True:
        await asyncio.sleep(_TICK_SECONDS)
        if job.stop_requested:
            endpoint.stop()
        job.progress(
            endpoint.num_answered,
            total,
            "calls",
            tokens_per_second=(endpoint.spending.tokens - spent_before) / (time.monotonic() - started),
            tokens=endpoint.spending.tokens,
            retries=endpoint.num_retries,
        )


def most_calls(source: AutoEvolSource, num_seeds: int) -> int:
    """The number of calls if every reply can be used and every proposed method is new."""
    trial = source.dev_size * (2 if source.judge is None else 3)
    round_calls = source.batch_size * source.trajectory_rounds + 1 + source.candidates * (1 + trial)
    search = source.method_rounds * round_calls + (trial if source.method_rounds else 0)
    return search + num_seeds * (source.evolution_rounds + 1 + 2 * source.followup_turns)


def _result(
    source: AutoEvolSource,
    search: Search,
    outcomes: Sequence[Outcome],
    completions: Sequence[Completion],
    num_duplicates: int,
) -> Result:
    digest = method_digest(search.method)
    counts: Counter[str] = Counter(duplicates=num_duplicates, calls=len(completions))
    rows = []
    for outcome in outcomes:
        trajectory = outcome.trajectory
        counts["evolutions"] += trajectory.rounds
        counts["evolved"] += trajectory.rounds > 0
        if trajectory.rejected is not None:
            counts[trajectory.rejected] += 1
        conversation = outcome.conversation
        if conversation is None:
            continue
        if conversation.rejected is not None:
            counts[conversation.rejected] += 1
        if conversation.turns:
            rows.append(_row(source, digest, outcome, conversation))
    for completion in completions:
        counts["prompt_tokens"] += completion.prompt_tokens
        counts["completion_tokens"] += completion.completion_tokens
    details = {
        "method": digest,
        "method_history": [entry.model_dump(mode="json") for entry in search.history],
        "turns": sum(row.lineage["turns"] for row in rows),
        "served_models": sorted({each.served_model for each in completions if each.served_model}),
    }
    return Result(rows, len(outcomes) + num_duplicates, counts, details)


def _row(source: AutoEvolSource, digest: str, outcome: Outcome, conversation: Conversation) -> InstructionRow:
    lineage = {
        "source": "autoevol",
        "seed_id": outcome.seed.id,
        "seed_origin": dict(outcome.seed.origin),
        "round": outcome.trajectory.rounds,
        "turns": conversation.turns,
        "method": digest,
        "evolver": source.evolver.model,
        "answerer": source.answerer.model,
    }
    return InstructionRow(_row_id(outcome), conversation.messages, lineage)


def _row_id(outcome: Outcome) -> str:
    return f"{outcome.seed.id}-{outcome.trajectory.rounds}"


def _trajectory(outcome: Outcome) -> dict[str, Any]:
    """A line of trajectories.jsonl: the seed, all its forms, why it went no further, and the row that it became."""
    conversation = outcome.conversation
    return {
        "seed_id": outcome.seed.id,
        "seed_origin": dict(outcome.seed.origin),
        "forms": list(outcome.trajectory.forms),
        "evolution_rejected": outcome.trajectory.rejected,
        "conversation_rejected": conversation.rejected if conversation is not None else None,
        "row": _row_id(outcome) if conversation is not None and conversation.turns else None,
    }
