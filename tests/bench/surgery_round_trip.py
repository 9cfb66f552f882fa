"""Qwen2.5's vocabulary to Llama 3.1's and back, whole, with a model of two layers and random weights of width 896.

Nothing is trained between, so that three strategies must give every bit back.

python -m tests.bench.surgery_round_trip NAME makes one of the steps, in a process of its own: the most memory that its
worker took is known of ended children only, of all together. What it prints last is kept as JSON until the bench ends.
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from tasks.modeling.bits_per_byte import TEXTS
from tasks.modeling.tokenizer_files import PROBE_TEXTS, load_tokenizer
from tasks.runtime.declare import Step
from tasks.surgeon.pursuit import cosines
from tasks.surgeon.reversion_rows import match_tokens
from tests.bench.paths import ROOT
from tests.bench.records import Measured, Measurement
from tests.bench.rows_surgery import UNCHANGED
from tests.bench.swap_folder import VARIABLE, folder, write_once
from tests.bench.swap_loaders import LOADERS, differing_texts
from tests.bench.swap_steps import (
    SPECIAL_TOKENS,
    directory_of,
    forget,
    make,
    model_in,
    random_model,
    reversion,
    tokenizer,
    transplant,
)

WIDTH, THREADS = 896, 2
THERE, LONGEST = "there", "back_transplant"
"""Of the strategies, the one that makes every row that is not shared anew."""
SUMMANDS = 16
"""Of the rows of delta_transplant here. Of changes that are all zero any sum is zero, and 64 take minutes more."""
EMBEDDING = "model.embed_tokens.weight"


def _round_trip() -> Iterator[Measured]:
    steps = trip(WIDTH)
    costs = {name: _cost(name, steps[name]) for name in steps}
    made = {name: directory_of(make(step)) for name, step in steps.items()}
    student = random_model("qwen", WIDTH, 0)
    counts = make(steps[THERE]).manifest.metrics
    said = (
        f"Qwen2 of 2 layers, width {WIDTH}, tied random weights in float32; there {counts['shared_tokens']} shared "
        f"rows, {counts['approximated_tokens']} by omp_anchored from a random donor"
    )
    both = {name: costs[name] for name in (THERE, LONGEST)}
    by_way = ", ".join(
        f"{name} {cost['seconds']:.0f} s ({cost['cpu_seconds']:.0f} s of CPU time)" for name, cost in both.items()
    )
    yield Measured(
        "surgery.round_trip.minutes",
        sum(cost["seconds"] for cost in both.values()) / 60,
        f"workers of {THREADS} threads from start to commit: {by_way}; {said}",
    )
    peaks = {name: cost["peak_bytes"] / 1e9 for name, cost in costs.items()}
    by_step = ", ".join(f"{name} {peak:.2f}" for name, peak in peaks.items())
    yield Measured("surgery.round_trip.memory_gb", max(peaks.values()), f"{by_step}; {said}")
    yield _encodings(made)
    for strategy in UNCHANGED:
        changed, compared = values_changed(student, made[strategy])
        yield Measured(
            f"surgery.revert.{strategy}.values_changed",
            changed,
            f"of {compared}, bit by bit, all tensors; delta_transplant of {SUMMANDS} summands; {said}",
        )
    yield from _back_transplant(student, made[THERE], made[LONGEST], said)


def trip(width: int) -> dict[str, Step]:
    """The way there, and the way back by each strategy."""
    student = model_in(random_model("qwen", width, 0), "trip-qwen")
    donor = model_in(random_model("llama", width, 1), "trip-llama")
    there = transplant("trip-there", student, donor, {"special_tokens": SPECIAL_TOKENS["qwen", "llama"]}, THREADS)
    summands = {"delta_transplant": {"k": SUMMANDS}}
    back = {
        strategy: reversion(
            f"trip-{strategy.replace('_', '-')}",
            there,
            student,
            {"strategy": strategy, **summands.get(strategy, {})},
            THREADS,
        )
        for strategy in (*UNCHANGED, LONGEST)
    }
    return {THERE: there, **back}


def _cost(name: str, step: Step) -> dict[str, float]:
    """Seconds and peak of the step's worker, measured when it was made by this bench."""
    file = folder() / "round-trip" / f"{step.label}-{step.key[:16]}.json"
    if not file.is_file():
        for source in step.inputs.values():
            make(source)
        # Made by a bench that was stopped before it wrote down the cost, or half made: timed from the start.
        forget(step)
        command = [sys.executable, "-m", "tests.bench.surgery_round_trip", name]
        environment = {**os.environ, VARIABLE: str(folder())}
        done = subprocess.run(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True, check=True)
        write_once(file, done.stdout.splitlines()[-1])
        print(f"  {step.label} made", flush=True)
    cost: dict[str, float] = json.loads(file.read_text())
    return cost


def _made_here(step: Step) -> dict[str, Any]:
    made = make(step)
    assert not made.ref.reused
    # ru_maxrss is in kilobytes on Linux.
    ended = resource.getrusage(resource.RUSAGE_CHILDREN)
    return {
        "seconds": made.manifest.provenance.seconds,
        "cpu_seconds": ended.ru_utime + ended.ru_stime,
        "peak_bytes": ended.ru_maxrss * 1024,
    }


def _encodings(made: dict[str, Path]) -> Measured:
    texts = [*PROBE_TEXTS, *(text for kind in TEXTS.values() for text in kind)]
    differing = {}
    for name, vocabulary in ((THERE, "llama"), (LONGEST, "qwen")):
        expected = load_tokenizer(directory_of(make(tokenizer(vocabulary))))
        for loader in LOADERS:
            differing[f"{name} {loader}"] = differing_texts(loader, made[name], expected, texts)
    return Measured(
        "surgery.round_trip.encode_differs",
        sum(differing.values()),
        f"of {len(texts)} texts and a chat, after either way, each with and without what the tokenizer adds; "
        + ", ".join(f"{name} {count}" for name, count in differing.items()),
        len(differing),
    )


def values_changed(before: Path, after: Path) -> tuple[int, int]:
    """Values of other bits, or of tensors that only one has, in two float32 model files; and how many there are."""
    old, new = (load_file(directory / "model.safetensors") for directory in (before, after))
    changed, total = 0, 0
    for name in old.keys() | new.keys():
        one, other = old.get(name), new.get(name)
        size = max(tensor.numel() for tensor in (one, other) if tensor is not None)
        total += size
        if one is None or other is None or one.shape != other.shape or one.dtype != other.dtype:
            changed += size
        else:
            changed += int((one.view(torch.int32) != other.view(torch.int32)).sum())
    return changed, total


def _back_transplant(student: Path, there: Path, back: Path, said: str) -> Iterator[Measured]:
    match = match_tokens(load_tokenizer(student), load_tokenizer(there), {})
    old_RD, new_RD = (load_file(directory / "model.safetensors")[EMBEDDING] for directory in (student, back))
    shared_S, others_N = match.original_ids_S, match.other_ids_N
    changed = (old_RD[shared_S].view(torch.int32) != new_RD[shared_S].view(torch.int32)).sum()
    yield Measured(
        "surgery.revert.back_transplant.shared_values_changed",
        int(changed),
        f"of {len(shared_S)} rows, bit by bit; {said}",
    )
    yield Measured(
        "surgery.revert.back_transplant.cosine",
        float(cosines(old_RD[others_N], new_RD[others_N]).mean()),
        f"{len(others_N)} rows, k 64 of 8,192 anchors; random rows have nothing in common that a sum could find: for "
        f"trained ones see surgery.pursuit.cosine_over_plain; {said}",
    )


MEASUREMENTS = [Measurement("surgery_round_trip", _round_trip, ("surgery.round_trip.*", "surgery.revert.*"))]

if __name__ == "__main__":
    print(json.dumps(_made_here(trip(WIDTH)[sys.argv[1]])))
