"""SmolLM2 in another vocabulary by every method that applies: bits per byte at once and after a short warm-up.

Two steps of the pipeline at a time, one thread each. What is made stays in the bench's store.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor

from tasks.runtime.declare import Step
from tasks.surgeon.stage import TransplantRecipe
from tests.bench.records import Measured, Measurement
from tests.bench.rows_surgery import BACK, INTO_QWEN, KINDS, METHODS
from tests.bench.swap_bits import Bits, Excess, bits_of, excess, mean_bits, rates
from tests.bench.swap_steps import WARM_UP_SAID, before, make, moved, seconds_of_rows, smollm2, warmed
from tests.bench.swap_texts import MEASURED_BYTES, TRAINED_BYTES, measured_texts, training_file

PROCESSES = 2
PAIR = "SmolLM2, warmed up in Qwen2.5's vocabulary, into its own with itself as the donor (a self-donor)"
DEFAULT: str = TransplantRecipe.model_fields["method"].default


def _warm_ups() -> Iterator[Measured]:
    # Before the threads, two of which would make the same files at once.
    training_file(KINDS)
    measured_texts()
    make(smollm2())
    warm: dict[str, dict[str, Bits]] = {}
    for direction, methods in METHODS.items():
        starts = {method: moved(direction, method) for method in methods}
        make(before(direction))
        # Their shared donor too.
        make(starts[methods[-1]])
        with ThreadPoolExecutor(PROCESSES) as pool:
            warm[direction] = dict(zip(methods, pool.map(_warmed_bits, starts.values()), strict=True))
        yield from _of_direction(direction, starts, warm[direction])
    yield _anchored_over_plain()
    yield over_best(
        "surgery.default_over_best",
        DEFAULT,
        warm[BACK],
        f"{PAIR}; not judged into Qwen2.5's vocabulary, since no donor has rows there",
    )
    yield over_best("surgery.composed_over_best", "composed", warm[INTO_QWEN], "SmolLM2 into Qwen2.5's vocabulary")


def _warmed_bits(start: Step) -> Bits:
    bits_of(start)
    made = warmed(start)
    make(made)
    print(f"  {made.label} made", flush=True)
    return bits_of(made)


def _of_direction(direction: str, starts: Mapping[str, Step], warm: Mapping[str, Bits]) -> Iterator[Measured]:
    names = {INTO_QWEN: "SmolLM2 into Qwen2.5's vocabulary", BACK: "SmolLM2, warmed up in Qwen2.5's, into its own"}
    texts = measured_texts()
    left = rates(bits_of(before(direction)))
    begun = {method: rates(bits_of(start)) for method, start in starts.items()}
    ended = {method: rates(bits) for method, bits in warm.items()}
    for kind in KINDS:
        num_bytes = sum(len(text.text.encode()) for text in texts[kind])
        said = f"{len(texts[kind])} texts, {num_bytes} bytes of {kind}; {names[direction]}"
        prefix = f"surgery.bits_per_byte.{direction}"
        yield Measured(f"{prefix}.before.{kind}", left[kind], said)
        for method in starts:
            yield Measured(f"{prefix}.{method}.start.{kind}", begun[method][kind], said)
            yield Measured(f"{prefix}.{method}.warm.{kind}", ended[method][kind], f"{WARM_UP_SAID}; {said}")
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
    anchored, plain = (bits_of(moved(BACK, method)) for method in ("omp_anchored", "omp"))
    found = excess(anchored, plain)
    kinds = {kind: (rates(anchored)[kind], rates(plain)[kind]) for kind in KINDS}
    by_kind = ", ".join(f"{kind} {one:.3f} over {other:.3f}" for kind, (one, other) in kinds.items())
    return Measured(
        "surgery.pursuit.bits_per_byte_over_plain",
        found.ratio,
        f"paired standard error {found.ratio_error:.4f}; {by_kind}; {PAIR}",
    )


def over_best(row: str, own: str, warm: Mapping[str, Bits], pair: str) -> Measured:
    """One method against that of the others which is better by most standard errors, or worse by fewest.

    So no other one is better by more than two if this one is not.
    """
    others = {method: excess(warm[own], bits) for method, bits in warm.items() if method != own}
    best = max(others, key=lambda method: others[method].z)
    found = others[best]
    num_documents = sum(map(len, warm[own].values()))
    return Measured(
        row,
        found.ratio,
        f"{own} over {best}; {num_documents} documents; {own} {mean_bits(warm[own]):.4f} bits a byte; its excess over "
        f"each: "
        + ", ".join(f"{method} {_said(each)}" for method, each in sorted(others.items(), key=lambda item: -item[1].z))
        + f"; {pair}; {WARM_UP_SAID}, on {TRAINED_BYTES} bytes of each kind, measured on others, at least "
        f"{MEASURED_BYTES} of each",
        error=found.ratio_error,
    )


def _said(found: Excess) -> str:
    return f"{found.difference:+.4f} ± {found.error:.4f} (ratio {found.ratio:.4f}, z {found.z:+.1f})"


MEASUREMENTS = [
    Measurement(
        "surgery_warm_up",
        _warm_ups,
        (
            "surgery.bits_per_byte.*",
            "surgery.seconds_of_rows.*",
            "surgery.pursuit.bits_per_byte_over_plain",
            "surgery.default_over_best",
            "surgery.composed_over_best",
        ),
    )
]
