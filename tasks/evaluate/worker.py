"""Evaluates every model of a comparison; what is measured of a model is a shard, the unit of resume.

Several processes deal the models out among themselves. The first one waits for the others' shards and joins them all.
"""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from typing import TYPE_CHECKING

from tasks.artifacts.errors import BadInputError
from tasks.artifacts.manifest import ShardReceipt
from tasks.benchmarks.declare import CLOZE
from tasks.benchmarks.hub import confine_hub
from tasks.evaluate.results import build_results, gate_metrics
from tasks.evaluate.served import check_served
from tasks.evaluate.shards import Part, check_same_harness, copy_parts, parts_of, read_measured, write_lines
from tasks.evaluate.stage import EvaluateRecipe, EvaluateRuntime, HarnessTasks
from tasks.evaluate.turns import deal
from tasks.modeling.compared_models import check_models
from tasks.modeling.hub import REFERENCE_FILE
from tasks.modeling.model_identity import first_alike
from tasks.planning.architecture import architecture
from tasks.worker.job import InputArtifact, Job, worker_main

if TYPE_CHECKING:
    from tasks.logits.rows import Row

_LOOK_SECONDS = 2.0


def run(job: Job) -> None:
    """results.json, and samples/<model>.jsonl and documents/<model>.jsonl with the items of each model."""
    recipe = EvaluateRecipe.model_validate(job.recipe)
    runtime = EvaluateRuntime.model_validate(job.runtime)
    models = job.inputs("model")
    named = (recipe.reference, recipe.candidate, *recipe.parents, *recipe.twins, *recipe.twins.values())
    check_models("evaluate", "reference, candidate, parents or twins", named, models)
    worst_kl_over_twin = _worst_kl_over_twin(recipe, models)
    check_served(recipe.served, models)
    parts = parts_of(recipe, models)
    receipts = job.receipts()
    missing = [part for part in parts if part.shard not in receipts]
    job.progress(len(parts) - len(missing), len(parts), "measurements")
    if missing:
        by_reference = any(model.manifest.object(REFERENCE_FILE) is not None for model in models.values())
        from_hub = runtime.mirror is None and any(isinstance(task, HarnessTasks) for task in recipe.tasks)
        confine_hub(job.scratch, offline=not by_reference and not from_hub, mirror=runtime.mirror)
        _measure(job, recipe, runtime, models, parts, receipts)
        receipts = job.receipts()
    if job.rank:
        return

    measured = {
        name: read_measured(job, [part for part in parts if part.model == name], receipts)
        for name in sorted([*models, *recipe.served])
    }
    results = build_results(measured, recipe)
    directory = job.new_directory("results")
    text = json.dumps(results, indent=1, sort_keys=True, ensure_ascii=False, allow_nan=False)
    (directory / "results.json").write_bytes(text.encode() + b"\n")
    for name, each in measured.items():
        write_lines(directory / "samples" / f"{name}.jsonl", each.items)
        write_lines(directory / "documents" / f"{name}.jsonl", each.documents)
    job.complete(
        directory,
        {
            **gate_metrics(results),
            "worst_kl_over_twin": worst_kl_over_twin,
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
        if not (math.isfinite(own) and math.isfinite(other) and other > 0):
            raise BadInputError(
                f"the held-out KL of {branch} is {own} and that of its twin {twin} is {other}, of which there is no "
                f"ratio; train the broken one again, or take the two out of evaluate.recipe.twins"
            )
        ratios.append(own / other)
    return max(ratios, default=None)


def _measure(
    job: Job,
    recipe: EvaluateRecipe,
    runtime: EvaluateRuntime,
    models: Mapping[str, InputArtifact],
    parts: Sequence[Part],
    receipts: Mapping[str, ShardReceipt],
) -> None:
    """Commits the parts that have no receipt yet."""
    # Heavy, and only right after confine_hub.
    from tasks.benchmarks.cloze_items import Text
    from tasks.benchmarks.loading import data_digest, load_tasks
    from tasks.evaluate.bench import Bench
    from tasks.evaluate.served_connection import served_lm

    missing = [part for part in parts if part.shard not in receipts]
    total = len(parts)
    asks = any(part.entry is not None for part in missing)
    reads = any(part.entry is None for part in missing) or (asks and CLOZE in recipe.entries)
    rows = _heldout_texts(job, recipe) if reads else []
    tasks = []
    if asks:
        texts = [Text(row.document, row.text) for row in rows]
        tasks = load_tasks(recipe.tasks, recipe.max_new_tokens, runtime.mirror, texts)
        data = {entry.name: data_digest(entry.data_sha256) for entry in tasks}
        done = [part for part in parts if part.shard in receipts]
        check_same_harness(job, done, receipts, version("lm_eval"), data)
    bench = Bench(
        job,
        recipe,
        device=runtime.device,
        batch_size=runtime.batch_size,
        tasks=tasks,
        rows=rows,
        done=total - len(missing),
        total=total,
    )
    asked = [name for name in recipe.served if job.rank == 0 and any(part.model == name for part in missing)]
    # Before hours go into the other models: whether a server is there, and can do what the tasks ask of it.
    served = {name: served_lm(name, recipe, runtime.servers[name], models, tasks, job) for name in asked}
    alike = first_alike({name: model.manifest.objects for name, model in models.items()})
    own = {name: [part for part in missing if part.model == name] for name in models}
    # Of all models, whatever is finished: the processes must not look at different moments and deal differently.
    sizes = {name: _weight_bytes(model) for name, model in models.items() if name not in alike}
    mine = deal(sizes, int(os.environ.get("WORLD_SIZE", "1")))[job.rank]
    for name, model in models.items():
        if name in mine and own[name]:
            bench.measure(name, model, own[name])
    if job.rank:
        return
    for name, lm in served.items():
        bench.measure_served(lm, [part for part in missing if part.model == name])
    _wait_for_others(job, [part for name in sizes for part in own[name]], total)
    for name, other in alike.items():
        if own[name]:
            # The same weights under a second name, such as the model that was chosen.
            copy_parts(job, other, own[name])
    job.progress(total, total, "measurements")


def _weight_bytes(model: InputArtifact) -> float:
    """Of a model's weights; those that stay on the hub have a shape, unless it is of an unknown kind."""
    if model.manifest.object(REFERENCE_FILE) is None:
        return float(sum(entry.size for entry in model.manifest.objects))
    try:
        return architecture(model.json("config.json")).bytes()
    except (BadInputError, KeyError):
        return 0.0


def _wait_for_others(job: Job, parts: Sequence[Part], total: int) -> None:
    """Until the other processes have committed all of these; one that fails has its launcher end this one too."""
    wanted, folder = {f"{part.shard}.json" for part in parts}, job.artifact.path("shards")
    while left := len(wanted - {entry.path.rpartition("/")[2] for entry in job.store.list(folder)}):
        job.leave_if_asked()
        job.progress(total - left, total, "measurements")
        time.sleep(_LOOK_SECONDS)


def _heldout_texts(job: Job, recipe: EvaluateRecipe) -> Sequence[Row]:
    from tasks.logits.heldout import HELDOUT_FILE, heldout_texts, texts_to_choose_on

    corpus = job.input("corpus")
    file = corpus.directory() / HELDOUT_FILE
    if recipe.skip_documents:
        return texts_to_choose_on(file, recipe.skip_documents, recipe.max_documents, corpus.artifact.uri)
    texts = heldout_texts(file, maximum=recipe.max_documents)
    if texts.chosen < 2:
        raise BadInputError(
            f"{corpus.artifact.uri} holds out {texts.held_out} texts, and a standard error needs two; raise its "
            f"held-out share, or set evaluate.recipe.bits_per_byte to false"
        )
    return texts.rows


if __name__ == "__main__":
    worker_main(run)
