"""Evaluates every model of a comparison in one process; a model is a shard, the unit of resume."""

from __future__ import annotations

import gc
import json
import re
import time
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tasks.artifacts.errors import BadInputError
from tasks.artifacts.fingerprint import canonical_json, sha256_hex
from tasks.artifacts.manifest import ShardReceipt
from tasks.benchmarks.hub import confine_hub
from tasks.evaluate.results import Measured, build_results, gate_metrics
from tasks.evaluate.stage import EvaluateRecipe, EvaluateRuntime, HarnessTasks
from tasks.modeling.statistics import mean_with_error
from tasks.worker.job import InputArtifact, Job, worker_main

if TYPE_CHECKING:
    from tasks.benchmarks.loading import LoadedTasks
    from tasks.logits.rows import Row

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


def run(job: Job) -> None:
    recipe = EvaluateRecipe.model_validate(job.recipe)
    runtime = EvaluateRuntime.model_validate(job.runtime)
    models = job.inputs("model")
    _check_names(recipe, models)
    receipts = job.receipts()
    missing = [name for name in models if f"model-{name}" not in receipts]
    job.progress(len(models) - len(missing), len(models), "models")
    if missing:
        confine_hub(job.scratch, offline=_needs_no_hub(recipe, models))
        _evaluate_missing(job, recipe, runtime, {name: models[name] for name in missing})
        receipts = job.receipts()

    measured = {name: _read_shard(job, receipts[f"model-{name}"]) for name in sorted(models)}
    results = build_results(measured, recipe)
    directory = job.new_directory("results")
    (directory / "results.json").write_bytes(
        json.dumps(results, indent=1, sort_keys=True, ensure_ascii=False).encode() + b"\n"
    )
    for name, each in measured.items():
        _write_lines(directory / "samples" / f"{name}.jsonl", each.items)
        _write_lines(directory / "documents" / f"{name}.jsonl", each.documents)
    job.complete(
        directory,
        {
            **gate_metrics(results),
            "worst_kl_over_twin": _worst_kl_over_twin(recipe, models),
            "models": results["models"],
            "paired": results["paired"],
        },
    )


def _worst_kl_over_twin(recipe: EvaluateRecipe, models: Mapping[str, InputArtifact]) -> float | None:
    """The largest ratio of a branch's held-out KL to its twin's; both were measured in the teacher's vocabulary."""
    ratios = []
    for branch, twin in recipe.twins.items():
        own, other = (models[name].metrics.get("heldout_kl") for name in (branch, twin))
        if own is None or other is None:
            raise BadInputError(
                f"evaluate.recipe.twins names {branch} and {twin}, and one of them is not the direct result of a "
                f"distillation; name the branch before its reversion"
            )
        ratios.append(own / other)
    return max(ratios, default=None)


def _check_names(recipe: EvaluateRecipe, models: Mapping[str, InputArtifact]) -> None:
    for name in (recipe.reference, recipe.candidate, *recipe.parents, *recipe.twins, *recipe.twins.values()):
        if name not in models:
            raise BadInputError(
                f"evaluate compares with {name!r}, which is not among its models {', '.join(sorted(models))}; "
                f'add the input "model.{name}" or change reference, candidate, parents or twins'
            )
    for name in models:
        if not _NAME.fullmatch(name):
            raise BadInputError(f"the model name {name!r} becomes a file name; use letters, digits and . _ -")


def _needs_no_hub(recipe: EvaluateRecipe, models: Mapping[str, InputArtifact]) -> bool:
    by_reference = any(model.manifest.object("reference.json") is not None for model in models.values())
    return not by_reference and not any(isinstance(task, HarnessTasks) for task in recipe.tasks)


def _evaluate_missing(
    job: Job, recipe: EvaluateRecipe, runtime: EvaluateRuntime, missing: Mapping[str, InputArtifact]
) -> None:
    # Heavy, and only right after confine_hub.
    import torch

    from tasks.benchmarks.loading import load_tasks

    device = runtime.device
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    rows = _heldout_texts(job, recipe.max_documents) if recipe.bits_per_byte else []
    tasks = load_tasks(recipe.tasks, recipe.max_new_tokens, runtime.mirror)
    bench = _Bench(job, recipe, runtime.batch_size, device, tasks, rows)
    num_models = len(job.inputs("model"))
    for done, (name, model) in enumerate(missing.items(), num_models - len(missing)):
        bench.measure(name, model, _Ticker(job, name, done, num_models))
        gc.collect()
        if device == "cuda":
            torch.cuda.empty_cache()
    job.progress(num_models, num_models, "models")


def _heldout_texts(job: Job, max_documents: int | None) -> list[Row]:
    """All rows of the first held-out texts: of `max_documents` whole documents, if that is given."""
    from tasks.logits.rows import read_rows

    corpus = job.input("corpus")
    rows = [row for row in read_rows(corpus.directory() / "heldout.parquet") if row.kind == "text" and row.text]
    documents = list(dict.fromkeys(row.document for row in rows))
    if len(documents) < 2:
        raise BadInputError(
            f"{corpus.artifact.uri} holds out {len(documents)} texts, and a standard error needs two; raise its "
            f"held-out share, or set evaluate.recipe.bits_per_byte to false"
        )
    kept = set(documents[:max_documents])
    return [row for row in rows if row.document in kept]


class _Ticker:
    """Called before or after each forward pass: says once a second how far a model is, and ends a stopped worker."""

    def __init__(self, job: Job, model: str, done: int, num_models: int) -> None:
        self.job, self.model, self.done, self.num_models = job, model, done, num_models
        self.batches = 0
        self.said = 0.0

    def __call__(self) -> None:
        if self.job.stop_requested:
            self.job.preempted()
        self.batches += 1
        if time.monotonic() - self.said >= 1:
            self.said = time.monotonic()
            self.job.progress(self.done, self.num_models, "models", model=self.model, batches=self.batches)


@dataclass(frozen=True)
class _Bench:
    """What is the same for every model."""

    job: Job
    recipe: EvaluateRecipe
    batch_size: int
    device: str
    tasks: list[LoadedTasks]
    rows: list[Row]

    def measure(self, name: str, source: InputArtifact, tick: _Ticker) -> None:
        """Commits the shard of one model."""
        import torch

        from tasks.evaluate.harness import ExactLM, evaluate_tasks
        from tasks.modeling.document_bits import context_tokens, document_bits
        from tasks.modeling.document_start import start_token
        from tasks.modeling.model_files import load_causal_lm
        from tasks.modeling.tokenizer_files import load_tokenizer, tokenizer_digest

        tick()
        recipe, started = self.recipe, time.monotonic()
        directory = source.directory()
        tokenizer = load_tokenizer(directory)
        template = tokenizer.chat_template if recipe.apply_chat_template else None
        if recipe.apply_chat_template and not template:
            raise BadInputError(
                f"the model {name} ({source.artifact.uri}) has no chat template; set "
                f"evaluate.recipe.apply_chat_template to false or leave this model out"
            )
        model = load_causal_lm(directory, dtype=getattr(torch, recipe.dtype), device=self.device)
        documents = document_bits(
            model,
            tokenizer,
            self.rows,
            window_tokens=recipe.window_tokens,
            batch_size=self.batch_size,
            after_batch=tick,
        )
        about: dict[str, Any] = {
            "tokenizer": {
                "digest": tokenizer_digest(tokenizer),
                "template_sha256": sha256_hex(str(template).encode()) if template else None,
            },
            "start_token": start_token(model, tokenizer),
            "window_tokens": context_tokens(model, recipe.window_tokens),
        }
        lm = ExactLM(model, tokenizer, recipe, self.batch_size, before_batch=tick)
        items, tasks = evaluate_tasks(lm, self.tasks, recipe)
        about["harness"] = {"lm_eval": version("lm_eval"), "tasks": tasks}
        shard = self.job.new_directory(f"model-{name}")
        _write_lines(shard / "samples.jsonl", [asdict(item) for item in items])
        _write_lines(shard / "documents.jsonl", [asdict(document) for document in documents])
        (shard / "about.json").write_bytes(canonical_json(about) + b"\n")
        self.job.commit_shard(
            f"model-{name}",
            shard,
            {
                "seconds": time.monotonic() - started,
                "accuracy": mean_with_error([item.outcome for item in items])["value"],
            },
        )
        self.job.log(f"evaluated {name}: {len(items)} items, {len(documents)} held-out documents")


def _read_shard(job: Job, receipt: ShardReceipt) -> Measured:
    data = {Path(entry.name).name: job.store.get(job.artifact.path(entry.path)) for entry in receipt.objects}
    return Measured(
        items=_read_lines(data["samples.jsonl"]),
        documents=_read_lines(data["documents.jsonl"]),
        about=json.loads(data["about.json"]),
    )


def _read_lines(data: bytes) -> list[dict[str, Any]]:
    # bytes.splitlines, unlike that of str, does not split at U+2028 within a text.
    return [json.loads(line) for line in data.splitlines()]


def _write_lines(file: Path, records: Iterable[Mapping[str, Any]]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("w", encoding="utf-8") as lines:
        lines.writelines(json.dumps(record, sort_keys=True, ensure_ascii=False) + "\n" for record in records)


if __name__ == "__main__":
    worker_main(run)
