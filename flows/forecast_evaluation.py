"""The forecast of an evaluation."""

from __future__ import annotations

import math

from flows.model_sizes import Sizes
from tasks.benchmarks.declare import ClozeTasks, ExerciseTasks, HarnessTasks
from tasks.evaluate.stage import EvaluateRecipe, EvaluateRuntime
from tasks.evaluate.turns import deal
from tasks.planning.assumptions import Assumptions, start_seconds, utilisation_of
from tasks.planning.flops import forward_flops
from tasks.planning.forecast import RECORDS, Forecast
from tasks.planning.forward_memory import evaluation_memory
from tasks.planning.generation import ITEMS, Reading, writing_seconds
from tasks.planning.hardware import Arithmetic, Hardware
from tasks.planning.quantities import byte_size, figure
from tasks.runtime.declare import Step

CHARS_A_TOKEN = 4.0
_LONG_CHOICES = 0.08
"""Of a cloze item's choices so many are of several tokens: 7.5 % with SmolLM2's 49,152 on Python's documentation."""


def forecast_evaluation(step: Step, sizes: Sizes, given: Assumptions, hardware: Hardware) -> Forecast:
    """Of an evaluation, whose models are dealt to its processes and take turns on the device of each."""
    recipe, runtime = step.config.recipe, step.config.runtime
    assert isinstance(recipe, EvaluateRecipe)
    assert isinstance(runtime, EvaluateRuntime)
    reading = _reading(recipe, given)
    corpus = sizes.corpus(step.inputs["corpus"])
    heldout = corpus.heldout
    window = windows = 0.0
    if recipe.bits_per_byte:
        part = heldout.first(recipe.max_documents)
        reading += Reading(prompt_tokens=part.tokens)
        # The longest windows come first, together.
        window = min(float(recipe.window_tokens), corpus.longest)
        windows = max(part.rows, part.tokens / window)
    arithmetic: Arithmetic = "float32" if recipe.dtype == "float32" else "bfloat16"
    devices = hardware.devices_of(runtime.threads)
    speed = devices * hardware.peak(arithmetic) * utilisation_of(hardware, given.forward_utilisation, given)
    flops = moved = peak = 0.0
    num_processes = runtime.num_processes * runtime.num_nodes
    seconds, sizes_of = dict[str, float](), dict[str, float]()
    memory: dict[str, float] = {}
    if any(isinstance(task, HarnessTasks) for task in recipe.tasks):
        length, longest = given.prompt_tokens + reading.answer_tokens, given.longest_prompt_tokens
    else:
        length = longest = given.tokens_per_exercise + reading.answer_tokens
    for role, source in step.inputs.items():
        if not role.startswith("model."):
            continue
        model = sizes.model(source)
        a_token = 2.0 * (model.shape.layer_weights + model.shape.head_weights)
        prompts = forward_flops(
            model.shape,
            num_tokens=reading.prompt_tokens,
            num_logits=reading.prompt_tokens,
            num_pairs=reading.prompt_tokens * length / 2,
        )
        flops += prompts + a_token * reading.answers * reading.answer_tokens
        seconds[role] = prompts / speed + writing_seconds(
            reading,
            batch=runtime.batch_size,
            weight_bytes=model.bytes(recipe.dtype),
            bandwidth=devices * hardware.memory_bandwidth * given.memory_utilisation,
            flops_a_token=a_token,
            flops=speed,
        )
        sizes_of[role] = model.bytes()
        moved += model.bytes()
        held = evaluation_memory(
            model,
            recipe.dtype,
            batch=runtime.batch_size,
            prompt=longest,
            window=window,
            windows=min(runtime.batch_size, math.ceil(windows)),
        )
        if held.peak > peak:
            peak, memory = held.peak, held.model_dump()
    models = len(sizes_of)
    turns = deal(sizes_of, num_processes)
    longest_turn = max(turns, key=lambda names: sum(seconds[name] for name in names))
    loaded = max(sum(sizes_of[name] for name in names) for names in turns)
    dealt = f", dealt to {num_processes} processes, of which one has {len(longest_turn)}" if num_processes > 1 else ""
    return Forecast(
        tokens=models * (reading.prompt_tokens + reading.answers * reading.answer_tokens),
        flops=flops,
        hardware=hardware,
        devices=devices * num_processes,
        per_process=devices,
        nodes=runtime.num_nodes,
        memory={**memory, "peak": peak},
        host_memory=0.0 if hardware.accelerator else peak * runtime.num_processes,
        seconds={
            "start": start_seconds(given, hardware),
            "weights": moved / given.store_bytes_per_second + loaded / given.disk_bytes_per_second,
            "compute": sum(seconds[name] for name in longest_turn),
        },
        stored=1e6 * models,
        moved=moved,
        objects=3 + 4 * models + RECORDS,
        how=(
            f"{models} models, each reads {figure(reading.prompt_tokens)} tokens and writes "
            f"{figure(reading.answers)} answers of {reading.answer_tokens:.0f}, {runtime.batch_size} at a time{dealt}",
            f"the one that needs most: weights {byte_size(memory.get('weights', 0))} + activations "
            f"{byte_size(memory.get('activations', 0))} + logits {byte_size(memory.get('head', 0))} + keys and values "
            f"{byte_size(memory.get('cache', 0))}",
        ),
    )


def _reading(recipe: EvaluateRecipe, given: Assumptions) -> Reading:
    """What each model reads and writes for the tasks."""
    reading = Reading()
    for task in recipe.tasks:
        if isinstance(task, ExerciseTasks):
            items = float(len(task.kinds) * task.items_per_kind)
            tokens, answer = items * given.tokens_per_exercise, min(12.0, recipe.max_new_tokens)
            reading += Reading(prompt_tokens=tokens, answers=items, answer_tokens=answer)
            continue
        if isinstance(task, ClozeTasks):
            # Choices of one token share a pass over the context; of others each has its own.
            tokens = task.items * (1 + _LONG_CHOICES * task.choices) * task.context_chars / CHARS_A_TOKEN
            reading += Reading(prompt_tokens=tokens)
            continue
        known, written = ITEMS.get(task.name, (given.items_per_task, True))
        items = min(float(known), task.limit or float("inf"))
        reading += Reading(
            prompt_tokens=items * given.prompt_tokens,
            answers=items if written else 0,
            answer_tokens=given.answer_tokens if written else 0,
        )
    return reading
