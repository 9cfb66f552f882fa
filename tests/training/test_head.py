"""The head's form is read from real models of transformers and proved against their own logits."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    CohereConfig,
    FalconH1Config,
    Gemma2Config,
    GraniteConfig,
    GraniteForCausalLM,
    HyperCLOVAXConfig,
    PhiConfig,
    PreTrainedModel,
)

from tasks.artifacts.errors import BadInputError
from tasks.training.batches import Batch
from tasks.training.head import LanguageModelLoss, head_form
from tasks.training.losses import HeadForm, LossWeights
from tests.training.dense import relative
from tests.training.parts import ROWS, VOCAB, gold_targets, make_model

SIZES: dict[str, Any] = {
    "vocab_size": ROWS,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 32,
    "initializer_range": 0.5,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}


def tiny(config: Callable[..., Any], **changes: Any) -> PreTrainedModel:
    torch.manual_seed(0)
    model: PreTrainedModel = AutoModelForCausalLM.from_config(config(**SIZES, **changes))
    return model.eval()


GEMMA2: dict[str, Any] = {"head_dim": 8, "final_logit_softcapping": 2.5, "query_pre_attn_scalar": 8}
FALCON_H1: dict[str, Any] = {
    "mamba_d_ssm": 16, "mamba_n_heads": 2, "mamba_d_state": 4, "mamba_expand": 1, "mamba_chunk_size": 4,
}  # fmt: skip
MODELS: dict[str, tuple[Callable[[], PreTrainedModel], HeadForm]] = {
    "qwen2": (make_model, HeadForm(VOCAB)),
    "gemma2": (lambda: tiny(Gemma2Config, **GEMMA2), HeadForm(VOCAB, softcap=2.5)),
    "cohere": (lambda: tiny(CohereConfig, logit_scale=0.0625), HeadForm(VOCAB, scale=0.0625)),
    "granite": (lambda: tiny(GraniteConfig, logits_scaling=8.0), HeadForm(VOCAB, scale=0.125)),
    "hyperclovax": (lambda: tiny(HyperCLOVAXConfig, logits_scaling=8.0), HeadForm(VOCAB, scale=8.0)),
    "falcon_h1": (lambda: tiny(FalconH1Config, lm_head_multiplier=0.3, **FALCON_H1), HeadForm(VOCAB, scale=0.3)),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("name", MODELS)
def test_the_form_is_the_models(name: str, dtype: torch.dtype) -> None:
    make, expected = MODELS[name]
    assert head_form(make().to(dtype), VOCAB) == expected


@pytest.mark.parametrize("name", MODELS)
def test_loss_and_gradients_are_those_of_the_models_own_logits(name: str) -> None:
    make, _ = MODELS[name]
    model = make()
    input_ids_BL = torch.tensor([[5, 9, 3, 50, 17, 2], [4, 4, 21, 8, 0, 0]])
    positions_N = torch.tensor([0, 1, 3, 4, 6, 8])
    gold_N = input_ids_BL.flatten()[positions_N + 1]
    batch = Batch(("a", "b"), input_ids_BL, None, positions_N, gold_targets(gold_N))

    logits_NV = model(input_ids=input_ids_BL).logits.flatten(0, 1)[positions_N, :VOCAB].double()
    expected = torch.nn.functional.cross_entropy(logits_NV, gold_N, reduction="sum")
    expected.backward()
    gradients = _gradients(model)
    model.zero_grad()
    loss, sums_4 = LanguageModelLoss(model, head_form(model, VOCAB))(batch, LossWeights(ce=1))
    loss.backward()
    assert float(loss.detach()) == pytest.approx(float(expected.detach()), rel=1e-5)
    assert float(sums_4[3]) == pytest.approx(float(expected.detach()), rel=1e-5)
    for parameter, gradient in _gradients(model).items():
        assert relative(gradient, gradients[parameter]) < 2e-5, parameter


def _gradients(model: PreTrainedModel) -> dict[str, Tensor]:
    # An attention's bias of the keys has none in the mathematics, only rounding.
    return {
        name: parameter.grad.clone()
        for name, parameter in model.named_parameters()
        if parameter.grad is not None and "k_proj.bias" not in name
    }


class _Shifted(GraniteForCausalLM):
    """A head as no config says."""

    def forward(self, *args: Any, **options: Any) -> Any:
        outputs = super().forward(*args, **options)
        outputs.logits = outputs.logits + torch.linspace(0, 0.2, ROWS, dtype=outputs.logits.dtype)
        return outputs


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def test_refuses_what_it_does_not_know(dtype: torch.dtype) -> None:
    with pytest.raises(BadInputError, match="bias"):
        head_form(tiny(PhiConfig).to(dtype), VOCAB)
    with pytest.raises(BadInputError, match="neither a scale nor a cap"):
        head_form(_Shifted(GraniteConfig(**SIZES)).eval().to(dtype), VOCAB)
    with pytest.raises(BadInputError, match=f"{ROWS} rows for a tokenizer of {ROWS + 1}"):
        head_form(make_model().to(dtype), ROWS + 1)


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_broken_weights_are_named(value: float) -> None:
    """A head's row that none of the proof's tokens reads, and a norm."""
    model = make_model(tie_word_embeddings=False)
    with torch.no_grad():
        model.lm_head.weight[[VOCAB - 3, VOCAB - 2]] = value
    with pytest.raises(BadInputError, match=rf"lm_head.weight has NaN or infinity in row {VOCAB - 3}, {VOCAB - 2};"):
        head_form(model, VOCAB)
    model = make_model()
    with torch.no_grad():
        model.model.norm.weight[5] = value
    with pytest.raises(BadInputError, match=r"model\.norm\.weight has NaN or infinity in row 5;"):
        head_form(model, VOCAB)
