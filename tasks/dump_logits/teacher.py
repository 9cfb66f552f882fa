"""The teacher: loaded, checked against the corpus, and run to hidden states and to logits.

Where several processes hold it together (tasks/dump_logits/tensor_group.py), all methods but `follow` are the leader's.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import AutoConfig, PretrainedConfig

from tasks.artifacts.errors import BadInputError
from tasks.dump_logits.head import Float32Head
from tasks.dump_logits.quantised import check_quantiser, quantised_as
from tasks.dump_logits.teacher_recipe import TeacherRecipe
from tasks.dump_logits.tensor_group import TensorGroup, check_plan, load_cut, whole
from tasks.modeling.model_files import load_causal_lm

PROBE_TOKENS = 16
PROBE_TOLERANCE = 1e-3
"""Relative to the largest logit. Both sides run the same kernels, so only another formula differs by more."""
GOLD_POSITIONS = 32
"""Positions of a sampled row that are recomputed: their full logits stand in memory, 19 MB at 152k tokens."""


def check_config(
    directory: Path,
    recipe: TeacherRecipe,
    vocab_size: int,
    lengths: Iterable[tuple[str, int]],
    group_size: int,
    device: torch.device,
) -> None:
    """Refuses what config.json alone shows to be impossible here, before hours of download and loading.

    `lengths` are the rows' ids and numbers of tokens.

    Raises:
        BadInputError: the first of it.
    """
    config = config_of(directory)
    if recipe.quantisation != (kind := quantised_as(config)):
        raise BadInputError(
            f"the teacher's checkpoint is quantised as {kind or 'nothing'}, recipe.teacher.quantisation says "
            f"{recipe.quantisation}; make them agree"
        )
    check_rows(config, vocab_size, lengths)
    if group_size > 1:
        check_plan(config.get_text_config(), group_size)
    check_quantiser(config, device)


def config_of(directory: Path) -> PretrainedConfig:
    """What config.json says. Runs no code from there."""
    return AutoConfig.from_pretrained(directory, trust_remote_code=False)


def check_rows(config: PretrainedConfig, vocab_size: int, lengths: Iterable[tuple[str, int]]) -> None:
    """Refuses ids that the model has no rows for, and rows that are longer than its context.

    Raises:
        BadInputError: naming the first.
    """
    config = config.get_text_config()
    if vocab_size > config.vocab_size:
        raise BadInputError(
            f"the teacher's tokenizer has ids up to {vocab_size - 1}, its config.json only {config.vocab_size} rows; "
            f"repair the model's files"
        )
    limit = getattr(config, "max_position_embeddings", None)
    for row_id, length in lengths:
        if limit is not None and length > limit:
            raise BadInputError(
                f"row {row_id} has {length} tokens, the teacher's max_position_embeddings is {limit}; "
                f"build the corpus with a smaller max_tokens"
            )


class Teacher:
    """A causal language model whose logits are float32 and cover the tokenizer's `vocab_size` ids."""

    def __init__(
        self,
        directory: Path,
        recipe: TeacherRecipe,
        device: torch.device,
        vocab_size: int,
        group: TensorGroup | None = None,
    ) -> None:
        """Loads it, or with `group` this rank's part of it."""
        self.device = device
        self.group = group
        self.model = _load(directory, recipe, device, group)
        self.config = self.model.config.get_text_config()
        head = self.model.get_output_embeddings()
        weight = getattr(head, "weight", None)
        if not isinstance(head, nn.Linear) or not head.weight.is_floating_point() or head.weight.itemsize < 2:
            kind = f"{type(head).__name__} of {getattr(weight, 'dtype', 'no weight')}"
            raise BadInputError(
                f"the teacher's output embedding is a {kind}; "
                f"dump_logits needs a plain linear layer of 16 or 32 bits, so leave lm_head out of the quantisation"
            )
        weight_RD, bias_R = whole(head.weight.detach()), None if head.bias is None else whole(head.bias.detach())
        if group is not None and not group.leads:
            return
        self.head = Float32Head(weight_RD, bias_R, vocab_size)
        # The model's own forward pass then has the same float32 logits, and can serve as the check.
        self.model.set_output_embeddings(self.head)

    @torch.inference_mode()
    def check_formula(self, input_ids: np.ndarray) -> None:
        """Refuses an architecture whose logits are not what `logits` makes of the hidden states."""
        ids_1T = torch.from_numpy(input_ids[:PROBE_TOKENS].astype(np.int64))[None].to(self.device)
        ours_TV = self.logits(self.hidden_states(ids_1T, torch.ones_like(ids_1T))[0])
        theirs_TV = self._plain_logits(ids_1T)[0]
        difference = (ours_TV - theirs_TV.float()).abs().max().item()
        # `not <=` also refuses a NaN on one side only; hidden states that are NaN are named by row later.
        if torch.isfinite(theirs_TV).all() and not difference <= PROBE_TOLERANCE * (1 + theirs_TV.abs().max().item()):
            raise BadInputError(
                f"{type(self.model).__name__} transforms its logits in a way that dump_logits does not know (they "
                f"differ by {difference:.3g}); known are final_logit_softcapping, logit_scale and logits_scaling"
            )

    def hidden_states(self, ids_BT: Tensor, mask_BT: Tensor) -> Tensor:
        """Inputs of the output embedding (B, T, D), for right-padded rows."""
        if self.group is not None and self.group.leads:
            self.group.announce(ids_BT, mask_BT)
        hidden_BTD: Tensor = self.model.base_model(
            input_ids=ids_BT, attention_mask=mask_BT, use_cache=False
        ).last_hidden_state
        return hidden_BTD

    @torch.inference_mode()
    def follow(self) -> None:
        """Makes every forward pass that the group's leader makes, until it says that there are no more."""
        assert self.group is not None
        for ids_BT, mask_BT in self.group.forward_inputs():
            self.hidden_states(ids_BT, mask_BT)

    def _plain_logits(self, ids_1T: Tensor, **options: Any) -> Tensor:
        """The model's own logits (1, T, V) of one row without padding."""
        mask_1T = torch.ones_like(ids_1T)
        if self.group is not None:
            self.group.announce(ids_1T, mask_1T)
        logits_1TV: Tensor = self.model(input_ids=ids_1T, attention_mask=mask_1T, use_cache=False, **options).logits
        return logits_1TV

    def logits(self, hidden_CD: Tensor) -> Tensor:
        """Final logits (C, V) in float32, in memory of their own."""
        logits_CV: Tensor = self.head(hidden_CD)
        self.transform(logits_CV)
        return logits_CV

    @property
    def transforms_logits(self) -> bool:
        """Whether `transform` does anything."""
        names = ("logit_scale", "logits_scaling", "final_logit_softcapping")
        return any(getattr(self.config, name, None) is not None for name in names)

    def transform(self, logits: Tensor) -> None:
        """What the model does to its logits behind the head: element by element, in place, on any piece of them."""
        if (scale := getattr(self.config, "logit_scale", None)) is not None:
            logits *= scale
        if (divisor := getattr(self.config, "logits_scaling", None)) is not None:
            logits /= divisor
        if (cap := getattr(self.config, "final_logit_softcapping", None)) is not None:
            logits.div_(cap).tanh_().mul_(cap)

    @torch.inference_mode()
    def plain_gold_logprobs(self, input_ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Gold log-probabilities by the model's own forward pass over one whole row, without padding or top-K.

        Returns:
            Up to GOLD_POSITIONS positions spread over the row with its first and last, and their values (float64).
        """
        where = gold_positions(len(input_ids) - 1)
        ids_1T = torch.from_numpy(input_ids.astype(np.int64))[None].to(self.device)
        keep = torch.from_numpy(where).to(self.device)
        logits_CV = self._plain_logits(ids_1T, logits_to_keep=keep)[0]
        gold_C1 = ids_1T[0, keep + 1, None]
        # In blocks: whole in float64 and once more as its softmax it would be 300 MB at 152k tokens.
        values = [
            block_V.double().log_softmax(1).gather(1, gold_B1)[:, 0]
            for block_V, gold_B1 in zip(logits_CV.split(16), gold_C1.split(16), strict=True)
        ]
        return where, torch.cat(values).cpu().numpy()


def gold_positions(num_positions: int) -> np.ndarray:
    """Places of a row's positions whose gold log-probability is looked at twice, its first and last among them."""
    return np.unique(np.linspace(0, num_positions - 1, min(num_positions, GOLD_POSITIONS)).astype(np.int64))


def _load(directory: Path, recipe: TeacherRecipe, device: torch.device, group: TensorGroup | None) -> Any:
    dtype = torch.float32 if recipe.dtype == "float32" else torch.bfloat16
    try:
        if group is not None:
            return load_cut(directory, dtype=dtype, attention=recipe.attention, size=group.size)
        return load_causal_lm(directory, dtype=dtype, device=device, attn_implementation=recipe.attention)
    except (ValueError, ImportError) as error:
        why = " ".join(str(error).split())
        if recipe.quantisation is not None:
            raise BadInputError(
                f"transformers' quantiser cannot load the {recipe.quantisation} teacher here ({why}); install what it "
                f"names, run on a device that it knows, or serve the teacher (recipe.teacher.kind served)"
            ) from error
        raise BadInputError(
            f"transformers cannot load the teacher with attention {recipe.attention} in {recipe.dtype} "
            f"({why}); try recipe.teacher.attention eager"
        ) from error
