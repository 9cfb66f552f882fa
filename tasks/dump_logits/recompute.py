"""Runs the teacher again over sampled rows of a finished logit store and compares; launched by `medius verify`.

The spec is that of the dump, with recipe.num_positions more. Writes recomputed.json to its scratch folder.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from tasks.artifacts.errors import BadInputError, ObjectMissingError
from tasks.dump_logits.quantised import check_quantiser, quantised_as
from tasks.dump_logits.recomputed import RECOMPUTED_FILE, TOLERANCES, Comparison, Measure, Recomputed, Tolerance
from tasks.dump_logits.stage import DumpLogitsRuntime
from tasks.dump_logits.teacher import Teacher, config_of
from tasks.dump_logits.teacher_recipe import TeacherRecipe
from tasks.dump_logits.tensor_group import Place, TensorGroup, check_plan, device_of_rank
from tasks.logits.codec import DocumentCodec
from tasks.logits.reader import LogitReader, LogitRow
from tasks.logits.schema import Split
from tasks.modeling.model_files import stored_dtype
from tasks.modeling.tokenizer_files import load_tokenizer, tokenizer_digest
from tasks.worker.job import Job, worker_main

POSITIONS_PER_ROW = 16
"""A row costs a forward pass, each of its positions one row of logits."""
MAX_ROWS = 10**6
LOWEST = -80.0
"""A log-probability of zero, where its logarithm is needed."""
NOT_A_NUMBER = 1e6
"""Shown as the difference to what is infinite or no number."""

Values = npt.NDArray[np.float64]


class Tally:
    """One measure, position by position."""

    def __init__(self, measure: Measure, unit: str, tolerance: Tolerance) -> None:
        self._measure, self._unit, self._tolerance = measure, unit, tolerance
        self._sum = self._allowed_sum = 0.0
        self._count = self._outside = 0
        self._share, self._worst, self._allowed, self._where = -1.0, 0.0, 0.0, ""

    def add(self, where: str, at_C: npt.NDArray[np.int64], off_C: Values, rounding_C: Values) -> None:
        """How far positions `at_C` of a row are off, and how far the store's rounding may put them off."""
        off_C = np.nan_to_num(np.abs(off_C), nan=NOT_A_NUMBER, posinf=NOT_A_NUMBER)
        allowed_C = self._tolerance.single + rounding_C
        self._sum, self._count = self._sum + float(off_C.sum()), self._count + len(off_C)
        self._allowed_sum += float((self._tolerance.mean + rounding_C).sum())
        self._outside += int((off_C > allowed_C).sum())
        share_C = off_C / allowed_C
        worst = int(np.argmax(share_C))
        if share_C[worst] > self._share:
            self._share = float(share_C[worst])
            self._worst, self._allowed = float(off_C[worst]), float(allowed_C[worst])
            self._where = f"{where}, position {at_C[worst]}"

    def comparison(self) -> Comparison:
        """The measure over all positions."""
        return Comparison(
            measure=self._measure,
            unit=self._unit,
            mean=self._sum / max(self._count, 1),
            mean_allowed=self._allowed_sum / max(self._count, 1),
            largest=self._worst,
            largest_allowed=self._allowed,
            where=self._where,
            num_outside=self._outside,
        )


class Comparer:
    """Compares stored rows with what the teacher says of them now."""

    def __init__(self, teacher: Teacher, reader: LogitReader, dtype: str) -> None:
        self._teacher = teacher
        self._codec = DocumentCodec(reader.schema, reader.prior())
        self._warped = reader.schema.values == "warped"
        gold, mass, divergence = TOLERANCES[dtype].items()
        self._drawn = reader.schema.support.kind == "sampled"
        self._agreeing = self._compared = 0
        self.gold = Tally(gold[0], "nats", gold[1])
        self.mass = Tally(mass[0], "of 1", mass[1])
        self.divergence = Tally(divergence[0], "nats", divergence[1])

    @torch.inference_mode()
    def add(self, where: str, row: LogitRow, at_C: npt.NDArray[np.int64]) -> None:
        """Compares positions `at_C` of a row."""
        ids_1T = torch.from_numpy(row.input_ids.astype(np.int64))[None].to(self._teacher.device)
        hidden_TD = self._teacher.hidden_states(ids_1T, torch.ones_like(ids_1T))[0]
        logits_CV = self._teacher.logits(hidden_TD[torch.from_numpy(at_C).to(hidden_TD.device)])
        logprobs_CV = logits_CV.double().log_softmax(1).cpu().numpy()

        gold_C = np.take_along_axis(logprobs_CV, row.input_ids[at_C + 1, None], 1)[:, 0]
        gold_error_C = np.full(len(at_C), self._codec.gold_error)
        self.gold.add(where, at_C, gold_C - row.gold_logprob_P[at_C], gold_error_C)

        likeliest_C = np.take_along_axis(logprobs_CV, np.maximum(row.topk_ids_PK[at_C, :1], 0), 1)[:, 0]
        self._agreeing += int((likeliest_C >= logprobs_CV.max(1)).sum())
        self._compared += len(at_C)

        ids_CK, stored_CK = row.topk_ids_PK[at_C], row.topk_logprobs_PK[at_C].astype(np.float64)
        kept_CK = ids_CK >= 0
        ids_CK = np.where(kept_CK, ids_CK, 0)
        ours_CK = np.where(kept_CK, np.take_along_axis(logprobs_CV, ids_CK, 1), -np.inf)
        p_CK = np.exp(ours_CK)
        # The tail is what is no entry, summed: 1 − Σ kept would cancel.
        outside_CV = np.exp(logprobs_CV)
        for outside_V, every_K in zip(outside_CV, row.topk_ids_PK[at_C], strict=True):
            outside_V[every_K[every_K >= 0]] = 0.0
        tail_C = outside_CV.sum(1)
        stored_mass_C = np.exp(stored_CK).sum(1)
        with np.errstate(invalid="ignore"):
            bound_CK = self._codec.error_bound(stored_CK.astype(np.float32), np.maximum(stored_mass_C, 1e-9)[:, None])
        bound_CK = np.where(kept_CK, bound_CK, 0.0)
        by_values_C = (p_CK * bound_CK).sum(1) + 1e-5
        # The odds of the tail are stored in the same units as the gold log-probability.
        mass_rounding_C = gold_error_C if self._warped else by_values_C
        self.mass.add(where, at_C, p_CK.sum(1) - stored_mass_C, mass_rounding_C)

        stored_tail_C = np.maximum(row.tail_logprob_P[at_C].astype(np.float64), LOWEST)
        # Stored masses add up to 1 within the rounding of their values.
        total_C = np.log(stored_mass_C + np.exp(stored_tail_C))
        entries_CK = np.where(kept_CK, p_CK * (np.maximum(ours_CK, LOWEST) - np.maximum(stored_CK, LOWEST)), 0.0)
        log_tail_C = np.log(np.maximum(tail_C, np.exp(LOWEST)))
        divergence_C = entries_CK.sum(1) + tail_C * (log_tail_C - stored_tail_C) + total_C
        rounding_C = (p_CK * bound_CK**2).sum(1) + self._codec.gold_error**2 + 1e-6
        self.divergence.add(where, at_C, divergence_C, rounding_C)

    @property
    def agreement(self) -> float | None:
        """Part of the positions whose likeliest token is the same; None of stores of draws, which may lack it."""
        return None if self._drawn else self._agreeing / max(self._compared, 1)


def run(job: Job) -> None:
    runtime = DumpLogitsRuntime.model_validate(job.runtime)
    torch.set_num_threads(runtime.threads)
    place, device = Place.of_environment(runtime.tensor_parallel), device_of_rank(runtime.device)
    if place.group_size == 1:
        _compare(job, device, None)
        return
    group = TensorGroup(place, device)
    if group.leads:
        _compare(job, device, group)
        group.end()
    elif group.hears_load():
        directory = job.input("teacher").directory()
        Teacher(directory, _recipe(job, directory), device, 1, group).follow()


def _compare(job: Job, device: torch.device, group: TensorGroup | None) -> None:
    """The part of the process that says what was found."""
    manifest = job.artifact.manifest()
    if manifest is None:
        raise ObjectMissingError(f"{job.artifact.uri} is not finished")
    reader = LogitReader(job.store, job.artifact.directory, manifest)
    directory = job.input("teacher").directory()
    recipe = _recipe(job, directory)
    if (digest := tokenizer_digest(load_tokenizer(directory))) != reader.schema.tokenizer_digest:
        raise BadInputError(
            f"the model has another tokenizer ({digest[:16]}) than the logits ({reader.schema.tokenizer_digest[:16]}); "
            f"give one that shares it"
        )
    config = config_of(directory)
    check_quantiser(config, device)
    if group is not None:
        check_plan(config.get_text_config(), group.size)
        group.load()
    teacher = Teacher(directory, recipe, device, reader.schema.vocab_size, group)
    comparer = Comparer(teacher, reader, recipe.dtype)
    wanted = int(job.recipe["num_positions"])
    done = num_rows = 0
    generator = np.random.default_rng(int(job.recipe.get("seed", 0)))
    for split, index in _places(reader, generator):
        row = reader.rows(split)[index]
        count = min(POSITIONS_PER_ROW, wanted - done, len(row.input_ids) - 1)
        if count < 1:
            continue
        at_C = np.sort(generator.choice(len(row.input_ids) - 1, count, replace=False))
        comparer.add(f"row {index} of split {split}", row, at_C)
        done, num_rows = done + count, num_rows + 1
        job.progress(done, wanted, "positions")
        if done == wanted:
            break
    found = Recomputed(
        num_positions=done,
        num_rows=num_rows,
        dtype=recipe.dtype,
        device=str(device),
        agreement=comparer.agreement,
        comparisons=tuple(tally.comparison() for tally in (comparer.gold, comparer.mass, comparer.divergence)),
    )
    (job.scratch / RECOMPUTED_FILE).write_text(found.model_dump_json())


def _recipe(job: Job, directory: Path) -> TeacherRecipe:
    """How the model is loaded: as the dump loaded its teacher, or where that is another or a served one, as its own
    files say."""
    told = job.recipe["teacher"]
    if not job.recipe.get("against") and told.get("kind") is None:
        return TeacherRecipe.model_validate(told)
    dtype = str(stored_dtype(directory)).removeprefix("torch.") if job.recipe.get("against") else told["dtype"]
    quantisation = quantised_as(config_of(directory))
    coarse = dtype == "bfloat16" or quantisation is not None
    return TeacherRecipe.model_validate({"dtype": "bfloat16" if coarse else "float32", "quantisation": quantisation})


def _places(reader: LogitReader, generator: np.random.Generator) -> Iterator[tuple[Split, int]]:
    """Rows of all splits in random order, without one twice; of more than a million, a million drawn at random."""
    splits = [(split, count) for split, count in reader.schema.num_rows.items() if count]
    ends = np.cumsum([count for _, count in splits])
    total = int(ends[-1])
    numbers = generator.permutation(total) if total <= MAX_ROWS else generator.integers(0, total, MAX_ROWS)
    for number in numbers.tolist():
        place = int(np.searchsorted(ends, number, side="right"))
        split, count = splits[place]
        yield split, number - (int(ends[place]) - count)


if __name__ == "__main__":
    worker_main(run)
