"""The forecast of a training: distill and sft."""

from __future__ import annotations

import math

from flows.forecast_text import TrainingText, training_text
from flows.model_sizes import Sizes
from tasks.modeling.weight_files import num_weight_files
from tasks.planning.architecture import Architecture
from tasks.planning.assumptions import Assumptions, start_seconds, utilisation_of
from tasks.planning.flops import forward_flops, masked_pairs, training_flops
from tasks.planning.forecast import FULL, RECORDS, Forecast, device_bandwidth
from tasks.planning.hardware import Arithmetic, Hardware
from tasks.planning.passes import StepPasses, pass_tokens, step_passes
from tasks.planning.quantities import byte_size, span
from tasks.planning.text import Documents
from tasks.planning.training_memory import (
    Sharding,
    checkpoint_bytes,
    traffic_per_pass,
    traffic_per_step,
    training_memory,
)
from tasks.runtime.declare import Step
from tasks.training.deepspeed_config import TrainingStageConfig, deepspeed_config
from tasks.training.settings import TrainingRecipe, TrainingRuntime

OTHER_FILES = 8
"""Objects besides the weights: tokenizer and configs (5), the log of the losses, of the speed, TensorBoard's."""


def forecast_training(step: Step, sizes: Sizes, given: Assumptions, hardware: Hardware) -> Forecast:
    """Of one training on `hardware`."""
    config = step.config
    assert isinstance(config, TrainingStageConfig)
    recipe, runtime = config.recipe, config.runtime
    model = sizes.model(step)
    text = training_text(step, sizes)
    processes = runtime.num_processes * runtime.num_nodes
    sharding = Sharding.of(deepspeed_config(recipe, runtime, processes), processes)
    warnings: list[str] = []
    try:
        steps = recipe.num_steps(max(1, text.rows))
    except ValueError as error:
        steps = max(1, math.ceil((recipe.epochs or 0) * text.rows / recipe.rows_per_step))
        warnings.append(str(error))
    learnt = text.learnt(steps * recipe.rows_per_step)
    judgements = 2 + (steps // recipe.heldout_every_steps if recipe.heldout_every_steps else 0)
    row_tokens = runtime.pack_tokens or text.longest

    passes, judged = _passes(text, learnt.tokens / steps, recipe, runtime, given)
    frozen = recipe.frozen_embedding
    flops, again = step_flops(
        model, learnt, row_tokens, checkpointing=runtime.gradient_checkpointing, frozen_ends=frozen
    )
    repeated = _ratio(steps * passes.tokens * processes, learnt.tokens)
    judging = (
        judgements * _ratio(judged.tokens * processes, text.heldout.tokens) * _forward(model, text.heldout, row_tokens)
    )
    arithmetic: Arithmetic = "float32" if recipe.precision == "float32" else "bfloat16"
    utilisation = utilisation_of(hardware, given.training_utilisation, given)
    per_process = hardware.devices_of(runtime.threads)
    devices, peak = processes * per_process, hardware.peak(arithmetic)
    compute, judge = ((part / (devices * peak * utilisation)) for part in ((flops + again) * repeated, judging))

    per_pass = traffic_per_pass(model, sharding, recipe.precision, frozen_ends=frozen)
    per_step = traffic_per_step(model, sharding, recipe.precision, frozen_ends=frozen)
    link = device_bandwidth(hardware, runtime.num_nodes, given.link_utilisation)
    received = steps * (passes.rounds * per_pass + per_step)
    traffic = received / link
    needed = learnt.tokens / steps / (1 - given.padding) / pass_tokens(runtime.micro_batch_tokens, row_tokens)
    if processes > 1 and needed < processes / 2:
        warnings.append(
            f"a step has {max(1.0, needed):.1f} passes of {pass_tokens(runtime.micro_batch_tokens, row_tokens):,.0f} "
            f"tokens for {processes} processes, so most of them learn nothing; take fewer "
            f"processes, or make micro_batch_tokens less"
        )
    if traffic > compute / 2:
        warnings.append(
            f"traffic between devices takes {span(traffic)} beside {span(compute)} of compute at {byte_size(link)}/s; "
            f"take {'fewer nodes' if runtime.num_nodes > 1 else 'a lower ZeRO stage, or more tokens in each pass'}"
        )
    checkpoint = checkpoint_bytes(model, sharding, recipe.precision, frozen_ends=frozen)
    saved = math.ceil(steps / runtime.checkpoint_every_steps)
    upload = saved * checkpoint / given.store_bytes_per_second
    weights = model.bytes(recipe.precision)
    store = weights / given.store_bytes_per_second
    seconds = {
        "start": start_seconds(given, hardware),
        "weights": store + runtime.num_processes * weights / given.disk_bytes_per_second,
        "compute": compute,
        "traffic": traffic,
        "judging": judge,
        "checkpoints": saved * checkpoint / given.disk_bytes_per_second / runtime.num_nodes,
        "export": weights / given.disk_bytes_per_second + store,
        "waiting for the store": max(0.0, upload - compute - traffic),
    }
    logits = sum(role.startswith("logits") for role in step.inputs)
    data = learnt.tokens * (80 if logits else given.corpus_bytes_per_token)

    memory = training_memory(
        model,
        sharding,
        recipe.precision,
        # The longest row is a pass, whatever a pass may hold.
        tokens=max(runtime.micro_batch_tokens, row_tokens),
        packed_tokens=row_tokens,
        checkpointing=runtime.gradient_checkpointing,
        frozen_ends=frozen,
    )
    room = FULL * hardware.memory_bytes * per_process
    if weights > room:
        warnings.append(
            f"every process loads the whole model before it is cut: {byte_size(weights)} in {recipe.precision}, and "
            f"{hardware.name} has {byte_size(room)} to give"
        )
    shown = memory.model_dump(exclude={"host"})
    # A processor's own memory is the node's, and holds the model once.
    held = memory.host if hardware.accelerator else memory.peak + memory.host - weights
    return Forecast(
        tokens=learnt.tokens,
        flops=(flops + again) * repeated + judging,
        hardware=hardware,
        devices=devices,
        per_process=per_process,
        nodes=runtime.num_nodes,
        memory={**shown, "peak": memory.peak},
        host_memory=held * runtime.num_processes,
        seconds=seconds,
        stored=weights,
        scratch=max(weights, checkpoint),
        checkpoints=min(saved, runtime.keep_checkpoints) * checkpoint,
        moved=weights * (runtime.num_nodes + 1) + saved * checkpoint + data,
        objects=OTHER_FILES + num_weight_files(weights) + RECORDS,
        how=(
            f"{steps:,} steps of {recipe.rows_per_step} rows: {learnt.tokens:.4g} tokens × 6 × "
            f"{model.shape.layer_weights:.4g} weights + {learnt.targets:.4g} targets × {4 if frozen else 6} × "
            f"{model.shape.head_weights:.4g} of the head + {masked_pairs(learnt.tokens, row_tokens):.4g} pairs (× "
            f"{row_tokens:,.0f}) × 12 × "
            f"{model.shape.attention_width:.4g}: {flops:.4g} FLOP"
            + (f" + {again:.4g} computed again" if again else "")
            + f", × {repeated:.3f} for whole passes, on {devices} × {peak:.4g}/s × {utilisation:.2f}: {span(compute)}; "
            f"{judgements} judgements: {span(judge)}",
            f"a step is {learnt.tokens / steps / (1 - given.padding):,.0f} tokens with padding in passes of at most "
            f"{pass_tokens(runtime.micro_batch_tokens, row_tokens):,.0f}: {passes.rounds:.2f} rounds over {processes} "
            f"processes, {passes.tokens:,.0f} tokens in each",
            f"{model.parameters:.5g} parameters, ZeRO-{sharding.stage} over {processes}: weights "
            f"{byte_size(memory.weights)} + gradients {byte_size(memory.gradients)} + optimiser "
            f"{byte_size(memory.optimiser)} + the larger of (activations {byte_size(memory.activations)} + head "
            f"{byte_size(memory.head)} + buckets {byte_size(memory.buckets)}) and step {byte_size(memory.step)}",
            f"{byte_size(received)} to each device over {steps * passes.rounds:,.0f} rounds at {byte_size(link)}/s; "
            f"{saved} checkpoints of {byte_size(checkpoint)}, of which the store keeps "
            f"{min(saved, runtime.keep_checkpoints)} until the training is complete",
        ),
        warnings=tuple(warnings),
    )


def _passes(
    text: TrainingText, tokens: float, recipe: TrainingRecipe, runtime: TrainingRuntime, given: Assumptions
) -> tuple[StepPasses, StepPasses]:
    """Of a step of so many tokens, and of a judgement."""
    real = 1 - given.padding
    full = pass_tokens(runtime.micro_batch_tokens, runtime.pack_tokens or text.longest)
    processes = runtime.num_processes * runtime.num_nodes
    deviation = math.sqrt(recipe.rows_per_step) * text.deviation(given.length_spread)
    return (
        step_passes(tokens=tokens / real, deviation=deviation / real, full=full, devices=processes),
        step_passes(tokens=text.heldout.tokens / real, deviation=0.0, full=full, devices=processes),
    )


def _ratio(executed: float, tokens: float) -> float:
    return executed / tokens if tokens else 0.0


def step_flops(
    model: Architecture, learnt: Documents, row_tokens: float, *, checkpointing: bool, frozen_ends: bool = False
) -> tuple[float, float]:
    """FLOPs of all steps without padding, and what gradient checkpointing computes again.

    Packed rows come with a mask, and their attention computes all pairs of a row. While only embedding and head learn,
    the layers' gradients are computed too, and thrown away (tasks/training/learning_groups.py).
    """
    pairs = masked_pairs(learnt.tokens, row_tokens)
    flops = training_flops(
        model.shape, num_tokens=learnt.tokens, num_targets=learnt.targets, num_pairs=pairs, frozen_head=frozen_ends
    )
    again = forward_flops(model.shape, num_tokens=learnt.tokens, num_logits=0, num_pairs=pairs)
    return flops, again if checkpointing else 0.0


def _forward(model: Architecture, documents: Documents, row_tokens: float) -> float:
    """FLOPs of one pass over documents."""
    pairs = masked_pairs(documents.tokens, row_tokens)
    return forward_flops(model.shape, num_tokens=documents.tokens, num_logits=documents.targets, num_pairs=pairs)
