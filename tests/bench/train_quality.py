"""Is a student that learnt from stored logits better than its twin? The reason to distil, measured on a test split.

Pairs of trainings by the stage distill: of the same start, documents and steps, within a pair in the same order (the
seed). The recipes are those that `quality_search` chose on dev. The gain is the mean over the pairs; its standard
error joins two sources of chance:

    SE² = SE_documents² + SE_pairs²,   z = gain / SE

SE_documents is that of a ratio of sums over documents (`paired_ratio`) of the differences, averaged over the pairs: the
words of one document are not independent, so documents are the units. SE_pairs = standard deviation of the pairs' gains
/ √pairs. The first one holds a part of the second, so SE errs on the large side.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from tasks.logits.rows import Row, read_rows
from tasks.modeling.statistics import paired_ratio, ratio_with_error
from tasks.modeling.tokenizer_files import load_tokenizer
from tasks.runtime.execute import Outcome
from tests.bench.quality_folder import FOLDER
from tests.bench.quality_judge import JudgedDocument, judged_once
from tests.bench.quality_recipes import ARMS, CHOSEN, NUM_STEPS, ROWS_PER_STEP, SEEDS, recipe_of
from tests.bench.quality_steps import corpus, directory_of, distillation, dump, make, student, teacher, unseen_corpus
from tests.bench.quality_student import LAYERS
from tests.bench.quality_words import NUM_CHOICES, Item, cloze_items
from tests.bench.records import Measured, Measurement
from tests.bench.teachers import VOCABULARIES

PROCESSES = 2
"""Trainings at a time, one thread each."""


@dataclass(frozen=True)
class Scale:
    """One of the two measures: a ratio of sums over documents."""

    name: str
    unit: str
    numerator: str
    denominator: str
    sign: int
    """Of student − twin where the student is the better one."""


SCALES = (
    Scale("bits_per_byte", "bits per byte", "bits", "num_bytes", -1),
    Scale("accuracy", f"of {NUM_CHOICES} words the one that follows", "correct", "num_items", 1),
)


@dataclass(frozen=True)
class Compared:
    """A gain with its standard error and where that comes from."""

    gain: float
    by_pair: tuple[float, ...]
    error_documents: float
    error_pairs: float

    @property
    def error(self) -> float:
        """Of the mean gain."""
        return math.hypot(self.error_documents, self.error_pairs)


def compare(
    students: Sequence[Sequence[JudgedDocument]], twins: Sequence[Sequence[JudgedDocument]], scale: Scale
) -> Compared:
    """Students and twins, each in the order of the seeds, over the same documents in the same order."""
    student_SD, twin_SD = (
        np.array([[getattr(each, scale.numerator) for each in model] for model in models], np.float64)
        for models in (students, twins)
    )
    sizes_D = [getattr(each, scale.denominator) for each in students[0]]
    by_pair = tuple(float(total) for total in scale.sign * (student_SD - twin_SD).sum(1) / sum(sizes_D))
    over_documents = paired_ratio(student_SD.mean(0).tolist(), twin_SD.mean(0).tolist(), sizes_D)
    return Compared(
        gain=scale.sign * over_documents["difference"],
        by_pair=by_pair,
        error_documents=over_documents["stderr"],
        error_pairs=statistics.stdev(by_pair) / math.sqrt(len(by_pair)),
    )


def _quality() -> Iterator[Measured]:
    make(dump())
    # Before the threads, two of which would make the same folders at once.
    make(student())
    _questions()
    jobs = [(arm, seed) for seed in SEEDS for arm in ARMS]
    with ThreadPoolExecutor(PROCESSES) as pool:
        made = dict(zip(jobs, pool.map(_trained, jobs), strict=True))
        judged = dict(zip(jobs, pool.map(_judged, made.values()), strict=True))
    models = {arm: [judged[arm, seed] for seed in SEEDS] for arm in ARMS}
    of_teacher = _judged(make(teacher()))
    said = _said(made, of_teacher)
    for scale in SCALES:
        for arm, found in (*models.items(), ("teacher", [of_teacher])):
            values = [_value(each, scale) for each in found]
            error = np.mean([each["stderr"] for each in values])
            each = ", ".join(f"{each['value']:.4f}" for each in values)
            yield Measured(
                f"train.quality.{scale.name}.{arm}",
                statistics.fmean(value["value"] for value in values),
                f"{scale.unit}; {each}; standard error over documents {error:.4f}; {said}",
                len(values),
            )
        compared = compare(models["student"], models["twin"], scale)
        how = (
            f"pairs {', '.join(f'{gain:+.4f}' for gain in compared.by_pair)}; standard error {compared.error:.4f} "
            f"(documents {compared.error_documents:.4f}, pairs {compared.error_pairs:.4f}); {said}"
        )
        yield Measured(f"train.quality.{scale.name}.gain", compared.gain, how, len(SEEDS))
        yield Measured(f"train.quality.{scale.name}.gain_z", compared.gain / compared.error, how, len(SEEDS))
    yield Measured("train.quality.seeds", len(SEEDS), said)
    seconds = [each.manifest.provenance.seconds for each in made.values()]
    yield Measured(
        "train.quality.minutes",
        sum(seconds) / PROCESSES / 60,
        f"sum of the launches, {min(seconds):.0f} to {max(seconds):.0f} s each, over {PROCESSES} at a time, with "
        f"starting, judging dev before and after, and export; without the dump, which took "
        f"{make(dump()).manifest.provenance.seconds / 60:.0f} min; {said}",
    )


def _trained(job: tuple[str, int]) -> Outcome:
    arm, seed = job
    return make(distillation(arm, recipe_of(arm, CHOSEN[arm], seed, NUM_STEPS)))


@lru_cache(maxsize=1)
def _questions() -> tuple[list[Row], list[Item]]:
    rows = read_rows(directory_of(make(unseen_corpus())) / "train.parquet")
    return rows, cloze_items(rows, load_tokenizer(directory_of(make(teacher()))))


def _judged(made: Outcome) -> list[JudgedDocument]:
    file = FOLDER / "judged" / f"{made.ref.key[:16]}-{made.ref.digest[:16]}.json"
    return judged_once(file, directory_of(made), *_questions())


def _value(documents: Sequence[JudgedDocument], scale: Scale) -> dict[str, float]:
    kept = [each for each in documents if getattr(each, scale.denominator)]
    return ratio_with_error(
        [getattr(each, scale.numerator) for each in kept], [getattr(each, scale.denominator) for each in kept]
    )


def _said(made: dict[tuple[str, int], Outcome], judged: Sequence[JudgedDocument]) -> str:
    metrics = made[ARMS[0], SEEDS[0]].manifest.metrics
    return (
        f"test: {len(judged)} documents of Python's documentation, {sum(each.num_bytes for each in judged)} bytes, "
        f"{sum(each.num_items for each in judged)} words; {NUM_STEPS} steps of {ROWS_PER_STEP} documents, "
        f"{metrics['target_tokens']} target tokens of {make(corpus()).manifest.metrics['train_targets']}, 64 entries a "
        f"position, mass {make(dump()).manifest.metrics['captured_mass']:.2f}; student and twin start as {len(LAYERS)} "
        f"of the teacher's 30 layers; recipes {CHOSEN}; teacher {VOCABULARIES['49k'].weights}"
    )


MEASUREMENTS = [Measurement("train_quality", _quality, ("train.quality.*",))]
