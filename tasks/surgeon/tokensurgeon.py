"""Approximated rows by mergekit-tokensurgeon's own methods.

tokensurgeon has no function for rows alone: it writes a whole model, of which the asked rows are read and the rest is
forgotten. What else it gets wrong there (padding, tokenizer, special tokens) does therefore not matter here.
"""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from mergekit.io.tasks import LoaderCache
from mergekit.scripts import tokensurgeon
from torch import Tensor
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from tasks.artifacts.errors import BadInputError
from tasks.modeling.model_files import num_rows, stored_dtype, weights_directory
from tasks.surgeon.batches import BY_TOKENSURGEON
from tasks.surgeon.stage import TransplantRecipe
from tasks.surgeon.stored_rows import stored_vocabulary


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


def tokensurgeon_rows(
    staging: Path,
    student: Path,
    donor: Path,
    recipe: TransplantRecipe,
    donor_ids_N: Tensor,
    *,
    batch_size: int | None,
    device: torch.device,
) -> list[Tensor]:
    """Rows for the donor's tokens `donor_ids_N` (int64), one (N, D) for each matrix of the student, in its dtype.

    `staging` is an empty folder for a draft of the model, which is deleted again.

    Raises:
        BadInputError: the donor has no safetensors or fewer rows than its tokenizer, or mergekit cannot do this method
            on it.
    """
    _check(donor, recipe, donor_ids_N)
    # Links and relative paths, since mergekit gives "@" and "+" in a path a meaning.
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
        f"--batch-size={batch_size or BY_TOKENSURGEON}",
        f"--device={device.type}",
    ]
    # mergekit keeps open files by the name of the model, for the life of the process.
    LoaderCache.loaders.clear()
    with contextlib.chdir(staging), _named_tokenizers():
        tokensurgeon.main.main(args=arguments, standalone_mode=False)
    LoaderCache.loaders.clear()
    draft = stored_vocabulary(staging / "out")
    rows = [draft.rows(matrix, donor_ids_N) for matrix in range(len(draft.names))]
    shutil.rmtree(staging)
    return rows


def _check(donor: Path, recipe: TransplantRecipe, donor_ids_N: Tensor) -> None:
    source = weights_directory(donor)
    if not any(source.glob("*.safetensors")):
        raise BadInputError(
            f"the donor in {source} has no safetensors (pickles are not read), and mergekit reads them whatever the "
            f"method; give a donor with weights or set recipe.method to composed"
        )
    if len(donor_ids_N) and num_rows(source) <= int(donor_ids_N.max()):
        raise BadInputError(
            f"the donor has {num_rows(source)} embedding rows and its tokenizer ids up to {int(donor_ids_N.max())}, so "
            f"that tokensurgeon would leave rows empty; give a donor with its own tokenizer"
        )
    if recipe.method == "common_interpolation" and recipe.weight_scheme == "distance_proportional":
        dtype = stored_dtype(donor)
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


def _link_model(directory: Path, target: Path) -> None:
    """Weights and config from where they are, tokenizer files from the artifact."""
    target.mkdir()
    for source in (weights_directory(directory), directory):
        for file in source.iterdir():
            if file.is_file() and file.name != "reference.json":
                (target / file.name).unlink(missing_ok=True)
                (target / file.name).symlink_to(file.resolve())
