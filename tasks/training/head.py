"""A causal language model without its logits: what stands between its hidden states and the fused loss."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel

from tasks.artifacts.errors import BadInputError
from tasks.training.batches import Batch
from tasks.training.losses import HeadForm, LossWeights, Targets, head_loss
from tasks.training.products import logits_into

MULTIPLIERS = ("logit_scale", "lm_head_multiplier")
"""Names in transformers' configs of what logits are multiplied with: Cohere, Falcon-H1."""
SCALING = "logits_scaling"
"""Granite divides by it, HyperCLOVA X multiplies."""
CAPS = ("final_logit_softcapping", "logits_soft_cap", "output_logit_soft_cap")
"""Gemma and nanochat, RecurrentGemma, xLSTM."""
PROOF_TOKENS = 8
ROUNDINGS = 4
"""How often a model may round a logit in its own type: the sum, its division, its tanh, its multiplication."""
MOST_ROWS = 8
"""Broken rows named in an error."""
SUM_TOLERANCE = 1e-5
"""Of the largest logit: what two orders of summing hidden × weight in float32 may differ by."""


class _Head(nn.Module):
    """Holds the output matrix as a parameter of its own, so that ZeRO-3 gathers it once around the fused loss."""

    def __init__(self, weight_RD: nn.Parameter, form: HeadForm) -> None:
        super().__init__()
        self.weight_RD = weight_RD
        self.form = form

    def forward(self, hidden_ND: Tensor, targets: Targets, weights: LossWeights) -> tuple[Tensor, Tensor]:
        return head_loss(hidden_ND, self.weight_RD, targets, form=self.form, weights=weights)


class LanguageModelLoss(nn.Module):
    """Documents and targets in, summed loss out."""

    def __init__(self, model: PreTrainedModel, form: HeadForm) -> None:
        super().__init__()
        self.model = model
        self.head = _Head(model.get_output_embeddings().weight, form)

    def forward(self, batch: Batch, weights: LossWeights) -> tuple[Tensor, Tensor]:
        """The summed loss, and the sums of its parts without a graph; see `head_loss`."""
        # A model that counts positions itself need not know the argument.
        positions: dict[str, Any] = {} if batch.position_ids_BL is None else {"position_ids": batch.position_ids_BL}
        hidden_BLD = self.model.base_model(input_ids=batch.input_ids_BL, use_cache=False, **positions)[0]
        hidden_ND = hidden_BLD.flatten(0, 1).index_select(0, batch.positions_N)
        loss, sums_4 = self.head(hidden_ND, batch.targets, weights)
        return loss, sums_4


@torch.no_grad()
def head_form(model: PreTrainedModel, num_real: int) -> HeadForm:
    """How the model makes logits of its hidden states, proved against its own logits of a few tokens.

    Args:
        model: whole, not yet sharded.
        num_real: V, the tokenizer's size.

    Raises:
        BadInputError: too few rows, a bias, weights that are no finite numbers, or anything else that a scale and a
            cap do not explain: the fused loss would train another model.
    """
    head = model.get_output_embeddings()
    weight_RD: Tensor = head.weight
    name = model.config.model_type
    if weight_RD.shape[0] < num_real:
        raise BadInputError(
            f"the model has {weight_RD.shape[0]} rows for a tokenizer of {num_real} tokens; give it the tokenizer that "
            f"it was made with, or resize it first"
        )
    if getattr(head, "bias", None) is not None:
        raise BadInputError(
            f"{name}'s output head has a bias, which the fused loss does not train; use a model whose head has none"
        )
    # Spread over the vocabulary: a model may treat its first ids in a way of its own.
    input_ids = torch.linspace(0, num_real - 1, PROOF_TOKENS).long()[None].to(weight_RD.device)
    training = model.training
    model.eval()
    logits_NR = model(input_ids=input_ids, use_cache=False).logits[0]
    hidden_ND = model.base_model(input_ids=input_ids, use_cache=False)[0][0]
    model.train(training)
    if not bool(logits_NR.isfinite().all()):
        raise BadInputError(f"{name}'s logits are not finite: {_not_finite(model)}; use a model with whole weights")
    products_NR = logits_NR.new_empty(logits_NR.shape, dtype=torch.promote_types(hidden_ND.dtype, torch.float32))
    logits_into(products_NR, hidden_ND, weight_RD)

    largest = float(logits_NR.abs().max())
    tolerance_NR = SUM_TOLERANCE * largest + ROUNDINGS * torch.finfo(logits_NR.dtype).eps * logits_NR.abs().double()
    for form in _candidates(model.config.get_text_config(), num_real):
        expected_NR = form.scale * products_NR.double()
        if form.softcap is not None:
            expected_NR = form.softcap * torch.tanh(expected_NR / form.softcap)
        if bool(((logits_NR - expected_NR).abs() <= tolerance_NR).all()):
            return form
    raise BadInputError(
        f"{name} changes its logits after the output matrix in a way that is neither a scale nor a cap that its config "
        f"names, which the fused loss does not know; use a model with another head"
    )


def _not_finite(model: PreTrainedModel) -> str:
    """Which weights are no finite numbers."""
    for name, parameter in model.named_parameters():
        finite_RX = torch.atleast_1d(parameter.isfinite())
        rows = torch.nonzero(~finite_RX.reshape(len(finite_RX), -1).all(1)).flatten().tolist()
        if rows:
            more = f" and {len(rows) - MOST_ROWS} more" if len(rows) > MOST_ROWS else ""
            return f"{name} has NaN or infinity in row {', '.join(map(str, rows[:MOST_ROWS]))}{more}"
    return "its weights are, so they are too large for their type"


def _candidates(config: PretrainedConfig, num_real: int) -> list[HeadForm]:
    """What the config says, the likeliest first; a name that a model carries and does not use fails the proof."""
    softcaps = [*(float(cap) for cap in _named(config, CAPS)), None]
    scales = [scale for scaling in _named(config, (SCALING,)) for scale in (1 / scaling, float(scaling))]
    scales += [*(float(scale) for scale in _named(config, MULTIPLIERS)), 1.0]
    return [HeadForm(num_real, scale, softcap) for softcap in softcaps for scale in scales]


def _named(config: PretrainedConfig, names: tuple[str, ...]) -> list[Any]:
    return [value for name in names if (value := getattr(config, name, None)) is not None]
