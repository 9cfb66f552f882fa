"""The forecast of a choice between models."""

from __future__ import annotations

from flows.forecast_evaluation import CHARS_A_TOKEN
from flows.model_sizes import Sizes
from tasks.choose.stage import ChooseRecipe, ChooseRuntime
from tasks.modeling.stop_prompts import PROMPTS
from tasks.modeling.weight_files import num_weight_files
from tasks.planning.assumptions import Assumptions, start_seconds, utilisation_of
from tasks.planning.flops import forward_flops
from tasks.planning.forecast import RECORDS, Forecast
from tasks.planning.forward_memory import evaluation_memory
from tasks.planning.generation import Reading, writing_seconds
from tasks.planning.hardware import Arithmetic, Hardware
from tasks.planning.quantities import byte_size, figure
from tasks.runtime.declare import Step


def forecast_choice(step: Step, sizes: Sizes, given: Assumptions, hardware: Hardware) -> Forecast:
    """Of a choice, whose candidates take turns on one device; the chosen one is then stored again."""
    recipe, runtime = step.config.recipe, step.config.runtime
    assert isinstance(recipe, ChooseRecipe)
    assert isinstance(runtime, ChooseRuntime)
    corpus, instructions = sizes.corpus(step.inputs["corpus"]), sizes.corpus(step.inputs["instructions"])
    texts, chats = corpus.heldout.first(recipe.max_documents), instructions.heldout.first(recipe.max_conversations)
    tokens = texts.tokens + chats.tokens
    if recipe.exercises is not None:
        tokens += len(recipe.exercises.kinds) * recipe.exercises.items_per_kind * given.tokens_per_exercise
    if (cloze := recipe.cloze) is not None:
        # Each choice is read with a context of its own.
        tokens += cloze.items * cloze.choices * cloze.context_chars / CHARS_A_TOKEN
    reading = Reading(prompt_tokens=tokens, answers=len(PROMPTS), answer_tokens=recipe.max_new_tokens)
    window = min(float(recipe.window_tokens), max(corpus.longest, instructions.longest))
    arithmetic: Arithmetic = "float32" if recipe.dtype == "float32" else "bfloat16"
    devices = hardware.devices_of(runtime.threads)
    speed = devices * hardware.peak(arithmetic) * utilisation_of(hardware, given.forward_utilisation, given)
    candidates = [sizes.model(source) for role, source in step.inputs.items() if role.startswith("model.")]
    flops = seconds = moved = 0.0
    for model in candidates:
        a_token = 2.0 * (model.shape.layer_weights + model.shape.head_weights)
        read = forward_flops(model.shape, num_tokens=tokens, num_logits=tokens, num_pairs=tokens * window / 2)
        flops += read + a_token * reading.answers * reading.answer_tokens
        seconds += read / speed + writing_seconds(
            reading,
            batch=len(PROMPTS),
            weight_bytes=model.bytes(recipe.dtype),
            bandwidth=devices * hardware.memory_bandwidth * given.memory_utilisation,
            flops_a_token=a_token,
            flops=speed,
        )
        moved += model.bytes()
    largest = max(candidates, key=lambda model: model.bytes())
    batch = runtime.batch_size
    held = evaluation_memory(largest, recipe.dtype, batch=batch, prompt=window, window=window, windows=batch)
    stored = largest.bytes()
    return Forecast(
        tokens=len(candidates) * (tokens + reading.answers * reading.answer_tokens),
        flops=flops,
        hardware=hardware,
        devices=devices,
        per_process=devices,
        memory={**held.model_dump(), "peak": held.peak},
        host_memory=0.0 if hardware.accelerator else held.peak,
        seconds={
            "start": start_seconds(given, hardware),
            "weights": moved / given.store_bytes_per_second + moved / given.disk_bytes_per_second,
            "compute": seconds,
            "export": stored / given.store_bytes_per_second,
        },
        stored=stored,
        moved=moved + stored,
        objects=6 + num_weight_files(stored) + 3 * len(candidates) + RECORDS,
        how=(
            f"{len(candidates)} models, each reads {figure(tokens)} tokens and writes {reading.answers:.0f} answers; "
            f"the chosen one, {byte_size(stored)}, is stored again",
        ),
    )
