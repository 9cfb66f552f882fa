"""The forecast of a dump."""

from __future__ import annotations

import math

from flows.model_sizes import Sizes
from tasks.corpus.stage import CorpusRecipe
from tasks.dump_logits.served import ServedTeacher
from tasks.dump_logits.stage import DumpLogitsRecipe, DumpLogitsRuntime
from tasks.models.stage import HubSource
from tasks.planning.assumptions import Assumptions, start_seconds, utilisation_of
from tasks.planning.flops import forward_flops, masked_pairs
from tasks.planning.forecast import RECORDS, Forecast, device_bandwidth
from tasks.planning.forward_memory import dump_memory
from tasks.planning.hardware import Arithmetic, Hardware
from tasks.planning.logit_bytes import StoreSize, by_mass_alone, entries_of, store_size
from tasks.planning.measured import DumpProgress
from tasks.planning.quantities import byte_size, figure, span
from tasks.runtime.declare import Step

ANSWER_BYTES = 70.0
"""An entry in vLLM's JSON: id, log-probability with 17 digits, rank and text."""


def forecast_dump(
    step: Step, sizes: Sizes, given: Assumptions, hardware: Hardware, progress: DumpProgress | None
) -> Forecast:
    """Of one dump on `hardware`; `progress` says of what has begun how large and fast it is."""
    recipe, runtime = step.config.recipe, step.config.runtime
    assert isinstance(recipe, DumpLogitsRecipe)
    assert isinstance(runtime, DumpLogitsRuntime)
    corpus = sizes.corpus(step.inputs["corpus"])
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
    measured = ""
    if progress is not None:
        measured = f"{progress.bytes_per_token:.1f} bytes a token of {progress.shards} shards"
        if progress.tokens_per_second:
            measured += f", {progress.tokens_per_second:,.0f} tokens/s"
    speed = progress.tokens_per_second if progress is not None else None
    if isinstance(recipe.teacher, ServedTeacher):
        forecast = _served(passed, documents.tokens, recipe.support.width, store, stored, measured, given)
        return forecast.at_speed(speed) if speed else forecast
    teacher = sizes.model(step.inputs["teacher"])
    executed = passed / (1 - given.padding)
    warnings = []
    if teacher.quantised and hardware.accelerator and "float8" not in hardware.peak_flops:
        warnings.append(
            f"the teacher's checkpoint is FP8, in which {hardware.name} does not compute: transformers refuses it "
            f"there (FBGEMM's) or holds it in bfloat16, twice as large; take an H100 or later, or a bfloat16 checkpoint"
        )
    if recipe.teacher.attention == "flash_attention_2":
        pairs = documents.pairs(given.length_spread)
    else:
        # Rows of unequal length come with a mask.
        pairs = masked_pairs(executed, documents.row_of_a_token(given.length_spread) / (1 - given.padding))
    layers = forward_flops(teacher.shape, num_tokens=executed, num_logits=0, num_pairs=pairs)
    head = forward_flops(teacher.shape, num_tokens=0, num_logits=passed, num_pairs=0)
    flops = layers + head
    # A measured speed is of as many launches as made it.
    launches = progress.launches if progress is not None and speed else runtime.replicas
    processes, group = runtime.num_processes * runtime.num_nodes * launches, runtime.tensor_parallel
    nodes = nodes_of(runtime, hardware, launches)
    per_process = hardware.devices_of(runtime.threads)
    devices = processes * per_process
    utilisation = utilisation_of(hardware, given.forward_utilisation, given)
    arithmetic: Arithmetic = "float32" if recipe.teacher.dtype == "float32" else "bfloat16"
    eighth = 2.0 * teacher.quantised * executed
    wide, narrow = hardware.peak(arithmetic), hardware.peak("float8")
    # The head is the leader's of a group: the others wait.
    in_layers = ((layers - eighth) / wide + eighth / narrow) / (devices * utilisation)
    in_head = head / wide / (devices / group * utilisation)
    compute = in_layers + in_head
    # Two sums over the group a layer, each sent around it twice.
    sent = 4 * teacher.num_layers * teacher.hidden * (4 if arithmetic == "float32" else 2) * (group - 1) / group
    link = device_bandwidth(hardware, 1, given.link_utilisation)
    traffic = executed * sent * group / processes / link
    encoding = documents.tokens / given.encoded_tokens_per_second / (processes / group)
    loaded = teacher.bytes() * nodes
    source = step.inputs["teacher"].config.recipe
    fetch = given.hub_bytes_per_second if _on_hub(source) else given.store_bytes_per_second
    seconds = {
        "start": start_seconds(given, hardware),
        "weights": teacher.bytes() / fetch + teacher.bytes() / given.disk_bytes_per_second,
        "compute": compute,
        "traffic": traffic,
        "waiting for the encoder": max(0.0, encoding - compute - traffic),
        "waiting for the store": max(0.0, stored / given.store_bytes_per_second / nodes - compute - traffic - encoding),
    }
    memory = dump_memory(
        teacher,
        recipe.teacher.dtype,
        # A row that is longer than a batch is one.
        tokens=min(max(runtime.tokens_per_batch, longest), executed),
        row_tokens=min(longest, executed),
        chunk_tokens=runtime.head_chunk_tokens,
        tensor_parallel=group,
    )
    in_eight_bits = f" of which {eighth:.3g} in 8 bits at {narrow:.4g}/s," if eighth else ""
    most = ", as many as max_kept where only min_mass decides" if by_mass_alone(support) and not progress else ""
    forecast = Forecast(
        tokens=documents.tokens,
        flops=flops,
        hardware=hardware,
        devices=devices,
        per_process=per_process,
        nodes=nodes,
        memory={**memory.model_dump(exclude_defaults=True), "peak": memory.peak},
        host_memory=0.0 if hardware.accelerator else memory.peak * processes / nodes,
        seconds=seconds,
        stored=stored,
        # Each group of processes has a shard under way, and removes it when it is in the store; a launch has a folder.
        scratch=stored * min(1.0, processes / launches / group / max(1, store.shards)),
        moved=stored + loaded,
        # Every shard has a receipt, and so has the prior.
        objects=store.objects + store.shards + 1 + RECORDS,
        measured=measured,
        how=(
            f"{figure(executed)} tokens with padding × 2 × {figure(teacher.shape.layer_weights)} weights + "
            f"{figure(pairs)} pairs × 4 × {figure(teacher.shape.attention_width)} = {layers:.4g} FLOP,"
            f"{in_eight_bits} on {devices} × {wide:.4g}/s × {utilisation:.2f}: {span(in_layers)}; {figure(passed)} "
            f"positions × 2 × {figure(teacher.shape.head_weights)} of the head = {head:.4g} FLOP on "
            f"{devices // group} × {wide:.4g}/s × {utilisation:.2f}: {span(in_head)}",
            f"{byte_size(teacher.bytes(recipe.teacher.dtype))} of weights cut among {group}, and the whole head: "
            f"{byte_size(memory.weights)} + activations of {max(runtime.tokens_per_batch, longest):,.0f} tokens "
            f"{byte_size(memory.activations)} + logits of {runtime.head_chunk_tokens:,} positions "
            f"{byte_size(memory.head)}",
            f"{store.entries:.0f} entries a position{most}, {stored / max(1.0, documents.tokens):.1f} bytes a token, "
            f"{store.shards:,} shards"
            + (f", shared by {launches} launches of {devices // launches} devices" if launches > 1 else ""),
        ),
        warnings=tuple(warnings),
    )
    return forecast.at_speed(speed) if speed else forecast


def _served(
    passed: float, tokens: float, entries: int, store: StoreSize, stored: float, measured: str, given: Assumptions
) -> Forecast:
    """A dump that asks a server: its time is the server's, and what moves is mostly JSON."""
    asked = passed * (entries + 1) * ANSWER_BYTES
    return Forecast(
        tokens=tokens,
        seconds={"start": start_seconds(given), "compute": passed / given.served_tokens_per_second},
        stored=stored,
        scratch=stored / max(1, store.shards),
        moved=stored + asked,
        objects=store.objects + store.shards + 1 + RECORDS,
        measured=measured,
        how=(
            f"{figure(passed)} tokens with rows that are asked for twice at {given.served_tokens_per_second:,.0f}/s of "
            f"the server; {figure(passed)} × {entries + 1} entries × {ANSWER_BYTES:.0f} bytes of JSON = "
            f"{byte_size(asked)}; {stored / max(1.0, tokens):.1f} bytes a token stored, {store.shards:,} shards",
        ),
        warnings=("the server's devices and their price are not in the sums",),
    )


def nodes_of(runtime: DumpLogitsRuntime, hardware: Hardware, launches: int) -> int:
    """Nodes of so many launches of a dump; those that are smaller than a node share one."""
    devices = runtime.num_processes * hardware.devices_of(runtime.threads)
    beside = max(1, hardware.per_node // devices) if runtime.num_nodes == 1 else 1
    return runtime.num_nodes * math.ceil(launches / beside)


def _on_hub(recipe: object) -> bool:
    source = getattr(recipe, "source", None)
    return isinstance(source, HubSource) and source.mode == "reference"
