"""lm-eval's wrapper around one model, made strict: what it would cut, drop or let pass in silence ends the evaluation.

Greedy decoding is greedy, prompts are whole, the chat template has all messages and the recipe's date, and logits are
finite numbers of tokens that the tokenizer has.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
from lm_eval.models.utils import normalize_gen_kwargs
from transformers import (
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

from tasks.artifacts.errors import BadInputError
from tasks.evaluate.broken_numbers import broken_numbers
from tasks.evaluate.chat_text import chat_text
from tasks.evaluate.plain_text import PlainTextLM
from tasks.evaluate.stage import EvaluateRecipe
from tasks.modeling.document_start import start_token
from tasks.modeling.tokenizer_files import real_vocab_size

_LoglikelihoodRequest = tuple[tuple[str, str] | None, list[int], list[int]]


class ExactLM(PlainTextLM, HFLM):  # type: ignore[misc, unused-ignore]
    """One model, `name` in the recipe; `before_batch` is called before each batch."""

    def __init__(
        self,
        name: str,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerFast,
        recipe: EvaluateRecipe,
        batch_size: int,
        before_batch: Callable[[], None],
    ) -> None:
        # A repetition penalty or a temperature in generation_config.json would apply even without sampling.
        given = model.generation_config
        model.generation_config = GenerationConfig(  # type: ignore[no-untyped-call, unused-ignore]
            bos_token_id=given.bos_token_id, eos_token_id=given.eos_token_id, pad_token_id=given.pad_token_id
        )
        super().__init__(
            pretrained=model,
            backend="causal",
            tokenizer=tokenizer,
            batch_size=batch_size,
            # The template writes its own BOS, or the model was trained without one.
            add_bos_token=False if recipe.apply_chat_template else None,
        )
        self._name, self._recipe = name, recipe
        self._before_batch = before_batch
        self._num_tokens = real_vocab_size(tokenizer)
        self._task_of: dict[str, str] = {}
        """Prompt → the task that asks it, for errors."""

    def find_document_start(self) -> int:
        return start_token(self.model, self.tokenizer)

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """The conversation as text.

        Raises:
            BadInputError: the template refuses it, such as for a system turn.
        """
        return chat_text(
            self._name, self.tokenizer, self._recipe, chat_history, add_generation_prompt=add_generation_prompt
        )

    def loglikelihood(self, requests: list[Instance], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        self._remember(requests)
        answers: list[tuple[float, bool]] = super().loglikelihood(requests, disable_tqdm)
        return answers

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        self._remember(requests)
        for request in requests:
            room = normalize_gen_kwargs(request.args[1], self.max_gen_toks)["max_gen_toks"]
            if room >= self.max_length:
                raise BadInputError(
                    f"task {request.task_name} may generate {room} tokens, which does not fit the context of "
                    f"{self._name}, {self.max_length}, beside a prompt; {_REMEDY}"
                )
        answers: list[str] = super().generate_until(requests, disable_tqdm)
        return answers

    def _remember(self, requests: Sequence[Instance]) -> None:
        self._task_of = {request.args[0]: request.task_name for request in requests}

    def _loglikelihood_tokens(
        self, requests: list[_LoglikelihoodRequest], *args: Any, **kwargs: Any
    ) -> list[tuple[float, bool]]:
        for texts, context, continuation in requests:
            # The last token is only predicted, never read.
            length = len(context) + len(continuation) - 1
            if length > self.max_length:
                raise BadInputError(
                    f"{self._asked_by(texts[0] if texts else '')} of {length} tokens does not fit the context of "
                    f"{self._name}, {self.max_length}, and would be cut at its start; {_REMEDY}"
                )
        answers: list[tuple[float, bool]] = super()._loglikelihood_tokens(requests, *args, **kwargs)
        return answers

    def tok_batch_encode(
        self,
        strings: list[str],
        padding_side: str = "left",
        left_truncate_len: int | None = None,
        truncation: bool = False,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Token ids and mask, (B, T) each. Raises BadInputError instead of cutting the start of a prompt off."""
        input_ids_BT, mask_BT = super().tok_batch_encode(strings, padding_side, None, truncation)
        length = input_ids_BT.shape[1]
        if left_truncate_len and length > left_truncate_len:
            longest = strings[int(mask_BT.sum(dim=1).argmax())]
            raise BadInputError(
                f"{self._asked_by(longest)} of {length} tokens does not fit the context of {self._name}, "
                f"{self.max_length}, beside the {self.max_length - left_truncate_len} that may be generated; {_REMEDY}"
            )
        return input_ids_BT, mask_BT

    def _asked_by(self, prompt: str) -> str:
        task = self._task_of.get(prompt)
        return f"a prompt of task {task}" if task else "a prompt"

    def _model_generate(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        self._before_batch()
        real = LogitsProcessorList([_RealLogits(self._real_logits)])
        tokens_BT: torch.Tensor = super()._model_generate(*args, logits_processor=real, **kwargs)
        return tokens_BT

    def _model_call(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        self._before_batch()
        return self._real_logits(super()._model_call(*args, **kwargs))

    def _real_logits(self, logits: torch.Tensor) -> torch.Tensor:
        """The logits, in place, with those of rows that only pad the embedding matrix ruled out.

        Raises:
            BadInputError: there are broken numbers among the others: of those, too, there is a largest.
        """
        logits[..., self._num_tokens :] = -torch.inf
        # A row's largest logit is NaN or infinite where any is NaN or +inf; a model may rule tokens out by -inf.
        if not bool(torch.isfinite(logits.amax(dim=-1)).all()):
            raise broken_numbers(self._name, "a prompt", self._recipe.dtype)
        return logits


_REMEDY = "lower num_fewshot or max_new_tokens, or leave out the task or the model"


class _RealLogits(LogitsProcessor):
    """The same for each step of a generation."""

    def __init__(self, real_logits: Callable[[torch.Tensor], torch.Tensor]) -> None:
        self.real_logits = real_logits

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> torch.Tensor:  # type: ignore[override, unused-ignore]
        return self.real_logits(scores)
