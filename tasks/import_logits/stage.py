"""import_logits: logits that were stored elsewhere, as a logit store that trains a student here.

Inputs: "tokenizer" (a model artifact), whose ids the set speaks. Output: what dump_logits writes, logits.json and the
shards that it lists. The files are identified by their content (`with_identity`).
"""

from __future__ import annotations

import glob
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from tasks.artifacts.errors import BadInputError
from tasks.artifacts.fingerprint import content_digest, file_sha256
from tasks.artifacts.frozen import Frozen
from tasks.artifacts.pinned import Pinned
from tasks.logits.schema import Support, Values
from tasks.runtime.declare import GateResult, Gates, Stage, StageConfig, at_least, at_most

FloatType = Literal["float16", "bfloat16", "float32", "float64"]


class ParquetSource(Pinned):
    """Local parquet files, one document a row."""

    kind: Literal["parquet"] = "parquet"
    paths: tuple[str, ...] = Field(min_length=1)
    """Paths or globs; what they match is read in sorted order."""
    heldout_paths: tuple[str, ...] = ()
    """Files whose documents are all held out. Without any, `heldout_fraction` of the recipe decides."""
    max_rows: int | None = Field(None, ge=1)
    """At most this many documents of `paths`, the first ones."""

    def files(self) -> tuple[list[Path], list[Path]]:
        """The files of `paths` and those of `heldout_paths`, each sorted by path.

        Raises:
            BadInputError: a path matches nothing, or a file is in both.
        """
        train, heldout = _matches(self.paths), _matches(self.heldout_paths)
        if both := sorted(set(train) & set(heldout)):
            raise BadInputError(
                f"{both[0]} is among both paths and heldout_paths of import_logits; name it in one of them"
            )
        return train, heldout

    def sha256(self) -> str:
        """Hash over the files' splits, places in the order, and contents."""
        train, heldout = self.files()
        named = [("train", train), ("heldout", heldout)]
        return content_digest(
            (f"{split}/{place:08d}", file_sha256(path)) for split, paths in named for place, path in enumerate(paths)
        )

    def with_identity(self) -> Self:
        """With the hash of the files as they are now.

        Raises:
            BadInputError: another hash is given.
        """
        return self.pinned(self.sha256(), ", ".join(self.paths), "recipe.source of import_logits")


def _matches(patterns: tuple[str, ...]) -> list[Path]:
    found: set[Path] = set()
    for pattern in patterns:
        matches = [Path(name) for name in glob.glob(str(Path(pattern).expanduser()), recursive=True)]
        if not any(path.is_file() for path in matches):
            raise BadInputError(f"{pattern} matches no file; correct the paths of import_logits")
        found.update(path for path in matches if path.is_file())
    return sorted(found)


class _Aligned(Frozen):
    extra_position: Literal["none", "first", "last"] = "none"
    """none: T tokens have T − 1 positions, and position p predicts token p + 1. With T positions there is one too many:
    the first, where position i holds p(x_i | x_<i), or the last, where position i predicts token i + 1."""
    values: Literal["logprobs", "logits"] = "logprobs"
    """logits: their normaliser is not known, so the kept entries are taken for the whole distribution. That inflates
    them by the mass of what was cut, which nobody knows any more; the store then says that it captured all."""


class PlainFormat(_Aligned):
    """The columns of tasks/import_logits/plain.py, which `export` writes too."""

    kind: Literal["plain"] = "plain"


class ResidualBin(Frozen):
    """Quantised differences to the fitted curve."""

    scale_dtype: FloatType
    element_bits: int = Field(ge=1, le=32)
    num_elements: int = Field(ge=1)


class Compression(Frozen):
    """DistillKit's compression_config.yaml, whose names these are; a set cannot be read without it."""

    d: int = Field(ge=2)
    """Vocabulary size; it says how many bits an id takes."""
    k: int = Field(ge=1)
    exact_k: int = Field(ge=0)
    """Values stored as they are; those of the other ranks are a curve over the rank."""
    exact_dtype: FloatType = "float32"
    polynomial_terms: tuple[Literal["sqrt", "exp"] | int, ...] | None = None
    term_dtype: FloatType = "float32"
    residual_bins: tuple[ResidualBin, ...] = ()
    delta_encoding: bool = True
    """Each value is stored as the difference to the one before."""
    error_diffusion: bool = False
    """Concerns the writer alone."""
    normalize_t: bool = False
    """Ranks of the curve run over 0 … 1 instead of 0, 1, 2 …"""

    @model_validator(mode="after")
    def _ranks_add_up(self) -> Self:
        left = self.k - self.exact_k
        if left < 0 or sum(part.num_elements for part in self.residual_bins) > left:
            raise ValueError("exact_k and the elements of residual_bins are more than k together")
        return self


class LegacyCompression(Frozen):
    """DistillKit's `legacy_logit_compression`."""

    k: int = Field(ge=1)
    exact_k: int = Field(ge=0)
    polynomial_degree: int = Field(ge=0)
    vocab_size: int = Field(ge=2)
    invert_polynomial: bool = True
    with_sqrt_term: bool = False
    term_dtype: FloatType = "float32"
    """Concerns the writer alone: the column is float32."""

    @model_validator(mode="after")
    def _ranks_add_up(self) -> Self:
        if self.exact_k > self.k:
            raise ValueError("exact_k is larger than k")
        return self


class DistillKitFormat(_Aligned):
    """Columns of arcee-ai's DistillKit (tasks/import_logits/distillkit.py)."""

    kind: Literal["distillkit"] = "distillkit"
    compression: Compression | None = None
    legacy: LegacyCompression | None = None
    """At most one of the two; neither where ids and values stand in the columns token_ids and top_values."""

    @model_validator(mode="after")
    def _one_codec(self) -> Self:
        if self.compression is not None and self.legacy is not None:
            raise ValueError("give compression or legacy, not both: a set was written with one of them")
        return self


class NamedTeacher(Frozen):
    """Whose distributions these are, as far as it is known. It is written into the store; nothing is read from it."""

    repo: str | None = None
    revision: str | None = None
    dtype: str = ""
    quantisation: str | None = None


class ImportLogitsRecipe(Frozen):
    """What is read and how it is stored."""

    source: ParquetSource
    format: Annotated[PlainFormat | DistillKitFormat, Field(discriminator="kind")]
    teacher: NamedTeacher | None = None
    support: Support | None = None
    """How entries are laid out. By default what an exported file says, else top_k with as many as any position has."""
    values: Values = "warped"
    rows_per_shard: int = Field(1024, ge=1)
    documents_per_chunk: int = Field(1, ge=1)
    heldout_fraction: float = Field(0.02, ge=0, lt=1)
    """Share of the documents kept from training, decided by the hash of their tokens; with `heldout_paths` unused."""
    seed: int = 0
    """Chooses the held-out documents."""


class ImportLogitsGates(Gates):
    """When the logits are good enough to train on."""

    min_captured_mass: float | None = Field(0.9, ge=0, le=1)
    max_excess_mass: float | None = Field(0.01, ge=0)


class ImportLogitsConfig(StageConfig):
    """The config block of `import_logits`."""

    recipe: ImportLogitsRecipe
    gates: ImportLogitsGates = ImportLogitsGates()


def judge(metrics: Mapping[str, Any], gates: ImportLogitsGates) -> list[GateResult]:
    """Gates: the kept entries carry the distribution, and they are one."""
    return [
        *at_least(
            "min_captured_mass",
            metrics.get("captured_mass"),
            gates.min_captured_mass,
            "Mean probability that the kept entries of a position carry; the rest is stored as one number.",
        ),
        *at_most(
            "max_excess_mass",
            metrics.get("excess_mass"),
            gates.max_excess_mass,
            "Mean probability by which the source's entries sum to more than 1; they are scaled down to it.",
        ),
    ]


STAGE = Stage(name="import_logits", version=1, config=ImportLogitsConfig, judge=judge)
