"""Measures a process's models one after the other, each part a shard: what a killed evaluation had finished is kept."""

from __future__ import annotations

import gc
import math
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import torch
from lm_eval.api.model import LM
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from tasks.artifacts.errors import BadInputError
from tasks.artifacts.fingerprint import sha256_hex
from tasks.benchmarks.loading import LoadedTasks
from tasks.evaluate.broken_numbers import broken_numbers
from tasks.evaluate.exact_lm import ExactLM
from tasks.evaluate.harness import evaluate_entry
from tasks.evaluate.served_lm import ServedLM
from tasks.evaluate.shards import Part, commit_documents, commit_items
from tasks.evaluate.stage import EvaluateRecipe
from tasks.logits.rows import Row
from tasks.modeling.document_bits import context_tokens, document_bits
from tasks.modeling.document_start import start_token
from tasks.modeling.model_files import load_causal_lm, resolve_device
from tasks.modeling.statistics import mean_with_error
from tasks.modeling.tokenizer_files import load_tokenizer, tokenizer_digest
from tasks.worker.job import InputArtifact, Job


class Bench:
    """What is the same for every model."""

    def __init__(
        self,
        job: Job,
        recipe: EvaluateRecipe,
        *,
        device: str,
        batch_size: int,
        tasks: Sequence[LoadedTasks],
        rows: Sequence[Row],
        done: int,
        total: int,
    ) -> None:
        """`done` of the `total` parts were measured by earlier launches."""
        self.job, self.recipe, self.batch_size = job, recipe, batch_size
        found = resolve_device(device)
        # Each process of a launch has one of its accelerators.
        local = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
        self.device = str(local if found.type == "cuda" else found)
        self.tasks: Mapping[str, LoadedTasks] = {entry.name: entry for entry in tasks}
        self.rows, self.done, self.total = rows, done, total

    def measure(self, name: str, source: InputArtifact, parts: Sequence[Part]) -> None:
        """Commits these parts of one model, one by one.

        Raises:
            BadInputError: the model has no chat template where one is to be applied, or its logits are not finite.
        """
        tick = _Ticker(self.job, name, self.done, self.total)
        tick()
        recipe, directory = self.recipe, source.directory()
        tokenizer = load_tokenizer(directory)
        template = tokenizer.chat_template if recipe.apply_chat_template else None
        if recipe.apply_chat_template and not template:
            raise BadInputError(
                f"the model {name} ({source.artifact.uri}) has no chat template; set "
                f"evaluate.recipe.apply_chat_template to false or leave this model out"
            )
        about = {
            "tokenizer": {
                "digest": tokenizer_digest(tokenizer),
                "template_sha256": sha256_hex(str(template).encode()) if template else None,
            }
        }
        model = load_causal_lm(directory, dtype=getattr(torch, recipe.dtype), device=self.device)
        lm: ExactLM | None = None
        for part in parts:
            if part.entry is None:
                self._measure_bits(part, model, tokenizer, about, tick)
            else:
                if lm is None:
                    lm = ExactLM(name, model, tokenizer, recipe, self.batch_size, before_batch=tick)
                self._measure_entry(part, self.tasks[part.entry], lm, about)
            self.done += 1
            tick.done = self.done
        del model, lm
        gc.collect()
        if self.device.startswith("cuda"):
            torch.cuda.empty_cache()

    def measure_served(self, lm: ServedLM, parts: Sequence[Part]) -> None:
        """Commits these parts of a model that answers elsewhere."""
        tick = _Ticker(self.job, lm.name, self.done, self.total)
        for part in parts:
            assert part.entry is not None, "no bits are counted of a served model"
            tick()
            self._measure_entry(part, self.tasks[part.entry], lm, lm.about)
            self.done += 1
            tick.done = self.done

    def _measure_bits(
        self,
        part: Part,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerFast,
        about: Mapping[str, Any],
        tick: _Ticker,
    ) -> None:
        started, recipe = time.monotonic(), self.recipe
        documents = document_bits(
            model,
            tokenizer,
            self.rows,
            window_tokens=recipe.window_tokens,
            batch_size=self.batch_size,
            after_batch=tick,
        )
        for document in documents:
            if not math.isfinite(document.bits):
                raise broken_numbers(part.model, f"the held-out document {document.document[:16]}", recipe.dtype)
        about = {
            **about,
            "start_token": start_token(model, tokenizer),
            "window_tokens": context_tokens(model, recipe.window_tokens),
        }
        seconds = time.monotonic() - started
        commit_documents(self.job, part, [asdict(document) for document in documents], about, seconds=seconds)
        self.job.log(f"measured {part.model}: bits per byte of {len(documents)} held-out documents")

    def _measure_entry(self, part: Part, entry: LoadedTasks, lm: LM, about: Mapping[str, Any]) -> None:
        started = time.monotonic()
        items, harness = evaluate_entry(lm, entry, self.recipe)
        accuracy = mean_with_error([item.outcome for item in items])["value"]
        seconds = time.monotonic() - started
        records = [asdict(item) for item in items]
        commit_items(self.job, part, records, {**about, "harness": harness}, seconds=seconds, accuracy=accuracy)
        self.job.log(f"measured {part.model}: {entry.name}, {len(items)} items")


class _Ticker:
    """Called before or after each forward pass: says once a second how far a model is, and ends a stopped worker."""

    def __init__(self, job: Job, model: str, done: int, total: int) -> None:
        self.job, self.model, self.done, self.total = job, model, done, total
        self.batches = 0
        self.said = 0.0

    def __call__(self) -> None:
        self.job.leave_if_asked()
        self.batches += 1
        if time.monotonic() - self.said >= 1:
            self.said = time.monotonic()
            self.job.progress(self.done, self.total, "measurements", model=self.model, batches=self.batches)
