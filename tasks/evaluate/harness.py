"""One model under lm-eval: the same tasks, template date, seeds and greedy decoding for every model of a process.

`lm_eval.evaluate` is the loop inside `lm_eval.simple_evaluate`; called directly, tasks are loaded once for all models,
each keeps its own number of examples, and no report on the machine is collected and no bootstrap run for each model.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import date
from typing import Any

import lm_eval
import numpy as np
import torch
from lm_eval.models.huggingface import HFLM
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerFast

from tasks.artifacts.errors import BadInputError
from tasks.benchmarks.loading import LoadedTasks
from tasks.evaluate.stage import EvaluateRecipe
from tasks.modeling.template_date import date_string


@dataclass(frozen=True)
class Item:
    """One model's answer to one item."""

    entry: str
    """What the recipe calls the task, or the group that it is of."""
    task: str
    item: int
    prompt: str
    target: str
    completion: str
    outcome: float


class ExactLM(HFLM):  # type: ignore[misc, unused-ignore]
    """lm-eval's model wrapper around an object, with greedy decoding that is greedy and no prompt cut short."""

    def __init__(
        self,
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
            chat_template_args={"date_string": date_string(date.fromisoformat(recipe.template_date))},
        )
        self._before_batch = before_batch

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
            raise BadInputError(
                f"a prompt of {length} tokens does not fit the model's context beside what it may generate "
                f"({left_truncate_len} tokens are left); lower max_new_tokens or num_fewshot, or leave the task out"
            )
        return input_ids_BT, mask_BT

    def _model_generate(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        self._before_batch()
        tokens_BT: torch.Tensor = super()._model_generate(*args, **kwargs)
        return tokens_BT

    def _model_call(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        self._before_batch()
        logits_BTV: torch.Tensor = super()._model_call(*args, **kwargs)
        return logits_BTV


def evaluate_tasks(
    lm: ExactLM, loaded: Sequence[LoadedTasks], recipe: EvaluateRecipe
) -> tuple[list[Item], dict[str, Any]]:
    """All items in the order of tasks and documents, and each task's version, examples and metric.

    Raises:
        BadInputError: a task has no filter of the recipe's name.
    """
    items: list[Item] = []
    versions: dict[str, Any] = {}
    for entry in loaded:
        random.seed(recipe.seed)
        np.random.seed(recipe.seed)
        torch.manual_seed(recipe.seed)
        for task in entry.tasks.values():
            task.set_fewshot_seed(seed=recipe.seed)
        results = lm_eval.evaluate(
            lm,
            {"tasks": entry.tasks, "groups": {}},
            limit=entry.limit,
            bootstrap_iters=0,
            apply_chat_template=recipe.apply_chat_template,
            fewshot_as_multiturn=recipe.apply_chat_template,
        )
        for name in entry.tasks:
            samples = [sample for sample in results["samples"][name] if sample["filter"] == entry.filter]
            if not samples:
                filters = sorted({sample["filter"] for sample in results["samples"][name]})
                raise BadInputError(f"task {name} has no filter {entry.filter!r}; choose one of: {', '.join(filters)}")
            items += [
                _item(entry.name or name, name, sample, entry.metric)
                for sample in sorted(samples, key=lambda each: each["doc_id"])
            ]
            versions[name] = {
                "version": str(results["versions"][name]),
                "num_fewshot": results["n-shot"][name],
                "metric": entry.metric,
            }
    return items, versions


def _item(entry: str, task: str, sample: dict[str, Any], metric: str) -> Item:
    answer = sample["filtered_resps"][0] if len(sample["filtered_resps"]) == 1 else sample["filtered_resps"]
    return Item(
        entry=entry,
        task=task,
        item=int(sample["doc_id"]),
        prompt=str(sample["arguments"][0][0]),
        target=str(sample["target"]),
        # For a multiple choice: the log-likelihood of each, and whether it is what greedy decoding gives.
        completion=answer if isinstance(answer, str) else str(answer),
        outcome=float(sample[metric]),
    )
