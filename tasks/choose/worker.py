"""Measures the candidates in one process, each a shard, the unit of resume; hands on the one that is chosen."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from datetime import date
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from tasks.artifacts.errors import BadInputError
from tasks.benchmarks.cloze_items import CLUSTER, Text, cloze_items
from tasks.choose.cloze import asked_choices, is_right
from tasks.choose.conversations import asked_exercises, asked_of, exercises_of, is_answered
from tasks.choose.measured import Measured
from tasks.choose.results import build_results
from tasks.choose.rule import RULE, choose
from tasks.choose.stage import CHOICE, ChooseRecipe, ChooseRuntime
from tasks.logits.heldout import HELDOUT_FILE, conversations_to_choose_on, texts_to_choose_on
from tasks.logits.rows import read_rows
from tasks.modeling.compared_models import check_models
from tasks.modeling.document_bits import document_bits
from tasks.modeling.document_start import start_token
from tasks.modeling.item_bits import Bits
from tasks.modeling.model_files import load_causal_lm, resolve_device
from tasks.modeling.model_identity import is_model_file
from tasks.modeling.predicted import Asked, Predicted, predict
from tasks.modeling.stopping import end_tokens, stopped_prompts
from tasks.modeling.template_tests import template_fault
from tasks.modeling.tokenizer_files import load_tokenizer, real_vocab_size, tokenizer_digest
from tasks.worker.job import InputArtifact, Job, worker_main
from tasks.worker.model_shards import measured_models

_BROKEN = "it gives logits that are not finite"


def run(job: Job) -> None:
    """The files of the chosen model, choice.json, and candidates/<name>.json with the items of each."""
    recipe, runtime = ChooseRecipe.model_validate(job.recipe), ChooseRuntime.model_validate(job.runtime)
    models = job.inputs("model")
    check_models("choose", "default", [recipe.default], models)
    if len(models) < 2:
        raise BadInputError(f"choose has the one model {', '.join(models)}; add inputs model.<name> to choose among")
    measured = measured_models(job, models, Measured.model_validate_json, lambda: _Bench(job, recipe, runtime).measure)
    results = build_results(measured, recipe.default)
    choice = choose(results, recipe.default, recipe.max_text_loss, recipe.max_stops_lost)
    job.log(choice.reason)
    about = {**results, "chosen": choice.chosen, "reason": choice.reason, "verdicts": choice.verdicts}
    directory = _lay_out(job, models[choice.chosen])
    _write_json(directory / CHOICE, {**about, "rule": RULE})
    (directory / "candidates").mkdir()
    for name, each in measured.items():
        _write_json(directory / "candidates" / f"{name}.json", each.model_dump(mode="json"))
    own = results["models"][choice.chosen]
    job.complete(directory, {**about, "chosen_stops": None if own["fault"] else own["stops"]["stopped"]})


def _write_json(file: Path, value: Mapping[str, Any]) -> None:
    text = json.dumps(value, indent=1, sort_keys=True, ensure_ascii=False, allow_nan=False)
    file.write_text(text + "\n", encoding="utf-8")


def _lay_out(job: Job, model: InputArtifact) -> Path:
    """The model's files under their names: links, where the input lies on this machine."""
    source, directory = model.directory(), job.new_directory("chosen")
    for entry in model.manifest.objects:
        if is_model_file(entry.name):
            (directory / entry.name).symlink_to((source / entry.name).resolve())
    return directory


class _Bench:
    """What is the same for every candidate."""

    def __init__(self, job: Job, recipe: ChooseRecipe, runtime: ChooseRuntime) -> None:
        self.job, self.recipe, self.batch_size = job, recipe, runtime.batch_size
        self.device = resolve_device(runtime.device)
        self.day = date.fromisoformat(recipe.template_date)
        corpus, instructions = job.input("corpus"), job.input("instructions")
        self.texts = texts_to_choose_on(
            corpus.directory() / HELDOUT_FILE, recipe.skip_documents, recipe.max_documents, corpus.artifact.uri
        )
        rows = read_rows(instructions.directory() / HELDOUT_FILE)
        self.conversations = conversations_to_choose_on(rows, recipe.max_conversations, instructions.artifact.uri)
        self.written_with = str(instructions.json("corpus.json")["tokenizer_digest"])
        self.exercises = exercises_of(recipe.exercises) if recipe.exercises is not None else []
        given = [Text(row.document, row.text) for row in self.texts]
        self.cloze = cloze_items(recipe.cloze, given) if recipe.cloze is not None else []

    def measure(self, name: str, source: InputArtifact) -> Measured:
        """A candidate, item by item."""
        recipe, directory = self.recipe, source.directory()
        tokenizer = load_tokenizer(directory)
        digest = tokenizer_digest(tokenizer)
        if digest != self.written_with:
            raise BadInputError(
                f"the instructions were written with tokenizer {self.written_with[:16]}, and {name} has {digest[:16]}; "
                f"give the candidates of one vocabulary, or write the corpus with theirs"
            )
        model = load_causal_lm(directory, dtype=getattr(torch, recipe.dtype), device=str(self.device))
        texts = document_bits(
            model,
            tokenizer,
            self.texts,
            window_tokens=recipe.window_tokens,
            batch_size=self.batch_size,
            after_batch=self.job.leave_if_asked,
        )
        conversations = self._predict(model, tokenizer, [asked_of(row) for row in self.conversations])
        answers = [sum(each.bits) for each in conversations]
        if not all(math.isfinite(bits) for bits in [*(each.bits for each in texts), *answers]):
            return Measured(fault=_BROKEN)
        return Measured(
            fault=template_fault(tokenizer, self.day),
            texts=tuple(Bits(document=each.document, bits=each.bits, num_bytes=each.num_bytes) for each in texts),
            answers=tuple(
                Bits(document=row.document, bits=bits, num_bytes=row.num_bytes)
                for row, bits in zip(self.conversations, answers, strict=True)
            ),
            exercises=self._answered(model, tokenizer),
            cloze=self._guessed(model, tokenizer),
            cloze_documents=tuple(item[CLUSTER] for item in self.cloze),
            stopped=tuple(stopped_prompts(model, tokenizer, max_new_tokens=recipe.max_new_tokens, day=self.day)),
        )

    def _answered(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast) -> tuple[bool, ...]:
        """Which exercises greedy decoding answers, and then ends."""
        if not self.exercises or not tokenizer.chat_template:
            return ()
        ends = end_tokens(model, tokenizer)
        if not ends:
            return (False,) * len(self.exercises)
        # Which of several ends is given does not count: all of them stop an answer.
        asked = asked_exercises(tokenizer, self.exercises, min(ends), self.day)
        return tuple(
            is_answered(each, found.likeliest, ends)
            for each, found in zip(asked, self._predict(model, tokenizer, asked), strict=True)
        )

    def _guessed(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast) -> tuple[bool, ...]:
        """Of which cloze items the right word is the likeliest."""
        if not self.cloze:
            return ()
        start = start_token(model, tokenizer)
        asked = [each for item in self.cloze for each in asked_choices(tokenizer, start, item)]
        found = iter(self._predict(model, tokenizer, asked))
        return tuple(is_right(item, [sum(next(found).bits) for _ in item["choices"]]) for item in self.cloze)

    def _predict(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, asked: Sequence[Asked]
    ) -> list[Predicted]:
        """Long rows together, so that little is padding; what comes back is in the given order."""
        order = sorted(range(len(asked)), key=lambda index: -len(asked[index].ids))
        found = predict(
            model,
            [asked[index] for index in order],
            num_tokens=real_vocab_size(tokenizer),
            batch_size=self.batch_size,
            after_batch=self.job.leave_if_asked,
        )
        by_index = dict(zip(order, found, strict=True))
        return [by_index[index] for index in range(len(asked))]


if __name__ == "__main__":
    worker_main(run)
