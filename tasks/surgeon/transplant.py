"""`transplant`: a student in the donor's vocabulary, by mergekit-tokensurgeon and what it leaves undone.

tokensurgeon copies the rows of shared tokens and approximates the others. It loses the padding of the rows, writes a
tokenizer that reloads with other ids and no generation_config.json, and knows nothing of the duties of special tokens:
all this is done here.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from mergekit.io.tasks import LoaderCache
from mergekit.scripts import tokensurgeon
from transformers import AutoTokenizer, GenerationConfig, PreTrainedModel, PreTrainedTokenizerFast

from tasks.artifacts.errors import BadInputError
from tasks.modeling.bits_per_byte import bits_per_byte
from tasks.modeling.model_files import (
    TOKEN_ID_FIELDS,
    copy_tokenizer_files,
    load_causal_lm,
    num_rows,
    read_json,
    resolve_device,
    save_causal_lm,
    stored_dtype,
    vocabulary_weights,
    weights_directory,
)
from tasks.modeling.tokenizer_files import load_tokenizer, real_vocab_size
from tasks.surgeon.plan import TransplantPlan, plan_transplant
from tasks.surgeon.result import check_tokenizer, compared, write_record
from tasks.surgeon.stage import SurgeonRuntime, TransplantRecipe
from tasks.worker.job import Job


class _NamedTokenizer(PreTrainedTokenizerFast):
    """The tokenizer as tokensurgeon shall see it: exact, tokens matched by name alone, in the order of their ids.

    tokensurgeon would match bos with bos whatever the recipe maps, fold all extra special tokens into one, and take
    its batches from a dict whose order changes from process to process.
    """

    @property
    def special_tokens_map(self) -> dict[str, Any]:
        return {}

    def get_vocab(self) -> dict[str, int]:
        return dict(sorted(super().get_vocab().items(), key=lambda item: item[1]))


def transplant(job: Job, recipe: TransplantRecipe, runtime: SurgeonRuntime) -> None:
    """The student with the donor's vocabulary."""
    started = time.monotonic()
    student_directory, donor_directory = job.input("student").directory(), job.input("donor").directory()
    student_tokenizer, donor_tokenizer = load_tokenizer(student_directory), load_tokenizer(donor_directory)
    multiple = recipe.pad_rows_to_multiple_of
    plan = plan_transplant(
        student_tokenizer,
        donor_tokenizer,
        recipe.special_tokens,
        rows=recipe.rows or math.ceil(real_vocab_size(donor_tokenizer) / multiple) * multiple,
        min_shared=recipe.k if recipe.method in ("omp", "common_interpolation") else 1,
    )
    _check_donor(recipe, donor_directory, plan)
    device = resolve_device(runtime.device)
    dtype = stored_dtype(student_directory)

    job.progress(0, 4, "steps")
    student = load_causal_lm(student_directory, dtype=dtype, device=device)
    before = bits_per_byte(student, student_tokenizer)
    student_rows = [weight.detach().cpu().clone() for weight in vocabulary_weights(student)]
    del student

    job.progress(1, 4, "steps")
    staging = job.new_directory("transplant")
    raw = _run_tokensurgeon(staging, student_directory, donor_directory, recipe, runtime.batch_size, device)

    job.progress(2, 4, "steps")
    model = load_causal_lm(raw, dtype=dtype, device=device)
    _finish_rows(model, plan, student_rows)
    ids = _donor_ids(donor_directory, donor_tokenizer)
    for name, value in ids.items():
        setattr(model.config, name, value)
    model.generation_config = _generation_config(student_directory, ids)
    after = bits_per_byte(model, donor_tokenizer)

    job.progress(3, 4, "steps")
    out = job.new_directory("out")
    save_causal_lm(model, out)
    copy_tokenizer_files(donor_directory, out)
    check_tokenizer(out, donor_tokenizer)
    write_record(out, {"mode": "transplant", **plan.record()})
    counts = plan.counts
    job.complete(
        out,
        {
            **compared(before, after),
            "num_rows": plan.rows,
            "real_vocab_size": plan.real_vocab_size,
            "shared_tokens": counts["shared"]["total"],
            "donor_only_tokens": counts["donor_only"]["total"],
            "student_only_tokens": counts["student_only"]["total"],
            "donor_only_digits": counts["donor_only"].get("digits", 0),
            "donor_only_non_ascii": counts["donor_only"].get("non_ascii", 0),
            "seconds": time.monotonic() - started,
        },
    )


def _check_donor(recipe: TransplantRecipe, donor_directory: Path, plan: TransplantPlan) -> None:
    source = weights_directory(donor_directory)
    if not any(source.glob("*.safetensors")):
        raise BadInputError(f"the donor in {source} has no safetensors, and pickles are not read; convert it first")
    rows = num_rows(source)
    if rows < plan.real_vocab_size:
        raise BadInputError(
            f"the donor has {rows} embedding rows and its tokenizer ids up to {plan.real_vocab_size - 1}, so that "
            f"tokensurgeon would leave rows empty; give a donor with its own tokenizer"
        )
    if recipe.method == "common_interpolation" and recipe.weight_scheme == "distance_proportional":
        dtype = stored_dtype(donor_directory)
        if dtype != torch.float32:
            raise BadInputError(
                f"mergekit's common_interpolation by distance_proportional works on float32 donors only, and this one "
                f"is {dtype}; set recipe.weight_scheme to least_squares"
            )


@contextlib.contextmanager
def _named_tokenizers() -> Iterator[None]:
    """Lets tokensurgeon, which has no parameter for it, load tokenizers exactly (and never with remote code)."""
    with patch.object(AutoTokenizer, "from_pretrained", lambda path, **_: _NamedTokenizer.from_pretrained(path)):
        yield


def _run_tokensurgeon(
    staging: Path, student: Path, donor: Path, recipe: TransplantRecipe, batch_size: int, device: torch.device
) -> Path:
    """The folder with tokensurgeon's result. Paths are relative since mergekit gives "@" and "+" in them a meaning."""
    for name, directory in (("student", student), ("donor", donor)):
        _link_model(directory, staging / name)
    arguments = [
        "student",
        "donor",
        "out",
        f"--k={recipe.k}",
        f"--approximation-method={recipe.method}",
        f"--weight-scheme={recipe.weight_scheme}",
        "--cosine-similarity" if recipe.cosine_similarity else "--no-cosine-similarity",
        f"--batch-size={batch_size}",
        f"--device={device.type}",
    ]
    if recipe.new_row_scale != 1:
        arguments.append(f"--new-vocab-scale={recipe.new_row_scale}")
    # mergekit keeps open files by the name of the model, for the life of the process.
    LoaderCache.loaders.clear()
    with contextlib.chdir(staging), _named_tokenizers():
        tokensurgeon.main.main(args=arguments, standalone_mode=False)
    LoaderCache.loaders.clear()
    return staging / "out"


def _link_model(directory: Path, target: Path) -> None:
    """Weights and config from where they are, tokenizer files from the artifact."""
    target.mkdir()
    for source in (weights_directory(directory), directory):
        for file in source.iterdir():
            if file.is_file() and file.name != "reference.json":
                (target / file.name).unlink(missing_ok=True)
                (target / file.name).symlink_to(file.resolve())


def _finish_rows(model: PreTrainedModel, plan: TransplantPlan, student_rows: list[torch.Tensor]) -> None:
    """Pads to plan.rows with zeros and copies the rows of mapped special tokens bit by bit."""
    model.resize_token_embeddings(plan.rows, mean_resizing=False)
    weights = vocabulary_weights(model)
    if len(weights) != len(student_rows):
        raise BadInputError(
            "the transplanted model ties its head to its embedding and the student does not, or the other way round; "
            "check tie_word_embeddings in the student's config.json"
        )
    with torch.no_grad():
        for weight, student_weight in zip(weights, student_rows, strict=True):
            weight[plan.real_vocab_size :] = 0
            for token in plan.mapped:
                weight[token.donor_id] = student_weight[token.student_id].to(weight.device)


def _donor_ids(directory: Path, tokenizer: PreTrainedTokenizerFast) -> dict[str, Any]:
    """Token ids of the donor's vocabulary for config.json and generation_config.json.

    The donor's generation_config may list several ends of a turn; without a padding token the end stands in.
    """
    stored = weights_directory(directory) / "generation_config.json"
    listed = read_json(stored).get("eos_token_id") if stored.is_file() else None
    eos = tokenizer.eos_token_id if listed is None else listed
    first_eos = eos[0] if isinstance(eos, list) else eos
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else first_eos
    return dict(zip(TOKEN_ID_FIELDS, (tokenizer.bos_token_id, eos, pad), strict=True))


def _generation_config(student_directory: Path, ids: dict[str, Any]) -> GenerationConfig:
    """The student's way of sampling with the donor's token ids."""
    stored = weights_directory(student_directory) / "generation_config.json"
    return GenerationConfig(**{**(read_json(stored) if stored.is_file() else {}), **ids})
