"""The forecast of a training: distill and sft."""

from __future__ import annotations

import math

from flows.model_sizes import Sizes
from tasks.planning.architecture import Architecture
from tasks.planning.assumptions import Assumptions, start_seconds, utilisation_of
from tasks.planning.flops import forward_flops, training_flops
from tasks.planning.forecast import RECORDS, Forecast, device_bandwidth
from tasks.planning.hardware import Arithmetic, Hardware
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

IMPORTED_ROW_TOKENS = 1000.0
OTHER_FILES = 8
"""Objects besides the weights: tokenizer and configs (5), the log of the losses, of the speed, TensorBoard's."""


def documents_of(step: Step, sizes: Sizes) -> tuple[Documents, Documents]:
    """What a training learns from, all its stores together, and what it is judged on."""
    train, heldout = Documents(), Documents()
    for role, source in step.inputs.items():
        if role != "corpus" and role != "logits" and not role.startswith("logits."):
            continue
        corpus = source if source.stage.name == "corpus" else source.inputs.get("corpus")
        if corpus is not None:
            size = sizes.corpus(corpus)
            train, heldout = train + size.train, heldout + size.heldout
        elif (manifest := sizes.manifest(source)) is not None:
            said = manifest.metrics
            train += Documents(said["rows"], said["tokens"], said["targets"])
        else:
            # An import that has not run: forecasts.py says the same of its tokens.
            files = [path for part in source.config.recipe.source.files() for path in part]  # type: ignore[attr-defined]
            tokens = sum(path.stat().st_size for path in files) / 150
            train += Documents.of(tokens / IMPORTED_ROW_TOKENS, IMPORTED_ROW_TOKENS, 0.9, 10**9)
    return train, heldout


def forecast_training(step: Step, sizes: Sizes, given: Assumptions, hardware: Hardware) -> Forecast:
    """Of one training on `hardware`."""
    config = step.config
    assert isinstance(config, TrainingStageConfig)
    recipe, runtime = config.recipe, config.runtime
    model = sizes.model(step)
    train, heldout = documents_of(step, sizes)
    devices = runtime.num_processes * runtime.num_nodes
    sharding = Sharding.of(deepspeed_config(recipe, runtime, devices), devices)
    warnings: list[str] = []
    try:
        steps = recipe.num_steps(max(1, int(train.rows)))
    except ValueError as error:
        steps = max(1, int((recipe.epochs or 0) * train.rows / recipe.rows_per_step))
        warnings.append(str(error))
    learnt = train.scaled(steps * recipe.rows_per_step / train.rows) if train.rows else train
    judgements = 2 + (steps // recipe.heldout_every_steps if recipe.heldout_every_steps else 0)

    flops, again = _flops(model, learnt, heldout, judgements, steps, given, step)
    executed = flops + again
    arithmetic: Arithmetic = "float32" if recipe.precision == "float32" else "bfloat16"
    utilisation = utilisation_of(hardware, given.training_utilisation, given)
    peak = hardware.peak(arithmetic)
    compute = executed / (devices * peak * utilisation)

    passes = max(steps, learnt.tokens / (1 - given.padding) / (runtime.micro_batch_tokens * devices))
    per_pass = traffic_per_pass(model, sharding, recipe.precision)
    per_step = traffic_per_step(model, sharding, recipe.precision)
    link = device_bandwidth(hardware, runtime.num_nodes)
    received = passes * per_pass + steps * per_step
    checkpoint = checkpoint_bytes(model, sharding, recipe.precision)
    saved = max(0, math.ceil(steps / runtime.checkpoint_every_steps) - 1)
    upload = saved * checkpoint / given.store_bytes_per_second
    weights = model.bytes(recipe.precision)
    store = weights / given.store_bytes_per_second
    seconds = {
        "start": start_seconds(given, hardware),
        "weights": store + runtime.num_processes * weights / given.disk_bytes_per_second,
        "compute": compute,
        "traffic": received / link,
        "checkpoints": saved * checkpoint / given.disk_bytes_per_second / runtime.num_nodes,
        "export": weights / given.disk_bytes_per_second + store,
    }
    seconds["waiting for the store"] = max(0.0, upload - compute - seconds["traffic"])
    logits = sum(role.startswith("logits") for role in step.inputs)
    data = learnt.tokens * (80 if logits else given.corpus_bytes_per_token)

    row_tokens = min(runtime.pack_tokens or train.length * 4, runtime.micro_batch_tokens)
    memory = training_memory(
        model,
        sharding,
        recipe.precision,
        tokens=runtime.micro_batch_tokens,
        row_tokens=row_tokens,
        checkpointing=runtime.gradient_checkpointing,
    )
    if weights > hardware.memory_bytes:
        warnings.append(
            f"every process loads the whole model before it is cut: {byte_size(weights)} in {recipe.precision}, and "
            f"{hardware.name} has {byte_size(hardware.memory_bytes)}"
        )
    shown = memory.model_dump(exclude={"host"})
    return Forecast(
        tokens=learnt.tokens,
        flops=executed,
        hardware=hardware,
        devices=devices,
        nodes=runtime.num_nodes,
        memory={**shown, "peak": memory.peak},
        host_memory=memory.host * runtime.num_processes + (0 if hardware.accelerator else memory.peak),
        seconds=seconds,
        stored=model.bytes(recipe.precision),
        moved=weights * (runtime.num_nodes + 1) + saved * checkpoint + data,
        objects=OTHER_FILES + math.ceil(weights / 5e9) + RECORDS,
        how=(
            f"{steps:,} steps of {recipe.rows_per_step} rows: {learnt.tokens:.4g} tokens × 6 × "
            f"{model.shape.layer_weights:.4g} weights + {learnt.targets:.4g} targets × 6 × "
            f"{model.shape.head_weights:.4g} of the head + {learnt.pairs(given.length_spread):.4g} pairs × 12 × "
            f"{model.shape.attention_width:.4g}, {judgements} judgements: {flops:.4g} FLOP"
            + (f" + {again:.4g} computed again" if again else "")
            + f", on {devices} × {peak:.4g}/s × {utilisation:.2f}: {span(compute)}",
            f"{model.parameters:.5g} parameters, ZeRO-{sharding.stage} over {devices}: weights "
            f"{byte_size(memory.weights)} + gradients {byte_size(memory.gradients)} + optimiser "
            f"{byte_size(memory.optimiser)} + the larger of (activations {byte_size(memory.activations)} + head "
            f"{byte_size(memory.head)} + buckets {byte_size(memory.buckets)}) and step {byte_size(memory.step)}",
            f"{byte_size(received)} to each device over {passes:,.0f} passes at {byte_size(link)}/s; {saved} "
            f"checkpoints of {byte_size(checkpoint)}, of which the store keeps {min(saved, runtime.keep_checkpoints)} "
            "until the training is complete",
        ),
        warnings=tuple(warnings),
    )


def _flops(
    model: Architecture,
    learnt: Documents,
    heldout: Documents,
    judgements: int,
    steps: int,
    given: Assumptions,
    step: Step,
) -> tuple[float, float]:
    """Model FLOPs of a training with its judgements, and what gradient checkpointing computes again."""
    config = step.config
    assert isinstance(config, TrainingStageConfig)
    frozen = config.recipe.embedding_steps / steps
    flops = 0.0
    for part, frozen_layers in ((frozen, True), (1 - frozen, False)):
        some = learnt.scaled(part)
        flops += training_flops(
            model.shape,
            num_tokens=some.tokens,
            num_targets=some.targets,
            num_pairs=some.pairs(given.length_spread),
            frozen_layers=frozen_layers,
        )
    flops += judgements * forward_flops(
        model.shape,
        num_tokens=heldout.tokens,
        num_logits=heldout.targets,
        num_pairs=heldout.pairs(given.length_spread),
    )
    again = forward_flops(
        model.shape, num_tokens=learnt.tokens, num_logits=0, num_pairs=learnt.pairs(given.length_spread)
    )
    return flops, again if config.runtime.gradient_checkpointing else 0.0
