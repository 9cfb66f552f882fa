"""Measures the models of a comparison in one process; a model is a shard, the unit of resume."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date

import torch

from tasks.artifacts.errors import BadInputError
from tasks.compare.arithmetic import answered, pages
from tasks.compare.measured import Measured
from tasks.compare.results import build_results
from tasks.compare.stage import CompareRecipe, CompareRuntime
from tasks.logits.heldout import HELDOUT_FILE, texts_to_choose_on
from tasks.modeling.bits_per_byte import TEXTS
from tasks.modeling.compared_models import check_models
from tasks.modeling.document_bits import DocumentBits, document_bits
from tasks.modeling.item_bits import Bits
from tasks.modeling.model_files import load_causal_lm, resolve_device
from tasks.modeling.stopping import stopped_prompts
from tasks.modeling.template_tests import template_fault
from tasks.modeling.tokenizer_files import load_tokenizer, tokenizer_digest
from tasks.worker.job import InputArtifact, Job, worker_main
from tasks.worker.model_shards import measured_models


@dataclass(frozen=True)
class _Text:
    document: str
    text: str


def run(job: Job) -> None:
    """results.json, and models/<name>.json with the items of each model."""
    recipe, runtime = CompareRecipe.model_validate(job.recipe), CompareRuntime.model_validate(job.runtime)
    models = job.inputs("model")
    if len(models) < 2:
        raise BadInputError(f"compare has the models {sorted(models)}, and two are needed; add inputs model.<name>")
    check_models("compare", "reference", [recipe.reference], models)
    measured = measured_models(job, models, Measured.model_validate_json, lambda: _Bench(job, recipe, runtime).measure)
    measured = {name: measured[name] for name in sorted(models)}
    results = build_results(measured, recipe.reference)
    directory = job.new_directory("results")
    (directory / "models").mkdir()
    for name, each in measured.items():
        (directory / "models" / f"{name}.json").write_text(each.model_dump_json(indent=1) + "\n", encoding="utf-8")
    text = json.dumps(results, indent=1, sort_keys=True, ensure_ascii=False, allow_nan=False)
    (directory / "results.json").write_text(text + "\n", encoding="utf-8")
    # Empty where the reference has broken numbers, and so is in no pair.
    paired = results["paired"].items()
    against = {name: pairs[recipe.reference] for name, pairs in paired if recipe.reference in pairs}
    job.complete(directory, {"models": results["models"], "minus_reference": against})


class _Bench:
    """What is the same for every model."""

    def __init__(self, job: Job, recipe: CompareRecipe, runtime: CompareRuntime) -> None:
        self.job, self.recipe, self.batch_size = job, recipe, runtime.batch_size
        self.device = resolve_device(runtime.device)
        corpus = job.input("corpus")
        self.rows = texts_to_choose_on(
            corpus.directory() / HELDOUT_FILE, recipe.skip_documents, recipe.max_documents, corpus.artifact.uri
        )
        self.asked = pages(recipe.num_arithmetic, recipe.seed)

    def measure(self, _name: str, source: InputArtifact) -> Measured:
        """A model, item by item."""
        recipe, directory = self.recipe, source.directory()
        tokenizer = load_tokenizer(directory)
        model = load_causal_lm(directory, dtype=getattr(torch, recipe.dtype), device=str(self.device))
        texts = [_Text(f"{kind}-{number}", text) for kind, own in TEXTS.items() for number, text in enumerate(own)]
        bits = document_bits(
            model,
            tokenizer,
            [*self.rows, *texts],
            window_tokens=recipe.window_tokens,
            batch_size=self.batch_size,
            after_batch=self.job.leave_if_asked,
        )
        digest = tokenizer_digest(tokenizer)
        if not all(math.isfinite(each.bits) for each in bits):
            return Measured(tokenizer=digest, fault="it gives logits that are not finite")
        documents, fixed = bits[: -len(texts)], iter(bits[-len(texts) :])
        day = date.fromisoformat(recipe.template_date)
        right = answered(model, tokenizer, self.asked, batch_size=self.batch_size, after_batch=self.job.leave_if_asked)
        return Measured(
            tokenizer=digest,
            documents=_records(documents),
            texts={kind: _records([next(fixed) for _ in own]) for kind, own in TEXTS.items()},
            arithmetic=tuple(right),
            stopped=tuple(stopped_prompts(model, tokenizer, max_new_tokens=recipe.max_new_tokens, day=day)),
            template_fault=template_fault(tokenizer, day),
        )


def _records(bits: Sequence[DocumentBits]) -> tuple[Bits, ...]:
    return tuple(Bits(document=each.document, bits=each.bits, num_bytes=each.num_bytes) for each in bits)


if __name__ == "__main__":
    worker_main(run)
