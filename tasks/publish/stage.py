"""The stage `publish`: the final model as a Hugging Face directory with a card that states only what was measured.

Inputs: `model`, and `evaluation`, an evaluation whose candidate is that very model.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from tasks.artifacts.errors import BadInputError
from tasks.artifacts.frozen import Frozen
from tasks.publish.licenses import Terms, check_name, derive_terms
from tasks.runtime.declare import Runtime, Stage, StageConfig


class Source(Frozen):
    """A model or a data set that went into the published one."""

    name: str = Field(min_length=1)
    license: str = Field(min_length=1)


class Teacher(Source):
    """A model whose outputs the published one was trained on."""

    family: Literal["llama", "qwen", "apache", "other"]

    @model_validator(mode="after")
    def _agrees(self) -> Teacher:
        is_llama = self.license.startswith("llama")
        if is_llama != (self.family == "llama"):
            raise ValueError(
                f"{self.name} is of the family {self.family!r} and has the licence {self.license!r}; models of the "
                f"family llama, and only they, carry a Llama licence"
            )
        return self


class PublishRecipe(Frozen):
    """What the card says; all numbers in it come from the evaluation."""

    repo_name: str = Field(pattern=r"^[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?$")
    title: str = Field(min_length=1)
    overview: str = ""
    """One or two sentences in front of the derived ones."""
    language: tuple[str, ...] = Field(("en",), min_length=1)
    base_model: tuple[str, ...] = Field(min_length=1)
    """Hub ids, or names of models that are on no hub."""
    teachers: tuple[Teacher, ...] = ()
    student: Source
    datasets: tuple[Source, ...] = ()
    generated_data: bool
    """Whether instructions were generated from rules, so that the card must not claim evolved instruction data."""
    merge_method: str = Field(min_length=1)
    """Such as "TIES, density 0.66"."""
    use_cases: tuple[str, ...] = ()
    expected: dict[str, float] | None = None
    """Published value of each task, to be set beside the measured ones."""
    target: Literal["store", "directory", "hub"] = "store"
    """Where besides the store the files go."""

    @model_validator(mode="after")
    def _allowed(self) -> PublishRecipe:
        try:
            check_name(self.repo_name, self.terms)
        except BadInputError as error:
            raise ValueError(str(error)) from error
        if self.target == "hub" and "/" not in self.repo_name:
            raise ValueError(f"target hub needs an owner: repo_name OWNER/{self.repo_name}")
        return self

    @property
    def terms(self) -> Terms:
        """The licence that follows from student, teachers and data."""
        return derive_terms((self.student, *self.teachers, *self.datasets))


class PublishRuntime(Runtime):
    """Where the target is; the token for the hub comes from HF_TOKEN."""

    directory: str | None = None
    """For the target `directory`: a folder that does not exist yet, or holds these very files."""
    private: bool = True
    """For the target `hub`."""


class PublishConfig(StageConfig):
    recipe: PublishRecipe
    runtime: PublishRuntime = PublishRuntime()

    @model_validator(mode="after")
    def _has_directory(self) -> PublishConfig:
        if self.recipe.target == "directory" and self.runtime.directory is None:
            raise ValueError("publish.recipe.target is directory: set publish.runtime.directory to the folder")
        return self


STAGE = Stage(name="publish", version=1, config=PublishConfig)
