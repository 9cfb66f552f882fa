"""SmolLM2 in another vocabulary by every method that applies: bits per byte at once and after a short warm-up.

Two steps of the pipeline at a time, one thread each. What is made stays in the bench's store.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor

from tasks.runtime.declare import Step
from tasks.surgeon.stage import TransplantRecipe
from tests.bench.records import Measured, Measurement
from tests.bench.rows_surgery import BACK, INTO_QWEN, KINDS, METHODS
from tests.bench.swap_bits import bits_of
from tests.bench.swap_steps import WARM_UP_SAID, before, make, moved, seconds_of_rows, smollm2, warmed
from tests.bench.swap_texts import MEASURED_BYTES, TRAINED_BYTES, measured_texts, training_file

PROCESSES = 2
DEFAULT: str = TransplantRecipe.model_fields["method"].default


def _warm_ups() -> Iterator[Measured]:
    # Before the threads, two of which would make the same files at once.
    training_file(KINDS)
    measured_texts()
    make(smollm2())
    warm: dict[str, dict[str, dict[str, float]]] = {}
    for direction, methods in METHODS.items():
        starts = {method: moved(direction, method) for method in methods}
        make(before(direction))
        # Their shared donor too.
        make(starts[methods[-1]])
        with ThreadPoolExecutor(PROCESSES) as pool:
            warm[direction] = dict(zip(methods, pool.map(_warmed_bits, starts.values()), strict=True))
        yield from _of_direction(direction, starts, warm[direction])
    yield _anchored_over_plain()
    yield _default_over_best(warm[BACK])


def _warmed_bits(start: Step) -> dict[str, float]:
    made = warmed(start)
    make(made)
    print(f"  {made.label} made", flush=True)
    return bits_of(made)


def _of_direction(
    direction: str, starts: Mapping[str, Step], warm: Mapping[str, Mapping[str, float]]
) -> Iterator[Measured]:
    names = {INTO_QWEN: "SmolLM2 into Qwen2.5's vocabulary", BACK: "SmolLM2, warmed up in Qwen2.5's, into its own"}
    texts = measured_texts()
    for kind in KINDS:
        num_bytes = sum(len(text.text.encode()) for text in texts[kind])
        said = f"{len(texts[kind])} texts, {num_bytes} bytes of {kind}; {names[direction]}"
        prefix = f"surgery.bits_per_byte.{direction}"
        yield Measured(f"{prefix}.before.{kind}", bits_of(before(direction))[kind], said)
        for method, start in starts.items():
            yield Measured(f"{prefix}.{method}.start.{kind}", bits_of(start)[kind], said)
            yield Measured(f"{prefix}.{method}.warm.{kind}", warm[method][kind], f"{WARM_UP_SAID}; {said}")
    for method, start in starts.items():
        metrics = make(start).manifest.metrics
        invented = {part: metrics[f"{part}_tokens"] for part in ("composed", "approximated")}
        yield Measured(
            f"surgery.seconds_of_rows.{direction}.{method}",
            seconds_of_rows(start),
            f"wall time in the worker, without the plan (surgery.plan.cpu_seconds); {metrics['shared_tokens']} rows "
            f"shared, " + ", ".join(f"{count} {part}" for part, count in invented.items()) + f"; {names[direction]}",
        )


def _anchored_over_plain() -> Measured:
    bits = {method: bits_of(moved(BACK, method)) for method in ("omp_anchored", "omp")}
    means = {method: statistics.fmean(found.values()) for method, found in bits.items()}
    by_kind = ", ".join(f"{kind} {bits['omp_anchored'][kind]:.3f} over {bits['omp'][kind]:.3f}" for kind in KINDS)
    return Measured(
        "surgery.pursuit.bits_per_byte_over_plain",
        means["omp_anchored"] / means["omp"],
        f"{by_kind}; SmolLM2 in Qwen2.5's vocabulary, warmed up there, back in its own with itself as the donor",
    )


def _default_over_best(warm: Mapping[str, Mapping[str, float]]) -> Measured:
    means = {method: statistics.fmean(bits[kind] for kind in KINDS) for method, bits in warm.items()}
    return Measured(
        "surgery.default_over_best",
        means[DEFAULT] / min(means.values()),
        f"default {DEFAULT}; "
        + ", ".join(f"{method} {mean:.4f}" for method, mean in sorted(means.items(), key=lambda item: item[1]))
        + f"; into SmolLM2's vocabulary, where there is a donor with rows; {WARM_UP_SAID}, on {TRAINED_BYTES} bytes of "
        f"each kind, measured on others, at least {MEASURED_BYTES} of each",
    )


MEASUREMENTS = [
    Measurement(
        "surgery_warm_up",
        _warm_ups,
        (
            "surgery.bits_per_byte.*",
            "surgery.seconds_of_rows.*",
            "surgery.pursuit.bits_per_byte_over_plain",
            "surgery.default_over_best",
        ),
    )
]
