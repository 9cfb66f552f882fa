"""The stage `evaluate`: all models of a comparison under one harness, with paired differences and standard errors.

Inputs: `model.<name>` for each model, `corpus` for the held-out texts. Across vocabularies only two things compare,
and only these are measured: bits per byte of the same raw text, and the accuracy on the same items.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import Field, model_validator

from tasks.artifacts.frozen import Frozen
from tasks.benchmarks.declare import CLOZE, ClozeTasks, EvaluationTasks, ExerciseTasks, HarnessTasks
from tasks.evaluate.served import ModelServer, ServedModel
from tasks.modeling.template_date import IsoDate
from tasks.runtime.declare import GateResult, Gates, Runtime, Stage, StageConfig, at_least, at_most


class EvaluateRecipe(Frozen):
    """What is measured, and who is compared with whom."""

    tasks: tuple[EvaluationTasks, ...] = Field(min_length=1)
    reference: str
    """The model that all others are compared with: the student as it was at first."""
    candidate: str
    """The model that will be published; compared with every other."""
    parents: tuple[str, ...] = ()
    """The models that were fused into the candidate."""
    twins: dict[str, str] = Field(default_factory=dict)
    """Branch → its CE-only twin: their held-out KL to the teacher, measured where they were trained, is compared."""
    served: dict[str, ServedModel] = Field(default_factory=dict)
    """Models behind servers by the names that they are compared under, beside those of the inputs."""
    apply_chat_template: bool = True
    template_date: IsoDate = "2024-07-26"
    """An ISO date: what a chat template prints as today's date."""
    max_new_tokens: int = Field(32, ge=1)
    """For the exercises; a harness task states its own."""
    seed: int = 0
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    bits_per_byte: bool = True
    skip_documents: int = Field(0, ge=0)
    """Held-out texts at the start of the corpus that are left out: those of another evaluation, which is reported while
    this one is chosen on."""
    max_documents: int | None = Field(None, ge=2)
    """Bits per byte on the first held-out texts after those only: whole documents, of however many rows."""
    window_tokens: int = Field(2048, ge=2)
    """Longest window for bits per byte; a model with a shorter context uses its own."""

    @property
    def entries(self) -> list[str]:
        """What is measured of each model, one by one: kinds of exercises, tasks and groups of the harness."""
        return [entry for task in self.tasks for entry in task.entries]

    @property
    def reads_texts(self) -> bool:
        """Whether anything is measured on held-out texts, or made of them."""
        return self.bits_per_byte or CLOZE in self.entries

    @model_validator(mode="after")
    def _names(self) -> EvaluateRecipe:
        if self.reference == self.candidate:
            raise ValueError(f"reference and candidate are both {self.candidate!r}; there is nothing to compare")
        if self.candidate in self.parents:
            raise ValueError(f"{self.candidate!r} cannot be its own parent; take it out of evaluate.recipe.parents")
        weighed = {self.reference, self.candidate, *self.parents, *self.twins, *self.twins.values()}
        if unfit := sorted(weighed & self.served.keys()):
            raise ValueError(
                f"{unfit[0]!r} is served, and reference, candidate, parents and twins must be models of this run, of "
                f"which everything is measured; give the served model another name"
            )
        for name, served in self.served.items():
            if served.tokenizer in self.served:
                raise ValueError(f"served.{name}.tokenizer names a served model; name one of this run")
            if served.api == "chat" and not self.apply_chat_template:
                raise ValueError(f"served.{name} is asked by chat; set apply_chat_template, or take api: completions")
        if sum(isinstance(task, ClozeTasks) for task in self.tasks) > 1:
            raise ValueError("evaluate.recipe.tasks has cloze items twice; they are of the same texts")
        kinds = [kind for task in self.tasks if isinstance(task, ExerciseTasks) for kind in task.kinds]
        names = [task.name for task in self.tasks if isinstance(task, HarnessTasks)]
        for what, values in (("kind of exercises", kinds), ("task", names)):
            twice = sorted({value for value in values if values.count(value) > 1})
            if twice:
                raise ValueError(f"the {what} {twice[0]!r} is listed twice in evaluate.recipe.tasks")
        return self


class EvaluateRuntime(Runtime):
    """Another batch size changes the last bits of sums, and with them at most near-tied tokens."""

    batch_size: int = Field(64, ge=1)
    servers: dict[str, ModelServer] = Field(default_factory=dict)
    """Where the recipe's `served` models answer."""
    mirror: str | None = None
    """A folder with copies of the hub's data sets, each at OWNER/NAME in its repository's layout, and of NLTK's data at
    nltk_data. The hub is not asked for data then."""


class EvaluateGates(Gates):
    """When the candidate is worth publishing."""

    max_kl_over_twin: float | None = None
    """Held-out KL of any branch to its teacher, as a part of its twin's."""
    min_paired_z: float | None = None
    """Accuracy of the candidate minus that of the reference over all items, in paired standard errors."""
    min_mean_z: float | None = None
    """The same of the mean over the recipe's tasks with equal weights, as leaderboards count: over all items a task
    counts by its size, and MMLU-Pro has more than half of those of the Open LLM Leaderboard. Below 0 allows so much
    loss."""
    max_bits_per_byte_excess: float | None = None
    """By which fraction the candidate's bits per byte may exceed those of any parent: 0.02 is 2 %."""
    min_items: int | None = Field(None, ge=1)


class EvaluateConfig(StageConfig):
    recipe: EvaluateRecipe
    runtime: EvaluateRuntime = EvaluateRuntime()
    gates: EvaluateGates = EvaluateGates()

    @model_validator(mode="after")
    def _served_somewhere(self) -> EvaluateConfig:
        if lost := sorted(self.recipe.served.keys() ^ self.runtime.servers.keys()):
            raise ValueError(
                f"recipe.served and runtime.servers must name the same models, and {lost[0]!r} is in one of them only"
            )
        return self


def _judge(metrics: Mapping[str, Any], gates: EvaluateGates) -> list[GateResult]:
    return [
        *at_most(
            "max_kl_over_twin",
            metrics.get("worst_kl_over_twin"),
            gates.max_kl_over_twin,
            "each branch is nearer to its teacher than the same training without the teacher brings it",
        ),
        *at_least(
            "min_paired_z",
            metrics.get("candidate_over_reference_z"),
            gates.min_paired_z,
            "the final model answers more items than the model it started from, beyond chance",
        ),
        *at_least(
            "min_mean_z",
            metrics.get("mean_over_reference_z"),
            gates.min_mean_z,
            "the final model is as good as the model it started from in the mean of the tasks, equally weighed",
        ),
        *at_most(
            "max_bits_per_byte_excess",
            metrics.get("worst_parent_excess"),
            gates.max_bits_per_byte_excess,
            "the final model predicts held-out text about as well as each model that was fused into it",
        ),
        *at_least("min_items", metrics.get("num_items"), gates.min_items, "there are enough items to tell"),
    ]


STAGE = Stage(name="evaluate", version=7, config=EvaluateConfig, judge=_judge, accelerated=True)
