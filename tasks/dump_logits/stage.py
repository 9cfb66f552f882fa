"""dump_logits: a teacher's truncated next-token distributions over a corpus, as a logit store.

Inputs: "teacher" (model), "corpus". Output: logits.json and the shards that it lists (tasks/logits/README.md).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from tasks.artifacts.frozen import Frozen
from tasks.dump_logits.served import AnyTeacher, ServedTeacher, TeacherServer
from tasks.logits.schema import MIN_TEMPERATURE, Support, TopKSupport, Values
from tasks.runtime.declare import GateResult, Gates, Runtime, Stage, StageConfig, at_least, at_most


class DumpLogitsRecipe(Frozen):
    """What is stored."""

    teacher: AnyTeacher
    support: Support = TopKSupport()
    """Which entries of a distribution are kept (tasks/logits/README.md compares them)."""
    values: Values = "warped"
    """How their log-probabilities are stored: on 255 levels, or rounded to a float and kept exactly."""
    rows_per_shard: int = Field(1024, ge=1)
    """A shard is the unit of resume: some minutes of work."""
    documents_per_chunk: int = Field(1, ge=1)
    """Documents that are compressed and read together. 1 lets any single one be read; short ones (100 tokens) are
    smaller and read faster by 16."""
    prior_tokens: int = Field(65536, ge=1)
    """Tokens of the sample on which the ids are counted, before the first shard."""
    splits: tuple[Literal["train", "heldout"], ...] = Field(("train", "heldout"), min_length=1)
    temperatures: tuple[float, ...] = ()
    """Temperatures other than 1 that a loss will use. A truncated distribution cannot be tempered afterwards."""

    @field_validator("splits")
    @classmethod
    def _splits_in_order(cls, splits: tuple[str, ...]) -> tuple[str, ...]:
        if len(set(splits)) != len(splits):
            raise ValueError(f"a split is named twice in {splits}")
        # One spelling, so that the order in a profile does not make another key.
        return tuple(sorted(splits, key=("train", "heldout").index))

    @field_validator("temperatures")
    @classmethod
    def _temperatures_in_order(cls, temperatures: tuple[float, ...]) -> tuple[float, ...]:
        if len(set(temperatures)) != len(temperatures) or any(t < MIN_TEMPERATURE or t == 1 for t in temperatures):
            raise ValueError(
                f"temperatures are at least {MIN_TEMPERATURE}, differ, and leave out 1, which is always stored: "
                f"{temperatures}"
            )
        return tuple(sorted(temperatures))

    @model_validator(mode="after")
    def _a_server_can_give_it(self) -> DumpLogitsRecipe:
        if not isinstance(self.teacher, ServedTeacher):
            return self
        if self.temperatures:
            raise ValueError(
                f"a server gives no normaliser at temperatures {self.temperatures}, only its likeliest tokens at 1; "
                f"leave temperatures out, or let the dump load the teacher itself"
            )
        if self.support.kind == "sampled":
            raise ValueError(
                "a server gives its likeliest tokens and no draws with their log-probabilities; set support to top_k "
                "or adaptive, or let the dump load the teacher itself"
            )
        return self


class DumpLogitsRuntime(Runtime):
    """How it is computed; results agree to 1e-4 nats in float32 whatever is set here.

    With `num_processes` > 1 the processes share the shards, as do further launches of the same recipe, on other hosts
    too: each takes what nobody else has.
    """

    tensor_parallel: int = Field(1, ge=1)
    """Processes that hold one teacher together, by transformers' own plan; `num_processes` is a multiple of it."""

    server: TeacherServer | None = None
    """Where a served teacher answers. Its processes take shards as others do and compute nothing."""

    replicas: int = Field(1, ge=1)
    """Flow runs of `pool` that make the dump together, each as launcher and num_processes say. Without a pool, or in a
    run that came of no deployment, there is one."""
    tokens_per_batch: int = Field(8192, ge=1)
    """Tokens of one forward pass, padding included. A longer row is a batch of its own."""
    head_chunk_tokens: int = Field(512, ge=1)
    """Positions whose full logits exist at one time: 4.5 bytes · vocabulary each."""
    gold_rows_per_shard: int = Field(2, ge=1)
    """Rows of each shard whose gold log-probabilities are computed a second time, by the model's own forward pass."""

    @model_validator(mode="after")
    def _groups_fit(self) -> DumpLogitsRuntime:
        if self.tensor_parallel > 1 and (self.launcher != "torchrun" or self.num_processes % self.tensor_parallel):
            raise ValueError(
                f"tensor_parallel {self.tensor_parallel} needs launcher torchrun and num_processes a multiple of it, "
                f"not {self.launcher} with {self.num_processes}"
            )
        return self

    @model_validator(mode="after")
    def _replicas_have_a_pool(self) -> DumpLogitsRuntime:
        if self.replicas > 1 and self.pool is None:
            raise ValueError(f"replicas is {self.replicas}, but pool names no work pool to run them on; set pool")
        return self


class DumpLogitsGates(Gates):
    """When the logits are good enough to train on."""

    min_captured_mass: float | None = Field(0.9, ge=0, le=1)
    """Set null for sampled support, which is unbiased whatever mass its draws cover."""
    max_gold_error: float | None = Field(0.05, ge=0)
    """Nats, the mean over a shard's sampled positions, of the worst shard. 0.001 is the store's rounding; a bfloat16
    teacher adds 0.003 between batch shapes, and 0.6 at a single token of p = 6e-6, so the largest is no gate."""


class DumpLogitsConfig(StageConfig):
    recipe: DumpLogitsRecipe
    runtime: DumpLogitsRuntime = DumpLogitsRuntime()
    gates: DumpLogitsGates = DumpLogitsGates()

    @model_validator(mode="after")
    def _the_teacher_has_its_place(self) -> DumpLogitsConfig:
        served = isinstance(self.recipe.teacher, ServedTeacher)
        if served != (self.runtime.server is not None):
            raise ValueError(
                "recipe.teacher is served, and runtime.server says nowhere where; give its base_url"
                if served
                else "runtime.server names a server, and recipe.teacher is not of kind served; make them agree"
            )
        if served and self.runtime.tensor_parallel > 1:
            raise ValueError("a served teacher is cut by its server; leave runtime.tensor_parallel at 1")
        return self


def judge(metrics: Mapping[str, Any], gates: DumpLogitsGates) -> list[GateResult]:
    """Gates: the kept entries carry the distribution, and the stored numbers belong to the stored tokens."""
    return [
        *at_least(
            "min_captured_mass",
            metrics.get("captured_mass"),
            gates.min_captured_mass,
            "Mean probability that the kept entries of a position carry; the rest is stored as one number.",
        ),
        *at_most(
            "max_gold_error",
            metrics.get("gold_error"),
            gates.max_gold_error,
            "Mean difference in nats between the stored log-probabilities of the following tokens and those of the "
            "teacher's own forward pass, on sampled rows of the worst shard.",
        ),
    ]


STAGE = Stage(name="dump_logits", version=2, config=DumpLogitsConfig, judge=judge, shared=True, accelerated=True)
