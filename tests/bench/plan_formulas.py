"""The formulas of `medius plan --cost` against torch's count, transformers' models and what three stages wrote."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel, Qwen2Config, Qwen2ForCausalLM

from flows.costs import CostOptions
from flows.dag import build
from flows.forecast_training import step_flops
from flows.forecasts import Forecasts
from flows.model_shapes import SHAPES
from flows.model_sizes import Sizes
from flows.profiles import load_profile
from tasks.artifacts.artifact import Artifact
from tasks.artifacts.store import open_store
from tasks.logits.rows import make_row
from tasks.planning.architecture import architecture
from tasks.planning.flops import forward_flops, model_shape
from tasks.planning.text import Documents
from tasks.runtime.execute import RunContext, execute
from tasks.training.batches import collate
from tasks.training.packing import Packing, micro_batches
from tests.bench.records import Measured, Measurement

STAGES = {"models": "model-llama-teacher", "corpus": "corpus-llama", "dump_logits": "logits-llama"}
ROWS, LENGTH, ROW = 2, 128, 512


def _parameters() -> Iterator[Measured]:
    files = sorted(SHAPES.glob("*.json"))
    wrong = []
    for file in files:
        config = json.loads(file.read_text())
        plain = {name: value for name, value in config.items() if name != "quantization_config"}
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**plain))
        if model.num_parameters() != architecture(config).parameters:
            wrong.append(file.stem)
    yield Measured("plan.parameters", len(wrong), f"{len(files)} shapes on the meta device; wrong: {wrong or 'none'}")


def _model() -> PreTrainedModel:
    return Qwen2ForCausalLM(
        Qwen2Config(  # type: ignore[call-arg]
            vocab_size=2048,
            hidden_size=128,
            intermediate_size=352,
            num_hidden_layers=4,
            num_attention_heads=4,
            num_key_value_heads=2,
            # torch does not count its fused kernel for processors; the products are the same.
            attn_implementation="eager",
        )
    ).train()


def _flops() -> Iterator[Measured]:
    model = _model()
    ids_BT = torch.arange(ROWS * LENGTH).reshape(ROWS, LENGTH)
    shape = model_shape(model.config.to_dict())
    # torch knows no mask, so it counts all pairs.
    tokens, pairs = ROWS * LENGTH, ROWS * LENGTH**2
    conditions = (
        f"a Qwen2 of {model.num_parameters() / 1e6:.1f} M parameters, {ROWS} rows of {LENGTH} tokens, all pairs"
    )
    with FlopCounterMode(display=False) as forward:
        model(input_ids=ids_BT, use_cache=False)
    counted = forward.get_total_flops()
    found = forward_flops(shape, num_tokens=tokens, num_logits=tokens, num_pairs=pairs)
    yield Measured("plan.flops.forward", abs(found / counted - 1), f"{found:.4g} against {counted:.4g}; {conditions}")
    yield _packed_flops()


def _packed_flops() -> Measured:
    """A pass of documents that share rows, as a training makes it: with their mask torch counts all pairs of a row."""
    model = _model()
    model.activation_checkpointing_enable({"use_reentrant": False})
    lengths = dict(enumerate([ROW, *(ROW // 8 + 8 * place for place in range(16))]))
    rows = {
        index: make_row(
            np.arange(length, dtype=np.int32), np.ones(length, np.uint8), "", "text", "bench", f"{index:064x}"
        )
        for index, length in lengths.items()
    }
    [places] = micro_batches(list(lengths), lengths, Packing(micro_batch_tokens=ROW * len(lengths)))
    batch = collate([[rows[index] for index in row] for row in places])
    assert batch.position_ids_BL is not None
    with FlopCounterMode(display=False) as counter:
        hidden_BTD = model.base_model(
            input_ids=batch.input_ids_BL, position_ids=batch.position_ids_BL, use_cache=False
        )[0]
        model.get_output_embeddings()(hidden_BTD.flatten(0, 1)[batch.positions_N]).sum().backward()
    counted = counter.get_total_flops()
    documents = Documents(len(lengths), sum(lengths.values()), len(batch.positions_N))
    flops, again = step_flops(architecture(model.config.to_dict()), documents, ROW, checkpointing=True)
    found = (flops + again) * batch.input_ids_BL.numel() / documents.tokens
    return Measured(
        "plan.flops.training",
        abs(found / counted - 1),
        f"{found:.4g} against {counted:.4g}; a Qwen2 of {model.num_parameters() / 1e6:.1f} M parameters with gradient "
        f"checkpointing, {len(lengths)} documents in {len(places)} packed rows of {ROW} tokens",
    )


def _bytes() -> Iterator[Measured]:
    steps = {step.label: step for step in build(load_profile("micro"))}
    given = CostOptions.read().given
    with tempfile.TemporaryDirectory() as folder:
        store = open_store(f"{folder}/store")
        for stage, label in STAGES.items():
            step = steps[label]
            # Each time anew: what is finished by then, such as the corpus of a dump, is measured.
            forecast = Forecasts(Sizes(store, given, None, set()), given).of(step)
            execute(step, RunContext(store=store, scratch=Path(folder, "scratch")))
            manifest = Artifact(store, step.directory).manifest()
            assert manifest is not None
            made = sum(entry.size for entry in manifest.objects)
            yield Measured(
                f"plan.bytes.{stage}",
                abs(forecast.stored / made - 1),
                f"{label} of micro: forecast {forecast.stored:,.0f} bytes, written {made:,}",
            )
        files = sum(1 for entry in store.list(step.directory))
    yield Measured(
        "plan.objects.dump_logits",
        abs(forecast.objects / files - 1),
        f"{label} of micro: forecast {forecast.objects}, written {files}",
    )


MEASUREMENTS = [
    Measurement("plan_formulas parameters", _parameters, ("plan.parameters",)),
    Measurement("plan_formulas flops", _flops, ("plan.flops.*",)),
    Measurement("plan_formulas bytes", _bytes, ("plan.bytes.*", "plan.objects.*")),
]
