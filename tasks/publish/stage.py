"""The stage `publish`: the final model as a Hugging Face directory with a card that states only what was measured.

Inputs: `model`, and `evaluation`, an evaluation whose candidate is that very model. What the model was made of, and so
under which licence it can be published, is read off its lineage, before anything runs and again when it is published.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from typing import Literal, Self

from pydantic import Field, model_validator

from tasks.artifacts.errors import BadInputError
from tasks.artifacts.frozen import Frozen
from tasks.publish.lineage import Made, planned
from tasks.publish.sources import LicensedSource, Licenses, licensed_sources
from tasks.publish.terms import Terms, check_names, derive_terms
from tasks.publish.texts import TextFile, check_public, missing_texts
from tasks.runtime.declare import Runtime, Stage, StageConfig, Step


class PublishRecipe(Frozen):
    """What the card says besides what is derived."""

    repo_name: str = Field(pattern=r"^[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?$")
    title: str = Field(min_length=1)
    overview: str = ""
    """One or two sentences in front of the derived ones."""
    language: tuple[str, ...] = Field(("en",), min_length=1)
    licenses: Licenses = Licenses()
    """Of the models and data in the lineage whose licence is not known here."""
    license_texts: dict[str, TextFile] = Field(default_factory=dict)
    """The text of a licence, by its name, that no model came with."""
    merge_method: str = Field(min_length=1)
    """What the card calls the fusion, such as "TIES"; its parameters follow from the lineage."""
    use_cases: tuple[str, ...] = ()
    expected: dict[str, float] = Field(default_factory=dict)
    """Published value of each task, to be set beside the measured ones: those of the profile, see
    `PublishConfig.expecting`."""
    target: Literal["store", "directory", "hub"] = "store"
    """Where besides the store the files go."""

    @model_validator(mode="after")
    def _has_owner(self) -> Self:
        if self.target == "hub" and "/" not in self.repo_name:
            raise ValueError(f"target hub needs an owner: repo_name OWNER/{self.repo_name}")
        return self

    def terms_of(self, lineage: Mapping[str, Made], model: str) -> tuple[list[LicensedSource], Terms]:
        """What the member `model` of a lineage was made of, and the licence that follows.

        Raises:
            BadInputError: a licence is not known, two of them conflict, or one wants another name of the model.
        """
        sources = licensed_sources(lineage, model, self.licenses)
        terms = derive_terms(sources)
        check_names(self.repo_name, self.title, terms)
        under = {source.license for source in sources}
        for license in self.license_texts:
            if license not in under:
                raise BadInputError(
                    f"publish.recipe.license_texts names {license!r}, under which nothing is that the model was made "
                    f"of; the licences are: {', '.join(sorted(under))}"
                )
        return sources, terms

    def check_texts(self, sources: Sequence[LicensedSource], there: Set[str]) -> dict[str, list[str]]:
        """What is under a licence whose text must go along and is not `there`, by licence.

        Raises:
            BadInputError: the target is the hub, and the licence binds whoever uses the model.
        """
        missing = missing_texts(sources, there | self.license_texts.keys())
        if self.target == "hub":
            check_public(missing)
        return missing


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
    def _has_directory(self) -> Self:
        if self.recipe.target == "directory" and self.runtime.directory is None:
            raise ValueError("publish.recipe.target is directory: set publish.runtime.directory to the folder")
        return self

    def expecting(self, expected: Mapping[str, float]) -> Self:
        """Itself with the values that the profile expects.

        Raises:
            BadInputError: the recipe expects values of its own.
        """
        if self.recipe.expected:
            raise BadInputError("publish.recipe.expected is taken from `expected` of the profile; move it there")
        return self.model_copy(update={"recipe": self.recipe.model_copy(update={"expected": dict(expected)})})

    def check(self, model: Step) -> None:
        """Whether this model can be published once it is made; raises as `terms_of` and `check_texts` of the recipe.

        That a repository or folder comes with its licence is taken for granted until it has been read.
        """
        sources, _ = self.recipe.terms_of(planned(model), model.key)
        self.recipe.check_texts(sources, {source.license for source in sources if source.has_files})


STAGE = Stage(name="publish", version=4, config=PublishConfig)
