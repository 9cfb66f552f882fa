"""The forecast of a dump."""

from __future__ import annotations

from flows.model_sizes import Sizes
from tasks.corpus.stage import CorpusRecipe
from tasks.dump_logits.stage import DumpLogitsRecipe, DumpLogitsRuntime
from tasks.models.stage import HubSource
from tasks.planning.assumptions import Assumptions, start_seconds, utilisation_of
from tasks.planning.flops import forward_flops
from tasks.planning.forecast import RECORDS, Forecast, device_bandwidth
from tasks.planning.forward_memory import dump_memory
from tasks.planning.hardware import Arithmetic, Hardware
from tasks.planning.logit_bytes import entries_of, store_size
from tasks.planning.measured import DumpProgress
from tasks.planning.quantities import byte_size, figure, span
from tasks.runtime.declare import Step


def forecast_dump(
    step: Step, sizes: Sizes, given: Assumptions, hardware: Hardware, progress: DumpProgress | None
) -> Forecast:
    """Of one dump on `hardware`; `progress` says of what has begun how large and fast it is."""
    recipe, runtime = step.config.recipe, step.config.runtime
    assert isinstance(recipe, DumpLogitsRecipe)
    assert isinstance(runtime, DumpLogitsRuntime)
    teacher, corpus = sizes.model(step.inputs["teacher"]), sizes.corpus(step.inputs["corpus"])
    splits = [corpus.train if split == "train" else corpus.heldout for split in recipe.splits]
    documents = sum(splits[1:], splits[0])
    cut = step.inputs["corpus"].config.recipe
    longest = float(cut.max_tokens) if isinstance(cut, CorpusRecipe) else documents.length
    support = recipe.support.model_dump()
    store = store_size(
        tokens=documents.tokens,
        rows=[split.rows for split in splits],
        longest=longest,
        rows_per_shard=recipe.rows_per_shard,
        documents_per_chunk=recipe.documents_per_chunk,
        vocabulary=sizes.vocabulary(step.inputs["teacher"]),
        entries=progress.entries if progress and progress.entries else entries_of(support, given.adaptive_entries),
        draws=support["kind"] == "sampled",
        value_bytes={"warped": 0.0, "float16": 2.0, "float32": 4.0}[recipe.values],
        temperatures=len(recipe.temperatures),
    )
    stored = store.bytes if progress is None else progress.bytes_per_token * documents.tokens

    # The rows whose gold tokens are computed again, and the sample for the prior, pass the layers once more.
    again = runtime.gold_rows_per_shard / recipe.rows_per_shard + recipe.prior_tokens / max(1.0, documents.tokens)
    passed = documents.tokens * (1 + min(1.0, again))
    executed = passed / (1 - given.padding)
    pairs = documents.pairs(given.length_spread)
    flops = forward_flops(teacher.shape, num_tokens=executed, num_logits=passed, num_pairs=pairs)
    devices = runtime.num_processes * runtime.num_nodes
    utilisation = utilisation_of(hardware, given.forward_utilisation, given)
    arithmetic: Arithmetic = "float32" if recipe.teacher.dtype == "float32" else "bfloat16"
    eighth = 2.0 * teacher.quantised * executed
    wide, narrow = hardware.peak(arithmetic), hardware.peak("float8")
    compute = ((flops - eighth) / wide + eighth / narrow) / (devices * utilisation)
    group = runtime.tensor_parallel
    # Two sums over the group a layer, each sent around it twice.
    sent = 4 * teacher.num_layers * teacher.hidden * (4 if arithmetic == "float32" else 2) * (group - 1) / group
    traffic = executed * sent * group / devices / device_bandwidth(hardware, 1) if group > 1 else 0.0
    encoding = documents.tokens / given.encoded_tokens_per_second / (devices / group)
    loaded = teacher.bytes() * runtime.num_nodes
    source = step.inputs["teacher"].config.recipe
    fetch = given.hub_bytes_per_second if _on_hub(source) else given.store_bytes_per_second
    seconds = {
        "start": start_seconds(given, hardware),
        "weights": teacher.bytes() / fetch + teacher.bytes() / given.disk_bytes_per_second,
        "compute": compute,
        "traffic": traffic,
        "waiting for the encoder": max(0.0, encoding - compute - traffic),
        "waiting for the store": max(0.0, stored / given.store_bytes_per_second - compute - traffic - encoding),
    }
    measured = ""
    if progress is not None:
        measured = f"{progress.bytes_per_token:.1f} bytes a token of {progress.shards} shards"
        if progress.tokens_per_second:
            measured += f", {progress.tokens_per_second:,.0f} tokens/s"
            seconds = {"measured speed": documents.tokens / progress.tokens_per_second}
    memory = dump_memory(
        teacher,
        recipe.teacher.dtype,
        tokens=min(runtime.tokens_per_batch, executed),
        chunk_tokens=runtime.head_chunk_tokens,
        tensor_parallel=group,
    )
    in_eight_bits = f" of which {eighth:.3g} in 8 bits at {narrow:.4g}/s," if eighth else ""
    return Forecast(
        tokens=documents.tokens,
        flops=flops,
        hardware=hardware,
        devices=devices,
        nodes=runtime.num_nodes,
        memory={**memory.model_dump(exclude_defaults=True), "peak": memory.peak},
        host_memory=0.0 if hardware.accelerator else memory.peak * devices,
        seconds=seconds,
        stored=stored,
        moved=stored + loaded,
        # Every shard has a receipt, and so has the prior.
        objects=store.objects + store.shards + 1 + RECORDS,
        measured=measured,
        how=(
            f"{figure(executed)} tokens with padding × 2 × {figure(teacher.shape.layer_weights)} weights + "
            f"{figure(passed)} positions × 2 × {figure(teacher.shape.head_weights)} of the head + "
            f"{figure(pairs)} pairs × 4 × {figure(teacher.shape.attention_width)} = {flops:.4g} FLOP,"
            f"{in_eight_bits} on {devices} × {wide:.4g}/s × {utilisation:.2f}: {span(compute)}",
            f"{byte_size(teacher.bytes(recipe.teacher.dtype))} of weights cut among {group}, and the whole head: "
            f"{byte_size(memory.weights)} + activations of {runtime.tokens_per_batch:,} tokens "
            f"{byte_size(memory.activations)} + logits of {runtime.head_chunk_tokens:,} positions "
            f"{byte_size(memory.head)}",
            f"{store.entries:.0f} entries a position, {stored / max(1.0, documents.tokens):.1f} bytes a token, "
            f"{store.shards:,} shards",
        ),
    )


def _on_hub(recipe: object) -> bool:
    source = getattr(recipe, "source", None)
    return isinstance(source, HubSource) and source.mode == "reference"
